"""The recorded study of the wiring tests, and what its models say.

It is made once a run of the suite. Models are read from the checkpoints of
their stages and computed in float64.
"""

import functools
import pathlib
from typing import Any

import jax
import numpy as np
from wiring import front_door_config
from wiring import recording
from wiring import reference_losses as losses
from wiring import reference_models as models
from wiring import reference_rewards as rewards
from wiring import reference_updates as updates
import worlds

from rlhf_jax import streams
from rlhf_jax.data import load as load_lib
from rlhf_jax.data import order as order_lib
from rlhf_jax.storage import files
from rlhf_jax.studies import nodes as nodes_lib

SEED = front_door_config.SEED
PROXIES, LOG, VALUES = ('noisy/proxies', 'logs/pairs/logged',
                        'logs/pairs/prompt_value')
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)


@functools.cache
def study() -> pathlib.Path:
  """Of the study, 'study' and 'recorded'."""
  return worlds.once('wiring', lambda path: recording.run(
      path / 'recorded', pathlib.Path(front_door_config.__file__),
      path / 'study'))


@functools.cache
def config() -> dict[str, Any]:
  return front_door_config.get_config().to_dict()


def directory(stage: str) -> pathlib.Path:
  return study() / 'study' / f'seed_{SEED}' / stage


@functools.cache
def training(stage: str) -> recording.Training:
  """What was recorded of a stage."""
  return recording.load(study() / 'recorded', f'seed_{SEED}/{stage}')


@functools.cache
def trained(stage: str) -> Any:
  """The parameters that a stage left."""
  return recording.restore(directory(stage))


@functools.cache
def arrays(stage: str, name: str) -> dict[str, np.ndarray]:
  return files.load_arrays(directory(stage) / f'{name}.npz')


@functools.cache
def corpus():
  return load_lib.load(nodes_lib.data_config(config()), SEED)


def order(step: int, batch_size: int, count: int, *names) -> np.ndarray:
  """The examples of a step, in the order of a stream."""
  return order_lib.indices(
      streams.number(SEED, *names), step, batch_size, count)


def draws(step: int, batch_size: int, weights, *names) -> np.ndarray:
  """The examples of a step, drawn by weight from a stream."""
  return updates.draws(
      streams.number(SEED, *names), step, batch_size, weights)


@functools.cache
def run_of(name: str) -> dict[str, Any]:
  """The node of a run of the study."""
  return nodes_lib.offline_runs(config())[name]


def before(stage: str, step: int) -> dict[str, Any]:
  """The state that a step begins with."""
  run = training(stage)
  return run.steps[step - 1]['state'] if step else run.start


def child(state: dict[str, Any], name: str) -> jax.Array:
  """The key of one of the draws of a step."""
  return streams.child(jax.random.wrap_key_data(state['key']), name)


# What models say.


@functools.cache
def _policy(temperature):
  return models.precise(jax.jit(
      functools.partial(models.policy, temperature=temperature)))


def policy(params, tokens, temperature=1.):
  """`reference_models.policy`, compiled."""
  return _policy(temperature)(params, tokens)


@functools.cache
def _members():
  return models.precise(jax.jit(models.members))


def members(params, tokens, mask):
  """`reference_models.members`, compiled."""
  return _members()(params, tokens, mask)


def proxies(tokens, mask):
  """Scores f64[E, ...] of the members, standardised on held-out responses."""
  scale = arrays(PROXIES, 'scale')
  return rewards.standardize(
      members(trained(PROXIES), tokens, mask), scale['mean'], scale['std'])


def gold(tokens, mask):
  """Gold scores f64[...] in deviations of the pairs' from their mean."""
  alone = jax.tree.map(lambda x: x[None], trained('gold'))
  unit = np.float64(arrays('pairs', 'pairs')['gold_scores'])
  return (members(alone, tokens, mask)[0] - unit.mean()) / unit.std()


def _words(tokens, mask):
  decode = corpus().tokenizer.decode
  return np.array([
      float(len(decode(tokens[at][mask[at]], continuation=True).split()))
      for at in np.ndindex(mask.shape[:-1])]).reshape(mask.shape[:-1])


def _component(node, tokens, mask, squashed):
  if node['kind'] == 'length':
    words = _words(tokens, mask)
    return np.minimum(words / node['target'], 1) if squashed else words
  score = gold(tokens, mask) if node['kind'] == 'gold' else rewards.aggregate(
      proxies(tokens, mask), **node['aggregate'])
  return rewards.squash(
      score, node.get('squash', 'none') if squashed else 'none')


def total(nodes, tokens, mask, squashed=True):
  """The weighted sum of the components of a config, f64[...]."""
  return sum(node['weight'] * _component(node, tokens, mask, squashed)
             for node in nodes.values())


def gradient(loss):
  """(params, ...) -> value and gradient of a loss, compiled."""
  return models.precise(jax.jit(jax.value_and_grad(loss)))


def policy_gradient(loss, temperature=1., **arguments):
  """(params, batch) -> those of a policy's loss."""
  return gradient(lambda params, batch: losses.mean(*loss(
      models.policy(params, batch['tokens'], temperature=temperature), batch,
      **arguments)))


# Batches and updates of the reference against those that were recorded.


def assert_batch(seen: dict, expected: dict):
  """Every field; of what is of tokens, where there is a response."""
  mask = expected['mask']
  np.testing.assert_array_equal(seen['mask'], mask)
  for field, value in expected.items():
    at = mask if value.shape == mask.shape else ...
    close(seen[field][at], value[at], err_msg=field)


def state_of(start: dict[str, Any], count: int) -> updates.State:
  return updates.State(start['params'], start['mu'], start['nu'], count)


def assert_state(state: updates.State, recorded: dict[str, Any]):
  """The optimizer and every parameter are where the reference has them."""
  for name in ('mu', 'nu'):
    jax.tree.map(functools.partial(close, err_msg=name), recorded[name],
                 getattr(state, name))
  largest = max(x.max() for x in jax.tree.leaves(recorded['nu']))

  def compare(value, expected, nu):
    # Of a gradient that is nothing but rounding, such as that of the bias of
    # keys, which a softmax does not see, Adam makes a whole step.
    sure = (nu == 0) | (nu > 1e-12 * largest)
    close(value[sure], expected[sure], err_msg='params')
    return sure.mean()

  sure = jax.tree.map(compare, recorded['params'], state.params,
                      recorded['nu'])
  assert np.mean(jax.tree.leaves(sure)) > .9, sure


def assert_update(stage, step, gradient, optimizer):
  """One step of a stage, of one update.

  Args:
    stage: its name.
    step: its number, from 0.
    gradient: of its loss at the parameters it begins with.
    optimizer: of the config.
  """
  run = training(stage)
  assert_state(updates.update(
      state_of(before(stage, step), step), gradient,
      num_steps=run.num_steps, **optimizer), run.steps[step]['state'])
