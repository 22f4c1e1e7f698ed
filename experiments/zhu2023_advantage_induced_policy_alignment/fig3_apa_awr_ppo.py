r"""Zhu et al. 2023, figure 3: PPO, AWR and APA.

Claim: APA reaches a higher reward than PPO and AWR at an equal or smaller KL;
PPO gets worse after some steps. (Figure 2 says so on other data: there AWR is
unstable.)

Run:      python -m rlhf_jax.main --workdir=runs/zhu_fig3 \
            --config=experiments/zhu2023_advantage_induced_policy_alignment/fig3_apa_awr_ppo.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
          :laptop,x=kl_k1 draws the reward over the KL
          :laptop,settings=text is as in the text, :laptop as in the code
          :laptop,seeds=10 has ten other seeds, 101 to 110, every rollout
          evaluated; :laptop,settings=text,seeds=10 as in the text
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
          over a response (the code has the mean over tokens). AWR's lambda is
          1 (text) or 2 (code).
"""

from experiments import replication
from experiments import zhu2023
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  size, settings, x, seeds = base.options(
      size, settings=zhu2023.SETTINGS, x=('step', 'kl_k1'),
      seeds=replication.NUMBERS)
  config = zhu2023.online(
      size, 'figure 3: PPO, AWR and APA', settings, seeds)
  zhu2023.add_ppo(config, settings, method='PPO')
  zhu2023.add_regression(config, settings, 'awr', method='AWR',
                         beta=2.0 if settings == 'code' else 1.0)
  zhu2023.add_regression(config, settings, 'apa', method='APA', beta=0.1)
  config.figure = dict(
      kind='curves', x=x, y=('proxy', 'kl_k1') if x == 'step' else ('proxy',),
      line=('method',), columns=zhu2023.COLUMNS, baseline=dict(method='PPO'))
  return base.finish(config, smoke=tuple(config.runs))
