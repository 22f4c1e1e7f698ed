"""Tests for rlhf_jax.pipeline.rows, on a policy that nothing has trained."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import worlds

from rlhf_jax import errors
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import rows as rows_lib

PLAIN = dict(temperature=1.)
KEY = jax.random.key(3)


def world(num_devices=1):
  return artifacts.World(
      worlds.Context(worlds.untrained(), num_devices=num_devices),
      worlds.DATA, 0, {'reference': 'sft'})


def sample(there=None, at=slice(None), *, num_samples=2, sampler=PLAIN,
           force_eos=False, chunk_size=8, key=KEY, **kwargs):
  there = there or world()
  prompts = there.corpus.pair_prompts
  with there.context.devices():
    return rows_lib.sample_rows(
        there, there.reference,
        corpus_lib.Prompts(prompts.tokens[at], prompts.lengths[at]), key,
        rows_lib.Draw(num_samples, sampler, force_eos, chunk_size), **kwargs)


@functools.cache
def usual():
  return sample()


class SampleRowsTest(parameterized.TestCase):

  def test_prompts_and_their_responses(self):
    prompts, coder = worlds.corpus().pair_prompts, worlds.corpus().tokenizer
    tokens, mask = usual()
    width = prompts.tokens.shape[1] + worlds.DATA['max_response_length']
    self.assertEqual(tokens.shape, (8, 2, width))
    self.assertEqual((mask.shape, mask.dtype), (tokens.shape, bool))
    for row, length in enumerate(prompts.lengths):
      for k in range(2):
        np.testing.assert_array_equal(
            tokens[row, k, :length], prompts.tokens[row, :length])
        at = np.flatnonzero(mask[row, k])
        self.assertEqual(at.tolist(), list(range(length, length + len(at))))
        self.assertNotIn(coder.eos_id, tokens[row, k][at[:-1]])
    self.assertBetween(tokens[mask].max(), 0, coder.vocab_size - 1)
    different = {row.tobytes() for row in tokens.reshape(16, -1)}
    self.assertGreater(len(different), 14)

  @parameterized.parameters((3, 1), (3, 8))
  def test_chunks_and_devices_change_nothing(self, chunk_size, num_devices):
    tokens, mask = sample(world(num_devices), chunk_size=chunk_size)
    np.testing.assert_array_equal(tokens, usual()[0])
    np.testing.assert_array_equal(mask, usual()[1])

  def test_noise_is_that_of_the_place_in_the_whole(self):
    tokens, _ = sample(at=slice(3, 6), first_row=3)
    np.testing.assert_array_equal(tokens, usual()[0][3:6])
    other, _ = sample(at=slice(3, 6))
    self.assertFalse((other == tokens).all(axis=-1).all())

  def test_around_again_with_other_noise(self):
    tokens, _ = sample(num_prompts=11)
    np.testing.assert_array_equal(tokens[:8], usual()[0])
    width = worlds.corpus().pair_prompts.tokens.shape[1]
    np.testing.assert_array_equal(
        tokens[8:, :, :width], tokens[:3, :, :width])
    self.assertGreater((tokens[8:] != tokens[:3]).any(axis=-1).sum(), 4)

  def test_sampler(self):
    tokens, _ = sample(sampler=dict(temperature=0.))
    np.testing.assert_array_equal(tokens[:, 0], tokens[:, 1])
    other, _ = sample(key=jax.random.key(4))
    self.assertGreater((other != usual()[0]).any(axis=-1).sum(), 12)

  def test_forced_endings(self):
    tokens, mask = sample(force_eos=True)
    eos = (tokens == worlds.corpus().tokenizer.eos_id) & mask
    np.testing.assert_array_equal(eos.sum(axis=-1), 1)
    free = (usual()[0] == worlds.corpus().tokenizer.eos_id) & usual()[1]
    self.assertLess(free.any(axis=-1).mean(), 1)

  def test_asks_before_every_chunk_whether_to_stop(self):
    there, asked = world(), []

    def check(where):
      asked.append(where)
      if len(asked) == 3:
        raise errors.Interrupted(where)

    there.context.stop.check = check
    with self.assertRaises(errors.Interrupted):
      sample(there, chunk_size=3)
    self.assertEqual(
        asked, [f'the start of {there.context.directory.name}'] * 3)


if __name__ == '__main__':
  absltest.main()
