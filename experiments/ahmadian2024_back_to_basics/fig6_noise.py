r"""Ahmadian et al. 2024, figure 6: RLOO and RAFT under reward noise.

Claim: noise in the reward of each response lowers the reward of RAFT by far
more than that of RLOO.

Run:      python -m rlhf_jax.main --workdir=runs/ahmadian_fig6 \
            --config=experiments/ahmadian2024_back_to_basics/fig6_noise.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
          :laptop,seeds=10 has ten other seeds, 101 to 110
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models: reviews from a grammar, models of 1 to 2
          layers from scratch, one reward model on clean pairs. Batch size,
          learning rate, number of steps and the KL coefficient (.1) are ours,
          for the text has none. Scores are standardised, not logits. So the
          noise, of standard deviation 1, 3 and 5, is in units of the scores'
          own standard deviation, where the paper's is in logits. Curves are of
          the reward without noise, on the evaluation prompts.
"""

from experiments import ahmadian2024
from experiments import replication
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size and number of seeds: 'laptop,seeds=10'."""
  size, seeds = base.options(size, seeds=replication.NUMBERS)
  config = ahmadian2024.online(
      size, 'figure 6: RLOO and RAFT, k=2, by reward noise', seeds)
  for sigma in (0.0, 1.0, 3.0, 5.0):
    for algorithm in ('rloo', 'raft'):
      ahmadian2024.add(
          config, f'{algorithm}_2_sigma_{base.tag(sigma)}', algorithm,
          samples=2, reward=dict(noise=sigma), labels=dict(
              method=f'{ahmadian2024.TITLES[algorithm]}, k=2', sigma=sigma))
  config.figure = dict(
      kind='curves', x='step', y=('proxy',), line=('sigma',),
      panel=('method',), columns=ahmadian2024.COLUMNS,
      baseline=dict(sigma=0.0))
  return base.finish(config, smoke=('rloo_2_sigma_0', 'rloo_2_sigma_1'))
