"""Shows the stages of a study and, with --print_config, all its fields.

  rlhf-jax show --config=experiments/<dir>/<file>.py:laptop [--print_config]
  rlhf-jax show --algorithm=rloo --data=prompts.jsonl --reward=module:function
  rlhf-jax show --workdir=runs/rloo

Flags are those of `run` or of `train`, or a workdir says them; nothing is run.
With --workdir, what there is of each stage: complete, to do, damaged, or made
by another config or other code than now. Every field that is printed is a flag.
"""

import pathlib

from rlhf_jax import errors
from rlhf_jax.commands import config_files
from rlhf_jax.commands import studies


def run(argv: list[str]):
  """Parses, plans, shows.

  Args:
    argv: name of the command, and flags.

  Raises:
    UserError: of whatever kind.
  """
  config, lines, values = studies.configure(argv, __doc__)
  if values.print_config:
    print(config_files.text(config))
    return
  from rlhf_jax.runner import recipes
  from rlhf_jax.studies import plan

  for line in lines:
    print(line)
  stages, state = plan.plan(config), lambda stage: ''
  if values.workdir is not None:
    stages = plan.with_inputs(config, stages)
    made_of = recipes.of_stages(stages)
    state = lambda stage: _state(
        pathlib.Path(values.workdir, stage.name), made_of[stage.name])
  for stage in stages:
    module = stage.run.func.__module__.rpartition('.')[2]
    roles = ', '.join(f'{role}={name}' for role, name in stage.run.keywords.get(
        'upstream', {}).items())
    print(f'{state(stage)}{stage.name:<38} {module:<16} {roles}')


def _state(directory: pathlib.Path, recipe) -> str:
  """What the command that runs the study would find, in a word or two."""
  from rlhf_jax.runner import recipes
  from rlhf_jax.runner import workdirs

  try:
    record = workdirs.read_intact(directory)
  except errors.CheckpointError:
    return f'{"damaged":<13}'  # and made again by that command
  if record is None:
    return f'{"to do":<13}'
  made_of, code = ([], []) if recipe is None else recipes.differences(
      record, recipe)
  word = ('other config' if made_of else 'other code' if code else 'complete')
  return f'{word:<13}'
