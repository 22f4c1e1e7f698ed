"""Tests for rlhf_jax.data.kinds, common_kinds and chats."""

import json
import pathlib
import tempfile
import time

from absl.testing import absltest
from absl.testing import parameterized

from rlhf_jax import errors
from rlhf_jax.data import common_kinds
from rlhf_jax.data import examples
from rlhf_jax.data import kinds
from rlhf_jax.data import logged
from rlhf_jax.data import tables

DATA = pathlib.Path(__file__).resolve().parents[3] / 'shared' / 'data'


def chat(*texts, names=('user', 'assistant'), keys=('role', 'content')):
  """A conversation that the user begins."""
  return [dict(zip(keys, (names[i % 2], text)))
          for i, text in enumerate(texts)]


SHAREGPT = dict(names=('human', 'gpt'), keys=('from', 'value'))
ASKED, GOOD, BAD = 'Name a colour.', 'Blue.', 'Seven.'
# As published: kind, one entry, and (prompt, response, group) of its rows.
PAIR = [(ASKED, GOOD, 'chosen'), (ASKED, BAD, 'rejected')]
PUBLISHED = {
    'explicit': ('pairs', dict(prompt=ASKED, chosen=GOOD, rejected=BAD), PAIR),
    'repeated prompt': ('pairs', dict(
        prompt=ASKED, chosen=ASKED + GOOD, rejected=ASKED + BAD), PAIR),
    'implicit': ('pairs', dict(
        chosen=f'{ASKED} {GOOD}', rejected=f'{ASKED} {BAD}'), PAIR),
    'TRL, messages': ('pairs', dict(
        prompt=chat(ASKED), chosen=chat(ASKED, GOOD)[1:],
        rejected=chat(ASKED, BAD)[1:]), PAIR),
    'UltraFeedback, binarized': ('pairs', dict(
        prompt=ASKED, chosen=chat(ASKED, GOOD), rejected=chat(ASKED, BAD),
        score_chosen=8., score_rejected=2.), PAIR),
    'LLaMA-Factory': ('pairs', dict(
        conversations=chat(ASKED, **SHAREGPT),
        chosen={'from': 'gpt', 'value': GOOD},
        rejected={'from': 'gpt', 'value': BAD}), PAIR),
    'Intel orca': ('pairs', dict(
        system='', question=ASKED, chosen=GOOD, rejected=BAD), PAIR),
    'SHP': ('comparisons', dict(
        history=ASKED, human_ref_A=BAD, human_ref_B=GOOD, labels=0), PAIR),
    'LLMBar': ('comparisons', dict(
        input=ASKED, output_1=GOOD, output_2=BAD, label=1), PAIR),
    'PandaLM': ('comparisons', dict(
        instruction='Name', input='a colour.', response1=BAD, response2=GOOD,
        annotator1=2), [('Name\na colour.', GOOD, 'chosen'),
                        ('Name\na colour.', BAD, 'rejected')]),
    'TL;DR': ('comparisons', dict(
        info=dict(post='text', title='t', subreddit='s', id='x'), choice=1,
        summaries=[dict(text=BAD), dict(text=GOOD)]),
              [('SUBREDDIT: r/s\n\nTITLE: t\n\nPOST: text\n\nTL;DR:', text,
                group) for _, text, group in PAIR]),
    'Nectar': ('ranked', dict(
        prompt=f'\n\nHuman: {ASKED}\n\nAssistant: ',
        answers=[dict(answer='So-so.', rank=2.), dict(answer=BAD, rank=3.),
                 dict(answer=GOOD, rank=1.)]),
               [PAIR[0], (ASKED, 'So-so.', 'other'), PAIR[1]]),
    'UltraFeedback': ('ranked', dict(
        instruction=ASKED, completions=[
            dict(response=BAD, overall_score=1.),
            dict(response=GOOD, overall_score=9.5)]), PAIR),
    'HelpSteer': ('ranked', dict(
        prompt=ASKED, response=GOOD, helpfulness=4, verbosity=1),
                  [(ASKED, GOOD, 'other')]),
    'KTO': ('unpaired', dict(prompt=ASKED, completion=GOOD, label=True),
            [(ASKED, GOOD, 'liked')]),
    'KTO, messages': ('unpaired', dict(
        messages=chat(ASKED, BAD), label=False), [(ASKED, BAD, 'disliked')]),
    'KTO, TRL': ('unpaired', dict(
        prompt=chat(ASKED), completion=chat(ASKED, GOOD)[1:], label=1),
                 [(ASKED, GOOD, 'liked')]),
    'messages': ('messages', dict(messages=chat(ASKED, GOOD)),
                 [(ASKED, GOOD, 'demonstration')]),
    'ShareGPT': ('messages', dict(
        conversations=chat(ASKED, GOOD, **SHAREGPT)),
                 [(ASKED, GOOD, 'demonstration')]),
    'parts': ('messages', dict(messages=[
        dict(role='user', content=[dict(type='text', text=ASKED)]),
        dict(role='assistant', content=GOOD)]),
              [(ASKED, GOOD, 'demonstration')]),
    'Alpaca': ('instructions', dict(instruction=ASKED, input='', output=GOOD),
               [(ASKED, GOOD, 'demonstration')]),
    'Self-Instruct': ('instructions', dict(
        instruction=ASKED, instances=[dict(input='', output=GOOD)]),
                      [(ASKED, GOOD, 'demonstration')]),
    'prompt and completion': ('instructions', dict(
        prompt=ASKED, completion=GOOD), [(ASKED, GOOD, 'demonstration')]),
    'SciTLDR': ('instructions', dict(
        source=['Name', 'a colour.'], target=[GOOD]),
                [(ASKED, GOOD, 'demonstration')]),
    'rows': ('rows', dict(prompt=ASKED, response=GOOD, reward=1.),
             [(ASKED, GOOD, '')]),
}
SAID = chat('Hi.', 'Hello.', ASKED)
EARLIER = (('user', 'Hi.'), ('assistant', 'Hello.'))


