r"""Prompt formats: rows of text to (prompt, response), in text or in parts.

Every format is called as `format(prompt, response='', input='')`, some with
more keywords, and returns (prompt, response), each a `Text`: a plain string,
or a tuple of parts where a format has control tokens. A part is a string
(user or template text, in which no control token is ever recognised) or a
`Special` (a control token, looked up by name). `Tokenizer.encode_rows` takes
both; it puts BOS in front and EOS behind where a format has not already.

Prompt and response are tokenized apart, so a format also decides which side
owns the white space between them. Where the published string has one space
there, it is the response's, as in ordinary text, except where we follow code
that does otherwise:

  name               prompt ends with       response starts with
  alpaca             '### Response:'        the text at once
  hh                 '\n\nAssistant:'       one space
  open_assistant     <|assistant|>          the text at once
  a_lol              ' ### Assistant:'      one space
  tldr               'TL;DR:'               one space
  stack_exchange     'Answer:'              one space
  reddit_pair        EOS                    the text at once
  grounded_dialogue  EOS                    the text at once
  comet              '[GEN] '               the text at once (as A-LOL's code)
  chatml             'assistant\n'          the text at once
  llama2_chat        '[/INST]'              one space
  llama3             '\n\n'                 the text at once
  chat_template      what the model's own template says

Chat formats (open_assistant, a_lol, chatml, llama2_chat, llama3) take a
conversation in one of three forms: `prompt` as one user turn, with `input`
on the next line; `prompt` as an Anthropic dialogue ('\n\nHuman: ...
\n\nAssistant:'); or `messages`, a sequence of {'role', 'content'}.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import re

from rlhf_jax import errors


@dataclasses.dataclass(frozen=True)
class Special:
  """A control token, by its name; '' is the tokenizer's own EOS."""

  name: str


Part = str | Special
Text = str | tuple[Part, ...]
Format = Callable[..., tuple[Text, Text]]
Turn = tuple[str, str]  # role, content

END = Special('')
ROLES = ('system', 'user', 'assistant')

# github.com/tatsu-lab/stanford_alpaca, train.py, PROMPT_DICT.
_ALPACA = (
    'Below is an instruction that describes a task. Write a response that '
    'appropriately completes the request.\n\n'
    '### Instruction:\n{instruction}\n\n### Response:'
)
_ALPACA_INPUT = (
    'Below is an instruction that describes a task, paired with an input '
    'that provides further context. Write a response that appropriately '
    'completes the request.\n\n'
    '### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:'
)
# github.com/abaheti95/LoL-RL, lolrl_qlora_llama_hh.py, prompt_prefix.
_A_LOL = (
    'A chat between a curious human and an artificial intelligence '
    'assistant. The assistant gives helpful, detailed, and polite answers '
    "to the user's questions.\n"
)
_HH_TURN = re.compile(r'\n\n(Human|Assistant):')
_HH_ROLES = {'Human': 'user', 'Assistant': 'assistant'}


def _no_input(name: str, input: str):
  if input:
    raise ValueError(f'format {name!r} has no place for the input {input!r}')


def _spaced(response: str) -> str:
  response = response.strip()
  return f' {response}' if response else ''


def dialogue(text: str) -> list[Turn]:
  r"""Turns of an Anthropic dialogue, contents stripped of white space.

  Args:
    text: '\n\nHuman: ...\n\nAssistant: ...', as many turns as there are. An
      empty one of the assistant at the end, to be written, is left out.

  Raises:
    ValueError: it does not start with a turn.
  """
  before, *rest = _HH_TURN.split(text)
  if before.strip() or not rest:
    raise ValueError(f"not a dialogue, no '\\n\\nHuman:' first: {text[:80]!r}")
  turns = [(_HH_ROLES[name], content.strip())
           for name, content in zip(rest[::2], rest[1::2])]
  return turns[:-1] if turns[-1] == ('assistant', '') else turns


