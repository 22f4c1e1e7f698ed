"""Says what a study needs of a machine; runs nothing.

  rlhf-jax plan h100x8 --config=experiments/<dir>/<file>.py:full
  rlhf-jax plan v5e:4x4 --algorithm=ppo --data=prompts.jsonl --model=mine ...

Without a machine, of this one. Flags are those of `run` or of `train`.
"""

from rlhf_jax.commands import launch
from rlhf_jax.commands import studies


def run(argv: list[str]):
  """Parses and plans.

  Args:
    argv: name of the command, and words.

  Raises:
    UserError: of whatever kind.
  """
  machines = [word for word in argv[1:2] if not word.startswith('-')]
  rest = argv[1 + len(machines):]
  config, lines, values = studies.configure(
      [argv[0], *rest, f'--plan={"".join(machines) or "here"}'], __doc__)
  for line in lines:
    print(line, flush=True)
  launch.launch(config, values)
