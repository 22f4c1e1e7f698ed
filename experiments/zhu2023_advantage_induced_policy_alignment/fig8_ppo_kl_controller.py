r"""Zhu et al. 2023, figure 8: PPO with and without the adaptive controller.

Claim: without a KL penalty PPO reaches a higher reward than APA, at a far
larger KL; with the adaptive controller its reward falls in the middle of
training.

Run:      python -m rlhf_jax.main --workdir=runs/zhu_fig8 \
            --config=experiments/zhu2023_advantage_induced_policy_alignment/fig8_ppo_kl_controller.py:laptop
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
  config = zhu2023.online(size, 'figure 8: PPO by KL controller', settings)
  zhu2023.add_ppo(config, settings, method='PPO, adaptive')
  zhu2023.add_ppo(config, settings, adaptive=False, method='PPO, no KL')
  config.figure = dict(
      kind='curves', x='step', y=('proxy', 'kl_k1'), line=('method',),
      columns=zhu2023.COLUMNS, baseline=dict(method='PPO, no KL'))
  return base.finish(config, smoke=('ppo', 'ppo_without_kl'))
