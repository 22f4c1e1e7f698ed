"""Stages of the best-of-n study, on one finished smoke study."""

import csv
import functools
import json
import math
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import experiments_test
import jax
import numpy as np

from rlhf_jax import errors
from rlhf_jax.data import load as load_lib
from rlhf_jax.models import pretrained
from rlhf_jax.pipeline import artifacts
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.stages import gold
from rlhf_jax.stages import proxies as proxies_lib
from rlhf_jax.storage import files
from rlhf_jax.studies import best_of_n

NS = [1, 2, 4, 8, 16, 32]
ENDINGS = ('as_sampled', 'forced_eos')
NOISES = ('noise_0', 'noise_0.25')
CONDITIONS = [f'seed_0/{e}/{n}' for e in ENDINGS for n in NOISES]
METHODS = {
    'single_0': lambda m: m[0], 'single_1': lambda m: m[1],
    'mean': lambda m: m.mean(axis=0), 'worst_case': lambda m: m.min(axis=0),
    'uncertainty_weighted': lambda m: m.mean(axis=0) - .5 * m.var(axis=0)}


class Stop:
  """Asks to stop after so many steps."""

  def __init__(self, steps=10**9):
    self._left = steps

  def requested(self):
    self._left -= 1
    return self._left < 0

  def check(self, where):
    if self._left < 0:
      raise errors.Interrupted(where)


class Context:
  """Reads the finished study and writes to a directory of its own."""

  def __init__(self, directory=None, stop=None):
    self.directory = directory and pathlib.Path(directory)
    self.directory_of = lambda name: study() / name
    self.result_of = lambda name: json.loads(
        (study() / name / 'result.json').read_text())['result']
    self.stop = stop or Stop()
    self.log = print


@functools.cache
def study():
  workdir, done = experiments_test.smoke()
  assert done.returncode == 0, done.stderr
  return workdir


def config():
  return json.loads((study() / 'config.json').read_text())


def world():
  return load_lib.load(best_of_n.data_config(config()), 0)


def arrays(*parts):
  return files.load_arrays(study().joinpath(*parts))


def shards(ending):
  parts = [files.load_arrays(path) for path in sorted(
      (study() / f'seed_0/{ending}/samples').glob('shard_*.npz'))]
  return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


@functools.cache
def proxies(condition):
  shape = pretrained.config(
      config()['proxy']['model'], world().tokenizer.vocab_size)
  return shape, artifacts.load_members(
      Context(), f'{condition}/proxies', shape, 2)


def member_scores(condition, tokens, mask):
  """f64[E, ...], row after row, without the batching of the library."""
  score = jax.jit(reward_models.score_members, static_argnums=0)
  flat = lambda x: x.reshape(-1, x.shape[-1])
  out = score(*proxies(condition), flat(tokens.astype(np.int32)), flat(mask))
  return np.asarray(out, np.float64).reshape(-1, *tokens.shape[:-1])


def estimate(proxy, values):
  """[B, len(NS)] by the definition, with exact binomials."""
  count = proxy.shape[1]
  weights = np.array([[math.comb(i, n - 1) / math.comb(count, n)
                       for i in range(count)] for n in NS])
  order = np.argsort(proxy, axis=1)
  return np.take_along_axis(values, order, axis=1) @ weights.T


class CurvesTest(parameterized.TestCase):

  @parameterized.parameters(CONDITIONS)
  def test_by_brute_force(self, condition):
    known = shards(condition.split('/')[1])
    members = member_scores(condition, known['tokens'], known['mask'])
    held = arrays(condition, 'proxies/scale.npz')
    members = ((members - held['mean'][:, None, None])
               / held['std'][:, None, None])
    gold_scores = known['gold_scores'].astype(np.float64)
    gold_scores = (gold_scores - gold_scores.mean()) / gold_scores.std()
    curves = arrays(condition, 'best_of_n/curves.npz')
    np.testing.assert_array_equal(curves['ns'], NS)
    for name, method in METHODS.items():
      proxy = method(members)
      for what, values in (
          ('gold', gold_scores), ('length', known['mask'].sum(axis=-1)),
          ('proxy', (proxy - proxy.mean()) / proxy.std())):
        np.testing.assert_allclose(
            curves[f'{what}__{name}'], estimate(proxy, values), atol=1e-4,
            err_msg=f'{what} {name}')
    # The released code keeps the gold of member 0's order: another answer.
    wrong = estimate(members[0], gold_scores)
    for name in ('single_1', 'mean', 'worst_case'):
      self.assertGreater(np.abs(curves[f'gold__{name}'] - wrong).max(), .05)

  def test_rule_and_unfinished(self):
    known, curves = shards('as_sampled'), arrays(
        CONDITIONS[0], 'best_of_n/curves.npz')
    rule = world().world.rule(known['tokens'].astype(np.int32), known['mask'])
    np.testing.assert_allclose(known['rule'], rule)
    rule = (rule - rule.mean()) / rule.std()
    ended = (known['mask'] & (known['tokens'] == 2)).any(axis=-1)
    # Best of one is the mean of all samples, best of N one of them.
    np.testing.assert_allclose(
        curves['rule__mean'][:, 0], rule.mean(axis=1), atol=1e-4)
    np.testing.assert_allclose(
        curves['unfinished__mean'][:, 0], 1 - ended.mean(axis=1), atol=1e-4)
    self.assertTrue(np.isin(
        curves['unfinished__mean'][:, -1].round(4), [0, 1]).all())


