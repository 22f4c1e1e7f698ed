"""Trained policies for commands that use one: of a stage, or of a file."""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any, NamedTuple

from absl import flags
import jax
import numpy as np

from rlhf_jax import errors
from rlhf_jax import sampling
from rlhf_jax import types
from rlhf_jax.commands import arguments
from rlhf_jax.configs import texts as texts_lib
from rlhf_jax.data import coders
from rlhf_jax.data import examples
from rlhf_jax.data import formats
from rlhf_jax.data import logged
from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.models import pretrained
from rlhf_jax.models import transformer
from rlhf_jax.parallel import sharding
from rlhf_jax.pipeline import artifacts
from rlhf_jax.runner import run as run_lib
from rlhf_jax.runner import workdirs

_LENGTHS = {'max_prompt_length': 512, 'max_response_length': 256}
AS_THEY_ARE = {'format': '', **_LENGTHS}  # texts of whoever says nothing


class Policy(NamedTuple):
  """A policy with its tokenizer, and how its texts are written."""

  config: transformer.Config
  params: types.Params
  coder: tokenizer_lib.Tokenizer
  format: str  # '' : prompts as they are
  max_prompt_length: int
  max_response_length: int


def define(values: flags.FlagValues):
  """Adds the flags that name a policy, and how its texts are written."""
  arguments.define_texts(
      values,
      workdir='of a study',
      stage='of it that trained the model, such as seed_0/policies/policy',
      model=('in their place: a directory of transformers, a .gguf file, '
             "'smollm2'"),
      format=("of prompts; '' leaves them as they are; that of the stage or "
              "the model's own if absent"))
  for name, value in _LENGTHS.items():
    flags.DEFINE_integer(
        name, None, f'in tokens; of the stage, or {value}, if absent',
        flag_values=values)


def stage_directory(values: flags.FlagValues, argv: Sequence[str]
                    ) -> pathlib.Path:
  """The directory of the stage that flags name, see `complete_stage`.

  Raises:
    ConfigError: --workdir or --stage is missing.
    CheckpointError: there is no such stage.
  """
  if not (values.workdir and values.stage):
    raise errors.ConfigError(
        f'give --workdir and --stage; see {argv[0]} --help')
  return complete_stage(values.workdir, values.stage)


def complete_stage(workdir: str, stage: str) -> pathlib.Path:
  """The directory of a complete stage that trained something.

  Raises:
    CheckpointError: there is no such stage.
  """
  path = pathlib.Path(workdir)
  if run_lib.read_result(path, stage) is None:
    raise errors.CheckpointError(
        f'{path / stage} is no complete stage; name one that trains a model, '
        f'such as {_stages(path)}, or run it first')
  workdirs.check_layout(path)
  return path / stage


def _stages(workdir: pathlib.Path) -> str:
  """The stages with a model that a workdir holds, for a message."""
  names = sorted(str(path.parent.relative_to(workdir))
                 for path in workdir.glob('**/model.json')
                 if (path.parent / workdirs.RESULT).exists())
  return ', '.join(names[:8]) or 'seed_0/sft'


def policy(values: flags.FlagValues, argv: Sequence[str]) -> Policy:
  """Loads the policy that flags name, over the mesh in use.

  Raises:
    UserError: there is none, or it is refused.
  """
  if values.model and (values.workdir or values.stage):
    raise errors.ConfigError('give --model, or --workdir and --stage')
  loaded = (of_model(values.model) if values.model
            else of_stage(stage_directory(values, argv)))
  texts = {name: getattr(loaded, name) for name in AS_THEY_ARE}
  return loaded._replace(**written(values, texts))


def of_model(model: str) -> Policy:
  """A policy by the name or the path that --model has for it."""
  node = {'name': model} if model == 'smollm2' else {'path': model}
  coder = coders.load_tokenizer(str(pretrained.source(node)))
  whole = pretrained.init(node, coder.vocab_size, jax.random.key(0))
  return _frozen(whole.config, whole.trainable, coder, AS_THEY_ARE | {
      'format': texts_lib.own_format(coder) or ''})


