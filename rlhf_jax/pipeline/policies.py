"""What the stages that train policies share, online and on logged data."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.evaluation import monitor
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.storage import files

TRUNKS = ('shared', 'separate', 'reward')  # of a value head


def add_value_head(
    trainable: types.Params, value: dict[str, Any], config: transformer.Config,
    key: jax.Array, *, reference: types.Params,
    reward: types.Params | None = None,
    reward_config: transformer.Config | None = None,
) -> tuple[types.Params, transformer.Config | None]:
  """Adds a value head, and a trunk of its own if asked for.

  Args:
    trainable: what of the policy is trained.
    value: 'mlp' and 'scale' of `heads.init_scalar`, and 'trunk': 'shared' with
      the policy, 'separate' (a copy of the reference's) or 'reward' (the
      first reward model's, head included; Stiennon et al. 2020).
    config: shape of the policy.
    key: of the head.
    reference: the initial policy.
    reward: reward models, leaves [E, ...], of 'reward' alone.
    reward_config: their shape.

  Returns:
    The parameters and the shape of 'value_trunk', None without one.
  """
  if value['trunk'] == 'reward':
    first = jax.tree.map(lambda x: x[0], reward)
    return {**trainable, 'value_head': first['head'],
            'value_trunk': first['trunk']}, reward_config
  head = heads.init_scalar(
      key, config.hidden_size, scale=value['scale'], mlp=value['mlp'])
  trainable = {**trainable, 'value_head': head}
  if value['trunk'] == 'shared':
    return trainable, None
  # A copy: the train step donates its state, and must not the reference.
  return {**trainable, 'value_trunk': jax.tree.map(
      jnp.copy, heads.trunk(reference))}, config


def evaluator(
    context: Any, watch: monitor.Monitor, *, texts: int, num_steps: int,
    params: Callable[[types.TrainState], types.Params],
    counts: Callable[[int], dict[str, float]],
) -> Callable[[int, types.TrainState], dict[str, float]]:
  """(step, state) -> row of `evaluation.jsonl`, for `common.fit`.

  Args:
    context: of the stage. `texts/<step>.json` holds the first responses of an
      evaluation, and `final.jsonl` those of the last one, all of them.
    watch: what evaluates.
    texts: responses that are kept of an evaluation.
    num_steps: the last step.
    params: what of a state is evaluated.
    counts: (step) -> further columns of the row.
  """
  folder = context.directory / 'texts'
  folder.mkdir(exist_ok=True)

  def evaluate(step, state):
    found = watch(params(state), step=step)
    files.write_json(folder / f'{step:06d}.json', watch.texts(found, texts))
    if step == num_steps:
      files.write_jsonl(
          context.directory / 'final.jsonl', watch.final_rows(found))
    return {**counts(step), **found.row}

  return evaluate
