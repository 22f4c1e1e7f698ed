"""How one entry of the files that people have becomes logged responses.

As `log_kinds`, whose files are those of papers. A prompt is a text, or the
last message of the user, with the turns before it in `Logged.turns`.
"""

from collections.abc import Mapping, Sequence
import os
from typing import Any

from rlhf_jax.data import chats
from rlhf_jax.data import fields
from rlhf_jax.data import readers
from rlhf_jax.data import tables

Logged = readers.Logged
Responses = list[Logged | None]

# Columns in which a prompt, or a response to it, is looked for.
PROMPTS = ('prompt', 'question', 'instruction', 'query')
_COMPLETIONS = ('completion', 'response', 'output')
_HUMAN, _ASSISTANT = 'Human:', 'Assistant:'
# (texts A and B, who won, the values that mean A, B) of published comparisons.
_COMPARISONS = (
    ('human_ref_A', 'human_ref_B', 'labels', (1, 0)),  # SHP
    ('output_1', 'output_2', 'label', (1, 2)),  # LLMBar
    ('response1', 'response2', 'annotator1', (1, 2)),  # PandaLM
    ('response_a', 'response_b', 'preference', (0, 1)))
ATTRIBUTES = ('helpfulness', 'correctness', 'coherence', 'complexity',
              'verbosity')  # HelpSteer, Wang et al. 2023


def pairs(entry: Mapping) -> Responses:
  """A chosen and a rejected response, as TRL, LLaMA-Factory and HH have them.

  'chosen' and 'rejected' are texts, messages, or lists of messages; 'prompt'
  ('question', 'instruction', 'query') is a text or a list of messages, and
  'messages' or 'conversations' hold the turns before the answers. Without
  any the prompt is what both begin with: whole messages, or of texts as many
  as a blank ends. 'score_chosen' and 'score_rejected', where both are there,
  become the score 'score'.
  """
  sides = [_side(entry, name) for name in ('chosen', 'rejected')]
  (prompt, turns, good), (other, others, bad) = sides
  if (prompt, turns) != (other, others):
    raise tables.BadRowError('chosen and rejected answer different prompts')
  if good.strip() == bad.strip():
    raise tables.BadRowError('chosen and rejected are the same')
  names = [f'score_{side}' for side in ('chosen', 'rejected')]
  scores = [()] * 2
  if fields.first(entry, names[:1]) and fields.first(entry, names[1:]):
    scores = [(('score', fields.number(entry, name)),) for name in names]
  return [Logged(prompt, text, 0, side, turns=turns, scores=score)
          for side, text, score in zip(
              ('chosen', 'rejected'), (good, bad), scores)]


def _side(entry: Mapping, name: str) -> tuple[str, tuple, str]:
  """Prompt, turns before it and response, of one side of a pair."""
  value = entry.get(name)
  if not chats.is_chat(value):
    text = fields.text(entry, name)
    context = _context(entry)
    if context is None:
      return _implicit(entry, name)
    prompt, turns = context
    # Some files repeat the prompt in front of the response.
    if not turns and text.startswith(prompt) and all(
        str(entry[side]).startswith(prompt) for side in ('chosen', 'rejected')):
      text = text.removeprefix(prompt)
    return prompt, turns, text
  dialogue = chats.turns(value, name)
  if len(dialogue) > 1 and dialogue[0][0] != 'assistant':  # all of it
    return chats.answered(dialogue, name)
  context = _context(entry)
  if context is None:
    raise tables.BadRowError(
        f'field {name!r} has an answer alone, and no field has its prompt')
  return *context, _response(entry, name)


def _context(entry: Mapping) -> tuple[str, tuple] | None:
  """Prompt and turns before it, where columns of their own have them."""
  name = fields.first(entry, (*PROMPTS, *chats.MESSAGES))
  if name is None:
    return None
  before = _system(entry)
  if chats.is_chat(entry[name]):
    return chats.question((*before, *chats.turns(entry[name], name)), name)
  return _instruction(entry, name), before


def _system(entry: Mapping) -> tuple[chats.Turn, ...]:
  """The turn of a column 'system', if it has a text."""
  system = entry.get('system')
  return (('system', system),) if isinstance(system, str) and system else ()


def _instruction(entry: Mapping, name: str) -> str:
  """A text; of an instruction, with its input on the next line."""
  prompt = fields.filled(entry, name)
  extra = fields.optional(entry, 'input') if name == 'instruction' else ''
  return f'{prompt}\n{extra}' if extra.strip() else prompt


def _implicit(entry: Mapping, name: str) -> tuple[str, tuple, str]:
  """A prompt that both texts begin with, to the last blank or line break."""
  both = [fields.text(entry, side) for side in ('chosen', 'rejected')]
  common = os.path.commonprefix(both)  # noqa: RUF071 - texts
  start = max(common.rfind(' '), common.rfind('\n')) + 1
  if not common[:start].strip():
    raise tables.BadRowError(
        "there is no field 'prompt', and chosen and rejected begin with "
        'nothing in common')
  return common[:start].rstrip(), (), fields.text(entry, name)[start:]


