r"""Coste et al. 2024, figure 16: best-of-n against each single model.

Claim: which member is overoptimised cannot be told from its validation loss;
the mean of these curves is the single model of figure 3.

Run:      python -m rlhf_jax.main --workdir=runs/fig16 \
            --config=experiments/coste2024_reward_model_ensembles/fig16_best_of_n_members.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models (fig3_best_of_n.py). The thin lines are the
          members; the accuracy of each on held-out pairs, not its validation
          loss, is in stages.jsonl. Stages are those of fig3_best_of_n.py
          (--reuse).
"""

from experiments import coste2024


def get_config(size: str = 'laptop'):
  """The config of one size."""
  return coste2024.best_of_n(
      size, 'figure 16: best-of-n against each single reward model',
      noise=(0.0, 0.25), methods={}).lock()
