"""The figure, the table and every number in them, of a study of policies."""

from collections.abc import Mapping, Sequence

from rlhf_jax.reports import distributions
from rlhf_jax.reports import policies as policies_lib
from rlhf_jax.reports import results
from rlhf_jax.reports import spec
from rlhf_jax.storage import files


def run(context, *, policies: Sequence[Mapping], stages: Sequence[str],
        title: str, figure: Mapping,
        logs: Mapping[str, Sequence[Mapping]] | None = None,
        judged: str = '') -> dict:
  """Writes results.csv and .jsonl, summary.csv and .md, stages.jsonl and
  figure.png.

  A row of results.csv is one evaluation. One of summary.csv, of which
  summary.md shows the part that fits a page, is a run, or the members of an
  ensemble, with the last value of each column and its standard error over
  seeds; see `results.measure` for the rest. Training curves and win rates
  have a file each, see `policies.tables`; the figure 'distributions' has
  distributions.csv.

  Args:
    context: of the stage.
    policies: {'stage', 'seed', 'run', 'labels'} of each.
    stages: all stages before this one, whose numbers are kept.
    title: of the figure.
    figure: see `spec`. The columns of `spec.OPTIONAL` that no policy has, and
      what comes from them, are left out of it.
    logs: {'stage', 'seed'} of each log by name, as `stages.logged` writes
      them; read for 'distributions' only.
    judged: stage of `win_rates` whose verdicts are a column of last rows; ''
      where nobody judges.

  Raises:
    ConfigError: the figure cannot be drawn from these runs.
    CheckpointError: a stage is not complete, or its files are damaged.
  """
  logs, directory = logs or {}, context.directory
  labels = {one['run']: one['labels'] for one in policies}
  figure = spec.check(figure, list(labels.values()), logs=list(logs))
  trained = results.read(context, policies, figure, judged)
  figure = spec.restrict(figure, results.measured(trained))
  groups = results.groups(trained, spec.apart(figure))
  summary = policies_lib.summary(groups, trained, figure)
  rows = policies_lib.tables(trained, figure)
  write = lambda name, table: files.write_csv(directory / f'{name}.csv', table)
  for name, table in {**rows, 'summary': summary}.items():
    write(name, table)
  files.write_jsonl(directory / 'results.jsonl', rows['results'])
  files.write_jsonl(directory / 'stages.jsonl',
                    results.stage_rows(context, stages))
  files.write_text(directory / 'summary.md',
                   policies_lib.page(summary, figure) + '\n')
  path = directory / 'figure.png'
  if figure['kind'] == 'distributions':
    shown = distributions.table(
        distributions.read(context, groups, logs, figure))
    write('distributions', shown)
    distributions.draw(shown, path, title=title)
  else:
    policies_lib.draw(groups, summary, figure, path, title=title)
  context.show(policies_lib.message(summary, figure))
  return {'figure': str(path), 'rows': len(rows['results'])}
