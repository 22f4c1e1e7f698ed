"""Tests for rlhf_jax.pipeline.offline_data, on a log written by hand."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from rlhf_jax import errors
from rlhf_jax import types
from rlhf_jax.pipeline import offline_data
from rlhf_jax.pipeline import offline_methods

GROUPS = ['up', 'down']
# Of five examples, the second has lost its second response, the fourth its
# first.
PRESENT = np.array([[1, 1], [1, 0], [1, 1], [0, 1], [1, 1]], bool)
WIDTH = 6


def log(**changes):
  """Token 10 i + k all over response k of example i; its score is i + k / 4."""
  number = 10 * np.arange(5)[:, None] + np.arange(2)
  mask = np.zeros((5, 2, WIDTH), bool)
  mask[..., 2:5] = True
  mask[4, 1, 4] = False  # one is shorter
  scores = (number // 10 + number % 10 / 4).astype(np.float32)
  return dict(
      tokens=np.repeat(number[..., None], WIDTH, axis=-1).astype(np.int32),
      mask=mask & PRESENT[..., None], scores=np.where(PRESENT, scores, 0),
      raw_scores=np.where(PRESENT, 100 * scores, 0),
      group=np.where(PRESENT, [0, 1], -1),
      values=np.float32([.1, 1.5, 2.1, 3.25, 3.])) | changes


def row(algorithm, filtered=False, **arguments):
  return offline_methods.make_row(dict(
      algorithm=algorithm, arguments=arguments, filtered=filtered))


def select(algorithm, use, **changes):
  return offline_data.select(row(algorithm), log(**changes), use, GROUPS)


def numbers(batch):
  return batch.tokens[..., 0].tolist()


class SelectTest(parameterized.TestCase):

  @parameterized.parameters(
      ('first', [0, 10, 20, 40]),
      ('all', [0, 1, 10, 20, 21, 31, 40, 41]),
      ('up', [0, 10, 20, 40]),
      ('down', [1, 21, 31, 41]))
  def test_responses(self, use, expected):
    batch = select('a_lol', use)
    self.assertEqual(numbers(batch), [[x] for x in expected])
    self.assertTrue(batch.mask.any(axis=(1, 2)).all())
    np.testing.assert_array_equal(
        batch.scores[:, 0], [x // 10 + x % 10 / 4 for x in expected])
    np.testing.assert_array_equal(
        batch.prompt_values, log()['values'][[x // 10 for x in expected]])

  def test_group_is_not_the_place(self):
    batch = select('wbc', 'up', group=np.where(PRESENT, [1, 0], -1))
    self.assertEqual(numbers(batch), [[1], [21], [31], [41]])

  @parameterized.parameters(('dpo', 1), ('pro', 100))
  def test_comparisons_need_whole_examples(self, algorithm, unit):
    batch = select(algorithm, 'first')
    self.assertEqual(numbers(batch), [[0, 1], [20, 21], [40, 41]])
    np.testing.assert_array_equal(
        batch.scores, unit * np.float32([[0, .25], [2, 2.25], [4, 4.25]]))

  def test_values_only_where_there_are_any(self):
    without = {k: x for k, x in log().items() if k != 'values'}
    batch = offline_data.select(row('sft'), without, 'all', GROUPS)
    self.assertIsNone(batch.prompt_values)

  def test_nothing_to_learn_from(self):
    three = {k: np.repeat(log()[k], [1, 2], axis=1) for k in (
        'tokens', 'mask', 'scores', 'raw_scores', 'group')}
    one = {k: log()[k][:, :1] for k in three}
    for name, use, changes, message in (
        ('wbc', 'best', {}, "use is 'best'; there are first, all, up, down"),
        ('dpo', 'all', three, 'the log has 3 of each'),
        ('pro', 'all', one, 'the log has 1 of each'),
        ('wbc', 'up', dict(group=np.ones((5, 2), int)), "use='up' finds no")):
      with self.assertRaisesRegex(errors.ConfigError, message) as caught:
        select(name, use, **changes)
      self.assertNotIn('\n', str(caught.exception))
    self.assertLen(numbers(select('pro', 'all', **three)), 3)


class AnnotatedTest(parameterized.TestCase):

  def annotated(self, algorithm, filtered=False, values=None, **arguments):
    """The data set; `calls` says how often the initial policy was run."""
    self.calls = 0
    method = row(algorithm, filtered, **arguments)
    batch = offline_data.select(
        method, log() if values is None else log(values=values), 'all', GROUPS)

    def forward():
      """Log-probabilities and values that tell rows and columns apart."""
      self.calls += 1
      values = batch.tokens + np.arange(WIDTH) / 8
      return -values.astype(np.float32), np.where(
          batch.mask, values, np.nan).astype(np.float32)

    return offline_data.annotated(method, batch, forward)

  def test_positive_advantages_are_left(self):
    batch = self.annotated('a_lol')
    scores = np.float32([.25, 2.25, 4., 4.25])
    values = np.float32([.1, 2.1, 3., 3.])
    # -.1, -.5 and 3.25 - 3.25, which is 0, are not.
    self.assertEqual(numbers(batch), [[1], [21], [40], [41]])
    np.testing.assert_allclose(batch.advantages[:, 0], scores - values)
    np.testing.assert_array_equal(batch.scores[:, 0], scores)
    np.testing.assert_array_equal(
        batch.ref_logprobs, -(batch.tokens + np.arange(WIDTH) / 8))

  def test_filter_before_another_method(self):
    own, other = self.annotated('a_lol'), self.annotated('sft', filtered=True)
    np.testing.assert_array_equal(other.tokens, own.tokens)
    np.testing.assert_array_equal(other.mask, own.mask)
    self.assertLen(self.annotated('sft').tokens, 8)

  def test_initial_policy_is_run_once(self):
    self.annotated('apa_offline')  # reads its log-probabilities and values
    self.assertEqual(self.calls, 1)
    for name in ('wbc', 'pro', 'ilql', 'sft'):  # read neither
      self.assertIsInstance(self.annotated(name), types.Batch)
      self.assertEqual(self.calls, 0)

  @parameterized.parameters('apa_offline', 'awr_offline')
  def test_statistics_are_of_the_whole_data(self, algorithm):
    batch = self.annotated(algorithm, gae=dict(gae_lambda=.5))
    raw = select(algorithm, 'all')
    scores = (raw.scores - raw.scores.mean()) / raw.scores.std(ddof=1)
    np.testing.assert_allclose(batch.scores, scores, rtol=1e-5)
    advantages, returns = [], []
    for tokens, mask, score in zip(raw.tokens[:, 0], raw.mask[:, 0], scores):
      at = np.flatnonzero(mask)
      values = tokens[0] + at / 8
      after = 0.
      ahead = [0.] * len(at)
      for t in reversed(range(len(at))):
        last = t == len(at) - 1
        delta = (score[0] if last else values[t + 1]) - values[t]
        after = ahead[t] = delta + .5 * after
      advantages.append(ahead)
      returns.append(np.array(ahead) + values)
    flat = np.concatenate(advantages)
    expected = (flat - flat.mean()) / flat.std()
    mask = raw.mask
    np.testing.assert_allclose(
        batch.advantages[mask], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        batch.returns[mask], np.concatenate(returns), rtol=1e-5)
    # Padding, where there is no value, is not counted.
    self.assertTrue(np.isfinite(batch.advantages[mask]).all())

  def test_none_is_left(self):
    with self.assertRaisesRegex(
        errors.ConfigError, 'A-LOL is left without a response: none of 8 has a '
        'positive advantage') as caught:
      self.annotated('a_lol', values=np.full(5, 5.))
    self.assertNotIn('\n', str(caught.exception))


class SourceTest(parameterized.TestCase):

  def dataset(self, **fields):
    count = 20
    weights = np.random.default_rng(1).uniform(.1, 2, (2, count, 1))
    tokens = np.repeat(np.arange(count)[:, None, None], WIDTH, axis=-1)
    return types.Batch(tokens=tokens, mask=tokens >= 0, **dict(
        zip(('advantages', 'scores'), weights)) | fields)

  @parameterized.parameters(('advantage', 'advantages'), ('reward', 'scores'))
  def test_draws_follow_the_priority(self, priority, field):
    dataset = self.dataset()
    source = offline_data.source(dataset, priority, batch_size=50, seed=3)
    rows = np.concatenate([source(step, None, None).tokens[:, 0, 0]
                           for step in range(80)])
    weights = getattr(dataset, field)[:, 0]
    counts = np.bincount(rows, minlength=len(weights))
    expected = weights / weights.sum() * len(rows)
    degrees = len(weights) - 1  # twice as much has a chance of 1e-2 or less
    self.assertLess(np.sum((counts - expected)**2 / expected), 2 * degrees)
    even = len(rows) / len(weights)
    self.assertGreater(np.sum((counts - even)**2 / even), 10 * degrees)

  def test_a_negative_advantage_is_never_drawn(self):
    advantages = np.ones((20, 1))
    advantages[::2] = -1
    source = offline_data.source(self.dataset(advantages=advantages),
                                 'advantage', batch_size=500, seed=3)
    self.assertEqual(
        {*source(0, None, None).tokens[:, 0, 0].tolist()}, {*range(1, 20, 2)})

  def test_without_priority_each_comes_once_in_an_epoch(self):
    source = offline_data.source(self.dataset(), 'none', batch_size=10, seed=3)
    epochs = [[source(step, None, None).tokens[:, 0, 0].tolist()
               for step in steps] for steps in ((0, 1), (2, 3))]
    for epoch in epochs:
      self.assertCountEqual(np.concatenate(epoch), range(20))
    self.assertNotEqual(*epochs)

  def test_nothing_to_draw(self):
    with self.assertRaisesRegex(
        errors.ConfigError, "priority is 'reward', and none of 20") as caught:
      offline_data.source(self.dataset(scores=-np.ones((20, 1))), 'reward',
                          batch_size=2, seed=3)
    self.assertNotIn('\n', str(caught.exception))


class SidesTest(absltest.TestCase):
  """Of four examples, the first has lost its chosen response."""

  def select(self, algorithm, use='first'):
    # As a log packs them: chosen 0, rejected 1; -1 is missing.
    group = np.array([[1, 1, -1], [0, 1, 0], [1, 0, 1], [0, 0, -1]])
    number = 10 * np.arange(4)[:, None] + np.arange(3)
    return offline_data.select(row(algorithm), dict(
        tokens=np.repeat(number[..., None], WIDTH, axis=-1),
        mask=np.repeat((group >= 0)[..., None], WIDTH, axis=-1),
        scores=number / 4, raw_scores=number / 8, group=group,
        values=np.arange(4.)), use, ['chosen', 'rejected'])

  def test_preferences_are_a_chosen_and_a_rejected_one(self):
    batch = self.select('dpo')
    self.assertEqual(numbers(batch), [[10, 11], [21, 20]])
    np.testing.assert_array_equal(batch.scores, np.array(numbers(batch)) / 4)
    np.testing.assert_array_equal(batch.prompt_values, [1, 2])
    self.assertEqual(batch.mask.shape, (2, 2, WIDTH))
    self.assertTrue(batch.mask.all())

  def test_first_is_the_first_chosen_one(self):
    self.assertEqual(numbers(self.select('wbc')), [[10], [21], [30]])
    self.assertLen(numbers(self.select('wbc', 'all')), 10)

  def test_rankings_keep_their_order(self):
    self.assertEqual(numbers(self.select('pro')), [[10, 11, 12], [20, 21, 22]])


if __name__ == '__main__':
  absltest.main()
