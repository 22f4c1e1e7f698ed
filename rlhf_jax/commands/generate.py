"""Answers prompts by a trained policy: one, a file of them, or a chat.

  rlhf-jax generate --workdir=runs/dpo --stage=seed_0/policies/policy \\
      --prompt='Name a colour.'
  rlhf-jax generate --model=exported --data=prompts.jsonl --output=answers.jsonl
  rlhf-jax generate --model=exported          # a chat; Ctrl-D ends it

Prompts are written in the format that the policy was trained in. In a chat
/new begins again.
"""

from collections.abc import Sequence
import sys

from absl import flags
import jax

from rlhf_jax import errors
from rlhf_jax.commands import arguments
from rlhf_jax.commands import launch
from rlhf_jax.commands import models
from rlhf_jax.data import formats
from rlhf_jax.evaluation import texts as texts_lib
from rlhf_jax.parallel import meshes
from rlhf_jax.storage import files


def run(argv: list[str]):
  """Parses and answers.

  Args:
    argv: name of the command, and flags.

  Raises:
    UserError: of whatever kind.
  """
  values = flags.FlagValues()
  models.define(values)
  arguments.define_texts(
      values,
      prompt='to answer',
      data='in its place, a file or directory with prompts',
      output='JSON lines to write; to the terminal if absent')
  flags.DEFINE_float('temperature', 1.0, '0: the likeliest token',
                     flag_values=values)
  flags.DEFINE_float('top_p', 1.0, 'in (0, 1]', flag_values=values)
  flags.DEFINE_integer('top_k', 0, '0: all tokens', flag_values=values)
  flags.DEFINE_integer('min_new_tokens', 0, 'before the end of an answer',
                       flag_values=values)
  flags.DEFINE_integer('samples', 1, 'answers to each prompt',
                       flag_values=values)
  flags.DEFINE_integer('seed', 0, 'of the samples', flag_values=values)
  arguments.parse(values, argv, __doc__)
  if values.prompt is not None and values.data is not None:
    raise errors.ConfigError('give --prompt or --data')
  launch.prepare()
  with jax.set_mesh(meshes.make()):
    if values.prompt is None and values.data is None:
      _chat(values, models.policy(values, argv))
      return
    rows = None if values.data is None else models.questions(values.data)
    policy = models.policy(values, argv)
    _answer(values, policy, rows)


def _sampler(values: flags.FlagValues) -> dict:
  return {name: values[name].value
          for name in ('temperature', 'top_p', 'top_k', 'min_new_tokens')}


def _prompts(values: flags.FlagValues, policy: models.Policy, rows: list | None
             ) -> tuple[list[str], list]:
  """The prompts as they are said, and as they are written."""
  if rows is None:
    return [values.prompt], [models.write(policy.format, values.prompt)]
  return [row.prompt for row in rows], models.rows_in(
      policy.format, policy.coder, rows, values.data)


def _answer(values: flags.FlagValues, policy: models.Policy,
            rows: list | None):
  """Answers each prompt; to a file, or to the terminal."""
  prompts, texts = _prompts(values, policy, rows)
  try:
    tokens, mask = models.answer(policy, texts, seed=values.seed,
                                 samples=values.samples, **_sampler(values))
  except ValueError as error:
    raise errors.ConfigError(errors.first_line(error)) from None
  responses = texts_lib.decode(policy.coder, tokens, mask)[1]
  lines = [{'prompt': prompts[at // values.samples], 'response': response}
           for at, response in enumerate(responses)]
  if values.output is not None:
    files.write_jsonl(values.output, lines)
    arguments.progress(f'{values.output}: {len(lines)} answers')
    return
  for line in lines:
    if len(lines) > 1:
      print(f'> {line["prompt"]}')
    print(line['response'])


def _chat(values: flags.FlagValues, policy: models.Policy):
  """A conversation in the terminal; each turn sees those before it."""
  several = policy.format in formats.DIALOGUES and policy.format != 'hh'
  messages: list[dict] = []
  arguments.progress('a chat: /new begins again, Ctrl-D ends it')
  for turn, line in enumerate(_said()):
    if line == '/new':
      messages = []
      continue
    message = {'role': 'user', 'content': line}
    messages = [*messages, message] if several else [message]
    text = (models.write(policy.format, '', messages=messages) if several
            else models.write(policy.format, line))
    tokens, mask = models.answer(policy, [text], seed=values.seed,
                                 first_row=turn, **_sampler(values))
    response = texts_lib.decode(policy.coder, tokens, mask)[1][0].strip()
    print(response, flush=True)
    messages.append({'role': 'assistant', 'content': response})


def _said() -> Sequence[str]:
  """Lines of the user, blank ones left out, until there are no more."""
  while True:
    try:
      if sys.stdin.isatty():
        print('> ', end='', file=sys.stderr, flush=True)
      line = sys.stdin.readline()
    except KeyboardInterrupt:
      return
    if not line:
      return
    if line.strip():
      yield line.strip()
