r"""Coste et al. 2024, figure 13: best-of-n by size and by data.

Claim: as in Gao et al. 2023, larger reward models (a) and more pairs (b) raise
the gold score of best-of-n and delay its fall; 25 % label noise.

Run:      python -m rlhf_jax.main --workdir=runs/fig13 \
            --config=experiments/coste2024_reward_model_ensembles/fig13_best_of_n_scaling.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
          :laptop is the usual size and all pairs; the other lines are
          :laptop,model=small  :laptop,model=large  :laptop,pairs=quarter
          :laptop,pairs=half
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models (fig3_best_of_n.py). One study for each line
          of the paper's figure; model sizes and numbers of pairs are those of
          fig8_model_size.py and fig9_data_size.py.
"""

from experiments import coste2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  size, model, pairs = base.options(
      size, model=('medium', 'small', 'large'),
      pairs=('all', 'half', 'quarter'))
  return coste2024.best_of_n(
      size, f'figure 13: best-of-n, {model} reward models, pairs: {pairs}',
      noise=(0.25,), methods={}, model=model, pairs=pairs).lock()
