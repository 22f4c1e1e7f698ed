"""Chat templates out of checkpoints: programs by strangers, kept in a box.

The built-in formats of `formats` need nothing of this. A template that came
with a model is a Jinja program; it is run only if the user says so, in
Jinja's immutable sandbox, in a child process with limits on time, memory and
output. It never sees what people wrote: each content is replaced by a mark
that cannot be guessed, which is put right again in what comes out. So a
content is not rendered twice, and a '<|im_end|>' in it stays text, while one
of the template's own becomes a control token.

A template may strip the white space around a content, as many do. One that
takes contents apart (slices, upper case, length) is refused: everything is
rendered with two marks, and what surrounds them has to be the same. A test
such as "'</think>' in content" is made on the mark, and finds nothing.
"""

from collections.abc import Collection, Mapping, Sequence
import contextlib
import datetime
import json
import os
import re
import secrets
import selectors
import signal
import subprocess
import sys
import time
from typing import Any

from rlhf_jax import errors
from rlhf_jax.data import formats

MAX_SOURCE_BYTES = 32 * 1000
MAX_OUTPUT_BYTES = 1000 * 1000
MAX_SECONDS = 2.0  # for one conversation
MAX_MEMORY_BYTES = 512 * 2**20  # of the child
_START_SECONDS = 60.0  # for Python and Jinja, on a busy machine
_ROLES = (*formats.ROLES, 'tool')
_READY = b'ready'
# Letters and lengths of the two marks: no part of one is a part of the other.
_MARKS = (('abcdefghijklm', 40), ('nopqrstuvwxyz', 47))


def render(
    source: str,
    conversations: Sequence[Sequence[Mapping[str, str]]],
    *,
    control: Collection[str],
    bos: str | None = None,
    eos: str | None = None,
    add_generation_prompt: bool = True,
    allow_checkpoint_template: bool = False,
) -> list[formats.Text]:
  """Renders conversations with the chat template of a checkpoint.

  Args:
    source: the template, such as `Tokenizer.chat_template`.
    conversations: N sequences of {'role', 'content'}; roles are system, user,
      assistant, tool.
    control: names of control tokens, such as `Tokenizer.control`.
    bos: the template's bos_token.
    eos: the template's eos_token.
    add_generation_prompt: whether to begin the assistant's next turn.
    allow_checkpoint_template: must be true.

  Returns:
    N tuples of parts for `Tokenizer.encode_rows`.

  Raises:
    ConfigError: not allowed; jinja2 is missing or older than 3.1.6; the
      template is too large, too slow, writes too much, needs too much memory,
      does what the sandbox forbids, is wrong, or takes contents apart.
    ValueError: a message has an unknown role, or fields other than role and
      content.
  """
  if not allow_checkpoint_template:
    raise errors.ConfigError(
        'a chat template out of a checkpoint is a program by somebody else; '
        'use a built-in prompt format, or set allow_checkpoint_template')
  size = len(source.encode())
  if size > MAX_SOURCE_BYTES:
    raise errors.ConfigError(f'the chat template has {size} bytes, more than '
                             f'the {MAX_SOURCE_BYTES} allowed')
  marks = [''.join(secrets.choice(letters) for _ in range(size))
           for letters, size in _MARKS]
  jobs, contents = [], []
  for mark in marks:
    for conversation in conversations:
      marked, content = _marked(conversation, mark)
      contents.append(content)
      jobs.append({
          'messages': marked, 'bos_token': bos or '', 'eos_token': eos or '',
          'add_generation_prompt': add_generation_prompt})
  texts = _run(source, jobs)
  names = sorted(filter(None, control), key=len, reverse=True)
  count = len(conversations)
  first, second = (
      [_parts(text, content, mark, names) for text, content in
       zip(texts[part], contents[part])]
      for mark, part in zip(marks, (slice(count), slice(count, None))))
  if first != second:
    raise errors.ConfigError(
        'the chat template takes the contents of messages apart, so that '
        'they cannot be told from its own text; use a built-in format')
  return first


