"""Tests for rlhf_jax.studies.programs: what goes in is what comes out."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import programs as cases
import worlds

from rlhf_jax.models import transformer
from rlhf_jax.pipeline import reward_parts
from rlhf_jax.studies import programs

PROGRAMS = cases.Programs(transformer.make_config(
    'gpt_neox', vocab_size=32, hidden_size=16, num_layers=1, num_heads=2))


def outcome(program):
  return jax.eval_shape(program.function, *program.arguments)


def shapes(tree):
  return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


class ProgramsTest(parameterized.TestCase):

  @parameterized.parameters(
      name for name in cases.NAMES if name not in ('sampler', 'scorer'))
  def test_a_step_keeps_the_shapes_of_its_state(self, name):
    with worlds.devices(8):
      program = getattr(PROGRAMS, name)()
      state = outcome(program)
    if name != 'annotators':
      state = state[0]
    leaves, before = map(jax.tree.leaves, (state, program.arguments[0]))
    if name == 'annotators':
      self.assertGreater(len(leaves), len(before))
    else:
      self.assertEqual(shapes(leaves), shapes(before))

  def test_scores_of_every_member(self):
    with worlds.devices(8):
      self.assertEqual(outcome(PROGRAMS.scorer()).shape, (
          PROGRAMS.members, PROGRAMS.prompts * PROGRAMS.samples, 1))

  def test_samples_of_every_prompt(self):
    with worlds.devices(8):
      rows = outcome(PROGRAMS.sampler())
    self.assertEqual(rows.tokens.shape, (
        PROGRAMS.prompts, PROGRAMS.samples,
        PROGRAMS.prompt + PROGRAMS.new_tokens))

  @parameterized.parameters(
      dict(trainable_layers=0),
      dict(lora=dict(rank=2, alpha=4., targets='layers/(q|v)$')))
  def test_reward_models_on_a_base(self, **tuning):
    """Of which only the rest is trained."""
    vocab_size = worlds.corpus().tokenizer.vocab_size
    model = reward_parts.abstract(worlds.loaded_node(**tuning), vocab_size, 3)
    with worlds.devices(8):
      step = programs.reward_step(*model, members=3, pairs=8, length=12)
      state, _ = outcome(step)
      score = programs.scorer(*model, members=3, rows=8, length=12)
      self.assertEqual(outcome(score).shape, (3, 8, 1))
    self.assertEqual(shapes(dict(state.params)), shapes(model.trainable))
    self.assertNotIn('base', state.params)


if __name__ == '__main__':
  absltest.main()
