"""Reward models that were trained elsewhere, as an ensemble of this study."""

from collections.abc import Mapping
from typing import Any

from rlhf_jax import errors
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import reward_directory
from rlhf_jax.rewards import parameters
from rlhf_jax.storage import checkpoint
from rlhf_jax.storage import files

NEEDS, READS = ('reference',), ()


def run(context, *, upstream: Mapping[str, Any], rewards: str) -> dict:
  """Copies them; the stage then looks like one of `stages.proxies`.

  Args:
    context: of the stage.
    upstream: stages by role, see `artifacts`.
    rewards: a directory of `reward_directory`.

  Raises:
    ConfigError: they read other tokens than the policy.
    CheckpointError: the directory is damaged, or holds no reward model.
  """
  coder = artifacts.read_tokenizer(context.directory_of(upstream['reference']))
  loaded = reward_directory.load(rewards)
  token = coder.differs_from(loaded.coder)
  if token is not None:
    raise errors.ConfigError(
        f'{rewards} has another id for the token {token!r} than the policy; '
        'train both with one tokenizer, see config.data.files.tokenizer')
  models = loaded.models
  artifacts.write_model(context, 'reward', loaded.node, coder,
                        num_members=models.num_members, texts=loaded.texts)
  with checkpoint.Checkpointer(context.directory / 'checkpoints') as saver:
    saver.save(0, parameters.split(models.params)[1])
  if models.scale is not None:
    files.save_arrays(context.directory / 'scale.npz', **models.scale)
  return {'members': models.num_members,
          'standardized': models.scale is not None}
