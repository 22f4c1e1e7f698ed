"""Tests for rlhf_jax.streams, and of every stream that studies ask for."""

import ast
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

SEEDS = (0, 1, 2, 3, 100, 1000, 1001)
ROOT = pathlib.Path(rlhf_jax.__path__[0])


class StreamsTest(parameterized.TestCase):

  def test_a_stream_is_its_names(self):
    self.assertEqual(streams.number(3, 'sft', 'order'),
                     streams.number(3, 'sft', 'order'))
    names = [('a',), ('b',), ('a', 'b'), ('ab',), ('a', 1), ('a', '1'),
             ('a', 11), ('a', 1, 1)]
    numbers = [streams.number(seed, *x) for seed in SEEDS for x in names]
    self.assertLen(set(numbers), len(numbers))
    self.assertTrue(all(0 <= x < 2**64 for x in numbers))
    self.assertEqual(streams.number(np.int64(3), 'a', np.int32(1)),
                     streams.number(3, 'a', 1))

  def test_keys(self):
    one, other = (streams.key(0, name) for name in ('a', 'b'))
    bits = lambda key: jax.random.key_data(key).tolist()
    self.assertNotEqual(bits(one), bits(other))
    number = streams.number(0, 'a')
    self.assertEqual(bits(one), [number >> 32, number & 0xffffffff])

  def test_children_differ(self):
    parent = streams.key(0, 'a')
    bits = {tuple(jax.random.key_data(streams.child(parent, name)).tolist())
            for name in streams.CHILDREN}
    self.assertLen(bits, len(streams.CHILDREN))
    with self.assertRaises(ValueError):
      streams.child(parent, 'other')

  @parameterized.parameters(((),), ((1.5,),), ((None,),), ((True,),))
  def test_rejects(self, names):
    with self.assertRaises(TypeError):
      streams.number(0, *names)

  def test_no_two_streams_of_any_study_are_equal(self):
    """Names that smokes of all kinds ask for, with other seeds too."""
    names = set()
    for config in worlds.SMOKES:
      workdir, _ = worlds.smoke(config)
      names |= {tuple(line['names']) for line in files.read_jsonl(
          workdir.parent / 'streams.jsonl')}
    self.assertGreater(len(names), 30)
    owner = {}
    for seed, name in itertools.product(SEEDS, sorted(names, key=str)):
      other = owner.setdefault(streams.number(seed, *name), (seed, name))
      self.assertEqual(other, (seed, name))
    self.assertLen(owner, len(SEEDS) * len(names))

  def test_no_arithmetic_on_seeds(self):
    for path in sorted(ROOT.rglob('*.py')):
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.BinOp):
          for side in (node.left, node.right):
            self.assertFalse(
                isinstance(side, ast.Name) and side.id == 'seed',
                f'{path}:{node.lineno}')


if __name__ == '__main__':
  absltest.main()
