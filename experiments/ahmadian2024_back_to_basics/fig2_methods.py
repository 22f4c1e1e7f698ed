r"""Ahmadian et al. 2024, figure 2: the reward of every method.

Claim: methods that treat a whole response as one action (REINFORCE, RLOO)
reach a higher reward than those that treat each token as one (PPO, Vanilla
PG).

Run:      python -m rlhf_jax.main --workdir=runs/ahmadian_fig2 \
            --config=experiments/ahmadian2024_back_to_basics/fig2_methods.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
          :laptop,seeds=10 has ten other seeds, 101 to 110
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models: reviews from a grammar, models of 1 to 2
          layers from scratch, one reward model on clean pairs. Batch size,
          learning rate, number of steps and the KL coefficient (.1) are ours,
          for the text has none. Scores are standardised, not logits. Every
          method draws as many responses in a rollout, 64, so that k = 4 has a
          quarter of the prompts. DPO, which is offline and has no reward, is
          not in the figure, as in the paper. The text does not say how the
          figure is drawn: bars, of the end of training, are ours.
"""

from experiments import ahmadian2024
from experiments import replication
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size and number of seeds: 'laptop,seeds=10'."""
  size, seeds = base.options(size, seeds=replication.NUMBERS)
  config = ahmadian2024.online(
      size, 'figure 2: reward of every online method', seeds)
  config.title += f', {ahmadian2024.RESPONSES[size]} responses a rollout'
  ahmadian2024.add_all(config)
  config.figure = dict(
      kind='final', x='method', y=('proxy',), line=(),
      columns=ahmadian2024.COLUMNS, baseline=dict(method='Vanilla PG'))
  return base.finish(config, smoke=('vanilla_pg', 'rloo_2'))
