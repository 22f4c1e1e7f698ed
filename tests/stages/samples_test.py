"""Tests for rlhf_jax.stages.samples, on the finished study of figure 3."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
from stages import figure_3
import worlds

from rlhf_jax import errors
from rlhf_jax.models import transformer
from rlhf_jax.pipeline import rows as rows_lib
from rlhf_jax.stages import samples
from rlhf_jax.storage import files
from rlhf_jax.studies import nodes

UPSTREAM = dict(reference='seed_0/sft', gold='seed_0/gold')


def run(context, **changes):
  config = figure_3.config()
  call = {name: config['best_of_n'][name]
          for name in ('samples_per_call', 'shard_prompts')}
  return samples.run(context, **dict(
      seed=0, data=nodes.data_config(config), upstream=UPSTREAM,
      force_eos=False, sampler=config['sampler'], call=call,
      num_samples=config['best_of_n']['num_samples']) | changes)


class SamplesTest(parameterized.TestCase):

  def test_forced_endings(self):
    eos = figure_3.corpus().tokenizer.eos_id
    rows = figure_3.shards('forced_eos')
    last = rows['mask'].shape[-1] - 1 - np.argmax(
        rows['mask'][..., ::-1], axis=-1)
    self.assertTrue((np.take_along_axis(
        rows['tokens'], last[..., None], axis=-1) == eos).all())
    free = figure_3.shards('as_sampled')
    ended = (free['mask'] & (free['tokens'] == eos)).any(axis=-1)
    self.assertLess(ended.mean(), 1)

  @parameterized.parameters(*figure_3.ENDINGS)
  def test_responses_to_a_prompt_differ(self, ending):
    rows = figure_3.shards(ending)
    self.assertEqual(rows['tokens'].shape[:2], (4, 32))
    for tokens, prompt in zip(
        rows['tokens'], figure_3.corpus().eval_prompts.tokens, strict=True):
      # Calls of 16 do not repeat each other.
      self.assertGreater(len({row.tobytes() for row in tokens}), 28)
      self.assertTrue((tokens[:, :8] == prompt).all())

  def test_no_two_calls_have_one_place(self):
    """A draw is a function of its key and its place in the whole data set."""
    draw = rows_lib.Draw(num_samples=16, sampler={})
    with mock.patch.object(rows_lib, 'sample_rows', return_value=(
        np.zeros((2, 16, 3)),) * 2) as sample:
      for index in range(4):
        samples._responses(mock.MagicMock(), figure_3.corpus().eval_prompts,
                           index, 32, 0, draw)
    self.assertEqual([call.kwargs['first_row'] + i
                      for call in sample.call_args_list for i in range(2)],
                     [*range(8)])

  @parameterized.parameters(*figure_3.ENDINGS)
  def test_what_is_thought_of_them(self, ending):
    rows = figure_3.shards(ending)
    tokens, mask = rows['tokens'], rows['mask']
    np.testing.assert_allclose(  # as the gold model is, without a unit
        rows['gold_scores'],
        figure_3.raw_scores('seed_0/gold', tokens, mask)[0], atol=1e-4)
    corpus = figure_3.corpus()
    np.testing.assert_allclose(
        rows['rule'], corpus.world.rule(tokens.astype(np.int32), mask))
    result = figure_3.result(f'seed_0/{ending}/samples')
    ended = (mask & (tokens == corpus.tokenizer.eos_id)).any(axis=-1)
    self.assertEqual(result['responses'], 4 * 32)
    self.assertAlmostEqual(result['unfinished'], 1 - ended.mean())
    self.assertAlmostEqual(
        result['response_tokens'], mask.sum(axis=-1).mean())

  def test_an_interrupted_run_samples_no_shard_twice(self):
    context = figure_3.context()
    asked = []

    def check(where):
      asked.append(where)
      if where == 'shard 1 of 2':
        raise errors.Interrupted(where)

    context.stop.check = check
    with self.assertRaises(errors.Interrupted):
      run(context)
    first = context.directory / 'shard_0000.npz'
    written = first.stat().st_mtime_ns
    context.stop = worlds.Stop()
    run(context)
    self.assertEqual(first.stat().st_mtime_ns, written)
    undisturbed = figure_3.context()
    run(undisturbed)
    for number in range(2):
      path = f'shard_{number:04d}.npz'
      again, whole = (files.load_arrays(where.directory / path)
                      for where in (context, undisturbed))
      for name, values in whole.items():
        np.testing.assert_array_equal(again[name], values, err_msg=name)

  def test_the_policy_that_goes_on_answers(self):
    """As it would if it were the reference."""
    params = transformer.init(worlds.config(), jax.random.key(9))
    beside, instead = worlds.folder(), worlds.folder()
    for workdir in (beside, instead):
      worlds.copy(worlds.untrained(), workdir)
    worlds.save(beside, 'better', {}, kind='policy', params=params)
    worlds.replace(instead, 'sft', params)
    rows = []
    for workdir, roles in ((beside, {}), (beside, {'policy': 'better'}),
                           (instead, {})):
      context = worlds.Context(workdir)
      run(context, data=worlds.DATA, num_samples=4, upstream=dict(
          reference='sft', gold='gold') | roles)
      rows.append(files.load_arrays(context.directory / 'shard_0000.npz'))
    for name, values in rows[2].items():
      np.testing.assert_array_equal(rows[1][name], values, err_msg=name)
    self.assertGreater((rows[0]['tokens'] != rows[1]['tokens']).sum(), 9)


if __name__ == '__main__':
  absltest.main()
