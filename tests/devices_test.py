"""What one of eight devices has to do: an eighth, and to move parameters alone.

Nobody looks at the cost of a device, so it is counted here: the flops of a
compiled program, and the shapes of what its collectives move.
"""

import collections
import functools
import math
import re

from absl.testing import absltest
from absl.testing import parameterized
import chex
import contracts
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec
import numpy as np
import optax
import worlds

from rlhf_jax import algorithms
from rlhf_jax import objectives
from rlhf_jax import policy
from rlhf_jax import sampling
from rlhf_jax import sharding
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.annotators import from_models
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.rewards import models as reward_models

B, K, T, E = 64, 2, 29, 4
CONFIG = transformer.make_config(
    'gpt_neox', vocab_size=96, hidden_size=64, num_layers=2, num_heads=4,
    intermediate_size=128, remat='full')
MESHES = (dict(fsdp=8), dict(data=2, fsdp=2, tensor=2), dict(member=4, data=2))
TX = train.optimizer(learning_rate=1e-3, num_steps=10)
ROWS = {name: row for name, row in algorithms.ALGORITHMS.items()
        if row.objective is not None}


def shaped(make, *args):
  return jax.eval_shape(make, *args)


def policy_shapes():
  return {**transformer.abstract(CONFIG), 'value_head': shaped(
      lambda: heads.init_scalar(jax.random.key(0), 64, mlp=True))}


def ensemble_shapes():
  return shaped(lambda: reward_models.init_members(
      CONFIG, jax.random.split(jax.random.key(0), E)))


def rows(tree, members=0):
  """Shapes of a batch on the mesh in use, as `shard_batch` places it."""
  if sharding.mesh_in_use() is None:
    return tree
  one = sharding.shard_batch(
      np.zeros((*[members] * bool(members), B)), members=members)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=one.sharding), tree)


def batch(*names, members=()):
  shape = (*members, B, K, T)
  dtypes = {'tokens': jnp.int32, 'mask': bool}
  return types.Batch(**{name: jax.ShapeDtypeStruct(
      shape[:-1] if name == 'scores' else shape, dtypes.get(
          name, jnp.float32)) for name in names})


def updates():
  """PPO: two epochs of two minibatches of two microbatches."""
  step = train.make_train_step(
      functools.partial(policy.forward, CONFIG),
      algorithms.ALGORITHMS['ppo'].bind(), TX, num_microbatches=2)
  state = shaped(lambda p: train.init_state(p, TX, jax.random.key(0)),
                 policy_shapes())
  rollout = types.Rollout(rows(batch(
      'tokens', 'mask', 'old_logprobs', 'old_values', 'advantages',
      'returns')), {}, {})
  return train.make_updates(step, num_epochs=2, num_minibatches=2), (
      sharding.abstract(state), rollout)


def reward_step():
  step = train.make_train_step(
      functools.partial(reward_models.forward, CONFIG),
      objectives.get('bradley_terry'), TX)
  state = shaped(jax.vmap(lambda p, k: train.init_state(p, TX, k)),
                 ensemble_shapes(), shaped(
                     lambda: jax.random.split(jax.random.key(0), E)))
  return sharding.vmap_members(step, E), (
      sharding.abstract(state, members=E),
      rows(batch('tokens', 'mask', members=(E,)), members=E))


def sampler():
  def sample(params, prompts, lengths, key, row_ids):
    return sampling.sample(
        CONFIG, params, prompts, lengths, key, row_ids=row_ids, num_samples=K,
        max_new_tokens=11, eos_id=0, pad_id=1)
  prompts = jax.ShapeDtypeStruct((B, 13), jnp.int32)
  each = jax.ShapeDtypeStruct((B,), jnp.int32)
  prompts, lengths, row_ids = rows((prompts, each, each))
  return sample, (sharding.abstract(transformer.abstract(CONFIG)), prompts,
                  lengths, shaped(lambda: jax.random.key(0)), row_ids)


