"""What a page holds, of workdirs in every state."""

import base64
import hashlib
import json
import math
import re
from unittest import mock

from absl.testing import parameterized
import numpy as np
import worlds
import written_study

from rlhf_jax import errors
from rlhf_jax.reports import distributions
from rlhf_jax.reports import page
from rlhf_jax.reports import page_claims
from rlhf_jax.reports import page_figures
from rlhf_jax.reports import page_samples
from rlhf_jax.reports import page_study
from rlhf_jax.reports import style
from rlhf_jax.reports import verdicts
from rlhf_jax.runner import workdirs
from rlhf_jax.storage import files

RESULTS = worlds.ROOT / 'experiments/coste2024_reward_model_ensembles/results'
FIG4 = RESULTS.parent / 'fig4_ppo.py'


def written(**kwargs):
  folder = worlds.folder() / 'study'
  return written_study.write(folder, **kwargs)


def of_written(**kwargs) -> page_study.Study:
  study, = written_study.read(written(**kwargs))
  return study


class StudyTest(parameterized.TestCase):

  def test_a_complete_one(self):
    study = of_written()
    self.assertEqual(study.state, 'complete')
    self.assertLen(study.policies, 6)
    self.assertLen(study.rows, 24)
    self.assertEqual(study.report.name, 'report')
    self.assertEmpty(study.notes)
    stage = study.stages[0]
    self.assertEqual(stage.versions, {'jax': '0.11.0', 'python': '3.11.4'})
    self.assertEqual((stage.seconds, stage.state), (1.5, 'complete'))
    self.assertNotIn('loss/x', stage.numbers)
    self.assertEqual(study.policies[0].labels,
                     written_study.RUNS[study.policies[0].run])

  def test_one_that_has_failed(self):
    study = of_written(complete=False)
    self.assertEqual(study.state, 'failed')
    self.assertLen(study.policies, 3)
    self.assertIn('not complete', ' '.join(study.notes))

  def test_one_that_runs(self):
    path = written(complete=False)
    name = 'seed_0/policies/worst'
    files.write_json(path / 'status.json', {'state': 'running', 'stage': name})
    (path / name).mkdir()
    workdirs.begin(path / name, {'stage': name})
    line = '{"step": 0, "gold": 0.0, "sqrt_kl": 0.0}\n'
    (path / name / 'evaluation.jsonl').write_text(line + '{"step": 1, "go')
    with mock.patch.object(workdirs, 'is_owned', return_value=True):
      study, = written_study.read(path)
    self.assertEqual(study.state, 'running')
    self.assertEqual({stage.name: stage.state for stage in study.stages}[name],
                     'running')
    begun, = (p for p in study.policies if p.run == 'worst')
    self.assertLen(begun.rows, 1)
    study, = written_study.read(path)  # whose process is gone
    self.assertEqual(study.state, 'killed')

  def test_what_is_damaged_is_said(self):
    path = written()
    stage = path / 'seed_0/policies/worst'
    (stage / 'result.json').write_text('{"result": {}}')
    (path / 'seed_1/policies/worst/evaluation.jsonl').write_text('{oh\n')
    (path / 'seed_2/policies/worst/final.jsonl').write_text('{oh\n')
    study, = written_study.read(path)
    page_samples.of_studies([study], 99)
    notes = ' '.join(study.notes)
    for part in ('result.json is damaged', 'seed_1/policies/worst/evaluation',
                 'samples of seed_2/policies/worst cannot be read'):
      self.assertIn(part, notes)
    self.assertLen(study.policies, 5)

  def test_empty_ones(self):
    path = worlds.folder() / 'study'
    path.mkdir()
    study, = written_study.read(path)
    self.assertEqual(study.state, 'empty')
    files.write_json(path / 'config.json', written_study.config())
    study, = written_study.read(path)
    self.assertEqual(study.state, 'not started')
    self.assertIn('No stage has begun', ' '.join(study.notes))

  def test_foreign_ones(self):
    path = worlds.folder() / 'study'
    with self.assertRaisesRegex(errors.DataError, 'no such directory'):
      written_study.read(path)
    path.mkdir()
    (path / 'notes.txt').write_text('')
    with self.assertRaisesRegex(errors.DataError, 'neither a study'):
      written_study.read(path)
    files.write_json(path / 'config.json', {'title': 'of another program'})
    with self.assertRaisesRegex(errors.ConfigError, 'an older version'):
      written_study.read(path)

  def test_results_alone(self):
    study, = written_study.read(RESULTS / 'fig4_ppo')
    self.assertEqual(study.state, 'results only')
    self.assertLen({policy.seed for policy in study.policies}, 6)
    self.assertEqual(study.policies[0].labels, {
        'kl_coef': .01, 'label_noise': 0., 'method': 'mean'})
    self.assertNotEmpty(study.stages)

  def test_names(self):
    studies = written_study.read(written(), written())
    self.assertLen({study.name for study in studies}, 2)


