r"""Ahmadian et al. 2024, figure 5: RLOO and RAFT under KL coefficients.

Claim: at a small KL coefficient both end at the same KL and RLOO has the
higher reward; at larger ones RAFT has both less reward and more KL than RLOO.

Run:      python -m rlhf_jax.main --workdir=runs/ahmadian_fig5 \
            --config=experiments/ahmadian2024_back_to_basics/fig5_kl_coef.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models: reviews from a grammar, models of 1 to 2
          layers from scratch, one reward model on clean pairs. Batch size,
          learning rate, number of steps and the KL coefficient (.1) are ours,
          for the text has none. Scores are standardised, not logits. The sweep
          is .1, .25, .5 and 1, in units of standardised scores.
"""

from experiments import ahmadian2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = ahmadian2024.online(
      size, 'figure 5: RLOO and RAFT, k=2, by KL coefficient')
  for kl_coef in (0.1, 0.25, 0.5, 1.0):
    for algorithm in ('rloo', 'raft'):
      ahmadian2024.add(
          config, f'{algorithm}_2_kl_{base.tag(kl_coef)}', algorithm,
          samples=2, kl=dict(coef=kl_coef), labels=dict(
              method=f'{ahmadian2024.TITLES[algorithm]}, k=2',
              kl_coef=kl_coef))
  config.figure = dict(
      kind='curves', x='step', y=('proxy', 'kl_k1'), line=('method',),
      panel=('kl_coef',), columns=ahmadian2024.COLUMNS,
      baseline=dict(method='RLOO, k=2'))
  return base.finish(config, smoke=('rloo_2_kl_01', 'raft_2_kl_01'))
