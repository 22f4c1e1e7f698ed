"""Tests for rlhf_jax.streams: no two streams of randomness meet."""

import ast
import collections
import functools
import hashlib
import itertools
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import worlds

import rlhf_jax
from rlhf_jax import streams
from rlhf_jax.storage import files

ROOT = pathlib.Path(rlhf_jax.__path__[0])
SEEDS = (0, 1, 2, 3, 100, 1000, 1001)
SMOKES = (*worlds.SMOKES, 'tests/configs/best_of_n.py')
# What stages of several kinds draw from, and on purpose: texts, and the labels
# that a log and the reward models of its condition flip.
SHARED = {'reviews', 'task', 'split', 'labels'}


class NumberTest(parameterized.TestCase):

  def test_it_is_a_hash_of_seed_and_names(self):
    """Pinned: another one would be another study under the same name."""
    digest = hashlib.sha256(b'[3, "proxies", "order", 2]').digest()
    expected = int.from_bytes(digest[:8], 'big')
    self.assertEqual(streams.number(3, 'proxies', 'order', 2), expected)
    self.assertEqual(
        streams.number(np.int64(3), 'proxies', 'order', np.int32(2)), expected)
    self.assertBetween(expected, 0, 2**64 - 1)
    bits = jax.random.key_data(streams.key(3, 'proxies', 'order', 2))
    self.assertEqual([int(x) for x in bits],
                     [expected >> 32, expected % 2**32])

  def test_a_key_draws_as_any_other(self):
    key = streams.key(0, 'sft')
    self.assertEqual(key.dtype, jax.random.key(0).dtype)
    self.assertEqual(key.shape, ())
    draws = [np.asarray(jax.random.normal(streams.key(0, name), (1000,)))
             for name in ('sft', 'gold', 'sft')]
    np.testing.assert_array_equal(draws[0], draws[2])
    self.assertLess(abs(np.corrcoef(draws[0], draws[1])[0, 1]), .15)

  def test_names_are_told_apart(self):
    names = [('a', 'b'), ('ab',), ('a', 'b', ''), ('b', 'a'), ('a', 1),
             ('a', '1'), ('a', 11), ('a', 1, 1), ('a',), (1, 'a'), ('1, "a',)]
    numbers = {streams.number(0, *parts) for parts in names}
    self.assertLen(numbers, len(names))
    self.assertNotEqual(streams.number(0, 1, 'a'), streams.number(1, 0, 'a'))

  @parameterized.parameters(
      ((0,),), ((0, None),), ((0, 1.0),), ((True, 'a'),), ((0, False),),
      (('a', b'b'),), ((0, ('a', 'b')),))
  def test_what_is_no_name(self, arguments):
    for function in (streams.number, streams.key):
      with self.assertRaises(TypeError):
        function(*arguments)

  def test_children(self):
    parent = streams.key(0, 'sft', 'state')
    data = lambda key: tuple(jax.random.key_data(key).tolist())
    keys = [parent, *(streams.child(parent, name)
                      for name in streams.CHILDREN)]
    self.assertLen({data(key) for key in keys}, 6)
    # And those of the next step are none of these.
    following = streams.child(parent, 'next')
    self.assertNoCommonElements(
        {data(key) for key in keys},
        {data(streams.child(following, name)) for name in streams.CHILDREN})
    with self.assertRaises(ValueError):
      streams.child(parent, 'data')


@functools.cache
def asked() -> dict[tuple, set[str]]:
  """The names that the stages of all kinds of studies ask for, and which do."""
  stages = collections.defaultdict(set)
  for config in SMOKES:
    for line in files.read_jsonl(
        worlds.smoke(config)[0].with_name('streams.jsonl')):
      kind = line['stage'].removeprefix('seed_0/').split('/')
      # The last part says what a stage does, but of a policy, whose it is;
      # where stages are iterated there is one, `policy`.
      stages[tuple(line['names'])].add(
          'policy' if kind[0] == 'policies' else kind[-1])
      assert line['seed'] == 0, line
  return dict(stages)


