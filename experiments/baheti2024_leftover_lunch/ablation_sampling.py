r"""Baheti et al. 2024, section 2.2: drawing responses by their advantage.

Claim: responses drawn in proportion to their advantage, or reward, teach as
much or more than those drawn uniformly.

Run:      python -m rlhf_jax.main --workdir=runs/baheti_sampling \
            --config=experiments/baheti2024_leftover_lunch/ablation_sampling.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  as figure 2. Drawn by advantage, and weighted by it in the loss too,
          a response counts by its square, as in the code.
"""

from experiments import baheti2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = baheti2024.preferences(size, 'section 2.2: how responses are drawn')
  for method, drawn in (('r_lol', 'reward'), ('wbc', 'reward'),
                        ('a_lol', 'advantage'), ('a_lol_sequence', 'advantage'),
                        ('a_lol_ref_free', 'advantage')):
    for priority in ('none', drawn):
      uniform = priority == 'none'
      baheti2024.add(config, method, method + '_uniform' * uniform,
                     priority=priority,
                     labels=dict(drawn='uniformly' if uniform
                                 else f'by {drawn}'))
  config.figure = dict(kind='final', x='method', y=('proxy', 'gold'),
                       line=('drawn',), columns=baheti2024.COLUMNS)
  return base.finish(config, smoke=('r_lol', 'a_lol_uniform'))
