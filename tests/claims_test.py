"""The verdicts in the experiments' READMEs, recomputed from their results.

A number that decides a claim and stands in no summary.md is computed here,
from results.csv, and must be in the README as it is.
"""

import collections
import csv
import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1] / 'experiments'
AHMADIAN = 'ahmadian2024_back_to_basics'
BAHETI = 'baheti2024_leftover_lunch'
COSTE = 'coste2024_reward_model_ensembles'
ZHU = 'zhu2023_advantage_induced_policy_alignment'
SIGMAS = (1, 3, 5)
A_LOL = ('a_lol', 'a_lol_ref_free', 'a_lol_sequence', 'a_lol_kl')
REDDIT = ('nll', 'wbc', 'r_gold', 'r_lol', *A_LOL)


def number(text: str) -> float:
  return float(text) if text else float('nan')


def read(paper: str, figure: str, name: str = 'results'):
  """{run: {seed: {column: values in order}}} of a table of one figure."""
  runs = collections.defaultdict(dict)
  path = ROOT / paper / 'results' / figure / f'{name}.csv'
  with open(path, newline='') as stream:
    for row in csv.DictReader(stream):
      columns = runs[row['run']].setdefault(
          row['seed'], collections.defaultdict(list))
      for column, text in row.items():
        try:
          columns[column].append(number(text))
        except ValueError:
          continue
  return runs


def over_seeds(values, digits: int = 2) -> str:
  """Mean and standard error as the READMEs write them."""
  values = np.asarray(list(values), float)
  error = values.std(ddof=1) / len(values) ** .5
  return f'{values.mean():.{digits}f} +- {error:.{digits}f}'


def less(runs, first: str, second: str, column: str, at: int = -1):
  """The difference of two runs in each seed."""
  return [runs[first][seed][column][at] - runs[second][seed][column][at]
          for seed in runs[first]]


def noise_losses():
  """Per sigma: what RAFT loses by noise, less what RLOO loses, by seed."""
  runs, losses = read(AHMADIAN, 'fig6_noise'), {}
  for sigma in SIGMAS:
    raft, rloo = (less(runs, f'{name}_2_sigma_{sigma}', f'{name}_2_sigma_0',
                       'proxy') for name in ('raft', 'rloo'))
    losses[sigma] = np.subtract(raft, rloo)
  return losses


def at_responses(first: str, second: str, count: int = 5120):
  """The difference in proxy score after so many responses, by seed."""
  runs = read(AHMADIAN, 'fig4_samples')
  proxy = lambda x: np.interp(count, x['samples'], x['proxy'])
  return [proxy(runs[first][seed]) - proxy(runs[second][seed])
          for seed in runs[first]]


def variance_growth(run: str):
  """Ensemble variance after training over that before, by seed."""
  runs = read(COSTE, 'fig10_ensemble_variance')
  return [columns['ensemble_variance'][-1] / columns['ensemble_variance'][0]
          for columns in runs[run].values()]


def results_of(paper: str, figure: str, stage: str, field: str):
  """What the stages of a name say, by seed."""
  path = ROOT / paper / 'results' / figure / 'stages.jsonl'
  rows = map(json.loads, path.read_text().splitlines())
  return [row[field] for row in rows if row['stage'].endswith(stage)]


def spread(runs, run: str, column: str):
  """Standard deviation over seeds after training."""
  return np.std([x[column][-1] for x in runs[run].values()], ddof=1)