def annotators():
  """Reference, values and the ensemble, over a rollout."""
  def annotate(batch, reference, params, members):
    batch = from_models.ref_logprobs(batch, CONFIG, reference)
    batch = from_models.old_values(batch, CONFIG, params)
    return from_models.scores(batch, CONFIG, members, kind='mean')
  return annotate, (
      rows(batch('tokens', 'mask')),
      sharding.abstract(transformer.abstract(CONFIG)),
      sharding.abstract(policy_shapes()),
      sharding.abstract(ensemble_shapes(), members=E))


def scorer():
  def score(members, tokens, mask):
    return reward_models.score_members(CONFIG, members, tokens, mask)
  some = batch('tokens', 'mask')
  return score, (sharding.abstract(ensemble_shapes(), members=E),
                 *rows((some.tokens, some.mask)))


PROGRAMS = (updates, reward_step, sampler, annotators, scorer)


@functools.cache
def compiled(program, axes):
  """Of a program on eight devices; of one where `axes` is None."""
  with worlds.devices(8 if axes else 1, **dict(axes or {}, data=-1)):
    function, args = program()
    return jax.jit(function).lower(*args).compile()


def moved(hlo):
  """{(collective, shape of what it gives): how often}."""
  found = collections.Counter()
  for line in hlo.splitlines():
    match = re.search(
        r'= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|'
        r'collective-permute)(?:-start)?\(', line)
    for shape in re.findall(r'\w+\[([\d,]*)\]', match[1]) if match else ():
      found[match[2], tuple(map(int, filter(None, shape.split(','))))] += 1
  return found


class CostTest(parameterized.TestCase):

  @parameterized.product(program=PROGRAMS, axes=MESHES)
  def test_a_device_does_an_eighth(self, program, axes):
    one, eight = (compiled(program, of).cost_analysis()['flops'] for of in (
        None, tuple(axes.items())))
    self.assertGreater(one / eight, 7.)

  @parameterized.product(program=PROGRAMS, axes=MESHES)
  def test_no_activation_moves(self, program, axes):
    """But the sums over 'tensor' that splitting a layer is about.

    An activation has a row for each token of the T, or so many features in
    all that no parameter has them.
    """
    widths = {T, T - 1, 13, 24}  # of rows, prompts and what is sampled
    for (kind, shape), count in moved(
        compiled(program, tuple(axes.items())).as_text()).items():
      activation = len(shape) > 1 and shape[-1] in (32, 64, 128) and (
          bool(widths & set(shape[:-1]))
          or math.prod(shape[:-1]) > E * 2 * 128)
      if activation:
        self.assertIn('tensor', axes, (kind, shape))
        self.assertEqual((kind, shape[-1]), ('all-reduce', 64), (shape, count))

  @parameterized.product(program=PROGRAMS, axes=MESHES)
  def test_bytes_of_a_device(self, program, axes):
    """As `sharding.device_bytes` says, and no parameter is there twice."""
    with worlds.devices(8, **dict(axes, data=axes.get('data', -1))):
      expected = sharding.device_bytes(program()[1])
    memory = compiled(program, tuple(axes.items())).memory_analysis()
    # Of a field that no loss reads no bytes are sent.
    self.assertBetween(
        memory.argument_size_in_bytes, .95 * expected, expected)
    whole = compiled(program, None).memory_analysis().argument_size_in_bytes
    parts = axes.get('fsdp', 1) * axes.get('tensor', 1)
    if program in (reward_step, scorer):
      parts *= axes.get('member', 1)
    self.assertLess(expected, 1.3 * whole / parts)


def toy(params, batch, targets=None):
  """All that a row may read, of tables by token."""
  del targets
  table, value = params['table'], params['value'][batch.tokens]
  logits = table[batch.tokens]
  log_softmax = jax.nn.log_softmax(logits)
  logprobs = jnp.take_along_axis(
      log_softmax, batch.tokens[..., None], axis=-1)[..., 0]
  entropy = -(jnp.exp(log_softmax) * log_softmax).sum(axis=-1)
  return types.PolicyOutput(
      logprobs=logprobs, entropy=entropy, values=value, step_rewards=value,
      scores=jnp.where(batch.mask, value, 0).sum(axis=-1),
      q_values=(value, 2 * value), q_logprobs=(logprobs, 2 * logprobs),
      target_q_values=(value + 1, value + 2))


