"""Tests for rlhf_jax.algorithms: the rows are sound and the docs have them."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import contracts
import jax.numpy as jnp

from rlhf_jax import algorithms
from rlhf_jax import objectives
from rlhf_jax import types
from rlhf_jax.annotators import chain as chain_lib
from rlhf_jax.annotators import running

PAGE = pathlib.Path(__file__).parents[1] / 'docs/guide/algorithms.md'
ROWS = algorithms.ALGORITHMS
UNITS = {'token': 3, 'sequence': 2, 'pair': 1, 'prompt': 1}


# What an annotator fills, and so is missing until it has run.
FILLED = {'scores': 'scores', 'ref_logprobs': 'ref_logprobs',
          'old_values': 'old_values', 'prompt_values': 'prompt_values',
          'reference_point': 'reference_points', 'nucleus': 'old_logprobs'}


def _bare(batch, row):
  """The batch as a source gives it: no field that an annotator fills."""
  fields = {*FILLED.values(), 'rewards', 'advantages', 'returns', 'targets'}
  if all(node['name'] != 'nucleus' for node in row.annotators):
    fields.remove('old_logprobs')  # of the sampler
  if row.source == 'logged':
    fields.remove('scores')
  if row.source in ('choices', 'targets', 'unpaired'):
    fields.remove('targets')
  return batch.replace(**dict.fromkeys(fields))


def _models(example):
  """Model annotators, which fill their field and no other."""
  def fill(field):
    return lambda batch, state, frozen, **kwargs: batch.replace(
        **{field: getattr(example, field)})
  return {name: fill(field) for name, field in FILLED.items()}


def _annotated(nodes, example, row):
  """The batch of a row's source after these annotators."""
  state = types.TrainState(step=0, params=None, opt_state=None, key=None,
                           statistics=running.init(row.annotators))
  chain = chain_lib.chain(nodes, _models(example))
  return chain(_bare(example, row), state, None)[0]


class AlgorithmsTest(parameterized.TestCase):

  def test_readme_has_the_table(self):
    self.assertTrue(f'\n{algorithms.table()}\n' in PAGE.read_text(),
                    'put what rlhf_jax.algorithms.table() prints there')

  def test_objectives_are_known(self):
    used = {row.objective['name'] for row in ROWS.values() if row.objective}
    self.assertLessEqual(used, set(contracts.CONTRACTS))
    self.assertGreaterEqual(len(used), 13)  # those of the five papers

  @parameterized.named_parameters(*((name, name) for name in ROWS))
  def test_annotators_feed_the_objective(self, name):
    """The chain runs, and the loss has the unit that the row names."""
    row = ROWS[name]
    if row.objective is None:
      self.assertEqual(name, 'best_of_n')
      return
    out, example = contracts.example(row.objective['name'])
    loss = row.bind()(out, _annotated(row.annotators, example, row))
    self.assertEqual(loss.loss.ndim, UNITS[row.unit])
    self.assertGreater(loss.weight.sum(), 0)
    self.assertTrue(bool(jnp.all(jnp.isfinite(loss.loss))))

  @parameterized.named_parameters(*((name, name) for name in ROWS))
  def test_no_annotator_is_idle(self, name):
    """Without any one of them the loss is another, or an error."""
    row = ROWS[name]
    if row.objective is None:
      return
    out, example = contracts.example(row.objective['name'])

    def loss(nodes):
      actual = row.bind()(out, _annotated(nodes, example, row))
      return actual.loss, actual.weight

    whole = loss(row.annotators)
    for i in range(len(row.annotators)):
      rest = row.annotators[:i] + row.annotators[i + 1:]
      try:
        part = loss(rest)
      except ValueError:
        continue
      same = all(bool(jnp.all(x == y)) for x, y in zip(whole, part))
      self.assertFalse(same, row.annotators[i]['name'])

  def test_replace(self):
    row = ROWS['ppo'].replace(gae={'gae_lambda': .5}, ppo={'clip_ratio': .1})
    self.assertIn({'name': 'gae', 'gae_lambda': .5}, row.annotators)
    self.assertEqual(row.objective, {'name': 'ppo', 'clip_ratio': .1})
    self.assertEqual(row.bind().keywords, {'clip_ratio': .1})
    self.assertNotEqual(row, ROWS['ppo'])  # which is as it was
    self.assertEqual(ROWS['best_of_n'].replace(scores={}), ROWS['best_of_n'])
    with self.assertRaisesRegex(ValueError, "PPO has no node 'dpo'.*gae"):
      ROWS['ppo'].replace(dpo={'beta': 1.})
    with self.assertRaisesRegex(ValueError, "name.*'apa'"):
      ROWS['ppo'].replace(ppo={'name': 'apa'})

  def test_binds(self):
    self.assertEqual(ROWS['dpo'].bind().func, objectives.get('dpo').func)
    with self.assertRaisesRegex(ValueError, 'best-of-n.*trains nothing'):
      ROWS['best_of_n'].bind()

  def test_rows_cannot_be_changed(self):
    with self.assertRaisesRegex(ValueError, 'immutable'):
      ROWS['grpo'].annotators[0]['kind'] = 'worst_case'

  def test_equal_rows_are_one_key(self):
    """So that a cache of compiled programs finds them."""
    adapt = lambda high: ROWS['dapo'].adapt(
        {'reinforce': {'clip_ratio': [.2, high]}})  # a list, as JSON has it
    self.assertEqual(adapt(.3), adapt(.3))
    self.assertEqual(hash(adapt(.3)), hash(adapt(.3)))
    self.assertNotEqual(adapt(.3), adapt(.4))
    self.assertEqual(adapt(.28), ROWS['dapo'])

  def test_adapt(self):
    row = ROWS['ppo'].adapt({'gae': {'gae_lambda': .5},
                             'whiten': {'drop': True}})
    nodes = {node['name']: node for node in row.annotators}
    self.assertNotIn('whiten', nodes)
    self.assertEqual(nodes['gae']['gae_lambda'], .5)
    self.assertEqual(row.objective, ROWS['ppo'].objective)
    for arguments, message in (
        ({'gae': .5}, "arguments.gae is 0.5; give arguments by name"),
        ({'gae': {'drop': True, 'gae_lambda': 1.}}, 'nothing else'),
        ({'gae': {'drop': False}}, 'nothing else'),
        ({'dpo': {'beta': 1.}}, "PPO has no node 'dpo'"),
        ({'keep_best': {'drop': True}}, "PPO has no annotator 'keep_best'")):
      with self.assertRaisesRegex(ValueError, message):
        ROWS['ppo'].adapt(arguments)

  def test_samples(self):
    takes = lambda name: [k for k in range(1, 6) if ROWS[name].takes(k)]
    for name, counts in (('ppo', [1]), ('dpo', [2]), ('choice', [4]),
                         ('raft', [1, 2, 3, 4, 5]), ('rloo', [2, 3, 4, 5])):
      self.assertEqual(takes(name), counts)


if __name__ == '__main__':
  absltest.main()
