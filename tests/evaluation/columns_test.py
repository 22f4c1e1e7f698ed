"""Tests for rlhf_jax.evaluation.columns, with numbers made by hand."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from rlhf_jax.data import reviews
from rlhf_jax.evaluation import columns
from rlhf_jax.rewards import components

GOLD, RULE = np.array([1., 2, 3, 6]), np.array([0., 0, 0, 8])
PROXY = np.array([2., 4, 6, 0])
LONG = np.float32([1, 0, 1, .5])
MEMBERS = np.array([[1., 2, 3, 4], [3, 2, 1, 8]])


def _of_scores(*, members=None, splits=None, gold=None, rule=None):
  scored = components.Scored({'long': LONG}, {}, members)
  return columns.of_scores(PROXY, scored, splits, gold=gold, rule=rule)


class ScoresTest(parameterized.TestCase):

  def test_means_and_their_errors(self):
    row = _of_scores(gold=GOLD, rule=RULE)
    for name, mean, variance in (
        ('proxy', 3, 20 / 3), ('component_long', .625, .6875 / 3),
        ('gold', 3, 14 / 3), ('rule', 2, 16)):
      self.assertAlmostEqual(row[name], mean)
      self.assertAlmostEqual(row[f'{name}_se'], (variance / 4)**.5)

  def test_no_error_of_one_prompt(self):
    row = columns.with_error('gold', np.array([2.]))
    self.assertEqual(row['gold'], 2)
    self.assertTrue(np.isnan(row['gold_se']))

  def test_members(self):
    """Variances over the two are 1, 0, 1, 4, and twice that unbiased."""
    row = _of_scores(members=MEMBERS)
    for name, expected in (
        ('member_0', 2.5), ('member_1', 3.5), ('ensemble_variance', 1.5),
        ('ensemble_variance_unbiased', 3)):
      self.assertAlmostEqual(row[name], expected)

  def test_splits(self):
    row = _of_scores(gold=GOLD, rule=RULE, splits=['b', 'a', 'b', 'b'])
    self.assertEqual(row['gold_split_a'], 2)
    self.assertTrue(np.isnan(row['gold_split_a_se']))
    self.assertAlmostEqual(row['gold_split_b'], 10 / 3)
    self.assertAlmostEqual(row['proxy_split_b'], 8 / 3)
    self.assertAlmostEqual(
        row['proxy_split_b_se'], np.std([2, 6, 0], ddof=1) / 3**.5)

  @parameterized.parameters(*itertools.product(
      (None, MEMBERS), (None, GOLD), (None, RULE), (None, ['b', 'a'] * 2)))
  def test_order(self, members, gold, rule, splits):
    row = _of_scores(members=members, gold=gold, rule=rule, splits=splits)
    scores = [*['gold'] * (gold is not None), 'proxy']
    both = lambda name: [name, f'{name}_se']
    expected = both('proxy')
    if members is not None:
      expected += ['member_0', 'member_1', 'ensemble_variance',
                   'ensemble_variance_unbiased']
    expected += both('component_long')
    for name, values in (('gold', gold), ('rule', rule)):
      expected += both(name) if values is not None else []
    for split in 'ba' if splits else '':
      for score in scores:
        expected += both(f'{score}_split_{split}')
    self.assertEqual(list(row), expected)


class DivergenceTest(absltest.TestCase):

  def test_by_hand(self):
    """[objectives.md 5.1] d = 1, -2 and d = 3; nothing off the mask."""
    logprobs = np.float32([[-1, -3, np.nan], [-1, 7, 7]])
    reference = np.float32([[-2, -1, 0], [-4, np.nan, np.inf]])
    mask = np.array([[1, 1, 0], [1, 0, 0]], bool)
    row = columns.divergence(logprobs, reference, mask)
    k3 = [np.exp(-1) - 1 + 1 + np.exp(2) - 1 - 2, np.exp(-3) - 1 + 3]
    for name, expected in (
        ('kl_k1', (-1 + 3) / 2), ('kl_k2', (2.5 + 4.5) / 2),
        ('kl_k3', np.mean(k3)), ('sqrt_kl', 3.5**.5)):
      self.assertAlmostEqual(row[name], expected, 5)
    self.assertEqual(list(row), ['kl_k1', 'kl_k2', 'kl_k3', 'sqrt_kl'])
    np.testing.assert_allclose(
        columns.log_ratio(logprobs, reference, mask), (-1, 3), rtol=1e-6)


class TextsTest(absltest.TestCase):

  def test_by_hand(self):
    """the the the, cut off; the phone, ended. Words are tokens."""
    coder = reviews.Reviews().tokenizer
    (the, phone), = coder.encode(['the phone'])
    tokens = np.array([[phone, the, the, the],
                       [phone, the, phone, coder.eos_id]])
    row = columns.of_texts(tokens, np.array([[0, 1, 1, 1]] * 2, bool),
                           ['the the the', 'the phone'], coder.eos_id)
    self.assertEqual(list(row), [
        'length', 'words', 'unfinished', 'distinct_1', 'distinct_2',
        'distinct_3', 'diversity_1', 'diversity_2'])
    np.testing.assert_allclose(
        list(row.values()),
        [2.5, 2.5, .5, 2 / 5, 2 / 5, 1 / 5, 2 / 3, 3 / 4])


if __name__ == '__main__':
  absltest.main()
