"""Tests for rlhf_jax.models.lora."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import objectives
from rlhf_jax import policy
from rlhf_jax import sampling
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.models import lora
from rlhf_jax.models import quantize
from rlhf_jax.models import transformer

B, K, T, V = 4, 1, 7, 13
SHAPES = {
    'llama': dict(num_kv_heads=2),
    'gpt2': dict(max_positions=16),
    'gpt_neo': dict(max_positions=16, windows=(0, 3, 3)),
}


@functools.cache
def _model(family):
  """Not fresh parameters, where biases are 0 and scales 1."""
  config = transformer.make_config(
      family, vocab_size=V, hidden_size=16, num_layers=3, num_heads=4,
      intermediate_size=24, **SHAPES[family])
  params = jax.jit(transformer.init, static_argnums=0)(
      config, jax.random.key(0))
  rng = np.random.default_rng(1)
  return config, jax.tree.map(
      lambda x: x + np.float32(.2) * rng.normal(size=x.shape).astype('f'),
      params)


@functools.cache
def _fresh(family, dropout=0.0):
  """(config, adapter) that does nothing yet."""
  config, params = _model(family)
  return lora.init(config, params, jax.random.key(1), rank=3, alpha=4.5,
                   dropout=dropout)


def _trained(adapter, seed=2):
  """As if after training: neither factor is 0."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
      lambda x: x + np.float32(.2) * rng.normal(size=x.shape).astype('f'),
      adapter)


def _batch(seed=0):
  rng = np.random.default_rng(seed)
  return types.Batch(
      tokens=jnp.asarray(rng.integers(0, V, (B, K, T), np.int32)),
      mask=jnp.asarray(np.broadcast_to(np.arange(T) >= 2, (B, K, T))))


def _rows():
  return _batch().tokens[:, 0]


_logits = jax.jit(transformer.logits, static_argnums=0)
_hidden = jax.jit(transformer.hidden_states, static_argnums=0)
_forward = jax.jit(policy.forward, static_argnums=0)
_merge = jax.jit(lora.merge, static_argnums=0)
_unmerge = jax.jit(lora.unmerge, static_argnums=0)


@functools.cache
def _step(config, learning_rate=.1, **kwargs):
  return jax.jit(train.make_train_step(
      functools.partial(policy.forward, config), objectives.get('sft'),
      optax.sgd(learning_rate), **kwargs))


def _state(params, seed=0):
  return train.init_state(params, optax.sgd(.1), jax.random.key(seed))


class InitTest(parameterized.TestCase):

  def test_shapes_and_scale(self):
    config, adapter = _fresh('llama')
    self.assertEqual(config.adapter_scale, 1.5)
    self.assertEqual(config.adapter_dropout, 0)
    self.assertEqual(dataclasses.replace(config, adapter_scale=1.),
                     _model('llama')[0])
    self.assertCountEqual(adapter['layers'],
                          ['q', 'k', 'v', 'o', 'gate', 'up', 'down'])
    chex.assert_shape(adapter['layers']['k']['a'], (3, 16, 3))
    chex.assert_shape(adapter['layers']['k']['b'], (3, 3, 8))  # grouped
    chex.assert_shape(adapter['layers']['down']['a'], (3, 24, 3))
    chex.assert_type(jax.tree.leaves(adapter), jnp.float32)
    for factors in adapter['layers'].values():
      np.testing.assert_array_equal(factors['b'], 0)
      bound = factors['a'].shape[1] ** -.5
      self.assertLessEqual(np.abs(factors['a']).max(), bound)
      self.assertGreater(factors['a'].max(), .8 * bound)
      self.assertLess(factors['a'].min(), -.8 * bound)

  def test_keys_names_and_layers_differ(self):
    config, params = _model('llama')
    make = lambda seed: lora.init(
        config, params, jax.random.key(seed), rank=2, alpha=1)[1]['layers']
    one, same, other = make(0), make(0), make(1)
    chex.assert_trees_all_equal(one, same)
    a = one['q']['a']
    for different in (other['q']['a'], one['v']['a'], a[::-1]):
      self.assertGreater(np.abs(a - different).max(), .1)

  def test_targets(self):
    config, params = _model('gpt2')
    make = functools.partial(
        lora.init, config, params, jax.random.key(0), rank=2, alpha=1)
    self.assertCountEqual(make(targets='layers/(q|v)')[1]['layers'], 'qv')
    self.assertCountEqual(  # GPT-2 has no gate
        make()[1]['layers'], ['q', 'k', 'v', 'o', 'up', 'down'])
    listed = ('there are layers/down, layers/k, layers/o, layers/q, layers/up,'
              ' layers/v')
    for targets, actual in (
        ('layers/x', 'nothing'), ('q', 'nothing'), ('layers/', 'nothing'),
        ('embed', 'embed, which is no linear map'),
        ('layers/.*', 'layers/attention_norm, which is no linear map')):
      with self.assertRaisesRegex(
          ValueError, f"targets '{targets}'.* {actual}; {listed}".replace(
              '.*', r'\.\*', 1) if targets == 'layers/.*' else
          f"targets '{targets}' matches {actual}; {listed}"):
        make(targets=targets)

  @parameterized.parameters(
      dict(rank=0, alpha=1), dict(rank=1, alpha=0),
      dict(rank=1, alpha=np.inf), dict(rank=1, alpha=1, dropout=1.))
  def test_rejects(self, **kwargs):
    with self.assertRaisesRegex(ValueError, 'rank must|adapter_dropout must'):
      lora.init(*_model('llama'), jax.random.key(0), **kwargs)


