"""Tests for rlhf_jax.reports.panels."""

import math
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import matplotlib.colors
import matplotlib.image
import numpy as np

from rlhf_jax.reports import panels
from rlhf_jax.reports import style

NAN = math.nan
LINES = ('single model (mean of members)', 'ensemble mean', 'of our own')


def rows(lines=LINES, conditions=('noise 0', 'noise 0.25'), count=4, **more):
  """Gold rises and falls, proxy rises; a line above the other."""
  return [{'panel': panel, 'line': line, 'step': 10. * i,
           'gold': i * (3. - i) + level, 'gold_se': .5 if i else NAN,
           'proxy': i + level + len(panel), 'proxy_se': .1, 'length': 20. + i,
           'length_se': NAN, **more}
          for panel in conditions for level, line in enumerate(lines)
          for i in range(count)]


class PanelsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()), 'figure.png')

  def drawn(self, function, table, **kwargs):
    """The figure, not yet saved, and the handles of its legend."""
    with mock.patch.object(panels, 'save') as save:
      function(table, self.path, title='', **kwargs)
    return save.call_args.args[:2]

  def test_curves(self):
    figure, handles = self.drawn(
        panels.curves, rows(), x='step', y=('proxy', 'length', 'gold'))
    self.assertCountEqual(handles, LINES)
    # A row of length, a row of gold, and twins of the latter.
    length, _, gold, other, right, _ = figure.axes
    self.assertEqual([axis.get_ylabel() for axis in figure.axes], [
        'length, tokens', '', 'gold score (solid), s.d. of SFT samples', '',
        '', 'proxy score (dashed)'])
    self.assertEqual([axis.get_xlabel() for axis in figure.axes[:4]],
                     ['', '', 'rollouts', 'rollouts'])
    self.assertEqual([axis.get_title() for axis in figure.axes[:4]],
                     ['noise 0', 'noise 0.25', '', ''])
    for axis, dashes, last in ((length, '-', 23), (gold, '-', 1),
                               (other, '-', 1), (right, '--', 11)):
      line = axis.get_lines()[1]
      self.assertEqual(line.get_linestyle(), dashes)
      self.assertEqual(line.get_color(), style.STYLE['mean'][0])
      np.testing.assert_array_equal(line.get_xdata(), [0, 10, 20, 30])
      self.assertEqual(line.get_ydata()[-1], last)
    # The band of one error, none where it is unknown.
    band = gold.collections[1].get_paths()[0].vertices
    np.testing.assert_allclose(np.sort(np.unique(
        band[band[:, 0] == 10., 1])), [2.5, 3.5])
    np.testing.assert_allclose(band[band[:, 0] == 0., 1], 1.)
    self.assertEqual(right.get_ylim(), figure.axes[5].get_ylim())

  def test_zeros_are_at_one_height(self):
    figure, _ = self.drawn(
        panels.curves, [row | {'gold': row['gold'] - 3.} for row in rows()],
        x='step', y=('gold', 'proxy'))
    ends = [axis.get_ylim() for axis in figure.axes]
    shares = [-low / (high - low) for low, high in ends]
    np.testing.assert_allclose(shares, shares[0])
    self.assertGreater(shares[0], 0)
    self.assertEqual(ends[0], ends[1])  # of gold in either panel
    self.assertEqual(ends[2], ends[3])

  def test_lines_of_seeds_are_thin_and_of_their_panel(self):
    thin = {'panel': 'noise 0', 'line': 'ensemble mean', 'step': np.arange(3.),
            'gold': np.arange(3.) - 1, 'proxy': np.arange(3.)}
    figure, handles = self.drawn(panels.curves, rows(), x='step',
                                 y=('gold', 'proxy'), seeds=[thin])
    left, other, right, _ = figure.axes
    line, *lines = left.get_lines()
    self.assertLess(line.get_linewidth(), lines[0].get_linewidth())
    self.assertEqual(line.get_color(), style.STYLE['mean'][0])
    np.testing.assert_array_equal(line.get_ydata(), [-1, 0, 1])
    self.assertLen(other.get_lines(), len(LINES))
    self.assertLen(right.get_lines(), len(LINES))
    self.assertCountEqual(handles, LINES)

  def test_an_end_is_a_point_beside_its_line(self):
    """Hollow of a proxy, whose line is dashed."""
    end = {'panel': 'noise 0', 'line': 'ensemble mean', 'step': 50.,
           'step_se': 4., 'gold': 7., 'gold_se': .5, 'proxy': 9.,
           'proxy_se': .25, 'end': True}
    figure, _ = self.drawn(panels.curves, [*rows(), end], x='step',
                           y=('gold', 'proxy'))
    left, other, right, _ = figure.axes
    for axis, at, error, face in (
        (left, 7., .5, style.STYLE['mean'][0]), (right, 9., .25, 'white')):
      mark, = axis.containers
      point, _, (across, up) = mark.lines
      self.assertEqual((*point.get_xdata(), *point.get_ydata()), (50., at))
      self.assertEqual(point.get_markerfacecolor(), face)
      np.testing.assert_allclose(across.get_segments()[0][:, 0], [46., 54.])
      np.testing.assert_allclose(
          up.get_segments()[0][:, 1], [at - error, at + error])
      for line in axis.get_lines():
        self.assertTrue(line is point or max(line.get_xdata()) < 50.)
    self.assertEmpty(other.containers)

  def test_a_note_stands_below_the_legend(self):
    panels.points([{'panel': '', 'line': 'a', 'x': 1., 'gold': 1.,
                    'gold_se': .5}], self.path, title='', x='', y=('gold',))
    without = matplotlib.image.imread(self.path)
    panels.points([{'panel': '', 'line': 'a', 'x': 1., 'gold': 1.,
                    'gold_se': .5}], self.path, title='', x='', y=('gold',),
                  note='mean of 3 seeds')
    noted = matplotlib.image.imread(self.path)
    self.assertGreater(noted.shape[0], without.shape[0])
    foot = noted[-30:, :, :3] < .9
    self.assertTrue(foot.any())
    self.assertFalse((without[-5:, :, :3] < .9).any())

  def test_a_long_note_is_not_cut(self):
    panels.points([{'panel': '', 'line': 'a', 'x': 1., 'gold': 1.,
                    'gold_se': .5}], self.path, title='', x='', y=('gold',),
                  note='mean of 3 seeds ' * 12)
    ink = (matplotlib.image.imread(self.path)[..., :3] < .9).any(axis=-1)
    for edge in (ink[:, :8], ink[:, -8:], ink[-4:]):
      self.assertFalse(edge.any())
    self.assertTrue(ink[-60:].any())

  def test_gold_alone_has_no_twin(self):
    figure, _ = self.drawn(panels.curves, rows(), x='step', y=('gold',))
    self.assertLen(figure.axes, 2)
    self.assertEqual(figure.axes[0].get_ylabel(),
                     'gold score, s.d. of SFT samples')

  def test_one_row_is_folded(self):
    figure, _ = self.drawn(
        panels.curves, rows(conditions='abcdef'), x='step', y=('length',))
    self.assertEqual([axis.get_title() for axis in figure.axes],
                     list('abcdef'))
    columns = [axis.get_subplotspec().colspan.start for axis in figure.axes]
    self.assertEqual(columns, [0, 1, 2, 0, 1, 2])
    self.assertLen({axis.get_ylim() for axis in figure.axes}, 1)

  def test_points(self):
    table = [{'panel': '', 'line': line, 'x': x, 'gold': y, 'gold_se': .5}
             for line, x, y in (('a', .2, 3.), ('a', 0., 1.), ('a', .01, 2.),
                                ('b', None, 7.), ('c', .01, 4.))]
    figure, handles = self.drawn(panels.points, table, x='KL', y=('gold',))
    axis, = figure.axes
    self.assertEqual([t.get_text() for t in axis.get_xticklabels()],
                     ['0', '0.01', '0.2'])
    line = handles['a'].lines[0]
    # Evenly spaced, and a little aside of the other lines.
    np.testing.assert_allclose(line.get_xdata(), [-.05, .95, 1.95])
    np.testing.assert_array_equal(line.get_ydata(), [1, 2, 3])
    np.testing.assert_allclose(
        [path.vertices[:, 1] for path in handles['a'].lines[2][0].get_paths()],
        [[.5, 1.5], [1.5, 2.5], [2.5, 3.5]])
    self.assertEqual(set(handles['b'].get_ydata()), {7.})
    np.testing.assert_allclose(handles['c'].lines[0].get_xdata(), [1.05])

  def test_bars(self):
    table = [{'panel': '', 'line': line, 'x': x, 'win_rate': y,
              'win_rate_se': .1}
             for line, x, y in (('a', 'ensemble mean', .6),
                                ('a', 'single model', .5), ('b', 'x', NAN),
                                ('b', 'ensemble mean', .4))]
    figure, handles = self.drawn(
        panels.bars, table, y=('win_rate',), suffix=' of all')
    axis, = figure.axes
    self.assertEqual(axis.get_xlim(), (0, 1))
    self.assertEqual(axis.get_xlabel(), 'win rate of all')
    self.assertEqual([t.get_text() for t in axis.get_yticklabels()],
                     ['ensemble mean', 'single model', 'x'])
    self.assertEqual([bar.get_width() for bar in handles['a']], [.6, .5])
    np.testing.assert_allclose(
        [bar.get_y() for bar in handles['a']], [-.4, .8])  # 'a' is alone there
    self.assertEqual(handles['b'][1].get_width(), .4)
    np.testing.assert_allclose(handles['b'][1].get_y(), 0., atol=1e-12)
    self.assertGreater(*axis.get_ylim())  # the first on top
    self.assertIn(.5, [line.get_xdata()[0] for line in axis.get_lines()])

  def test_bars_of_methods_have_their_colours(self):
    table = [{'panel': '', 'line': '', 'x': x, 'gold': 1., 'gold_se': NAN}
             for x in ('ensemble mean', 'single model')]
    _, handles = self.drawn(panels.bars, table, y=('gold',))
    self.assertEqual(
        [matplotlib.colors.to_hex(bar.get_facecolor()).upper()
         for bar in handles['']],
        [style.STYLE[name][0] for name in ('mean', 'single')])

  def test_a_bar_may_have_a_colour_of_its_own(self):
    table = [{'panel': '', 'line': '', 'x': x, 'gold': 1., 'gold_se': NAN,
              'colour': colour}
             for x, colour in (('PPO, up', '#112233'), ('PPO', None))]
    _, handles = self.drawn(panels.bars, table, y=('gold',))
    self.assertEqual(
        [matplotlib.colors.to_hex(bar.get_facecolor()).upper()
         for bar in handles['']], ['#112233', style.METHODS['PPO']])

  def test_methods_keep_their_colours_however_many(self):
    names = list(style.METHODS)[4:14]
    figure, _ = self.drawn(panels.curves, rows(names), x='step',
                           y=('length',))
    self.assertEqual([line.get_color() for line in figure.axes[0].get_lines()],
                     [style.METHODS[name] for name in names])

  def test_colours_differ_within_panels(self):
    table = [row | {'panel': panel} for panel, lines in (
        ('a', ['all', 'a1', 'a2', 'a3']), ('b', ['b1', 'b2', 'all']),
        ('c', ['c1', 'all', 'c2'])) for row in rows(lines, 'x')]
    figure, handles = self.drawn(panels.curves, table, x='step', y=('length',))
    self.assertEmpty(handles)
    for axis, names in zip(figure.axes, (['all', 'a1', 'a2', 'a3'],
                                         ['all', 'b1', 'b2'],
                                         ['all', 'c1', 'c2'])):
      texts = [text.get_text() for text in axis.get_legend().get_texts()]
      self.assertCountEqual(texts, names)
      shown = [line.get_color() for line in axis.get_legend().get_lines()]
      self.assertLen(set(shown), len(names))
      self.assertEqual(shown[texts.index('all')], style.PALETTE[0])
    # A panel of eight, and a few lines, have one legend for all.
    for lines in ('abcdefgh', 'abcd'):
      figure, handles = self.drawn(
          panels.curves, rows(lines, 'x'), x='step', y=('length',))
      self.assertLen(handles, len(lines))
      self.assertIsNone(figure.axes[0].get_legend())

  def test_names_of_columns(self):
    figure, _ = self.drawn(
        panels.curves, rows(component_on_topic=1., component_on_topic_se=NAN),
        x='step', x_name='optimizer steps',
        y=('gold', 'component_on_topic', 'proxy'))
    self.assertEqual([axis.get_ylabel() for axis in figure.axes[::2]], [
        'gold score (solid), s.d. of SFT samples', 'on topic (component)',
        ''])
    self.assertEqual(figure.axes[2].get_xlabel(), 'optimizer steps')

  @parameterized.parameters((LINES, 4), (LINES[:1], 1), (('',), 2))
  def test_png(self, lines, count):
    panels.curves(rows(lines, count=count), self.path, title='A title ' * 20,
                  x='step', y=('gold', 'proxy'))
    self.assertEqual([p.name for p in self.path.parent.iterdir()],
                     ['figure.png'])
    image = matplotlib.image.imread(self.path)[..., :3]
    height, width = image.shape[:2]
    self.assertBetween(width / height, 2., 2.6)
    ink = (image < .9).any(axis=-1)
    # Nothing is cut off at the edges, and the legend is below the panels.
    for edge in (ink[:8], ink[-8:], ink[:, :8], ink[:, -8:]):
      self.assertFalse(edge.any())
    self.assertBetween(ink.mean(), .01, .3)
    for line, colour in style.colours(lines).items():
      near = np.abs(image - matplotlib.colors.to_rgb(colour)).max(axis=-1) < .1
      self.assertGreater(near.sum(), 20, line)
      self.assertEqual(near[-60:].any(), bool(line))


if __name__ == '__main__':
  absltest.main()
