"""Parts of a page that a command writes, between marks that name it."""

import pathlib

from rlhf_jax import errors
from rlhf_jax.storage import files

_MARK = '<!-- {} of {} -->\n'


def between(path: pathlib.Path, command: str, inner: str) -> str:
  """The text of a page with `inner` between the marks of a command.

  Args:
    path: of the page, UTF-8.
    command: that its marks name: `<!-- begin of <command> -->`, and end.
    inner: whole lines.

  Raises:
    DataError: the marks are not there, once each and in this order.
  """
  text = path.read_text()
  begin, end = (_MARK.format(word, command) for word in ('begin', 'end'))
  before, _, rest = text.partition(begin)
  inside, _, after = rest.partition(end)
  if text != before + begin + inside + end + after or (
      begin in rest or end in after):
    raise errors.DataError(
        f'{path}: needs one line "{begin.strip()}" and below it one '
        f'"{end.strip()}"; put them where the table is to stand')
  return before + begin + inner + end + after


def replace(path: pathlib.Path, command: str, inner: str):
  """Writes what `between` says; whole or not at all."""
  files.write_text(path, between(path, command, inner))
