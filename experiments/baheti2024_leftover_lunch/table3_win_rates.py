r"""Baheti et al. 2024, table 3: who wins against the logged responses.

Claim: A-LOL and its variants win and lose about as often as DPO in the judge's
eyes, and more often than the reference.

Run:      python -m rlhf_jax.main --workdir=runs/baheti_table3 \
            --config=experiments/baheti2024_leftover_lunch/table3_win_rates.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  as figure 2, whose policies these are. The judge is the gold reward
          model, asked in both orders, in place of GPT-4 and of people; any
          model behind an HTTP interface can be asked by --config.judge.judge.
          The opponent is the held-out text of the corpus, not the good
          response of a pair.
"""

from experiments import baheti2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = baheti2024.preferences(
      size, 'table 3: win rates against held-out text')
  # For a judge, 'reference' is the text of the corpus.
  baheti2024.add_reference(config, 'initial')
  for method in ('nll', 'dpo', 'a_lol', 'a_lol_sequence', 'a_lol_kl'):
    baheti2024.add(config, method)
  config.judge.update(
      against='reference', num_prompts=config.offline.evaluation.num_prompts)
  config.figure = dict(
      kind='table', columns=('win_rate', 'gold', 'proxy', 'words'),
      baseline=baheti2024.NLL)
  return base.finish(config, smoke=('initial', 'nll', 'a_lol'))
