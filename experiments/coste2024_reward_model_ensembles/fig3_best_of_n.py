r"""Coste et al. 2024, figure 3: ensembles against best-of-n overoptimization.

Claim: as n grows, the gold score of best-of-n against a single proxy reward
model rises and then falls; an ensemble falls less and ends higher, and with
conservative aggregation (worst-case, uncertainty-weighted) does not fall.

Run:      python -m rlhf_jax.main --workdir=runs/fig3 \
            --config=experiments/coste2024_reward_model_ensembles/fig3_best_of_n.py:laptop
Sizes:    :smoke (CI, under a minute)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file.
Differs:  the world. The laptop size writes reviews from a grammar and learns
          its gold model from the grammar's rule, where the paper has
          AlpacaFarm and a 7B human-preference model; models have 1 to 2
          layers, where the paper has 14M to 1.4B parameters; n ends at 2,048,
          where the paper's ends at 12,500; members are standardised before
          they are combined (the released code combines raw scores:
          --config.best_of_n.standardize=False). Each condition is run a
          second time with an EOS forced at the last position. The option
          world=long_tail (20 seeds, n up to 1,024) has the fall in the content
          of responses, with an EOS forced in all of them, and the rule of the
          world as gold score.
"""

from experiments import coste2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size and world: 'laptop,world=long_tail'."""
  size, world = base.options(size, world=base.WORLDS)
  config = coste2024.best_of_n(
      size, 'figure 3: best-of-n against proxy reward models',
      noise=(0.0, 0.25), methods=coste2024.methods(), world=world)
  config.force_eos = (False, True)
  config.seeds = (0,) if size == 'smoke' else (1,)  # README: seeds 1 to 5
  if world != 'reviews' and size == 'laptop':
    # What falls is the content: no response is cut.
    config.force_eos = (True,)
    config.seeds = tuple(range(600, 620))
    config.best_of_n.num_samples = 1024
    config.data.num_eval_prompts = 64
  return config.lock()
