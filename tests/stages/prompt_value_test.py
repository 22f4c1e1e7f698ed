"""Tests for rlhf_jax.stages.prompt_value, by a reward that is known."""

import dataclasses
import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import worlds

from rlhf_jax import errors
from rlhf_jax import types
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import load as load_lib
from rlhf_jax.pipeline import rewarding
from rlhf_jax.rewards import components
from rlhf_jax.stages import prompt_value
from rlhf_jax.storage import files

VALIDATION, EXAMPLES, UPPER = 48, 72, 2.0
LIKED = 'phone hotel book film camera coat lamp novel'.split()
UPSTREAM = dict(reference='sft', log='logged')


class Rewards:
  """Of the prompt: 1.6 if it names a thing that is liked, else 0.4."""

  upper = UPPER

  def __init__(self):
    self.calls = []

  def __enter__(self):
    return self

  def __exit__(self, *unused_exc):
    pass

  def __call__(self, tokens, mask, prompts, responses, *, references):
    self.calls.append((prompts, references))
    values = {'liked': np.float32([worth(prompt) for prompt in prompts])}
    return components.Scored(values, values)

  def total(self, values):
    return values['liked']


def worth(prompt):
  return 1.6 if prompt.split()[2] in LIKED else .4


@functools.cache
def log():
  """A log of two responses to each prompt; of some one is missing."""
  coder = worlds.corpus().tokenizer
  rng = np.random.default_rng(1)
  things = LIKED + 'laptop bike song play game watch chair meal'.split()
  aspects = 'price sound staff plot screen fabric'.split()
  pairs = [(t, a) for t in things for a in aspects]
  prompts = [
      'review the {} and its {} :'.format(*pairs[i])
      for i in rng.permutation(len(pairs))[:EXAMPLES]]
  prompts[-1] = prompts[-2]  # two examples of one prompt
  rows = [coder.encode_rows(prompts, [text] * EXAMPLES, max_prompt_length=8,
                            max_response_length=12)
          for text in ('the car is unstable .', 'the my is .')]
  tokens, mask = (np.stack([getattr(r, name) for r in rows], axis=1)
                  for name in ('tokens', 'mask'))
  mask[3, 0] = mask[5, 1] = mask[-4, 0] = False
  there = mask.any(axis=-1)
  scores = np.where(there, rng.uniform(.1, 1.9, there.shape), 0)
  arrays = dict(
      tokens=tokens, mask=mask, scores=scores.astype(np.float32),
      group=np.where(there, [0, 1], -1).astype(np.int32),
      example=rng.permutation(EXAMPLES))
  return prompts, arrays


def corpus():
  """Whose log has, as the right answer, the prompt of each example."""
  prompts, arrays = log()
  texts = [prompts[at] for at in np.argsort(arrays['example'])]
  own = corpus_lib.Log(
      tokens=np.zeros((EXAMPLES, 2, 1), np.int32), mask=arrays['mask'],
      group=arrays['group'], groups=('chosen', 'rejected'), scores={},
      references=tuple(texts))
  return dataclasses.replace(worlds.corpus(), log=own)


def stages(workdir):
  """The untrained world with that log."""
  worlds.copy(worlds.untrained(), workdir)
  worlds.save(workdir, 'sft', {'corpus': corpus().fingerprint()})
  worlds.save(workdir, 'logged', {
      'source': 'corpus', 'num_validation': VALIDATION,
      'groups': ['chosen', 'rejected']}, logged=log()[1])


def make_context(**kwargs):
  return worlds.Context(worlds.once('valued', stages), **kwargs)


@dataclasses.dataclass
class Run:
  """What a run of the stage has left."""

  context: worlds.Context
  result: dict
  values: np.ndarray
  rewards: Rewards
  trained: types.Batch


def run(context=None, arrays=None, liked=None, **changes) -> Run:
  context, rewards = context or make_context(), Rewards()
  if arrays is not None:
    files.save_arrays(context.directory / 'logged.npz', **arrays)
    of = context.directory_of
    context.directory_of = lambda name: (
        context.directory if name == 'logged' else of(name))
  source = mock.patch.object(prompt_value.sources, 'offline',
                             side_effect=prompt_value.sources.offline)
  nodes = dict(liked=liked or dict(
      kind='gold', weight=UPPER, squash='sigmoid'))
  with (mock.patch.object(rewarding, 'bind', return_value=rewards) as bind,
        mock.patch.object(load_lib, 'load', return_value=corpus()),
        source as seen):
    result = prompt_value.run(
        context, seed=0, data=worlds.DATA, upstream=UPSTREAM, pool={},
        components=nodes, training=dict(save_every=60), node=dict(
            num_samples=2, temperature=1., num_heads=2, batch_size=16,
            num_steps=120, held_out=.25,
            optimizer=dict(learning_rate=3e-2)) | changes)
  assert bind.call_args.args[1:] == (nodes, {})
  values = files.load_arrays(context.directory / 'values.npz')['values']
  return Run(context, result, values, rewards, seen.call_args.args[0])


@functools.cache
def usual():
  return run()