class FiguresTest(parameterized.TestCase):

  def test_the_figure_is_the_one_of_the_png(self):
    """Means over seeds, and of the right axis those of the proxy."""
    (chart,), reason = page_figures.of_study(of_written())
    self.assertEqual(reason, '')
    self.assertEqual(chart['title'], 'label noise 0.25')
    self.assertEqual(chart['x'], '√KL (k2), √nats')
    wide = [one for one in chart['series']
            if not one.get('thin') and 'bars' not in one]
    gold = {one['name']: one for one in wide if not one['right']}
    proxy = {one['name']: one for one in wide if one['right']}
    # Evaluated at 0, 2, 4 and 6, and drawn along a grid.
    for end, sign in (('y', 0), ('low', -1), ('high', 1)):
      line = gold['worst-case (WCO)']
      np.testing.assert_allclose(
          np.interp([0, 2, 4, 6], line['x'], line[end]),
          np.array([0, 2, 3, 4]) + sign * np.array([0, 1, 1, 1]) / 3**.5,
          atol=.05)
    line = proxy['single model']
    np.testing.assert_allclose(
        np.interp([0, 2, 4, 6], line['x'], line['y']), np.arange(4) + .1,
        atol=1e-3)
    self.assertIn('mean of 3 seeds', chart['note'])
    end, = (one for one in chart['series'] if 'bars' in one
            and one['name'] == 'worst-case (WCO)' and not one['right'])
    np.testing.assert_allclose(
        np.array([end['x'], end['y'], end['low'], end['high']]).ravel(),
        [6, 4, 4 - 3**-.5, 4 + 3**-.5], atol=1e-4)

  def test_single_seeds_are_thin(self):
    (chart,), _ = page_figures.of_study(of_written())
    thin = [one for one in chart['series'] if one.get('thin')
            and one['name'] == 'worst-case (WCO)']
    self.assertLen(thin, 3)
    np.testing.assert_allclose(
        np.mean([one['y'] for one in thin], axis=0), [0, 2, 3, 4])

  def test_of_what_there_is(self):
    (chart,), _ = page_figures.of_study(of_written(complete=False))
    self.assertLen([one for one in chart['series'] if not one.get('thin')
                    and 'bars' not in one], 2)

  def test_one_that_cannot_be_drawn_says_why(self):
    figure = written_study.FIGURE | {'line': ['colour']}
    charts, reason = page_figures.of_study(of_written(figure=figure))
    self.assertEmpty(charts)
    self.assertIn('no run has the label', reason)

  @parameterized.parameters(
      (dict(kind='final', x='label_noise', y=['gold'], line=['method']),
       'points', 2),
      (dict(kind='table', columns=['gold']), 'bars', 1),
      (dict(kind='win_rates', against={'method': 'single'}), 'bars', 1))
  def test_other_kinds(self, figure, kind, series):
    (chart,), reason = page_figures.of_study(of_written(figure=figure))
    self.assertEqual(reason, '')
    self.assertEqual((chart['kind'], len(chart['series'])), (kind, series))
    json.dumps(chart, allow_nan=False)

  def test_distributions(self):
    """Shares where there are few values, as in the PNG."""
    few, many = [0., .5, 1., 1.], list(np.linspace(0, 1, 20))
    charts = page_figures.spread([
        distributions.Distribution(name, line, False, [np.array(values)])
        for name, values in (('topic', few), ('safe', many))
        for line in ('NLL', 'A-LOL')])
    self.assertEqual([(chart['title'], chart['kind']) for chart in charts],
                     [('topic', 'discs'), ('safe', 'violins')])
    for one in charts[0]['series']:
      self.assertEqual((one['x'], one['share']), ([0, .5, 1], [.25, .25, .5]))
    self.assertLen(charts[1]['series'][0]['x'], 20)

  def test_best_of_n(self):
    study, = written_study.read(RESULTS / 'fig3_best_of_n')
    charts, _ = page_figures.of_study(study)
    self.assertLen(charts, 4)
    for row in (row for row in study.rows if row['n'] == 2048
                and row['method'] == 'mean' and row['label_noise'] == .25
                and not row['force_eos']):
      line, = (line for line in page_figures.lines(study)
               if line['name'] == 'ensemble mean, 25 % noise')
      seed, = (s for s in line['seeds'] if s['seed'] == row['seed'])
      self.assertAlmostEqual(seed['columns']['gold'][-1], row['gold'], 3)

  def test_thin_lines_of_best_of_n_are_those_of_the_png(self):
    """Of seeds and methods; of members where only single models are shown."""
    for name, count in (('fig3_best_of_n', 5 * 4),
                        ('fig16_best_of_n_members', 3 * 5)):
      study, = written_study.read(RESULTS / name)
      for chart in page_figures.of_study(study)[0]:
        thin = [one for one in chart['series'] if one.get('thin')]
        self.assertLen(thin, count)
        self.assertLen({tuple(one['y']) for one in thin}, count)
        self.assertIn('thin: ', chart['note'])

  def test_lines(self):
    """By the labels that differ; null where nothing is."""
    lines = page_figures.lines(of_written())
    self.assertCountEqual([line['colour'] for line in lines], [
        style.STYLE[name][0].lower() for name in ('single', 'worst_case')])
    self.assertCountEqual([line['name'] for line in lines],
                          ['single model', 'worst-case (WCO)'])
    for line in lines:
      self.assertEqual([s['seed'] for s in line['seeds']], [0, 1, 2])
      self.assertNotIn('gold_se', line['seeds'][0]['columns'])
    self.assertEqual(page_figures.numbers([1, math.nan, 1 / 3]),
                     [1, None, .33333])


