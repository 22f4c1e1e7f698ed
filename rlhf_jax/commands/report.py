"""Writes a page of studies: figures, curves, samples, config, recipe.

  rlhf-jax report runs/a [runs/b ...] [--output=report.html] \\
      [--experiment=experiments/<dir>/<file>.py] [--samples=5000]

One HTML file that needs nothing else and asks for nothing else: its figures
show their values under the pointer, its samples are searched, sorted and
filtered in it. It reads on a phone, in the dark and in print. A study that
runs, has failed or has not begun is shown as far as it has come; the directory
of results of an experiment is shown too.

What the paper claims, and what the config says that differs from it, stands
there for a study of one of `experiments/`, which is found by the title of its
figure, or named by --experiment. Plotting needs pip install 'rlhf_jax[report]'.
"""

import pathlib

from absl import flags

from rlhf_jax import errors
from rlhf_jax.commands import arguments
from rlhf_jax.reports import page
from rlhf_jax.reports import page_claims
from rlhf_jax.reports import page_study

_MOST = 8  # workdirs
_SAMPLES = 5_000


def run(argv: list[str]):
  """Parses, reads, writes.

  Args:
    argv: name of the command, workdirs and flags.

  Raises:
    UserError: of whatever kind.
  """
  values = flags.FlagValues()
  flags.DEFINE_string('output', 'report.html', 'HTML file to write',
                      flag_values=values)
  flags.DEFINE_string('experiment', None, 'config file that the workdirs are '
                      'of, where their title does not say it',
                      flag_values=values)
  flags.DEFINE_string('directory', 'experiments', 'with the experiments',
                      flag_values=values)
  flags.DEFINE_integer('samples', _SAMPLES, 'responses on the page at most',
                       lower_bound=0, flag_values=values)
  names = arguments.parse(values, argv, __doc__, most=_MOST)
  if not names:
    raise errors.ConfigError(
        f'give the workdirs to report; see {argv[0]} --help')
  output = pathlib.Path(values.output)
  if output.is_dir() or not output.absolute().parent.is_dir():
    raise errors.ConfigError(
        f'--output={output}: it is a directory, or lies in none; name an HTML '
        'file in a directory that exists')
  page.library()  # before anything is read
  studies = page_study.read([pathlib.Path(name) for name in names])
  page.write(output, studies, most=values.samples,
             experiments=[_experiment(study, values) for study in studies])
  print(page.summary(studies))
  print(output.absolute())


def _experiment(study: page_study.Study, values: flags.FlagValues
                ) -> pathlib.Path | None:
  """The config file of a study, where there is one and only one."""
  if values.experiment is not None:
    path = pathlib.Path(values.experiment.partition(':')[0])
    if not path.is_file():
      raise errors.ConfigError(
          f'--experiment={values.experiment}: there is no such file; name a '
          'config of experiments/')
    return path
  paths = page_claims.experiment(study, pathlib.Path(values.directory))
  if len(paths) > 1:
    study.notes.append(
        'Its title stands in several experiments '
        f'({", ".join(map(str, paths))}); --experiment says which one.')
  return paths[0] if len(paths) == 1 else None
