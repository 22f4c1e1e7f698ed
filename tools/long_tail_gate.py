"""What values can predict in the world `long_tail`, and what PPO leaves of it.

  python tools/long_tail_gate.py --workdir=DIRECTORY --out=FILE.csv

The workdir is of these stages, and the file has a line for each of its seeds:

  python -m rlhf_jax.main --workdir=DIRECTORY --config=experiments/\
coste2024_reward_model_ensembles/fig4_ppo.py:laptop,world=long_tail \
    --config.seeds='(0, 1, 2)' --stages='*/sft,*/gold,*/pairs,*/trunk,\
*/noise_25/proxies,*/policies/single_0_noise_25_kl_001'
"""

import argparse
import pathlib
import sys

import numpy as np

if __name__ == '__main__':
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from rlhf_jax.storage import files

RUN = 'policies/single_0_noise_25_kl_001'
KL = 15.0  # nats


def of_seed(directory: pathlib.Path) -> dict[str, float]:
  """The numbers of one seed.

  Returns:
    'correlation' of the gold scores of two samples to one prompt, over
    'prompts': no value of a prompt alone has a higher R2 in expectation;
    'explained_variance' of PPO's values, mean and largest over rollouts; and
    'distinct_2_kept', its share at a KL of 15 nats, along the furthest that
    the run has come.

  Raises:
    UserError: a file is missing or damaged.
  """
  gold = files.load_arrays(directory / 'pairs/pairs.npz')['gold_scores']
  lines = files.read_jsonl(directory / RUN / 'evaluation.jsonl')
  kl, distinct = (np.array([line[name] for line in lines])
                  for name in ('kl_k1', 'distinct_2'))
  explained = np.array([
      line['rollout/explained_variance'] for line in files.read_jsonl(
          directory / RUN / 'metrics.jsonl')])
  return {
      'prompts': len(gold), 'correlation': np.corrcoef(*gold.T)[0, 1],
      'explained_variance': explained.mean(),
      'explained_variance_most': explained.max(),
      'distinct_2_kept': np.interp(
          KL, np.maximum.accumulate(kl), distinct / distinct[0])}


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  options = parser.parse_args()
  rows = [{'seed': path.name.removeprefix('seed_')} | {
      name: f'{x:.4g}' for name, x in of_seed(path).items()}
          for path in sorted(options.workdir.glob('seed_*'))]
  files.write_csv(options.out, rows)
  print(options.out)


if __name__ == '__main__':
  main()
