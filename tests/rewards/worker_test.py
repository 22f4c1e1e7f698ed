"""Tests for rlhf_jax.rewards.worker: what a function may return."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from rlhf_jax.rewards import worker


def answer(function, drop=False):
  """To a call of three responses."""
  return worker._answer({'f': function}, {
      'name': 'f', 'prompts': ['a', 'b', 'c'], 'responses': ['d', 'e', 'f'],
      'drop': drop})


class AnswerTest(parameterized.TestCase):

  @parameterized.parameters(
      ([1, 2.5, np.float32(2), np.int8(3)], [1, 2.5, 2, 3]),
      (np.arange(2), [0, 1]), ((1.,), [1]), ([], []))
  def test_usable(self, result, values):
    for drop in (False, True):
      self.assertEqual(worker._values(result, len(values), drop), values)

  def test_each_is_asked_about_its_own(self):
    first = lambda prompts, responses: [
        2. * (prompts[i] + responses[i] == text)
        for i, text in enumerate(('ad', 'be', 'cx'))]
    self.assertEqual(answer(first), {'values': [2, 2, 0]})

  @parameterized.parameters(
      ([1., 2.], None, 'returned 2 numbers for 3'),
      ([1., 2., 3., 4.], None, 'returned 4 numbers for 3'),
      (None, None, 'a NoneType, not a list'), (1., None, 'a float, not a list'),
      (np.float32(1), None, 'a float, not a list'),
      ({1: 1, 2: 2, 3: 3}, None, 'a dict, not a list'),
      ('123', None, 'a str, not a list'),
      (np.zeros((3, 1)), 0, r'returned \[0.0\], a list, not a number'),
      ([1., None, 2.], 1, 'returned None, a NoneType, not a number'),
      ([1., 2., '3'], 2, "returned '3', a str"),
      ([1., 2., True], 2, 'returned True, a bool'),
      (np.ones(3, bool), 0, 'returned True, a bool'),
      ([1., np.bool_(True), 2.], 1, 'bool, not a number'),
      ([1., 2., np.zeros((9, 1))], 2, r'array\(\[\[0.\], \[0.\],'),
      ([0., float('nan'), 1.], 1, 'returned nan, not a finite'),
      ([0., 1., -float('inf')], 2, 'returned -inf, not a finite'),
      ([1e39, 1., 1.], 0, 'returned 1e.39, not a finite'),
      ([0., np.float32('nan'), 1.], 1, 'returned nan, not a finite'),
      ([0., 1., 10**400], 2, 'returned inf, not a finite'))
  def test_unusable(self, result, row, message):
    what = answer(lambda prompts, responses: result)
    self.assertNotIn('values', what)
    self.assertEqual(what['row'], row)
    self.assertRegex(what['error'], message)
    self.assertNotIn('\n', what['error'])

  def test_what_is_dropped(self):
    """What is no number is NaN; what is another thing is an error still."""
    bad = [None, float('nan'), -float('inf')]
    np.testing.assert_array_equal(
        answer(lambda *_: bad, drop=True)['values'], [np.nan] * 3)
    self.assertEqual(answer(lambda *_: [1., None, '3'], drop=True)['row'], 2)

  def test_what_it_raises_is_one_line(self):
    def fails(prompts, responses):
      raise SystemExit('no\nmore')
    self.assertEqual(answer(fails), {
        'error': f'raised SystemExit: no ({__file__}:'
                 f'{fails.__code__.co_firstlineno + 1})', 'row': None})


class LargestTest(absltest.TestCase):

  def test_is_that_of_float32(self):
    self.assertEqual(worker.LARGEST, float(np.finfo(np.float32).max))
    self.assertEqual(
        worker._values([-worker.LARGEST], 1, False), [-worker.LARGEST])


if __name__ == '__main__':
  absltest.main()
