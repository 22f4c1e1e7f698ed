"""Tests for rlhf_jax.reports.distributions, on hand-written stages."""

import shutil
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from reports import written

from rlhf_jax import errors
from rlhf_jax.reports import distributions
from rlhf_jax.reports import redraw
from rlhf_jax.reports import violins
from rlhf_jax.stages import policy_report
from rlhf_jax.storage import files


class DistributionsTest(written.ReportTestCase):

  def log(self, name, seed, values, group, groups, num_validation=0):
    directory = self.context.directory_of(f'seed_{seed}/{name}')
    directory.mkdir(parents=True)
    files.save_arrays(
        directory / 'logged.npz', group=np.array(group, np.int32),
        **{f'value_{key}': np.float32(x) for key, x in values.items()})
    self.results[f'seed_{seed}/{name}'] = {
        'groups': groups, 'num_validation': num_validation}
    return {'stage': f'seed_{seed}/{name}', 'seed': seed}

  def distributions(self, **figure):
    self.results = {}
    self.context.result_of = lambda name: self.results.get(name, {})
    logs = {'pairs': [
        self.log('pairs', 0, {'safe': [[1, .5], [.5, 0], [9, 9]]},
                 [[0, 1], [0, -1], [0, 1]], ['good', 'bad'], 1),
        self.log('pairs', 1, {'safe': [[0, .25]]}, [[0, 1]],
                 ['good', 'bad'])],
            'up': [self.log('up', 0, {'safe': [[.2], [.4]]}, [[1], [1]],
                            ['none', 'up'])]}
    for i, policy in enumerate(self.policies):
      self.write(policy['stage'], 'final', [
          {'prompt': 0, 'component_safe': i / 10, 'component_long': 1},
          {'prompt': 1, 'component_safe': 0., 'component_long': 0}])
    return policy_report.run(
        self.context, policies=self.policies, stages=['seed_0/sft'],
        title='A title', logs=logs, figure={
            'kind': 'distributions', 'components': ('safe',), **figure})

  def test_distributions(self):
    with mock.patch.object(violins, 'draw') as draw:
      self.distributions(logs=('pairs', 'up'))
    rows = {row['name']: row for row in self.rows('distributions')}
    # The response that is missing and the validation example are left out;
    # members of a seed are together, .0, 0 and .2, 0, then .1, 0 and .3, 0.
    expected = {
        'pairs, good (logged)': ([1., .5, 0.], [.75, 0.]),
        'pairs, bad (logged)': ([.5, .25], [.5, .25]),
        'up (logged)': ([.2, .4], None),
        'single model': ([0., 0., .2, 0., .1, 0., .3, 0.], [.05, .1]),
        'ensemble mean': ([.4, 0., .5, 0.], [.2, .25])}
    self.assertEqual(list(rows), list(expected))
    for given, (name, (values, means)) in zip(
        draw.call_args.args[0], expected.items(), strict=True):
      self.assertEqual((given['panel'], given['x'], given['logged']),
                       ('safe', name, 'logged' in name))
      # Of so few responses each is several percentiles.
      np.testing.assert_allclose(
          np.unique(given['values']), np.unique(values), rtol=1e-6)
      self.assertLen(given['values'], 101)
      np.testing.assert_array_equal(
          given['quantiles'], given['values'][[5, 25, 50, 75, 95]])
      row = rows[name]
      self.assertEqual((given['mean'], given['responses']),
                       (float(row['mean']), len(values)))
      self.assertEqual((row['component'], int(row['responses'])),
                       ('safe', len(values)))
      mean, error = np.mean(means or values), np.std(
          means or values, ddof=1) / 2**.5
      for column, number in (('mean', mean), ('mean_se', error),
                             ('quantile_0', min(values)),
                             ('quantile_0.5', sorted(values)[
                                 (len(values) - 1) // 2]),
                             ('quantile_1', max(values))):
        self.assertAlmostEqual(float(row[column]), number, 6, column)

  def test_it_is_drawn_again(self):
    """The same from distributions.csv, and without violins from few columns."""
    self.distributions(logs=('pairs',))
    kept = self.context.directory.parent / 'kept'
    kept.mkdir()
    for name in ('results', 'distributions'):
      shutil.copy(self.context.directory / f'{name}.csv', kept)
    study = redraw.read(kept, dict(
        study='offline', title='A title', figure=dict(kind='distributions')))
    self.assertTrue(redraw.draw(study))
    self.assertEqual((kept / 'figure.png').read_bytes(),
                     (self.context.directory / 'figure.png').read_bytes())
    rows = redraw.table(kept / 'distributions.csv')
    with mock.patch.object(violins, 'draw') as draw:
      distributions.draw([{name: value for name, value in row.items()
                           if name != 'quantile_0.99'} for row in rows],
                         'path', title='')
    for given, row in zip(draw.call_args.args[0], rows, strict=True):
      self.assertIsNone(given['values'])
      self.assertEqual(given['quantiles'][4], row['quantile_0.95'])

  def test_distributions_of_some(self):
    self.distributions(logs=('up',), components=('safe',),
                       runs={'method': 'mean'}, columns=('gold',))
    self.assertEqual([row['name'] for row in self.rows('distributions')],
                     ['up (logged)', 'ensemble mean'])
    self.assertTrue((self.context.directory / 'figure.png').exists())
    self.assertLen(self.rows('summary'), 2)

  @parameterized.parameters(
      ((), "has 'warm', and .*final.jsonl has safe, long; name"),
      (('up',), "has 'warm', and .*logged.npz has safe; name"))
  def test_no_such_component(self, logs, message):
    with self.assertRaisesRegex(errors.ConfigError, message):
      self.distributions(components=('warm',), logs=logs)


if __name__ == '__main__':
  absltest.main()
