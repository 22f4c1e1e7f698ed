"""A task's own data, read before anything that takes a second to import."""

from rlhf_jax import errors
from rlhf_jax.configs import tasks
from rlhf_jax.data import kinds
from rlhf_jax.data import logged

_ADVICE = ('--kind says which it is, --columns=<name>=<column>,... what a '
           'column is called')


def read(task: tasks.Task) -> tuple[str, list[logged.Logged]]:
  """The kind of a task's data, and its rows.

  Read as a study will, which then need not read it again.

  Raises:
    DataError: it is missing or malformed.
    ConfigError: there is no such kind, or a column is none of it.
  """
  columns = dict(task.columns)
  try:
    kind = task.kind or logged.kind_of(
        task.data, split=task.split, columns=columns, advice=_ADVICE)
    if kind not in kinds.KINDS:
      raise ValueError(f'--kind={kind}: '
                       f'{errors.nearest(kind, list(kinds.KINDS))}')
    return kind, logged.read_once(
        task.data, kind, task.max_bad_rows,
        logged.arguments_of(task.columns, task.split)).rows
  except ValueError as error:
    raise errors.ConfigError(str(error)) from None
