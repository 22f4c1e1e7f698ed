r"""Baheti et al. 2024, table 2, on rows that come with rewards: their HH files.

Claim: A-LOL and its variants have the highest reward but for DPO's; A-LOL seq
is the most diverse.

Run:      python -m rlhf_jax.main --workdir=runs/baheti_scored_hh \
            --config=experiments/baheti2024_leftover_lunch/table2_scored_hh.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  without a file, rows that `rlhf_jax.data.tasks` writes in its format.
          With --config.data.logged.path=<data/hh_test/helpful_base.json of the
          paper's repository>, and data.logged.max_prompt_length and
          max_response_length of 96 and 64, twice what written rows need, the
          real dialogues and the real scores of its reward model; what scores
          new responses then is a model from scratch that has learned those
          scores (its correlation is in stages.jsonl).
          The policy is from scratch, or --config.policy.model.path with
          --config.data.logged.tokenizer.
"""

from experiments import baheti2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = baheti2024.task(
      size, 'table 2, on rows that come with rewards: HH', 'hh_scored',
      target='reward', max_prompt_length=96 if size == 'full' else 48,
      max_response_length=64 if size == 'full' else 32)
  config.logs.hh_scored.components = dict(
      reward=dict(kind='file', column='reward', squash='sigmoid'))
  baheti2024.add_reference(config)
  for method in baheti2024.METHODS:
    baheti2024.add(config, method)
  config.figure = dict(
      kind='table', columns=('proxy', 'kl_k1', 'words', 'distinct_1',
                             'distinct_2', 'distinct_3', 'unfinished'),
      baseline=baheti2024.NLL)
  return base.finish(config, smoke=('nll', 'dpo'))
