"""Tests for rlhf_jax.data.log_kinds."""

import csv
import io
import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import datasets

from rlhf_jax import errors
from rlhf_jax.data import formats
from rlhf_jax.data import log_kinds
from rlhf_jax.data import logged

HH_SCORED = {
    'prefix': [['<|prompter|>q', '<|assistant|>a', '<|prompter|>r',
                '<|assistant|>']] * 2,
    'suffix': ['yes', 'no'],
    'reward': [-1.5, 0.25],
    'meta': {'path': '../raw/helpful-base/dev.jsonl', 'line_num': 3},
}
REDDIT = {'id': 't1', 'text': 'I  do\n', 'score': '-7', 'parent_text': 'who ?'}
TURN = {
    'dialog_idx': 4, 'response': 'r', 'original_response': 'o',
    'history': ['h', 'i', 'p'], 'knowledge': 'k', 'BEGIN': ['Hallucination'],
    'VRM': ['Disclosure'],
}
GSM8K = {
    'question': 'q', 'ground_truth': 'two\nA: 2',
    'small': {'is_correct': False, 'solution': 's'},
    'large': {'is_correct': True, 'solution': 'l'},
}
ROW = {'prompt': 'p', 'response': 'a', 'reward': 0.5}


class KindTestCase(parameterized.TestCase):

  def write(self, entries, name='log.jsonl'):
    directory = tempfile.TemporaryDirectory()
    self.addCleanup(directory.cleanup)
    path = pathlib.Path(directory.name) / name
    if isinstance(entries, bytes):
      path.write_bytes(entries)
    elif name.endswith('.parquet'):
      datasets.Dataset.from_list(entries).to_parquet(str(path))
    elif name.endswith('.csv'):
      text = io.StringIO()
      writer = csv.DictWriter(text, list(entries[0]))
      writer.writeheader()
      writer.writerows(entries)
      path.write_text(text.getvalue())
    else:
      path.write_text('\n'.join(map(json.dumps, entries)))
    return path

  def read(self, kind, *entries, name='log.jsonl', **options):
    return logged.read(self.write(entries, name), kind, **options)

  def rows(self, kind, *entries, **kwargs):
    return self.read(kind, *entries, **kwargs).rows


class HhTest(KindTestCase):

  def test_pairs(self):
    prompt = '\n\nHuman: q\n\nAssistant:'
    rows = self.rows('hh', {'chosen': prompt + ' y', 'rejected': prompt + ' n'})
    self.assertEqual(rows, [
        logged.Logged(prompt, ' y', 0, 'chosen'),
        logged.Logged(prompt, ' n', 0, 'rejected')])

  def test_scored(self):
    prompt = '\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:'
    rows = self.rows('hh_scored', HH_SCORED, HH_SCORED)
    self.assertEqual(rows[:2], [
        logged.Logged(prompt, 'yes', 0, 'chosen', scores=(('reward', -1.5),),
                      split='helpful-base'),
        logged.Logged(prompt, 'no', 0, 'rejected', split='helpful-base',
                      scores=(('reward', 0.25),))])
    self.assertEqual([row.example for row in rows], [0, 0, 1, 1])
    self.assertEqual(formats.dialogue(rows[0].prompt), [
        ('user', 'q'), ('assistant', 'a'), ('user', 'r')])

  @parameterized.parameters(
      (dict(reward=[1.0]), 'of one length, got 2, 2 and 1'),
      (dict(prefix=[], suffix=[], reward=[]), 'of one length, got 0, 0'),
      (dict(reward=[1.0, float('nan')]),
       "'reward' must be finite in float32, got nan"),
      (dict(reward=[1.0, 1e39]), r'must be finite in float32, got 1e\+39'),
      (dict(reward=[1.0, True]), "'reward' must be a number, got True"),
      (dict(suffix=['a', None]), "'suffix' must be a list of strings"),
      (dict(suffix=['a', '\ud800']), "'suffix' has a lone surrogate"),
      (dict(prefix=[['<|assistant|>'], ['<|prompter|>']]), 'different prompts'),
      (dict(prefix=[['<|assistant|>']] * 2), 'turn 1 of .*prompter'),
      (dict(prefix=[['<|prompter|>q']] * 2), 'must end with an empty'),
      (dict(prefix=[['<|prompter|>q', '<|assistant|>x']] * 2), 'must end with'),
      (dict(prefix=[[1]] * 2), "'prefix' must be a list of strings, got int"),
  )
  def test_bad(self, fields, reason):
    with self.assertRaisesRegex(errors.DataError, reason):
      self.read('hh_scored', {**HH_SCORED, **fields})


