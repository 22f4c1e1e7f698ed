"""What a stage is told of its study, and through which it speaks."""

from collections.abc import Callable
import contextlib
import pathlib

import jax

from rlhf_jax import errors
from rlhf_jax.parallel import meshes
from rlhf_jax.runner import bars
from rlhf_jax.runner import progress as progress_lib
from rlhf_jax.runner import recipes
from rlhf_jax.runner import stop as stop_lib
from rlhf_jax.runner import voice
from rlhf_jax.runner import workdirs
from rlhf_jax.storage import metrics


class StageContext:
  """What a running stage may use of its study."""

  def __init__(self, workdir: pathlib.Path, name: str,
               stop: stop_lib.StopSignal,
               mesh: Callable[[], jax.sharding.Mesh] = meshes.make,
               recipe: recipes.Recipe | None = None,
               intact: dict[str, dict] | None = None,
               strict: bool = False,
               progress: progress_lib.Progress | None = None):
    self.strict = strict  # whether a damaged checkpoint is an error
    self.directory = workdir / name
    self.stop = stop
    self.recipe = recipe
    # Records by stage, whose files need not be read again in this run.
    self.intact = {} if intact is None else intact
    self._workdir = workdir
    self.name = name
    self._mesh = mesh
    self._progress = progress

  @property
  def mesh(self) -> jax.sharding.Mesh:
    """The mesh of the study; TopologyError if it does not fit the devices."""
    return self._mesh()

  @property
  def key(self) -> str | None:
    """What a checkpoint of the stage says that it belongs to."""
    return self.recipe and self.recipe.key

  def directory_of(self, name: str) -> pathlib.Path:
    """The directory of a complete stage; CheckpointError if it is not."""
    self.result_of(name)
    return self._workdir / name

  def result_of(self, name: str) -> dict:
    """The result of a complete stage; CheckpointError if it is not."""
    return self._record_of(name)['result']

  def seconds_of(self, name: str) -> float:
    """Wall time of the call that completed a stage; errors as above."""
    return self._record_of(name)['seconds']

  def recipe_of(self, name: str) -> str | None:
    """Key of the recipe of a complete stage, if it has one; errors as above."""
    return self._record_of(name).get('recipe')

  def _record_of(self, name: str) -> dict:
    record = self.intact.get(name) or workdirs.read_intact(
        self._workdir / name)
    if record is None:
      raise errors.CheckpointError(
          f'stage {self.name} needs {name}, which is not complete in '
          f'{self._workdir}; run it first, with --stages={name}')
    self.intact[name] = record
    return record

  def show(self, text: str):
    """Prints lines as they are, and appends them to the log."""
    voice.tell(self._workdir, text)

  def log(self, message: str):
    """Prints one line and appends it to the log."""
    voice.tell(self._workdir, f'{self.name}: {message}')

  def progress(self, total: int, count: int, name: str
               ) -> contextlib.AbstractContextManager[bars.Bar]:
    """A bar of a loop of the stage, see `bars.Bar`."""
    if self._progress is None:
      return bars.Bar(total, count, name)
    return self._progress.loop(total, count, name)

  def writer(self, name: str) -> metrics.MetricsWriter:
    """A writer of the stage's <name>.jsonl, for whoever follows it as well."""
    followers = [] if self._progress is None else self._progress.followers(
        name)
    return metrics.open_writer(self.directory / f'{name}.jsonl', followers)
