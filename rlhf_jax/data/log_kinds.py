"""How one entry of a file of each kind becomes logged responses.

Every function maps an entry to a list of `Logged`, with None for a response
that it leaves out. `example` is the number of the example within its entry,
or a string that names it in the whole file; `logged` numbers them. Texts are
as in the file if nothing else is said.

Raises of all of them: BadRowError, for `logged` to name the line.
"""

from collections.abc import Mapping
import pathlib
import re

from rlhf_jax.data import fields
from rlhf_jax.data import readers
from rlhf_jax.data import tables

Logged = readers.Logged
Responses = list[Logged | None]

_TAGS = {'<|prompter|>': 'Human', '<|assistant|>': 'Assistant'}
_VOTES = ('votes', 'upvotes', 'score', 'pm_score')
_ACCEPTED = ('accepted', 'selected', 'is_accepted')
_FINAL = re.compile(r'(?<!\S)(?:####|A:)')
_FINAL_LINE = re.compile(rf'^{_FINAL.pattern}.*$', re.MULTILINE)
ROW = ('prompt', 'response', 'reward', 'group', 'split', 'prompt_id',
        'reference')


def hh(entry: Mapping) -> Responses:
  """Anthropic HH: the dialogues 'chosen' and 'rejected', without scores."""
  pair = readers.split_pair(entry)
  return [Logged(pair.prompt, pair.chosen, 0, 'chosen'),
          Logged(pair.prompt, pair.rejected, 0, 'rejected')]


def hh_scored(entry: Mapping) -> Responses:
  r"""HH with the score of a reward model, github.com/abaheti95/LoL-RL.

  Fields, each a list with one item for each of K responses: 'prefix', the
  turns '<|prompter|>...', '<|assistant|>...', ..., '<|assistant|>', the same
  for all; 'suffix', the response; 'reward'. The first is the chosen one. The
  prompt is rebuilt as '\n\nHuman: ...\n\nAssistant:'; the split is the
  directory of meta.path, such as 'helpful-base'.
  """
  prefixes = fields.objects(entry, 'prefix', list, 'lists')
  responses = fields.texts(entry, 'suffix')
  rewards = fields.numbers(entry, 'reward')
  sizes = {len(prefixes), len(responses), len(rewards)}
  if len(sizes) > 1 or not prefixes:
    raise tables.BadRowError(
        'prefix, suffix and reward must be of one length, got '
        f'{len(prefixes)}, {len(responses)} and {len(rewards)}')
  if any(prefix != prefixes[0] for prefix in prefixes):
    raise tables.BadRowError("field 'prefix' holds different prompts")
  prompt = _dialogue(fields.texts({'prefix': prefixes[0]}, 'prefix'))
  path = entry['meta'].get('path') if isinstance(
      entry.get('meta'), dict) else None
  split = pathlib.PurePath(path).parent.name if isinstance(path, str) else ''
  return [
      Logged(prompt, response, 0, 'rejected' if index else 'chosen',
             scores=(('reward', reward),), split=split)
      for index, (response, reward) in enumerate(zip(responses, rewards))
  ]


def _dialogue(turns: list[str]) -> str:
  """Turns that begin with the tag of their speaker as an HH dialogue."""
  parts = []
  for index, turn in enumerate(turns):
    tag = list(_TAGS)[index % 2]
    if not turn.startswith(tag):
      raise tables.BadRowError(
          f"turn {index + 1} of field 'prefix' does not start with {tag!r}")
    parts.append(f'\n\n{_TAGS[tag]}: {turn.removeprefix(tag)}')
  if len(turns) % 2 or not turns or turns[-1].strip() != '<|assistant|>':
    raise tables.BadRowError(
        "field 'prefix' must end with an empty '<|assistant|>' turn")
  return ''.join(parts[:-1]) + '\n\nAssistant:'


def stack_exchange(entry: Mapping) -> Responses:
  """A question and its answers, as Beeching et al. 2023 publish them.

  huggingface.co/datasets/HuggingFaceH4/stack-exchange-preferences. Texts are
  HTML there, and stay so.

  Fields: 'question'; 'answers', a list of objects with 'text'; 'votes',
  'upvotes' or 'score', net upvotes, an integer; 'accepted', 'selected' or
  'is_accepted' (false if none is there). Instead of votes, 'pm_score': their
  score log2(1 + upvotes), rounded, plus 1 if accepted, or -1 for less than 0.

  The score is that of Zhu et al. 2023, section 4.1 (`ops.labels`; objectives
  11.9), which differs only at 0 votes: -1. `logged` computes it from votes.
  """
  question = fields.filled(entry, 'question')
  rows = []
  for answer in fields.objects(entry, 'answers', dict, 'objects'):
    text = fields.nullable(answer, 'text')
    name = fields.first(answer, _VOTES)
    if name is None:
      raise tables.BadRowError(
          f'an answer has none of the fields {", ".join(_VOTES)}')
    votes = fields.number(answer, name, -2**31, 2**31 - 1)
    if votes != round(votes):
      raise tables.BadRowError(f'field {name!r} must be whole, got {votes}')
    field = fields.first(answer, _ACCEPTED)
    accepted = field is not None and fields.flag(answer, field)
    scores = (('votes', votes),)
    if name == 'pm_score':
      scores = (('score', votes if votes - accepted > 0 else -1.),)
    group = 'accepted' if accepted else 'other'
    rows.append(Logged(question, text, 0, group, scores=scores))
  return rows


