"""Conversations in the shapes that files have them in."""

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.data import tables

Turn = tuple[str, str]  # role, content

# Of OpenAI's messages, and of ShareGPT's turns.
_ROLES = {'system': 'system', 'user': 'user', 'assistant': 'assistant',
          'human': 'user', 'gpt': 'assistant', 'prompter': 'user',
          'bot': 'assistant', 'chatgpt': 'assistant', 'model': 'assistant'}
_ROLE_NAMES, _CONTENT_NAMES = ('role', 'from'), ('content', 'value')
MESSAGES = ('messages', 'conversations', 'conversation')  # columns of them


def is_chat(value: Any) -> bool:
  """Whether a field is a message, or a list of them."""
  if isinstance(value, list):
    return bool(value) and is_chat(value[0])
  return isinstance(value, Mapping) and any(
      name in value for name in _ROLE_NAMES)


def turns(value: Any, name: str) -> tuple[Turn, ...]:
  """The turns of a list of messages, or of one message.

  Args:
    value: {'role', 'content'} or {'from', 'value'}, or a list of such.
    name: of the field, for messages.

  Raises:
    BadRowError: naming the message that has no known role or no text, or the
      turn that is not whose it should be.
  """
  messages = [value] if isinstance(value, Mapping) else value
  if not isinstance(messages, list):
    raise tables.BadRowError(
        f'field {name!r} must be a list of messages, got '
        f'{type(value).__name__}')
  return tuple(_turn(message, f'message {i} of field {name!r}')
               for i, message in enumerate(messages, 1))


def _turn(message: Any, where: str) -> Turn:
  if not isinstance(message, Mapping):
    raise tables.BadRowError(f'{where} must be an object')
  role = next((message[n] for n in _ROLE_NAMES if n in message), None)
  if not isinstance(role, str) or role.lower() not in _ROLES:
    raise tables.BadRowError(
        f'{where} has the role {role!r}; there are {", ".join(_ROLES)}')
  content = next((message[n] for n in _CONTENT_NAMES if n in message), None)
  return _ROLES[role.lower()], _text(content, where)


def _text(content: Any, where: str) -> str:
  """A string, or the parts of one, of which all are texts."""
  if isinstance(content, str):
    return content
  if isinstance(content, list) and content and all(
      isinstance(part, Mapping) and part.get('type') == 'text'
      and isinstance(part.get('text'), str) for part in content):
    return ''.join(part['text'] for part in content)
  type_name = 'null' if content is None else type(content).__name__
  raise tables.BadRowError(
      f'{where} has no text but {type_name}; images, tools and null are not '
      'read')


def question(some: Sequence[Turn], name: str) -> tuple[str, tuple[Turn, ...]]:
  """The user's last message, and the turns before it.

  Raises:
    BadRowError: it is not the user who speaks last, a blank is said, or the
      system does not speak first.
  """
  if not some or some[-1][0] != 'user':
    raise tables.BadRowError(
        f'field {name!r} must have a message of the user before the answer')
  for place, (role, content) in enumerate(some):
    if role == 'system' and place:
      raise tables.BadRowError(
          f'message {place + 1} of field {name!r} is of the system, which may '
          'be the first alone')
    if role == 'user' and not content.strip():
      raise tables.BadRowError(
          f'message {place + 1} of field {name!r} is blank')
  return some[-1][1], tuple(some[:-1])


def answered(some: Sequence[Turn], name: str
             ) -> tuple[str, tuple[Turn, ...], str]:
  """Prompt, the turns before it, and the assistant's last message.

  Raises:
    BadRowError: as `question`, or it is not the assistant who speaks last.
  """
  if not some or some[-1][0] != 'assistant':
    raise tables.BadRowError(
        f'field {name!r} must end with a message of the assistant')
  return *question(some[:-1], name), some[-1][1]
