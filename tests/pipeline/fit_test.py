"""Tests for rlhf_jax.pipeline.fit: training over devices, resumed."""

import contextlib
import functools
import itertools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import numpy as np
import optax
import worlds

from rlhf_jax import errors
from rlhf_jax import objectives
from rlhf_jax import policy
from rlhf_jax import sources
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.data import corpus
from rlhf_jax.data import order
from rlhf_jax.models import transformer
from rlhf_jax.ops import packing
from rlhf_jax.parallel import sharding
from rlhf_jax.pipeline import fit as fit_lib
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.storage import files

CONFIG = transformer.make_config(
    'llama', vocab_size=19, hidden_size=8, num_layers=1, num_heads=2)


def rows(count=64, width=9, responses=1):
  """Ragged rows, so that a mean of per-device means would be wrong."""
  rng = np.random.default_rng(0)
  shape = (count, responses, width)
  lengths = rng.integers(3, width + 1, size=shape[:2])[..., None]
  column = np.arange(width)
  return types.Batch(
      tokens=rng.integers(3, 19, size=shape).astype(np.int32),
      mask=(column >= 2) & (column < lengths))


@functools.cache
def sft_step(num_microbatches=1):
  tx = optax.sgd(0.1)  # Adam's first step would amplify rounding
  return tx, jax.jit(train.make_train_step(
      functools.partial(policy.forward, CONFIG), objectives.get('sft'), tx,
      num_microbatches=num_microbatches))


def context_of(name, num_devices=1):
  """Of a stage that reads no other."""
  directory = worlds.folder() / name
  directory.mkdir()
  return worlds.Context(
      worlds.SHARED, directory, num_devices=num_devices)


def fit(context, *, batch_size=16, num_steps=5, watch=None, **loop):
  tx, step = sft_step(loop.get('num_microbatches', 1))
  with context.devices():
    state = train.place_state(
        transformer.init(CONFIG, jax.random.key(0)), tx, jax.random.key(1))
    return fit_lib.fit(
        context, state, sources.offline(rows(), batch_size=batch_size, seed=3),
        step, loop=fit_lib.Loop(num_steps, **loop), watch=watch)


@functools.cache
def members_step(members):
  tx = optax.sgd(0.1)
  return tx, jax.jit(sharding.map_members(train.make_train_step(
      functools.partial(reward_models.forward, CONFIG),
      objectives.get('bradley_terry'), tx), members))


def fit_members(name, members, num_devices=1, *, packed=False, **axes):
  """The state of an ensemble after three steps."""
  tx, step = members_step(members)
  keys = jax.random.split(jax.random.key(0), members)
  source = sources.offline_members(
      rows(responses=2), batch_size=8, seeds=range(1, members + 1))
  with worlds.devices(num_devices, **axes):
    state = train.place_state(
        reward_models.init_members(CONFIG, keys), tx, keys, members=members)
    return fit_lib.fit(context_of(name), state, source, step,
                       loop=fit_lib.Loop(3, packing=packed))[0]


