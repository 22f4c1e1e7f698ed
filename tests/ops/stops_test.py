"""Tests for rlhf_jax.ops.stops: against a search of every text."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from rlhf_jax.ops import stops


def _ends(strings, first, later, tokens):
  """The place after which a text has a string, by search; None: it has not."""
  text = b''
  for at, token in enumerate(tokens):
    text += later[token] if text else first[token]
    if any(s.encode() in text for s in strings):
      return at
  return None


def _table_ends(table, tokens):
  state = 0
  for at, token in enumerate(tokens):
    state = table[state, token]
    if state == len(table) - 1:
      return at
  return None


class TableTest(parameterized.TestCase):

  def test_against_a_search(self):
    """Few letters, so that strings overlap, nest and begin anew often."""
    counts = np.sum([self._search(seed) for seed in range(60)], axis=0)
    self.assertGreater(counts.min(), 300)

  def _search(self, seed):
    """How many of 50 texts end, and how many do not."""
    rng = np.random.default_rng(seed)
    word = lambda least, most: ''.join(
        rng.choice([*'abé'], rng.integers(least, most)))
    strings = [word(1, 7) for _ in range(rng.integers(1, 4))]
    later = [word(0, 5).encode() for _ in range(9)]
    later += [b'\xc3', b'\xa9']  # halves of a character
    first = later if seed % 2 else [x.lstrip(b'a') for x in later]
    table = stops.table(strings, first, later)
    self.assertEqual(table.dtype, np.int32)
    self.assertEqual(table.shape[1], 11)
    np.testing.assert_array_equal(table[-1], len(table) - 1)
    counts = [0, 0]
    for _ in range(50):
      tokens = rng.integers(0, 11, 12)
      expected = _ends(strings, first, later, tokens)
      self.assertEqual(_table_ends(table, tokens), expected)
      counts[expected is None] += 1
    return counts

  def test_by_hand(self):
    """Spans three tokens, begins inside one and ends inside another."""
    pieces = [b'xE', b'N', b'Dy', b'EN', b'END']
    table = stops.table(['END'], pieces, pieces)
    self.assertLen(table, 5)  # nothing, '', 'E', 'EN', all
    self.assertEqual(_table_ends(table, [0, 1, 2]), 2)
    self.assertEqual(_table_ends(table, [0, 3, 2, 1]), 2)
    self.assertIsNone(_table_ends(table, [0, 0, 2, 1]))
    self.assertEqual(_table_ends(table, [4, 0]), 0)

  @parameterized.parameters(((),), (('',),), (('a', ''),))
  def test_no_string_is_empty(self, strings):
    with self.assertRaisesRegex(ValueError, 'none of them empty'):
      stops.table(strings, [b'a'], [b'a'])

  def test_lengths(self):
    with self.assertRaisesRegex(ValueError, 'got 1 and 2'):
      stops.table(['a'], [b'a'], [b'a', b'b'])


class CompletedTest(parameterized.TestCase):

  @parameterized.parameters(True, False)
  def test_reads_responses_alone(self, compiled):
    table = stops.table(['ab'], [b'a', b'b', b'c'], [b'a', b'b', b'c'])
    tokens = np.array([[[0, 1, 2, 2], [2, 0, 1, 2], [2, 2, 0, 1],
                        [0, 1, 0, 2], [0, 1, 0, 1]]])
    mask = np.array([[[0, 0, 1, 1], [0, 1, 1, 1], [0, 1, 1, 0],
                      [0, 1, 1, 1], [0, 0, 0, 0]]], bool)
    of = jax.jit(stops.completed) if compiled else stops.completed
    np.testing.assert_array_equal(
        of(table, tokens, mask), [[False, True, False, False, False]])


if __name__ == '__main__':
  absltest.main()