def targets():
  return np.array([worth(prompt) for prompt in log()[0]])


class ValueTest(parameterized.TestCase):

  def test_learns_what_the_samples_are_worth(self):
    result = usual().result
    self.assertAlmostEqual(result['target_variance'], .36, delta=.02)
    self.assertLess(result['mse'], .1 * result['target_variance'])
    self.assertLess(result['held_out_mse'], .5 * result['held_out_variance'])
    self.assertBetween(usual().values.min(), 0, UPPER)
    self.assertBetween(usual().values.max(), 0, UPPER)

  def test_held_out_prompts_are_not_trained_on(self):
    error = (targets() - usual().values)[-VALIDATION:]**2
    prompts = [row[:8].tobytes() for row in log()[1]['tokens'][
        -VALIDATION:].max(axis=1)]
    rows = usual().trained
    trained = {row[:8].tobytes() for row in rows.tokens[:, 0]}
    at = np.array([prompt in trained for prompt in prompts])
    self.assertLen(rows.tokens, at.sum())  # 47 different prompts
    self.assertLen(set(np.array(prompts)[~at]), round(.25 * 47))
    self.assertAlmostEqual(usual().result['mse'], error[at].mean(), 5)
    self.assertAlmostEqual(
        usual().result['held_out_mse'], error[~at].mean(), 5)

  def test_samples_are_of_the_validation_prompts(self):
    (prompts, references), = usual().rewards.calls
    self.assertEqual(prompts, np.repeat(log()[0][-VALIDATION:], 2).tolist())
    self.assertEqual(references, prompts)
    rows = usual().trained
    self.assertEqual(rows.targets.shape, (len(rows.tokens), 2))
    self.assertGreater((rows.tokens[:, 0] != rows.tokens[:, 1]).sum(), 9)

  def test_interrupted_training_goes_on_bitwise(self):
    context = make_context(stop=worlds.Stop(70))
    with self.assertRaises(errors.Interrupted):
      run(context)
    context.stop = worlds.Stop()
    again = run(context)
    np.testing.assert_array_equal(again.values, usual().values)
    self.assertEqual(again.result['mse'], usual().result['mse'])


  def test_garbage_in_padding_changes_nothing(self):
    arrays = dict(log()[1])
    tokens, mask = arrays['tokens'].copy(), arrays['mask']
    real = np.arange(tokens.shape[-1]) < (8 + mask.sum(axis=-1))[..., None]
    tokens[~real] = np.resize([10**6, -7, 4], (~real).sum())
    # Of a missing response, the prompt too is not read.
    tokens[~mask.any(axis=-1)] = 10**6
    again = run(arrays=arrays | {'tokens': tokens})
    np.testing.assert_array_equal(again.values, usual().values)


class FilterTest(parameterized.TestCase):

  def _advantages(self):
    """(example, response, advantage) of all that is there to train on."""
    arrays, values = log()[1], usual().values
    return [(i, k, arrays['scores'][i, k] - values[i])
            for i in range(EXAMPLES - VALIDATION) for k in range(2)
            if arrays['mask'][i, k].any()]

  def test_share_is_a_count_by_hand(self):
    advantages, result = self._advantages(), usual().result
    self.assertLen(advantages, 2 * 24 - 2)
    for name, of in (('share', (0, 1)), ('chosen', (0,)), ('rejected', (1,))):
      left = [a <= 0 for _, k, a in advantages if k in of]
      self.assertAlmostEqual(
          result[f'filtered_{name}'], sum(left) / len(left))
    self.assertBetween(result['filtered_share'], .1, .9)
    line, = usual().context.shown
    self.assertIn(f'{result["filtered_share"]:.1%} of 46 logged', line)
    self.assertIn(f'rejected {result["filtered_rejected"]:.1%}', line)

  def test_lowest(self):
    rows = usual().context.lines('lowest')
    expected = sorted(self._advantages(), key=lambda x: x[2])[:20]
    self.assertLen(rows, 20)
    prompts, arrays = log()
    for row, (i, k, advantage) in zip(rows, expected):
      self.assertAlmostEqual(row['advantage'], advantage, 6)
      self.assertAlmostEqual(row['score'] - row['value'], advantage, 5)
      self.assertAlmostEqual(row['score'], arrays['scores'][i, k], 6)
      self.assertEqual(row['prompt'], prompts[i])
      self.assertEqual(row['response'],
                       ('the car is unstable .', 'the my is .')[k])
      self.assertEqual(row['group'], ('chosen', 'rejected')[k])


class ErrorTest(parameterized.TestCase):

  @parameterized.parameters(
      (dict(num_heads=3), 'num_heads is 3; give a divisor of the 16'),
      (dict(held_out=1.), 'held_out is 1.0 of 47'),
      (dict(held_out=-.1), 'held_out is -0.1'),
      (dict(liked=dict(kind='gold')), r"component 'liked' is in \[-inf, inf"))
  def test_arguments(self, changes, message):
    with self.assertRaisesRegex(errors.ConfigError, message):
      run(**changes)


if __name__ == '__main__':
  absltest.main()