class SamplesTest(parameterized.TestCase):

  def samples(self, most=999, **kwargs):
    return page_samples.of_studies([of_written(**kwargs)], most)

  def test_before_and_after(self):
    samples = self.samples()
    self.assertLen(samples['study'], 48)
    self.assertEqual(samples['total'], 48)
    self.assertEqual({*samples['phase']}, {'before', 'after'})
    for run, seed, phase, text, kl in zip(
        samples['run'], samples['seed'], samples['phase'],
        samples['texts']['response'], samples['numbers']['kl_k1']):
      self.assertIn(f'answer {run} {seed} ', text)
      self.assertTrue(phase == 'after' or kl == 0)
    self.assertNotIn('rule', samples['numbers'])  # of which there is none
    self.assertIn('component_proxy', samples['numbers'])

  def test_scores(self):
    spread = {(one['run'], one['column']): one
              for one in self.samples()['spread']}
    self.assertLen(spread, 4)
    one = spread['worst', 'gold']
    self.assertLen(one['before'], 12)
    np.testing.assert_allclose(one['after'], np.array(one['before']) + 1)

  def test_not_more_than_asked_for(self):
    samples = self.samples(most=24)
    self.assertLen(samples['study'], 24)
    self.assertEqual(samples['total'], 48)
    self.assertLen(
        [x for x in samples['phase'] if x == 'before'], 12)

  def test_shares(self):
    self.assertEqual(page_samples._shares([2, 100, 100], 50), [2, 24, 24])
    self.assertEqual(page_samples._shares([3, 4], 50), [3, 4])
    self.assertEqual(page_samples._shares([], 50), [])

  def test_best_of_n(self):
    """Its samples as texts, each with what is thought of it."""
    path = written()
    home, there = path / 'seed_0/sft', path / 'seed_0/samples'
    home.mkdir()
    rows, coder = worlds.corpus().demonstrations, worlds.corpus().tokenizer
    coder.save(home / 'tokenizer.json')
    tokens, mask = (x[:4].reshape(2, 2, -1) for x in (rows.tokens, rows.mask))
    whole = [coder.decode(t[m], continuation=True) for t, m in zip(
        tokens.reshape(4, -1), mask.reshape(4, -1))]
    stop = whole[0][len(whole[0]) // 2:]
    files.write_json(home / 'model.json', {'stop': [stop], 'tokenizer': dict(
        coder.roles, control=list(coder.control))})
    there.mkdir()
    files.save_arrays(there / 'shard_0000.npz', tokens=tokens, mask=mask,
                      gold_scores=np.arange(4.).reshape(2, 2))
    workdirs.begin(there, {})
    scores = path / 'seed_0/clean/scores'
    scores.mkdir(parents=True)
    files.save_arrays(
        scores / 'scores.npz', length=np.full((2, 2), 7.), members=np.stack(
            [np.full((2, 2), x) for x in (1., 3.)]))
    study, = written_study.read(path)
    samples = page_samples.of_studies([study], 999)
    at = [i for i, x in enumerate(samples['phase']) if x == 'sampled']
    self.assertEqual([samples['numbers']['gold'][i] for i in at], [0, 1, 2, 3])
    for name, value in (('proxy', 2), ('ensemble_variance', 1), ('length', 7)):
      self.assertEqual({samples['numbers'][name][i] for i in at}, {value})
    self.assertEqual([samples['texts']['response'][i] for i in at],
                     [text.partition(stop)[0] for text in whole])
    self.assertNotEqual(whole[0].partition(stop)[0], whole[0])

  def test_where_a_run_has_not_come_to_its_end(self):
    path = written(complete=False)
    stage = path / 'seed_0/policies/single_0'
    for name in ('first', 'final'):
      (stage / f'{name}.jsonl').unlink()
    (stage / 'texts').mkdir()
    for step in (0, 10, 20):
      files.write_json(stage / f'texts/{step:06d}.json', [
          {'prompt': 'p', 'response': f'at {step}', 'gold': 1., 'proxy': None}])
    study, = written_study.read(path)
    samples = page_samples.of_studies([study], 99)
    self.assertEqual(
        [(phase, text) for phase, text, seed in zip(
            samples['phase'], samples['texts']['response'], samples['seed'])
         if seed == '0'], [('before', 'at 0'), ('step 20', 'at 20')])


class ClaimsTest(parameterized.TestCase):

  def test_the_experiment_is_known_by_its_title(self):
    root = worlds.ROOT / 'experiments'
    self.assertEqual(page_claims.experiment(of_written(), root), [FIG4])
    study, = written_study.read(RESULTS / 'fig4_ppo')
    self.assertEqual(page_claims.experiment(study, root), [FIG4])
    for title, names in (
        ('Mine', []), ('Mine: a figure', []),
        # Of another option of a config, and a title that is no paper's.
        ('Coste et al. 2024, figure 7 (as figure 20): x', ['fig7_kl_sweep']),
        ('Coste et al. 2024, figures 18 and 19: x: y', ['fig18_size_curves']),
        ('RLHF notes: labels of the current or of the SFT policy',
         ['iterated'])):
      own = written_study.write(worlds.folder() / 'own', title=title)
      study, = written_study.read(own)
      self.assertEqual([path.stem for path in page_claims.experiment(
          study, root)], names)

  def test_paragraphs(self):
    told = page_claims.paragraphs(FIG4)
    self.assertStartsWith(told['Title'], 'Coste et al. 2024, figure 4')
    self.assertEndsWith(told['Claim'], 'noise the ensemble mean needs .1.')
    self.assertStartsWith(told['Differs'], 'the world and the models')
    self.assertEndsWith(told['Differs'], 'as ensembles have, not one.')
    self.assertEndsWith(told['Run'], 'fig4_ppo.py:laptop')

  def test_claims_of_results_are_those_of_verdicts(self):
    study, = written_study.read(RESULTS / 'fig4_ppo')
    rows = page_claims.rows(study, FIG4)
    self.assertLen(rows, 7)
    for row in rows:
      self.assertEqual(row['word'], row['told'])

  def test_claims_of_an_own_study(self):
    """Of its own numbers; of runs that it lacks, nothing."""
    rows = page_claims.rows(of_written(), FIG4)
    row, = (r for r in rows if r['claim'].startswith(
        'Figure 4: PPO against mean'))
    self.assertEqual(row['word'], 'not in this study')
    path = written_study.write(worlds.folder() / 'three')
    text = (path / 'report/results.csv').read_text().replace(
        ',worst_case,', ',worst_case,0.01,').replace(
              ',single,', ',single,0.01,')
    (path / 'report/results.csv').write_text(
        text.replace('method,', 'method,kl_coef,'))
    study, = written_study.read(path)
    row, = (r for r in page_claims.rows(study, FIG4)
            if r['claim'] == 'Figure 4: PPO against worst_case ends above '
            'single models at 25 % noise')
    ends = [3., 4., 2.]  # worst less single: 4-1, 3--1, 5-3
    mean, low, high = verdicts.interval(ends)
    self.assertEqual((row['seeds'], row['word']), (3, 'holds'))
    self.assertEqual([row[x] for x in ('mean', 'low', 'high')],
                     [f'{x:.3f}' for x in (mean, low, high)])

  def test_differences(self):
    one, other = (written_study.write(worlds.folder() / x, **more)
                  for x, more in (('a', {}), ('b', dict(size='laptop'))))
    self.assertEqual(
        page_claims.differences(written_study.read(one, other)),
        [('size', "'smoke'", "'laptop'")])
    self.assertEmpty(page_claims.differences(written_study.read(one)))


class PageTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.enterContext(mock.patch.object(
        page, 'library', lambda: '/* the library */'))

  def text(self, *studies, most=999):
    return page.text(studies, [None] * len(studies), most)

  def test_text_of_samples_is_no_markup(self):
    text = self.text(of_written(complete=False))
    self.assertNotIn('</script><script>window', text)
    self.assertNotIn('<img src=x', text)
    self.assertNotIn('\u2028', text.partition('id="data"')[2])
    self.assertEqual(text.count('<script'), 5)
    self.assertEqual(text.count('</script'), 5)
    self.assertIn('is not finite &lt;/script', text)  # the message
    data = written_study.data_of(text)
    self.assertIn(written_study.NASTY, data['samples']['texts']['prompt'][0])

  def test_nothing_is_asked_for(self):
    text = self.text(of_written())
    self.assertIn("default-src 'none'", text)
    self.assertNotRegex(text, r'(src|href)="(?!data:|#)')
    self.assertNotRegex(text, r'@import|url\(')

  def test_scripts_are_those_of_the_policy(self):
    text = self.text(of_written())
    scripts = re.findall(r'<script>(.*?)</script>', text, re.DOTALL)
    self.assertLen(scripts, 4)
    for script in scripts:
      digest = base64.b64encode(hashlib.sha256(script.encode()).digest())
      self.assertIn(f"'sha256-{digest.decode()}'", text)

  def test_studies_side_by_side(self):
    a, b = (written_study.write(worlds.folder() / x, size=x) for x in 'ab')
    text = self.text(*written_study.read(a, b))
    self.assertLen(written_study.data_of(text)['lines'], 2)
    self.assertIn('<td>&#39;a&#39;</td><td>&#39;b&#39;</td>', text)
    self.assertIn('jax 0.11.0', text)

  def test_states(self):
    path = worlds.folder() / 'none'
    path.mkdir()
    study, = written_study.read(path)
    text = self.text(study, of_written(complete=False))
    for part in ('The directory is empty', 'NUMERICS: the loss'):
      self.assertIn(part, text)
    self.assertIn('none: empty; 0 of 0', page.summary([study]))

  def test_quantiles_are_students(self):
    data = written_study.data_of(self.text(of_written()))
    self.assertAlmostEqual(data['quantiles'][1], 4.30265)


if __name__ == '__main__':
  parameterized.absltest.main()
