"""What the stages that train policies share, online and on logged data."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
from typing import Any, NamedTuple

import jax

from rlhf_jax import types
from rlhf_jax.evaluation import monitor as monitor_lib
from rlhf_jax.models import heads
from rlhf_jax.models import pretrained
from rlhf_jax.models import transformer
from rlhf_jax.parallel import processes
from rlhf_jax.parallel import sharding
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import fit as fit_lib
from rlhf_jax.pipeline import reward_parts
from rlhf_jax.pipeline import rewarding
from rlhf_jax.rewards import parameters
from rlhf_jax.storage import checkpoint
from rlhf_jax.storage import files

TRUNKS = ('shared', 'separate', 'reward')  # of a value head
_HEADS = ('value_head', 'value_trunk', 'q_heads')  # no part of a policy


def value_config(world: artifacts.World, value: Mapping[str, Any]
                 ) -> transformer.Config | None:
  """The shape of a value trunk of its own; None: the policy's is shared."""
  return {'shared': lambda: None,
          'separate': lambda: world.reference.config,
          'reward': lambda: world.proxies.config}[value['trunk']]()


def add_value_head(world: artifacts.World, trainable: types.Params,
                   value: Mapping[str, Any], key: jax.Array) -> types.Params:
  """Adds a value head, and a trunk of its own if asked for.

  Args:
    world: with the reference and, for 'reward', the reward models.
    trainable: what of the policy is trained.
    value: 'mlp' and 'scale' of `heads.init_scalar`, and 'trunk': 'shared' with
      the policy, 'separate' (a copy of the reference's) or 'reward' (the
      first reward model's, head included; Stiennon et al. 2020).
    key: of the head.
  """
  if value['trunk'] == 'reward':
    proxies = world.unfrozen('proxies')
    first = reward_parts.finish(
        proxies.config, parameters.take(proxies.params, 0))
    return {**trainable, 'value_head': first['head'],
            'value_trunk': first['trunk']}
  head = sharding.born(_head, key, static=(
      world.reference.config.hidden_size, value['scale'], value['mlp']))
  trainable = trainable | head
  if value['trunk'] == 'shared':
    return trainable
  # Its own arrays: the train step donates its state.
  whole = world.unfrozen('reference')
  return {**trainable, 'value_trunk': heads.trunk(whole.params)}


def _head(hidden_size, scale, mlp, key):
  return {'value_head': heads.init_scalar(
      key, hidden_size, scale=scale, mlp=mlp)}


def save_policy(context: Any, step: int, params: types.Params):
  """Leaves what `artifacts.restore_policy` reads, and nothing else.

  Args:
    context: of the stage; `checkpoints` is written, once.
    step: that the parameters are of.
    params: what the stage has trained; value and Q functions are left out.
  """
  # A shared file system may show one process what another does not see yet.
  if processes.from_owner(
      (context.directory / 'checkpoints' / str(step)).exists):
    return
  kept = {k: v for k, v in params.items() if k not in _HEADS}
  with checkpoint.Checkpointer(context.directory / 'checkpoints') as saver:
    saver.save(step, kept)


class View(NamedTuple):
  """What an evaluation looks at in a run."""

  model: pretrained.Model  # whose `base` lies under the trained part
  last_step: int
  counts: Callable[[int], dict[str, float]]  # (step) -> further columns
  # Of policies that sample by their Q values, which are `targets`: the shift
  # of the logits in nats per unit of value.
  value_shift: float | None = None

  def params(self, state: types.TrainState) -> types.Params:
    """What samples, of a state."""
    params = types.with_base(self.model.base, state.params)
    if self.value_shift is not None:
      params['target_q_heads'] = state.targets
    return params


@contextlib.contextmanager
def watch(world: artifacts.World, measure: Mapping[str, Any],
          evaluation: Mapping[str, Any], key: jax.Array, view: View
          ) -> Iterator[fit_lib.Watch]:
  """Evaluates a policy on the way.

  `texts/<step>.json` holds the first responses of an evaluation, `first.jsonl`
  all of those before training, and `final.jsonl` all of the last ones.

  Args:
    world: of the stage.
    measure: 'components', by which policies are compared, whatever each
      maximises; 'pool' of `programmatic.Functions`; 'sampler'.
    evaluation: 'every' so many steps, on 'num_prompts', 'texts' of them kept;
      'chunk_size' prompts at a time.
    key: of the samples, the same for all policies that are compared.
    view: what it looks at.
  """
  folder = world.context.directory / 'texts'
  folder.mkdir(exist_ok=True)
  setting = monitor_lib.Setting(
      corpus=world.corpus, num_prompts=evaluation['num_prompts'],
      sampler=measure['sampler'], key=key,
      value_shift=view.value_shift, chunk_size=evaluation['chunk_size'])
  with rewarding.bind(world, measure['components'], measure['pool']) as rewards:
    monitor = monitor_lib.Monitor(
        setting, view.model.config, world.reference.params, rewards,
        gold=world.gold_scorer(), rule=world.rule_scorer())

    def evaluate(step, state):
      result = monitor(view.params(state), step=step)
      files.write_json(folder / f'{step:06d}.json',
                       monitor.texts(result, evaluation['texts']))
      for name, at in (('first', 0), ('final', view.last_step)):
        if step == at:
          files.write_jsonl(world.context.directory / f'{name}.jsonl',
                            monitor.final_rows(result))
      return {**view.counts(step), **result.row}

    yield fit_lib.Watch(evaluate, evaluation['every'])