class ProxiesTest(parameterized.TestCase):

  @parameterized.parameters(CONDITIONS)
  def test_scale_is_that_of_clean_held_out_responses(self, condition):
    pairs = arrays(condition.rpartition('/')[0], 'pairs/pairs.npz')
    at = slice(config()['proxy']['held_out'])
    scores = member_scores(condition, pairs['tokens'][at], pairs['mask'][at])
    held = arrays(condition, 'proxies/scale.npz')
    np.testing.assert_allclose(held['mean'], scores.mean(axis=(1, 2)),
                               atol=1e-4)
    np.testing.assert_allclose(held['std'], scores.std(axis=(1, 2)),
                               atol=1e-4)
    # Validated on clean labels, whatever the noise in training.
    right = (scores[..., 0] > scores[..., 1]) == (
        pairs['gold_scores'][at, 0] >= pairs['gold_scores'][at, 1])
    result = json.loads(
        (study() / condition / 'proxies/result.json').read_text())['result']
    np.testing.assert_allclose(
        result['accuracies'], right.mean(axis=1), atol=1e-6)

  @parameterized.parameters(zip(CONDITIONS, (0, .25) * 2))
  def test_share_of_flipped_labels_is_exact(self, condition, share):
    result = json.loads(
        (study() / condition / 'proxies/result.json').read_text())['result']
    self.assertEqual(result['flipped'], share)
    # The rows that training gets, against the gold scores of their pairs.
    pairs = arrays(condition.rpartition('/')[0], 'pairs/pairs.npz')
    part = dict(config()['proxy'])
    held_out = part['held_out']
    del part['sft'], part['trunk']
    with mock.patch.object(proxies_lib.sources, 'offline_members',
                           side_effect=StopIteration) as source:
      with self.assertRaises(StopIteration):
        proxies_lib.run(
            Context(), seed=0, data=best_of_n.data_config(config()),
            pairs=condition.rpartition('/')[0] + '/pairs',
            trunks=['seed_0/trunk'], label_noise=share, **part)
    rows = source.call_args.args[0]
    self.assertLen(rows.tokens, 64)
    flipped = 0
    for row, both, scores in zip(rows.tokens, pairs['tokens'][held_out:],
                                 pairs['gold_scores'][held_out:]):
      best = int(scores.argmax())
      flips = not np.array_equal(row[0], both[best])
      np.testing.assert_array_equal(row[int(flips)], both[best])
      np.testing.assert_array_equal(row[int(not flips)], both[1 - best])
      flipped += flips
    self.assertEqual(flipped, 64 * share)

  def test_members_share_the_trunk_and_not_the_head(self):
    shape, _ = proxies(CONDITIONS[0])
    keys = jax.random.split(jax.random.key(0), 2)
    model = config()['proxy']['model']
    params = proxies_lib._init(
        Context(), model, shape, keys, ['seed_0/trunk'], 1.)
    _, trunk = artifacts.load_policy(
        Context(), 'seed_0/trunk', model, shape.vocab_size)
    trunk.pop('unembed', None)
    for member in range(2):
      jax.tree.map(lambda x, y, m=member: np.testing.assert_array_equal(
          x[m], y), params['trunk'], trunk)
    weights = max(jax.tree.leaves(params['head']), key=lambda x: x.size)
    self.assertGreater(np.abs(weights[0] - weights[1]).max(), .01)
    _, trained = proxies(CONDITIONS[0])
    self.assertFalse(all(np.array_equal(x[0], x[1])
                         for x in jax.tree.leaves(trained['trunk'])))


