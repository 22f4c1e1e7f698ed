"""Tests for rlhf_jax.stages.feedback: samples that a judge has labelled."""

import json

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import worlds

from rlhf_jax import errors
from rlhf_jax.evaluation import texts as texts_lib
from rlhf_jax.pipeline import artifacts
from rlhf_jax.stages import feedback
from rlhf_jax.stages import pairs
from rlhf_jax.storage import files
from rlhf_jax.studies import plan

JUDGES = '''
calls = []


def longer(prompt, a, b):
  calls.append((prompt, a, b))
  return 'tie' if len(a) == len(b) else 'A' if len(a) > len(b) else 'B'


def first(prompt, a, b):
  return 'A'


def silly(prompt, a, b):
  return 'yes'


def broken(prompt, a, b):
  raise KeyError('a')
'''


def run(workdir, function='longer', **changes):
  """The arrays and the result of the stage, on an untrained world."""
  context = worlds.Context(workdir)
  result = feedback.run(context, **dict(
      seed=0, data=worlds.DATA, force_eos=False, sampler={'temperature': 1.},
      upstream=dict(reference='sft'),
      judge=dict(kind='function', function=f'judges:{function}')) | changes)
  return files.load_arrays(context.directory / 'pairs.npz'), result, context


class StageTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    directory = worlds.folder()
    (directory / 'judges.py').write_text(JUDGES)
    worlds.importable(self, directory)
    self.workdir = worlds.folder()
    worlds.copy(worlds.untrained(), self.workdir)

  def test_labels_are_the_judges(self):
    arrays, result, context = run(self.workdir)
    coder = artifacts.read_tokenizer(self.workdir / 'sft')
    texts = texts_lib.decode(coder, arrays['tokens'], arrays['mask'])[1]
    lengths = np.array([len(text) for text in texts]).reshape(-1, 2)
    self.assertTrue((lengths[:, 0] != lengths[:, 1]).all())
    np.testing.assert_array_equal(
        arrays['gold_scores'],
        np.stack([lengths[:, 0] > lengths[:, 1],
                  lengths[:, 1] > lengths[:, 0]], axis=1))
    asked = worlds.corpus().pair_prompts.tokens
    self.assertEqual(result['pairs'], len(lengths))
    self.assertAlmostEqual(result['undecided'], 1 - len(lengths) / len(asked))
    self.assertAlmostEqual(result['first_preferred'],
                           (lengths[:, 0] > lengths[:, 1]).mean())
    answers = files.read_jsonl(context.directory / 'answers.jsonl')
    self.assertLen({row['question'] for row in answers}, len(answers))

  def test_they_are_samples_of_the_policy(self):
    """Of a stream of their own, as those of the stage `pairs` are of another.
    """
    arrays, _, _ = run(self.workdir)
    again, _, _ = run(self.workdir)
    np.testing.assert_array_equal(arrays['tokens'], again['tokens'])
    context = worlds.Context(self.workdir)
    pairs.run(context, seed=0, data=worlds.DATA, force_eos=False, sampler={},
              upstream=dict(reference='sft', gold='gold'))
    others = files.load_arrays(context.directory / 'pairs.npz')['tokens']
    self.assertFalse(all((row == others).all(axis=(1, 2)).any()
                         for row in arrays['tokens']))

  def test_endings_that_are_forced(self):
    arrays, _, _ = run(self.workdir, force_eos=True)
    coder = artifacts.read_tokenizer(self.workdir / 'sft')
    self.assertTrue(coder.finished(arrays['tokens'], arrays['mask']).all())
    arrays, _, _ = run(self.workdir)
    self.assertFalse(coder.finished(arrays['tokens'], arrays['mask']).all())

  def test_what_was_answered_is_not_asked_again(self):
    import judges
    _, _, context = run(self.workdir)
    judges.calls.clear()
    feedback.run(context, seed=0, data=worlds.DATA, force_eos=False,
                 sampler={'temperature': 1.}, upstream=dict(reference='sft'),
                 judge=dict(kind='function', function='judges:longer'))
    self.assertEmpty(judges.calls)

  def test_a_judge_that_goes_by_the_order(self):
    with self.assertRaisesRegex(errors.RewardError, 'decides on 0 of 8 pairs'):
      run(self.workdir, 'first')

  @parameterized.parameters(
      ('silly', "must answer one of A, B, tie, neither, got 'yes'"),
      ('broken', 'judges:broken raised KeyError'))
  def test_a_judge_that_fails(self, name, message):
    with self.assertRaisesRegex(errors.RewardError, message):
      run(self.workdir, name)


class PlanTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    directory = worlds.folder()
    (directory / 'judges.py').write_text(JUDGES)
    worlds.importable(self, directory)

  def study(self, config, **changes):
    one = worlds.get_config(config, 'smoke') | dict(
        pairs='judge', feedback=dict(kind='function',
                                     function='judges:longer'))
    return one | changes

  def names(self, study):
    return {stage.name.removeprefix('seed_0/'): stage
            for stage in plan.plan(study)}

  def test_reward_models_and_logs_learn_from_it(self):
    """And where no figure asks for a gold score, there is no gold model."""
    one = self.study(f'{worlds.COSTE}/fig15_validation_loss.py')
    stages = self.names(one)
    self.assertIn('feedback', stages)
    self.assertEmpty({*stages} & {'gold', 'pairs'})
    proxies = next(stage for name, stage in stages.items()
                   if name.endswith('proxies'))
    self.assertEqual(proxies.run.keywords['upstream']['pairs'],
                     'seed_0/feedback')
    self.assertIn('function judges', plan.inputs(one, stages.values()))

  def test_mistakes(self):
    config = f'{worlds.COSTE}/fig15_validation_loss.py'
    for changes, message in (
        (dict(feedback={}), r'config\.feedback: the judge has kind None'),
        (dict(feedback=dict(kind='gold')), "that is config.pairs='samples'"),
        (dict(feedback=dict(kind='function', function='judges:none')),
         r"config\.feedback: the judge: function 'judges:none' cannot"),
        (dict(pairs='judges'), r"config\.pairs is 'judges'; there are")):
      with self.assertRaisesRegex(errors.ConfigError, message):
        self.names(self.study(config, **changes))
    for config in (worlds.FIGURE_3, 'experiments/rlhf_notes/iterated.py'):
      with self.assertRaisesRegex(errors.ConfigError, r'config\.pairs is .judge'
                                  "'; the study .* labels samples by its gold"):
        self.names(self.study(config))


class FileTest(absltest.TestCase):

  def test_answers_say_whose_they_are(self):
    directory = worlds.folder()
    (directory / 'judges.py').write_text(JUDGES)
    worlds.importable(self, directory)
    workdir = worlds.folder()
    worlds.copy(worlds.untrained(), workdir)
    _, _, context = run(workdir)
    row = json.loads((context.directory / 'answers.jsonl').read_text()
                     .splitlines()[0])
    self.assertEqual((row['run'], row['seed'], row['swapped']),
                     ('feedback', 0, 0))


if __name__ == '__main__':
  absltest.main()
