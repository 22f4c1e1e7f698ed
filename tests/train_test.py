"""Tests for rlhf_jax.train."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import worlds

from rlhf_jax import errors
from rlhf_jax import objectives
from rlhf_jax import policy
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.models import transformer
from rlhf_jax.ops import logprobs
from rlhf_jax.parallel import sharding

B, K, T, V = 8, 1, 6, 5
SFT = objectives.get('sft')


def _bigram(params, batch):
  """The smallest policy: a table of logits by the previous token."""
  return types.PolicyOutput(logprobs.token_logprobs(
      params['table'][batch.tokens], batch.tokens))


def _params(seed=0):
  table = np.random.default_rng(seed).normal(size=(V, V))
  return {'table': jnp.asarray(table, jnp.float32)}


def _batch(seed=0):
  """Ragged: from no response token to all of them."""
  rng = np.random.default_rng(seed)
  lengths = np.arange(B)[:, None, None] * (T - 1) // (B - 1)
  at = np.arange(T)
  return types.Batch(
      tokens=jnp.asarray(rng.integers(0, V, (B, K, T))),
      mask=jnp.asarray((at >= 1) & (at < 1 + lengths)),
      scores=jnp.ones((B, K)))


def _weighted(out, batch):
  """SFT times the score, with a metric; a NaN score spoils it."""
  loss = SFT(out, batch)
  loss = loss.replace(loss=loss.loss * batch.scores[..., None])
  return loss.replace(metrics={'test/square': loss.loss**2})


def _state(tx, seed=0, params=None):
  return train.init_state(params or _params(seed), tx, jax.random.key(seed))


@functools.cache
def _sgd_step(num_microbatches=1):
  return jax.jit(train.make_train_step(
      _bigram, _weighted, optax.sgd(1.), num_microbatches=num_microbatches))


@functools.cache
def _adam(learning_rate=.1):
  tx = train.optimizer(learning_rate=learning_rate, num_steps=10,
                       schedule='constant', weight_decay=.1)
  return tx, train.make_train_step(_bigram, _weighted, tx)


class StepTest(parameterized.TestCase):

  @parameterized.parameters(2, 4, 8)
  def test_microbatches_change_nothing(self, parts):
    state, batch = _state(optax.sgd(1.)), _batch()
    whole = _sgd_step()(state, batch)
    cut = _sgd_step(parts)(state, batch)
    chex.assert_trees_all_close(
        whole[0].params, cut[0].params, rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_close(whole[1], cut[1], rtol=1e-5, atol=1e-6)
    # The mean of the parts' means is another gradient.
    rows = B // parts
    means = [_sgd_step()(state, jax.tree.map(
        lambda x, i=i: x[i * rows:(i + 1) * rows], batch))[0].params
             for i in range(parts)]
    naive = np.mean([x['table'] for x in means], axis=0)
    self.assertGreater(np.abs(naive - whole[0].params['table']).max(), 1e-3)

  def test_metrics_are_weighted_means(self):
    state, batch = _state(optax.sgd(1.)), _batch()
    new, metrics = _sgd_step()(state, batch)
    out = np.asarray(_bigram(_params(), batch).logprobs, np.float64)
    np.testing.assert_allclose(
        metrics['train/loss'], -out[batch.mask].mean(), rtol=1e-5)
    np.testing.assert_allclose(
        metrics['test/square'], (out[batch.mask]**2).mean(), rtol=1e-5)
    moved = jax.tree.map(lambda a, b: a - b, state.params, new.params)
    np.testing.assert_allclose(
        metrics['train/grad_norm'], optax.tree.norm(moved), rtol=1e-5)
    self.assertEqual(metrics['train/skipped'], 0)
    self.assertEqual(new.step, 1)
    self.assertFalse(np.array_equal(jax.random.key_data(new.key),
                                    jax.random.key_data(state.key)))

  def test_what_weighs_nothing_may_be_nan(self):
    def objective(out, batch):
      loss, holes = SFT(out, batch), jnp.where(batch.mask, 1., jnp.nan)
      return loss.replace(loss=loss.loss + jax.lax.stop_gradient(holes),
                          metrics={'test/holes': holes})
    tx = optax.sgd(1.)
    # Not jitted: XLA may turn a product with a mask into a choice.
    step = train.make_train_step(_bigram, objective, tx)
    state, metrics = step(_state(tx), _batch())
    self.assertEqual(metrics['test/holes'], 1)
    self.assertEqual(metrics['train/skipped'], 0)
    plain, expected = _sgd_step()(_state(tx), _batch())
    self.assertAlmostEqual(
        metrics['train/loss'], expected['train/loss'] + 1, places=5)
    chex.assert_trees_all_close(state.params, plain.params, atol=1e-6)

  def test_indivisible_microbatches(self):
    with self.assertRaisesRegex(ValueError, '8 .* num_microbatches=3'):
      _sgd_step(3)(_state(optax.sgd(1.)), _batch())

  def test_members_in_one_step_equal_the_loop(self):
    tx, step = _adam()
    states = [_state(tx, seed) for seed in range(3)]
    batches = [_batch(seed) for seed in range(3)]
    stack = lambda *x: jnp.stack(x)
    together = jax.tree.map(stack, *states)
    cut = jax.tree.map(stack, *batches)
    ensemble, single = jax.jit(jax.vmap(step)), jax.jit(step)
    for _ in range(3):
      together, metrics = ensemble(together, cut)
      results = [single(s, b) for s, b in zip(states, batches)]
      states = [s for s, _ in results]
    for mine, other in ((together.params, [s.params for s in states]),
                        (metrics, [m for _, m in results])):
      chex.assert_trees_all_close(
          mine, jax.tree.map(stack, *other), rtol=1e-5, atol=1e-5)

  @parameterized.parameters(np.nan, np.inf)
  def test_step_that_is_not_finite_is_skipped(self, value):
    tx, step = _adam()
    good, bad = _batch(), _batch()
    bad = bad.replace(scores=bad.scores.at[5].set(value))
    step = jax.jit(step)
    state, _ = step(_state(tx), good)
    new, metrics = step(state, bad)
    self.assertEqual(metrics['train/skipped'], 1)
    chex.assert_trees_all_equal(
        (new.params, new.opt_state), (state.params, state.opt_state))
    self.assertEqual(new.step, 2)
    # A NaN where there is no weight is no fault (row 0 has no response).
    unread = good.replace(scores=good.scores.at[0].set(np.nan))
    a, metrics = step(state, unread)
    self.assertEqual(metrics['train/skipped'], 0)
    chex.assert_trees_all_equal(a.params, step(state, good)[0].params)

  def test_finite_loss_with_infinite_gradient_is_skipped(self):
    def objective(out, batch):
      gap = out.logprobs[..., 1:] - jax.lax.stop_gradient(
          out.logprobs[..., 1:])
      loss = jnp.sqrt(gap)  # of 0, where its slope is infinite
      return types.LossOutput(loss, jnp.ones_like(loss), {})
    step = jax.jit(train.make_train_step(_bigram, objective, optax.sgd(1.)))
    state = _state(optax.sgd(1.))
    new, metrics = step(state, _batch())
    self.assertEqual(metrics['train/loss'], 0)
    self.assertEqual(metrics['train/skipped'], 1)
    chex.assert_trees_all_equal(new.params, state.params)

  def test_one_bad_member_spoils_no_other(self):
    tx, step = _adam()
    states = jax.tree.map(lambda *x: jnp.stack(x), _state(tx), _state(tx))
    batches = jax.tree.map(lambda *x: jnp.stack(x), _batch(), _batch())
    batches = batches.replace(scores=batches.scores.at[1, 5].set(np.nan))
    new, metrics = jax.jit(jax.vmap(step))(states, batches)
    np.testing.assert_array_equal(metrics['train/skipped'], [0, 1])
    moved = np.abs(new.params['table'] - states.params['table']).max((1, 2))
    self.assertGreater(moved[0], 0)
    self.assertEqual(moved[1], 0)

  def test_targets_follow_and_reach_the_forward_pass(self):
    def forward(params, batch, targets):
      return _bigram({'table': params['table'] + targets}, batch)
    tx = optax.sgd(.1)
    step = jax.jit(train.make_train_step(
        forward, SFT, tx, num_microbatches=2,
        update_targets=lambda targets, params, step: (
            targets + step * params['table'])))
    params, targets = _params(), _params(1)['table']
    state = train.init_state(params, tx, jax.random.key(0), targets)
    after, metrics = step(state, _batch())
    plain, expected = jax.jit(train.make_train_step(_bigram, SFT, tx))(
        _state(tx, params={'table': params['table'] + targets}), _batch())
    np.testing.assert_allclose(
        metrics['train/loss'], expected['train/loss'], rtol=1e-6)
    np.testing.assert_allclose(
        after.params['table'] + targets, plain.params['table'], atol=1e-6)
    np.testing.assert_allclose(
        after.targets, targets + after.params['table'], atol=1e-6)
    self.assertIsNone(plain.targets)
    spoilt = _batch()  # a step that is skipped moves no target
    bad = jax.jit(train.make_train_step(
        lambda p, b, t: types.PolicyOutput(jnp.nan * forward(
            p, b, t).logprobs), SFT, tx,
        update_targets=lambda targets, params, step: targets + 1))
    skipped, metrics = bad(state, spoilt)
    self.assertEqual(metrics['train/skipped'], 1)
    np.testing.assert_array_equal(skipped.targets, state.targets)

  def test_targets_of_a_donated_state(self):
    params, tx = _params(), optax.sgd(.1)
    state = train.init_state(
        params, tx, jax.random.key(0), params['table'])
    step = jax.jit(train.make_train_step(
        lambda p, b, t: _bigram(p, b), SFT, tx), donate_argnums=0)
    before = np.array(params['table'])
    state, _ = step(state, _batch())
    np.testing.assert_array_equal(state.targets, before)

  @parameterized.named_parameters(
      ('reduced', lambda x: jnp.mean(x)),
      ('summed_over_prompts', lambda x: x.sum(axis=0)))
  def test_a_loss_that_is_not_of_units(self, reduce):
    def objective(out, batch):
      return jax.tree.map(reduce, SFT(out, batch))
    tx = optax.sgd(1.)
    step = train.make_train_step(_bigram, objective, tx)
    with self.assertRaisesRegex(ValueError, 'are not reduced; got'):
      step(_state(tx), _batch())

  def test_a_loss_that_is_none(self):
    tx = optax.sgd(1.)
    step = train.make_train_step(
        _bigram, lambda out, batch: SFT(out, batch).loss, tx)
    with self.assertRaisesRegex(ValueError, 'returns types.LossOutput'):
      step(_state(tx), _batch())

  def test_member_scores_are_left_out(self):
    batch = _batch().replace(member_scores=jnp.zeros((3, B, K)))
    tx = optax.sgd(.1)
    step = jax.jit(train.make_train_step(_bigram, SFT, tx, num_microbatches=4))
    one, two = (step(_state(tx), b)[0].params['table']
                for b in (batch, _batch()))
    np.testing.assert_array_equal(one, two)

  def test_learning_rate_zero(self):
    tx, step = _adam(0.)
    state = _state(tx)
    new, _ = jax.jit(step)(state, _batch())
    chex.assert_trees_all_equal(new.params, state.params)

  def test_traced_once(self):
    chex.clear_trace_counter()
    tx, step = _adam()
    step = jax.jit(chex.assert_max_traces(step, n=1))
    state = _state(tx)
    for seed in range(3):
      state, _ = step(state, _batch(seed))
    self.assertEqual(state.step, 3)


class BaseTest(absltest.TestCase):
  """Parameters that are read and never written; and dropout keys."""

  def _forward(self, params, batch):
    return _bigram({'table': params['table'] + params['frozen']['table']},
                   batch)

  def test_is_read_and_not_trained(self):
    tx = train.optimizer(learning_rate=.1, num_steps=10, weight_decay=.1,
                         schedule='constant')
    step = jax.jit(train.make_train_step(
        self._forward, _weighted, tx, num_microbatches=2), donate_argnums=0)
    # Integers, as of a quantised base, have no gradient and need none.
    base = {'frozen': _params(1) | {'codes': jnp.arange(4, dtype=jnp.uint8)}}
    before = jax.tree.map(np.array, base)
    state, batch = _state(tx), _batch()
    summed = {'table': _params()['table'] + base['frozen']['table']}
    expected = _adam()[1](_state(tx, params=summed), batch)[1]
    for i in range(2):
      state, metrics = step(state, batch, base)
      if not i:
        for name in ('train/loss', 'train/grad_norm'):
          np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)
    self.assertEqual(state.params.keys(), {'table'})
    self.assertLen(jax.tree.leaves(state.params), 1)
    chex.assert_tree_all_finite(state.params)
    self.assertGreater(
        np.abs(state.params['table'] - _params()['table']).max(), .05)
    chex.assert_trees_all_equal_shapes(state.opt_state, _state(tx).opt_state)
    chex.assert_trees_all_equal(base, before)

  def test_in_both(self):
    step = train.make_train_step(self._forward, _weighted, optax.sgd(1.))
    with self.assertRaisesRegex(ValueError, 'table must be in base or'):
      step(_state(optax.sgd(1.)), _batch(), {'frozen': 0, 'table': 0})

  def test_loop_passes_it_on(self):
    seen = []
    def step_fn(state, batch, *rest):
      seen.append(rest)
      return state, {'train/skipped': np.float32(0)}
    source = lambda step, state, frozen: step
    for base in (None, {'a': 1}):
      list(train.train(0, types.Frozen(), source, step_fn, start=0,
                       num_steps=1, base=base))
    self.assertEqual(seen, [(), ({'a': 1},)])

  def test_dropout_keys(self):
    """Each step and micro-batch has its own, which nobody else uses."""
    def forward(params, batch, dropout_key):
      noise = jax.random.uniform(dropout_key) + 0 * params['table'].sum()
      return types.PolicyOutput(jnp.full((*batch.tokens.shape[:2], T), noise))
    def objective(out, batch):
      loss = out.logprobs[..., 1]
      return types.LossOutput(loss, jnp.ones_like(loss), {})
    make = functools.partial(train.make_train_step, forward, objective,
                             optax.sgd(0.), dropout=True)
    one, two = jax.jit(make()), jax.jit(make(num_microbatches=2))
    state, seen = _state(optax.sgd(0.)), []
    for _ in range(3):
      new, metrics = one(state, _batch())
      first = float(metrics['train/loss'])
      self.assertEqual(one(state, _batch())[1]['train/loss'], first)
      mean = float(two(state, _batch())[1]['train/loss'])
      keys = [state.key, jax.random.split(state.key)[1]]  # [1]: the source's
      seen += [first, 2 * mean - first, *map(jax.random.uniform, keys)]
      seen += [jax.random.uniform(jax.random.fold_in(keys[1], i))
               for i in range(2)]
      state = new
    gaps = np.diff(np.sort(np.array(seen, np.float64)))
    self.assertGreater(gaps.min(), 1e-6)


class OptimizerTest(parameterized.TestCase):

  def _rates(self, count, **kwargs):
    """A constant gradient makes each Adam step as long as its rate."""
    tx = train.optimizer(clip_norm=None, **kwargs)
    params, grad = jnp.zeros(()), jnp.ones(())
    opt_state, rates = tx.init(params), []
    for _ in range(count):
      update, opt_state = tx.update(grad, opt_state, params)
      rates.append(-float(update))
    return rates

  @parameterized.parameters(
      ('cosine', 4, {0: 0, 2: .05, 4: .1, 12: .05, 20: 0}),
      ('cosine', 0, {0: .1, 10: .05, 20: 0}),
      ('constant', 4, {0: 0, 2: .05, 4: .1, 12: .1, 20: .1}),
      ('constant', 0, {0: .1, 1: .1, 20: .1}))
  def test_schedule(self, schedule, warmup_steps, expected):
    rates = self._rates(21, learning_rate=.1, num_steps=20,
                        warmup_steps=warmup_steps, schedule=schedule)
    for step, rate in expected.items():
      self.assertAlmostEqual(rates[step], rate, delta=1e-5, msg=str(step))

  def test_unknown_schedule(self):
    with self.assertRaisesRegex(ValueError, "is 'linear', not 'cosine' or"):
      train.optimizer(learning_rate=.1, num_steps=1, schedule='linear')

  def test_clip_and_weight_decay(self):
    make = functools.partial(train.optimizer, learning_rate=.1, num_steps=1,
                             schedule='constant')
    second = []
    for tx in (make(clip_norm=1.), make(clip_norm=None)):
      opt_state = tx.init(jnp.zeros(2))
      for grad in (jnp.array([60., 80.]), jnp.array([.6, .8])):
        update, opt_state = tx.update(grad, opt_state, jnp.zeros(2))
      second.append(update)
    # Clipped to norm 1, the two gradients are one.
    np.testing.assert_allclose(second[0], -.1, rtol=1e-4)
    self.assertGreater(np.abs(second[1] + .1).min(), .01)
    tx = make(weight_decay=.3)
    update, _ = tx.update(
        jnp.zeros(()), tx.init(jnp.ones(())), 2 * jnp.ones(()))
    self.assertAlmostEqual(float(update), -.1 * .3 * 2, delta=1e-7)


class LoopTest(absltest.TestCase):

  def _run(self, skipped, start=0):
    """Steps that were skipped or not, as a stub; the steps yielded."""
    def step_fn(state, batch):
      return state + batch, {'train/skipped': np.float32(skipped[batch])}
    source = lambda step, state, frozen: step
    for step, _, _ in train.train(
        0, types.Frozen(), source, step_fn, start=start,
        num_steps=len(skipped)):
      self.steps.append(step)

  def setUp(self):
    super().setUp()
    self.steps = []

  def test_stops_after_five_in_a_row(self):
    with self.assertRaisesRegex(
        errors.NumericsError, '5 steps in a row') as raised:
      self._run([0, 0] + [1] * 20)
    self.assertEqual([*raised.exception.skipped], [2, 3, 4, 5, 6])
    self.assertEqual(self.steps, [1, 2, 3, 4, 5, 6, 7])

  def test_at_the_last_step_as_well(self):
    with self.assertRaises(errors.NumericsError):
      self._run([0] + [1] * 5)
    self.assertEqual(self.steps, [1, 2, 3, 4, 5, 6])

  def test_four_are_forgiven(self):
    self._run([1, 1, 1, 1, 0] * 3)
    self.assertEqual(self.steps, list(range(1, 16)))

  def test_one_member_is_enough(self):
    with self.assertRaises(errors.NumericsError):
      self._run([np.array([0, 1])] * 5)

  def test_resumed_run_equals_the_uninterrupted(self):
    tx, step = _adam()
    step = jax.jit(step)
    source = lambda step, state, frozen: _batch(step)
    run = lambda state, start, end: [s for _, s, _ in train.train(
        state, types.Frozen(), source, step, start=start, num_steps=end)]
    whole = run(_state(tx), 0, 4)
    self.assertLen(whole, 4)
    chex.assert_trees_all_equal(run(whole[1], 2, 4)[-1], whole[-1])
    self.assertEmpty(run(whole[-1], 4, 4))


class DevicesTest(absltest.TestCase):

  def test_one_device_equals_eight(self):
    """Plain SGD, because Adam would amplify rounding in its first step."""
    config = transformer.make_config(
        'llama', vocab_size=V, hidden_size=8, num_layers=2, num_heads=2,
        intermediate_size=12)
    forward = functools.partial(policy.forward, config)
    params = jax.jit(transformer.init, static_argnums=0)(
        config, jax.random.key(0))
    batch, tx = _batch(), optax.sgd(1.)
    step = jax.jit(train.make_train_step(forward, _weighted, tx))
    state = train.init_state(params, tx, jax.random.key(0))
    one, metrics = jax.device_get(step(state, batch))
    with worlds.devices(8):
      cut = sharding.shard_batch(batch)
      self.assertLen(cut.tokens.sharding.device_set, 8)
      many, many_metrics = jax.device_get(
          step(train.place_state(params, tx, jax.random.key(0)), cut))
    chex.assert_trees_all_close(
        one.params, many.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(metrics, many_metrics, rtol=1e-5, atol=1e-6)


class OrderTest(parameterized.TestCase):

  def _order(self, num_prompts=12, key=0, **kwargs):
    return np.asarray(train.minibatch_order(
        jax.random.key(key), num_prompts, **kwargs))

  @parameterized.parameters((1, 3), (3, 4), (2, 12))
  def test_every_epoch_takes_every_prompt_once(self, epochs, parts):
    order = self._order(num_epochs=epochs, num_minibatches=parts)
    self.assertEqual(order.shape, (epochs * parts, 12 // parts))
    passes = order.reshape(epochs, -1)
    for one in passes:
      np.testing.assert_array_equal(np.sort(one), np.arange(12))
    self.assertLen({tuple(one) for one in passes}, epochs)

  def test_repeats_follow_each_other(self):
    once = self._order(num_epochs=2, num_minibatches=3)
    twice = self._order(num_epochs=2, num_minibatches=3, repeats=2)
    np.testing.assert_array_equal(twice[::2], once)
    np.testing.assert_array_equal(twice[1::2], once)

  def test_other_key_other_order(self):
    first, second = (self._order(key=key, num_epochs=1, num_minibatches=2)
                     for key in (0, 1))
    self.assertTrue((first != second).any())

  @parameterized.parameters(
      (dict(num_epochs=0, num_minibatches=1), 'num_epochs'),
      (dict(num_epochs=1, num_minibatches=5), 'num_minibatches=5'),
      (dict(num_epochs=1, num_minibatches=1, repeats=0), 'repeats'))
  def test_out_of_range(self, kwargs, message):
    with self.assertRaisesRegex(ValueError, message):
      self._order(**kwargs)


class UpdatesTest(parameterized.TestCase):

  def _rollout(self, **statistics):
    return types.Rollout(
        batch=_batch(), statistics=statistics,
        metrics={'rollout/score': jnp.float32(7)})

  @parameterized.parameters((1, 1, 1), (1, 1, 3), (2, 4, 1), (2, 2, 2))
  def test_equals_steps_in_that_order(self, epochs, parts, repeats):
    tx = optax.sgd(.3)
    step = train.make_train_step(_bigram, _weighted, tx)
    counts = dict(num_epochs=epochs, num_minibatches=parts, repeats=repeats)
    state = _state(tx)
    actual, metrics = jax.jit(train.make_updates(step, **counts))(
        state, self._rollout(seen=jnp.float32(5)))
    order = train.minibatch_order(
        jax.random.fold_in(state.key, 4), B, **counts)
    losses = []
    for at in order:
      state, one = step(state, jax.tree.map(lambda x, at=at: x[at], _batch()))
      losses.append(one['train/loss'])
    chex.assert_trees_all_close(actual.params, state.params, rtol=1e-5)
    np.testing.assert_allclose(metrics['train/loss'], losses, rtol=1e-5)
    self.assertLen(losses, epochs * parts * repeats)
    self.assertEqual(actual.step, len(losses))
    self.assertEqual(metrics['rollout/score'], 7)
    self.assertEqual(actual.statistics, {'seen': 5})
    self.assertTrue((jax.random.key_data(actual.key)
                     == jax.random.key_data(state.key)).all())

  def test_member_scores_fit_no_minibatch(self):
    tx = optax.sgd(.3)
    step = train.make_train_step(_bigram, _weighted, tx)
    rollout = self._rollout()
    rollout = rollout.replace(batch=rollout.batch.replace(
        member_scores=jnp.ones((3, B, K))))
    updates = train.make_updates(step, num_minibatches=4)
    state, _ = updates(_state(tx), rollout)
    other, _ = updates(_state(tx), self._rollout())
    chex.assert_trees_all_equal(state.params, other.params)

  def test_coefficient_comes_from_the_state(self):
    def objective(out, batch, coef=1.):
      loss = SFT(out, batch)
      return loss.replace(loss=coef * loss.loss, metrics={})

    tx = optax.sgd(.3)
    plain = train.make_train_step(_bigram, objective, tx)
    adapted = train.make_train_step(
        _bigram, objective, tx, coefficients=('coef',))
    state = _state(tx).replace(statistics={'coef': jnp.float32(2.5)})
    np.testing.assert_allclose(
        adapted(state, _batch())[1]['train/loss'],
        2.5 * plain(state, _batch())[1]['train/loss'], rtol=1e-6)

  @parameterized.parameters((1., .5), (.3, 1.), (.05, 2.))
  def test_penalty_follows_the_last_epoch(self, target, factor):
    # 'policy/approx_kl' counts the updates: 0, 1, 2, 3 tenths.
    def step(state, batch, base=None):
      del batch, base
      kl = state.step / 10
      return state.replace(step=state.step + 1), {'policy/approx_kl': kl}

    updates = train.make_updates(
        step, num_epochs=2, num_minibatches=2, penalty_target=target)
    state, _ = updates(_state(optax.sgd(.3)), self._rollout(
        kl_penalty_coef=jnp.float32(8), other=jnp.float32(1)))
    self.assertEqual(state.statistics['kl_penalty_coef'], 8 * factor)
    self.assertEqual(state.statistics['other'], 1)


if __name__ == '__main__':
  absltest.main()
