"""4-bit weights against bitsandbytes, on the CPU."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='parity with torch, see [peers]')
functional = pytest.importorskip(
    'bitsandbytes.functional', reason='parity with bitsandbytes, see [peers]')

from rlhf_jax.models import quantize  # noqa: E402 - or nothing needs jax


class BitsAndBytesTest(parameterized.TestCase):

  def test_values(self):
    np.testing.assert_array_equal(
        quantize.NF4,
        functional.get_4bit_type('nf4', device='cpu').numpy())
    np.testing.assert_allclose(
        quantize.DYNAMIC, functional.create_dynamic_map().numpy(), rtol=2e-7)

  @parameterized.parameters(
      (256, 512), (512, 1000), (64, 7), (48, 50), (5, 7))
  def test_codes(self, rows, columns):
    weight = np.random.default_rng(0).normal(size=(rows, columns)).astype('f')
    codes, state = functional.quantize_4bit(
        torch.tensor(weight.T.copy()), blocksize=64, quant_type='nf4',
        compress_statistics=True)
    mine = quantize.nf4(weight)
    np.testing.assert_array_equal(  # ours fill up the last block
        np.asarray(mine.codes)[:codes.numel()], codes.numpy().ravel())
    np.testing.assert_allclose(mine.offset, state.offset.numpy(), rtol=1e-6)
    np.testing.assert_allclose(
        mine.scale, state.state2.absmax.numpy(), rtol=1e-6)
    # Their kernel for the CPU looks values up in a table that is a little too
    # coarse, and so takes a neighbour where two are about as near.
    gap = np.abs(np.asarray(mine.absmax, int)
                 - state.absmax.numpy().ravel().astype(int))
    if gap.size > 1:  # of one block nothing is left to quantise
      self.assertLessEqual(gap.max(), 1)
      self.assertLess(gap.mean(), 1e-2)
    if rows % 64:
      return  # theirs are wrong: a block must not go on in the next row
    state.absmax = torch.tensor(np.array(mine.absmax))
    np.testing.assert_allclose(
        quantize.dense(mine),
        functional.dequantize_4bit(codes, state).numpy().T, atol=1e-6)


if __name__ == '__main__':
  absltest.main()
