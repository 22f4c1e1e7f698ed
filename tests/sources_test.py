"""Tests for rlhf_jax.sources."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import worlds

from rlhf_jax import algorithms
from rlhf_jax import errors
from rlhf_jax import sources
from rlhf_jax import streams
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.annotators import arithmetic
from rlhf_jax.annotators import chain as chain_lib
from rlhf_jax.annotators import running
from rlhf_jax.data import corpus
from rlhf_jax.data import order
from rlhf_jax.ops import priorities
from rlhf_jax.pipeline import fit as fit_lib

ROWS = 10
PROMPTS = corpus.Prompts(np.arange(ROWS * 2).reshape(ROWS, 2),
                         np.arange(ROWS) + 1)


def _dataset():
  tokens = np.arange(ROWS * 6).reshape(ROWS, 2, 3)
  return types.Batch(tokens=tokens, mask=tokens % 2 == 0,
                     gold_scores=tokens[..., 0] / 7)


def _state(seed=0, scale=3.):
  return types.TrainState(step=0, params={'scale': scale}, opt_state=None,
                          key=jax.random.key(seed), statistics={'seen': 1})


class OfflineTest(parameterized.TestCase):

  @parameterized.parameters(3, 10, 16)
  def test_order_is_that_of_order_indices(self, batch_size):
    data = _dataset()
    source = sources.offline(data, batch_size=batch_size, seed=4)
    for step in (0, 5, 1):
      batch = source(step, None, None)
      at = order.indices(4, step, batch_size, ROWS)
      for field in ('tokens', 'mask', 'gold_scores'):
        np.testing.assert_array_equal(
            getattr(batch, field), getattr(data, field)[at])
      self.assertIsNone(batch.scores)

  def test_members_have_orders_of_their_own(self):
    data = _dataset()
    source = sources.offline_members(data, batch_size=5, seeds=[7, 8, 9])
    steps = [source(step, None, None) for step in range(2)]
    self.assertEqual(steps[0].tokens.shape, (3, 5, 2, 3))
    rows = np.concatenate([s.tokens[:, :, 0, 0] for s in steps], 1) // 6
    for member, seed in zip(rows, (7, 8, 9)):
      np.testing.assert_array_equal(np.sort(member), np.arange(ROWS))
      np.testing.assert_array_equal(member, order.indices(seed, 0, ROWS, ROWS))
    self.assertLen({tuple(r) for r in rows}, 3)
    for i in range(3):
      at = rows[i, 5:]
      np.testing.assert_array_equal(
          steps[1].gold_scores[i], data.gold_scores[at])


class PrioritizedTest(parameterized.TestCase):

  def _rows(self, weights, steps, batch_size=4, seed=5):
    """The rows of each step."""
    source = sources.prioritized(
        _dataset(), weights, batch_size=batch_size, seed=seed)
    return [source(step, None, None).tokens[:, 0, 0] // 6 for step in steps]

  def test_frequencies_are_the_weights(self):
    advantages = np.float32([.4, -.2, .1, 0, .05, 2, 1e-3, .3, -3, .7])
    weights = np.asarray(priorities.priorities(advantages))
    drawn = np.concatenate(self._rows(weights, range(500), batch_size=40))
    counts = np.bincount(drawn, minlength=ROWS)
    expected = 20_000 * np.maximum(advantages, 0) / advantages.clip(0).sum()
    self.assertEqual(counts[expected == 0].tolist(), [0, 0, 0])
    kept = expected > 0
    statistic = ((counts - expected)[kept]**2 / expected[kept]).sum()
    # Of 6 degrees of freedom: 99 in 100 are below, and 1 in 100.
    self.assertBetween(statistic, .872, 16.812)

  def test_batches_hold_whole_rows(self):
    data = _dataset()
    source = sources.prioritized(
        data, np.ones(ROWS), batch_size=6, seed=1)
    batch = source(2, None, None)
    at = batch.tokens[:, 0, 0] // 6
    np.testing.assert_array_equal(batch.mask, data.mask[at])
    np.testing.assert_array_equal(batch.gold_scores, data.gold_scores[at])
    self.assertIsNone(batch.scores)

  def test_steps_are_one_stream(self):
    weights = np.arange(ROWS)
    whole = np.concatenate(self._rows(weights, range(12)))
    self.assertGreater(len(set(map(tuple, whole.reshape(12, 4)))), 8)
    for batch_size in (3, 16):  # cut elsewhere
      steps = range(48 // batch_size)
      np.testing.assert_array_equal(
          whole, np.concatenate(self._rows(weights, steps, batch_size)))
    # A step knows nothing of those before it; a run that goes on asks for it.
    np.testing.assert_array_equal(
        whole[28:], np.concatenate(self._rows(weights, range(7, 12))))
    other = np.concatenate(self._rows(weights, range(12), seed=6))
    self.assertGreater(np.mean(whole != other), .5)

  def test_one_row_at_the_edges_takes_all(self):
    for row in (0, 4, ROWS - 1):
      weights = np.zeros(ROWS, np.float32)
      weights[row] = 1e-30
      rows, = self._rows(weights, [3], batch_size=50)
      self.assertEqual(set(rows), {row})

  @parameterized.parameters(
      (dict(weights=np.ones(9)), 'one entry for each of 10 rows'),
      (dict(weights=np.zeros(10)), 'somewhere > 0'),
      (dict(weights=-np.ones(10)), '>= 0'),
      (dict(weights=np.full(10, np.nan)), 'finite'),
      (dict(weights=np.full(10, np.inf)), 'finite'),
      (dict(batch_size=0), 'batch_size must be >= 1, got 0'),
      (dict(seed=-1), 'seed must be >= 0, got -1'))
  def test_what_does_not_fit(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      sources.prioritized(_dataset(), **dict(
          weights=np.ones(10), batch_size=2, seed=0) | changes)


class ResumeTest(parameterized.TestCase):
  """A training that is stopped in an epoch goes on with its next rows."""

  @parameterized.parameters(
      lambda data: sources.offline(data, batch_size=8, seed=3),
      lambda data: sources.prioritized(
          data, np.arange(ROWS), batch_size=8, seed=3))
  def test_same_rows(self, make):
    source, directories = make(_dataset()), {}

    def fit(name, limit=10**9):
      """The rows that each step of a training gets, and where it ends."""
      context = worlds.Context(worlds.SHARED, directories.get(name),
                               worlds.Stop(limit))
      directories[name] = context.directory
      seen = {}

      def recorded(step, state, frozen):
        batch = source(step, state, frozen)
        seen[step] = (batch.tokens[:, 0, 0] // 6).tolist()
        return batch

      def step_fn(state, batch):
        rows = jnp.sum(batch.tokens[:, 0, 0]).astype(jnp.float32)
        # The order counts, so that the result tells it too.
        params = {'sum': state.params['sum'] * .5 + rows}
        return state.replace(step=state.step + 1, params=params), {
            'train/skipped': jnp.zeros(()), 'train/loss': rows}

      state = types.TrainState(
          step=jnp.int32(0), params={'sum': jnp.zeros(())}, opt_state={},
          key=jax.random.key(0))
      try:
        last, _ = fit_lib.fit(context, state, recorded, step_fn,
                              loop=fit_lib.Loop(7))
      except errors.Interrupted:
        return seen, None
      return seen, float(last.params['sum'])

    whole, result = fit('whole')
    first, none = fit('cut', limit=3)  # 32 of 10 rows: in the fourth epoch
    self.assertIsNone(none)
    rest, again = fit('cut')
    self.assertBetween(len(first), 3, 5)
    self.assertEqual(min(rest), 4)
    self.assertEqual(first | rest, whole)
    self.assertEqual(again, result)


class OnlineTest(absltest.TestCase):

  def _source(self):
    calls = []

    def sampler(params, prompts, lengths, key, row_ids):
      np.testing.assert_array_equal(row_ids, [0, 1, 2])
      calls.append(key)
      noise = np.asarray(jax.random.uniform(key, (3, 2, 1)))
      return types.Batch(
          tokens=np.broadcast_to(prompts[:, None], (3, 2, 2)),
          mask=np.broadcast_to(lengths[:, None, None], (3, 2, 2)),
          old_logprobs=noise * params['scale'])

    def annotators(batch, state, frozen):
      scores = batch.old_logprobs[..., 0] + frozen.reward
      return batch.replace(
          scores=scores, gold_scores=state.params['scale']), state.replace(
              statistics={'seen': state.statistics['seen'] + 1})

    return sources.online(
        PROMPTS, sampler, sources.rollout(annotators), batch_size=3,
        seed=2), calls

  def test_prompts_come_in_order_with_their_lengths(self):
    source, _ = self._source()
    frozen = types.Frozen(reward=10.)
    for step in (0, 1, 6):
      rollout = source(step, _state(), frozen)
      batch, at = rollout.batch, order.indices(2, step, 3, ROWS)
      np.testing.assert_array_equal(batch.tokens[:, 0, 0], at * 2)
      np.testing.assert_array_equal(batch.mask[:, 1, 1], at + 1)
      np.testing.assert_allclose(batch.scores - batch.old_logprobs[..., 0], 10)
      self.assertEqual(batch.gold_scores, 3)
      self.assertEqual(rollout.statistics, {'seen': 2})
      np.testing.assert_allclose(
          rollout.metrics['rollout/score'], batch.scores.mean(), rtol=1e-6)

  def test_samples_with_the_parameters_and_the_key_of_the_state(self):
    source, _ = self._source()
    frozen = types.Frozen(reward=0.)
    draw = lambda *args: source(0, _state(*args), frozen).batch.scores
    np.testing.assert_array_equal(draw(0), draw(0))
    self.assertGreater(np.abs(draw(0) - draw(1)).min(), 1e-4)
    np.testing.assert_allclose(draw(0, 6.), 2 * draw(0, 3.), rtol=1e-6)

  def test_a_mask_policy_guides_it_on_the_same_base(self):
    seen = []

    def sampler(params, prompts, lengths, key, row_ids, **kwargs):
      seen.append((params, kwargs))
      return types.Batch(tokens=prompts[:, None], mask=prompts[:, None] > 0)

    source = sources.online(
        PROMPTS, sampler, lambda *args: types.Rollout(None, {}, {}),
        batch_size=3, seed=2)
    for base, under in ((None, {}), ({'base': 7.}, {'base': 7.})):
      frozen = types.Frozen(base=base)
      source(0, _state(0, 6.), frozen)
      source(0, _state(0, 6.).replace(targets={'scale': 5.}), frozen)
      params = {'scale': 6.} | under
      self.assertEqual(seen[-2:], [
          (params, {}), (params, {'guide': {'scale': 5.} | under})])

  def test_no_key_is_used_twice(self):
    source, calls = self._source()
    state, used = _state(), []
    for step in range(4):
      used.append(tuple(jax.random.key_data(state.key).tolist()))
      source(step, state, types.Frozen(reward=0.))
      # As the train step does.
      state = state.replace(key=streams.child(state.key, 'next'))
    used += [tuple(jax.random.key_data(key).tolist()) for key in calls]
    self.assertLen(set(used), 8)


class CutTest(parameterized.TestCase):
  """Chunks, devices and programmatic scores of a rollout."""

  def _source(self, batch_size=8, **kwargs):

    @jax.jit
    def sampler(params, prompts, lengths, key, row_ids):
      draw = lambda i: jax.random.uniform(jax.random.fold_in(key, i), (2, 2))
      return types.Batch(
          tokens=jnp.broadcast_to(prompts[:, None], (len(prompts), 2, 2)),
          mask=jnp.ones((len(prompts), 2, 2), bool),
          old_logprobs=params['scale'] * jax.vmap(draw)(row_ids))

    def annotators(batch, state, frozen):
      if batch.scores is None:
        batch = batch.replace(scores=batch.old_logprobs.sum(axis=-1))
      kept = batch.mask & (jnp.arange(2) == 0)[None, :, None]
      return batch.replace(mask=kept), state

    return sources.online(
        PROMPTS, sampler, sources.rollout(annotators), batch_size=batch_size,
        seed=2, **kwargs)

  @parameterized.parameters(dict(chunk_size=4), dict(chunk_size=1),
                            dict(mesh=8), dict(chunk_size=4, mesh=4),
                            dict(mesh=8, multiple=2), dict(multiple=3),
                            dict(chunk_size=4, mesh=3))
  def test_samples_are_the_same(self, mesh=1, **kwargs):
    """And what fills up a rollout is no response."""
    whole = self._source()(3, _state(), types.Frozen())
    with worlds.devices(mesh):
      cut = self._source(**kwargs)(3, _state(), types.Frozen())
    batch = jax.device_get(cut.batch)
    self.assertLen(batch.mask, -(-8 // (n := mesh * kwargs.get(
        'multiple', 1))) * n)
    self.assertFalse(batch.mask[8:].any())
    chex.assert_trees_all_equal(
        jax.device_get(whole.batch), jax.tree.map(lambda x: x[:8], batch))
    chex.assert_trees_all_close(whole.metrics, cut.metrics, rtol=1e-6)

  def test_chunk_must_divide(self):
    with self.assertRaisesRegex(ValueError, 'chunk_size must divide'):
      self._source(chunk_size=3)

  def test_base_and_state_make_the_policy(self):
    state = _state().replace(params={})
    frozen = types.Frozen(base={'scale': 3.})
    chex.assert_trees_all_equal(
        self._source()(0, state, frozen).batch,
        self._source()(0, _state(scale=3.), types.Frozen()).batch)

  def test_scores_of_texts_come_first(self):
    seen = []

    def score(step, batch, places):
      seen.append(places)
      return step + batch.tokens[..., 0]

    rollout = self._source(score=score, chunk_size=4)(
        3, _state(), types.Frozen())
    np.testing.assert_array_equal(
        rollout.batch.scores, 3 + rollout.batch.tokens[..., 0])
    # Whose right answers some scores read: the prompt at place i is 2 i.
    np.testing.assert_array_equal(seen, [order.indices(2, 3, 8, ROWS)])
    np.testing.assert_array_equal(
        rollout.batch.tokens[:, 0, 0], 2 * seen[0])

  def test_metrics_are_of_all_that_was_sampled(self):
    rollout = self._source()(3, _state(), types.Frozen())
    self.assertFalse(rollout.batch.mask[:, 1].any())
    np.testing.assert_allclose(rollout.metrics['rollout/score'],
                               rollout.batch.scores.mean(), rtol=1e-6)
    self.assertEqual(rollout.metrics['rollout/length'], 2)

  def test_metrics_follow_samples_that_change_places(self):
    batch = types.Batch(
        tokens=jnp.arange(8).reshape(2, 2, 2), scores=jnp.array(
            [[1., 2.], [3., 0.]]),
        mask=jnp.array([[[0, 1], [1, 1]], [[1, 1], [0, 0]]], bool),
        old_logprobs=jnp.ones((2, 2, 2)).at[0, 0, 0].set(jnp.nan),
        ref_logprobs=jnp.zeros((2, 2, 2)))

    def annotators(batch, state, frozen):
      return arithmetic.keep_best(arithmetic.best_first(batch)), state

    rollout = sources.rollout(annotators)(batch, _state(), types.Frozen())
    np.testing.assert_array_equal(rollout.batch.tokens[0, 0], [2, 3])
    self.assertEqual(rollout.batch.mask.sum(), 4)
    self.assertIsNone(rollout.batch.sampled)
    self.assertEqual(rollout.metrics['rollout/score'], 2)  # of all three
    np.testing.assert_allclose(rollout.metrics['rollout/kl_k1'], 5 / 3)


class BadRewardTest(parameterized.TestCase):
  """A prompt with a reward that is NaN weighs nothing, whatever the method."""

  TOKENS = 7
  # Of prompts 1 and 4, of one sample and of all.
  BAD = np.zeros((8, 4), bool)
  BAD[1, 0] = BAD[4] = True
  ROWS = tuple(name for name, row in algorithms.ALGORITHMS.items()
               if row.source == 'prompts' and row.objective)

  def _forward(self, params, batch):
    pick = lambda table: table[batch.tokens]
    return types.PolicyOutput(
        logprobs=pick(jax.nn.log_softmax(params['policy'])),
        entropy=pick(params['policy']**2), values=pick(params['value']))

  def _chain(self, row):
    filled = lambda **fields: lambda batch, state, frozen, **unused: (
        batch.replace(**{name: field(state, batch)
                         for name, field in fields.items()}))
    nodes = [{'name': 'scale_scores'}, *(
        node for node in row.annotators if node['name'] != 'scores')]
    models = {
        'ref_logprobs': filled(ref_logprobs=lambda state, batch:
                               -jnp.cos(1. * batch.tokens) - 2),
        'old_values': filled(old_values=lambda state, batch: self._forward(
            state.params, batch).values),
        'nucleus': filled()}
    return chain_lib.chain(nodes, models), running.init(nodes)

  def _rollout(self, row, bad, mesh=1, resample=None):
    """(annotated, the batch that was scored, what is trained on, state)."""
    samples = 4 if row.more else row.samples
    annotators, statistics = self._chain(row)
    table = jax.random.normal(jax.random.key(1), (2, self.TOKENS))
    state = types.TrainState(
        step=jnp.int32(0), params={'policy': table[0], 'value': table[1]},
        opt_state=(), key=jax.random.key(0), statistics=statistics)
    seen = []

    @jax.jit
    def sampler(params, prompts, lengths, key, row_ids):
      def draw(i):
        key_ = jax.random.fold_in(key, i)
        return (jax.random.randint(key_, (samples, 5), 0, self.TOKENS),
                jax.random.uniform(key_, (samples, 5)) - 2)
      tokens, logprobs = jax.vmap(draw)(row_ids)
      at = jnp.arange(5)[None, None]
      return types.Batch(
          tokens=tokens, old_logprobs=logprobs,
          mask=(at > 0) & (at < 3 + (tokens[..., :1] > 3)))

    def score(step, batch, places):
      scores = np.sin(1. * batch.tokens.sum(-1)).astype(np.float32)
      seen.append(batch.replace(scores=scores))
      return np.where(bad[:, :samples], np.float32(np.nan), scores)

    annotated = jax.jit(sources.rollout(annotators))
    with worlds.devices(mesh):
      rollout = sources.online(
          PROMPTS, sampler, annotated, batch_size=8, seed=2, score=score,
          resample=resample and sources.Resample(
              resample, jax.jit(sources.varied(annotators))))(
                  3, state, types.Frozen())
    return annotated, seen, rollout, state

  def _step(self, row, rollout, state):
    """The gradient of a step, its metrics, and what is remembered."""
    tx = optax.trace(0.)  # which is its state
    step = jax.jit(train.make_train_step(self._forward, row.bind(), tx))
    after, metrics = step(
        state.replace(opt_state=tx.init(state.params)), rollout.batch)
    return after.opt_state.trace, metrics, rollout.statistics

  @parameterized.parameters(*ROWS)
  def test_as_if_it_had_not_been_asked(self, name):
    row = algorithms.ALGORITHMS[name]
    annotated, (drawn,), rollout, state = self._rollout(row, self.BAD)
    kept = ~self.BAD[:, :drawn.mask.shape[1]].any(axis=1)
    self.assertEqual(int(rollout.metrics['rollout/bad_rewards']),
                     int(self.BAD[:, :drawn.mask.shape[1]].sum()))
    np.testing.assert_array_equal(
        jax.device_get(rollout.batch.mask).any((1, 2)), kept)
    without = annotated(jax.tree.map(lambda x: x[kept], drawn), state, None)
    chex.assert_trees_all_close(
        {k: v for k, v in rollout.metrics.items()
         if k != 'rollout/bad_rewards'}, without.metrics, rtol=1e-5)
    gradient, *told = self._step(row, rollout, state)
    expected, *others = self._step(row, without, state)
    largest = np.abs(expected['policy']).max()
    self.assertGreater(largest, 1e-5)
    chex.assert_trees_all_close(gradient, expected, atol=1e-5 * largest)
    chex.assert_trees_all_close(told, others, rtol=1e-4, atol=1e-6)

  def test_devices_change_nothing(self):
    row = algorithms.ALGORITHMS['rloo']
    *_, one, _ = self._rollout(row, self.BAD)
    *_, three, _ = self._rollout(row, self.BAD, mesh=3)
    chex.assert_trees_all_close(
        jax.device_get(one.batch), jax.tree.map(
            lambda x: x[:8], jax.device_get(three.batch)), rtol=1e-5)
    self.assertEqual(*(float(x.metrics['rollout/bad_rewards'])
                       for x in (one, three)))

  def test_others_take_their_places(self):
    """Where a row asks on; the bad ones of all rounds are counted."""
    row = algorithms.ALGORITHMS['grpo']
    _, drawn, rollout, _ = self._rollout(row, self.BAD, resample=2)
    self.assertLen(drawn, 2)
    self.assertEqual(rollout.metrics['rollout/bad_rewards'], 10)
    self.assertTrue(rollout.batch.mask.any((1, 2)).all())
    self.assertEqual(rollout.metrics['rollout/kept'], 12 / 16)

  def test_none_is_left(self):
    bad = np.zeros((8, 4), bool)
    bad[:, 1] = True
    row = algorithms.ALGORITHMS['rloo']
    with self.assertRaisesRegex(
        errors.RewardError, r'rewards at step 3 leave none of 8 prompts: .*\(8 '
        r'of 32\)'):
      self._rollout(row, bad)


class ResampleTest(parameterized.TestCase):
  """Dynamic sampling: prompts of equal scores give way to further ones."""

  SIZE, STEP, ROUNDS = 8, 3, 3

  def _drawn(self, turn):
    """Prompts, draws and scores of a round, of 8 rows with 3 samples."""
    at = order.indices(2, self.STEP * (1 + self.ROUNDS) + turn, 8, ROWS)
    key = streams.child(_state().key, 'sampler')
    draws = np.stack([jax.random.uniform(
        jax.random.fold_in(key, turn * 8 + row), (3, 2)) for row in range(8)])
    return at, draws, self._score(draws.sum(-1))

  def _score(self, total, least=1.4):
    return (total > least).astype(np.float32)

  def _rollout(self, rounds=ROUNDS, least=1.4, by_host=False, **kwargs):

    @jax.jit
    def sampler(params, prompts, lengths, key, row_ids):
      draw = lambda i: jax.random.uniform(jax.random.fold_in(key, i), (3, 2))
      return types.Batch(
          tokens=jnp.broadcast_to(prompts[:, None], (len(prompts), 3, 2)),
          mask=jnp.ones((len(prompts), 3, 2), bool),
          old_logprobs=jax.vmap(draw)(row_ids))

    def annotators(batch, state, frozen):
      if not by_host:
        batch = batch.replace(
            scores=self._score(batch.old_logprobs.sum(axis=-1), least))
      # What clears a mask comes later than what is equal.
      return arithmetic.keep_best(batch), state

    def score(step, batch, places):
      return self._score(batch.old_logprobs.sum(axis=-1), least)

    return sources.online(
        PROMPTS, sampler, jax.jit(sources.rollout(annotators)), batch_size=8,
        seed=2, score=score if by_host else None, resample=sources.Resample(
            rounds, jax.jit(sources.varied(annotators))), **kwargs)(
                self.STEP, _state(), types.Frozen())

  @parameterized.parameters(
      {}, dict(chunk_size=4), dict(mesh=8), dict(chunk_size=4, mesh=3),
      dict(multiple=3), dict(by_host=True), dict(by_host=True, mesh=3))
  def test_against_all_that_is_drawn(self, mesh=1, **kwargs):
    rounds = [self._drawn(turn) for turn in range(1 + self.ROUNDS)]
    differ = [scores.min(1) != scores.max(1) for *_, scores in rounds]
    counts = np.cumsum([x.sum() for x in differ])
    used = int(np.argmax(counts >= 8)) + 1
    self.assertBetween(used, 2, 3)  # more than one, and not all
    expected = [np.concatenate([part[keep] for part, keep in zip(
        parts[:used], differ)])[:8] for parts in zip(*rounds)]
    with worlds.devices(mesh):
      rollout = self._rollout(**kwargs)
    batch = jax.device_get(rollout.batch)
    self.assertFalse(batch.mask[8:].any())
    at, draws, scores = expected
    np.testing.assert_array_equal(batch.tokens[:8, 0, 0], 2 * at)
    np.testing.assert_allclose(batch.old_logprobs[:8], draws, rtol=1e-6)
    np.testing.assert_array_equal(batch.scores[:8], scores)
    np.testing.assert_array_equal(batch.mask[:8].any((1, 2)), True)
    self.assertEqual(rollout.metrics['rollout/rounds'], used)
    np.testing.assert_allclose(
        rollout.metrics['rollout/kept'], counts[used - 1] / (8 * used))
    np.testing.assert_allclose(
        rollout.metrics['rollout/score'], scores.mean(), rtol=1e-6)

  def test_what_is_lacking_weighs_nothing(self):
    rollout = self._rollout(least=1.8)
    present = jax.device_get(rollout.batch.mask).any(axis=(1, 2))
    count = int(present.sum())
    self.assertBetween(count, 1, 7)
    self.assertTrue(present[:count].all())
    self.assertEqual(rollout.metrics['rollout/rounds'], 4)
    np.testing.assert_allclose(rollout.metrics['rollout/kept'], count / 32)
    none = self._rollout(least=9.)
    self.assertFalse(none.batch.mask.any())
    self.assertEqual(none.metrics['rollout/kept'], 0)

  def test_full_at_once(self):
    """As many as are needed end it; each of them is there once."""
    score = lambda total, least=0: total  # no two are equal
    with self.subTest('one round'):
      self._score = score
      rollout = self._rollout()
      self.assertEqual(rollout.metrics['rollout/rounds'], 1)
      self.assertEqual(rollout.metrics['rollout/kept'], 1)
      np.testing.assert_array_equal(
          rollout.batch.tokens[:, 0, 0], 2 * self._drawn(0)[0])

  def test_what_differs(self):
    mask = jnp.ones((6, 3, 1), bool).at[2, 2].set(False).at[3].set(False)
    scores = jnp.array([[1., 1, 1], [1, 1, 2], [1, 1, 2], [1, 2, 3],
                        [jnp.nan, 1, 1], [jnp.nan] * 3])
    keep = sources.varied(lambda batch, state, frozen: (
        arithmetic.keep_best(batch), state))
    np.testing.assert_array_equal(
        keep(types.Batch(tokens=mask, mask=mask, scores=scores), None, None),
        [False, True, False, False, True, True])


if __name__ == '__main__':
  absltest.main()
