r"""Zhu et al. 2023, figure 7: APA by lambda.

Claim: lambda sets how far APA goes from the initial policy: with .1 both
reward and KL end higher than with 1.

Run:      python -m rlhf_jax.main --workdir=runs/zhu_fig7 \
            --config=experiments/zhu2023_advantage_induced_policy_alignment/fig7_apa_lambda.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
          :laptop,settings=text is as in the text, :laptop as in the code
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models: reviews from a grammar, models of 1 to 2
          layers from scratch, one reward model on clean pairs. With
          settings=code advantages are whitened (by the mask and the whole
          rollout, not by the padded minibatch), PPO's value head is on the
          policy's trunk, both updates on a minibatch come one after the other
          and scores are divided by their running deviation; with settings=text
          APA and AWR are not whitened, PPO has a value network of its own, and
          there are two epochs. The KL that is controlled and shown is the sum
          over a response (the code has the mean over tokens).
"""

from experiments import zhu2023
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  size, settings = base.options(size, settings=zhu2023.SETTINGS)
  config = zhu2023.online(size, 'figure 7: APA by lambda', settings)
  for beta in (0.1, 1.0):
    zhu2023.add_regression(config, settings, 'apa', beta=beta,
                           method=f'APA, lambda {beta:g}')
  config.figure = dict(
      kind='curves', x='step', y=('proxy', 'kl_k1'), line=('method',),
      columns=zhu2023.COLUMNS, baseline=dict(method='APA, lambda 1'))
  return base.finish(config, smoke=('apa_01', 'apa_1'))