def messages(entry: Mapping) -> Responses:
  """A conversation that ends with an answer: 'messages' or 'conversations'.

  Of {'role', 'content'} or ShareGPT's {'from', 'value'}; 'system', a text of
  its own, comes first.
  """
  prompt, turns, response = _conversation(entry)
  return [Logged(prompt, response, 0, 'demonstration', turns=turns)]


def asks(entry: Mapping) -> bool:
  """Whether an entry is a conversation that ends with the user's turn."""
  name = fields.first(entry, chats.MESSAGES)
  if name is None or not chats.is_chat(entry[name]):
    return False
  try:
    return chats.turns(entry[name], name)[-1][0] == 'user'
  except tables.BadRowError:
    return False


def prompts(entry: Mapping) -> Responses:
  """A prompt, for policies to answer, and no response.

  As a text with its 'input', or as the turns of a conversation that ends with
  the user's; 'reference' is the right answer, 'split' a part of the data.
  """
  context = _context(entry)
  if context is None:
    raise tables.BadRowError(
        f'none of the fields {", ".join((*PROMPTS, *chats.MESSAGES))} is there')
  prompt, turns = context
  return [Logged(prompt, '', 0, 'prompt', turns=turns,
                 reference=fields.optional(entry, 'reference'),
                 split=fields.optional(entry, 'split'))]


def _conversation(entry):
  name = fields.first(entry, chats.MESSAGES)
  if name is None:
    raise tables.BadRowError(
        f'none of the fields {", ".join(chats.MESSAGES)} is there')
  return chats.answered(
      (*_system(entry), *chats.turns(entry[name], name)), name)


def unpaired(entry: Mapping) -> Responses:
  """A response that somebody liked or did not (KTO, Ethayarajh et al. 2024).

  'label' is true or false, 1 or 0; the response is 'completion', 'response'
  or 'output' (a text or a message) to a prompt, or the end of a conversation.
  Groups 'liked' and 'disliked'; the score 'liked' is 1 or 0.
  """
  liked = fields.flag(entry, 'label')
  name = fields.first(entry, _COMPLETIONS)
  if name is None:
    prompt, turns, response = _conversation(entry)
  else:
    context = _context(entry)
    if context is None:
      raise tables.BadRowError(f"no field has the prompt of {name!r}")
    prompt, turns = context
    response = _response(entry, name)
  return [Logged(prompt, response, 0, 'liked' if liked else 'disliked',
                 turns=turns, scores=(('liked', float(liked)),))]


def _response(entry: Mapping, name: str) -> str:
  """A text, or the one message that a field holds."""
  if not chats.is_chat(entry[name]):
    return fields.nullable(entry, name)
  dialogue = chats.turns(entry[name], name)
  if len(dialogue) != 1 or dialogue[0][0] != 'assistant':
    raise tables.BadRowError(
        f'field {name!r} must be one message of the assistant, beside a prompt')
  return dialogue[0][1]


def ranked(entry: Mapping) -> Responses:
  """Answers to one prompt with ranks or scores, best first.

  Nectar: 'prompt' ('Human: ... Assistant:'), 'answers' of {'answer', 'rank'},
    1 being the best.
  UltraFeedback (Cui et al. 2023): 'instruction', 'completions' of {'response',
    'overall_score'} ('fine-grained_score' where that is missing).
  HelpSteer: 'prompt', 'response' and 'helpfulness', 'correctness' and others,
    each a score; rows of one prompt answer one example.

  The best is of group 'chosen', the worst of group 'rejected', the others of
  group 'other'; where all are as good, all are 'other'. The score is 'rank'
  (less is better) or 'score'.
  """
  if 'answers' in entry:
    prompt, answers = fields.filled(entry, 'prompt'), [
        (fields.nullable(answer, 'answer'), -fields.number(answer, 'rank', 0))
        for answer in fields.objects(entry, 'answers', dict, 'objects')]
    return _best_first(_question(prompt), answers,
                       lambda score: (('rank', -score),))
  if 'completions' in entry:
    prompt = fields.filled(entry, fields.first(entry, PROMPTS) or 'instruction')
    answers = []
    for answer in fields.objects(entry, 'completions', dict, 'objects'):
      name = fields.first(answer, ('overall_score', 'fine-grained_score'))
      answers.append((fields.nullable(answer, 'response'), fields.number(
          answer, name or 'overall_score')))
    return _best_first(prompt, answers, lambda score: (('score', score),))
  prompt = fields.filled(entry, 'prompt')
  scores = tuple((name, fields.number(entry, name)) for name in ATTRIBUTES
                 if fields.first(entry, [name]))
  if not scores:
    raise tables.BadRowError(
        f'none of the fields {", ".join(ATTRIBUTES)} is there')
  return [Logged(prompt, fields.nullable(entry, 'response'), prompt, 'other',
                 scores=scores)]


