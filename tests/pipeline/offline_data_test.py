"""Tests for rlhf_jax.stages.offline_data, on a log written by hand."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from rlhf_jax import algorithms
from rlhf_jax import errors
from rlhf_jax import types
from rlhf_jax.annotators import arithmetic
from rlhf_jax.pipeline import offline_data

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
  return offline_data.make_row(algorithm, arguments, filtered=filtered)


def names(made):
  return [node['name'] for node in made.annotators]


def select(algorithm, use, **changes):
  return offline_data.select(row(algorithm), log(**changes), use, GROUPS)


def numbers(batch):
  return batch.tokens[..., 0].tolist()


class RowTest(parameterized.TestCase):

  def test_methods_of_the_papers(self):
    self.assertContainsSubset(
        {'sft', 'wbc', 'gold', 'r_lol', 'a_lol', 'a_lol_ref_free',
         'a_lol_sequence', 'a_lol_kl', 'pro', 'dpo', 'dpo_reference_free',
         'ilql', 'apa_offline', 'awr_offline'}, offline_data.names())
    for name in ('reward_model', 'plackett_luce', 'preference_lm', 'best_of_n',
                 'ppo', 'gold_model', 'choice'):
      self.assertNotIn(name, offline_data.names())

  def test_filter_is_that_of_a_lol(self):
    made = row('sft', filtered=True, sft=dict(aggregate='sequence'))
    self.assertEqual(names(made), list(offline_data.FILTER))
    self.assertEqual(made.objective, {'name': 'sft', 'aggregate': 'sequence'})
    self.assertTrue(offline_data.needs_values(made))
    self.assertFalse(offline_data.needs_values(row('sft')))
    self.assertEqual(names(row('r_lol', filtered=True)),
                     ['ref_logprobs', *offline_data.FILTER])
    # Those that filter already do it once.
    self.assertEqual(row('a_lol', filtered=True), row('a_lol'))

  def test_arguments_and_what_is_dropped(self):
    made = row('a_lol', keep_positive=dict(drop=True),
               alol=dict(clip_ratio=None))
    self.assertEqual(names(made)[-1], 'prompt_advantages')
    self.assertIsNone(made.objective['clip_ratio'])

  @parameterized.parameters(
      ('ppo', {}, False, "'ppo', which learns nothing from logged responses"),
      ('reward_model', {}, False, "algorithm is 'reward_model'"),
      ('a_lol', {'gae': {}}, False, "no node 'gae'"),
      ('a_lol', {'gae': {'drop': True}}, False, "no annotator 'gae'"),
      ('dpo', {}, True, 'filtered=True would leave none'),
      ('pro', {}, True, 'filtered=True would leave none'),
      ('ilql', {}, True, 'set filtered=False'))
  def test_what_does_not_fit(self, algorithm, arguments, filtered, message):
    with self.assertRaisesRegex(ValueError, message):
      offline_data.make_row(algorithm, arguments, filtered=filtered)

  @parameterized.parameters(*offline_data.names())
  def test_every_row_traces(self, name):
    offline_data.try_out(offline_data.make_row(name, {}), 'none')

  @parameterized.parameters(
      ('wbc', {}, 'scores', "priority is 'scores'"),
      ('wbc', {}, 'advantage', 'wBC has no advantages of prompts'),
      ('awr_offline', {}, 'advantage', 'has no advantages of prompts'),
      ('dpo', {}, 'reward', "set priority='none'"),
      ('a_lol', {'prompt_advantages': {'drop': True}}, 'none', 'advantages'),
      ('a_lol', {'prompt_values': {'drop': True}}, 'none', 'prompt_values'),
      ('a_lol', {'alol': {'clip': .9}}, 'none', 'clip'),
      ('a_lol', {'alol': {'clip_ratio': -1.}}, 'none', 'clip_ratio'),
      ('ilql', {'ilql': {'tau': 1.5}}, 'none', 'tau'))
  def test_mistakes_are_one_line(self, name, arguments, priority, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      offline_data.try_out(offline_data.make_row(name, arguments), priority)
    self.assertNotIn('\n', str(caught.exception))


class SelectTest(parameterized.TestCase):

  @parameterized.parameters(
      ('first', [0, 10, 20, 40]),
      ('all', [0, 1, 10, 20, 21, 31, 40, 41]),
      ('up', [0, 10, 20, 40]),
      ('down', [1, 21, 31, 41]))
  def test_responses(self, use, expected):
    found = select('a_lol', use)
    self.assertEqual(numbers(found), [[x] for x in expected])
    self.assertTrue(found.mask.any(axis=(1, 2)).all())
    np.testing.assert_array_equal(
        found.scores[:, 0], [x // 10 + x % 10 / 4 for x in expected])
    np.testing.assert_array_equal(
        found.prompt_values, log()['values'][[x // 10 for x in expected]])

  def test_group_is_not_the_place(self):
    found = select('wbc', 'up', group=np.where(PRESENT, [1, 0], -1))
    self.assertEqual(numbers(found), [[1], [21], [31], [41]])

  @parameterized.parameters(('dpo', 1), ('pro', 100))
  def test_comparisons_need_whole_examples(self, algorithm, unit):
    found = select(algorithm, 'first')
    self.assertEqual(numbers(found), [[0, 1], [20, 21], [40, 41]])
    np.testing.assert_array_equal(
        found.scores, unit * np.float32([[0, .25], [2, 2.25], [4, 4.25]]))

  def test_values_only_where_there_are_any(self):
    given = {k: x for k, x in log().items() if k != 'values'}
    found = offline_data.select(row('sft'), given, 'all', GROUPS)
    self.assertIsNone(found.prompt_values)

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

  def forward(self, tokens, mask):
    """Log-probabilities and values that tell rows and columns apart."""
    self.shapes.append(tokens.shape)
    values = tokens + np.arange(WIDTH) / 8
    return -values.astype(np.float32), np.where(
        mask, values, np.nan).astype(np.float32)

  def annotated(self, algorithm, use='all', filtered=False, **arguments):
    self.shapes = []
    made = row(algorithm, filtered, **arguments)
    return offline_data.annotated(made, offline_data.select(
        made, log(), use, GROUPS), self.forward)

  def test_positive_advantages_are_left(self):
    found = self.annotated('a_lol')
    scores = np.float32([.25, 2.25, 4., 4.25])
    values = np.float32([.1, 2.1, 3., 3.])
    # -.1, -.5 and 3.25 - 3.25, which is 0, are not.
    self.assertEqual(numbers(found), [[1], [21], [40], [41]])
    np.testing.assert_allclose(found.advantages[:, 0], scores - values)
    np.testing.assert_array_equal(found.scores[:, 0], scores)
    np.testing.assert_array_equal(
        found.ref_logprobs, -(found.tokens + np.arange(WIDTH) / 8))

  def test_filter_before_another_method(self):
    known, found = self.annotated('a_lol'), self.annotated('sft', filtered=True)
    np.testing.assert_array_equal(found.tokens, known.tokens)
    np.testing.assert_array_equal(found.mask, known.mask)
    self.assertLen(self.annotated('sft').tokens, 8)

  def test_chunks_change_nothing(self):
    known = self.annotated('apa_offline')
    self.assertEqual(self.shapes, [(8, 1, WIDTH)])
    with mock.patch.object(offline_data, 'CHUNK', 3):
      found = self.annotated('apa_offline')
    self.assertEqual(self.shapes, [(3, 1, WIDTH)] * 3)  # one program
    jax.tree.map(np.testing.assert_array_equal, found, known)

  @parameterized.parameters('apa_offline', 'awr_offline')
  def test_statistics_are_of_the_whole_data(self, algorithm):
    found = self.annotated(algorithm, gae=dict(gae_lambda=.5))
    raw = select(algorithm, 'all')
    scores = (raw.scores - raw.scores.mean()) / raw.scores.std(ddof=1)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5)
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
        found.advantages[mask], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        found.returns[mask], np.concatenate(returns), rtol=1e-5)
    # Padding, where there is no value, is not counted.
    self.assertTrue(np.isfinite(found.advantages[mask]).all())

  def test_none_is_left(self):
    made = row('a_lol')
    batch = offline_data.select(made, log(values=np.full(5, 5.)), 'all', GROUPS)
    self.shapes = []
    with self.assertRaisesRegex(
        errors.ConfigError, 'A-LOL is left without a response: none of 8 has a '
        'positive advantage') as caught:
      offline_data.annotated(made, batch, self.forward)
    self.assertNotIn('\n', str(caught.exception))

  def test_rows_that_read_no_parameters_run_none(self):
    for name in ('wbc', 'pro', 'ilql', 'sft'):
      found = self.annotated(name)
      self.assertEmpty(self.shapes)
      self.assertIsInstance(found, types.Batch)
    self.assertFalse(offline_data.is_ilql(row('wbc')))
    self.assertTrue(offline_data.is_ilql(row('ilql')))


class TableTest(absltest.TestCase):

  def test_no_row_reads_what_the_stage_does_not_know(self):
    known = {'scores', 'ref_logprobs', 'old_values', 'prompt_values'}
    for name in offline_data.names():
      self.assertContainsSubset(
          names(algorithms.ALGORITHMS[name]), known | arithmetic.ARITHMETIC.keys()
          | {'kl_rewards'}, name)


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
    found = self.select('dpo')
    self.assertEqual(numbers(found), [[10, 11], [21, 20]])
    np.testing.assert_array_equal(found.scores, np.array(numbers(found)) / 4)
    np.testing.assert_array_equal(found.prompt_values, [1, 2])
    self.assertEqual(found.mask.shape, (2, 2, WIDTH))
    self.assertTrue(found.mask.all())

  def test_first_is_the_first_chosen_one(self):
    self.assertEqual(numbers(self.select('wbc')), [[10], [21], [30]])
    self.assertLen(numbers(self.select('wbc', 'all')), 10)

  def test_rankings_keep_their_order(self):
    self.assertEqual(numbers(self.select('pro')), [[10, 11, 12], [20, 21, 22]])


if __name__ == '__main__':
  absltest.main()
