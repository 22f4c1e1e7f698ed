"""Tests for tools/long_tail_gate.py."""

import json
import sys
from unittest import mock

from absl.testing import absltest
import numpy as np
import worlds

from rlhf_jax.storage import files
from tools import long_tail_gate


def lines(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


class GateTest(absltest.TestCase):

  def test_of_a_seed(self):
    folder = worlds.folder()
    seed = folder / 'seed_3'
    (seed / 'pairs').mkdir(parents=True)
    gold = np.array([[0., 1.], [1., 3.], [2., 2.]])
    files.save_arrays(seed / 'pairs/pairs.npz', gold_scores=gold)
    run = seed / long_tail_gate.RUN
    # The KL goes back once; at 15 nats, halfway from 12 to 18, .4 are left.
    lines(run / 'evaluation.jsonl', [
        dict(kl_k1=kl, distinct_2=distinct) for kl, distinct in (
            (0, .8), (12, .4), (11, .4), (18, .24))])
    lines(run / 'metrics.jsonl', [
        {'rollout/explained_variance': x} for x in (.1, .3)])
    out = folder / 'gate.csv'
    with mock.patch.object(sys, 'argv', [
        'gate', f'--workdir={folder}', f'--out={out}']):
      long_tail_gate.main()
    row, = files.read_csv(out)
    # Deviations -1, 0, 1 and -1, 1, 0: 1 over the root of 2 times 2.
    self.assertEqual(row, dict(
        seed='3', prompts='3', correlation='0.5', explained_variance='0.2',
        explained_variance_most='0.3', distinct_2_kept='0.4'))


if __name__ == '__main__':
  absltest.main()
