"""Tests for rlhf_jax.stages.features: heads on a trunk that nobody trains."""

from unittest import mock

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import worlds

from rlhf_jax import errors
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import labelled_pairs
from rlhf_jax.pipeline import learners
from rlhf_jax.pipeline import reward_parts
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.stages import features
from rlhf_jax.stages import loaded_rewards
from rlhf_jax.stages import proxies
from rlhf_jax.stages import scores
from rlhf_jax.storage import files

NODE = dict(num_members=2, num_epochs=2, batch_size=5, held_out=4,
            optimizer=dict(learning_rate=1e-2), num_pairs=None, head_scale=1.,
            num_microbatches=1, packing=True)


VOCABULARY = worlds.config().vocab_size


def frozen() -> dict:
  return worlds.loaded_node(trainable_layers=0)


class After(worlds.Stop):
  """Stops where it is asked once more than so many times."""

  def check(self, where):
    if self.requested():
      self.stop(where)


def workdir():
  """The untrained world, with samples."""
  folder = worlds.folder()
  worlds.copy(worlds.untrained(), folder)
  pairs = files.load_arrays(folder / 'pairs/pairs.npz')
  (folder / 'samples').mkdir()
  for number in range(2):
    at = slice(4 * number, 4 * number + 4)
    files.save_arrays(
        folder / f'samples/shard_{number:04d}.npz',
        tokens=pairs['tokens'][at].astype(np.uint16), mask=pairs['mask'][at],
        gold_scores=pairs['gold_scores'][at],
        unfinished=0. * pairs['gold_scores'][at])
  files.write_json(folder / 'samples/result.json', {'result': {}})
  return folder


def finish(context, result):
  files.write_json(context.directory / 'result.json', {'result': result})


def read(folder, role, name, stop=None):
  context = worlds.Context(folder, folder / name, stop=stop)
  context.directory.mkdir(exist_ok=True)
  finish(context, features.run(
      context, upstream={'reference': 'sft', role: role}, model=frozen()))
  return context


def train(folder, name, model, **upstream):
  context = worlds.Context(folder, folder / name)
  context.directory.mkdir()
  result = proxies.run(
      context, seed=0, upstream=dict(pairs='pairs', trunks=['sft'], **upstream),
      node=NODE | dict(model=model), label_noise=.25, validate=True,
      training={})
  finish(context, result)
  return context, result


class FeaturesTest(absltest.TestCase):

  def test_pairs_and_samples_are_read_once(self):
    folder = workdir()
    read(folder, 'pairs', 'of_pairs')
    context = read(folder, 'samples', 'of_samples')
    base = reward_parts.start(
        frozen(), VOCABULARY, jax.random.key(0)).base['base']
    config = reward_parts.abstract(frozen(), VOCABULARY, 0).config
    self.assertEqual(files.read_json(
        context.directory / 'result.json')['result'], {'responses': 16})
    for source, target in (
        ('pairs/pairs', 'of_pairs/pairs'),
        ('samples/shard_0000', 'of_samples/shard_0000'),
        ('samples/shard_0001', 'of_samples/shard_0001')):
      rows = files.load_arrays(folder / f'{source}.npz')
      np.testing.assert_allclose(
          files.load_arrays(folder / f'{target}.npz')['features'],
          reward_models.features(
              config, base, rows['tokens'].astype(np.int32), rows['mask']),
          atol=1e-5)

  def test_what_has_been_read_is_not_read_again(self):
    folder = workdir()
    with self.assertRaises(errors.Interrupted):  # at the second shard
      read(folder, 'samples', 'of_samples', stop=After(1))
    target = folder / 'of_samples'
    self.assertEqual([x.name for x in target.glob('*.npz')],
                     ['shard_0000.npz'])
    rows = []
    whole = reward_models.read_rows
    with mock.patch.object(
        reward_models, 'read_rows', lambda *args, **kwargs: (
            rows.append(args[2]), whole(*args, **kwargs))[1]):
      read(folder, 'samples', 'of_samples')
    shard = files.load_arrays(folder / 'samples/shard_0001.npz')
    self.assertLen(rows, 1)
    np.testing.assert_array_equal(rows[0], shard['tokens'])


