"""Tests for rlhf_jax.stages.best_of_n, on the finished study of figure 3."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from stages import figure_3

from rlhf_jax.stages import best_of_n
from rlhf_jax.storage import files


class CurvesTest(parameterized.TestCase):

  @parameterized.parameters(*figure_3.CONDITIONS)
  def test_by_brute_force(self, condition):
    samples = figure_3.shards(condition.split('/')[1])
    members = figure_3.members(condition)
    gold_scores = samples['gold_scores'].astype(np.float64)
    gold_scores = (gold_scores - gold_scores.mean()) / gold_scores.std()
    curves = figure_3.arrays(condition, 'best_of_n/curves.npz')
    np.testing.assert_array_equal(curves['ns'], figure_3.NS)
    for name, method in figure_3.METHODS.items():
      proxy = method(members)
      for what, values in (
          ('gold', gold_scores), ('length', samples['mask'].sum(axis=-1)),
          ('proxy', (proxy - proxy.mean()) / proxy.std())):
        np.testing.assert_allclose(
            curves[f'{what}__{name}'], figure_3.estimate(proxy, values),
            atol=1e-4, err_msg=f'{what} {name}')
    # The released code keeps the gold of member 0's order: another answer.
    wrong = figure_3.estimate(members[0], gold_scores)
    for name in ('single_1', 'mean', 'worst_case'):
      self.assertGreater(np.abs(curves[f'gold__{name}'] - wrong).max(), .05)

  def test_rule_and_unfinished(self):
    samples, curves = figure_3.shards('as_sampled'), figure_3.arrays(
        figure_3.CONDITIONS[0], 'best_of_n/curves.npz')
    rule = samples['rule']
    rule = (rule - rule.mean()) / rule.std()
    ended = (samples['mask'] & (samples['tokens'] == 2)).any(axis=-1)
    # Best of one is the mean of all samples, best of N one of them.
    np.testing.assert_allclose(
        curves['rule__mean'][:, 0], rule.mean(axis=1), atol=1e-4)
    np.testing.assert_allclose(
        curves['unfinished__mean'][:, 0], 1 - ended.mean(axis=1), atol=1e-4)
    self.assertTrue(np.isin(
        curves['unfinished__mean'][:, -1].round(4), [0, 1]).all())

  def test_raw_members_and_a_method_of_ones_own(self):
    condition = figure_3.CONDITIONS[1]
    context = figure_3.context()
    result = best_of_n.run(
        context, upstream={role: f'{condition}/{role}'
                           for role in ('scores', 'proxies')},
        methods={'cautious': dict(kind='uncertainty_weighted',
                                  uncertainty_coef=3.)}, standardize=False)
    self.assertEqual(result['methods'], ['single_0', 'single_1', 'cautious'])
    curves = files.load_arrays(context.directory / 'curves.npz')
    members = figure_3.members(condition, standardize=False)
    gold = figure_3.shards('as_sampled')['gold_scores'].astype(np.float64)
    np.testing.assert_allclose(
        curves['gold__cautious'], figure_3.estimate(
            members.mean(axis=0) - 3 * members.var(axis=0),
            (gold - gold.mean()) / gold.std()), atol=1e-4)


if __name__ == '__main__':
  absltest.main()
