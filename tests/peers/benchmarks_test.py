"""The steps that benchmarks compare with TRL's are the same steps."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest

pytest.importorskip('torch', reason='benchmarks against torch, see [peers]')
trl = pytest.importorskip('trl', reason='benchmarks against TRL, see [peers]')

from benchmarks import libraries  # noqa: E402 - after the skips
from rlhf_jax import train  # noqa: E402


class StepsTest(parameterized.TestCase):

  @parameterized.parameters(
      ('SFT', libraries.sft, 32), ('DPO', libraries.dpo, 64),
      ('Reward', libraries.reward_model, 64))
  def test_losses(self, name, make, tokens):
    """Before each of three updates, and so the updates too."""
    ours, theirs = [], []
    make_step = train.make_train_step

    def recorded(*args):
      step = make_step(*args)

      def run(state, batch):
        state, metrics = step(state, batch)
        jax.debug.callback(
            lambda x: ours.append(float(x)), metrics['train/loss'])
        return state, metrics

      return run

    trainer = getattr(trl, f'{name}Trainer')
    compute = trainer.compute_loss

    def computed(self, *args, **kwargs):
      loss = compute(self, *args, **kwargs)
      theirs.append(loss.item())
      return loss

    with mock.patch.object(train, 'make_train_step', recorded), (
        mock.patch.object(trainer, 'compute_loss', computed)):
      case = make(True)
      for _ in range(3):
        self.assertEqual((case.ours(), case.peer()), (tokens, tokens))
    jax.effects_barrier()
    self.assertLen(ours, 3)
    self.assertGreater(ours[0] - ours[2], 1e-3)  # it learns
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)

  def test_ragged_rows_count_tokens_alone(self):
    """Both draw rows that end, of at most 8 tokens each."""
    case = libraries.generate(True, samples=64, ragged=True)
    for count in (case.ours(), case.peer()):
      self.assertBetween(count, 350, 500)  # 64 times 7.2: one of 32 ends a row
    case = libraries.generate(True, batch=2)
    self.assertEqual(case.peer(), 16)
    self.assertBetween(case.ours(), 8, 16)


if __name__ == '__main__':
  absltest.main()
