"""Tests for rlhf_jax.reports.spec."""

from absl.testing import absltest
from absl.testing import parameterized

from rlhf_jax import errors
from rlhf_jax.reports import spec

# Of an ensemble of two, trained on each member and on both, at two noises.
RUNS = [{'method': method, 'noise': noise, **member}
        for noise in (0., .25)
        for method, member in (('single', {'member': 0}),
                               ('single', {'member': 1}), ('mean', {}))]
CURVES = {'kind': 'curves', 'panel': ('noise',)}
GROUPS = [{'method': 'nll'}, *(
    {'method': m, 'family': f} for m, f in (
        ('dpo', 'preference'), ('a_lol', 'reward'), ('r_lol', 'reward')))]
FIG2 = {'kind': 'curves', 'x': 'step', 'y': ('component_safe',),
        'panel': ('family',), 'everywhere': {'method': 'nll'},
        'x_name': 'optimizer steps'}
FIG5 = {'kind': 'distributions', 'components': ('safe', 'long'),
        'logs': ('up',)}
SWEEP = [{'method': m, 'kl_coef': k} for m in ('mean', 'single')
         for k in (0., .1)]


class CheckTest(parameterized.TestCase):

  @parameterized.parameters(
      (CURVES, RUNS),
      (CURVES | {'baseline': {'method': 'single'}}, RUNS),
      (CURVES | {'x': 'step', 'y': ['gold', 'ensemble_variance', 'member_3'],
                 'limit_kl': 150}, RUNS),
      (CURVES | {'source': 'training', 'x': 'step', 'y': ('rollout/score',)},
       RUNS),
      ({'kind': 'curves', 'line': ('method', 'member'), 'panel': ('noise',)},
       RUNS),
      ({'kind': 'curves', 'line': ()}, [{}]),
      ({'kind': 'final', 'x': 'kl_coef'}, SWEEP),
      ({'kind': 'final', 'x': 'method', 'line': ('kl_coef',), 'y': (
          'gold', 'drop', 'gold_above'), 'baseline': SWEEP[0]}, SWEEP),
      ({'kind': 'table'}, RUNS),
      ({'kind': 'win_rates', 'against': {'method': 'single'},
        'panel': ('noise',)}, RUNS),
      (FIG2, GROUPS),
      (FIG2 | {'x': 'updates', 'y': ('gold_split_a-b', 'words')}, GROUPS),
      ({'kind': 'distributions', 'components': ['safe']}, GROUPS),
      ({'kind': 'distributions', 'components': ['safe'], 'line': ('noise',),
        'runs': {'method': 'mean'}}, RUNS))
  def test_sound(self, figure, labels):
    full = spec.check(figure, labels)
    self.assertEqual({k: full[k] for k in figure}, figure)
    self.assertEqual(spec.check(full, labels), full)

  def test_pairs_within_a_panel(self):
    self.assertEqual(
        spec.check(CURVES, RUNS)['paired_by'], ('noise',))
    self.assertEqual(
        spec.check(CURVES | {'paired_by': ()}, RUNS)['paired_by'],
        ())

  @parameterized.parameters(
      ({}, r'figure.kind is None; there are curves, final, table, win_rates, '
       'distributions'),
      (CURVES | {'legend': 1}, r"legend is 1; 'curves' has x, y, line"),
      ({'kind': 'final'}, r"x is 'absent'; 'final' needs it"),
      (CURVES | {'y': 'gold'}, r"y is 'gold'; give a list of names"),
      (CURVES | {'y': ()}, r'y is \(\); give at least one'),
      (CURVES | {'y': ('glod',)}, r"y is .*; there is no 'glod'; there are "
                                  'step,.* gold, '),
      (CURVES | {'columns': ('drop',)}, "columns is .*; there is no 'drop'"),
      (CURVES | {'y': ('drop',)}, "y is .*; there is no 'drop'"),
      (CURVES | {'x': 'gold'}, r"x is 'gold'; source 'evaluation' has sqrt_"),
      (CURVES | {'source': 'test'}, "source is 'test'; there are evaluation"),
      (CURVES | {'source': 'training', 'y': ('a',)},
       "x is 'sqrt_kl'; source 'training' has step"),
      (CURVES | {'source': 'training', 'x': 'step', 'limit_kl': 1.},
       'limit_kl is 1.0; only curves with source'),
      (CURVES | {'limit_kl': 0}, 'limit_kl is 0; give nats above 0'),
      (CURVES | {'window': .5}, 'window is 0.5; give logged rollouts'),
      (CURVES | {'panel': ('noize',)}, r"panel is \('noize',\); no run has the "
                                       "label 'noize'; there are method,"),
      ({'kind': 'final', 'x': 'sigma'}, "x is 'sigma'; no run has the label"),
      (CURVES | {'baseline': {'method': 'worst_case'}},
       "baseline is {'method': 'worst_case'}; no run has these labels"),
      (CURVES | {'baseline': 'single'}, "baseline is 'single'; give labels"),
      (CURVES | {'baseline': {'method': 'single'}, 'paired_by': ()},
       'baseline matches several .* they differ in noise; add that to '
       'baseline or paired_by'),
      ({'kind': 'curves'}, 'make one line of .*: they differ in noise; add'),
      ({'kind': 'curves', 'panel': ('method',), 'line': ('member',)},
       'make one line .*: they differ in noise; add that to line or panel'),
      ({'kind': 'win_rates', 'against': {'method': 'single'},
        'paired_by': ('noise',)}, 'make one bar .*: they differ in noise'),
      ({'kind': 'win_rates', 'against': {'noise': 0.}, 'line': ('method',)},
       'against matches several .* they differ in method; add that to'))
  def test_one_line(self, figure, message):
    with self.assertRaisesRegex(errors.ConfigError, message) as raised:
      spec.check(figure, RUNS)
    self.assertNotIn('\n', str(raised.exception))

  @parameterized.parameters(
      (FIG2 | {'everywhere': {'method': 'ppo'}}, 'everywhere .*; no run has'),
      (FIG2 | {'everywhere': {'family': 'reward'}, 'line': ('family',),
               'panel': ('method',)},
       'these lines have the name of others in a panel'),
      (FIG2 | {'everywhere': {'method': 'a_lol'}, 'line': ('family',),
               'panel': ('method',)},
       'these lines have the name of others in a panel; add to it, or to line'),
      (FIG2 | {'x_name': 3}, 'x_name is 3; give text, or None'),
      (FIG2 | {'y': ('component_save',)},
       "no 'component_save'; .* component_safe, component_long, gold_"),
      (FIG5 | {'components': ()}, r'components is \(\); give at least one'),
      (FIG5 | {'components': 'safe'}, "components is 'safe'; give a list"),
      (FIG5 | {'components': ('save',)},
       "components is .*; there is no 'save'; there are safe, long"),
      (FIG5 | {'logs': ('down',)}, "no 'down'; there are up"),
      (FIG5 | {'runs': {'method': 'ppo'}}, "runs is .*; no run has these"),
      (FIG5 | {'line': ('family',)}, 'they differ in method; add'),
      (FIG5 | {'y': ('safe',)}, "y is .*; 'distributions' has components"))
  def test_components(self, figure, message):
    with self.assertRaisesRegex(errors.ConfigError, message):
      spec.check(figure, GROUPS, logs=['up'],
                 components=['safe', 'long'])

  @parameterized.parameters(
      (CURVES, RUNS, None, ('gold', 'proxy'),
       ('gold', 'proxy', 'rule', 'kl_k1', 'length')),
      (CURVES, RUNS, {'gold', 'rule'}, ('gold', 'proxy'),
       ('gold', 'proxy', 'rule', 'kl_k1', 'length')),
      (CURVES, RUNS, {'gold'}, ('gold', 'proxy'),
       ('gold', 'proxy', 'kl_k1', 'length')),
      (CURVES, RUNS, {'rule'}, ('proxy',),
       ('proxy', 'rule', 'kl_k1', 'length')),
      (CURVES, RUNS, (), ('proxy',), ('proxy', 'kl_k1', 'length')),
      ({'kind': 'final', 'x': 'kl_coef'}, SWEEP, {'gold'}, ('gold',),
       ('gold', 'proxy', 'kl_k1', 'length')),
      ({'kind': 'final', 'x': 'kl_coef'}, SWEEP, (), ('proxy',),
       ('proxy', 'kl_k1', 'length')))
  def test_shows_what_the_study_will_have(
      self, figure, labels, columns, y, shown):
    if columns is not None:
      columns = {'proxy', *columns}
    full = spec.check(figure, labels, columns=columns)
    self.assertEqual((full['y'], full['columns']), (y, shown))
    self.assertEqual(spec.check(full, labels, columns=columns), full)

  def test_without_a_reward(self):
    full = spec.check(CURVES, RUNS, columns=())
    self.assertEqual((full['y'], full['columns']),
                     (('kl_k1',), ('kl_k1', 'length')))
    for y in ('proxy', 'proxy_split_a'):
      with self.assertRaisesRegex(
          errors.ConfigError, f"'{y}' is not there: no reward measures"):
        spec.check(CURVES | {'y': (y,)}, RUNS, columns=())

  @parameterized.parameters(
      (CURVES | {'columns': ('proxy', 'gold')}, ['rule'],
       r"config.figure.columns is \('proxy', 'gold'\); 'gold' is not there: no "
       'policy of this study is measured by a gold model; leave it out, or '
       'let a component'),
      (CURVES | {'y': ['gold']}, [], "figure.y is .*; 'gold' is not there: no"),
      (CURVES | {'y': ('gold_split_a',)}, [], "'gold_split_a' .* a gold model"),
      (CURVES | {'columns': ('rule',)}, ['gold'],
       "'rule' is not there: the data of this study has no rule; leave it"),
      ({'kind': 'final', 'x': 'noise', 'y': ('drop',)}, [],
       "y is .*'drop' is not there: no policy .* by a gold model"),
      ({'kind': 'final', 'x': 'noise', 'y': ('gold_above',),
        'baseline': {'method': 'single'}, 'paired_by': ('noise',)}, [],
       "'gold_above' is not there: no policy .* by a gold model"),
      ({'kind': 'win_rates', 'against': {'method': 'single'},
        'panel': ('noise',)}, [],
       "kind is 'win_rates'; they are those of gold scores, and no policy of"))
  def test_what_the_study_will_not_have(self, figure, columns, message):
    spec.check(figure, RUNS, columns=['gold', 'rule', 'proxy'])
    with self.assertRaisesRegex(errors.ConfigError, message) as raised:
      spec.check(figure, RUNS, columns=[*columns, 'proxy'])
    self.assertNotIn('\n', str(raised.exception))

  def test_names_no_column_that_is_not_there(self):
    with self.assertRaisesRegex(errors.ConfigError, "no 'glod'") as raised:
      spec.check(CURVES | {'y': ('glod',)}, RUNS, columns=('proxy',))
    self.assertNotIn(' gold,', str(raised.exception))
    self.assertIn(' proxy,', str(raised.exception))

  def test_training_may_log_what_is_not_evaluated(self):
    figure = CURVES | {'source': 'training', 'x': 'step', 'y': ('gold',)}
    self.assertEqual(
        spec.check(figure, RUNS, columns=())['y'], ('gold',))
    self.assertEqual(spec.restrict(figure, ())['y'], ('gold',))

  def test_restrict(self):
    full = spec.check(
        {'kind': 'final', 'x': 'noise', 'columns': ('gold', 'rule', 'loss'),
         'y': ('drop', 'loss_above'), 'baseline': {'method': 'single'},
         'paired_by': ('noise',)}, RUNS)
    self.assertEqual(spec.restrict(full, {'gold', 'step'}), {
        **full, 'columns': ('gold', 'loss')})
    self.assertEqual(spec.restrict(full, {'loss'}), {
        **full, 'columns': ('loss',), 'y': ('loss_above',)})
    for there, last in ((('proxy',), 'proxy'), ((), 'kl_k1')):
      self.assertEqual(spec.restrict({'columns': ('gold',)}, there),
                       {'columns': (last,)})

  def test_every_line_is_everywhere(self):
    with self.assertRaisesRegex(
        errors.ConfigError, 'everywhere is .*; every run has these labels'):
      spec.check(FIG2 | {'panel': ()}, GROUPS[:1])

  @parameterized.parameters(
      ([{'a': 1}, {'a': 1}], 'two runs have the same labels'),
      ([{'seed': 1}], "the label 'seed', which names a column of results.csv"),
      ([{'gold': 1}], "the label 'gold', which names a column"),
      ([{'component_x': 1}], "the label 'component_x', which names"),
      ([{'rule_se': 1}], "the label 'rule_se', which names a column"),
      ([{'a': (1, 2)}], r"the label 'a': \(1, 2\); give text or a number"))
  def test_labels(self, labels, message):
    with self.assertRaisesRegex(errors.ConfigError, message):
      spec.check({'kind': 'table'}, labels)

  def test_every_run_is_against(self):
    with self.assertRaisesRegex(
        errors.ConfigError, 'every run has these labels; add one'):
      spec.check({'kind': 'win_rates', 'against': {'noise': 0.},
                  'line': ('noise',)}, RUNS[:2])


if __name__ == '__main__':
  absltest.main()
