"""Tests for rlhf_jax.reports.comparisons; the stage's are of win_rates."""

import math
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from rlhf_jax import errors
from rlhf_jax.reports import comparisons

HTTP = {'kind': 'http', 'endpoint': 'http://localhost/v1', 'model': 'small'}
POLICY = {'stage': 'ppo_0', 'run': 'ppo', 'seed': 0}


def rows(name, gold=(1., 2.), **columns):
  columns = {'prompt': ['p', 'q'], 'response': [f'{name} p', f'{name} q'],
             'gold': gold, 'reference': ['human p', 'human q'],
             'reference_gold': [3., 4.], **columns}
  return [{key: values[i] for key, values in columns.items()
           if values is not None} for i in range(2)]


def pair(mine, against=None, gold=False, show_reference=False):
  return comparisons.pair(POLICY, mine, against, gold=gold,
                          show_reference=show_reference)


class PairTest(parameterized.TestCase):

  def test_with_references(self):
    pairs = pair(rows('ppo'), gold=True, show_reference=True)
    self.assertEqual((pairs.prompts, pairs.responses, pairs.others),
                     (['p', 'q'], ['ppo p', 'ppo q'], ['human p', 'human q']))
    self.assertIsNone(pairs.references)  # they are what it is compared with
    self.assertEqual(pairs.gold, {
        ('p', 'ppo p'): 1., ('q', 'ppo q'): 2., ('p', 'human p'): 3.,
        ('q', 'human q'): 4.})

  def test_with_another_policy(self):
    other = rows('rloo', gold=[5., 6.], response=['ppo p', 'rloo q'])
    pairs = pair(rows('ppo'), other, gold=True, show_reference=True)
    self.assertEqual(pairs.others, ['ppo p', 'rloo q'])
    self.assertEqual(pairs.references, ['human p', 'human q'])
    # One text has one score.
    self.assertEqual(pairs.gold, {
        ('p', 'ppo p'): 5., ('q', 'ppo q'): 2., ('q', 'rloo q'): 6.})
    self.assertIsNone(pair(rows('ppo'), other).references)

  @parameterized.parameters(
      {'gold': None}, {'gold': [None, None]}, {'gold': [math.nan, 0.]})
  def test_gold_is_needed_by_its_judge_alone(self, gold):
    self.assertEmpty(pair(rows('ppo', gold)).gold)
    with self.assertRaisesRegex(
        errors.ConfigError, '^prompt 0 of ppo_0 has no gold score; its'):
      pair(rows('ppo', gold), gold=True)

  def test_of_another_policy_without_gold(self):
    with self.assertRaisesRegex(
        errors.ConfigError, 'has no gold score of the response to compare'):
      pair(rows('ppo'), rows('rloo', None), gold=True)

  def test_references_are_needed_where_they_are_shown(self):
    other = rows('rloo')
    mine = rows('ppo', reference=['human p', None])
    self.assertEqual(pair(mine, other).others, ['rloo p', 'rloo q'])
    for against, message in ((None, 'no response to compare with'),
                             (other, 'no reference')):
      with self.assertRaisesRegex(
          errors.ConfigError, f'^prompt 1 of ppo_0 has {message}'):
        pair(mine, against, show_reference=True)


class AnswersTest(absltest.TestCase):

  def test_a_link_is_not_followed(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    (folder / 'victim').write_text('precious')
    (folder / 'answers.jsonl').symlink_to(folder / 'victim')
    with self.assertRaisesRegex(errors.CheckpointError, 'answers.jsonl: a li'):
      comparisons.Answers(folder / 'answers.jsonl', HTTP)
    self.assertEqual((folder / 'victim').read_text(), 'precious')

  def test_another_answer_is_not_believed(self):
    path = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()), 'answers.jsonl')
    query = 'p', 'a', 'b', None
    comparisons.Answers(path, HTTP).ask(lambda *_: 'A', query)
    kept = comparisons.Answers(path, HTTP)
    self.assertEqual(kept.ask(lambda *_: 'B', query), 'A')  # it is not asked
    path.write_bytes(path.read_bytes().replace(b'"A"', b'"B"'))
    with self.assertRaisesRegex(errors.CheckpointError, 'jsonl:1 is damaged'):
      comparisons.Answers(path, HTTP)

  def test_disk_full(self):
    path = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()), 'answers.jsonl')
    answers = comparisons.Answers(path, HTTP)
    answers.ask(lambda *_: 'A', ('p', 'a', 'b', None))
    before = path.read_bytes()

    class Full:
      """Writes half a line and says so."""

      def __init__(self, stream):
        self._stream = stream
        self.fileno, self.truncate = stream.fileno, stream.truncate

      def __enter__(self):
        return self

      def __exit__(self, *unused_exc):
        self._stream.close()

      def write(self, line):
        return self._stream.write(line[:len(line) // 2])

    opened = answers._open
    with mock.patch.object(answers, '_open', lambda: Full(opened())):
      with self.assertRaisesRegex(errors.CheckpointError, 'disk full; free'):
        answers.ask(lambda *_: 'A', ('q', 'a', 'b', None))
    self.assertEqual(path.read_bytes(), before)


if __name__ == '__main__':
  absltest.main()