class HeadsTest(absltest.TestCase):

  def test_trained_without_features(self):
    """Where nobody has read the pairs before."""
    folder = workdir()
    read(folder, 'pairs', 'of_pairs')
    heads = [artifacts.restore_rewards(
        train(folder, name, frozen(), **more)[0].directory).params['head']
             for name, more in (('with', {'features': ['of_pairs']}),
                                ('without', {}))]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
                 *heads)

  def test_trained_on_features_as_on_what_they_stand_for(self):
    """The same heads as with the frozen trunk below every step."""
    folder = workdir()
    read(folder, 'pairs', 'of_pairs')
    with mock.patch.object(reward_parts, 'start', side_effect=AssertionError):
      context, result = train(
          folder, 'proxies_', frozen(), features=['of_pairs'])
    ensemble = artifacts.restore_rewards(context.directory)
    config, _, base = reward_parts.start(
        frozen(), VOCABULARY, jax.random.key(0))
    training, held, _ = labelled_pairs.load(
        context, 'pairs', 0, .25, held_out=4, num_pairs=None)
    keys = jnp.stack([
        proxies.streams.key(0, 'proxies', 'head', m) for m in range(2)])
    params = reward_models.born(config, keys, {}, members=2)
    learner = learners.learner(
        reward_models.forward, config, {'name': 'bradley_terry'}, num_steps=8,
        optimizer=NODE['optimizer'], num_microbatches=1, members=2)
    state = proxies.train.place_state(
        params, learner.tx, jax.random.split(jax.random.key(0), 2), members=2)
    source = proxies.sources.offline_members(
        training, batch_size=5, seeds=[proxies.streams.number(
            0, 'proxies', 'order', m) for m in range(2)])
    for step in range(8):
      state, _ = learner.step(state, source(step, None, None), base)
    self.assertEqual(set(ensemble.params), {'base', 'head'})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
                 ensemble.params['head'], dict(state.params['head']))
    # Validated, and standardised, on what they say of whole rows.
    raw = ensemble.scores(held.tokens, held.mask, standardize=False)
    np.testing.assert_allclose(
        ensemble.scale['mean'], raw.mean(axis=(1, 2)), atol=1e-4)
    self.assertEqual(result['accuracies'],
                     (raw[..., 0] > raw[..., 1]).mean(axis=1).tolist())
    self.assertAlmostEqual(
        context.lines('evaluation')[-1]['accuracy'], result['accuracy'], 6)

  def test_another_study_may_use_them(self):
    folder = workdir()
    read(folder, 'pairs', 'of_pairs')
    trained, _ = train(folder, 'proxies_', frozen(), features=['of_pairs'])
    context = worlds.Context(folder, folder / 'loaded')
    context.directory.mkdir()
    loaded_rewards.run(context, upstream={'reference': 'sft'},
                       rewards=str(trained.directory))
    ours, theirs = (artifacts.restore_rewards(x.directory)
                    for x in (context, trained))
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    jax.tree.map(np.testing.assert_array_equal, ours.scale, theirs.scale)

  def test_scores_are_those_of_whole_rows(self):
    folder = workdir()
    read(folder, 'pairs', 'of_pairs')
    read(folder, 'samples', 'of_samples')
    trained, _ = train(folder, 'proxies_', frozen(), features=['of_pairs'])
    ensemble = artifacts.restore_rewards(trained.directory)
    arrays = {}
    for name, more in (('with', {'features': 'of_samples'}), ('without', {})):
      context = worlds.Context(folder, folder / name)
      context.directory.mkdir()
      with mock.patch.object(
          reward_models, 'score_rows', side_effect=AssertionError if more
          else reward_models.score_rows), mock.patch.object(
              reward_parts, 'start', side_effect=AssertionError if more
              else reward_parts.start):
        scores.run(context, upstream=dict(
            samples='samples', proxies='proxies_', **more))
      arrays[name] = files.load_arrays(context.directory / 'scores.npz')
    self.assertEqual(arrays['with']['members'].shape, (2, 8, 2))
    for name, x in arrays['with'].items():
      np.testing.assert_allclose(x, arrays['without'][name], atol=1e-4)
    pairs = files.load_arrays(folder / 'pairs/pairs.npz')
    np.testing.assert_allclose(
        arrays['with']['members'], ensemble.scores(
            pairs['tokens'][:8].astype(np.int32), pairs['mask'][:8],
            standardize=False), atol=1e-4)

  def test_adapters_learn_on_a_base_that_stays(self):
    folder = workdir()
    model = worlds.loaded_node(
        lora=dict(rank=2, alpha=4., targets='layers/(q|v)$'))
    context, result = train(folder, 'proxies_', model)
    ensemble = artifacts.restore_rewards(context.directory)
    start = reward_parts.start(model, VOCABULARY, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, ensemble.params['base'],
                 start.base['base'])
    moved = ensemble.params['trunk']['adapter']['layers']['q']['b']
    self.assertEqual(moved.shape[:2], (2, 2))
    self.assertGreater(np.abs(moved).max(), 1e-3)
    self.assertGreater(np.abs(moved[0] - moved[1]).max(), 1e-4)
    held = labelled_pairs.load(
        context, 'pairs', 0, .25, held_out=4, num_pairs=None)[1]
    raw = ensemble.scores(held.tokens, held.mask, standardize=False)
    self.assertEqual(result['accuracies'],
                     (raw[..., 0] > raw[..., 1]).mean(axis=1).tolist())


if __name__ == '__main__':
  absltest.main()
