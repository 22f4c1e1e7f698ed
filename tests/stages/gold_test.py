"""Tests for rlhf_jax.stages.gold, on logged responses and the small world."""

from unittest import mock

from absl.testing import absltest
import jax
import numpy as np
import voted
import worlds

from rlhf_jax import errors
from rlhf_jax import train
from rlhf_jax.data import load as load_lib
from rlhf_jax.parallel import sharding
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import fit as fit_lib
from rlhf_jax.pipeline import gold_rows
from rlhf_jax.pipeline import reward_parts
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.stages import gold

NODE = dict(model=worlds.MODEL, num_steps=1, batch_size=32, held_out=64,
            optimizer=dict(learning_rate=2e-2), num_microbatches=1,
            packing=False)


def run(context, **changes):
  return gold.run(
      context, seed=0, data=worlds.DATA, upstream={'reference': 'sft'},
      node=NODE | changes, sampler={}, training={})


def run_on(corpus, **changes):
  """On a corpus in place of the small world's."""
  context = worlds.Context(worlds.untrained())
  context.result_of = lambda name: {'corpus': corpus.fingerprint()}
  with mock.patch.object(load_lib, 'load', lambda data, seed: corpus):
    return context, run(context, **changes)


def worlds_of(context, corpus):
  """What the stage reads of others."""
  with mock.patch.object(load_lib, 'load', lambda data, seed: corpus):
    world = artifacts.World(context, worlds.DATA, 0, {'reference': 'sft'})
    _ = world.corpus  # read here, and kept
    return world


class GoldTest(absltest.TestCase):

  def test_learns_the_score_of_the_log(self):
    context, result = run_on(voted.corpus(voted.log(400)), num_steps=80)
    self.assertGreater(result['correlation'], .8)
    self.assertNotIn('accuracy', result)
    # What the stage leaves, in votes, on responses that it has not seen.
    fresh = voted.log(50, seed=1)
    votes = fresh.scores['votes']
    model = artifacts.restore_rewards(context.directory)
    scores = model.scores(fresh.tokens, fresh.mask)[0]
    present = np.isfinite(votes)
    error = (result['target_mean'] + result['target_std'] * scores
             - votes)[present]
    self.assertLess(np.abs(error).mean(), .5 * votes[present].std())

  def test_pairs_where_no_score_is_asked_for(self):
    with mock.patch.object(
        fit_lib, 'fit', lambda context, state, *_, **__: (
            state, {'seconds': 1.})):
      _, result = run_on(voted.corpus(voted.log(160), target=None))
    self.assertIn('accuracy', result)
    self.assertTrue({'correlation', 'target_mean', 'target_std'}.isdisjoint(
        result))

  def test_weights_are_born_in_parts(self):
    """No device holds a matrix whole, not even before it is trained."""
    born = []

    place_state = train.place_state

    def place(params, *args):
      born.append(params)
      return place_state(params, *args)

    with worlds.devices(8, data=1, fsdp=8), mock.patch.object(
        fit_lib, 'fit', lambda context, state, *_, **__: (
            state, {'seconds': 1.})), mock.patch.object(
                gold.train, 'place_state', place):
      run_on(voted.corpus(voted.log(160), target=None))
    for path, leaf in jax.tree_util.tree_leaves_with_path(born[0]):
      if 'kernel' in (name := sharding.path_of(path)) or 'embed' in name:
        self.assertLen(leaf.sharding.device_set, 8, name)
        self.assertFalse(leaf.is_fully_replicated, name)

  def test_a_part_of_a_loaded_model(self):
    """Adapters learn on a base that stays, and are what is validated."""
    model = worlds.loaded_node(
        lora=dict(rank=2, alpha=4., targets='layers/(q|v)$'))
    corpus = voted.corpus(voted.log(160))
    context, result = run_on(corpus, model=model, num_steps=6)
    models = artifacts.restore_rewards(context.directory)
    start = reward_parts.start(
        model, worlds.config().vocab_size, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, models.params['base'],
                 start.base['base'])
    adapter = models.params['trunk']['adapter']['layers']
    self.assertGreater(np.abs(adapter['v']['b']).max(), 1e-3)
    validated = gold_rows.split(
        worlds_of(context, corpus), 0, NODE['held_out'], {}).validation
    scores = models.scores(validated.tokens, validated.mask)[0]
    self.assertAlmostEqual(result['correlation'], np.corrcoef(
        scores[:, 0], validated.targets[:, 0])[0, 1], 5)

  def test_too_few_rows_are_refused(self):
    log = voted.log(40)
    present = int(np.isfinite(log.scores['votes']).sum())
    for held_out in (present, 10 * present):
      with self.assertRaisesRegex(
          errors.ConfigError, f'held_out is {held_out}, .* leaves 0 rows'):
        run_on(voted.corpus(log), held_out=held_out)

  def test_rows_are_packed_where_the_node_says_so(self):
    for packing in (False, True):
      loop = worlds.loop_of(lambda packing=packing: run_on(
          voted.corpus(voted.log(160)), packing=packing))
      self.assertIs(loop.packing, packing)


class RuleTest(absltest.TestCase):

  def test_trains_on_what_it_does_not_validate_on(self):
    """The rows of `gold_rows.split`, those held out for the result alone."""
    context = worlds.Context(worlds.untrained())
    trained, states, split = [], [], gold_rows.split(
        artifacts.World(context, worlds.DATA, 0, {'reference': 'sft'}), 0, 24,
        {})

    def fit(context, state, source, *unused, **unused_kwargs):
      states.append(state)
      trained.extend(source(step, None, None).tokens.tobytes()
                     for step in range(len(split.training.tokens)))
      return state, {'seconds': 1.}

    with mock.patch.object(fit_lib, 'fit', fit):
      result = run(context, held_out=24, batch_size=1)
    self.assertCountEqual(
        trained, [row.tobytes() for row in split.training.tokens])
    model = reward_models.RewardModels(
        worlds.config(), jax.tree.map(lambda x: x[None], states[0].params))
    scores = model.scores(split.validation.tokens, split.validation.mask)[0]
    self.assertAlmostEqual(result['correlation'], np.corrcoef(
        scores[:, 0], split.validation.targets[:, 0])[0, 1], 5)
    self.assertTrue({'accuracy', 'target_mean'}.isdisjoint(result))

  def test_held_out_that_leaves_nothing(self):
    with self.assertRaisesRegex(
        errors.ConfigError, 'gold.held_out is 9999, which leaves 0 rows'):
      run(worlds.Context(worlds.untrained()), held_out=9999)


if __name__ == '__main__':
  absltest.main()