def reddit(entry: Mapping, *, max_words: int = 100) -> Responses:
  """A comment and the one it answers, from the CSV files of Baheti et al.

  comments_positive.csv and comments_negative.csv of Kaggle's Reddit Comment
  Score Prediction, as github.com/abaheti95/LoL-RL reads them: white space is
  collapsed, and a pair is left out if either has more than `max_words` words.
  (They also replace web addresses, which stay here.)

  Fields: 'parent_text', the prompt; 'text'; 'score', votes, not 0: group 'up'
  if positive. Scores 'votes', and 'up', 1 or 0, which a model can learn.
  """
  votes = fields.number(entry, 'score')
  if not votes:
    raise tables.BadRowError('score is 0, neither up- nor down-voted')
  prompt = ' '.join(fields.nullable(entry, 'parent_text').split())
  response = ' '.join(fields.nullable(entry, 'text').split())
  if not prompt:
    return []
  if max(len(text.split()) for text in (prompt, response)) > max_words:
    return [None]
  return [Logged(prompt, response, 0, 'up' if votes > 0 else 'down',
                 scores=(('votes', votes), ('up', float(votes > 0))))]


def grounded_dialogue(entry: Mapping) -> Responses:
  """Answers of a wizard who has read a piece of knowledge.

  `input` is the knowledge, `prompt` the last utterance, `history` those
  before it. Each form is known by a field of its own:

  'knowledge': a turn of FaithDial (Dziri et al. 2022,
    https://arxiv.org/abs/2204.10757), with 'history', a list, 'response',
    'original_response' (null if it was not changed), 'BEGIN', a list.
  'utterances': a dialogue of such turns; those without a response pass.
  'evidence': a line of FaithDial's audit, with 'history', one utterance,
    'response', 'BEGIN', a string.
  'dialog': a dialogue of Wizard of Wikipedia, with 'speaker', 'text' and
    'checked_sentence' in each turn. The wizard's are the responses; those
    that checked nothing or speak first are left out, as in LoL-RL.

  Groups are 'edited' (FaithDial's response) and 'original'; 'human'
  elsewhere. The score 'faithful' follows FaithDial's critic: 0 if BEGIN has
  a hallucination, partial too; else 1 if it has an entailment; else none.
  BEGIN judges the original; one that was edited is 1.
  """
  if 'dialog' in entry:
    return _wizard(fields.objects(entry, 'dialog', dict, 'objects'))
  if 'utterances' in entry:
    turns = fields.objects(entry, 'utterances', dict, 'objects')
    return [row for number, turn in enumerate(turns) if 'response' in turn
            for row in _faithful(turn, number)]
  if 'evidence' in entry:
    scores = _scores(fields.optional(entry, 'BEGIN'))
    return [Logged(
        fields.filled(entry, 'history'), fields.text(entry, 'response'), 0,
        'human', fields.filled(entry, 'evidence'), scores=scores)]
  return _faithful(entry, 0)


def _scores(*labels: str) -> tuple[tuple[str, float], ...]:
  judged = ' '.join(labels).lower()
  if 'hallucination' in judged:
    return (('faithful', 0.),)
  return (('faithful', 1.),) if 'entailment' in judged else ()


def _faithful(entry: Mapping, example: int) -> Responses:
  """The edited and the original response of a turn of FaithDial."""
  knowledge = fields.filled(entry, 'knowledge')
  history = fields.texts(entry, 'history')
  response = fields.text(entry, 'response')
  original = fields.optional(entry, 'original_response')
  judged = fields.first(entry, ['BEGIN'])
  scores = _scores(*fields.texts(entry, judged)) if judged else ()
  if not history:
    return [None]
  *history, prompt = history
  shared = dict(input=knowledge, history=tuple(history))
  if not original.strip():
    return [Logged(prompt, response, example, 'edited', scores=scores,
                   **shared)]
  return [
      Logged(prompt, response, example, 'edited', scores=(('faithful', 1.),),
             **shared),
      Logged(prompt, original, example, 'original', scores=scores, **shared),
  ]


