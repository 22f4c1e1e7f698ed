r"""RLHF in rounds (notes, section 0.1.3; Christiano et al.; Ziegler et al.).

Claim: a reward model knows the responses it was trained on. When the policy
has moved away from the SFT policy, labels of its own responses help the next
reward model more than as many labels of the SFT policy's, so a policy that is
labelled anew in every round (`collect` 'current') ends with a higher gold
score than one whose labels are all of the SFT policy ('initial').

Run:      python -m rlhf_jax.main --workdir=runs/iterated \
            --config=experiments/rlhf_notes/iterated.py:laptop
Sizes:    :smoke (CI, under a minute)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores, 4 minutes.
          full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the notes report no experiment. Labels come from a gold model
          trained on the rule of a small world, not from people; a fixed share
          of them is flipped. A comparison is between two responses (Ziegler
          et al. have four). Reward models are ensembles, used by their mean,
          trained from the SFT trunk again in each round on all labels so far.
          Both ways of collecting have the same prompts, as many labels and as
          many rollouts.
"""

from ml_collections import config_dict

from rlhf_jax.configs import templates


def get_config(size: str = 'laptop') -> config_dict.ConfigDict:
  """The config of one size."""
  config = templates.iterated(size)
  config.title = 'RLHF notes: labels of the current or of the SFT policy'
  config.online.kl.coef = 0.01
  config.figure = dict(
      kind='final', x='round', y=('gold', 'proxy'), line=('collect',),
      baseline=dict(collect='initial'), paired_by=('round',))
  if size != 'smoke':
    config.seeds = (1, 2, 3)
    config.online.num_steps = 25
    config.online.evaluation.every = 5
  return config.lock()
