"""Tests for rlhf_jax.testing: a sound loss passes, each fault has its law."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

from rlhf_jax import testing
from rlhf_jax import types
from rlhf_jax.objectives import dpo
from rlhf_jax.ops import masked


def mine(out, batch, *, fault=''):
  """The log-likelihood of every response, weighted by its score."""
  mask, scores = batch.mask, batch.scores.astype(jnp.float32)
  logprobs = out.logprobs.astype(jnp.float32)
  if fault != 'attached':
    scores = jax.lax.stop_gradient(scores)
  present = mask.any(axis=-1)
  if fault == 'statistic':
    scores = scores - masked.masked_mean(scores, present)
  total = (jnp.sum(logprobs * mask, axis=-1) if fault == 'padding'
           else masked.masked_sum(logprobs, mask, axis=-1))
  total *= {'width': 1 / mask.shape[-1], 'constant': 0}.get(fault, 1)
  return types.LossOutput(
      loss=jnp.where(present, -total * scores, 0),
      weight=(jnp.ones_like(total) if fault == 'empty'
              else present.astype(jnp.float32)),
      metrics={'total': total[:, 0] if fault == 'shape' else
               total.astype(jnp.bfloat16) if fault == 'dtype' else total})


class CheckTest(parameterized.TestCase):

  def test_sound(self):
    testing.check_objective(mine)
    testing.check_objective(functools.partial(dpo.objective, beta=.1))

  @parameterized.parameters(
      ('dtype', 'units'), ('shape', 'units'), ('padding', 'padding'),
      ('width', 'width'), ('constant', 'gradient'), ('empty', 'empty'),
      ('statistic', 'prompts'), ('attached', 'detached'))
  def test_a_fault_is_named_by_its_law(self, fault, law):
    with self.assertRaisesRegex(AssertionError, rf'\({law}\): '):
      testing.check_objective(functools.partial(mine, fault=fault))

  @parameterized.parameters(
      (lambda loss: loss.loss, r'LossOutput, unreduced, got an array \(8, 2\)'),
      (lambda loss: loss.loss.mean(), r'got an array \(\)'),
      (lambda loss: jax.tree.map(jnp.mean, loss), 'are not reduced'),
      (lambda loss: None, 'got NoneType'))
  def test_what_is_no_loss_of_units(self, change, message):
    with self.assertRaisesRegex(AssertionError, rf'\(units\): .*{message}'):
      testing.check_objective(lambda *args: change(mine(*args)))

  def test_number_of_responses(self):
    with self.assertRaises(AssertionError):
      testing.check_objective(
          functools.partial(dpo.objective, beta=.1), responses=3)
    testing.check_objective(mine, responses=3)


if __name__ == '__main__':
  absltest.main()
