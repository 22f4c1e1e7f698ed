"""Tests for rlhf_jax.stages.pairs."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
from stages import figure_3
import worlds

from rlhf_jax import errors
from rlhf_jax.models import transformer
from rlhf_jax.stages import pairs
from rlhf_jax.storage import files

NAMES = [f'seed_0/{ending}/pairs' for ending in figure_3.ENDINGS]


def run(workdir=None, upstream=None, stop=None, **changes):
  """The arrays and the result of the stage, on an untrained world."""
  context = worlds.Context(workdir or worlds.untrained(), stop=stop)
  result = pairs.run(context, **dict(
      seed=0, data=worlds.DATA, force_eos=False, sampler={},
      upstream=dict(reference='sft', gold='gold') | (upstream or {})) | changes)
  return files.load_arrays(context.directory / 'pairs.npz'), result


class StopTest(absltest.TestCase):

  def test_responses_end_at_stop_strings(self):
    words = worlds.corpus().tokenizer.decode(range(3, 19)).split()
    (free, _), (arrays, result) = run(), run(
        data=worlds.DATA | dict(stop=tuple(words)))
    coder, cut = worlds.corpus().tokenizer, 0
    for row in np.ndindex(free['mask'].shape[:2]):
      before, after = (x['tokens'][row][x['mask'][row]]
                       for x in (free, arrays))
      ends = [at for at in range(1, len(before) + 1)
              if any(word in coder.decode(before[:at]) for word in words)]
      np.testing.assert_array_equal(after, before[:min(ends, default=None)])
      cut += bool(ends)
    self.assertGreater(cut, 3)
    eos = (arrays['mask'] & (arrays['tokens'] == coder.eos_id)).any(-1)
    self.assertBetween(1 - result['unfinished'], (cut - .5) / eos.size, 1)


class FinishedTest(parameterized.TestCase):
  """On the study of figure 3."""

  @parameterized.parameters(*NAMES)
  def test_two_responses_to_each_prompt(self, name):
    arrays, prompts = figure_3.arrays(name, 'pairs.npz'), (
        figure_3.corpus().pair_prompts)
    self.assertEqual(arrays['tokens'].shape[:2], (96, 2))
    for row, length, prompt in zip(
        arrays['tokens'], prompts.lengths, prompts.tokens, strict=True):
      for tokens in row:
        np.testing.assert_array_equal(tokens[:length], prompt[:length])
    different = (arrays['tokens'][:, 0] != arrays['tokens'][:, 1]).any(axis=1)
    self.assertGreater(different.sum(), 90)

  @parameterized.parameters(*NAMES)
  def test_what_is_thought_of_them(self, name):
    arrays, result = figure_3.arrays(name, 'pairs.npz'), figure_3.result(name)
    tokens, mask = arrays['tokens'], arrays['mask']
    scores = figure_3.raw_scores('seed_0/gold', tokens, mask)[0]
    np.testing.assert_allclose(arrays['gold_scores'], scores, atol=1e-4)
    self.assertAlmostEqual(result['gold_mean'], scores.mean(), 4)
    self.assertAlmostEqual(result['gold_std'], scores.std(), 4)
    eos_id = figure_3.corpus().tokenizer.eos_id
    ended = (mask & (tokens == eos_id)).any(axis=-1)
    self.assertAlmostEqual(result['unfinished'], 1 - ended.mean())
    self.assertAlmostEqual(
        result['response_tokens'], mask.sum(axis=-1).mean())
    self.assertEqual(result['pairs'], 96)

  def test_forced_endings(self):
    eos_id = figure_3.corpus().tokenizer.eos_id
    rows = figure_3.arrays('seed_0/forced_eos/pairs/pairs.npz')
    last = rows['mask'].shape[-1] - 1 - np.argmax(
        rows['mask'][..., ::-1], axis=-1)
    self.assertTrue((np.take_along_axis(
        rows['tokens'], last[..., None], axis=-1) == eos_id).all())
    self.assertGreater(figure_3.result(NAMES[0])['unfinished'], 0)


class PartTest(absltest.TestCase):

  def test_part_of_the_prompts_with_noise_of_its_own(self):
    arrays, result = run(first=3, num_pairs=4)
    self.assertEqual(result['pairs'], 4)
    prompts = worlds.corpus().pair_prompts
    for row, length, prompt in zip(
        arrays['tokens'], prompts.lengths[3:7], prompts.tokens[3:7],
        strict=True):
      np.testing.assert_array_equal(row[0, :length], prompt[:length])
    # Not that of the same places of another part.
    other, _ = run(num_pairs=4)
    same = (arrays['tokens'][..., 8:] == other['tokens'][..., 8:])
    self.assertLess(same.mean(), .5)

  def test_the_rest_of_the_prompts(self):
    self.assertEqual(run(first=4)[1]['pairs'], 4)

  def test_the_policy_that_goes_on_answers(self):
    """As it would if it were the reference."""
    params = transformer.init(worlds.config(), jax.random.key(9))
    beside, instead = worlds.folder(), worlds.folder()
    for workdir in (beside, instead):
      worlds.copy(worlds.untrained(), workdir)
    worlds.save(beside, 'better', {}, kind='policy', params=params)
    worlds.replace(instead, 'sft', params)
    first, better, expected = (
        run(workdir, roles, num_pairs=4)[0] for workdir, roles in (
            (beside, {}), (beside, {'policy': 'better'}), (instead, {})))
    for name, values in expected.items():
      np.testing.assert_array_equal(better[name], values, err_msg=name)
    self.assertGreater((better['tokens'] != first['tokens']).sum(), 9)

  def test_a_signal_stops_the_scoring_too(self):
    """Not the sampling alone, after which hours of scoring may come."""
    for polls in (0, 1):  # one chunk is sampled, then one scored
      with self.assertRaises(errors.Interrupted):
        run(stop=Polls(polls))
    run(stop=Polls(2))


class Polls:
  """Asks to stop after so many polls that go unheeded."""

  def __init__(self, polls):
    self._left = polls

  def check(self, where):
    self._left -= 1
    if self._left < 0:
      raise errors.Interrupted(where)


if __name__ == '__main__':
  absltest.main()
