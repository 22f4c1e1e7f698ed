"""How far a study is, for people (`screen`) and for scripts (status.json)."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import pathlib
import time
from typing import Any

from rlhf_jax import errors
from rlhf_jax.runner import bars
from rlhf_jax.runner import eta
from rlhf_jax.runner import workdirs
from rlhf_jax.storage import files
from rlhf_jax.storage import metrics

Follow = Callable[[str, str], list[metrics.Follower]]  # of a stage, of a file


class Progress:
  """The stages of a command, and the loop and numbers of the one that runs."""

  def __init__(self, workdir: pathlib.Path, stages: Sequence[Any],
               selected: Sequence[Any], *,
               is_ready: Callable[[str], bool] = lambda name: False,
               follow: Follow = lambda stage, file: []):
    """Nothing has begun.

    Args:
      workdir: whose results say what stages have taken.
      stages: of `run.Stage`, all of the study.
      selected: those that the command runs.
      is_ready: whether a stage, by name, is only to be taken over.
      follow: who else follows the metrics of a stage.
    """
    self.names = [stage.name for stage in selected]
    self.number = 0  # of the stage that runs, from 1
    self.start = time.monotonic()  # of that stage
    self.bar: bars.Bar | None = None  # of its loop
    self.rows: dict[str, Mapping[str, Any]] = {}  # its last metrics, by file
    self.is_shown = False  # by a screen, in place of lines
    self.tell: Callable[[], None] = lambda: None  # how far it is, now and then
    self._workdir, self._is_ready, self._follow = workdir, is_ready, follow
    self._kinds = {stage.name: eta.Kind(
        stage.name, getattr(stage.run, 'func', stage.run)) for stage in stages}
    self._quick = {stage.name for stage in stages if stage.quick}
    self._seconds: dict[eta.Kind, float] = {}  # that stages have taken

  def begin(self, number: int):
    """The stage of a number, from 1, begins."""
    self.number, self.start = number, time.monotonic()
    self.bar, self.rows = None, {}
    for name, kind in self._kinds.items():
      if kind not in self._seconds:
        with contextlib.suppress(errors.UserError, LookupError, TypeError):
          self._seconds[kind] = _seconds(self._workdir / name)

  @property
  def stage(self) -> str:
    """The name of the stage that runs."""
    return self.names[self.number - 1]

  def later(self) -> list[str]:
    """Stages after this one that have to run."""
    return [name for name in self.names[self.number:] if self._has_to(name)]

  def _has_to(self, name: str) -> bool:
    """Whether it is to run: it is not complete, nor only taken over."""
    return not (self._kinds[name] in self._seconds or self._is_ready(name))

  def seconds_left(self) -> float | None:
    """Of all stages, see `eta`; those that draw what is there take none."""
    slow = [name for name in self.later() if name not in self._quick]
    bar = self.bar  # another thread may ask
    runs = self.stage not in self._quick and (
        bar is not None or self._has_to(self.stage))
    return eta.seconds_left(
        map(self._kinds.get, slow), self._seconds,
        running=self._kinds[self.stage] if runs else None,
        age=time.monotonic() - self.start,
        of_loop=bar and bar.seconds_left())

  def status(self) -> dict[str, Any]:
    """For status.json."""
    left = self.seconds_left()
    return {'stage': self.stage, 'stage_number': self.number,
            'num_stages': len(self.names),
            'seconds_left': left if left is None else round(left, 1)}

  @contextlib.contextmanager
  def loop(self, total: int, count: int, name: str):
    """A bar of the stage that runs."""
    def tell(bar):
      self.bar = bar
      if not self.is_shown:
        bars.say(bar)
      self.tell()

    with bars.Bar(total, count, name, tell) as bar:
      yield bar
    self.bar = None

  def followers(self, file: str) -> list[metrics.Follower]:
    """Who follows the metrics that the stage writes to a file."""
    def keep(row):
      self.rows[file] = row
    return [keep, *self._follow(self.stage, file)]


def _seconds(directory: pathlib.Path) -> float:
  """What a complete stage has taken, with what it did before it was stopped."""
  record = files.read_json(directory / workdirs.RESULT)
  return max(record['seconds'], record['result'].get('seconds') or 0.0)
