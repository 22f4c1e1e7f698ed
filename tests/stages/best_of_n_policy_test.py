"""Best-of-n as a policy, against the definition, on the study of figure 3."""

import functools
import math
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from stages import figure_3

from rlhf_jax.evaluation import texts as texts_lib
from rlhf_jax.rewards import nodes as reward_nodes
from rlhf_jax.stages import best_of_n_policy
from rlhf_jax.studies import nodes

ENDING, CONDITION = 'seed_0/as_sampled', 'seed_0/as_sampled/noise_0.25'
UPSTREAM = dict(reference='seed_0/sft', gold='seed_0/gold',
                pairs=f'{ENDING}/pairs', scores=f'{CONDITION}/scores',
                proxies=f'{CONDITION}/proxies')
AGGREGATES = {
    'mean': dict(kind='mean'), 'single_1': dict(kind='single', member=1),
    'worst_case': dict(kind='worst_case')}


def run(name, context=None, **fields):
  """The stage with an aggregate, and its context."""
  context = context or figure_3.context()
  node = dict(kind='proxy', aggregate=AGGREGATES[name]) | fields
  result = best_of_n_policy.run(
      context, seed=0, data=nodes.data_config(figure_3.config()),
      upstream=UPSTREAM,
      proxy=reward_nodes.check({'proxy': node})['proxy'])
  return context, result


usual = functools.cache(run)


def scale(x, of):
  return (x.astype(np.float64) - of.mean()) / of.std()


def expected(proxy):
  """Each column of the rows, [B, len(NS)], by the definition."""
  samples = figure_3.shards('as_sampled')
  pairs = figure_3.arrays(ENDING, 'pairs/pairs.npz')
  world = figure_3.corpus().world
  rule = lambda rows: world.rule(rows['tokens'].astype(np.int32), rows['mask'])
  eos = samples['mask'] & (samples['tokens'] == 2)
  values = {
      'proxy': proxy,
      'gold': scale(samples['gold_scores'], pairs['gold_scores']),
      'rule': scale(rule(samples), rule(pairs)),
      'length': (samples['mask'] & ~eos).sum(axis=-1),
      'unfinished': 1 - eos.any(axis=-1)}
  return {name: figure_3.estimate(proxy, value)
          for name, value in values.items()}


class RunTest(parameterized.TestCase):

  @parameterized.parameters(*AGGREGATES)
  def test_rows_by_brute_force(self, name):
    columns = expected(figure_3.METHODS[name](figure_3.members(CONDITION)))
    context, result = usual(name)
    rows = context.lines('evaluation')
    for i, (n, row) in enumerate(zip(figure_3.NS, rows, strict=True)):
      self.assertEqual([row[k] for k in ('step', 'samples', 'updates')],
                       [n, n, 0])
      divergence = math.log(n) - (n - 1) / n
      for kind in ('kl_k1', 'kl_k2', 'kl_k3'):
        self.assertAlmostEqual(row[kind], divergence, 5)
      self.assertAlmostEqual(row['sqrt_kl'], math.sqrt(divergence), 5)
      for what, values in columns.items():
        self.assertAlmostEqual(row[what], values[:, i].mean(), 3, msg=what)
      for what in ('gold', 'proxy', 'rule'):  # four prompts
        self.assertAlmostEqual(row[f'{what}_se'],
                               columns[what][:, i].std(ddof=1) / 2, 3)
    self.assertEqual(result['n'], 32)
    for what in ('gold', 'proxy'):
      self.assertAlmostEqual(result[what], rows[-1][what], 5)

  def test_final_rows(self):
    samples = figure_3.shards('as_sampled')
    columns = expected(figure_3.METHODS['mean'](figure_3.members(CONDITION)))
    rows = usual('mean')[0].lines('final')
    prompts, _ = texts_lib.decode(
        figure_3.corpus().tokenizer, samples['tokens'][:, 0].astype(np.int32),
        samples['mask'][:, 0])
    self.assertEqual([row['prompt'] for row in rows], prompts)
    for i, row in enumerate(rows):
      for name in ('response', 'reference', 'reference_gold'):
        self.assertIsNone(row[name])
      for name in ('gold', 'proxy', 'rule', 'length'):
        self.assertAlmostEqual(row[name], columns[name][i, -1], 3, msg=name)

  def test_weight_and_raw_members_after_an_interruption(self):
    context = figure_3.context()
    path = context.directory / 'evaluation.jsonl'
    path.write_text('{"step": 1, "gold": 7}\n{"step": 2, "gold": 7}\n')
    run('worst_case', context, weight=2., standardize=False)
    rows = context.lines('evaluation')
    columns = expected(
        2 * figure_3.members(CONDITION, standardize=False).min(axis=0))
    self.assertEqual([row['step'] for row in rows], figure_3.NS)
    for i, row in enumerate(rows):
      for what in ('proxy', 'gold'):
        self.assertAlmostEqual(row[what], columns[what][:, i].mean(), 3)

  def test_of_texts_that_no_rule_has_written(self):
    """There are no scores of the rule then, and no column."""
    picks, load = best_of_n_policy.picks, best_of_n_policy.picks.load

    def without(*args):
      scores = load(*args)
      del scores['rule']
      return scores

    with (mock.patch.object(picks, 'load', without), mock.patch.object(
        best_of_n_policy.artifacts.World, 'rule_unit', return_value=None)):
      context, _ = run('mean')
    for row, whole in zip(context.lines('evaluation'),
                          usual('mean')[0].lines('evaluation'), strict=True):
      self.assertEqual(row, {k: x for k, x in whole.items()
                             if not k.startswith('rule')})
    self.assertTrue(all(
        row['rule'] is None for row in context.lines('final')))


if __name__ == '__main__':
  absltest.main()