def rows(
    source: str,
    conversations: Sequence[Sequence[Mapping[str, str]]],
    **kwargs,
) -> list[tuple[formats.Text, formats.Text]]:
  """(prompt, response) of conversations that end with an assistant's turn.

  The response is what the template writes after the prompt, up to and with
  its first control token (<|im_end|>). Where the whole conversation does not
  begin with the prompt, as with templates that rewrite old turns, it is the
  last content alone.

  Args:
    source: the template.
    conversations: N, each at least two turns, the last of the assistant.
    **kwargs: of `render`, without add_generation_prompt.

  Raises:
    ConfigError: as `render`.
    ValueError: as `render`, or the last turn is not the assistant's.
  """
  for index, conversation in enumerate(conversations):
    if len(conversation) < 2 or conversation[-1].get('role') != 'assistant':
      raise ValueError(f'conversation {index} does not end with a turn of the '
                       'assistant that answers one')
  prompts = render(source, [c[:-1] for c in conversations], **kwargs)
  wholes = render(source, conversations, add_generation_prompt=False, **kwargs)
  return [(prompt, _after(prompt, whole) or conversation[-1]['content'])
          for prompt, whole, conversation
          in zip(prompts, wholes, conversations)]


def _after(prompt: formats.Text, whole: formats.Text) -> formats.Text:
  """What `whole` has after `prompt`, up to a control token; () if it differs.
  """
  parts = list(whole)
  for part in prompt:
    if not parts:
      return ()
    if parts[0] == part:
      parts.pop(0)
    elif isinstance(part, str) and isinstance(parts[0], str) and (
        part is prompt[-1] and parts[0].startswith(part)):
      parts[0] = parts[0][len(part):]
    else:
      return ()
  ends = [i for i, p in enumerate(parts) if isinstance(p, formats.Special)]
  return tuple(parts[:ends[0] + 1]) if ends else tuple(parts)


def _marked(
    conversation: Sequence[Mapping[str, str]], mark: str
) -> tuple[list[dict[str, str]], list[str]]:
  """Messages with marks for contents, and the contents without outer space."""
  messages, contents = [], []
  for index, message in enumerate(conversation):
    if set(message) != {'role', 'content'} or message['role'] not in _ROLES:
      raise ValueError(
          f'message {index} must have a role, one of {", ".join(_ROLES)}, and '
          f'a content, and nothing else; got {dict(message)!r}')
    # White space stays, so that a template can strip it; an empty content
    # stays empty, so that it can ask.
    core = message['content'].strip()
    placed = f'{mark}{len(contents):06d}{mark}' if core else ''
    before, _, after = message['content'].partition(core or '\0')
    messages.append({'role': message['role'],
                     'content': f'{before}{placed}{after}'})
    contents.append(core)
  return messages, contents


def _parts(
    text: str, contents: Sequence[str], mark: str, names: Sequence[str]
) -> formats.Text:
  """Splits at the template's control tokens, then puts the contents back."""
  pattern = '|'.join(map(re.escape, names)) or r'(?!)'
  parts = []
  for piece in re.split(f'({pattern})', text):
    if piece in names:
      parts.append(formats.Special(piece))
      continue
    own = re.split(f'{mark}([0-9]{{6}}){mark}', piece)
    own[1::2] = [contents[int(number)] for number in own[1::2]]
    if ''.join(own):
      parts.append(''.join(own))
  return tuple(parts)


def _run(source: str, jobs: Sequence[dict]) -> list[str]:
  """Renders each job in one child; kills it when one takes too long."""
  with _child() as (process, receive):
    if receive(_START_SECONDS) != _READY:
      raise errors.ConfigError(
          'chat templates need jinja2 >= 3.1.6; pip install '
          "'jinja2>=3.1.6'")
    texts = []
    for request in (source, *jobs):
      with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(request).encode() + b'\n')
        process.stdin.flush()
      answer = receive(MAX_SECONDS)
      if not answer:
        raise errors.ConfigError(
            'the chat template was stopped: it needs more memory than the '
            f'{MAX_MEMORY_BYTES >> 20} MiB allowed')
      answer = json.loads(answer)
      if 'error' in answer:
        raise errors.ConfigError(f'the chat template {answer["error"]}')
      texts.append(answer['text'])
    return texts[1:]


