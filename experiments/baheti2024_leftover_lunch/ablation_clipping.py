r"""Baheti et al. 2024, appendix B: the clip interval of the importance weight.

Claim: with the weights clipped training is more stable than without; the
reference-free variant, whose weights are all 1, has less reward.

Run:      python -m rlhf_jax.main --workdir=runs/baheti_clipping \
            --config=experiments/baheti2024_leftover_lunch/ablation_clipping.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  as figure 2. The appendix is absent from the text at hand: the
          intervals are ours, .9 is the code's, and None what its generation
          script does.
"""

from experiments import baheti2024
from rlhf_jax.configs import base

INTERVALS = (0.2, 0.5, 0.9, None)


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = baheti2024.preferences(
      size, 'appendix B: the clip interval of A-LOL')
  baheti2024.add(config, 'a_lol_ref_free', labels=dict(clip='all 1'))
  for method in ('a_lol', 'a_lol_sequence'):
    for interval in INTERVALS:
      name = f'{method}_' + (base.tag(interval) if interval else 'unclipped')
      baheti2024.add(
          config, method, name,
          labels=dict(clip=f'+-{interval:g}' if interval else 'none'),
          arguments=dict(alol=dict(clip_ratio=interval)))
  config.figure = dict(kind='final', x='clip', y=('proxy', 'gold'),
                       line=('method',), columns=baheti2024.COLUMNS)
  return base.finish(
      config, smoke=('a_lol_ref_free', 'a_lol_unclipped'))