class VotesTest(KindTestCase):

  def answers(self, *answers, name='log.jsonl'):
    rows = self.rows('stack_exchange', {'question': 'q', 'answers': answers},
                     name=name)
    return [(row.response, row.group, dict(row.scores)) for row in rows]

  def test_best_first_by_score_then_votes(self):  # objectives 11.9
    got = self.answers(
        {'text': 'a', 'votes': -3, 'accepted': False},
        {'text': 'b', 'votes': 5, 'accepted': True},
        {'text': 'c', 'votes': 5, 'accepted': False},
        {'text': 'd', 'votes': 7, 'accepted': False},
        {'text': 'e', 'votes': 0, 'accepted': False})
    self.assertEqual(got, [
        ('b', 'accepted', {'votes': 5, 'score': 4}),
        ('d', 'other', {'votes': 7, 'score': 3}),
        ('c', 'other', {'votes': 5, 'score': 3}),
        ('e', 'other', {'votes': 0, 'score': -1}),
        ('a', 'other', {'votes': -3, 'score': -1})])

  def test_published_scores(self):
    # log2(1 + 5) is 3, plus 1 if selected; 0 votes and selected give 1.
    got = self.answers({'text': 'a', 'pm_score': 1, 'selected': True},
                       {'text': 'b', 'pm_score': 4, 'selected': True},
                       {'text': 'c', 'pm_score': 1, 'selected': False},
                       {'text': 'd', 'pm_score': 0, 'selected': False},
                       name='log.parquet')
    self.assertEqual(got, [
        ('b', 'accepted', {'score': 4}), ('c', 'other', {'score': 1}),
        ('a', 'accepted', {'score': -1}), ('d', 'other', {'score': -1})])

  def test_no_answers(self):
    read = self.read('stack_exchange', {'question': 'q', 'answers': []},
                     {'question': 'q', 'answers': [{'text': 't', 'score': 1}]})
    self.assertEqual((len(read.rows), read.empty), (1, 1))

  @parameterized.parameters(
      (dict(text='t'), 'none of the fields votes, upvotes, score, pm_score'),
      (dict(text='t', votes=1.5), "'votes' must be whole, got 1.5"),
      (dict(text='t', votes=2**31), "'votes' must be in "),
      (dict(text='t', votes=1, accepted=2), 'must be true or false, got 2'),
      (dict(votes=1), "'text' is missing"),
  )
  def test_bad_answer(self, answer, reason):
    with self.assertRaisesRegex(errors.DataError, reason):
      self.answers(answer)

  def test_reddit(self):
    read = self.read('reddit', REDDIT, {**REDDIT, 'score': '66'},
                     {**REDDIT, 'text': 'a ' * 101},
                     {**REDDIT, 'parent_text': 'a ' * 101},
                     {**REDDIT, 'text': 'a ' * 100},
                     {**REDDIT, 'text': ' '}, {**REDDIT, 'parent_text': ''},
                     name='log.csv')
    self.assertEqual(read.rows[:2], [
        logged.Logged('who ?', 'I do', 0, 'down',
                      scores=(('votes', -7.0), ('up', 0.0))),
        logged.Logged('who ?', 'I do', 1, 'up',
                      scores=(('votes', 66.0), ('up', 1.0)))])
    self.assertEqual((len(read.rows), read.skipped, read.empty), (3, 2, 2))
    self.assertLen(self.rows('reddit', REDDIT, max_words=2), 1)
    with self.assertRaisesRegex(errors.DataError, '1 blank or left out'):
      self.read('reddit', REDDIT, max_words=1)

  @parameterized.parameters(
      (dict(score='0'), 'score is 0'), (dict(score=''), 'must be a number'))
  def test_bad_comment(self, fields, reason):
    with self.assertRaisesRegex(errors.DataError, f'log.csv:2: .*{reason}'):
      self.read('reddit', {**REDDIT, **fields}, name='log.csv')

  def test_file_of_another_kind(self):
    with self.assertRaisesRegex(errors.DataError, "'score' is missing"):
      self.read('reddit', ROW)


