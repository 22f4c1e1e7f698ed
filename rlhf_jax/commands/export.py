"""Writes a trained model for transformers.

  rlhf-jax export --workdir=runs/fig3 --stage=seed_1/sft --directory=exported

A policy then loads as AutoModelForCausalLM, a reward model as
AutoModelForSequenceClassification with one label, and its tokenizer as
AutoTokenizer. An ensemble is a directory with one for each member, and its
README.md has the lines that aggregate them. Adapters are merged, or with
--adapter written alone, as PEFT reads them; parameters are float32.
"""

import pathlib

from absl import flags

from rlhf_jax import errors
from rlhf_jax.commands import arguments
from rlhf_jax.commands import launch
from rlhf_jax.commands import models
from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.models import adapters
from rlhf_jax.models import convert
from rlhf_jax.models import pretrained
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import cards
from rlhf_jax.pipeline import reward_directory
from rlhf_jax.rewards import parameters
from rlhf_jax.storage import files


def export(stage: pathlib.Path, directory: pathlib.Path, *,
           member: int | None = None, adapter: bool = False):
  """Writes the model that a stage has trained.

  Args:
    stage: directory of a complete stage that trains a policy or reward models.
    directory: made if it is missing; must not hold a model.
    member: of an ensemble; None: all of them.
    adapter: whether to write the adapter of a policy and not the policy.

  Raises:
    CheckpointError: the stage trains nothing, or the directory cannot be
      written.
    ConfigError: no such member or adapter, or no model of transformers has
      this shape.
  """
  model = artifacts.read_model(stage)
  coder = _padded(stage, artifacts.read_tokenizer(stage), model['kind'])
  extra = {'bos_token_id': coder.bos_id, 'eos_token_id': coder.eos_id,
           'pad_token_id': coder.pad_id}
  if model['kind'] == 'reward':
    if adapter:
      raise errors.ConfigError('--adapter is of policies; leave it out')
    models_ = artifacts.restore_rewards(stage)
    if member is not None:
      models_ = _of_member(models_, member, stage)
    reward_directory.save(directory, models_, coder, model['texts'], extra)
    return
  if adapter:
    _export_adapter(stage, directory)
  else:
    convert.save(directory, *artifacts.restore_policy(stage), extra=extra)
  coder.save_directory(directory)
  if coder.ends:
    files.write_json(directory / 'generation_config.json', extra | {
        'eos_token_id': coder.eos_ids})
  files.write_text(directory / 'README.md', cards.policy(
      model['texts'], adapter=adapter,
      has_template=coder.chat_template is not None))


def _of_member(models_, member: int, stage: pathlib.Path):
  """The ensemble of one member."""
  if not 0 <= member < models_.num_members:
    raise errors.ConfigError(f'--member={member}: {stage} has members 0 to '
                             f'{models_.num_members - 1}')
  part = slice(member, member + 1)
  return models_._replace(
      params=parameters.take(models_.params, part),
      scale=models_.scale and {
          name: x[part] for name, x in models_.scale.items()})


def _padded(stage: pathlib.Path, coder: tokenizer_lib.Tokenizer, kind: str
            ) -> tokenizer_lib.Tokenizer:
  """The tokenizer; for rewards, one whose padding is not its EOS.

  transformers scores the token before the first padding.
  """
  if kind != 'reward' or coder.pad_id != coder.eos_id:
    return coder
  roles = artifacts.read_model(stage)['tokenizer']
  others = [name for name in roles['control']
            if 'pad' in name.lower() and name not in roles['eos']]
  if not others:
    raise errors.ConfigError(
        f'{stage}: padding and EOS are both {coder.roles["eos"]!r}, and '
        'transformers would score the token before the EOS; name another '
        'token with config.data.files.pad')
  return tokenizer_lib.Tokenizer.from_file(
      stage / 'tokenizer.json', **(roles | {'pad': others[0]}))


def _export_adapter(stage: pathlib.Path, directory: pathlib.Path):
  parts = artifacts.restore_parts(stage)
  if 'adapter' not in parts.trainable:
    raise errors.ConfigError(
        f'--adapter: {stage} has trained no adapter; leave the flag out')
  source = pretrained.source(artifacts.read_model(stage)['model'])
  if not source.is_dir():
    raise errors.ConfigError(
        f'--adapter: peft cannot load {source}, which is no Hugging Face '
        'directory; leave the flag out')
  adapters.save(directory, parts.config, parts.trainable['adapter'],
                base=str(source))


def run(argv: list[str]):
  """Parses and exports.

  Args:
    argv: name of the command, and flags.

  Raises:
    UserError: of whatever kind.
  """
  values = flags.FlagValues()
  arguments.define_texts(
      values,
      workdir='of the study',
      stage='that trained the model, such as seed_1/sft',
      directory='to write; must not hold a model')
  flags.DEFINE_integer('member', None, 'of an ensemble; all if absent',
                       flag_values=values)
  flags.DEFINE_boolean('adapter', False, 'whether to write the adapter alone',
                       flag_values=values)
  arguments.parse(values, argv, __doc__)
  arguments.require(values, argv, 'workdir', 'stage', 'directory')
  stage = models.stage_directory(values, argv)
  launch.prepare()
  directory = pathlib.Path(values.directory)
  export(stage, directory, member=values.member, adapter=values.adapter)
  print(directory.absolute())