@contextlib.contextmanager
def _child():
  """A process that runs `_serve`, and a function that waits for its lines."""
  environment = {'PYTHONPATH': os.pathsep.join(p for p in sys.path if p),
                 'PATH': os.environ.get('PATH', '')}
  process = subprocess.Popen(
      [sys.executable, '-m', __name__], env=environment,
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
  buffer = bytearray()

  def receive(seconds: float) -> bytes:
    """One line; b'' if the child is gone, ConfigError if it is too late."""
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
      selector.register(process.stdout, selectors.EVENT_READ)
      while b'\n' not in buffer:
        if not selector.select(max(deadline - time.monotonic(), 0)):
          raise errors.ConfigError(
              f'the chat template was stopped after {seconds:g} s; use a '
              'built-in format')
        chunk = os.read(process.stdout.fileno(), 2**16)
        if not chunk:
          return b''
        buffer.extend(chunk)
    line, _, rest = bytes(buffer).partition(b'\n')
    buffer[:] = rest
    return line

  try:
    yield process, receive
  finally:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
      with contextlib.suppress(OSError):
        stream.close()


def _environment() -> Any:
  """Jinja as transformers sets it up, but that forbidden things raise.

  `strftime_now` writes the day: on another one a run has another corpus.
  """
  import jinja2
  from jinja2 import ext
  from jinja2 import nodes
  from jinja2 import sandbox

  class Generation(ext.Extension):  # marks what an assistant has said
    tags = frozenset({'generation'})

    def parse(self, parser):
      line = next(parser.stream).lineno
      return nodes.Scope(parser.parse_statements(
          ('name:endgeneration',), drop_needle=True), lineno=line)

  class Sandbox(sandbox.ImmutableSandboxedEnvironment):

    def unsafe_undefined(self, obj, attribute):
      raise jinja2.exceptions.SecurityError(
          f'{attribute!r} of {type(obj).__name__!r} is unsafe')

  def fail(message):
    raise jinja2.exceptions.TemplateError(message)

  environment = Sandbox(trim_blocks=True, lstrip_blocks=True,
                        extensions=['jinja2.ext.loopcontrols', Generation])
  environment.globals['raise_exception'] = fail
  environment.globals['strftime_now'] = (
      lambda form: datetime.datetime.now().strftime(form))
  environment.filters['tojson'] = (
      lambda x, ensure_ascii=False, indent=None, separators=None,
      sort_keys=False: json.dumps(
          x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
          sort_keys=sort_keys))
  return environment


def _write(template: Any, job: dict) -> str:
  chunks, size = [], 0
  for chunk in template.generate(**job):
    chunks.append(chunk)
    size += len(chunk.encode())
    if size > MAX_OUTPUT_BYTES:
      raise ValueError(f'it writes more than the {MAX_OUTPUT_BYTES} bytes '
                       'allowed')
  return ''.join(chunks)


def _serve():
  """The child: lines of JSON, the source and then jobs; for each, an answer.

  An answer is a line of JSON, {'text'} or {'error'}.
  """
  import ctypes
  import resource

  import jinja2
  with contextlib.suppress(AttributeError):
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # Linux: dies with its parent
  version = tuple(int(x) for x in jinja2.__version__.split('.')[:3])
  if version < (3, 1, 6):
    return
  environment, template = _environment(), None
  for limit, value in ((resource.RLIMIT_AS, MAX_MEMORY_BYTES),
                       (resource.RLIMIT_CORE, 0)):
    with contextlib.suppress(ValueError, OSError):  # not on every system
      resource.setrlimit(limit, (value, value))
  print(_READY.decode(), flush=True)
  for line in sys.stdin:
    try:
      request = json.loads(line)
      if template is None:
        template, text = environment.from_string(request), ''
      else:
        text = _write(template, request)
      answer = {'text': text}
    except MemoryError:
      answer = {'error': 'needs more memory than the '
                         f'{MAX_MEMORY_BYTES >> 20} MiB allowed'}
    except Exception as error:  # whatever a stranger's program runs into
      answer = {'error': f'is refused or wrong: {errors.first_line(error)}'}
    print(json.dumps(answer), flush=True)


if __name__ == '__main__':
  _serve()