class ForwardTest(parameterized.TestCase):

  @parameterized.parameters('llama', 'gpt2')
  def test_fresh_adapter_changes_nothing(self, family):
    config, params = _model(family)
    with_config, adapter = _fresh(family)
    np.testing.assert_array_equal(
        _logits(with_config, params | {'adapter': adapter}, _rows()),
        _logits(config, params, _rows()))

  @parameterized.parameters('llama', 'gpt2')
  def test_merged_equals_unmerged(self, family):
    config, adapter = _fresh(family)
    params, adapter = _model(family)[1], _trained(adapter)
    on = _logits(config, params | {'adapter': adapter}, _rows())
    merged = _merge(config, params, adapter)
    chex.assert_trees_all_equal_shapes_and_dtypes(merged, params)
    np.testing.assert_allclose(
        _logits(config, merged, _rows()), on, atol=1e-5)
    off = _logits(config, params, _rows())
    self.assertGreater(np.abs(on - off).max(-1).min(), 1e-2)
    # Where an adapter has been left in, it counts once.
    both = _merge(config, params | {'adapter': adapter}, adapter)
    chex.assert_trees_all_equal(both, merged)
    chex.assert_trees_all_equal(
        lora.off(params | {'adapter': adapter}), params)

  def test_every_layer_and_map_has_its_own(self):
    """Against the definition, w + alpha / rank * a @ b, in float64."""
    config, adapter = _fresh('llama')
    params, adapter = _model('llama')[1], _trained(adapter)
    merged = _merge(config, params, adapter)
    for name, factors in adapter['layers'].items():
      for i in range(3):
        a, b = (np.asarray(factors[k][i], np.float64) for k in 'ab')
        np.testing.assert_allclose(
            merged['layers'][name]['kernel'][i],
            params['layers'][name]['kernel'][i] + 4.5 / 3 * a @ b, atol=1e-6)

  @parameterized.parameters((jnp.float32, 2.**-24), (jnp.bfloat16, 2.**-8))
  def test_merge_rounds_once_and_unmerge_within_its_bound(self, dtype, unit):
    config, adapter = _fresh('gpt2')
    adapter = _trained(adapter)
    params = jax.tree.map(lambda x: x.astype(dtype), _model('gpt2')[1])
    merged = _merge(config, params, adapter)
    back = _unmerge(config, merged, adapter)
    chex.assert_trees_all_equal_shapes_and_dtypes(params, merged, back)
    worst = 0.
    for name, factors in adapter['layers'].items():
      w, m, u = (np.asarray(tree['layers'][name]['kernel'], np.float64)
                 for tree in (params, merged, back))
      a, b = (np.asarray(factors[k], np.float64) for k in 'ab')
      d = config.adapter_scale * a @ b
      # Of the sum in float32, a few of its roundings besides.
      np.testing.assert_array_less(
          np.abs(m - (w + d)), unit * np.abs(w + d) + 1e-6)
      bound = 2 * unit * (np.abs(w) + np.abs(d))
      np.testing.assert_array_less(np.abs(u - w), bound + 1e-9)
      worst = max(worst, (np.abs(u - w) / bound).max())
    self.assertGreater(worst, .2)  # it is not exact, and the bound is no idle

  def test_sampler_equals_the_training_forward(self):
    config, adapter = _fresh('llama', dropout=.5)  # no key, so no dropout
    params = _model('llama')[1] | {'adapter': _trained(adapter)}
    prompts = np.array(_rows()[:, :3])
    batch = sampling.sample(
        config, params, prompts, np.array([3, 1, 2, 3]), jax.random.key(5),
        num_samples=2, max_new_tokens=4, eos_id=2, pad_id=0)
    out = _forward(config, params, batch)
    np.testing.assert_allclose(
        np.where(batch.mask, out.logprobs, 0), batch.old_logprobs, atol=1e-5)
    plain = _forward(config, lora.off(params), batch)
    self.assertGreater(
        np.abs(plain.logprobs - out.logprobs)[batch.mask].max(), .1)

  def test_dropout(self):
    config, adapter = _fresh('llama', dropout=.5)
    params = _model('llama')[1] | {'adapter': _trained(adapter)}
    run = lambda key: _hidden(config, params, _rows(), dropout_key=key)
    without = _hidden(_fresh('llama')[0], params, _rows())
    np.testing.assert_array_equal(run(None), without)
    one, two = run(jax.random.key(0)), run(jax.random.key(1))
    np.testing.assert_array_equal(one, run(jax.random.key(0)))
    for other in (two, without):
      self.assertGreater(np.abs(one - other).max(), .1)
    # Nothing but the adapter is dropped.
    fresh = _model('llama')[1] | {'adapter': adapter}
    np.testing.assert_array_equal(
        _hidden(config, fresh, _rows(), dropout_key=jax.random.key(0)),
        _hidden(config, fresh, _rows()))


