"""Evaluates a policy on held-out prompts, against another.

  rlhf-jax evaluate --workdir=runs/rloo --stage=seed_0/policies/policy \\
      [--reward=module:function] [--against=seed_0/sft]
  rlhf-jax evaluate --model=exported --data=prompts.jsonl --against=base_model

One answer to each prompt by both: reward, length in tokens and words, variety,
the KL from the other policy in nats, and how often the answer has the higher
reward, ties half. Prompts are those that the study has held out, or of --data;
the other policy is the one that the study began with, a stage of the workdir,
or a model as --model takes it.
"""

from collections.abc import Sequence
import contextlib
import pathlib
import re
from typing import Any, NamedTuple

from absl import flags
import jax
import numpy as np

from rlhf_jax import errors
from rlhf_jax.commands import arguments
from rlhf_jax.commands import launch
from rlhf_jax.commands import models
from rlhf_jax.commands import studies
from rlhf_jax.configs import base
from rlhf_jax.data import coders
from rlhf_jax.data import load as load_lib
from rlhf_jax.evaluation import columns
from rlhf_jax.evaluation import monitor
from rlhf_jax.evaluation import statistics
from rlhf_jax.evaluation import texts as texts_lib
from rlhf_jax.parallel import meshes
from rlhf_jax.parallel import sharding
from rlhf_jax.pipeline import reward_directory
from rlhf_jax.rewards import components as components_lib
from rlhf_jax.runner import workdirs
from rlhf_jax.storage import files
from rlhf_jax.studies import nodes

_KINDS = ('vader', 'readability')  # rewards that need nothing but a text


class Answers(NamedTuple):
  """One answer of a policy to each of N prompts."""

  tokens: np.ndarray  # i32[N, T]
  mask: np.ndarray  # bool[N, T]
  prompts: list[str]
  responses: list[str]


def run(argv: list[str]):
  """Parses, answers, measures.

  Args:
    argv: name of the command, and flags.

  Raises:
    UserError: of whatever kind.
  """
  values = flags.FlagValues()
  models.define(values)
  arguments.define_texts(
      values,
      against=('a stage of the workdir, or a model; what the study began '
               'with, if absent'),
      data=('file or directory of prompts; what the study held out, if '
            'absent'),
      reward=('module:function, a directory of reward models, '
              f'{" or ".join(_KINDS)}'),
      output='JSON lines to write: prompts, answers, rewards')
  flags.DEFINE_integer('num_prompts', None, 'the first of them; all if absent',
                       flag_values=values)
  flags.DEFINE_float('temperature', 1.0, 'above 0', flag_values=values)
  flags.DEFINE_integer('seed', 0, 'of the samples', flag_values=values)
  flags.DEFINE_integer('chunk_size', 32, 'prompts at a time',
                       flag_values=values)
  arguments.parse(values, argv, __doc__)
  if not values.temperature > 0:
    raise errors.ConfigError(
        f'--temperature={values.temperature}: samples must differ; give more '
        'than 0')
  launch.prepare()
  with jax.set_mesh(meshes.make()):
    one = models.policy(values, argv)
    other = _other(values, one)
    prompts = _prompts(values, one)
    answers = [_answer(values, policy, prompts)
               for policy in (one, other) if policy is not None]
    rewards = _rewards(values, one, answers)
    rows = [_row(values, one, other, answers[0], rewards[0])]
    if other is not None:
      rows.append(_row(values, other, None, answers[1], rewards[1]))
      if rewards[0] is not None:
        rows[0]['win_rate'] = float(statistics.win_rate(*rewards))
  _show(rows)
  if values.output is not None:
    files.write_jsonl(values.output, _lines(answers, rewards))
    arguments.progress(values.output)


def _other(values, one: models.Policy) -> models.Policy | None:
  """The policy that is compared with, written for as the first is."""
  name = values.against
  if name is None and values.workdir:
    name = f'{values.stage.partition("/")[0]}/sft'
    if name == values.stage or not (
        pathlib.Path(values.workdir) / name / workdirs.RESULT).exists():
      return None
  if name is None:
    return None
  of_stage = values.workdir and (pathlib.Path(values.workdir) / name).is_dir()
  other = (models.of_stage(models.complete_stage(values.workdir, name))
           if of_stage else models.of_model(name))
  token = one.coder.differs_from(other.coder)
  if token is not None:
    raise errors.ConfigError(
        f'--against={name} has another id for the token {token!r}, so that '
        'there is no KL between the two; compare models of one tokenizer')
  return other._replace(**{field: getattr(one, field) for field in (
      'coder', 'format', 'max_prompt_length', 'max_response_length')})


