"""Whether what lies in a stage's directory is what the stage would make today.

Integrity is asked first, and identity then. Files that are not as the stage
has left them are set aside, and the stage is made again. Whole files that were
made from something else are refused, unless nothing would be lost.
"""

from typing import Any

from rlhf_jax import errors
from rlhf_jax.runner import recipes
from rlhf_jax.runner import workdirs

# Of a stage that has written nothing else, there is nothing to go on from.
_NOTES = ('.json', '.jsonl')


def complete(context: Any, stage: Any, *, accept_code_change: bool) -> bool:
  """Whether a stage is complete; what cannot stay there is moved away.

  Args:
    context: of the stage, with its recipe.
    stage: of `run.Stage`.
    accept_code_change: whether it counts though it was made by other code,
      which its record then says.

  Raises:
    ConfigError: it was made, or begun, from something else; says the way on.
    CheckpointError: it cannot be moved.
  """
  directory = context.directory
  if not directory.exists():
    return False
  if not directory.is_dir():
    _remake(context, f'{directory} is no directory')
    return False
  try:
    record = workdirs.read_intact(directory)
  except errors.CheckpointError as error:
    _remake(context, str(error).partition(';')[0])
    return False
  begun = workdirs.read_begun(directory) if record is None else None
  if record is None and begun is None:
    if any(directory.iterdir()):
      _remake(context, f'{directory} holds files of no stage')
    return False
  origin = record or begun
  made_of, code = ([], []) if context.recipe is None else recipes.differences(
      origin, context.recipe)
  if not made_of and not code:
    return record is not None
  if stage.quick or (record is None and not _has_progress(directory)):
    _remake(context, f'made from another {recipes.listed([*made_of, *code])}')
    return False
  if made_of or not accept_code_change:
    raise errors.ConfigError(_refusal(
        stage.name, 'made' if record else 'begun', made_of, code))
  old = {name: digest for name, digest in origin.get('code', {}).items()
         if context.recipe.code.get(name) != digest}
  accepted = origin | {'code': context.recipe.code,
                       'accepted': origin.get('accepted', {}) | old}
  context.show(f'{stage.name:<38} kept, though made by other code '
               f'({recipes.listed(code)})')
  (workdirs.write_record if record else workdirs.begin)(directory, accepted)
  return record is not None


def _has_progress(directory) -> bool:
  """Whether an incomplete stage has saved anything to go on from."""
  return any(path.is_file() and path.suffix not in _NOTES
             for path in directory.rglob('*'))


def _remake(context: Any, reason: str):
  """Sets a stage aside, and says why."""
  aside = workdirs.set_aside(context.directory)
  context.show(f'{reason}; made again, what there was is in {aside}')


def _refusal(name: str, verb: str, made_of, code) -> str:
  """What differs, and the way on."""
  again = (f'--redo={name} makes it again, with all that is made from it')
  if made_of:
    return (f'{name} was {verb} from another {recipes.listed(made_of)} than it '
            f'would be now; choose another --workdir, or {again}')
  return (f'{name} was {verb} by other code ({recipes.listed(code)}); '
          f'--accept_code_change keeps it, {again}')
