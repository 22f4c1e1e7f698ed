r"""Ahmadian et al. 2024, table 1: win rates against the original completions.

Claim: RLOO with k = 4 wins most, 10 to 32 points above PPO; RLOO wins more
than RAFT of the same k, and REINFORCE about as much as Vanilla PG.

Run:      python -m rlhf_jax.main --workdir=runs/ahmadian_table1 \
            --config=experiments/ahmadian2024_back_to_basics/table1_win_rates.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
          :laptop,judge=http asks a language model
          :laptop,seeds=10 has ten other seeds, 101 to 110
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models: reviews from a grammar, models of 1 to 2
          layers from scratch, one reward model on clean pairs. Batch size,
          learning rate, number of steps and the KL coefficient (.1) are ours,
          for the text has none. Scores are standardised, not logits. The judge
          is the gold model, not GPT-4, unless a language model is asked
          (:laptop,judge=http, with --config.judge.judge.endpoint, .model and
          .key_variable, the name of an environment variable). Responses are
          sampled, not greedy. DPO, which is offline, is in table1_dpo.py. What
          a judge says of each prompt is in win_rates_seeds_*.
"""

from ml_collections import config_dict

from experiments import ahmadian2024
from experiments import replication
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size and number of seeds: 'laptop,seeds=10'."""
  size, judge, seeds = base.options(
      size, judge=('gold', 'http'), seeds=replication.NUMBERS)
  config = ahmadian2024.online(
      size, 'table 1: win rates against the original completions', seeds)
  ahmadian2024.add_all(config)
  config.judge = dict(
      against='reference', show_reference=False,
      num_prompts=config.online.evaluation.num_prompts,
      judge=dict(kind='gold', margin=0.0) if judge == 'gold' else dict(
          kind='http', endpoint='http://localhost:8000/v1', model='judge',
          key_variable=config_dict.placeholder(str)))
  config.figure = dict(kind='table', columns=(
      'win_rate', 'gold', 'proxy', 'rule', 'kl_k1', 'length'))
  return base.finish(config, smoke=('vanilla_pg', 'rloo_2'))