class MappedTest(absltest.TestCase):

  def test_a_step_under_pmap_and_shard_map_is_that_under_jit(self):
    """Of all rows, each on ragged data, of which a device has one prompt."""
    rng = np.random.default_rng(0)
    params = {'table': jnp.asarray(rng.normal(size=(9, 9)), jnp.float32),
              'value': jnp.asarray(rng.normal(size=9), jnp.float32)}
    tx = optax.sgd(1.)
    state = train.init_state(params, tx, jax.random.key(0))
    examples = {name: contracts.example(row.objective['name'])[1]
                for name, row in ROWS.items()}

    def steps(axis_name, state, examples):
      """Parameters after one step, and metrics, of each row."""
      out = {}
      for name, row in ROWS.items():
        after, metrics = train.make_train_step(
            toy, row.bind(), tx, axis_name=axis_name)(state, examples[name])
        out[name] = after.params, metrics
      return out

    expected = jax.device_get(jax.jit(functools.partial(steps, None))(
        state, examples))
    step = functools.partial(steps, 'rows')
    mapped = jax.pmap(step, axis_name='rows', in_axes=(None, 0))(
        state, jax.tree.map(lambda x: x[:, None], examples))
    mesh = jax.make_mesh((8,), ('rows',), axis_types=(AxisType.Auto,))
    sharded = jax.jit(jax.shard_map(
        step, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec('rows')),
        out_specs=PartitionSpec(), check_vma=False))(state, examples)
    for name, one in expected.items():
      self.assertGreater(max(float(np.abs(a - b).max()) for a, b in zip(
          jax.tree.leaves(one[0]), jax.tree.leaves(params))), 1e-4, name)
      for other in (jax.tree.map(lambda x: x[3], mapped[name]), sharded[name]):
        chex.assert_trees_all_close(
            one, jax.device_get(other), rtol=1e-6, atol=2e-6)


class GradientTest(absltest.TestCase):

  def test_gradients_of_every_row_on_every_mesh(self):
    """All in one program, of one forward pass; plain float32."""
    config = transformer.make_config(
        'llama', vocab_size=24, hidden_size=16, num_layers=2, num_heads=4,
        intermediate_size=32)
    params = jax.jit(lambda key: {
        **transformer.init(config, key),
        'value_head': heads.init_scalar(key, 16, mlp=True),
        'reward_head': heads.init_scalar(key, 16),
        'q_heads': heads.init_q(key, 16, 24)})(jax.random.key(0))
    examples = {name: contracts.example(row.objective['name'])[1]
                for name, row in ROWS.items()}

    def loss(params, batch, name):
      out = policy.forward(config, params, batch, params['q_heads'])
      out = out.replace(step_rewards=out.values)
      result = ROWS[name].bind()(out, batch)
      total = jnp.where(result.weight > 0, result.loss * result.weight, 0)
      return total.sum() / result.weight.sum()

    def gradients(params, examples):
      return {name: sharding.keep(jax.grad(loss)(params, batch, name))
              for name, batch in examples.items()}

    expected = jax.device_get(jax.jit(gradients)(params, examples))
    for axes in MESHES:
      with worlds.devices(8, **axes, **({} if 'data' in axes else {
          'data': -1})):
        self.assertEqual(sharding.row_parts(), 4 if 'tensor' in axes else 8)
        found = jax.device_get(jax.jit(gradients)(
            sharding.shard_params(params), sharding.shard_batch(examples)))
      for name, tree in expected.items():
        scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))
        self.assertGreater(scale, 1e-4, name)
        far = max(jax.tree.leaves(jax.tree.map(
            lambda a, b: float(np.abs(a - b).max()), tree, found[name])))
        self.assertLess(far / scale, 2e-6, name)


if __name__ == '__main__':
  absltest.main()
