"""The figure, the table and every number in them, of best-of-n."""

from collections.abc import Mapping, Sequence

from rlhf_jax.reports import best_of_n
from rlhf_jax.reports import figures
from rlhf_jax.reports import results
from rlhf_jax.storage import files


def run(context, *, runs: Sequence[Mapping], stages: Sequence[str],
        title: str) -> dict:
  """Writes results.csv and .jsonl, summary.csv and .md, stages.jsonl and
  figure.png.

  Args:
    context: of the stage.
    runs: {'stage', 'seed', 'force_eos', 'label_noise'} of each condition.
    stages: all stages before this one, whose numbers are kept.
    title: of the figure.

  Raises:
    CheckpointError: a stage is not complete, or its files are damaged.
  """
  directory = context.directory
  rows, summary = best_of_n.tables(context, runs)
  files.write_csv(directory / 'results.csv', rows)
  files.write_jsonl(directory / 'results.jsonl', rows)
  files.write_csv(directory / 'summary.csv', summary)
  files.write_jsonl(directory / 'stages.jsonl',
                    results.stage_rows(context, stages))
  files.write_text(directory / 'summary.md', best_of_n.page(summary) + '\n')
  figures.best_of_n(rows, directory / 'figure.png', title=title)
  context.show(best_of_n.message(summary))
  return {'figure': str(directory / 'figure.png'), 'rows': len(rows)}