def _question(prompt: str) -> str:
  """What stands between the words of Nectar's one turn; else all of it."""
  text = prompt.strip()
  inner = text.removeprefix(_HUMAN).removesuffix(_ASSISTANT).strip()
  whole = len(text) - len(_HUMAN + _ASSISTANT)
  is_turn = text.startswith(_HUMAN) and text.endswith(_ASSISTANT) and whole >= 0
  return inner if is_turn and inner else prompt


def _best_first(prompt: str, answers: Sequence[tuple[str, float]], scores: Any
                ) -> Responses:
  answers = sorted(answers, key=lambda answer: -answer[1])
  values = [value for _, value in answers]
  groups = ['other'] * len(answers)
  if values and values[0] > values[-1]:
    groups[0], groups[-1] = 'chosen', 'rejected'
  return [Logged(prompt, text, 0, group, scores=scores(value))
          for group, (text, value) in zip(groups, answers)]


def comparisons(entry: Mapping) -> Responses:
  """Two answers and who won, as benchmarks and forums publish them.

  SHP: 'history', 'human_ref_A', 'human_ref_B', 'labels' (1: A).
  LLMBar: 'input', 'output_1', 'output_2', 'label' (1 or 2).
  PandaLM: 'instruction', 'input', 'response1', 'response2', 'annotator1'
    (1 or 2; 0 is a tie, and left out).
  TL;DR (Stiennon et al. 2020): 'info' with 'post', 'title' and 'subreddit',
    'summaries' of {'text'}, 'choice' (0 or 1); the prompt is written whole.
  'response_a', 'response_b' and 'preference' (0: A) with a prompt.
  """
  if 'summaries' in entry:
    return _summaries(entry)
  names = next((names for names in _COMPARISONS if names[0] in entry), None)
  if names is None:
    raise tables.BadRowError(
        'none of the fields '
        f'{", ".join(("summaries", *(n[0] for n in _COMPARISONS)))} is there')
  first, second, label, values = names
  won = fields.number(entry, label)
  texts = [fields.text(entry, name) for name in (first, second)]
  if won not in values:
    if won == 0:
      return [None, None]  # a tie
    raise tables.BadRowError(
        f'field {label!r} must be one of {values}, got {won:g}')
  name = fields.first(entry, ('history', *PROMPTS, 'input'))
  return _pair(_instruction(entry, name or 'prompt'), texts, values.index(won))


def _summaries(entry: Mapping) -> Responses:
  info = fields.value(entry, 'info', Mapping, 'an object')
  texts = [fields.text(summary, 'text') for summary in fields.objects(
      entry, 'summaries', dict, 'objects')]
  choice = fields.number(entry, 'choice')
  if len(texts) != 2 or choice not in (0, 1):
    raise tables.BadRowError(
        f'there must be two summaries and choice 0 or 1, got {len(texts)} and '
        f'{choice:g}')
  head = [f'{tag}{fields.optional(info, name)}' for tag, name in (
      ('SUBREDDIT: r/', 'subreddit'), ('TITLE: ', 'title'))
      if fields.optional(info, name)]
  post = fields.filled(info, 'post' if 'post' in info else 'article')
  return _pair('\n\n'.join((*head, f'POST: {post}', 'TL;DR:')), texts,
               int(choice))


def _pair(prompt: str, texts: Sequence[str], won: int) -> Responses:
  if texts[0].strip() == texts[1].strip():
    raise tables.BadRowError('both answers are the same')
  return [Logged(prompt, texts[won], 0, 'chosen'),
          Logged(prompt, texts[1 - won], 0, 'rejected')]


def instructions(entry: Mapping) -> Responses:
  """Demonstrations: 'instruction', 'input' and 'output' (Alpaca).

  Or 'instances' of {'input', 'output'}, of which the first counts
  (Self-Instruct); 'prompt' and 'completion', a text or a message; or the
  sentences 'source' and the summaries 'target' (SciTLDR), each a list.
  """
  if 'target' in entry:
    prompt = ' '.join(fields.texts(entry, 'source'))
    return [Logged(prompt, summary, 0, 'demonstration')
            for summary in fields.texts(entry, 'target')]
  if 'instances' in entry:
    instances = fields.objects(entry, 'instances', dict, 'objects')
    entry = {'instruction': entry.get('instruction')} | (
        instances[0] if instances else {})
  if fields.first(entry, ['instruction']):
    return [Logged(
        fields.filled(entry, 'instruction'), fields.text(entry, 'output'), 0,
        'demonstration', fields.optional(entry, 'input'))]
  prompt, turns = _context(entry) or (None, ())
  name = fields.first(entry, _COMPLETIONS)
  if prompt is None or name is None:
    raise tables.BadRowError(
        f'a prompt ({", ".join(PROMPTS)}) and a response '
        f'({", ".join(_COMPLETIONS)}) must be there')
  return [Logged(prompt, _response(entry, name), 0, 'demonstration',
                 turns=turns)]