class KindsTest(parameterized.TestCase):

  @parameterized.parameters(
      ('\n\nHuman: x y\n\nAssistant:\n', 'x y'), ('Human: Assistant:', None),
      ('Human:Assistant: x Assistant: ', 'Assistant: x'), ('Human:', None),
      ('x Human: y Assistant:', None), ('Human: x', None), ('', None))
  def test_question_of_nectar(self, prompt, asked):
    self.assertEqual(common_kinds._question(prompt),
                     prompt if asked is None else asked)

  def test_question_of_nectar_in_linear_time(self):
    began = time.monotonic()
    common_kinds._question(f'Human: x{" " * 10**6}y')
    self.assertLess(time.monotonic() - began, 1)

  def write(self, *entries):
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    path = pathlib.Path(folder.name) / 'x.jsonl'
    path.write_text(''.join(json.dumps(entry) + '\n' for entry in entries))
    return path

  def rows(self, *entries, kind=None, **kwargs):
    return logged.read(self.write(*entries), kind, **kwargs).rows

  def refusal(self, *entries, kind=None, **kwargs):
    with self.assertRaises(errors.DataError) as caught:
      self.rows(*entries, kind=kind, **kwargs)
    return str(caught.exception)

  @parameterized.parameters(*PUBLISHED)
  def test_published(self, name):
    """Found by its columns alone, and what it says of whom."""
    kind, entry, expected = PUBLISHED[name]
    self.assertEqual(logged.kind_of(self.write(entry)), kind)
    self.assertEqual([(row.prompt, row.response.strip(), row.group)
                      for row in self.rows(entry)], expected)

  @parameterized.parameters(
      (dict(messages=[*SAID, *chat(ASKED, GOOD)[1:]]),),
      (dict(conversations=chat('Hi.', 'Hello.', ASKED, GOOD, **SHAREGPT)),),
      (dict(prompt=SAID, chosen=chat('', GOOD)[1:], rejected=chat('', BAD)[1:]),
       ),
      (dict(chosen=[*SAID, *chat('', GOOD)[1:]],
            rejected=[*SAID, *chat('', BAD)[1:]]),),
      (dict(prompt=SAID, completion=GOOD, label=True),))
  def test_turns(self, entry):
    """What was said before the prompt goes with it, into formats of chats."""
    for row in self.rows(entry):
      self.assertEqual((row.prompt, row.turns), (ASKED, EARLIER))
    row = self.rows(entry)[0]
    prompt, response = examples.write_in('chatml')(row)
    text = ''.join(part if isinstance(part, str) else part.name
                   for part in (*prompt, *response))
    self.assertEqual(text, ''.join(
        f'<|im_start|>{role}\n{content}<|im_end|>' + '\n' * (content != GOOD)
        for role, content in (
            *EARLIER, ('user', ASKED), ('assistant', GOOD))))
    with self.assertRaisesRegex(
        ValueError, "format 'alpaca' has no place for the turns before 'Name a "
        "colour.'; give a format of conversations: a_lol, chat_template"):
      examples.write_in('alpaca')(row)

  def test_system(self):
    rows = self.rows(dict(system='Be brief.', messages=chat(ASKED, GOOD)))
    self.assertEqual(rows[0].turns, (('system', 'Be brief.'),))

  def test_scores(self):
    names = {'UltraFeedback, binarized': [('score', 8.), ('score', 2.)],
             'Nectar': [('rank', 1.), ('rank', 2.), ('rank', 3.)],
             'UltraFeedback': [('score', 9.5), ('score', 1.)],
             'KTO': [('liked', 1.)], 'KTO, messages': [('liked', 0.)]}
    for name, expected in names.items():
      rows = self.rows(PUBLISHED[name][1])
      self.assertEqual([row.scores[0] for row in rows], expected, name)

  def test_rows_of_one_prompt_are_one_example(self):
    """HelpSteer; the most helpful comes first."""
    rows = self.rows(*(
        dict(prompt=prompt, response=response, helpfulness=helpful)
        for prompt, response, helpful in (
            (ASKED, BAD, 0), ('Other.', 'x', 1), (ASKED, GOOD, 4))))
    self.assertEqual([(row.example, row.response) for row in rows],
                     [(0, GOOD), (0, BAD), (1, 'x')])

  def test_ties(self):
    entry = dict(prompt=ASKED, answers=[
        dict(answer=GOOD, rank=1), dict(answer=BAD, rank=1)])
    self.assertEqual({row.group for row in self.rows(entry)}, {'other'})
    tied = PUBLISHED['PandaLM'][1] | {'annotator1': 0}
    read = logged.read(self.write(tied, PUBLISHED['PandaLM'][1]))
    self.assertEqual((len(read.rows), read.skipped), (2, 2))

  def test_disliked_is_no_demonstration(self):
    options = examples.Options(
        path=str(self.write(PUBLISHED['KTO'][1])), num_pair_prompts=1,
        num_eval_prompts=1, max_prompt_length=1, max_response_length=1)
    self.assertEqual(options.shown_groups, ('liked',))
    self.assertEqual(options.prompt_format, 'alpaca')

  @parameterized.parameters(
      (dict(prompt=ASKED, chosen=GOOD, rejected=f' {GOOD}'), 'are the same'),
      (dict(chosen='Blue.', rejected='Seven.'), 'nothing in common'),
      (dict(chosen=chat('Hi.', GOOD), rejected=chat(ASKED, BAD)),
       'answer different prompts'),
      (dict(prompt=ASKED, chosen=chat('', GOOD)[1:], rejected=None),
       "'rejected'"),
      (dict(messages=chat(ASKED)), 'end with a message of the assistant'),
      (dict(messages=chat(ASKED, GOOD)[1:]), 'of the user before the answer'),
      (dict(messages=chat(ASKED, None)), "message 2 of field 'messages' has no "
       'text but null'),
      (dict(messages=chat(' ', GOOD)), "1 of field 'messages' is blank"),
      (dict(messages=[dict(role='tool', content='x')]), "has the role 'tool'"),
      (dict(messages=[*chat(ASKED), dict(role='system', content='x'),
                      *chat(ASKED, GOOD)]), 'may be the first alone'),
      (dict(prompt=ASKED, completion=GOOD, label='yes'), "field 'label'"),
      (PUBLISHED['LLMBar'][1] | {'label': 3}, r'must be one of \(1, 2\)'),
      (PUBLISHED['TL;DR'][1] | {'choice': 2}, 'choice 0 or 1'))
  def test_bad(self, entry, message):
    kind = 'pairs' if 'rejected' in entry else (
        'messages' if 'messages' in entry else None)
    self.assertRegex(self.refusal(entry, kind=kind), f'x.jsonl:1: .*{message}')

  def test_columns(self):
    entry = dict(q=ASKED, a=GOOD, b=BAD)
    names = dict(prompt='q', chosen='a', rejected='b')
    self.assertEqual([row.response for row in self.rows(
        entry, columns=names)], [GOOD, BAD])
    self.assertRegex(self.refusal(entry, columns=names | {'chosen': 'c'}),
                     "field 'c' is missing")
    # As the file calls it.
    self.assertRegex(self.refusal(entry | {'a': 3}, columns=names),
                     "field 'a' must be a string")
    with self.assertRaisesRegex(
        ValueError, "columns of kind 'pairs' must be of chosen, rejected, "
        'prompt.*, got chosn'):
      self.rows(entry, kind='pairs', columns=names | {'chosn': 'a'})

  def test_none_fits(self):
    """One line: the columns, what is near, and what to do."""
    message = self.refusal(dict(source='x', chosen_text='a', rejected_text='b'))
    self.assertRegex(
        message, r'x.jsonl:1: no kind of data has the columns chosen_text, '
        r'rejected_text, source; nearest are pairs \(chosen, rejected\) and '
        r'\w+ \(.*\); --config.data.logged.kind says which it is')
    self.assertNotIn('\n', message)

  def test_every_kind_is_told_from_the_others(self):
    """No kind is hidden by one before it."""
    of_kinds = {kind for kind, _, _ in PUBLISHED.values()}
    known = {'hh', 'hh_scored', 'stack_exchange', 'reddit', 'comet', 'gsm8k',
             'grounded_dialogue'}
    self.assertEqual(of_kinds | known | {'prompts'}, {*kinds.KINDS})
    for kind in known:
      for columns in kinds.KINDS[kind].columns:
        entry = {name if isinstance(name, str) else name[0]: '\n\nHuman: x'
                 for name in columns}
        self.assertEqual(kinds.detect(entry), kind)

  @parameterized.parameters(
      (dict(prompt=ASKED), '', ()),
      (dict(question=ASKED, id=3, reference='4'), '4', ()),
      (dict(instruction='Add.', input='2 and 2'), '', ()),
      (dict(prompt=chat(ASKED)), '', ()),
      (dict(messages=[*chat('Hi', GOOD), *chat(ASKED)]), '',
       (('user', 'Hi'), ('assistant', GOOD))))
  def test_prompts_alone(self, entry, reference, turns):
    row, = self.rows(entry)
    prompt = 'Add.\n2 and 2' if 'input' in entry else ASKED
    self.assertEqual((row.prompt, row.response, row.group, row.reference,
                      row.turns), (prompt, '', 'prompt', reference, turns))

  def test_responses_of_unknown_names_are_no_prompts_alone(self):
    self.assertRegex(self.refusal(dict(prompt=ASKED, good=GOOD)),
                     'no kind of data has the columns good, prompt')

  def test_an_implicit_prompt_ends_with_a_blank(self):
    """'Bl' is no prompt of 'Blue' and 'Black'."""
    rows = common_kinds.pairs(dict(chosen='Say: Blue', rejected='Say: Black'))
    self.assertEqual([row.response for row in rows], ['Blue', 'Black'])
    with self.assertRaises(tables.BadRowError):
      common_kinds.pairs(dict(chosen='Blue', rejected='Black'))

  @parameterized.parameters(
      ('preference/dpo_en_demo_300.json', 'pairs', 600),
      ('preference/kto_en_demo_300.json', 'unpaired', 300),
      ('preference/hh_harmless_base_test.jsonl.gz', 'hh', 4_620),
      ('preference/lolrl_hh_dev_280.jsonl', 'hh_scored', 559),
      ('instruction/alpaca_en_demo_999.json', 'instructions', 999),
      ('instruction/self_instruct_seed_tasks.jsonl', 'instructions', 175),
      ('instruction/gsm8k_test.jsonl', 'gsm8k', 1_319),
      ('dialog/faithdial_audit_gold_wow.csv', 'grounded_dialogue', 200),
      ('tldr/scitldr_A_dev.jsonl', 'instructions', 1_453))
  def test_real_files(self, name, kind, num_rows):
    path = DATA / name
    if not path.exists():
      self.skipTest(f'{path} is not there')
    self.assertEqual(logged.kind_of(path), kind)
    self.assertLen(logged.read(path).rows, num_rows)


if __name__ == '__main__':
  absltest.main()
