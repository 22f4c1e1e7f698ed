"""A trained model as a Hugging Face directory.

  python -m rlhf_jax.export --workdir=runs/fig3 --stage=seed_1/sft \
      --directory=exported

A policy then loads in transformers as AutoModelForCausalLM, a reward model as
AutoModelForSequenceClassification with one label, and its tokenizer as
AutoTokenizer. Adapters are merged, or with --adapter written alone, as PEFT
reads them; parameters are float32.
"""

import pathlib
import sys

from absl import flags
import jax

from rlhf_jax import errors
from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.models import adapters
from rlhf_jax.models import convert
from rlhf_jax.models import pretrained
from rlhf_jax.pipeline import artifacts
from rlhf_jax.runner import run as run_lib
from rlhf_jax.runner import workdirs

_FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'of the study', flag_values=_FLAGS, required=True)
_STAGE = flags.DEFINE_string(
    'stage', None, 'that trained the model, such as seed_1/sft',
    flag_values=_FLAGS, required=True)
_DIRECTORY = flags.DEFINE_string(
    'directory', None, 'to write; must not hold a model', flag_values=_FLAGS,
    required=True)
_MEMBER = flags.DEFINE_integer(
    'member', 0, 'of an ensemble of reward models', flag_values=_FLAGS)
_ADAPTER = flags.DEFINE_boolean(
    'adapter', False, 'whether to write the adapter alone', flag_values=_FLAGS)


def export(workdir: pathlib.Path, stage: str, directory: pathlib.Path,
           *, member: int = 0, adapter: bool = False):
  """Writes the model that a stage has trained.

  Args:
    workdir: of the study.
    stage: a complete stage that trains a policy or reward models.
    directory: made if it is missing; must not hold a model.
    member: of an ensemble; its score is given without its bias, which
      transformers has no place for.
    adapter: whether to write the adapter of a policy and not the policy.

  Raises:
    CheckpointError: the stage is not complete or trains nothing, or the
      directory cannot be written.
    ConfigError: no such member or adapter, or no model of transformers has
      this shape.
  """
  if run_lib.read_result(workdir, stage) is None:
    raise errors.CheckpointError(
        f'{workdir / stage} is no complete stage; name one that trains a '
        'model, such as seed_1/sft, or run it first')
  workdirs.check_layout(workdir)
  path = workdir / stage
  kind = artifacts.read_model(path)['kind']
  coder = _padded(path, artifacts.read_tokenizer(path), kind)
  extra = {'bos_token_id': coder.bos_id, 'eos_token_id': coder.eos_id,
           'pad_token_id': coder.pad_id}
  if adapter:
    _export_adapter(path, kind, directory)
  elif kind == 'policy':
    convert.save(directory, *artifacts.restore_policy(path), extra=extra)
  else:
    ensemble = artifacts.restore_rewards(path)
    if not 0 <= member < ensemble.num_members:
      raise errors.ConfigError(f'--member={member}: {stage} has members 0 to '
                               f'{ensemble.num_members - 1}')
    params = jax.tree.map(lambda x: x[member], ensemble.params)
    params['head']['bias'] = 0 * params['head']['bias']
    convert.save_reward(directory, ensemble.config, params, extra=extra)
  coder.save_directory(directory)


def _padded(stage: pathlib.Path, coder: tokenizer_lib.Tokenizer, kind: str
            ) -> tokenizer_lib.Tokenizer:
  """The tokenizer; for rewards, one whose padding is not its EOS.

  transformers scores the token before the first padding.
  """
  if kind != 'reward' or coder.pad_id != coder.eos_id:
    return coder
  roles = artifacts.read_model(stage)['tokenizer']
  others = [name for name in roles['control']
            if 'pad' in name.lower() and name != roles['eos']]
  if not others:
    raise errors.ConfigError(
        f'{stage}: padding and EOS are both {roles["eos"]!r}, and '
        'transformers would score the token before the EOS; name another '
        'token with config.data.files.pad')
  return tokenizer_lib.Tokenizer.from_file(
      stage / 'tokenizer.json', **(roles | {'pad': others[0]}))


def _export_adapter(stage: pathlib.Path, kind: str, directory: pathlib.Path):
  parts = artifacts.restore_parts(stage) if kind == 'policy' else None
  if parts is None or 'adapter' not in parts.trainable:
    raise errors.ConfigError(
        f'--adapter: {stage} has trained no adapter; leave the flag out')
  source = pretrained.source(artifacts.read_model(stage)['model'])
  if not source.is_dir():
    raise errors.ConfigError(
        f'--adapter: peft cannot load {source}, which is no Hugging Face '
        'directory; leave the flag out')
  adapters.save(directory, parts.config, parts.trainable['adapter'],
                base=str(source))


def main():
  """Entry point of `python -m rlhf_jax.export`."""
  try:
    if {'--help', '-h'} & set(sys.argv):
      print(__doc__, _FLAGS.get_help(), sep='\n')
      return
    try:
      _, *stray = _FLAGS(sys.argv)
      if stray:
        raise flags.Error(f': {stray[0]!r} is no flag')
    except flags.Error as error:
      raise errors.ConfigError(
          f'{errors.first_line(error).partition(": ")[2]}; give --workdir, '
          '--stage and --directory') from error
    export(pathlib.Path(_WORKDIR.value), _STAGE.value,
           pathlib.Path(_DIRECTORY.value), member=_MEMBER.value,
           adapter=_ADAPTER.value)
  except errors.UserError as error:
    print(f'rlhf_jax: {error.code}: {error}', file=sys.stderr)
    sys.exit(error.exit_code)
  print(pathlib.Path(_DIRECTORY.value).absolute())


if __name__ == '__main__':
  main()