def offline_claims():
  """As `claims`, of policies that learn from logged responses."""
  fig2 = read(BAHETI, 'fig2_validation_reward')
  for run in A_LOL:
    for column in ('proxy', 'gold'):
      yield BAHETI, over_seeds(less(fig2, run, 'dpo', column))
    for column in ('distinct_2', 'distinct_3'):
      yield BAHETI, over_seeds(less(fig2, run, 'dpo', column), 3)
  for run in (*A_LOL, 'dpo'):
    yield BAHETI, f'{spread(fig2, run, "proxy"):.3f}'
    late = [np.mean(x['proxy'][-5:]) - np.mean(x['proxy'][4:9])
            for x in fig2[run].values()]
    yield BAHETI, over_seeds(late, 3)
  yield BAHETI, over_seeds([100 * x for x in results_of(
      BAHETI, 'fig2_validation_reward', 'prompt_value', 'filtered_chosen')], 0)
  yield BAHETI, over_seeds([100 * x for x in results_of(
      BAHETI, 'fig2_validation_reward', 'pairs/logged', 'agreement')], 0)
  table2 = read(BAHETI, 'table2_methods')
  for column in ('proxy', 'gold'):
    yield BAHETI, over_seeds(less(table2, 'ppo', 'a_lol_sequence', column))
  table3 = read(BAHETI, 'table3_win_rates', 'win_rates')
  for run, seeds in table3.items():
    yield BAHETI, f'| {run} | ' + over_seeds(
        100 * x['win_rate'][0] for x in seeds.values())
  for run in A_LOL[2:]:
    yield BAHETI, over_seeds(
        100 * x for x in less(table3, run, 'dpo', 'win_rate'))
  table4 = read(BAHETI, 'table4_reddit')
  for run in REDDIT:
    yield BAHETI, f'| {run} | ' + over_seeds(
        less(table4, f'{run}_up', f'{run}_down', 'proxy'))
  for half in ('up', 'down'):
    yield BAHETI, over_seeds(less(
        table4, f'a_lol_sequence_{half}', f'nll_{half}', 'proxy'))
  filtered = read(BAHETI, 'ablation_filter')
  for noise in ('0', '025', '04'):
    for run in ('nll', 'r_lol'):
      for column in ('proxy', 'gold'):
        name = f'{run}_noise_{noise}'
        yield BAHETI, over_seeds(
            less(filtered, f'{name}_filtered', name, column))
  fig9 = read(ZHU, 'fig9_offline')
  for first, second in (('awr_1', 'ilql_4'), ('awr_1', 'ilql_1'),
                        ('apa_1', 'awr_1'), ('apa_01', 'awr_1')):
    yield ZHU, over_seeds(less(fig9, first, second, 'proxy'))


def claims():
  """(paper, what the README says) of every number that is made here."""
  fig1 = read(AHMADIAN, 'fig1_gae_and_clipping', 'training')
  clipped = [100 * np.nanmean(x['policy/clip_fraction'])
             for x in fig1['lambda_1'].values()]
  yield AHMADIAN, f'{over_seeds(clipped, 1)} %'
  fig3 = read(AHMADIAN, 'fig3_rloo_raft')
  for first, second in (('rloo_2', 'raft_4_prompts_32'), ('rloo_2', 'raft_2'),
                        ('rloo_4_prompts_32', 'raft_4_prompts_32')):
    yield AHMADIAN, over_seeds(less(fig3, first, second, 'proxy'))
  for k in ('2', '4_prompts_32'):
    yield AHMADIAN, over_seeds(at_responses(f'rloo_{k}', f'raft_{k}'))
  losses = noise_losses()
  for sigma in SIGMAS:
    yield AHMADIAN, over_seeds(losses[sigma])
  yield AHMADIAN, over_seeds(np.mean(list(losses.values()), axis=0))
  fig5 = read(AHMADIAN, 'fig5_kl_coef')
  for coefficient in ('01', '025', '05', '1'):
    for column in ('proxy', 'kl_k1'):
      yield AHMADIAN, over_seeds(less(
          fig5, f'raft_2_kl_{coefficient}', f'rloo_2_kl_{coefficient}',
          column))
  table1 = read(AHMADIAN, 'table1_win_rates', 'win_rates')
  for run, seeds in table1.items():
    yield AHMADIAN, f'| {run} | ' + over_seeds(
        100 * x['win_rate'][0] for x in seeds.values())
  for run in ('rloo_4', 'reinforce'):
    yield AHMADIAN, over_seeds(
        100 * x for x in less(table1, run, 'ppo', 'win_rate'))
  table2 = read(AHMADIAN, 'table2_alignment_tax')
  for first, second in (('rloo_2', 'raft_2'), ('rloo_4', 'raft_4'),
                        ('reinforce', 'vanilla_pg')):
    yield AHMADIAN, over_seeds(less(table2, first, second, 'reward_variance'))
  for run in ('mean_noise_0_kl_0', 'mean_noise_25_kl_0',
              'uncertainty_weighted_noise_0_kl_0',
              'uncertainty_weighted_noise_25_kl_0', 'mean_noise_25_kl_001',
              'uncertainty_weighted_noise_25_kl_001'):
    yield COSTE, over_seeds(variance_growth(run))


class ClaimsTest(parameterized.TestCase):

  def test_the_readmes_say_it(self):
    actual = [*claims(), *offline_claims()]
    self.assertGreater(len(actual), 30)
    for paper, text in actual:
      self.assertIn(text, (ROOT / paper / 'README.md').read_text())


if __name__ == '__main__':
  absltest.main()