def conversation(
    prompt: str = '',
    input: str = '',
    *,
    system: str = '',
    messages: Sequence[Mapping[str, str]] = (),
) -> list[Turn]:
  """(role, content) for each turn; see the module for the three forms.

  Raises:
    ValueError: both or none of prompt and messages, a role other than
      system, user and assistant, or a system turn that is not the first.
  """
  if bool(prompt) == bool(messages):
    raise ValueError('give either a prompt or messages')
  if messages:
    _no_input('messages', input)
    turns = [_turn(index, message) for index, message in enumerate(messages)]
  elif _HH_TURN.match(prompt):
    _no_input('dialogue', input)
    turns = dialogue(prompt)
    if not turns:
      raise ValueError(f'a dialogue without a turn: {prompt[:80]!r}')
  else:
    turns = [('user', f'{prompt}\n{input}' if input else prompt)]
  if system:
    turns.insert(0, ('system', system))
  for index, (role, _) in enumerate(turns):
    if role not in ROLES or (role == 'system' and index):
      raise ValueError(
          f'message {index} has the role {role!r}; system may be the first, '
          'the others are user or assistant')
  return turns


def _turn(index: int, message: Mapping[str, str]) -> Turn:
  role, content = message.get('role'), message.get('content')
  if not isinstance(role, str) or not isinstance(content, str):
    raise ValueError(f'message {index} must have a role and a content that '
                     f'are texts; got {dict(message)!r}')
  return role, content


def _no_system(name: str, turns: Sequence[Turn]):
  if turns[0][0] == 'system':
    raise ValueError(f'format {name!r} has no place for a system message')


def alpaca(
    prompt: str, response: str = '', input: str = ''
) -> tuple[str, str]:
  """The Stanford Alpaca prompt, with or without an input."""
  template = _ALPACA_INPUT if input else _ALPACA
  return template.format(instruction=prompt, input=input), response


def hh(prompt: str, response: str = '', input: str = '') -> tuple[str, str]:
  r"""An HH dialogue as it is, and ' ' + the stripped response.

  Args:
    prompt: a dialogue that ends with '\n\nAssistant:'.
    response: the next turn; blank becomes '', with no space.
    input: must be '', there is no place for it.

  Returns:
    (prompt_text, response_text).

  Raises:
    ValueError: if an input is given.
  """
  _no_input('hh', input)
  return prompt, _spaced(response)


def open_assistant(
    prompt: str = '', response: str = '', input: str = '', *,
    messages: Sequence[Mapping[str, str]] = (),
) -> tuple[Text, Text]:
  r"""OpenAssistant v2: <|prompter|> text EOS <|assistant|> answer EOS.

  Coste et al. (2024), appendix D.3, https://arxiv.org/abs/2310.02743. Their
  table prints a line break before <|assistant|>; their code has none, and
  neither do we. The prompt of a reward model is prompt, response and EOS: a
  row of `encode_rows`. Pythia's tokenizer has neither token; load it with
  control=('<|prompter|>', '<|assistant|>').

  Args:
    prompt: instruction, or see the module.
    response: the answer.
    input: on the line after the instruction.
    messages: instead of prompt; the format has no system message.
  """
  turns = conversation(prompt, input, messages=messages)
  _no_system('open_assistant', turns)
  names = {'user': '<|prompter|>', 'assistant': '<|assistant|>'}
  parts = [part for role, content in turns
           for part in (Special(names[role]), content, END)]
  return (*parts, Special('<|assistant|>')), response


def a_lol(
    prompt: str = '', response: str = '', input: str = '', *,
    messages: Sequence[Mapping[str, str]] = (),
) -> tuple[str, str]:
  """A line about the assistant, then ' ### Human: ' and ' ### Assistant: '.

  Baheti et al. (2024), https://arxiv.org/abs/2305.14718; the paper does not
  print the string, we follow the prompts of github.com/abaheti95/LoL-RL: the
  turns are stripped as a whole, so that no space comes before the first tag
  or after the last. Sampling there also stops at '###' (835 in LLaMA).

  Args:
    prompt: an Anthropic dialogue, or see the module.
    response: the next turn.
    input: on the line after a prompt of one turn.
    messages: instead of prompt; a system message is refused.
  """
  turns = conversation(prompt, input, messages=messages)
  _no_system('a_lol', turns)
  tags = {'user': ' ### Human: ', 'assistant': ' ### Assistant: '}
  text = ''.join(tags[role] + content for role, content in turns)
  return _A_LOL + f'{text} ### Assistant:'.lstrip(), _spaced(response)


