"""Tests for rlhf_jax.reports.across, with studies written by hand."""

import pathlib
from unittest import mock

from absl.testing import absltest

from rlhf_jax.reports import across
from rlhf_jax.reports import panels
from rlhf_jax.reports import redraw
from rlhf_jax.reports import style

UWO = style.STYLE['uncertainty_weighted'][1]
SINGLE = style.STYLE['single'][1]


def study(width=32, held_out=10, members=5, level=0., methods=()):
  """Two seeds, of which the second is 2 higher; gold is `level` at n=4."""
  names = ('single', 'single_0', *methods)
  return redraw.Study(
      pathlib.Path(),
      {'study': 'best_of_n',
       'proxy': {'model': {'hidden_size': width}, 'held_out': held_out,
                 'num_members': members},
       'data': {'num_pair_prompts': 100},
       'best_of_n': {'methods': dict(methods)}},
      [{'seed': seed, 'method': name, 'n': n, 'sqrt_kl': n / 2,
        'gold': level + i + 2 * seed + (n - 4), 'gold_se': .1,
        'proxy': n + seed, 'proxy_se': .1}
       for seed in (0, 1) for i, name in enumerate(names) for n in (1, 4)])


def policies(width, level, **online):
  """A study of two methods and seeds, of which the second is 2 higher."""
  return redraw.Study(
      pathlib.Path(),
      {'study': 'online', 'policy': {'model': {'hidden_size': width}},
       'online': online, 'runs': {}, 'figure': {
           'kind': 'curves', 'x': 'step', 'y': ['gold', 'kl_k1']}},
      [{'seed': seed, 'run': method, 'method': method, 'step': step,
        **{f'{name}{end}': level + 2 * seed + step
           for name in ('gold', 'proxy', 'kl_k1') for end in ('', '_se')}}
       for seed in (0, 1) for method in ('PPO', 'APA') for step in (0, 5)])


def drawn(function, studies):
  with mock.patch.object(panels, function) as draw:
    across.draw(studies, 'path', title='A title')
  kwargs = dict(zip(('rows', 'path'), draw.call_args.args))
  kwargs |= draw.call_args.kwargs
  assert (kwargs['path'], kwargs['title']) == ('path', 'A title')
  return kwargs['rows'], kwargs


class AcrossTest(absltest.TestCase):

  def test_differing(self):
    self.assertEqual(across.differing([study(), study()]), [])
    self.assertEqual(
        across.differing([study(), study(width=8), study(held_out=55)]),
        ['width of the reward models', 'pairs'])

  def test_over_a_field(self):
    methods = {'mean': {'kind': 'mean'}}
    rows, kwargs = drawn('points', [
        study(width=16, level=10., methods=methods),
        study(width=64, level=20., methods=methods)])
    # The last point; over two seeds, 2 apart, the error is 1.
    self.assertEqual(
        [(row['line'], row['x'], row['gold'], row['gold_se'])
         for row in rows],
        [(SINGLE, 16, 11., 1.), ('ensemble mean', 16, 13., 1.),
         (SINGLE, 64, 21., 1.), ('ensemble mean', 64, 23., 1.)])
    self.assertEqual((kwargs['x'], kwargs['y'], kwargs['note']), (
        'width of the reward models', ('gold',),
        'mean of 2 seeds +- one standard error over them'))

  def test_over_lambda(self):
    """Whatever names the coefficients have, of the config."""
    methods = {'mean': {'kind': 'mean'}} | {
        name: {'kind': 'uncertainty_weighted', 'uncertainty_coef': coef}
        for name, coef in (('uncertainty_weighted', .5), ('other', 0.))}
    rows, kwargs = drawn('points', [
        study(members=3, methods=methods),
        study(members=4, level=10., methods=methods)])
    self.assertEqual(
        [(row['line'], row['x'], row['gold']) for row in rows],
        [(SINGLE, None, 1.),
         (f'{UWO}, ensemble members 3', .5, 4.),
         (f'{UWO}, ensemble members 3', 0., 5.),
         (f'{UWO}, ensemble members 4', .5, 14.),
         (f'{UWO}, ensemble members 4', 0., 15.)])
    self.assertIn('lambda', kwargs['x'])

  def test_curves_of_single_models(self):
    """A panel for each field, with studies that are usual in the others."""
    rows, kwargs = drawn('curves', [
        study(), study(width=16, level=10.), study(held_out=55, level=20.)])
    self.assertEqual(
        [(row['panel'], row['line'], row['sqrt_kl'], row['gold'],
          row['proxy_se']) for row in rows if row['sqrt_kl'] == 2.],
        [('width of the reward models', 'width of the reward models 16', 2.,
          11., .5),
         ('width of the reward models', 'width of the reward models 32', 2.,
          1., .5),
         ('pairs', 'pairs 45', 2., 21., .5),
         ('pairs', 'pairs 90', 2., 1., .5)])
    self.assertLen(rows, 8)
    self.assertEqual(kwargs['y'], ('gold', 'proxy'))

  def test_policies_side_by_side(self):
    """By their width; without what is trained otherwise than the first."""
    studies = [policies(128, 7.), policies(32, 1.),
               policies(64, 3., num_steps=9)]
    rows, kwargs = drawn('curves', studies)
    self.assertEqual(
        [(row['panel'], row['line'], row['step'], row['gold'])
         for row in rows if row['step']],
        [('width of the policy 32', 'PPO', 5, 7.),
         ('width of the policy 32', 'APA', 5, 7.),
         ('width of the policy 128', 'PPO', 5, 13.),
         ('width of the policy 128', 'APA', 5, 13.)])
    self.assertLen(kwargs['seeds'], 8)
    self.assertEqual([list(seed['gold']) for seed in kwargs['seeds'][-2:]],
                     [[7., 12.], [9., 14.]])
    self.assertEqual(
        (kwargs['x'], list(kwargs['y'])), ('step', ['gold', 'kl_k1']))
    self.assertIn('mean of 2 seeds', kwargs['note'])
    self.assertEmpty(across.differing(studies[::2]))
    self.assertEmpty(across.differing([
        redraw.Study(pathlib.Path(), {'study': 'iterated'}, [])] * 2))


if __name__ == '__main__':
  absltest.main()