def _wizard(turns: list[dict]) -> Responses:
  """The wizard's turns of a dialogue of Wizard of Wikipedia."""
  rows, history = [], []
  for number, turn in enumerate(turns):
    speaker = fields.text(turn, 'speaker')
    text = fields.text(turn, 'text')
    if 'Wizard' in speaker:
      checked = turn.get('checked_sentence') or {}
      if not isinstance(checked, dict):
        raise tables.BadRowError(
            "field 'checked_sentence' must be an object")
      knowledge = fields.optional(
          {'checked_sentence': next(iter(checked.values()), None)},
          'checked_sentence')
      used = knowledge.strip() not in ('', 'no_passages_used')
      rows.append(Logged(
          history[-1], text, number, 'human', knowledge,
          tuple(history[:-1])) if used and history else None)
    elif 'Apprentice' not in speaker:
      raise tables.BadRowError(
          f"field 'speaker' must name a Wizard or Apprentice, got {speaker!r}")
    history.append(text)
  return rows


def comet(entry: Mapping) -> Responses:
  """Commonsense: the head is the prompt, the relation the input.

  ATOMIC10X (West et al. 2022, https://arxiv.org/abs/2110.07178): 'head',
    'relation', 'tail', 'split', and the critic's 'p_valid_model' in [0, 1].
  ATOMIC 2020 (Hwang et al. 2021, https://arxiv.org/abs/2010.05953): TSV files
    of head, relation, tail, without a header; group 'human'.
  Its generations of BART: 'head', 'relation', 'tails', by humans, and
    'generations', by the model; the reference is the first tail.
  """
  head = fields.filled(entry, 'head')
  relation = fields.filled(entry, 'relation')
  if 'tails' in entry:
    tails = fields.texts(entry, 'tails')
    rows = [(tail, 'human') for tail in tails]
    rows += [(tail, 'model') for tail in fields.texts(entry, 'generations')]
    return [Logged(head, tail, 0, group, relation, reference=''.join(tails[:1]))
            for tail, group in rows]
  tail = fields.text(entry, 'tail')
  if fields.first(entry, ['p_valid_model']) is None:
    return [Logged(head, tail, 0, 'human', relation)]
  valid = fields.number(entry, 'p_valid_model', 0, 1)
  return [Logged(head, tail, 0, 'model', relation,
                 scores=(('p_valid_model', valid),),
                 split=fields.optional(entry, 'split'))]


def gsm8k(entry: Mapping) -> Responses:
  """A question of school mathematics, answers that are right or wrong.

  Cobbe et al. 2021, https://arxiv.org/abs/2110.14168. Fields: 'question' and
  'answer', one row of group 'human' with the score 'correct' 1; or, in
  example_model_solutions, 'ground_truth' and for each model an object with
  'solution' and 'is_correct', one row of its name, correct ones first. The
  reference is the final answer.
  """
  question = fields.filled(entry, 'question')
  human = 'answer' in entry
  name = 'answer' if human else 'ground_truth'
  answer = fields.text(entry, name)
  reference = final_answer(answer)
  if reference is None:
    raise tables.BadRowError(f"field {name!r} has no line '#### ' or 'A: '")
  answers = [('human', answer, True)] if human else [
      (model, fields.text(node, 'solution'), fields.flag(node, 'is_correct'))
      for model, node in entry.items() if isinstance(node, dict)]
  return [Logged(question, solution, 0, model, reference=reference,
                 scores=(('correct', float(correct)),))
          for model, solution, correct in sorted(answers, key=lambda x: -x[2])]


def final_answer(text: str) -> str | None:
  """What the last line that starts with '####' or 'A:' says, None if none.

  Where no line starts with either, as in a text whose tokens are words, the
  last one after white space counts, to the end of its line. Thousands
  separators and a dollar sign are taken away: '#### 1,080' and 'A: $1080'
  give '1080'.
  """
  lines = _FINAL_LINE.findall(text)
  parts = _FINAL.split(lines[-1] if lines else text)
  if len(parts) < 2:
    return None
  answer = parts[-1].partition('\n')[0].strip()
  return answer.removeprefix('$').replace(',', '') or None


def rows(entry: Mapping) -> Responses:
  """Any prompt, response and reward.

  Args:
    entry: with 'prompt', 'response', 'reward', and optional 'group', 'split',
      'reference' and 'prompt_id': rows of one id are responses to one prompt,
      best first; without it, each is an example of its own.
  """
  example = entry.get('prompt_id')
  if not isinstance(example, str | int | None) or isinstance(example, bool):
    raise tables.BadRowError(
        "field 'prompt_id' must be a string or an integer")
  return [Logged(
      fields.filled(entry, 'prompt'),
      fields.nullable(entry, 'response'),
      0 if example is None or example == '' else str(example),
      fields.optional(entry, 'group'),
      scores=(('reward', fields.number(entry, 'reward')),),
      split=fields.optional(entry, 'split'),
      reference=fields.optional(entry, 'reference'),
  )]