class TrainingTest(parameterized.TestCase):

  @parameterized.parameters('llama', 'gpt2')
  def test_only_the_adapter_is_trained(self, family):
    base = _model(family)[1]
    config, adapter = _fresh(family)
    before = jax.tree.map(np.array, base)
    reference = _forward(config, base, _batch()).logprobs
    state, losses = _state({'adapter': adapter}), []
    for i in range(3):
      new, metrics = _step(config)(state, _batch(), base)
      chex.assert_trees_all_equal_shapes(new, state)
      moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), new.params,
                           state.params)['adapter']['layers']
      for name, factors in moved.items():
        self.assertGreater(factors['b'], 0, name)
        # As long as b is 0, a has no gradient.
        (self.assertGreater if i else self.assertEqual)(factors['a'], 0, name)
      state = new
      losses.append(float(metrics['train/loss']))
    self.assertLess(losses[2], losses[0])
    chex.assert_trees_all_equal(base, before)
    np.testing.assert_array_equal(
        _forward(config, base, _batch()).logprobs, reference)
    on = _forward(config, base | state.params, _batch()).logprobs
    self.assertGreater(np.abs(on - reference).max(), 1e-2)

  def test_step_is_that_of_the_merged_kernels(self):
    """b's gradient, by the chain rule from the gradient of the kernels."""
    base = _model('gpt2')[1]
    config, adapter = _fresh('gpt2')
    adapter = _trained(adapter)
    new, _ = _step(config, 1.)(_state({'adapter': adapter}), _batch(), base)
    merged = lora.merge(config, base, adapter)
    full, _ = _step(config, 1.)(_state(merged), _batch())
    for name, factors in adapter['layers'].items():
      gradient = np.asarray(merged['layers'][name]['kernel']
                            - full.params['layers'][name]['kernel'])
      expected = 1.5 * np.einsum('lir,lio->lro', factors['a'], gradient)
      moved = factors['b'] - new.params['adapter']['layers'][name]['b']
      np.testing.assert_allclose(moved, expected, atol=2e-6)

  def test_dropout_of_each_step_and_microbatch(self):
    base = _model('llama')[1]
    config, adapter = _fresh('llama', dropout=.5)
    state = _state({'adapter': _trained(adapter)})
    batch = jax.tree.map(lambda x: jnp.concatenate([x[:1]] * B), _batch())
    step = _step(config, dropout=True, num_microbatches=2)
    one, first = step(state, batch, base)
    again, _ = step(state, batch, base)
    chex.assert_trees_all_equal(one.params, again.params)
    _, second = step(state.replace(key=one.key), batch, base)
    self.assertGreater(abs(first['train/loss'] - second['train/loss']), 1e-3)

  def test_members_share_a_quantised_base(self):
    base = quantize.quantize_params(_model('llama')[1])
    config, adapter = _fresh('llama')
    states = [_state({'adapter': _trained(adapter, seed)}, seed)
              for seed in (3, 4)]
    step = _step(config)
    both, _ = jax.jit(jax.vmap(step, in_axes=(0, None, None)))(
        jax.tree.map(lambda *x: jnp.stack(x), *states), _batch(), base)
    alone = [step(state, _batch(), base)[0].params for state in states]
    chex.assert_trees_all_close(
        both.params, jax.tree.map(lambda *x: jnp.stack(x), *alone), atol=1e-6)