def tldr(
    prompt: str, response: str = '', input: str = '', *,
    subreddit: str = '', title: str = '',
) -> tuple[str, str]:
  r"""SUBREDDIT, TITLE and POST, then 'TL;DR:'.

  The fields of Stiennon et al. (2020), https://arxiv.org/abs/2009.01325, with
  an empty line between them as in github.com/openai/summarize-from-feedback.
  (The copies of CarperAI and TRL have single line breaks in places: their
  prompts are already written, and one that ends with 'TL;DR:' is kept.)

  Args:
    prompt: the post.
    response: its summary.
    input: must be ''.
    subreddit: without 'r/'; left out if ''.
    title: left out if ''.
  """
  _no_input('tldr', input)
  if prompt.rstrip().endswith('TL;DR:'):
    if subreddit or title:
      raise ValueError('the prompt already ends with TL;DR:, so it cannot '
                       'take a subreddit or a title')
    return prompt.rstrip(), _spaced(response)
  lines = [f'SUBREDDIT: r/{subreddit}'] if subreddit else []
  lines += [f'TITLE: {title}'] if title else []
  lines += [f'POST: {prompt}', 'TL;DR:']
  return '\n\n'.join(lines), _spaced(response)


def stack_exchange(
    prompt: str, response: str = '', input: str = ''
) -> tuple[str, str]:
  r"""'Question: {prompt}\n\nAnswer:', as StackLLaMA of the TRL library.

  Zhu et al. (2023) name the data (Beeching et al. 2023), not the string.
  """
  _no_input('stack_exchange', input)
  return f'Question: {prompt}\n\nAnswer:', _spaced(response)


def reddit_pair(
    prompt: str, response: str = '', input: str = ''
) -> tuple[Text, Text]:
  """Comment EOS response EOS, as DialoGPT was trained.

  Zhang et al. (2020), https://arxiv.org/abs/1911.00536; so used for Reddit
  by Baheti et al. (2024).
  """
  _no_input('reddit_pair', input)
  return (prompt, END), response


def grounded_dialogue(
    prompt: str, response: str = '', input: str = '', *,
    history: Sequence[str] = (),
) -> tuple[Text, Text]:
  """'Knowledge: ...' EOS utterance EOS ... EOS response EOS.

  Baheti et al. (2024) for Wizard of Wikipedia and FaithDial; the string is
  that of github.com/abaheti95/LoL-RL. A prompt that is too long loses its
  front, which is the knowledge; their code drops the oldest utterances
  instead, down to 400 tokens: shorten `history` to do that.

  Args:
    prompt: the last utterance, that is to be answered.
    response: the answer.
    input: the knowledge; required.
    history: utterances before the last, oldest first.
  """
  if not input.strip():
    raise ValueError("format 'grounded_dialogue' needs the knowledge as input")
  parts = [part for utterance in (*history, prompt)
           for part in (utterance.strip(), END)]
  return (f'Knowledge: {input.strip()}', END, *parts), response.strip()


def comet(
    prompt: str, response: str = '', input: str = '', *, tags: bool = True
) -> tuple[str, str]:
  """A head and a relation, '[GEN]', a tail.

  Args:
    prompt: the head, such as 'PersonX pays the bill'.
    response: the tail.
    input: the relation, such as 'xIntent'; required.
    tags: '<head> head </head> <relation> relation </relation> [GEN] ', the
      string of COMET-distil (West et al. 2022) that Baheti et al. (2024)
      use, final space included. False: 'head relation [GEN]' and ' tail', as
      COMET-ATOMIC 2020 (Hwang et al. 2021). Both are plain text here.
  """
  if not input.strip():
    raise ValueError("format 'comet' needs the relation as input")
  if not tags:
    return f'{prompt.strip()} {input} [GEN]', _spaced(response)
  return (f'<head> {prompt.strip()} </head> <relation> {input} </relation> '
          '[GEN] '), response.strip()


def chatml(
    prompt: str = '', response: str = '', input: str = '', *,
    system: str = '', messages: Sequence[Mapping[str, str]] = (),
) -> tuple[Text, Text]:
  r"""<|im_start|>role\ncontent<|im_end|>\n for each turn (Qwen, SmolLM2).

  No system message is made up: a template that writes a default one has to
  be given it as `system`.

  Args:
    prompt: one user turn, or see the module.
    response: the assistant's turn; it ends with <|im_end|>.
    input: on the line after the prompt.
    system: the system message, if any.
    messages: instead of prompt.
  """
  start, end = Special('<|im_start|>'), Special('<|im_end|>')
  turns = conversation(prompt, input, system=system, messages=messages)
  parts = [part for role, content in turns
           for part in (start, f'{role}\n{content}', end, '\n')]
  return ((*parts, start, 'assistant\n'),
          (response, end) if response else '')


