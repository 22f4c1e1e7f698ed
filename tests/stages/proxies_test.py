"""Tests for rlhf_jax.stages.proxies."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
from stages import figure_3
import worlds

from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import labelled_pairs
from rlhf_jax.stages import proxies
from rlhf_jax.storage import files

NODE = dict(model=worlds.MODEL, num_members=2, num_epochs=2, batch_size=5,
            optimizer=dict(learning_rate=1e-2), held_out=4, num_pairs=None,
            head_scale=1., num_microbatches=1, packing=False)


def run(context, *, upstream=None, validate=False, noise=.25, **node):
  return proxies.run(
      context, seed=0, upstream=upstream or dict(pairs='pairs', trunks=['sft']),
      node=NODE | node, label_noise=noise, validate=validate, training={})


class FinishedTest(parameterized.TestCase):
  """On the study of figure 3."""

  @parameterized.parameters(*figure_3.CONDITIONS)
  def test_scale_is_that_of_clean_held_out_responses(self, condition):
    pairs = figure_3.arrays(condition.rpartition('/')[0], 'pairs/pairs.npz')
    at = slice(figure_3.config()['proxy']['held_out'])
    scores = figure_3.raw_scores(
        f'{condition}/proxies', pairs['tokens'][at], pairs['mask'][at])
    held = figure_3.arrays(condition, 'proxies/scale.npz')
    np.testing.assert_allclose(held['mean'], scores.mean(axis=(1, 2)),
                               atol=1e-4)
    np.testing.assert_allclose(held['std'], scores.std(axis=(1, 2)),
                               atol=1e-4)
    # Validated on clean labels, whatever the noise in training.
    right = (scores[..., 0] > scores[..., 1]) == (
        pairs['gold_scores'][at, 0] >= pairs['gold_scores'][at, 1])
    result = figure_3.result(f'{condition}/proxies')
    np.testing.assert_allclose(
        result['accuracies'], right.mean(axis=1), atol=1e-6)
    self.assertAlmostEqual(result['accuracy'], right.mean(), 6)

  @parameterized.parameters(zip(figure_3.CONDITIONS, (0, .25) * 2))
  def test_share_of_flipped_labels_is_exact(self, condition, share):
    result = figure_3.result(f'{condition}/proxies')
    self.assertEqual(result['flipped'], share)
    # The rows that training gets, against the gold scores of their pairs.
    ending = condition.rpartition('/')[0]
    pairs = figure_3.arrays(ending, 'pairs/pairs.npz')
    node = figure_3.config()['proxy']
    with mock.patch.object(proxies.sources, 'offline_members',
                           side_effect=StopIteration) as source:
      with self.assertRaises(StopIteration):
        proxies.run(
            figure_3.context(), seed=0, node=node, label_noise=share,
            validate=False, training={}, upstream=dict(
                pairs=f'{ending}/pairs', trunks=['seed_0/trunk']))
    rows = source.call_args.args[0]
    self.assertLen(rows.tokens, 64)
    flipped, held_out = 0, node['held_out']
    for row, both, scores in zip(rows.tokens, pairs['tokens'][held_out:],
                                 pairs['gold_scores'][held_out:]):
      best = int(scores.argmax())
      flips = not np.array_equal(row[0], both[best])
      np.testing.assert_array_equal(row[int(flips)], both[best])
      np.testing.assert_array_equal(row[int(not flips)], both[1 - best])
      flipped += flips
    self.assertEqual(flipped, 64 * share)
    # Each member in an order of its own.
    seeds = source.call_args.kwargs['seeds']
    self.assertLen(set(seeds), node['num_members'])

  def test_members_are_trained_apart(self):
    params = figure_3.rewards(f'{figure_3.CONDITIONS[0]}/proxies').params
    for leaf in jax.tree.leaves(params['trunk']['layers']):
      self.assertFalse(np.array_equal(leaf[0], leaf[1]))


class MembersTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.workdir = worlds.folder()
    self.trunks = [transformer.init(worlds.config(), jax.random.key(i))
                   for i in range(2)]
    for i, params in enumerate(self.trunks):
      worlds.save(self.workdir, f'trunk_{i}', {}, kind='policy', params=params)

  def init(self, trunks, head_scale=1.):
    config, params, base = proxies._init(
        worlds.Context(self.workdir), NODE | dict(head_scale=head_scale),
        worlds.config().vocab_size, jax.random.split(jax.random.key(0), 2),
        {'trunks': trunks})
    self.assertEqual(config, worlds.config())
    self.assertIsNone(base)
    weights = params['head']['weight']
    self.assertEqual(len(weights), 2)
    self.assertGreater(np.abs(weights[0] - weights[1]).max(), .01)
    return params

  def check_trunks(self, params, sources):
    for member, source in enumerate(sources):
      jax.tree.map(lambda x, y, m=member: np.testing.assert_array_equal(
          x[m], y), params['trunk'], heads.trunk(self.trunks[source]))

  def test_one_trunk_is_shared_and_no_head(self):
    self.check_trunks(self.init(['trunk_1']), [1, 1])

  def test_each_may_have_its_own(self):
    self.check_trunks(self.init(['trunk_1', 'trunk_0']), [1, 0])

  def test_scale_of_the_heads(self):
    one, small = (self.init(trunks, scale)['head']['weight']
                  for trunks, scale in ((['trunk_0'], 1.), (['trunk_0'], .1)))
    np.testing.assert_allclose(small, one / 10, rtol=1e-5)
    np.testing.assert_allclose(
        self.init(['trunk_0', 'trunk_1'], .1)['head']['weight'], small,
        rtol=1e-5)

  def test_as_many_trunks_as_members(self):
    with self.assertRaises(ValueError):
      self.init(['trunk_0', 'trunk_1', 'trunk_0'])


class RunTest(absltest.TestCase):

  def test_validation_after_every_epoch(self):
    context = worlds.Context(worlds.untrained())
    result = run(context, validate=True)
    lines = context.lines('evaluation')
    self.assertEqual([line['step'] for line in lines], [0, 4, 8])
    self.assertEqual([line['epoch'] for line in lines], [0, 1, 2])
    # The last line again, from the parameters that the stage leaves.
    _, held, _ = labelled_pairs.load(
        context, 'pairs', 0, .25, held_out=4, num_pairs=None)
    scores = artifacts.restore_rewards(context.directory).scores(
        held.tokens, held.mask, standardize=False)
    gaps = np.float64(scores[..., 0] - scores[..., 1])
    loss, right = np.log1p(np.exp(-gaps)).mean(axis=1), (gaps > 0).mean(axis=1)
    for member in range(2):
      self.assertAlmostEqual(lines[-1][f'loss_{member}'], loss[member], 4)
      self.assertEqual(lines[-1][f'accuracy_{member}'], right[member])
    self.assertAlmostEqual(lines[-1]['loss'], loss.mean(), 4)
    self.assertEqual(lines[-1]['accuracy'], right.mean())
    self.assertEqual(result['accuracies'], right.tolist())
    np.testing.assert_allclose(
        files.load_arrays(context.directory / 'scale.npz')['std'],
        scores.std(axis=(1, 2)), rtol=1e-5)
    self.assertNotEqual(lines[0]['loss_0'], lines[-1]['loss_0'])

  def test_epochs_that_end_within_a_batch(self):
    """Thirteen pairs in batches of five, twice: five steps, and not four."""
    context = worlds.Context(worlds.untrained())
    run(context, num_pairs=13, validate=True)
    lines = context.lines('evaluation')
    self.assertEqual([line['step'] for line in lines], [0, 3, 5])
    np.testing.assert_allclose(
        [line['epoch'] for line in lines], [0, 15 / 13, 25 / 13], rtol=1e-5)

  def test_nothing_is_validated_unless_asked_for(self):
    context = worlds.Context(worlds.untrained())
    result = run(context, num_pairs=10, noise=.5)
    self.assertFalse((context.directory / 'evaluation.jsonl').exists())
    self.assertEqual(result['flipped'], .5)
    model = artifacts.read_model(context.directory, 'reward')
    self.assertEqual(model['num_members'], 2)
    self.assertEqual(context.lines('metrics')[-1]['step'], 4)  # of ten pairs

  def test_rows_are_packed_where_the_node_says_so(self):
    context = worlds.Context(worlds.untrained())
    for packing in (False, True):
      loop = worlds.loop_of(
          lambda packing=packing: run(context, packing=packing))
      self.assertIs(loop.packing, packing)


if __name__ == '__main__':
  absltest.main()
