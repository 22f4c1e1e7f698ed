"""Scores responses by reward models: one, or an ensemble with its members.

  rlhf-jax score --workdir=runs/rewards --stage=seed_0/rewards/proxies \\
      --data=answers.csv --output=scores.csv
  rlhf-jax score --rewards=exported --data=answers.jsonl --output=scores.jsonl

The data is a file of any kind that has responses; of `prompt`, `response` and
nothing else too. A row of the output is a response: its example, group, prompt
and text, the scores that the file has of it as file_<name>, and

  reward              what the ensemble says, by --aggregate
  member_0, ...       each member, as it is combined: standardised on held-out
                      responses unless --nostandardize
  ensemble_variance   over the members, ddof 0
"""

import pathlib

from absl import flags
import jax
import numpy as np

from rlhf_jax import errors
from rlhf_jax.commands import arguments
from rlhf_jax.commands import launch
from rlhf_jax.commands import models
from rlhf_jax.data import examples
from rlhf_jax.data import logged
from rlhf_jax.ops import ensembles
from rlhf_jax.parallel import meshes
from rlhf_jax.pipeline import reward_directory
from rlhf_jax.storage import files


def run(argv: list[str]):
  """Parses, scores, writes.

  Args:
    argv: name of the command, and flags.

  Raises:
    UserError: of whatever kind.
  """
  values = flags.FlagValues()
  models.define(values)
  arguments.define_texts(
      values,
      rewards=('in place of --workdir and --stage: an export, or a '
               'directory of transformers with one label'),
      data='file or directory of responses',
      kind='of the data, where its columns do not tell',
      output='CSV, or JSON lines if it ends in .jsonl')
  flags.DEFINE_string('aggregate', 'mean', 'mean, worst_case, '
                      'uncertainty_weighted or single', flag_values=values)
  flags.DEFINE_float('uncertainty_coef', 0.5, 'of uncertainty_weighted',
                     flag_values=values)
  flags.DEFINE_boolean('standardize', True, 'whether members are standardised',
                       flag_values=values)
  arguments.parse(values, argv, __doc__)
  arguments.require(values, argv, 'data', 'output')
  if values.aggregate not in ensembles.KINDS:
    raise errors.ConfigError(
        f'--aggregate={values.aggregate}: '
        f'{errors.nearest(values.aggregate, ensembles.KINDS)}')
  directory = values.rewards or models.stage_directory(values, argv)
  rows = _rows(values.data, values.kind)
  launch.prepare()
  with jax.set_mesh(meshes.make()):
    loaded = reward_directory.load(directory)
    lines = _score(values, loaded, rows)
  if pathlib.Path(values.output).suffix == '.jsonl':
    files.write_jsonl(values.output, lines)
  else:
    files.write_csv(values.output, lines)
  mean = np.mean([line['reward'] for line in lines])
  print(f'{values.output}: {len(lines)} responses, mean reward {mean:.4g}')


def _rows(path: str, kind: str | None) -> list[logged.Logged]:
  """The responses of a file."""
  rows = logged.read(path, kind).rows
  if not any(row.response for row in rows):
    raise errors.DataError(
        f'{path} has prompts alone; give responses to score, or have a policy '
        'answer them first: rlhf-jax generate')
  return rows


def _score(values, loaded: reward_directory.Loaded, rows) -> list[dict]:
  """A line for each response."""
  texts = models.written(values, loaded.texts or models.AS_THEY_ARE)
  prompts, responses = zip(*models.rows_in(
      texts.pop('format'), loaded.coder, rows, values.data))
  encoded = loaded.coder.encode_rows(prompts, responses, **texts)
  members = np.asarray(loaded.models.scores(
      encoded.tokens, encoded.mask, standardize=values.standardize))
  options = ({'uncertainty_coef': values.uncertainty_coef}
             if values.aggregate == 'uncertainty_weighted' else {})
  reward = np.asarray(ensembles.aggregate(
      members, kind=values.aggregate, **options))
  variance = np.asarray(ensembles.variance(members))
  if encoded.truncated_prompts or encoded.truncated_responses:
    arguments.progress(
        f'{encoded.truncated_prompts} of {len(rows)} prompts lost their front '
        f'and {encoded.truncated_responses} responses their end; see '
        '--max_prompt_length and --max_response_length')
  names = examples.score_names(rows)
  return [{'example': row.example, 'group': row.group, 'prompt': row.prompt,
           'response': row.response,
           **{f'file_{score}': dict(row.scores).get(score, '')
              for score in names},
           'reward': float(reward[at]),
           **{f'member_{i}': float(x[at]) for i, x in enumerate(members)},
           'ensemble_variance': float(variance[at])}
          for at, row in enumerate(rows)]