class GroundedDialogueTest(KindTestCase):

  def test_edited_and_original(self):
    shared = dict(input='k', history=('h', 'i'))
    self.assertEqual(self.rows('grounded_dialogue', TURN), [
        logged.Logged('p', 'r', 0, 'edited', scores=(('faithful', 1.),),
                      **shared),
        logged.Logged('p', 'o', 0, 'original', scores=(('faithful', 0.),),
                      **shared)])

  @parameterized.parameters(
      (['Entailment'], (('faithful', 1.),)),
      (['Hallucination', 'Entailment'], (('faithful', 0.),)),
      (['Generic'], ()), ([], ()), (None, ()),
  )
  def test_what_begin_says_of_a_response_left_alone(self, begin, scores):
    rows = self.rows('grounded_dialogue', {
        **TURN, 'original_response': None, 'BEGIN': begin})
    self.assertEqual([(row.group, row.scores) for row in rows],
                     [('edited', scores)])

  def test_dialogue_of_turns(self):
    turns = [{'speaker': 'Apprentice', 'text': 'p'}, TURN,
             {**TURN, 'history': []}]
    read = self.read('grounded_dialogue', {'utterances': turns},
                     {'utterances': turns[1:2]})
    self.assertEqual([row.example for row in read.rows], [0, 0, 1, 1])
    self.assertEqual(read.skipped, 1)

  def test_audit(self):
    entry = {'evidence': 'k', 'history': 'p', 'response': 'r',
             'BEGIN': 'Partial Hallucination', 'VRM': 'disclosure'}
    read = self.read(
        'grounded_dialogue', entry, {**entry, 'BEGIN': ''},
        dict.fromkeys(entry, ''), name='log.csv')
    self.assertEqual(read.rows, [
        logged.Logged('p', 'r', 0, 'human', 'k', scores=(('faithful', 0.),)),
        logged.Logged('p', 'r', 1, 'human', 'k')])
    self.assertEqual(read.empty, 1)

  def test_wizard_of_wikipedia(self):
    def turn(speaker, text, **checked):
      return {'speaker': speaker, 'text': text, 'checked_sentence': checked}

    read = self.read('grounded_dialogue', {'dialog': [
        turn('0_Wizard', 'first', self='k'),  # answers nothing
        turn('1_Apprentice', 'a'),
        turn('0_Wizard', 'w', topic_0='k'),
        turn('1_Apprentice', 'b'),
        turn('0_Wizard', 'x', no_passages_used='no_passages_used'),
        turn('0_Wizard', 'y'),
        turn('0_Wizard', 'z', topic_1='l'),
    ]})
    self.assertEqual(read.rows, [
        logged.Logged('a', 'w', 0, 'human', 'k', ('first',)),
        logged.Logged('y', 'z', 1, 'human', 'l',
                      ('first', 'a', 'w', 'b', 'x'))])
    self.assertEqual(read.skipped, 3)

  @parameterized.parameters(
      (dict(knowledge=' '), "'knowledge' is blank"),
      (dict(history='p'), "'history' must be a list, got str"),
      (dict(dialog=[dict(speaker='x', text='')]), 'Wizard or Apprentice'),
      (dict(dialog=[dict(speaker='0_Wizard', text='', checked_sentence=[1])]),
       "'checked_sentence' must be an object"),
  )
  def test_bad(self, fields, reason):
    with self.assertRaisesRegex(errors.DataError, reason):
      self.read('grounded_dialogue', {**TURN, **fields})