def of_stage(directory: pathlib.Path) -> Policy:
  """The policy of a complete stage."""
  return _frozen(*artifacts.restore_policy(directory),
                 artifacts.read_tokenizer(directory),
                 artifacts.read_model(directory)['texts'])


def _frozen(config, params, coder, texts) -> Policy:
  return Policy(config, sharding.shard_params(
      transformer.frozen(config, params)), coder, **texts)


def written(values: flags.FlagValues, texts: dict[str, Any]) -> dict[str, Any]:
  """How texts are written, with what flags change of it."""
  changes = {name: values[name].value for name in ('format', *_LENGTHS)}
  return {name: value if changes[name] is None else changes[name]
          for name, value in texts.items()}


def write(format_: str, prompt: str, response: str = '',
          messages: Sequence[dict] = ()) -> coders.Texts:
  """A prompt and its response in a format, or as they are.

  Raises:
    ConfigError: the format does not take them.
  """
  try:
    if messages:
      return formats.get(format_)(response=response, messages=messages)
    if not format_:
      return prompt, response
    return formats.get(format_)(prompt, response)
  except (TypeError, ValueError) as error:
    raise errors.ConfigError(
        f'--format={format_}: {error}; see docs/how-to/real_models.md'
        ) from None


def rows_in(format_: str, coder: tokenizer_lib.Tokenizer,
            rows: Sequence[logged.Logged], source: str) -> list[coders.Texts]:
  """Prompts and responses of a file in a format, or as they are.

  Whoever names the format 'chat_template' to a command has allowed it.

  Args:
    format_: '' for none.
    coder: whose template it may be.
    rows: of the file.
    source: of them, for messages.

  Raises:
    ConfigError: the format does not take them.
  """
  write = (examples.write_in(format_) if format_
           else lambda row: (row.prompt, row.response))
  try:
    return [*coders.rendered(coder, [*map(write, rows)], allowed=True)]
  except ValueError as error:
    raise errors.ConfigError(f'--data={source}: {error}') from None


def questions(path: str) -> list[logged.Logged]:
  """The prompts of a file, one row of each, and no responses."""
  first = {}
  for row in logged.read(path).rows:
    first.setdefault(examples.prompt_of(row), row)
  return [dataclasses.replace(row, response='') for row in first.values()]


def answer(one: Policy, prompts: Sequence[coders.Texts], **options: Any
           ) -> tuple[np.ndarray, np.ndarray]:
  """Samples responses to prompts of `write`; the rest is that of `sample`."""
  rows = coders.encode(one.coder, one, coders.rendered(
      one.coder, prompts, allowed=True))
  return sample(one, rows.prompts, rows.prompt_lengths, **options)


def sample(one: Policy, prompts: np.ndarray, lengths: np.ndarray, *, seed: int,
           samples: int = 1, first_row: int = 0, chunk_size: int = 16,
           **sampler: Any) -> tuple[np.ndarray, np.ndarray]:
  """Samples responses, tokens i32[N, K, T] and mask bool[N, K, T].

  Args:
    one: the policy.
    prompts: i32[N, P], right-padded.
    lengths: i32[N].
    seed: of the samples.
    samples: K.
    first_row: number of the first prompt in the stream of draws, so that
      the turns of a chat draw apart.
    chunk_size: prompts at a time.
    **sampler: temperature, top_k, top_p, min_new_tokens of `sampling.sample`.
  """
  # As wide as the longest of them, in steps that few programs serve.
  width = min(-(-int(lengths.max()) // 32) * 32, prompts.shape[1])

  def draw(tokens, lengths, row_ids):
    batch = sampling.sample(
        one.config, one.params, tokens, lengths, jax.random.key(seed),
        row_ids=row_ids, num_samples=samples,
        max_new_tokens=one.max_response_length, eos_id=one.coder.eos_ids,
        pad_id=one.coder.pad_id, num_tokens=one.coder.vocab_size,
        stops=one.coder.stops, **sampler)
    return batch.tokens, batch.mask

  return sharding.map_rows(draw, prompts[:, :width], lengths,
                           first_row + np.arange(len(prompts)),
                           chunk_size=chunk_size)