class SamplesTest(parameterized.TestCase):

  def test_forced_endings(self):
    eos = world().tokenizer.eos_id
    for rows in (shards('forced_eos'),
                 arrays('seed_0/forced_eos/pairs/pairs.npz')):
      last = rows['mask'].shape[-1] - 1 - np.argmax(
          rows['mask'][..., ::-1], axis=-1)
      self.assertTrue((np.take_along_axis(
          rows['tokens'], last[..., None], axis=-1) == eos).all())
    free = shards('as_sampled')
    ended = (free['mask'] & (free['tokens'] == eos)).any(axis=-1)
    self.assertLess(ended.mean(), 1)

  def test_responses_to_a_prompt_differ(self):
    for ending in ENDINGS:
      known = shards(ending)
      self.assertEqual(known['tokens'].shape[:2], (4, 32))
      for rows, prompt in zip(known['tokens'], world().eval_prompts.tokens):
        # Calls of 16 do not repeat each other.
        self.assertGreater(len({row.tobytes() for row in rows}), 28)
        self.assertTrue((rows[:, :8] == prompt).all())


class ReportTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = study() / 'report_seeds_0'
    with open(self.directory / 'results.csv', newline='') as stream:
      self.rows = list(csv.DictReader(stream))

  def test_results_are_the_curves(self):
    self.assertLen(self.rows, 4 * 6 * 6)
    for row in self.rows:
      condition = 'seed_0/{}/noise_{:g}'.format(
          ENDINGS[row['force_eos'] == 'True'], float(row['label_noise']))
      curves = arrays(condition, 'best_of_n/curves.npz')
      at = NS.index(int(row['n']))
      members = ([row['method']] if row['method'] != 'single'
                 else ['single_0', 'single_1'])
      for what in ('gold', 'proxy', 'rule', 'unfinished', 'length'):
        values = np.mean([curves[f'{what}__{m}'][:, at] for m in members],
                         axis=0, dtype=np.float64)
        self.assertAlmostEqual(float(row[what]), values.mean(), 5)
        self.assertAlmostEqual(  # four prompts
            float(row[f'{what}_se']), values.std(ddof=1) / 2, 5)
      n = int(row['n'])
      self.assertAlmostEqual(
          float(row['sqrt_kl']), math.sqrt(math.log(n) - (n - 1) / n), 5)

  def test_jsonl_is_the_csv(self):
    lines = (self.directory / 'results.jsonl').read_text().splitlines()
    self.assertEqual([{k: str(v) for k, v in json.loads(line).items()}
                      for line in lines], self.rows)

  def test_table(self):
    """Every number of summary.md, again from the curves."""
    lines = (self.directory / 'summary.md').read_text().splitlines()
    head, _, *body = [[c.strip() for c in line.strip('|').split('|')]
                      for line in lines]
    self.assertLen(body, 16)
    for cells in body:
      row = dict(zip(head, cells, strict=True))
      condition = 'seed_0/{}/noise_{:g}'.format(
          ENDINGS[row['EOS'] == 'forced'],
          float(row['noise'].rstrip('%')) / 100)
      curves = arrays(condition, 'best_of_n/curves.npz')
      for what in ('gold', 'rule', 'unfinished'):
        curves[f'{what}__single'] = (
            curves[f'{what}__single_0'] + curves[f'{what}__single_1']) / 2
      curve = curves[f'gold__{row["method"]}'].astype(np.float64)
      top = curve.mean(axis=0).argmax()
      last = {k: v[:, -1].astype(np.float64) for k, v in curves.items()
              if k != 'ns'}
      text = lambda x: f'{x.mean():.2f} +- {x.std(ddof=1) / 2:.2f}'
      drop = curve[:, top] - curve[:, -1]
      self.assertEqual(row['peak'], text(curve[:, top]))
      self.assertEqual(row['final'], text(curve[:, -1]))
      self.assertEqual(row['drop'], text(drop))
      self.assertEqual(
          row['above_single'], text(curve[:, -1] - last['gold__single']))
      for what in ('rule', 'unfinished'):
        self.assertEqual(row[what], text(last[f'{what}__{row["method"]}']))
      self.assertEqual(row['seeds_falling'], str(int(
          drop.mean() > drop.std(ddof=1))))  # 2 * s.d. / root 4
      self.assertEqual(row['seeds'], '1')


class GoldTest(absltest.TestCase):

  def test_held_out_that_leaves_nothing(self):
    part = config()
    with self.assertRaisesRegex(errors.ConfigError, 'gold.held_out is 9999'):
      gold.run(Context('unwritten'), seed=0, data=best_of_n.data_config(part),
               policy='seed_0/sft', policy_model=part['policy']['model'],
               sampler=part['sampler'], **part['gold'] | dict(held_out=9999))


if __name__ == '__main__':
  absltest.main()