class StudiesTest(parameterized.TestCase):
  """Of every stream that the smokes of all kinds of studies have asked for."""

  def test_they_are_found(self):
    self.assertContainsSubset(
        SHARED | {'sft', 'gold', 'pairs', 'proxies', 'samples', 'online',
                  'offline', 'logged', 'prompt_value', 'evaluation'},
        {names[0] for names in asked()})
    self.assertContainsSubset(
        [('proxies', 'order', 1), ('online', 1, 'state'),
         ('sft', 'trunk', 'weights'), ('gold', 'samples'), ('pairs', 64)],
        asked())

  def test_no_two_are_equal(self):
    """For any of these seeds, those a thousand apart too."""
    numbers = collections.defaultdict(list)
    for seed, names in itertools.product(SEEDS, asked()):
      numbers[streams.number(seed, *names)].append((seed, names))
    self.assertLen(numbers, len(SEEDS) * len(asked()), [
        where for where in numbers.values() if len(where) > 1])
    keys = {tuple(jax.random.key_data(streams.key(seed, *names)).tolist())
            for seed, names in itertools.product((0, 1, 1001), asked())}
    self.assertLen(keys, 3 * len(asked()))

  def test_a_stage_draws_from_streams_of_its_own(self):
    """Which is more than that names differ: that two stages use other names."""
    shared = {names: kinds for names, kinds in asked().items()
              if len(kinds) > 1}
    self.assertEqual({names[0] for names in shared} - SHARED, set(), shared)
    for names, kinds in asked().items():
      if names[0] == 'labels':
        self.assertContainsSubset(kinds, {'proxies', 'logged'})
      if names[0] in ('evaluation', 'online', 'offline'):
        self.assertEqual(kinds, {'policy'}, names)


def arithmetic(source: str) -> list[str]:
  """Where a source calculates with a seed."""
  def is_seed(node):
    name = getattr(node, 'id', getattr(node, 'attr', None))
    return isinstance(node, ast.Name | ast.Attribute) and (
        name in ('seed', 'seeds') or name.endswith(('_seed', '_seeds')))

  places = []
  for node in ast.walk(ast.parse(source)):
    operands = {ast.BinOp: lambda n: (n.left, n.right),
                ast.AugAssign: lambda n: (n.target, n.value),
                ast.UnaryOp: lambda n: (n.operand,)}.get(
                    type(node), lambda n: ())(node)
    if any(map(is_seed, operands)):
      places.append(f'line {node.lineno}: {ast.unparse(node)}')
  return places


def derived(source: str) -> list[str]:
  """Where a source makes a key of a number, or keys of a key."""
  places = []
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, ast.Call):
      continue
    name, first = ast.unparse(node.func), ''.join(
        map(ast.unparse, node.args[:1]))
    makes = name.endswith(('random.key', 'random.PRNGKey',
                           'random.wrap_key_data'))
    cuts = name.endswith(('random.split', 'random.fold_in'))
    # Of shapes alone, which draw nothing.
    if (name, first) in (('jax.random.key', '0'),
                         ('jax.random.split', 'jax.random.key(0)')):
      continue
    if makes or cuts:
      places.append(f'line {node.lineno}: {ast.unparse(node)}')
  return places


class SourceTest(absltest.TestCase):

  def test_nobody_calculates_with_a_seed(self):
    for path in sorted(ROOT.rglob('*.py')):
      if path != ROOT / 'streams.py':
        self.assertEmpty(arithmetic(path.read_text()), path)

  def test_the_upper_half_makes_its_keys_by_name(self):
    """jax.random.split(key)[i] is jax.random.fold_in(key, i)."""
    key = jax.random.key(3)
    self.assertEqual(*(jax.random.key_data(x).tolist() for x in (
        jax.random.split(key)[1], jax.random.fold_in(key, 1))))
    for package in ('stages', 'pipeline', 'studies', 'evaluation', 'data',
                    'rewards', 'runner', 'reports'):
      for path in sorted((ROOT / package).glob('*.py')):
        if path.name != 'models.py':  # of heads, from one key of a stage
          self.assertEmpty(derived(path.read_text()), path)

  def test_faults_are_seen(self):
    for source in ('order(seed + 1)', 'x = 1000 * self.seed', 'seed += m',
                   'f(-data_seed)', 'seeds[0]; run.seed ^ 3'):
      self.assertLen(arithmetic(source), 1, source)
    for source in ('f(seed, 1)', 'f"{seed}"', '[seed for seed in seeds]',
                   'seed_lib.x + 1', 'a + f(seed=2)'):
      self.assertEmpty(arithmetic(source), source)
    for source in ('jax.random.split(key)', 'random.fold_in(key, 3)',
                   'jax.random.key(seed)', 'jax.random.PRNGKey(0)',
                   'jax.random.fold_in(jax.random.key(0), 1)'):
      self.assertNotEmpty(derived(source), source)
    for source in ('jax.random.split(jax.random.key(0), 3)',
                   'streams.key(seed, "a")', 'text.split(key)'):
      self.assertEmpty(derived(source), source)


if __name__ == '__main__':
  absltest.main()