class CometTest(KindTestCase):

  def test_atomic10x(self):
    entry = {'head': 'X pays', 'relation': 'xNeed', 'tail': 'money',
             'split': 'val', 'rec_0.9': True, 'p_valid_model': 0.75}
    self.assertEqual(self.rows('comet', entry), [logged.Logged(
        'X pays', 'money', 0, 'model', 'xNeed', split='val',
        scores=(('p_valid_model', 0.75),))])
    with self.assertRaisesRegex(errors.DataError, r'must be in \[0, 1\]'):
      self.read('comet', {**entry, 'p_valid_model': 1.5})
    with self.assertRaisesRegex(errors.DataError, "'relation' is blank"):
      self.read('comet', {**entry, 'relation': ''})

  def test_atomic2020_has_no_header(self):
    path = self.write(b'X "pays\txNeed\tmoney\nX runs\txAttr\tnone\n',
                      'test.tsv')
    self.assertEqual(logged.read(path, 'comet').rows, [
        logged.Logged('X "pays', 'money', 0, 'human', 'xNeed'),
        logged.Logged('X runs', 'none', 1, 'human', 'xAttr')])

  def test_generations(self):
    rows = self.rows('comet', {
        'head': 'X pays', 'relation': 'xNeed', 'tails': ['a', 'b'],
        'generations': ['c'], 'greedy': 'c'})
    self.assertEqual(
        [(row.response, row.group, row.reference) for row in rows],
        [('a', 'human', 'a'), ('b', 'human', 'a'), ('c', 'model', 'a')])
    self.assertEqual({row.example for row in rows}, {0})


class Gsm8kTest(KindTestCase):

  def test_answers(self):
    rows = self.rows('gsm8k', {'question': 'q', 'answer': 'two\n#### 2'})
    self.assertEqual(rows, [logged.Logged(
        'q', 'two\n#### 2', 0, 'human', scores=(('correct', 1.),),
        reference='2')])

  def test_solutions_best_first(self):
    rows = self.rows('gsm8k', GSM8K)
    self.assertEqual(
        [(row.response, row.group, row.scores, row.reference)
         for row in rows],
        [('l', 'large', (('correct', 1.),), '2'),
         ('s', 'small', (('correct', 0.),), '2')])

  def test_bad(self):
    with self.assertRaisesRegex(errors.DataError, "'ground_truth' has no line"):
      self.read('gsm8k', {**GSM8K, 'ground_truth': 'two'})
    with self.assertRaisesRegex(errors.DataError, 'must be true or false'):
      self.read('gsm8k', {**GSM8K, 'small': {'solution': '', 'is_correct': ''}})

  @parameterized.parameters(
      ('so 2\n#### 1,080', '1080'), ('A: $18 ', '18'), ('A: 1\nA: 2', '2'),
      ('a #### 3', '3'), ('', None), ('####', None),
      ('#### \n5', None), ('####5\nso', '5'),
      # Lines go first; without them the last after white space counts.
      ('#### 5\nso A: 6', '5'), ('A: 1 A: 2', '2'), ('so A: 4 .\nend', '4 .'),
      ('USA: 5', None), ('it A:', None),
  )
  def test_final_answer(self, text, want):
    self.assertEqual(log_kinds.final_answer(text), want)


class RowsTest(KindTestCase):

  def test_columns(self):
    entry = {'q': 'p', 'response': 'r', 'stars': '4', 'who': 'me',
             'split': 's', 'reference': 't'}
    columns = {'prompt': 'q', 'reward': 'stars', 'group': 'who'}
    self.assertEqual(self.rows('rows', entry, columns=columns), [
        logged.Logged('p', 'r', 0, 'me', scores=(('reward', 4.),), split='s',
                      reference='t')])
    with self.assertRaisesRegex(errors.DataError, "'whom' is missing"):
      self.read('rows', entry, columns={**columns, 'group': 'whom'})

  @parameterized.parameters(True, ([1],), 1.5)
  def test_bad_id(self, value):
    with self.assertRaisesRegex(errors.DataError, 'a string or an integer'):
      self.read('rows', {**ROW, 'prompt_id': value})


if __name__ == '__main__':
  absltest.main()
