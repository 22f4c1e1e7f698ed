"""Tests for rlhf_jax.stages.common: training over devices, resumed."""

import functools
import json
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import numpy as np
import optax

from rlhf_jax import errors
from rlhf_jax import objectives
from rlhf_jax import policy
from rlhf_jax import sharding
from rlhf_jax import sources
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.models import transformer
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import fit as fit_lib
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.runner import run as run_lib
from rlhf_jax.runner import stop

CONFIG = transformer.make_config(
    'llama', vocab_size=19, hidden_size=8, num_layers=1, num_heads=2)


def _rows(count=64, width=9, responses=1):
  """Ragged rows, so that a mean of per-device means would be wrong."""
  rng = np.random.default_rng(0)
  shape = (count, responses, width)
  lengths = rng.integers(3, width + 1, size=shape[:2])[..., None]
  column = np.arange(width)
  return types.Batch(
      tokens=rng.integers(3, 19, size=shape).astype(np.int32),
      mask=(column >= 2) & (column < lengths))


@functools.cache
def _sft_step():
  tx = optax.sgd(0.1)  # Adam's first step would amplify rounding
  return tx, jax.jit(train.make_train_step(
      functools.partial(policy.forward, CONFIG), objectives.get('sft'), tx))


class CommonTest(parameterized.TestCase):

  def _context(self, name):
    workdir = tempfile.TemporaryDirectory()
    self.addCleanup(workdir.cleanup)
    context = run_lib.StageContext(
        pathlib.Path(workdir.name), name, stop.StopSignal())
    context.directory.mkdir()
    return context

  def _fit(self, context, devices, *, batch_size=16, num_steps=5, **kwargs):
    tx, step = _sft_step()
    state = train.init_state(
        transformer.init(CONFIG, jax.random.key(0)), tx, jax.random.key(1))
    source = sources.offline(_rows(), batch_size=batch_size, seed=3)
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    with mock.patch.object(sharding, 'make_mesh', lambda: mesh):
      return fit_lib.fit(context, state, source, step, num_steps=num_steps,
                        **kwargs)

  def test_one_device_against_eight(self):
    one, _ = self._fit(self._context('one'), 1)
    eight, _ = self._fit(self._context('eight'), 8)
    self.assertLen(jax.tree.leaves(eight.params)[0].sharding.device_set, 8)
    chex.assert_trees_all_close(
        jax.device_get(one.params), jax.device_get(eight.params), atol=1e-6)
    start = transformer.init(CONFIG, jax.random.key(0))
    self.assertGreater(
        float(np.abs(one.params['embed'] - start['embed']).max()), 1e-3)

  def test_a_batch_that_does_not_split_is_refused_with_both_numbers(self):
    with self.assertRaisesRegex(errors.TopologyError, '12 prompts.*data 8'):
      self._fit(self._context('odd'), 8, batch_size=12)

  def test_resume_is_bitwise_and_logs_each_step_once(self):
    whole, _ = self._fit(self._context('whole'), 1, num_steps=7, save_every=2,
                         log_every=1)
    context = self._context('halves')
    context.stop._event.set()  # as a signal does; stops after the next step
    with self.assertRaisesRegex(errors.Interrupted, 'step 1 of halves'):
      self._fit(context, 1, num_steps=7, save_every=2, log_every=1)
    context.stop._event.clear()
    resumed, _ = self._fit(context, 1, num_steps=7, save_every=2, log_every=1)
    chex.assert_trees_all_equal(whole.params, resumed.params)
    lines = (context.directory / 'metrics.jsonl').read_text().splitlines()
    self.assertEqual([json.loads(line)['step'] for line in lines],
                     [1, 2, 3, 4, 5, 6, 7])

  def test_a_finished_training_reports_the_same_again(self):
    """Killed after the last checkpoint, before the stage's result."""
    context = self._context('again')
    first, metrics = self._fit(context, 1, tokens_per_step=10)
    second, again = self._fit(context, 1, tokens_per_step=10)
    chex.assert_trees_all_equal(first.params, second.params)
    self.assertIn('train/loss', metrics)
    self.assertEqual(
        {k: v for k, v in metrics.items() if k.startswith('train/')},
        {k: v for k, v in again.items() if k.startswith('train/')})
    self.assertGreaterEqual(again['seconds'], metrics['seconds'] * 0.5)

  def test_a_step_of_one_update_writes_no_updates(self):
    """A policy on logged responses is evaluated; its metrics are scalars."""
    evaluate = lambda step, state: {'gold': float(step)}
    context = self._context('offline')
    self._fit(context, 1, num_steps=3, log_every=1, evaluate=evaluate,
              evaluate_every=2)
    read = lambda name: [json.loads(line) for line in (
        context.directory / f'{name}.jsonl').read_text().splitlines()]
    self.assertEqual([row['step'] for row in read('metrics')], [1, 2, 3])
    self.assertEqual([row['gold'] for row in read('evaluation')], [0, 2, 3])
    self.assertFalse((context.directory / 'updates.jsonl').exists())

  def test_updates_of_a_rollout_survive_a_resumption_once(self):
    metrics = lambda: {'train/loss': np.float32([1, 2]), 'x': np.float32(5)}
    context = self._context('online')
    for start, stop in ((1, 5), (3, 6)):  # restored at step 2
      with fit_lib._Log(context.directory, lambda *_: {}) as log:
        log.truncate(start - 1)
        for step in range(start, stop):
          self.assertEqual(log.step(step, metrics()),
                           {'train/loss': 1.5, 'x': 5})
    rows = [json.loads(line) for line in (
        context.directory / 'updates.jsonl').read_text().splitlines()]
    self.assertEqual(
        [(r['step'], r['update'], r['train/loss']) for r in rows],
        [(step, i, i + 1) for step in range(1, 6) for i in range(2)])
    self.assertNotIn('x', rows[0])

  def test_another_corpus_is_refused(self):
    context = self._context('gold')
    config = dict(name='reviews', num_demonstrations=4, num_pair_prompts=4,
                  num_eval_prompts=4, max_response_length=24)
    corpus = artifacts.corpus_lib.load(config, 0)
    with mock.patch.object(context, 'result_of', lambda name: {
        'corpus': corpus.fingerprint()}):
      self.assertIs(artifacts.load_corpus(context, config, 0, 'sft'), corpus)
      with self.assertRaisesRegex(errors.CheckpointError, 'not the one'):
        artifacts.load_corpus(context, config, 1, 'sft')

  def test_members_split_along_their_prompts(self):
    tx = optax.sgd(0.1)
    step = jax.jit(jax.vmap(train.make_train_step(
        functools.partial(reward_models.forward, CONFIG),
        objectives.get('bradley_terry'), tx)))
    keys = jax.random.split(jax.random.key(0), 3)
    source = sources.offline_members(
        _rows(responses=2), batch_size=8, seeds=[1, 2, 3])
    results = []
    for devices in (1, 8):
      state = jax.vmap(lambda p, k: train.init_state(p, tx, k))(
          reward_models.init_members(CONFIG, keys), keys)
      mesh = sharding.make_mesh(devices=jax.devices()[:devices])
      with mock.patch.object(sharding, 'make_mesh', lambda m=mesh: m):
        state, _ = fit_lib.fit(self._context(f'on_{devices}'), state, source,
                              step, num_steps=3)
      results.append(jax.device_get(state.params))
    chex.assert_trees_all_close(*results, atol=1e-6)


if __name__ == '__main__':
  absltest.main()
