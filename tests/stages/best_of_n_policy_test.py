"""Best-of-n as a policy, against the definition, on a finished smoke study."""

import json
import math
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import online_test
import stages_test

from rlhf_jax.evaluation import monitor
from rlhf_jax.stages import best_of_n_policy
from rlhf_jax.storage import files
from rlhf_jax.studies import online

CONDITION = 'seed_0/as_sampled/noise_0.25'  # the same, in figure 3


def scale(x, mean, std):
  return (x.astype(np.float64) - mean) / std


def pairs():
  return files.load_arrays(online_test.finished() / 'seed_0/pairs/pairs.npz')


def members(standardize=True):
  known = stages_test.shards('as_sampled')
  found = stages_test.member_scores(CONDITION, known['tokens'], known['mask'])
  if not standardize:
    return found
  held = stages_test.arrays(CONDITION, 'proxies/scale.npz')
  return ((found - held['mean'][:, None, None]) / held['std'][:, None, None])


def expected(proxy):
  """Each column of the rows, [B, len(NS)], by the definition."""
  known, of_pairs = stages_test.shards('as_sampled'), pairs()
  world = stages_test.world().world
  rule = lambda rows: world.rule(rows['tokens'].astype(np.int32), rows['mask'])
  gold = of_pairs['gold_scores']
  eos = known['mask'] & (known['tokens'] == 2)
  values = {
      'proxy': proxy,
      'gold': scale(known['gold_scores'], gold.mean(), gold.std()),
      'rule': scale(rule(known), rule(of_pairs).mean(), rule(of_pairs).std()),
      'length': (known['mask'] & ~eos).sum(axis=-1),
      'unfinished': 1 - eos.any(axis=-1)}
  return {name: stages_test.estimate(proxy, value)
          for name, value in values.items()}


class ScoresTest(absltest.TestCase):

  def test_arrays(self):
    known = stages_test.shards('as_sampled')
    found = files.load_arrays(
        online_test.finished() / 'seed_0/noise_25/scores/scores.npz')
    self.assertCountEqual(
        found, ['members', 'gold', 'rule', 'unfinished', 'length'])
    np.testing.assert_array_equal(found['gold'], known['gold_scores'])
    # As the members are, not standardised.
    np.testing.assert_allclose(
        found['members'], members(standardize=False), atol=1e-4)


class RunTest(parameterized.TestCase):

  @parameterized.parameters(*online_test.AGGREGATES)
  def test_rows_by_brute_force(self, name):
    columns = expected(stages_test.METHODS[name](members()))
    rows = online_test.lines('policies', name, 'evaluation.jsonl')
    for i, (n, row) in enumerate(zip(stages_test.NS, rows, strict=True)):
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

  def test_final_rows(self):
    known = stages_test.shards('as_sampled')
    columns = expected(stages_test.METHODS['mean'](members()))
    rows = online_test.lines('policies', 'mean', 'final.jsonl')
    prompts, _ = monitor.decode(
        stages_test.world().tokenizer, known['tokens'][:, 0].astype(np.int32),
        known['mask'][:, 0])
    self.assertEqual([row['prompt'] for row in rows], prompts)
    for i, row in enumerate(rows):
      for name in ('response', 'reference', 'reference_gold'):
        self.assertIsNone(row[name])
      for name in ('gold', 'proxy', 'rule', 'length'):
        self.assertAlmostEqual(row[name], columns[name][i, -1], 3, msg=name)

  def test_weight_and_raw_members_after_an_interruption(self):
    with tempfile.TemporaryDirectory() as folder:
      context = stages_test.Context(folder)
      workdir = online_test.finished()
      context.directory_of = lambda name: workdir / name
      context.result_of = lambda name: files.read_json(
          workdir / name / 'result.json')['result']
      made = online_test.config().to_dict()
      stage = next(s for s in online.plan(made)
                   if s.name == 'seed_0/policies/worst_case')
      arguments = stage.run.keywords | dict(weight=2., standardize=False)
      path = pathlib.Path(folder, 'evaluation.jsonl')
      path.write_text('{"step": 1, "gold": 7}\n{"step": 2, "gold": 7}\n')
      best_of_n_policy.run(context, **arguments)
      rows = [json.loads(line) for line in path.read_text().splitlines()]
    columns = expected(2 * members(standardize=False).min(axis=0))
    self.assertEqual([row['step'] for row in rows], stages_test.NS)
    for i, row in enumerate(rows):
      for what in ('proxy', 'gold'):
        self.assertAlmostEqual(row[what], columns[what][:, i].mean(), 3)


if __name__ == '__main__':
  absltest.main()
