"""Tests for rlhf_jax.pipeline.leftover: what A-LOL leaves out."""

import types

from absl.testing import absltest
import numpy as np
import worlds

from rlhf_jax.evaluation import texts as texts_lib
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import leftover


class FilteredTest(absltest.TestCase):

  def test_by_hand(self):
    advantages = np.array([[0., -1], [2, 3], [-4, 0]])  # 0 is not positive
    present = np.array([[True, True], [True, True], [True, False]])
    group = np.array([[0, 1], [0, 0], [1, -1]])
    shares = leftover.filtered(advantages, present, group, ['up', 'down'])
    self.assertEqual(shares, {
        'filtered_share': 3 / 5, 'filtered_up': 1 / 3, 'filtered_down': 1})

  def test_nothing_is_counted_as_left_out(self):
    shares = leftover.filtered(
        np.array([[0., -1], [2, 3]]), np.array([[True, False], [True, True]]),
        np.array([[0, -1], [0, 0]]), ['up', 'down'])
    self.assertEqual(shares, {
        'filtered_share': 1 / 3, 'filtered_up': 1 / 3, 'filtered_down': None})


class ReportTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    rows = worlds.corpus().demonstrations
    at = np.arange(24).reshape(12, 2)
    self.tokens, mask = rows.tokens[at, 0], rows.mask[at, 0].copy()
    mask[4, 0] = False
    self.values = np.linspace(-1, 1, 9).astype(np.float32)
    self.scores = np.random.default_rng(0).normal(
        size=(12, 2)).astype(np.float32)
    group = np.where(mask.any(axis=-1), np.array([[0, 1]]), -1)
    log = artifacts.Log(dict(tokens=self.tokens, mask=mask, group=group,
                             scores=self.scores), ['up', 'down'], 'corpus', 9)
    context = worlds.Context(worlds.untrained())
    self.world = types.SimpleNamespace(
        context=context, log=log, corpus=worlds.corpus())
    self.shares = leftover.report(self.world, self.values)
    # (advantage, example, response) of all that are trained on.
    self.expected = sorted(
        (float(self.scores[i, k] - self.values[i]), i, k)
        for i in range(9) for k in range(2) if (i, k) != (4, 0))

  def test_share_is_a_count_by_hand(self):
    self.assertLen(self.expected, 17)
    for name, of in (('share', (0, 1)), ('up', (0,)), ('down', (1,))):
      left = [a <= 0 for a, _, k in self.expected if k in of]
      self.assertEqual(
          self.shares[f'filtered_{name}'], sum(left) / len(left))
    self.assertBetween(self.shares['filtered_share'], .1, .9)

  def test_line(self):
    line, = self.world.context.shown
    shares = {k: f'{v:.1%}' for k, v in self.shares.items()}
    self.assertStartsWith(
        line, f'{shares["filtered_share"]} of 17 logged responses have no '
        f'positive advantage (up {shares["filtered_up"]}, '
        f'down {shares["filtered_down"]}); the lowest are in ')
    self.assertEndsWith(line, '/lowest.jsonl')

  def test_lowest_in_order_and_no_missing_response(self):
    rows = self.world.context.lines('lowest')
    self.assertLen(rows, 17)  # fewer than LOWEST, without the missing one
    for row, (advantage, i, k) in zip(rows, self.expected):
      self.assertAlmostEqual(row['advantage'], advantage, 6)
      self.assertAlmostEqual(row['score'], float(self.scores[i, k]), 6)
      self.assertAlmostEqual(row['value'], float(self.values[i]), 6)
      self.assertEqual(row['group'], ('up', 'down')[k])
      [prompt], [response] = texts_lib.decode(
          worlds.corpus().tokenizer, self.tokens[i, k],
          worlds.corpus().demonstrations.mask[2 * i + k, 0])
      self.assertEqual((row['prompt'], row['response']), (prompt, response))

  def test_no_more_than_the_lowest(self):
    self.enter_context(absltest.mock.patch.object(leftover, 'LOWEST', 3))
    leftover.report(self.world, self.values)
    rows = self.world.context.lines('lowest')
    self.assertEqual([row['advantage'] for row in rows],
                     [a for a, _, _ in self.expected[:3]])


if __name__ == '__main__':
  absltest.main()
