"""Shows the stages of a study and, with --print_config, all its fields.

  rlhf-jax show --config=experiments/<dir>/<file>.py:laptop [--print_config]
  rlhf-jax show --algorithm=rloo --data=prompts.jsonl --reward=module:function
  rlhf-jax show --workdir=runs/rloo

Flags are those of `run` or of `train`, or a workdir says them; nothing is run.
With --workdir, which stages are complete there. Every field that is printed is
a flag.
"""

from rlhf_jax.commands import config_files
from rlhf_jax.commands import studies


def run(argv: list[str]):
  """Parses, plans, shows.

  Args:
    argv: name of the command, and flags.

  Raises:
    UserError: of whatever kind.
  """
  config, said, values = studies.configure(argv, __doc__)
  if values.print_config:
    print(config_files.text(config))
    return
  from rlhf_jax.runner import run as run_lib
  from rlhf_jax.studies import plan

  for line in said:
    print(line)
  for stage in plan.plan(config):
    module = stage.run.func.__module__.rpartition('.')[2]
    roles = ', '.join(f'{role}={name}' for role, name in stage.run.keywords.get(
        'given', {}).items())
    state = ''
    if values.workdir is not None:
      done = run_lib.read_result(values.workdir, stage.name) is not None
      state = f'{"complete" if done else "to do":<9} '
    print(f'{state}{stage.name:<38} {module:<16} {roles}')