class DevicesTest(absltest.TestCase):

  def test_one_device_against_eight(self):
    one, _ = fit(context_of('one'))
    eight, _ = fit(context_of('eight', 8))
    self.assertLen(jax.tree.leaves(eight.params)[0].sharding.device_set, 8)
    chex.assert_trees_all_close(
        jax.device_get(one.params), jax.device_get(eight.params), atol=1e-6)
    start = transformer.init(CONFIG, jax.random.key(0))
    self.assertGreater(
        float(np.abs(one.params['embed'] - start['embed']).max()), 1e-3)

  def test_a_batch_that_does_not_split_is_filled_up(self):
    one, eight = (fit(context_of(f'odd_{n}', n), batch_size=12)[0]
                  for n in (1, 8))
    chex.assert_trees_all_close(
        jax.device_get(one.params), jax.device_get(eight.params), atol=1e-6)

  def test_members_split_along_their_prompts(self):
    results = []
    for name, count, axes in (
        ('one', 1, {}), ('rows', 8, {}),
        ('both', 8, dict(member=2, fsdp=2))):
      state = fit_members(f'on_{name}', 4, count, **axes)
      embed = state.params['trunk']['embed']
      self.assertEqual(
          embed.addressable_shards[0].data.shape,
          (4 // axes.get('member', 1), CONFIG.vocab_size,
           CONFIG.hidden_size // axes.get('fsdp', 1)))
      results.append(jax.device_get(state.params))
    for other in results[1:]:
      chex.assert_trees_all_close(results[0], other, atol=1e-6)


class PackingTest(parameterized.TestCase):

  @parameterized.parameters((1, 1, 16), (2, 2, 32))
  def test_packed_rows_train_the_same(self, devices, parts, batch_size):
    run = lambda packing: jax.device_get(fit(
        context_of(f'packed_{devices}_{packing}', devices), packing=packing,
        batch_size=batch_size, num_microbatches=parts)[0].params)
    with (mock.patch.object(fit_lib, '_WORTHWHILE', 1),
          mock.patch.object(fit_lib.packing, 'pack', wraps=packing.pack
                            ) as pack):
      plain = run(False)
      pack.assert_not_called()
      packed = run(True)
    self.assertLen(pack.mock_calls, 5)
    chex.assert_trees_all_close(plain, packed, atol=1e-6)

  def test_all_steps_have_one_size_also_of_a_training_that_goes_on(self):
    source = sources.offline(rows(), batch_size=16, seed=3)
    needed = [packing.size_of(source(step, None, None)) for step in range(5)]
    self.assertGreater(len(set(needed)), 1)
    context = context_of('sizes')
    with mock.patch.object(fit_lib.packing, 'pack', wraps=packing.pack) as pack:
      for stop in (worlds.Stop(1), worlds.Stop()):
        context.stop = stop
        with contextlib.suppress(errors.Interrupted):
          fit(context, packing=True)
    sizes = [call.args[1] for call in pack.mock_calls]
    self.assertGreaterEqual(len(sizes), 5)
    self.assertEqual(set(sizes), {packing.largest(needed)})
    with mock.patch.object(fit_lib, '_packed_size') as size:
      fit(context, packing=True)  # it has ended
    size.assert_not_called()

  def test_rows_that_are_full_stay_as_they_are(self):
    full = rows()
    full = full.replace(mask=np.broadcast_to(
        np.arange(9) >= 2, full.mask.shape))
    tx, step = sft_step()
    with mock.patch.object(fit_lib.packing, 'pack') as pack:
      fit_lib.fit(
          context_of('full'), train.place_state(
              transformer.init(CONFIG, jax.random.key(0)), tx,
              jax.random.key(1)),
          sources.offline(full, batch_size=16, seed=3), step,
          loop=fit_lib.Loop(1, packing=True))
    pack.assert_not_called()

  def test_members(self):
    plain = fit_members('members', 2)
    packed = fit_members('packed_members', 2, 4, packed=True, data=2, member=2)
    chex.assert_trees_all_close(
        *map(jax.device_get, (plain.params, packed.params)), atol=1e-6)


class SkippedTest(absltest.TestCase):

  def test_rows_without_an_update_are_in_a_file(self):
    context = context_of('skipped')
    path = context.directory / 'skipped.json'

    def train_with(source, bad):
      def step_fn(state, batch):
        step = int(state.step)
        return state.replace(step=state.step + 1), {
            'train/skipped': np.float32(step in bad),
            'train/loss': np.float32(0)}

      state = types.TrainState(
          step=np.zeros((), np.int32), params={'w': np.zeros(())},
          opt_state={}, key=jax.random.key(0))
      fit_lib.fit(context, state, source, step_fn, loop=fit_lib.Loop(9))

    data = rows()
    for source in (
        sources.offline(data, batch_size=6, seed=3),
        sources.prioritized(data, np.arange(64), batch_size=6, seed=3)):
      with self.assertRaisesRegex(
          errors.NumericsError,
          f'5 steps in a row, up to step 7; .*; their rows are in {path}$'):
        train_with(source, {0, 2, 3, 4, 5, 6})
      told = files.read_json(path)
      self.assertEqual([line['step'] for line in told], [3, 4, 5, 6, 7])
      for line in told:
        batch = source(line['step'] - 1, None, None)
        np.testing.assert_array_equal(data.tokens[line['rows']], batch.tokens)
    train_with(source, {2})
    self.assertFalse(path.exists())

  def test_rows_of_members_and_of_rounds(self):
    prompts = corpus.Prompts(np.zeros((9, 2), np.int32), np.ones(9, np.int32))
    online = sources.online(
        prompts, None, None, batch_size=4, seed=5,
        resample=sources.Resample(1, None))
    np.testing.assert_array_equal(online.rows(3), np.concatenate(
        [order.indices(5, 6, 4, 9), order.indices(5, 7, 4, 9)]))
    members = sources.offline_members(rows(), batch_size=4, seeds=[7, 8])
    np.testing.assert_array_equal(
        members.rows(2), [order.indices(x, 2, 4, 64) for x in (7, 8)])


class ResumeTest(absltest.TestCase):

  def test_resume_is_bitwise_and_logs_each_step_once(self):
    often = dict(num_steps=7, save_every=2, log_every=1)
    whole, _ = fit(context_of('whole'), **often)
    context = context_of('halves')
    context.stop = worlds.Stop(0)  # as a signal; stops after the next step
    with self.assertRaisesRegex(errors.Interrupted, 'step 1 of halves'):
      fit(context, **often)
    context.stop = worlds.Stop()
    resumed, _ = fit(context, **often)
    self.assertEqual(context.shown, ['goes on at step 1 of 7'])
    for name in ('params', 'opt_state', 'step'):
      chex.assert_trees_all_equal(getattr(whole, name), getattr(resumed, name))
    self.assertEqual([line['step'] for line in context.lines('metrics')],
                     [1, 2, 3, 4, 5, 6, 7])

  def test_an_interruption_leaves_no_line_of_its_own(self):
    """Else a curve by lines would be another than an undisturbed one."""
    seldom = dict(num_steps=7, save_every=2, log_every=3)
    whole, halves = context_of('seldom'), context_of('seldom_halves')
    fit(whole, **seldom)
    for stop in (1, 2):
      halves.stop = worlds.Stop(stop)
      with self.assertRaises(errors.Interrupted):
        fit(halves, **seldom)
    halves.stop = worlds.Stop()
    fit(halves, **seldom)
    without = lambda context: [
        {k: v for k, v in line.items() if 'per_second' not in k}
        for line in context.lines('metrics')]
    self.assertEqual([line['step'] for line in without(whole)], [3, 6, 7])
    self.assertEqual(without(halves), without(whole))

  def test_goes_on_over_another_mesh(self):
    whole, _ = fit(context_of('unmoved'))
    context = context_of('moved', 8)
    context.stop = worlds.Stop(1)
    with self.assertRaises(errors.Interrupted):
      fit(context)
    context.stop = worlds.Stop()
    context.devices = lambda: worlds.devices(8, fsdp=4)
    moved, _ = fit(context)
    self.assertEqual(moved.params['embed'].addressable_shards[0].data.shape,
                     (CONFIG.vocab_size, CONFIG.hidden_size // 4))
    chex.assert_trees_all_close(
        jax.device_get(whole.params), jax.device_get(moved.params), atol=1e-6)

  def test_a_finished_training_reports_the_same_again(self):
    """Killed after the last checkpoint, before the stage's result."""
    context = context_of('again')
    clock = mock.Mock(monotonic=itertools.count(0, 10).__next__)
    with mock.patch.object(fit_lib, 'time', clock):
      first, metrics = fit(context)
      second, again = fit(context)
    chex.assert_trees_all_equal(first.params, second.params)
    self.assertIn('train/loss', metrics)
    self.assertEqual(
        {k: v for k, v in metrics.items() if k.startswith('train/')},
        {k: v for k, v in again.items() if k.startswith('train/')})
    # Ten to the last checkpoint, of both, and ten after it.
    self.assertEqual((metrics['seconds'], again['seconds']), (20, 20))

  def test_rate_is_per_second_of_the_whole_training(self):
    self.assertEqual(
        fit_lib.rate({'train/loss': 2., 'seconds': 4.}, 100),
        {'train/loss': 2., 'seconds': 4., 'tokens_per_second': 25.})


class WatchTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.seen = []

    def evaluate(step, state):
      self.seen.append(step)
      return {'gold': float(step), 'at': float(state.step),
              'calls': len(self.seen)}

    self.watch = fit_lib.Watch(evaluate, 2)

  def test_a_step_of_one_update_writes_no_updates(self):
    """A policy on logged responses is evaluated; its metrics are scalars."""
    context = context_of('offline')
    fit(context, num_steps=3, log_every=1, watch=self.watch)
    self.assertEqual([row['step'] for row in context.lines('metrics')],
                     [1, 2, 3])
    evaluated = context.lines('evaluation')
    self.assertEqual([row['gold'] for row in evaluated], [0, 2, 3])
    # Of the state of that step, and of no other.
    self.assertEqual([row['at'] for row in evaluated], [0, 2, 3])
    self.assertFalse((context.directory / 'updates.jsonl').exists())

  def test_nothing_is_evaluated_twice_but_the_last_step(self):
    """What it writes beside its line may have been lost in a kill."""
    context = context_of('twice')
    context.stop = worlds.Stop(2)
    with self.assertRaises(errors.Interrupted):
      fit(context, num_steps=5, watch=self.watch)
    context.stop = worlds.Stop()
    for _ in range(3):  # which may round otherwise, on other devices
      fit(context, num_steps=5, watch=self.watch)
    self.assertEqual(self.seen, [0, 2, 4, 5, 5, 5])
    self.assertEqual([row['step'] for row in context.lines('evaluation')],
                     [0, 2, 4, 5])

  def test_a_log_that_is_not_as_it_was_is_named(self):
    """Lines that are gone, or say something else, are missed for ever."""
    for number, change in enumerate((
        lambda lines: [], lambda lines: lines[:-1],
        lambda lines: [lines[0].replace('"gold": 0', '"gold": 1'), *lines[1:]],
        lambda lines: [lines[0][:9], *lines[1:]])):
      context = context_of(f'gone_{number}')
      context.stop = worlds.Stop(2)
      with self.assertRaises(errors.Interrupted):
        fit(context, num_steps=5, watch=self.watch)
      path = context.directory / 'evaluation.jsonl'
      before = path.read_text()
      path.write_text('\n'.join(change(before.splitlines())))
      context.stop = worlds.Stop()
      with self.assertRaisesRegex(errors.CheckpointError, (
          f'evaluation.jsonl is not as step 3 has left it; --redo=gone_{number}'
      )):
        fit(context, num_steps=5, watch=self.watch)
      # What a clock has said is no concern of anybody.
      path.write_text(before.replace('"time": 1', '"time": 2'))
      fit(context, num_steps=5, watch=self.watch)

  def test_updates_of_a_rollout_survive_a_resumption_once(self):
    metrics = lambda: {'train/loss': np.float32([1, 2]), 'x': np.float32(5)}
    context = context_of('online')
    for start, stop in ((1, 5), (3, 6)):  # restored at step 2
      with fit_lib._Log(context, self.watch) as log:
        log.truncate(start - 1)
        for step in range(start, stop):
          self.assertEqual(log.step(step, metrics()),
                           {'train/loss': 1.5, 'x': 5})
    updates = context.lines('updates')
    self.assertEqual(
        [(r['step'], r['update'], r['train/loss']) for r in updates],
        [(step, i, i + 1) for step in range(1, 6) for i in range(2)])
    self.assertNotIn('x', updates[0])


if __name__ == '__main__':
  absltest.main()
