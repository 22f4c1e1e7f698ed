"""A study `online` of nothing but best-of-n, which no figure shows."""

from rlhf_jax.configs import base

AGGREGATES = {
    'mean': dict(kind='mean'), 'single_1': dict(kind='single', member=1),
    'worst_case': dict(kind='worst_case')}


def get_config(size: str = 'smoke'):
  """A run for each of AGGREGATES."""
  config = base.online_config(size)
  config.title = 'Best-of-n'
  config.conditions = dict(noise_25=dict(label_noise=.25), clean=dict())
  config.online.condition = 'noise_25'
  config.online.algorithm = 'best_of_n'
  config.runs = {
      name: dict(reward=dict(components=base.proxy(aggregate=aggregate)),
                 labels=dict(method=name))
      for name, aggregate in AGGREGATES.items()}
  config.figure = dict(kind='curves', columns=('gold', 'rule'))
  return config
