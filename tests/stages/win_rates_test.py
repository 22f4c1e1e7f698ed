"""Tests for rlhf_jax.stages.win_rates, on hand-written answers of policies."""

import csv
import json
import math
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from rlhf_jax import errors
from rlhf_jax.reports import comparisons
from rlhf_jax.stages import win_rates

GOLD = {'kind': 'gold', 'margin': .1}
HTTP = {'kind': 'http', 'endpoint': 'http://localhost/v1', 'model': 'small'}
COLUMNS = ['run', 'seed', 'prompts', 'kept', 'win', 'tie', 'lose', 'neither',
           'agreement', 'win_rate']


class Stop:
  """Asks to stop when `check` has been called so many times."""

  def __init__(self, left):
    self._left = left

  def check(self, where):
    self._left -= 1
    if self._left < 0:
      raise errors.Interrupted(where)


class Context:

  def __init__(self, workdir):
    self.directory = pathlib.Path(workdir) / 'win_rates'
    self.directory.mkdir(exist_ok=True)
    self.directory_of = lambda name: pathlib.Path(workdir) / name
    self.stop = Stop(10**9)


def policy(run, seed=0):
  return {'stage': f'{run}_{seed}', 'run': run, 'seed': seed}


class WinRatesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.workdir = self.enter_context(tempfile.TemporaryDirectory())
    self.context = Context(self.workdir)
    # Of ppo, against the reference: won, lost, a tie within the margin, won;
    # against rloo: lost, lost, a tie of equal texts, lost.
    self.write('ppo', gold=[1., 2., 3., 4.], reference_gold=[0., 5., 3.05, 3.])
    self.write('rloo', gold=[6., 6., 3.2, 6.], texts='rs\nt')
    self.write('ppo', seed=1, gold=[0.] * 4, reference_gold=[1.] * 4)
    self.write('rloo', seed=1, gold=[-1.] * 4)

  def write(self, run, seed=0, texts='ab\nc', gold=None, **columns):
    directory = pathlib.Path(self.workdir) / f'{run}_{seed}'
    directory.mkdir(exist_ok=True)
    columns = {'gold': gold, 'reference_gold': [0.] * 4,
               'reference': [f'human {i}' for i in range(4)],
               'prompt': [f'prompt {i}' for i in range(4)], **columns}
    if texts is not None:
      columns['response'] = [f'{run} {seed} {x}' for x in texts]
      columns['response'][2] = 'same'
    with open(directory / 'final.jsonl', 'w') as stream:
      for i in range(4):
        row = {name: values[i] for name, values in columns.items()}
        stream.write(json.dumps(row) + '\n')

  def run_stage(self, *policies, against='reference', judge=GOLD, **kwargs):
    result = win_rates.run(
        self.context, policies=policies, against=against, judge=judge,
        **{'num_prompts': 4, **kwargs})
    with open(self.context.directory / 'win_rates.csv', newline='') as stream:
      rows = list(csv.DictReader(stream))
    return result, rows

  def answers(self):
    text = (self.context.directory / 'answers.jsonl').read_text()
    return [json.loads(line) for line in text.splitlines()]

  def asking(self, judge):
    """Has `judge`, (number, prompt, a, b, reference) -> answer, be asked."""
    self.asked = []

    def ask(*query):
      self.asked.append(query)
      return judge(len(self.asked), *query)

    return mock.patch.object(
        comparisons.http_judge, 'http_judge', lambda *_, **__: ask)

  def test_gold_against_the_reference(self):
    result, rows = self.run_stage(policy('ppo'), policy('ppo', 1))
    self.assertEqual(list(rows[0]), COLUMNS)
    self.assertEqual([list(row.values()) for row in rows], [
        ['ppo', '0', '4', '4', '0.5', '0.25', '0.25', '0.0', '1.0', '0.625'],
        ['ppo', '1', '4', '4', '0.0', '0.0', '1.0', '0.0', '1.0', '0.0']])
    self.assertEqual(result, {'policies': 2, 'prompts': 4, 'win_rate': .3125,
                              'agreement': 1.})
    self.assertEqual([path.name for path in self.context.directory.iterdir()],
                     ['win_rates.csv'])

  def test_gold_against_a_run(self):
    _, rows = self.run_stage(
        policy('rloo'), policy('ppo'), policy('ppo', 1), policy('rloo', 1),
        against='rloo')
    # The responses of one text tie, though their scores were stored apart.
    self.assertEqual(
        [[row[k] for k in ('run', 'seed', 'win', 'tie', 'lose', 'win_rate')]
         for row in rows],
        [['ppo', '0', '0.0', '0.25', '0.75', '0.125'],
         ['ppo', '1', '0.75', '0.25', '0.0', '0.875']])

  def test_first_prompts(self):
    _, rows = self.run_stage(policy('ppo'), num_prompts=2)
    self.assertEqual([rows[0][k] for k in ('prompts', 'kept', 'win')],
                     ['2', '2', '0.5'])

  def test_position_bias(self):
    with self.asking(lambda *_: 'A'):
      _, rows = self.run_stage(policy('ppo'), judge=HTTP)
    self.assertEqual([rows[0][k] for k in ('kept', 'agreement', 'win_rate')],
                     ['0', '0.0', '0.5'])
    self.assertTrue(math.isnan(float(rows[0]['win'])))

  @parameterized.parameters(False, True)
  def test_what_the_judge_sees(self, show_reference):
    with self.asking(lambda *_: 'tie'):
      self.run_stage(policy('ppo'), policy('rloo'), against='rloo', judge=HTTP,
                     num_prompts=2, show_reference=show_reference)
    human = [f'human {i}' if show_reference else None for i in range(2)]
    self.assertEqual(self.asked, [
        ('prompt 0', 'ppo 0 a', 'rloo 0 r', human[0]),
        ('prompt 1', 'ppo 0 b', 'rloo 0 s', human[1]),
        ('prompt 0', 'rloo 0 r', 'ppo 0 a', human[0]),
        ('prompt 1', 'rloo 0 s', 'ppo 0 b', human[1])])

  def test_no_question_is_asked_twice(self):
    answer = lambda number, *_: 'AB'[number % 2]
    with self.asking(answer):
      _, whole = self.run_stage(policy('ppo'), judge=HTTP)
    (self.context.directory / 'answers.jsonl').unlink()
    self.context.stop = Stop(3)
    with self.asking(answer):
      with self.assertRaises(errors.Interrupted):
        self.run_stage(policy('ppo'), judge=HTTP)
    self.context.stop = Stop(10**9)
    with open(self.context.directory / 'answers.jsonl', 'a') as stream:
      stream.write('{"answer": "ti')  # killed while it wrote

    def fails(number, *query):
      if number == 3:
        raise errors.RewardError('judge http://localhost: HTTP 503')
      return answer(number + 3)

    with self.asking(fails):
      with self.assertRaisesRegex(
          errors.RewardError, '^ppo_0, prompt 1: judge http://localhost: '):
        self.run_stage(policy('ppo'), judge=HTTP)
    self.assertLen(self.answers(), 5)
    with self.asking(lambda number, *_: answer(number + 5)):
      _, rows = self.run_stage(policy('ppo'), judge=HTTP)
    self.assertLen(self.asked, 3)
    self.assertEqual(rows, whole)
    rows = self.answers()
    self.assertLen({row['question'] for row in rows}, 8)
    self.assertEqual([(row['prompt'], row['swapped']) for row in rows],
                     [(i, s) for s in (0, 1) for i in range(4)])
    # Another model is another judge.
    with self.asking(answer):
      self.run_stage(policy('ppo'), judge=HTTP | {'model': 'large'})
    self.assertLen(self.asked, 8)

  @parameterized.parameters(
      lambda line: line.replace(b'"A"', b'"B"'),  # a valid answer, not given
      lambda line: line.replace(b'"prompt": 0', b'"prompt": 1'),
      lambda line: line.replace(b'"sha256"', b'"sha255"'),
      lambda line: b'[]', lambda line: b'5', lambda line: b'{')
  def test_damaged_answer(self, damage):
    with self.asking(lambda *_: 'A'):
      self.run_stage(policy('ppo'), judge=HTTP)
    path = self.context.directory / 'answers.jsonl'
    first, line, *others = path.read_bytes().splitlines()
    self.assertNotEqual(damage(first), first)
    path.write_bytes(b'\n'.join([line, damage(first), *others, b'']))
    with self.assertRaisesRegex(
        errors.CheckpointError, f'{path}:2 is damaged, .*; delete such lines'):
      self.run_stage(policy('ppo'), judge=HTTP)
    path.write_bytes(b'\n'.join([line, *others, b'']))
    with self.asking(lambda *_: 'A'):  # as it was told
      self.run_stage(policy('ppo'), judge=HTTP)
    self.assertLen(self.asked, 1)

  def test_waits_no_longer_than_asked_to_stop(self):
    def make(*_, sleep, **__):
      return lambda *_: sleep(1000.) or 'A'

    self.context.stop = Stop(1)  # before the question, not after it
    with mock.patch.object(comparisons.http_judge, 'http_judge', make):
      with mock.patch.object(comparisons.time, 'sleep') as sleep:
        with self.assertRaises(errors.Interrupted):
          self.run_stage(policy('ppo'), judge=HTTP)
        sleep.assert_not_called()
        comparisons._sleep(Context(self.workdir), .001)
        sleep.assert_called()


  @parameterized.parameters(
      (dict(against='dpo'), "'dpo', which is no run of seed 0; there are "
       'reference, ppo, rloo$'),
      (dict(against='ppo', only='ppo'), 'compare no run with another'),
      (dict(num_prompts=5), 'need 5 prompts, but .*final.jsonl has 4; lower'),
      (dict(judge={'kind': 'gpt'}), "kind 'gpt'; there are gold, http"),
      (dict(judge={}), 'kind None; there are'),
      (dict(judge={'kind': 'gold', 'margin': -1.}), 'margin must be >= 0'),
      (dict(judge={'kind': 'gold', 'modle': 'x'}), "argument 'modle'"),
      (dict(judge=HTTP | {'endpoint': 'x'}), "is 'x'; give a URL"),
      (dict(judge=HTTP | {'key_variable': 'UNSET_KEY'}), 'UNSET_KEY.*not set'))
  def test_refused(self, changes, message):
    changes = dict(changes)
    only = changes.pop('only', None)
    policies = [policy(run) for run in ('ppo', 'rloo') if only in (None, run)]
    with self.assertRaisesRegex(errors.ConfigError, message) as caught:
      self.run_stage(*policies, **changes)
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
      ('reference', {}, 'has no response to compare with'),
      ('reference', HTTP, 'has no response to compare with'),
      ('reference_gold', {}, 'has no gold score of the response to'),
      ('gold', {}, 'has no gold score; '),
      ('gold', {}, 'has no gold score; ', math.nan))
  def test_missing_column(self, name, judge, message, missing=None):
    self.write('ppo', **{'gold': [1.] * 4, name: [1., missing, 1., 1.]})
    with self.assertRaisesRegex(
        errors.ConfigError, f'^prompt 1 of ppo_0 {message}') as caught:
      with self.asking(lambda *_: 'A'):
        self.run_stage(policy('ppo'), judge=judge or GOLD)
    self.assertEmpty(self.asked)
    self.assertNotIn('\n', str(caught.exception))

  def test_other_prompts(self):
    self.write('rloo', gold=[1.] * 4, prompt=list('abcd'))
    with self.assertRaisesRegex(errors.CheckpointError, 'different prompts'):
      self.run_stage(policy('ppo'), policy('rloo'), against='rloo')

  def test_final_rows_are_damaged_or_not_there(self):
    for damage in ('{"prompt": ', None):
      path = pathlib.Path(self.workdir) / 'ppo_0' / 'final.jsonl'
      path.unlink()
      if damage:
        path.write_text(damage)
      with self.assertRaisesRegex(errors.CheckpointError,
                                  f'cannot read {path}: '):
        self.run_stage(policy('ppo'))


if __name__ == '__main__':
  absltest.main()
