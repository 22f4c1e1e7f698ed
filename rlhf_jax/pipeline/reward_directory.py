"""Directories of trained reward models: of a stage, an export, transformers.

What `save` writes is for transformers and for `load` alike:

  ensemble.json      names of the members' directories, in order
  member_0/, ...     a Hugging Face directory each
    reward.json      what transformers has no place for: the bias of the head,
                     mean and deviation of the member on held-out responses,
                     how its prompts were written
  README.md          the model card, with the lines that aggregate them

One model alone is such a member's directory with a README.md.
"""

import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from rlhf_jax import errors
from rlhf_jax.data import coders
from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.models import convert
from rlhf_jax.parallel import sharding
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import cards
from rlhf_jax.pipeline import reward_parts
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.rewards import parameters
from rlhf_jax.storage import files

_ENSEMBLE, _REWARD, _CARD = 'ensemble.json', 'reward.json', 'README.md'


class Loaded(NamedTuple):
  """Reward models, the tokens that they read, and where they come from."""

  models: reward_models.RewardModels
  coder: tokenizer_lib.Tokenizer
  node: dict[str, Any]  # of `pretrained`, for their shape
  texts: dict[str, Any] | None  # of `artifacts.texts_of`, where it is known


def members(path: str | os.PathLike) -> list[pathlib.Path]:
  """The directories of single models, one if there is no ensemble.

  Raises:
    CheckpointError: there is no such directory, or the list is malformed.
  """
  path = pathlib.Path(path)
  if not path.is_dir():
    raise errors.CheckpointError(
        f'{path}: no such directory; give a stage of reward models, such as '
        'runs/rewards/seed_0/rewards/proxies, an export of one, or a directory '
        'of transformers')
  if not (path / _ENSEMBLE).exists():
    if not (path / 'config.json').exists():
      raise errors.CheckpointError(
          f'{path} holds no reward models: neither model.json, as a stage has '
          f'it, nor {_ENSEMBLE} of an export, nor config.json of transformers')
    return [path]
  names = files.read_object(path / _ENSEMBLE).get('members')
  if not isinstance(names, list) or not names or not all(
      isinstance(name, str) and name == os.path.basename(name)
      for name in names):
    raise errors.CheckpointError(
        f'{path / _ENSEMBLE}: members must be names of directories beside it')
  return [path / name for name in names]


def shape(path: str | os.PathLike) -> tuple[dict[str, Any], int]:
  """The model node of a directory, and its members.

  Reads no weights.
  """
  path = pathlib.Path(path).absolute()
  if (path / 'model.json').exists():
    model = artifacts.read_model(path, 'reward')
    return model['model'], model['num_members'] or 1
  parts = members(path)
  return {'path': str(parts[0])}, len(parts)


def tokenizer(path: str | os.PathLike) -> dict[str, Any]:
  """Names the tokens that they read, as a corpus node does.

  Reads no weights.
  """
  path = pathlib.Path(path).absolute()
  if not (path / 'model.json').exists():
    return {'tokenizer': str(members(path)[0])}
  names = artifacts.read_model(path, 'reward')['tokenizer']
  return {'tokenizer': str(path / 'tokenizer.json'), **{
      name: names[name] for name in ('pad', 'bos', 'eos', 'control')}}


def load(path: str | os.PathLike) -> Loaded:
  """Reads reward models, leaves [E, ...] over the mesh in use.

  Args:
    path: a complete stage of reward models, what `save` wrote, or a directory
      of transformers with one label.

  Raises:
    CheckpointError: it is damaged, or holds no reward model.
    ConfigError: its shape is one that the decoder does not have.
  """
  path = pathlib.Path(path).absolute()
  if (path / 'model.json').exists():
    model = artifacts.read_model(path, 'reward')
    return Loaded(artifacts.restore_rewards(path),
                  artifacts.read_tokenizer(path), model['model'],
                  model.get('texts'))
  parts = members(path)
  loaded = [convert.load_reward(part, dtype='float32') for part in parts]
  config = loaded[0][0]
  records = [files.read_object(part / _REWARD)
             if (part / _REWARD).exists() else {} for part in parts]
  for part, (other, params), one in zip(parts, loaded, records):
    if other.replace(extra=config.extra) != config:
      raise errors.CheckpointError(
          f'{part} has another shape than {parts[0]}; members are alike')
    params['head']['bias'] = params['head']['bias'] + np.float32(
        one.get('bias', 0))
  params = jax.tree.map(lambda *x: np.stack(x), *(p for _, p in loaded))
  scale = None
  if all('std' in one for one in records):
    scale = {name: np.float32([one[name] for one in records])
             for name in ('mean', 'std')}
  return Loaded(
      reward_models.RewardModels(
          config, sharding.shard_params(params, members=len(parts)), scale),
      coders.load_tokenizer(str(parts[0])), {'path': str(parts[0])},
      records[0].get('texts'))


def save(directory: pathlib.Path, models: reward_models.RewardModels,
         coder: tokenizer_lib.Tokenizer, texts: dict[str, Any] | None,
         extra: dict[str, Any]):
  """Writes reward models, one alone or a directory for each.

  Args:
    directory: made if it is missing; must not hold a model.
    models: leaves [E, ...].
    coder: their tokenizer.
    texts: of `artifacts.texts_of`.
    extra: fields of config.json, see `convert.save`.

  Raises:
    CheckpointError: a model is there already, or the disk refuses.
    ConfigError: no model of transformers has this shape.
  """
  count = models.num_members
  if (directory / _ENSEMBLE).exists():
    raise errors.CheckpointError(
        f'{directory} holds an ensemble already; choose another directory')
  names = [f'member_{i}' for i in range(count)] if count > 1 else ['']
  for member, name in enumerate(names):
    _save_member(directory / name, models, member, texts, extra)
    coder.save_directory(directory / name)
  files.write_text(directory / _CARD, cards.reward(
      count, models.scale is not None, texts))
  if count > 1:  # last: with it the directory is whole
    files.write_json(directory / _ENSEMBLE, {'members': names})


def _save_member(directory: pathlib.Path, models: reward_models.RewardModels,
                 member: int, texts: dict[str, Any] | None,
                 extra: dict[str, Any]):
  params = reward_parts.finish(
      models.config, parameters.take(models.params, member))
  bias = float(params['head']['bias'])
  params['head']['bias'] = 0 * params['head']['bias']
  convert.save_reward(directory, models.config, params, extra=extra)
  scale = {} if models.scale is None else {
      name: float(x[member]) for name, x in models.scale.items()}
  files.write_json(directory / _REWARD, {
      'bias': bias, **scale, 'texts': texts})
