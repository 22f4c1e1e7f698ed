"""Tests for rlhf_jax.reports.style."""

from absl.testing import absltest
from absl.testing import parameterized
import matplotlib.colors

from rlhf_jax.reports import style


class StyleTest(parameterized.TestCase):

  @parameterized.parameters(1, 3, 7, 9, 30)
  def test_colours_differ(self, count):
    names = ['ensemble mean', *(f'line {i}' for i in range(count - 1))]
    colours = style.colours(names)
    self.assertEqual(list(colours), names)
    self.assertEqual(colours['ensemble mean'], style.STYLE['mean'][0])
    self.assertLen({matplotlib.colors.to_hex(c) for c in colours.values()},
                   count)

  def test_place(self):
    """By label; ways to combine reward models come before other methods."""
    labels = ['RLOO', 'nobody', 'worst_case', None, 'single', 'reference',
              'PPO']
    self.assertEqual(
        sorted(labels, key=style.place),
        ['single', 'worst_case', 'reference', 'PPO', 'RLOO', 'nobody', None])

  def test_ways_to_combine_reward_models(self):
    """All that a best-of-n study may name, in the order of a legend."""
    looks = style.of_aggregates(iter((
        'two', 'uncertainty_weighted_2', 'single_0', 'mean', 'single_max',
        'uncertainty_weighted_01', 'uncertainty_weighted', 'single',
        'uncertainty_weighted_0', 'uncertainty_weighted_100')))
    self.assertEqual([label for _, label in looks.values()], [
        'single model (mean of members)', 'ensemble mean',
        'uncertainty-weighted (UWO)', 'single max', 'two',
        *(rf'uncertainty-weighted (UWO), $\lambda$ {number}'
          for number in ('0', '0.1', '100', '2'))])
    colours = {label: colour for colour, label in looks.values()}
    self.assertLen({*colours.values()}, len(looks))
    bright = {label.rpartition(', ')[2]: sum(matplotlib.colors.to_rgb(colour))
              for label, colour in colours.items() if '(UWO)' in label}
    self.assertEqual(
        sorted(bright, key=bright.get, reverse=True),
        [r'$\lambda$ 0', r'$\lambda$ 0.1', 'uncertainty-weighted (UWO)',
         r'$\lambda$ 2', r'$\lambda$ 100'])

  def test_shades_of_a_method(self):
    """What is one method's has its colour, lighter first; nobody else's."""
    lines = ['NLL, up', 'PPO', 'NLL, down', 'ensemble mean, KL coefficient 0',
             'RLOO, k=2, noise 1', 'own']
    colours = style.colours(lines)
    light, dark = (matplotlib.colors.to_rgb(colours[f'NLL, {way}'])
                   for way in ('up', 'down'))
    self.assertGreater(light[0], .5)  # of the grey of NLL
    self.assertLess(dark[0], .5)
    self.assertEqual(light[0], light[2])
    self.assertEqual([colours[name] for name in (
        'PPO', 'ensemble mean, KL coefficient 0', 'RLOO, k=2, noise 1')], [
            style.METHODS[name] for name in (
                'PPO', 'ensemble mean', 'RLOO, k=2')])
    self.assertIn(colours['own'], style.PALETTE)

  @parameterized.parameters(
      ({'method': 'single'}, 'single model'),
      ({'method': 'raft', 'kl_coef': .10}, 'raft, KL coefficient 0.1'),
      ({'method': 'worst_case', 'member': None}, 'worst-case (WCO)'),
      ({'condition': 'noise_0'}, 'noise 0'),
      ({'noise': .25, 'two_heads': True}, 'noise 0.25, two heads True'),
      ({'noise': None}, 'no noise'), ({}, ''))
  def test_name_of(self, labels, name):
    self.assertEqual(style.name_of(labels), name)
    self.assertEqual(style.name_of(labels, of_members=True),
                     name and f'{name} (mean of members)')

  @parameterized.parameters(
      ('gold_split_helpful-base', 'gold score of helpful-base, s.d.'),
      ('proxy_split_a', 'proxy score of a'), ('member_12', 'member 12'),
      ('words', 'length, words'), ('component_', None),
      ('component_a_se', None), ('member_x', None), ('glod', None))
  def test_column_name(self, column, name):
    self.assertEqual(style.column_name(column), name)

  @parameterized.parameters(
      ('kl_k1', 'KL (k1), nats'), ('peak_step', 'rollouts at the peak'),
      ('win_rate', 'win rate'),
      ('component_on_topic_above',
       'on topic (component),\nabove the baseline'))
  def test_axis_name(self, column, name):
    self.assertEqual(style.axis_name(column), name)


if __name__ == '__main__':
  absltest.main()