def llama2_chat(
    prompt: str = '', response: str = '', input: str = '', *,
    system: str = '', messages: Sequence[Mapping[str, str]] = (),
) -> tuple[Text, Text]:
  r"""<s>[INST] <<SYS>>\nsystem\n<</SYS>>\n\nuser [/INST] answer </s>...

  As chat_completion of github.com/meta-llama/llama; contents are stripped.
  Arguments are `chatml`'s.

  Raises:
    ValueError: user and assistant do not take turns, from user to user.
  """
  turns = conversation(prompt, input, system=system, messages=messages)
  preface = ''
  if turns[0][0] == 'system':
    preface = f'<<SYS>>\n{turns.pop(0)[1]}\n<</SYS>>\n\n'
  roles = [role for role, _ in turns]
  if len(roles) % 2 == 0 or roles != (['user', 'assistant'] * len(roles))[
      :len(roles)]:
    raise ValueError('llama2_chat needs turns of user and assistant, the '
                     f'first and the last of user; got {roles}')
  start, end = Special('<s>'), Special('</s>')
  contents = [content.strip() for _, content in turns]
  contents[0] = preface + contents[0]
  parts = []
  for asked, answer in zip(contents[::2], contents[1::2]):
    parts += [start, f'[INST] {asked} [/INST] {answer} ', end]
  answer = (f'{_spaced(response)} ', end) if response.strip() else ''
  return (*parts, start, f'[INST] {contents[-1]} [/INST]'), answer


def llama3(
    prompt: str = '', response: str = '', input: str = '', *,
    system: str = '', messages: Sequence[Mapping[str, str]] = (),
) -> tuple[Text, Text]:
  r"""<|start_header_id|>role<|end_header_id|>\n\ncontent<|eot_id|>...

  As github.com/meta-llama/llama3, tokenizer.py, ChatFormat; contents are
  stripped. The dates and tool texts of 3.1's template are not written.
  Arguments are `chatml`'s.
  """
  turns = conversation(prompt, input, system=system, messages=messages)
  header, close, end = map(
      Special, ('<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'))
  parts = [Special('<|begin_of_text|>')]
  for role, content in turns:
    parts += [header, role, close, f'\n\n{content.strip()}', end]
  response = response.strip()
  return ((*parts, header, 'assistant', close, '\n\n'),
          (response, end) if response else '')


@dataclasses.dataclass(frozen=True)
class Turns:
  """A conversation that the chat template of a model is to write."""

  turns: tuple[Turn, ...]


def chat_template(
    prompt: str = '', response: str = '', input: str = '', *,
    system: str = '', messages: Sequence[Mapping[str, str]] = (),
) -> tuple[Turns, str]:
  """As the template that came with the model writes it; see `templates`.

  The template is a program by somebody else, and is run only where
  allow_checkpoint_template is set: `coders` does, all rows at once. Arguments
  are `chatml`'s.
  """
  return Turns(tuple(conversation(
      prompt, input, system=system, messages=messages))), response


_FORMATS = {f.__name__: f for f in (
    chat_template, alpaca, hh, open_assistant, a_lol, tldr, stack_exchange,
    reddit_pair, grounded_dialogue, comet, chatml, llama2_chat, llama3)}


DIALOGUES = ('hh', 'chat_template', 'open_assistant', 'a_lol', 'chatml',
             'llama2_chat', 'llama3')  # take an Anthropic dialogue as a prompt


def get(name: str) -> Format:
  """Returns the format of that name.

  Args:
    name: one of the table above.

  Returns:
    A function (prompt, response='', input='', ...) -> (prompt, response).

  Raises:
    ConfigError: unknown name; the message lists those there are.
  """
  if name not in _FORMATS:
    raise errors.ConfigError(
        f'unknown prompt format {name!r}; available: '
        f'{", ".join(sorted(_FORMATS))}')
  return _FORMATS[name]
