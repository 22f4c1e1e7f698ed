"""Tests for rlhf_jax.judging."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import twin

from rlhf_jax.evaluation import judging

OPPOSITE = {'A': 'B', 'B': 'A'}


def _answers(seed, n=12):
  rng = np.random.default_rng(seed)
  return rng.choice(judging.CHOICES, size=(2, n)).tolist()


class JudgeTest(parameterized.TestCase):

  def test_score_judge_by_hand(self):
    judge = judging.score_judge(lambda prompt, x: len(x) - len(prompt))
    self.assertEqual(judge('p', 'abc', 'ab'), 'A')
    self.assertEqual(judge('p', 'a', 'ab', reference='a'), 'B')
    self.assertEqual(judge('p', 'ab', 'cd'), 'tie')

  def test_score_judge_margin(self):
    judge = judging.score_judge(lambda _, x: len(x), margin=1)
    self.assertEqual([judge('', 'a' * n, 'aaa') for n in range(1, 6)],
                     ['B', 'tie', 'tie', 'tie', 'A'])

  def test_score_judge_has_no_position_bias(self):
    judge = judging.score_judge(lambda prompt, x: len(prompt) - len(x))
    words = ['', 'a', 'bc', 'de', 'fgh']
    for a, b in itertools.product(words, words):
      other = judge('p', b, a)
      self.assertEqual(judge('p', a, b), OPPOSITE.get(other, other))

  def test_ask_twice_by_hand(self):
    seen = []

    def judge(*query):
      seen.append(query)
      return 'A' if len(seen) < 3 else 'B'

    choices, swapped = judging.ask_twice(
        judge, ['p', 'q'], ['p1', 'q1'], ['p2', 'q2'], ['r', 's'])
    self.assertEqual((choices, swapped), (['A', 'A'], ['B', 'B']))
    self.assertEqual(seen, [
        ('p', 'p1', 'p2', 'r'), ('q', 'q1', 'q2', 's'),
        ('p', 'p2', 'p1', 'r'), ('q', 'q2', 'q1', 's')])

  def test_ask_twice_without_references(self):
    judge = judging.score_judge(lambda _, x: len(x))
    answers = judging.ask_twice(judge, ['', ''], ['ab', 'a'], ['a', 'a'])
    self.assertEqual(answers, (['A', 'tie'], ['B', 'tie']))
    self.assertEqual(judging.judge_win_rate(*answers)['kept'], 2)
    self.assertEqual(judging.judge_average(*answers), .75)

  def test_rejects(self):
    with self.assertRaisesRegex(ValueError, 'margin.*-1'):
      judging.score_judge(len, margin=-1)
    # Neither above, nor below, nor within the margin.
    with self.assertRaisesRegex(ValueError, 'score must not be NaN'):
      judging.score_judge(lambda *_: np.nan)('p', 'a', 'b')
    with self.assertRaisesRegex(ValueError, r'\[2, 2, 1, 2\]'):
      judging.ask_twice(lambda *_: 'A', 'pq', 'ab', 'c')
    with self.assertRaisesRegex(ValueError, r'\[1, 1, 1, 2\]'):
      judging.ask_twice(lambda *_: 'A', 'p', 'a', 'b', 'rs')


class JudgeWinRateTest(parameterized.TestCase):

  def test_by_hand(self):
    # Un-swapped, the second answers are A, B, tie, neither, B, A, tie: the
    # last three disagree with the first.
    out = judging.judge_win_rate(
        ['A', 'B', 'tie', 'neither', 'A', 'tie', 'neither'],
        ['B', 'A', 'tie', 'neither', 'A', 'B', 'tie'])
    self.assertEqual(out, {'kept': 4, 'win': .25, 'tie': .25, 'lose': .25,
                           'neither': .25})

  @parameterized.parameters(
      # Baheti et al. 2024, Table 3, safety: the counts that give the printed
      # percentages of 83 and of 76 samples.
      ((21, 4, 47, 11), (25.3, 4.8, 56.6, 13.3)),
      ((52, 7, 13, 4), (68.4, 9.2, 17.1, 5.3)))
  def test_printed_table(self, counts, printed):
    kinds = ('A', 'tie', 'B', 'neither')
    choices = [k for k, n in zip(kinds, counts) for _ in range(n)]
    swapped = [OPPOSITE.get(x, x) for x in choices]
    # Seventeen more prompts, on which the judge contradicts itself.
    out = judging.judge_win_rate(choices + ['A'] * 17, swapped + ['A'] * 17)
    self.assertEqual(out['kept'], sum(counts))
    np.testing.assert_allclose(
        [100 * out[k] for k in ('win', 'tie', 'lose', 'neither')], printed,
        atol=.0501)

  @parameterized.parameters('A', 'B')
  def test_position_bias(self, always):
    # objectives.md 11.7: no sample is kept; half is won on average.
    answers = [always] * 5, [always] * 5
    out = judging.judge_win_rate(*answers)
    self.assertEqual(out.pop('kept'), 0)
    self.assertTrue(np.isnan(list(out.values())).all())
    self.assertEqual(judging.judge_average(*answers), .5)

  def test_average_by_hand(self):
    # 1, 1 (un-swapped B), .5, .5, and 1, 0.
    self.assertEqual(judging.judge_average(['A', 'tie', 'A'],
                                           ['B', 'neither', 'A']), 4 / 6)
    self.assertEqual(judging.judge_average(['B'], ['A']), 0)

  @twin.few
  @twin.randomised
  def test_exchange(self, seed):
    choices, swapped = _answers(seed)
    out = judging.judge_win_rate(choices, swapped)
    # Asking in the other order first, the other method is A.
    back = judging.judge_win_rate(swapped, choices)
    self.assertEqual(
        {**back, 'win': back['lose'], 'lose': back['win']}, out)
    self.assertAlmostEqual(judging.judge_average(choices, swapped)
                           + judging.judge_average(swapped, choices), 1)

  @twin.few
  @twin.randomised
  def test_twin(self, seed):
    choices, swapped = _answers(seed)
    pairs = list(zip(choices, swapped))
    count = {'win': pairs.count(('A', 'B')), 'lose': pairs.count(('B', 'A')),
             'tie': pairs.count(('tie', 'tie')),
             'neither': pairs.count(('neither', 'neither'))}
    out = judging.judge_win_rate(choices, swapped)
    self.assertEqual(out['kept'], sum(count.values()))
    for name, number in count.items():
      if out['kept']:
        self.assertAlmostEqual(out[name], number / out['kept'])
    wins = choices.count('A') + swapped.count('B')
    losses = choices.count('B') + swapped.count('A')
    self.assertAlmostEqual(judging.judge_average(choices, swapped),
                           .5 + (wins - losses) / (4 * len(choices)))

  @parameterized.parameters(judging.judge_win_rate, judging.judge_average)
  def test_rejects(self, fn):
    with self.assertRaisesRegex(ValueError, r"^choices\[1\].*'equal'"):
      fn(['A', 'equal'], ['A', 'A'])
    with self.assertRaisesRegex(ValueError, r"swapped_choices\[0\].*'a'"):
      fn(['A', 'B'], ['a', 'A'])
    with self.assertRaisesRegex(ValueError, 'got 2 and 1'):
      fn(['A', 'B'], ['A'])
    with self.assertRaisesRegex(ValueError, 'got 0 and 0'):
      fn([], [])


if __name__ == '__main__':
  absltest.main()
