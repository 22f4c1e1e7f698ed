"""Defaults that experiments share; a config file fills in the rest."""

from ml_collections import config_dict

SIZES = ('smoke', 'laptop', 'full')


def get_config(size: str) -> config_dict.ConfigDict:
  """An unlocked tree with the fields every study has."""
  if size not in SIZES:
    raise ValueError(f'size {size!r} does not exist; there are '
                     f'{", ".join(SIZES)}')
  config = config_dict.ConfigDict()
  config.size = size
  config.seeds = (0,)
  config.training = dict(save_every=200, log_every=20)
  config.sampler = dict(temperature=1.0, top_k=0, top_p=1.0)
  return config


def model(**shape) -> dict:
  """A decoder to make from scratch, unless `path` or `name` loads one."""
  return dict(path=config_dict.placeholder(str),
              name=config_dict.placeholder(str), dtype='float32',
              remat='none', attention=config_dict.placeholder(str)) | shape


def tuning() -> dict:
  """What of a policy is trained, and how: all of it, unless told otherwise.

  Low-rank adapters (`lora.rank` > 0) or the last layers, of a policy that is
  loaded; with `quantize`, adapters on frozen weights of 4 bits.
  """
  return dict(dropout=0.0,
              lora=dict(rank=0, alpha=16.0, targets='layers/(q|v)$',
                        dropout=0.0),
              quantize=False, trainable_layers=config_dict.placeholder(int))


def optimizer(learning_rate: float, **kwargs) -> dict:
  """Arguments of `rlhf_jax.train.optimizer`, all of them visible to flags."""
  return dict(learning_rate=learning_rate, warmup_steps=20, schedule='cosine',
              clip_norm=1.0, weight_decay=0.0, b1=0.9, b2=0.999) | kwargs
