r"""Ahmadian et al. 2024, figure 1: GAE's lambda, clipping and the ratio.

Claim: the larger lambda, the higher the reward of PPO, so that Vanilla PG
(lambda = 1) is best; without clipping and without the ratio the reward is no
lower, and fewer than 5 % of a batch are clipped.

Run:      python -m rlhf_jax.main --workdir=runs/ahmadian_fig1 \
            --config=experiments/ahmadian2024_back_to_basics/fig1_gae_and_clipping.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models: reviews from a grammar, models of 1 to 2
          layers from scratch, one reward model on clean pairs. Batch size,
          learning rate, number of steps and the KL coefficient (.1) are ours,
          for the text has none. Scores are standardised, not logits. Without
          the ratio PPO keeps its 4 epochs and its whitening, so that only the
          ratio differs; Vanilla PG with one update a rollout is in
          fig2_methods.py. As in the paper, value clipping goes with clipping.
          The reward is that of training, smoothed.
"""

from experiments import ahmadian2024
from rlhf_jax.configs import base

UNCLIPPED = dict(clip_ratio=None, value_clip=None)


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = ahmadian2024.online(
      size, "figure 1: GAE's lambda, clipping and the ratio")
  for gae_lambda in (0.0, 0.5, 0.95, 1.0):
    _add(config, 'GAE', f'lambda {gae_lambda:g}', gae_lambda=gae_lambda)
  _add(config, 'clipping', 'clip')  # lambda 1 once more, trained once
  _add(config, 'clipping', 'no clip', ppo=UNCLIPPED)
  _add(config, 'clipping', 'no ratio', ppo=dict(UNCLIPPED, ratio='none'))
  config.figure = dict(
      kind='curves', source='training', x='step',
      y=('rollout/score', 'policy/clip_fraction'), line=('setting',),
      panel=('part',), columns=ahmadian2024.COLUMNS,
      baseline=dict(setting='lambda 1'), paired_by=())
  return base.finish(config, smoke=('lambda_1', 'clip'))


def _add(config, part, setting, *, gae_lambda=1.0, ppo=None):
  arguments = dict(gae=dict(gae_lambda=gae_lambda))
  if ppo is not None:
    arguments['ppo'] = ppo
  ahmadian2024.add(
      config, setting.replace(' ', '_').replace('.', ''), 'ppo',
      labels=dict(part=part, setting=setting), arguments=arguments)
