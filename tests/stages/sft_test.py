"""Tests for rlhf_jax.stages.sft, against one forward pass by hand."""

import dataclasses
import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import worlds

from rlhf_jax import errors
from rlhf_jax import policy as policy_lib
from rlhf_jax import streams
from rlhf_jax.data import order
from rlhf_jax.models import transformer
from rlhf_jax.pipeline import artifacts
from rlhf_jax.stages import sft

BATCH, STEPS = 8, 3
NODE = dict(
    model=worlds.MODEL, num_steps=STEPS, batch_size=BATCH, num_microbatches=1,
    packing=False, aggregate='token',
    optimizer=dict(learning_rate=1e-2, schedule='constant'))


def run(context=None, *, part='policy', seed=0, save_every=100, **changes):
  """(context, result) of the stage."""
  context = context or worlds.Context(worlds.SHARED)
  return context, sft.run(
      context, seed=seed, data=worlds.DATA, upstream={}, part=part,
      node=NODE | changes, training=dict(save_every=save_every, log_every=1))


@functools.cache
def usual():
  return run()


def losses(context):
  return [line['train/loss'] for line in context.lines('metrics')]


def params(context):
  return artifacts.restore_policy(context.directory).params


def first_loss(aggregate, part='policy', seed=0):
  """That of the first batch, with the initial weights."""
  weights = transformer.init(
      worlds.config(), streams.key(seed, 'sft', part, 'weights'))
  rows = worlds.corpus().demonstrations
  at = order.indices(streams.number(seed, 'sft', part, 'order'), 0, BATCH,
                     len(rows.tokens))
  batch = jax.tree.map(lambda x: x[at], rows)
  out = jax.jit(functools.partial(policy_lib.forward, worlds.config()))(
      weights, batch)
  logprobs = np.where(batch.mask, np.asarray(out.logprobs, np.float64), 0)
  lengths = batch.mask.sum(axis=-1)
  sums = -logprobs.sum(axis=-1)
  return {'token': sums.sum() / lengths.sum(), 'sequence': sums.mean(),
          'sequence_mean': (sums / lengths).mean()}[aggregate]


class LossTest(parameterized.TestCase):

  def test_lengths_differ(self):
    """Or the aggregates would say the same."""
    self.assertGreater(np.ptp(
        worlds.corpus().demonstrations.mask.sum(axis=-1)), 2)
    self.assertGreater(
        abs(first_loss('token') - first_loss('sequence_mean')), 1e-3)

  @parameterized.parameters('token', 'sequence', 'sequence_mean')
  def test_first_loss_is_that_of_the_aggregate(self, aggregate):
    context, _ = run(aggregate=aggregate) if aggregate != 'token' else usual()
    self.assertAlmostEqual(
        losses(context)[0] / first_loss(aggregate), 1, delta=1e-5)

  def test_a_part_has_weights_and_an_order_of_its_own(self):
    context, _ = run(part='trunk_1')
    self.assertAlmostEqual(
        losses(context)[0] / first_loss('token', 'trunk_1'), 1, delta=1e-5)
    self.assertGreater(
        abs(first_loss('token', 'trunk_1') - first_loss('token')), 1e-3)

  def test_learns_and_says_of_what(self):
    context, result = usual()
    self.assertLess(losses(context)[-1], losses(context)[0] - .05)
    self.assertAlmostEqual(result['loss'], losses(context)[-1], 4)
    self.assertEqual(result['corpus'], worlds.corpus().fingerprint())
    self.assertEqual(result['parameters'], sum(
        x.size for x in jax.tree.leaves(params(context))))
    self.assertEqual(result['frozen_parameters'], 0)
    self.assertGreater(result['tokens_per_second'], 0)

  def test_rows_are_packed_where_the_node_says_so(self):
    for packing in (False, True):
      loop = worlds.loop_of(lambda packing=packing: run(packing=packing))
      self.assertIs(loop.packing, packing)


class StageTest(parameterized.TestCase):

  def test_resumed_in_the_middle_bitwise(self):
    context = worlds.Context(worlds.SHARED, stop=worlds.Stop(1))
    with self.assertRaises(errors.Interrupted):
      run(context)
    self.assertLess(len(losses(context)), STEPS)
    context.stop = worlds.Stop()
    run(context)
    self.assertEqual(losses(context), losses(usual()[0]))
    jax.tree.map(np.testing.assert_array_equal, params(context),
                 params(usual()[0]))

  def test_format_of_the_prompts_is_shown_once(self):
    """With one example, as the model sees it; the world has no format."""
    self.assertEmpty([line for line in usual()[0].shown if 'format' in line])
    corpus = dataclasses.replace(worlds.corpus(), format='alpaca')
    with mock.patch.object(sft.load_lib, 'load', return_value=corpus):
      context, _ = run(num_steps=0)
      trunk, _ = run(num_steps=0, part='trunk')
    line, = [line for line in context.shown if 'format' in line]
    self.assertEqual(line, "prompts are written in the format 'alpaca', such "
                     f'as {corpus.example()}')
    self.assertNotIn('\n', line)
    self.assertEmpty([line for line in trunk.shown if 'format' in line])

  def test_a_tokenizer_that_does_not_fit_is_refused(self):
    corpus = worlds.corpus()
    rows, size = corpus.demonstrations, corpus.tokenizer.vocab_size
    rows = rows.replace(tokens=np.where(rows.mask, rows.tokens, size))
    with mock.patch.object(
        sft.load_lib, 'load',
        return_value=dataclasses.replace(corpus, demonstrations=rows)):
      with self.assertRaisesRegex(
          errors.DataError, f'token id {size} is outside'):
        run()


if __name__ == '__main__':
  absltest.main()
