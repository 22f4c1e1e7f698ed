"""Tests for rlhf_jax.pipeline.unpaired, on responses written by hand."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from rlhf_jax import errors
from rlhf_jax.pipeline import unpaired

WIDTH = 5


def rows(*texts):
  """Tokens and masks of (prompt, response), padded with 9."""
  tokens = np.full((len(texts), WIDTH), 9, np.int32)
  mask = np.zeros(tokens.shape, bool)
  for i, (prompt, response) in enumerate(texts):
    whole = [*prompt, *response]
    tokens[i, :len(whole)] = whole
    mask[i, len(prompt):len(whole)] = True
  return tokens, mask


def texts(tokens, mask):
  """What `rows` was given."""
  out = []
  for row, there in zip(tokens, mask):
    at = np.flatnonzero(there)
    np.testing.assert_array_equal(at, np.arange(at[0], at[-1] + 1))
    out.append((row[:at[0]].tolist(), row[there].tolist()))
  return out


class MismatchedTest(parameterized.TestCase):

  def test_of_prompts_of_their_own_it_is_the_next_response(self):
    got = unpaired.mismatched(*rows(
        ([1], [2, 3]), ([4, 5], [6]), ([7], [8, 2, 1])))
    self.assertEqual(texts(*got), [
        ([1], [6]), ([4, 5], [8, 2, 1]), ([7], [2, 3])])
    np.testing.assert_array_equal(got[0][0, 2:], 0)

  def test_what_does_not_fit_is_cut(self):
    got = unpaired.mismatched(*rows(
        ([1, 2, 3, 4], [5]), ([6], [7, 8, 2, 1])))
    self.assertEqual(texts(*got), [
        ([1, 2, 3, 4], [7]), ([6], [5])])

  @parameterized.parameters(
      ([0, 0, 1, 1],), ([0, 1, 0, 1],), ([0, 0, 1, 2],), ([2, 0, 1, 0, 0, 1],),
      ([0, 1, 1, 1, 2, 0],), ([3, 0, 3, 1, 2],))
  def test_prompts_are_others_and_each_response_serves_once(self, prompts):
    ours = rows(*(([20 + p], [i]) for i, p in enumerate(prompts)))
    got = texts(*unpaired.mismatched(*ours))
    self.assertEqual([p for p, _ in got], [[20 + p] for p in prompts])
    self.assertCountEqual(
        [y for _, y in got], [[i] for i in range(len(prompts))])
    for prompt, (other,) in got:
      self.assertNotEqual(prompt, [20 + prompts[other]])

  def test_random_rows(self):
    rng = np.random.default_rng(0)
    for count in range(2, 40):
      prompts = rng.integers(0, max(count // 2, 2), count)
      ours = rows(*(([int(p)], [i]) for i, p in enumerate(prompts)))
      if 2 * np.bincount(prompts).max() > count:
        with self.assertRaises(errors.ConfigError):
          unpaired.mismatched(*ours)
        continue
      others = [other for _, (other,) in texts(*unpaired.mismatched(*ours))]
      self.assertCountEqual(others, range(count))
      self.assertTrue((prompts[others] != prompts).all())

  def test_one_prompt_is_too_few(self):
    with self.assertRaisesRegex(
        errors.ConfigError, '^2 of 3 liked and .* at most half') as caught:
      unpaired.mismatched(*rows(([1], [2]), ([3], [2]), ([1], [4])))
    self.assertNotIn('\n', str(caught.exception))


class SelectTest(parameterized.TestCase):

  def log(self, group):
    """Response k of example i is token 10 i + k, to prompt 10 i + 5."""
    group = np.array(group)
    tokens = np.full((*group.shape, WIDTH), 9, np.int32)
    tokens[..., 0] = 10 * np.arange(len(group))[:, None] + 5
    tokens[..., 1] = tokens[..., 0] - 5 + np.arange(group.shape[1])
    mask = (np.arange(WIDTH) == 1) & (group >= 0)[..., None]
    return dict(tokens=tokens, mask=mask, group=group)

  def check(self, batch, expected, liked):
    both = [texts(batch.tokens[:, k], batch.mask[:, k]) for k in range(2)]
    self.assertEqual(
        [(p[0], own[0], other[0]) for (p, own), (_, other) in zip(*both)],
        expected)
    self.assertEqual([p for p, _ in both[0]], [p for p, _ in both[1]])
    self.assertEqual(batch.targets.dtype, np.float32)
    np.testing.assert_array_equal(
        batch.targets, np.stack([liked, np.zeros(len(liked))], axis=1))
    self.assertIsNone(batch.scores)  # the second has none

  def test_one_response_to_each_prompt(self):
    self.check(
        unpaired.select(self.log([[1], [0], [0]]), ['disliked', 'liked']),
        [(5, 0, 10), (15, 10, 20), (25, 20, 0)], [1, 0, 0])

  def test_pairs_are_two_responses(self):
    batch = unpaired.select(
        self.log([[0, 1, 2], [1, -1, -1], [2, 0, -1], [1, 0, -1]]),
        ['chosen', 'rejected', 'other'])
    # Two places on, prompts being two long at most; nobody has a third.
    self.check(batch, [
        (5, 0, 10), (5, 1, 21), (15, 10, 30), (25, 21, 31), (35, 30, 0),
        (35, 31, 1)], [1, 0, 0, 1, 0, 1])

  def test_what_is_not_there_is_left_out(self):
    log = self.log([[1], [0], [0]])
    log['mask'][1] = False
    self.check(unpaired.select(log, ['disliked', 'liked']),
               [(5, 0, 20), (25, 20, 0)], [1, 0])

  @parameterized.parameters(
      (['demonstration'], 'the log has no labels: .*of demonstration'),
      (['liked', 'rejected'], 'has no labels'),
      (['chosen', 'rejected', 'other'], 'no response of .*chosen and reject'))
  def test_nothing_to_learn_from(self, groups, message):
    with self.assertRaisesRegex(errors.ConfigError, message) as caught:
      unpaired.select(self.log([[2], [2]]), groups)
    self.assertNotIn('\n', str(caught.exception))


if __name__ == '__main__':
  absltest.main()
