"""Tests for rlhf_jax.ops.readability."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from rlhf_jax.ops import readability


class FleschTest(parameterized.TestCase):

  @parameterized.parameters(
      # 3 words, 1 sentence, 1 + 2 + 2 syllables.
      ('the table simple', 206.835 - 1.015 * 3 - 84.6 * 5 / 3),
      # 6 words, 2 sentences, 7 syllables: the silent e of 'made' counts not.
      ("He made it! Don't worry... she", 206.835 - 1.015 * 2 - 84.6 * 7 / 6),
      ('Idle. while. 42.', 206.835 - 1.015 - 84.6 * 3 / 2), (' 1 + 1 ', 0.),
      ('', 0.))
  def test_flesch_by_hand(self, text, expected):
    np.testing.assert_allclose(
        readability.flesch_reading_ease([text]), [expected])

  def test_flesch_of_one_string(self):
    with self.assertRaisesRegex(ValueError, "got one: 'a'"):
      readability.flesch_reading_ease('a')


if __name__ == '__main__':
  absltest.main()