class SplitTest(parameterized.TestCase):

  @parameterized.parameters(('llama', 2), ('gpt2', 3), ('gpt_neo', 1))
  def test_two_parts_are_the_whole(self, family, num_trainable):
    config, params = _model(family)
    base, trainable = lora.split_layers(params, num_trainable)
    self.assertEmpty(base.keys() & trainable.keys())
    self.assertEqual('unembed' in trainable, not config.tie_embeddings)
    self.assertIn('norm', trainable)
    self.assertIn('embed', base)
    joined = {**base, **trainable}
    np.testing.assert_allclose(
        _logits(config, joined, _rows()), _logits(config, params, _rows()),
        atol=1e-6)
    at = jnp.full(B, 4)
    np.testing.assert_allclose(
        _hidden(config, joined, _rows(), query=at),
        _hidden(config, params, _rows(), query=at), atol=1e-6)
    chex.assert_trees_all_equal(lora.join_layers(joined), params)
    self.assertIs(lora.join_layers(params), params)

  def test_order(self):
    base, trainable = lora.split_layers(_model('llama')[1], 1)
    kernel = _model('llama')[1]['layers']['q']['kernel']
    np.testing.assert_array_equal(base['layers']['q']['kernel'], kernel[:2])
    np.testing.assert_array_equal(
        trainable['top_layers']['q']['kernel'], kernel[2:])

  def test_only_the_top_is_trained(self):
    config, params = _model('gpt2')
    params = params | {'value_head': {'weight': jnp.ones(16),
                                      'bias': jnp.zeros(())}}
    base, trainable = lora.split_layers(params, 2)
    self.assertIn('value_head', trainable)
    part, _ = _step(config)(_state(trainable), _batch(), base)
    whole, _ = _step(config)(_state(params), _batch())
    joined = lora.join_layers({**base, **part.params})
    for name in ('embed', 'positions'):
      np.testing.assert_array_equal(joined[name], params[name])
    for path, leaf in jax.tree_util.tree_leaves_with_path(joined['layers']):
      at = lambda tree, path=path: functools.reduce(
          lambda x, key: x[key.key], path, tree['layers'])
      np.testing.assert_array_equal(leaf[:1], at(params)[:1])
      np.testing.assert_allclose(
          leaf[1:], at(whole.params)[1:], atol=1e-6)
    self.assertGreater(np.abs(
        joined['layers']['q']['kernel'][1:]
        - params['layers']['q']['kernel'][1:]).max(), 1e-4)

  def test_base_may_be_quantised(self):
    config, params = _model('gpt2')
    base, trainable = lora.split_layers(params, 1)
    small = quantize.quantize_params(base)
    dense = {**quantize.dense(small), **trainable}
    np.testing.assert_allclose(
        _logits(config, {**small, **trainable}, _rows()),
        _logits(config, dense, _rows()), atol=1e-5)
    chex.assert_trees_all_equal(
        lora.join_layers({**small, **trainable}), lora.join_layers(dense))

  def test_rejects(self):
    config, params = _model('llama')
    for count in (0, 4, -1):
      with self.assertRaisesRegex(ValueError, rf'in \[1, 3\], got {count}'):
        lora.split_layers(params, count)
    base, trainable = lora.split_layers(params, 1)
    with self.assertRaisesRegex(ValueError, "has 'top_layers'"):
      lora.split_layers({**base, **trainable}, 1)
    adapter = lora.init(config, params, jax.random.key(0), rank=1, alpha=1)[1]
    for function in (lambda p: lora.split_layers(p, 1), lora.join_layers):
      with self.assertRaisesRegex(ValueError, "has (an )?'adapter'"):
        function({**base, **trainable, 'adapter': adapter})


if __name__ == '__main__':
  absltest.main()
