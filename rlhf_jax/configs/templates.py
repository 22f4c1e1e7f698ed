"""What a config of each kind of study begins with; `base` has the parts."""

from ml_collections import config_dict

from rlhf_jax.configs import base


def best_of_n(size: str, name: str = 'reviews') -> config_dict.ConfigDict:
  """A study `best_of_n` of one kind of reward models, without methods.

  Args:
    size: of the config.
    name: of the small world, see `base.world`.
  """
  config = base.get_config(size)
  base.world(config, name)
  config.study = 'best_of_n'
  config.label_noise, config.force_eos = (0.0,), (False,)
  config.best_of_n = base.samples(size) | dict(standardize=True, methods={})
  return config


def iterated(size: str) -> config_dict.ConfigDict:
  """A study `iterated` without a figure: a few rounds, two ways to collect."""
  config = base.online_config(size)
  config.study = 'iterated'
  for name in ('best_of_n', 'conditions', 'judge', 'runs'):
    del config[name]
  del config.online['condition']  # there is one ensemble a round
  config.label_noise = 0.25
  config.rounds = 2 if size == 'smoke' else 4
  config.collect = ('current', 'initial')
  return config


def reward_models(size: str) -> config_dict.ConfigDict:
  """A study `reward_models` without conditions and figure."""
  config = base.get_config(size)
  base.world(config)
  config.study = 'reward_models'
  config.force_eos = False
  config.conditions = dict()
  return config


def get(study: str) -> dict | None:
  """A config of a study with all of its fields; None for another study."""
  makers = {'online': base.online_config, 'offline': base.offline_config,
            'best_of_n': best_of_n, 'iterated': iterated,
            'reward_models': reward_models}
  if study not in makers:
    return None
  config = makers[study]('smoke').to_dict() | {'title': ''}
  return config if study == 'best_of_n' else config | {'figure': {}}
