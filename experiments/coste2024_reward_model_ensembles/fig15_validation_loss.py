r"""Coste et al. 2024, figure 15: validation loss of the reward models.

Claim: the loss on held-out pairs falls in the first epochs and does not tell
which reward model will be overoptimised.

Run:      python -m rlhf_jax.main --workdir=runs/fig15 \
            --config=experiments/coste2024_reward_model_ensembles/fig15_validation_loss.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models (fig3_best_of_n.py); the mean over members
          is drawn, those of each member are in results.csv.
"""

from experiments import coste2024
from rlhf_jax.configs import templates


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = templates.reward_models(size)
  config.title = f'{coste2024.PAPER}, figure 15: held-out loss, label noise 0'
  config.seeds = (0,) if size == 'smoke' else (1, 2, 3)
  coste2024.condition(config, 0.0)
  config.figure = dict(kind='curves', x='epoch', y=('loss', 'accuracy'),
                       line=('condition',), columns=('loss', 'accuracy'))
  return config.lock()
