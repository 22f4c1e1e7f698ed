"""The page in a browser: make test-report, where there is a Chromium.

No driver and no package: `tests/chromium.py` speaks to it through a pipe. Set
RLHF_JAX_SCREENSHOTS to a directory to look at the page afterwards.
"""

import json
import os
import pathlib
import time

from absl.testing import absltest
import chromium
import worlds
import written_study

from rlhf_jax.reports import page
from rlhf_jax.reports import page_claims
from rlhf_jax.reports import verdicts

SHOWN = 25  # samples at a time
QUICK = 200.  # milliseconds of a search, on two shared cores


def setUpModule():
  if not os.environ.get('RLHF_JAX_BROWSER'):
    raise absltest.unittest.SkipTest(
        'a browser is started by make test-report alone')
  if chromium.path() is None:
    raise absltest.unittest.SkipTest(
        'there is no chromium; apt-get install chromium')


def written(name: str, **kwargs) -> pathlib.Path:
  """A page of a study."""
  folder = worlds.folder()
  studies = written_study.read(written_study.write(folder / 'study', **kwargs))
  file = folder / f'{name}.html'
  paths = page_claims.experiment(studies[0], worlds.ROOT / 'experiments')
  page.write(file, studies, experiments=paths[:1], most=5_000)
  return file


class BrowserTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.browser = cls.enterClassContext(chromium.Browser())
    cls.file = written('small', samples=8)
    cls.page = cls.browser.page(cls.file)  # of all tests that need no other
    cls.said, cls.asked = cls.page.complaints(), cls.page.requests()

  def setUp(self):
    super().setUp()
    self.page.run('{const x = document.getElementById("sample-controls"); '
                  'x.reset(); x.dispatchEvent(new Event("input"))}')

  def open(self, file=None, **kwargs):
    opened = self.browser.page(file or self.file, **kwargs)
    self.addCleanup(opened.close)
    return opened

  def picture(self, opened, name):
    if os.environ.get('RLHF_JAX_SCREENSHOTS'):
      folder = pathlib.Path(os.environ['RLHF_JAX_SCREENSHOTS'])
      folder.mkdir(parents=True, exist_ok=True)
      opened.picture(folder / f'{name}.png')

  def cards(self):
    return self.page.run(
        '[...document.querySelectorAll("#sample-list .sample")]'
        '.map((node) => node.innerText)')

  def enter(self, name, value, page_=None):
    (page_ or self.page).run(
        f'{{const x = document.getElementById("sample-{name}"); '
        f'x.value = {json.dumps(value)}; '
        'x.dispatchEvent(new Event("input", {bubbles: true}))}')

  def count(self, opened):
    return opened.run('document.getElementById("sample-count").textContent')

  def test_charts_are_drawn_and_nothing_is_said_or_asked_for(self):
    charts = self.page.run('Number(document.body.dataset.charts)')
    self.assertEqual(charts, 1 + 5 + 2)
    self.assertEqual(charts, self.page.run(
        '[...document.querySelectorAll(".plot")].filter((node) => node'
        '.querySelectorAll(".scatterlayer path, .barlayer path").length)'
        '.length'))
    buttons = self.page.run('[...new Set([...document.querySelectorAll('
                            '".modebar-btn")].map((x) => x.dataset.title))]')
    self.assertCountEqual(buttons, [  # none that uploads it
        'Download plot as a PNG', 'Zoom', 'Pan', 'Zoom in', 'Zoom out',
        'Reset axes'])
    self.assertEmpty(self.said)
    self.assertEmpty(self.asked)
    self.check_widths(self.page)
    self.picture(self.page, 'laptop')

  def check_widths(self, opened):
    """Each chart is as wide as its box, alone in a row or not."""
    widths = opened.run(
        '[...document.querySelectorAll(".plot")].map((node) => [node'
        '.clientWidth, node.querySelector(".main-svg").clientWidth])')
    self.assertNotEmpty(widths)
    for box, chart in widths:
      self.assertAlmostEqual(box, chart, delta=1)

  def test_text_of_samples_does_nothing(self):
    self.assertIsNone(self.page.run('window.hit ?? null'))
    self.assertEqual(
        self.page.run('document.querySelectorAll("main img").length'), 1)
    self.assertEqual(self.page.run('document.scripts.length'), 5)
    self.assertIn(written_study.NASTY.replace('\u2028', ' '),
                  self.cards()[0].replace('\u2028', ' '))
    # Nor does a script that somebody has put into the page.
    self.page.run('{const x = document.createElement("script"); '
                  'x.textContent = "window.hit = 9"; document.body.append(x)}')
    self.assertIsNone(self.page.run('window.hit ?? null'))

  def test_intervals_are_students(self):
    low, high = self.page.run(
        '(() => {const one = curveChart("sqrt_kl", "gold").series.find((one) '
        '=> one.main && one.name.startsWith("worst")); '
        'return [one.low[3], one.high[3]]})()')
    _, *ends = verdicts.interval([4., 3., 5.])
    self.assertAlmostEqual(low, ends[0], 3)
    self.assertAlmostEqual(high, ends[1], 3)

  def test_values_show_under_the_pointer(self):
    said, x, y = self.page.run(
        '(() => {const node = document.querySelector(".plot"), i = node.data.'
        'findIndex((x) => x.line.width > 2); Plotly.Fx.hover(node, [{'
        'curveNumber: i, pointNumber: 2}]); return [node.querySelector('
        '".hoverlayer").textContent, node.data[i].x[2], node.data[i].y[2]]})()')
    self.assertGreater(x, 0)
    self.assertIn(f'{y:#.4g} at {x:#.4g}', said)

  def test_a_name_of_the_legend_hides_its_lines(self):
    lines = 'document.querySelectorAll("#curve-charts .js-line").length'
    click = 'document.querySelector("#curve-charts .legend button").click()'
    before = self.page.run(lines)
    self.page.run(click)
    self.assertLess(self.page.run(lines), before)
    self.page.run(click)
    self.assertEqual(self.page.run(lines), before)

  def test_filters(self):
    self.assertStartsWith(self.count(self.page), '96 of 96')
    self.assertLen(self.cards(), SHOWN)
    self.page.run('document.getElementById("sample-more").click()')
    self.assertLen(self.cards(), 2 * SHOWN)
    for name, value, left in (
        ('run', 'worst', 48), ('phase', 'after', 24),
        ('search', 'QUESTION  7 worst', 3)):
      self.enter(name, value)
      self.assertStartsWith(self.count(self.page), f'{left} of 96')
    self.assertIn('question 7', self.cards()[0])
    self.assertGreater(self.page.run('document.querySelectorAll("mark").length'),
                       3)
    self.enter('search', 'no such word')
    self.assertStartsWith(self.count(self.page), '0 of 96')

  def test_sorting_and_bounds(self):
    kls = lambda: [float(text.partition('KL, nats')[2].split()[0])
                   for text in self.cards()]
    self.enter('sort', 'kl_k1/-1')
    self.assertEqual(kls(), sorted(kls(), reverse=True))
    self.enter('column', 'kl_k1')
    self.enter('low', '0.04')
    self.enter('high', '0.08')
    self.assertEqual({*kls()}, {.04, .06, .08})
    self.enter('sort', 'kl_k1/1')
    self.assertEqual(kls(), sorted(kls()))

  def test_five_thousand_samples_stay_quick(self):
    opened = self.open(written('large', samples=450))  # of 12 evaluations
    self.assertStartsWith(self.count(opened), '5,000 of 5,000 on this page')
    times = []
    for text in ('q', 'question 44', 'worst 2 17', 'zzz', ''):
      self.enter('search', text, opened)
      times.append(opened.run(
          'Number(document.getElementById("sample-list").dataset.milliseconds)'
      ))
    self.assertLess(sorted(times)[2], QUICK, times)

  def test_dark_phone_and_print(self):
    back = 'getComputedStyle(document.body).backgroundColor'
    ink = ('getComputedStyle(document.querySelector(".xtick text")).fill')
    light = self.page.run(back), self.page.run(ink)
    self.page.media(dark=True)
    end = time.time() + 60
    while self.page.run(ink) == light[1] and time.time() < end:
      time.sleep(.1)
    dark = self.page.run(back), self.page.run(ink)
    self.assertNotEqual(light[0], dark[0])
    self.assertNotEqual(light[1], dark[1])
    self.picture(self.page, 'dark')
    phone = self.open(width=390, height=844)
    self.assertLessEqual(
        phone.run('document.documentElement.scrollWidth'), 390)
    self.check_widths(phone)
    self.picture(phone, 'phone')
    phone.media(kind='print', dark=True)
    phone.run('window.dispatchEvent(new Event("beforeprint"))')
    self.assertEqual(phone.run(ink), 'rgb(0, 0, 0)')
    self.assertEqual(phone.run(
        'getComputedStyle(document.querySelector("nav")).display'), 'none')
    self.page.media()


if __name__ == '__main__':
  absltest.main()
