r"""Baheti et al. 2024, figure 5: how the five rewards of comments are spread.

Claim: up-voted and down-voted comments hardly differ in the rewards but for
the probability of an upvote, so that the latter too hold much to learn from.

Run:      python -m rlhf_jax.main --workdir=runs/baheti_fig5 \
            --config=experiments/baheti2024_leftover_lunch/fig5_components.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  as table 4, whose data and policies these are; the responses of NLL
          and of A-LOL seq stand beside the data.
"""

from experiments import baheti2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = baheti2024.reddit(
      size, 'figure 5: rewards of comments and of policies')
  shown = ('nll_up', 'nll_down', 'a_lol_sequence_up', 'a_lol_sequence_down')
  config.runs = {name: config.runs[name].to_dict() for name in shown}
  config.figure = dict(
      kind='distributions', components=baheti2024.REDDIT, logs=('reddit',),
      line=('method', 'data'))
  return base.finish(config, smoke=('nll_up', 'a_lol_sequence_down'))
