r"""Baheti et al. 2024, table 4: five rewards, up-voted and down-voted data.

Claim: A-LOL and its variants have the highest sum of rewards on either half
of the data; on down-voted data they come close to what they reach on up-voted
data; A-LOL seq is the most diverse.

Run:      python -m rlhf_jax.main --workdir=runs/baheti_table4 \
            --config=experiments/baheti2024_leftover_lunch/table4_reddit.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the comments: reviews of the small world, in the file format of the
          Reddit data, with votes that follow the rule and much noise. The five
          rewards are the small world's: fluency and topic by rules of the
          text, sentiment (VADER) for safety, the gold reward model's sigmoid
          for the probability of an upvote, TF-IDF. One reference, fine-tuned
          on both halves, where the paper has one for each.
"""

from experiments import baheti2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = baheti2024.reddit(
      size, 'table 4: five rewards, on up-voted and down-voted comments')
  config.figure = dict(
      kind='table', columns=baheti2024.COLUMNS + tuple(
          f'component_{name}' for name in baheti2024.REDDIT))
  return base.finish(
      config, smoke=('reference', 'nll_up', 'a_lol_sequence_down'))
