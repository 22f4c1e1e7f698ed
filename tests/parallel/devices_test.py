"""What one of eight devices has to do: an eighth, and to move parameters alone.

Nobody looks at the cost of a device, so it is counted here: the flops of a
compiled program, and the shapes of what its collectives move.
"""

import functools
import math
from unittest import mock

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
import programs as cases
import worlds

from rlhf_jax import algorithms
from rlhf_jax import objectives
from rlhf_jax import policy
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.ops import packing
from rlhf_jax.parallel import meshes
from rlhf_jax.parallel import sharding
from rlhf_jax.studies import programs

PROGRAMS = cases.Programs(transformer.make_config(
    'gpt_neox', vocab_size=96, hidden_size=64, num_layers=2, num_heads=4,
    intermediate_size=128, remat='full'))
MESHES = (dict(fsdp=8), dict(data=2, fsdp=2, tensor=2), dict(member=4, data=2))
ROWS = {name: row for name, row in algorithms.ALGORITHMS.items()
        if row.objective is not None}


@functools.cache
def compiled(program, axes):
  """Of a program on eight devices; of one where `axes` is None."""
  with (worlds.devices(8 if axes else 1, **dict(axes or {}, data=-1)),
        # The same program on one device, whose loop is counted once.
        mock.patch.object(meshes, 'on_one_cpu', lambda: False)):
    program = getattr(PROGRAMS, program)()
    return jax.jit(program.function).lower(*program.arguments).compile()


class CostTest(parameterized.TestCase):

  @parameterized.product(program=cases.NAMES, axes=MESHES)
  def test_a_device_does_an_eighth(self, program, axes):
    one, eight = (compiled(program, of).cost_analysis()['flops'] for of in (
        None, tuple(axes.items())))
    self.assertGreater(one / eight, 7.)

  @parameterized.product(program=cases.NAMES, axes=MESHES)
  def test_no_activation_moves(self, program, axes):
    """But the sums over 'tensor' that splitting a layer is about.

    An activation has a row for each token of the T, or so many features in
    all that no parameter has them.
    """
    # Of rows, prompts and what is sampled.
    widths = {PROGRAMS.width, PROGRAMS.width - 1, 13, 24}
    for (kind, shape), count in programs.collectives(
        compiled(program, tuple(axes.items())).as_text()).items():
      activation = len(shape) > 1 and shape[-1] in (32, 64, 128) and (
          bool(widths & set(shape[:-1]))
          or math.prod(shape[:-1]) > PROGRAMS.members * 2 * 128)
      if activation:
        self.assertIn('tensor', axes, (kind, shape))
        self.assertEqual((kind, shape[-1]), ('all-reduce', 64), (shape, count))

  @parameterized.product(program=cases.NAMES, axes=MESHES)
  def test_bytes_of_a_device(self, program, axes):
    """As `sharding.device_bytes` says, and no parameter is there twice."""
    with worlds.devices(8, **dict(axes, data=axes.get('data', -1))):
      expected = sharding.device_bytes(getattr(PROGRAMS, program)().arguments)
    memory = compiled(program, tuple(axes.items())).memory_analysis()
    # Of a field that no loss reads no bytes are sent.
    self.assertBetween(
        memory.argument_size_in_bytes, .95 * expected, expected)
    whole = compiled(program, None).memory_analysis().argument_size_in_bytes
    parts = axes.get('fsdp', 1) * axes.get('tensor', 1)
    if program in ('reward_step', 'scorer'):
      parts *= axes.get('member', 1)
    self.assertLess(expected, 1.3 * whole / parts)


class PackedTest(absltest.TestCase):

  def test_what_is_packed_stays_on_its_device(self):
    """Every collective is one of the step on the rows as they were."""
    config, tx = PROGRAMS.config, cases.TX
    step = train.make_train_step(
        functools.partial(policy.forward, config), objectives.get('sft'), tx)
    column, lengths = np.arange(29), np.tile(np.arange(4, 29, 3)[:8], 8)
    plain = types.Batch(
        tokens=np.ones((64, 1, 29), np.int32),
        mask=((column >= 2) & (column < lengths[:, None]))[:, None])
    with worlds.devices(8, data=1, fsdp=8):
      layout = packing.Layout(meshes.row_parts())
      packed = packing.pack(plain, packing.size_of(plain, layout), layout)
      state = jax.eval_shape(lambda: train.init_state(
          transformer.init(config, jax.random.key(0)), tx, jax.random.key(1)))
      before, after = (programs.collectives(jax.jit(step).lower(
          sharding.abstract(state), sharding.shard_batch(batch)
          ).compile().as_text()) for batch in (plain, packed))
    self.assertLess(packed.packed.tokens.shape[1], 64 // 8)
    self.assertNotEmpty(before)
    self.assertContainsSubset(after, before)


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
    """All in one program; plain float32."""
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

    same = {}  # names by the K of their examples, which share their tokens
    for name, batch in examples.items():
      same.setdefault(batch.tokens.shape[1], []).append(name)
      first = examples[same[batch.tokens.shape[1]][0]]
      np.testing.assert_array_equal(batch.tokens, first.tokens)
      np.testing.assert_array_equal(batch.mask, first.mask)

    def forward(params, batch):
      out = policy.forward(config, params, batch, params['q_heads'])
      return out.replace(step_rewards=out.values)

    def loss(out, batch, name):
      result = ROWS[name].bind()(out, batch)
      total = jnp.where(result.weight > 0, result.loss * result.weight, 0)
      return total.sum() / result.weight.sum()

    def pulled(params, examples, names):
      """Of the names of one K: one forward pass, one batched backward pass."""
      out, pull = jax.vjp(
          lambda params: forward(params, examples[names[0]]), params)
      each = [jax.grad(loss)(out, examples[name], name) for name in names]
      together = jax.vmap(lambda out: sharding.keep(pull(out)[0]))(
          jax.tree.map(lambda *x: jnp.stack(x), *each))
      return {name: jax.tree.map(lambda x, i=i: x[i], together)
              for i, name in enumerate(names)}

    def gradients(params, examples):
      return {name: tree for names in same.values()
              for name, tree in pulled(params, examples, names).items()}

    expected = jax.device_get(jax.jit(gradients)(params, examples))
    for axes in MESHES:
      with worlds.devices(8, **axes, **({} if 'data' in axes else {
          'data': -1})):
        self.assertEqual(meshes.row_parts(), 4 if 'tensor' in axes else 8)
        actual = jax.device_get(jax.jit(gradients)(
            sharding.shard_params(params), sharding.shard_batch(examples)))
      for name, tree in expected.items():
        scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))
        self.assertGreater(scale, 1e-4, name)
        far = max(jax.tree.leaves(jax.tree.map(
            lambda a, b: float(np.abs(a - b).max()), tree, actual[name])))
        self.assertLess(far / scale, 2e-6, name)


if __name__ == '__main__':
  absltest.main()
