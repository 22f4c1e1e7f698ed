r"""Zhu et al. 2023, figure 4: larger and smaller policies.

Claim: APA reaches a higher reward than PPO and AWR at every size of the
policy, at a smaller KL; PPO of the smallest policy gets worse after some
steps.

Run:      python -m rlhf_jax.main --workdir=runs/zhu_fig4 \
            --config=experiments/zhu2023_advantage_induced_policy_alignment/fig4_model_size.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
          one study for each policy, since each has a reference of its own:
          :laptop is the larger one, :laptop,policy=small the smaller one
          :laptop,settings=text is as in the text, :laptop as in the code
Beside:   fig3_apa_awr_ppo.py, whose policy lies between these two:
          `rlhf-jax figures` draws all three together
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop, both policies).
Differs:  as fig3_apa_awr_ppo.py, whose policy, of width 64 and two layers,
          lies between these two: width 32 and one layer, width 128 and four.
          The paper has 1B and 6B beside the 125M of its figure 3; at full size
          'large' is GPT-J, of 6B, and 'small' Pythia-1B.
"""

from experiments import zhu2023
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  size, policy, settings = base.options(
      size, policy=('large', 'small'), settings=zhu2023.SETTINGS)
  config = zhu2023.online(
      size, f'figure 4: PPO, AWR and APA, policy: {policy}', settings)
  zhu2023.set_policy(config, policy)
  zhu2023.add_ppo(config, settings, method='PPO')
  zhu2023.add_regression(config, settings, 'awr', method='AWR',
                         beta=2.0 if settings == 'code' else 1.0)
  zhu2023.add_regression(config, settings, 'apa', method='APA', beta=0.1)
  config.figure = dict(
      kind='curves', x='step', y=('proxy', 'kl_k1'), line=('method',),
      columns=zhu2023.COLUMNS, baseline=dict(method='PPO'))
  return base.finish(config, smoke=('ppo', 'apa_01'))
