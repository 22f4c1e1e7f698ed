"""What a check says: pass, warn or fail, of what, and what to do."""

from typing import NamedTuple

STATES = ('pass', 'warn', 'fail')


class Finding(NamedTuple):
  """One line of the doctor's."""

  state: str  # of `STATES`
  check: str
  what: str
  remedy: str = ''

  def line(self) -> str:
    """For people."""
    remedy = f' -> {self.remedy}' if self.remedy else ''
    return f'{self.state:<5} {self.check:<24} {self.what}{remedy}'


def judge(check: str, what: str, *, fail: bool = False, warn: bool = False,
          remedy: str = '') -> Finding:
  """A finding that fails, warns or passes; a pass needs no remedy."""
  state = 'fail' if fail else 'warn' if warn else 'pass'
  return Finding(state, check, what, remedy if state != 'pass' else '')
