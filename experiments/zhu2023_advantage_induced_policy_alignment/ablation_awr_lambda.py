r"""Zhu et al. 2023, appendix D: AWR with the lambda of APA.

Claim: AWR with lambda = .1, at which APA learns well, makes training unstable;
it needs a larger one.

Run:      python -m rlhf_jax.main --workdir=runs/zhu_awr_lambda \
            --config=experiments/zhu2023_advantage_induced_policy_alignment/ablation_awr_lambda.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
          :laptop,settings=text is as in the text, :laptop as in the code
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  as fig3_apa_awr_ppo.py, two of whose policies these are (--reuse).
"""

from experiments import zhu2023
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  size, settings = base.options(size, settings=zhu2023.SETTINGS)
  config = zhu2023.online(size, 'appendix D: AWR by lambda', settings)
  usual = 2.0 if settings == 'code' else 1.0
  for beta in (0.1, usual):
    zhu2023.add_regression(config, settings, 'awr', beta=beta,
                           method='AWR' if beta == usual else 'AWR, lambda .1')
  zhu2023.add_regression(config, settings, 'apa', method='APA', beta=0.1)
  config.figure = dict(
      kind='curves', x='step', y=('proxy', 'kl_k1', 'length'),
      line=('method',),
      columns=zhu2023.COLUMNS, baseline=dict(method='AWR'))
  return base.finish(config, smoke=tuple(config.runs))
