"""Tests for rlhf_jax.evaluate."""

from absl.testing import absltest
import numpy as np

from rlhf_jax import evaluate


class EvaluateTest(absltest.TestCase):

  def test_standard_error_by_hand(self):
    # Deviations -1, 0, 1: variance 2 / (3 - 1) = 1, over the root of 3.
    self.assertAlmostEqual(
        float(evaluate.standard_error([1, 2, 3])), 1 / 3**.5)
    x = np.array([[1., 2.], [3., 6.]])
    np.testing.assert_allclose(evaluate.standard_error(x), [1, 2])
    np.testing.assert_allclose(evaluate.standard_error(x, axis=1), [.5, 1.5])

  def test_standard_error_of_one_value_is_unknown(self):
    self.assertTrue(np.isnan(evaluate.standard_error([1.])))
    out = evaluate.standard_error(np.ones((1, 3)))
    self.assertEqual(out.shape, (3,))
    self.assertTrue(np.isnan(out).all())

  def test_standard_error_is_float64(self):
    # float32 would lose the spread beside the offset.
    x = np.float32(1e4) + np.arange(4, dtype=np.float32)
    self.assertAlmostEqual(float(evaluate.standard_error(x)),
                           (5 / 3)**.5 / 2, places=12)

  def test_pair_accuracy_counts_a_tie_as_wrong(self):
    scores = np.array([[[2., 1.], [1., 1.], [0., 1.], [5., -5.]],
                       [[1., 1.], [1., 1.], [1., 1.], [2., 1.]]])
    np.testing.assert_array_equal(evaluate.pair_accuracy(scores), [.5, .25])

  def test_with_single_is_the_mean_of_the_members(self):
    curves = {'single_0': np.array([[1., 3.]]), 'mean': np.array([[9., 9.]]),
              'single_1': np.array([[2., 7.]])}
    out = evaluate.with_single(curves)
    np.testing.assert_array_equal(out['single'], [[1.5, 5.]])
    self.assertEqual(set(out), {'single', *curves})

  def test_summary_by_hand(self):
    ns = [1, 2, 4]
    gold = {
        'single_0': np.float32([[0, 4, 1], [2, 2, 3]]),
        'single_1': np.float32([[0, 2, 1], [0, 4, 1]]),
        'rises': np.float32([[0, 1, 2], [0, 1, 4]]),
    }
    rows = evaluate.best_of_n_summary(ns, gold)
    # single: [[0, 3, 1], [1, 3, 2]], means .5, 3, 1.5: highest at n = 2.
    # Peaks 3, 3; finals 1, 2; drops 2, 1, whose s.d. is root .5.
    single = rows['single']
    self.assertEqual(single['peak_n'], 2)
    for name, value in (('peak', 3.), ('peak_se', 0.), ('final', 1.5),
                        ('final_se', .5), ('drop', 1.5), ('drop_se', .5)):
      self.assertAlmostEqual(single[name], value, msg=name)
    # single_0: means 1, 3, 2; drops 3 and -1: the drop of a prompt may be
    # negative, that of the mean not. Its error: s.d. 2.83 / root 2 = 2.
    self.assertAlmostEqual(rows['single_0']['drop'], 1.)
    self.assertAlmostEqual(rows['single_0']['drop_se'], 2.)
    # A curve that only rises peaks at its end and drops nothing.
    self.assertEqual(
        (rows['rises']['peak_n'], rows['rises']['drop']), (4, 0.))
    self.assertEqual(rows['rises']['final'], rows['rises']['peak'])

  def test_summary_is_json(self):
    rows = evaluate.best_of_n_summary([1], {'single_0': np.ones((2, 1))})
    for row in rows.values():
      for name, value in row.items():
        self.assertIs(type(value), int if name == 'peak_n' else float)


if __name__ == '__main__':
  absltest.main()
