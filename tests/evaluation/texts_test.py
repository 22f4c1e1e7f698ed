"""Tests for rlhf_jax.evaluation.texts."""

from unittest import mock

from absl.testing import absltest
import numpy as np

from rlhf_jax.data import reviews
from rlhf_jax.evaluation import texts


class DecodeTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.coder = reviews.Reviews(num_adjectives=4).tokenizer
    self.the, self.phone = self.coder.encode(['the phone'])[0]

  def _rows(self):
    """the | phone <eos>; the phone | the, cut off, padding."""
    the, phone, eos, pad = (
        self.the, self.phone, self.coder.eos_id, self.coder.pad_id)
    return (np.array([[the, phone, eos, pad], [the, phone, the, pad]]),
            np.array([[0, 1, 1, 0], [0, 0, 1, 0]], bool))

  def test_by_hand(self):
    prompts, responses = texts.decode(self.coder, *self._rows())
    self.assertEqual(prompts, ['the', 'the phone'])
    self.assertEqual(responses, ['phone', 'the'])

  def test_a_response_is_cut_before_the_first_stop_string(self):
    ids, = self.coder.encode(['the phone has the phone'])
    tokens = np.array([[self.the, *ids]])
    mask = np.arange(6)[None] > 0
    for stop, response in (
        (('has',), 'the phone '), (('phone', 'has'), 'the '), (('e h',), (
            'the phon')), (('the the',), 'the phone has the phone')):
      prompts, responses = texts.decode(
          self.coder.ending_at(stop), tokens, mask)
      self.assertEqual((prompts, responses), (['the'], [response]))

  def test_axes_before_the_last_are_rows(self):
    tokens, mask = self._rows()
    several = np.stack([tokens, tokens[::-1]])
    prompts, responses = texts.decode(
        self.coder, several, np.stack([mask, mask[::-1]]))
    self.assertEqual(prompts, ['the', 'the phone', 'the phone', 'the'])
    self.assertEqual(responses, ['phone', 'the', 'the', 'phone'])

  def test_a_response_goes_on_and_a_prompt_begins(self):
    """So that a blank between the two is not lost, see `Tokenizer.decode`."""
    with mock.patch.object(self.coder, 'decode') as decode:
      texts.decode(self.coder, *(x[:1] for x in self._rows()))
    self.assertEqual([call.kwargs for call in decode.call_args_list],
                     [{}, {'continuation': True}])


if __name__ == '__main__':
  absltest.main()
