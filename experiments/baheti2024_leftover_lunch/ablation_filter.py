r"""Baheti et al. 2024, sections 4 and 5: leaving out what has no advantage.

Claim: about a third of the good responses has a negative advantage; without
them every method learns as much or more, and most where labels are noisy.

Run:      python -m rlhf_jax.main --workdir=runs/baheti_filter \
            --config=experiments/baheti2024_leftover_lunch/ablation_filter.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  as figure 2, with no and with 40 % wrong labels beside. The filter is
          put before NLL and R-LOL too; all draw uniformly, so that nothing
          else differs.
"""

from experiments import baheti2024
from rlhf_jax.configs import base

NOISES = (0.0, 0.25, 0.4)


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = baheti2024.preferences(
      size, 'sections 4 and 5: the positive-advantage filter')
  config.logs = dict()
  for noise in NOISES:
    log = f'noise_{base.tag(noise)}'
    config.conditions[f'{log}_model'] = dict(num_members=1, label_noise=noise)
    config.logs[log] = dict(condition=f'{log}_model')
    labels = dict(label_noise=noise)
    for method in ('nll', 'r_lol'):
      for filtered in (False, True):
        baheti2024.add(
            config, method, f'{method}_{log}' + '_filtered' * filtered,
            labels=labels | dict(data='A > 0' if filtered else 'all'),
            log=log, filtered=filtered, priority='none')
    baheti2024.add(config, 'a_lol', f'a_lol_{log}', log=log, priority='none',
                   labels=labels | dict(data='A > 0'))
  del config.conditions['clean']
  config.log.condition = f'{log}_model'
  config.offline.log = log
  config.figure = dict(
      kind='final', x='label_noise', y=('proxy', 'gold'),
      line=('method', 'data'), columns=baheti2024.COLUMNS)
  return base.finish(config, smoke=(
      'nll_noise_0', 'nll_noise_0_filtered', 'a_lol_noise_04'))