def _prompts(values, one: models.Policy) -> np.ndarray:
  """Tokens i32[N, P] and lengths of the prompts."""
  if values.data is None:
    if not values.workdir:
      raise errors.ConfigError('give --data, since --model has no study that '
                               'has held out prompts')
    prompts = _held_out(values)
    tokens, lengths = prompts.tokens, prompts.lengths
  else:
    rows = coders.encode(one.coder, one, models.rows_in(
        one.format, one.coder, models.questions(values.data), values.data))
    tokens, lengths = rows.prompts, rows.prompt_lengths
  count = values.num_prompts or len(tokens)
  return tokens[:count], lengths[:count]


def _held_out(values):
  """The evaluation prompts of the workdir's study.

  Raises:
    CheckpointError: its config is of other texts than its models.
  """
  seed = re.match(r'seed_(\d+)/', values.stage)
  if seed is None:
    raise errors.ConfigError(f'--stage={values.stage} is of no seed, whose '
                             'prompts could be taken; give --data')
  workdir, sft = pathlib.Path(values.workdir), f'{seed[0]}sft'
  corpus = load_lib.load(
      nodes.data_config(studies.config_of(workdir)), int(seed[1]))
  record = workdirs.read_record(models.complete_stage(values.workdir, sft))
  if record['result']['corpus'] != corpus.fingerprint():
    raise errors.CheckpointError(
        f'{workdir / workdirs.CONFIG} gives other texts than those that '
        f'{sft} has learned from, so that what it holds out may not be held '
        'out; restore the study\'s own config and data, or give --data')
  return corpus.eval_prompts


def _answer(values, one: models.Policy, prompts) -> Answers:
  tokens, mask = models.sample(
      one, *prompts, seed=values.seed, chunk_size=values.chunk_size,
      temperature=values.temperature)
  tokens, mask = tokens[:, 0], mask[:, 0]
  return Answers(tokens, mask, *texts_lib.decode(one.coder, tokens, mask))


def _rewards(values, one: models.Policy, answers: Sequence[Answers]
             ) -> list[np.ndarray | None]:
  """f32[N] of each policy's answers; None without a reward."""
  name, models_ = values.reward, components_lib.Models()
  if name is None:
    return [None] * len(answers)
  if pathlib.Path(name).is_dir():
    loaded = reward_directory.load(name)
    token = one.coder.differs_from(loaded.coder)
    if token is not None:
      raise errors.ConfigError(
          f'--reward={name} has another id for the token {token!r} than the '
          'policy; score its answers as texts: --output, then rlhf-jax score')
    nodes_ = base.proxy()
    models_ = components_lib.Models(proxy=loaded.models.frozen())
  elif ':' in name:
    nodes_ = {'reward': dict(kind='function', function=name)}
  elif name in _KINDS:
    nodes_ = {'reward': dict(kind=name)}
  else:
    raise errors.ConfigError(
        f'--reward={name} is no module:function and no directory of reward '
        f'models; {errors.nearest(name, _KINDS)}')
  with contextlib.closing(components_lib.Components(
      nodes_, models=models_, pool=base.pool())) as rewards:
    return [rewards.total(rewards(*one_).values) for one_ in answers]


def _row(values, one: models.Policy, other: models.Policy | None,
         answers: Answers, rewards: np.ndarray | None) -> dict[str, float]:
  """What is measured of one policy."""
  row = {} if rewards is None else columns.with_error(
      'reward', rewards.astype(np.float64))
  if other is not None:
    row |= columns.divergence(
        *(_logprobs(values, policy, answers) for policy in (one, other)),
        answers.mask)
  return row | columns.of_texts(
      answers.tokens, answers.mask, answers.responses, one.coder.eos_ids)


def _logprobs(values, one: models.Policy, answers: Answers) -> np.ndarray:
  """f32[N, T] at the temperature that sampled."""
  compute = lambda tokens, mask: monitor.token_logprobs(
      one.config, one.params, tokens[:, None], mask[:, None],
      values.temperature)[:, 0]
  return sharding.map_rows(compute, answers.tokens, answers.mask,
                           chunk_size=values.chunk_size)


def _lines(answers: Sequence[Answers], rewards: Sequence[Any]) -> list[dict]:
  lines = [{'prompt': prompt, 'response': response} for prompt, response
           in zip(answers[0].prompts, answers[0].responses)]
  for at, line in enumerate(lines):
    if len(answers) > 1:
      line['against'] = answers[1].responses[at]
    for name, scores in zip(('reward', 'against_reward'), rewards):
      if scores is not None:
        line[name] = float(scores[at])
  return lines


def _show(rows: Sequence[dict[str, float]]):
  """A line for each number, a column for each policy."""
  names = dict.fromkeys(name for row in rows for name in row
                        if not name.endswith('_se'))
  heads = ('policy', 'against')[:len(rows)]
  print(f'{"":<14}' + ''.join(f'{head:>22}' for head in heads))
  for name in names:
    cells = []
    for row in rows:
      cell = '' if name not in row else f'{row[name]:.4g}'
      if f'{name}_se' in row:
        cell += f' +- {row[f"{name}_se"]:.2g}'
      cells.append(f'{cell:>22}')
    print(f'{name:<14}' + ''.join(cells))
