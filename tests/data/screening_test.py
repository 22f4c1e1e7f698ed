"""Tests for rlhf_jax.data.screening: texts that lose what matters when cut."""

import json

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import worlds

from rlhf_jax import algorithms
from rlhf_jax import errors
from rlhf_jax.data import load as load_lib
from rlhf_jax.pipeline import offline_data

LONG = 'word ' * 30
SIZES = dict(num_pair_prompts=4, num_eval_prompts=2, max_prompt_length=24,
             max_response_length=16, vocab_size=300)


def rows(same: int, long: int) -> list[dict]:
  """Twelve pairs; some differ only behind their cut, some prompts are long."""
  made = []
  for i in range(12):
    front = LONG if i < same else ''
    asked = LONG if i >= 12 - long else ''
    made.append(dict(prompt=f'{asked}q{i}', chosen=f'{front}good {i}',
                     rejected=f'{front}bad {i}'))
  return made


def load(kind='logged', *, same=0, long=0, **fields):
  path = worlds.folder() / 'a.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows(same, long)))
  where = dict(path=str(path), format='hh')
  if kind == 'files':
    where['preferences'] = str(path)
  return load_lib.load(dict(name=kind, **where, **SIZES) | fields, 0)


class IdenticalTest(parameterized.TestCase):

  @parameterized.parameters('files', 'logged')
  def test_dropped_and_counted(self, kind):
    whole, out = load(kind), load(kind, same=5)
    same = lambda one: (one.preferences.tokens[:, 0]
                        == one.preferences.tokens[:, 1]).all(axis=-1)
    self.assertFalse(same(out).any())
    count = out.summary['identical_pairs']
    self.assertLen(out.preferences.tokens,
                   len(whole.preferences.tokens) - count)
    self.assertBetween(count, 3, 5)  # two prompts are held out
    self.assertRegex('\n'.join(out.remarks()),
                     f'{count} pairs are left out because both sides are')
    self.assertEqual(whole.summary['identical_pairs'], 0)

  @parameterized.parameters('files', 'logged')
  def test_kept(self, kind):
    out = load(kind, same=5, identical_pairs='keep')
    self.assertLen(out.preferences.tokens,
                   len(load(kind).preferences.tokens))
    self.assertEqual(out.summary['identical_pairs'], 0)

  @parameterized.parameters('files', 'logged')
  def test_refused(self, kind):
    with self.assertRaisesRegex(
        errors.DataError, r'a\.jsonl: \d of \d+ pairs are the same tokens once '
        "responses end after 16, and identical_pairs is 'refuse'"):
      load(kind, same=5, identical_pairs='refuse')
    load(kind, identical_pairs='refuse')
    with self.assertRaisesRegex(errors.DataError, 'raise max_response_length'):
      load(kind, same=12)

  def test_the_log_keeps_them(self):
    """For those that learn from single responses; not for those of pairs."""
    out, whole = load(same=5), load()
    np.testing.assert_array_equal(out.log.group, whole.log.group)
    arrays = dict(tokens=out.log.tokens, mask=out.log.mask,
                  group=out.log.group,
                  scores=np.zeros(out.log.group.shape, np.float32))
    compared = offline_data.select(
        algorithms.ALGORITHMS['dpo'], arrays, 'first', [*out.log.groups])
    self.assertLen(compared.tokens, len(out.preferences.tokens))
    single = offline_data.select(
        algorithms.ALGORITHMS['wbc'], arrays, 'all', [*out.log.groups])
    self.assertLen(single.tokens, 2 * len(whole.log.tokens))


class LongTest(parameterized.TestCase):

  @parameterized.parameters('files', 'logged')
  def test_cut(self, kind):
    out = load(kind, long=3)
    self.assertGreater(out.summary['cut_prompts'], 0)
    self.assertRegex('\n'.join(out.remarks()), 'longer than 24 tokens and lose')

  @parameterized.parameters('files', 'logged')
  def test_dropped_and_counted(self, kind):
    """Of training prompts; what is held out is cut."""
    whole, out = load(kind), load(kind, long=3, long_prompts='drop')
    count = out.summary['long_prompts']
    self.assertBetween(count, 1, 3)
    self.assertLen(out.demonstrations.tokens,
                   len(whole.demonstrations.tokens) - count)
    self.assertEqual(out.summary['cut_prompts'], 0)
    self.assertLen(out.eval_prompts.tokens, 2)
    self.assertLen(out.pair_prompts.tokens, 4)
    texts = [out.tokenizer.decode(row[~mask & (np.arange(len(row)) < 24)])
             for row, mask in zip(out.demonstrations.tokens[:, 0],
                                  out.demonstrations.mask[:, 0])]
    self.assertFalse(any('word' in text for text in texts))

  @parameterized.parameters('files', 'logged')
  def test_refused(self, kind):
    with self.assertRaisesRegex(
        errors.DataError, 'prompts have more than 24 tokens, and long_prompts'):
      load(kind, long=3, long_prompts='refuse')
    with self.assertRaisesRegex(errors.DataError, 'raise max_prompt_length$'):
      load(kind, long=12, long_prompts='drop')

  def test_no_such_policy(self):
    for name in ('long_prompts', 'identical_pairs'):
      with self.assertRaisesRegex(ValueError, f'{name} must be one of'):
        load(**{name: 'ignore'})


class SoundTest(absltest.TestCase):

  def test_nothing_to_say(self):
    self.assertEmpty(load().remarks())


if __name__ == '__main__':
  absltest.main()
