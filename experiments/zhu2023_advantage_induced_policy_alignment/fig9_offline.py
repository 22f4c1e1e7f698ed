r"""Zhu et al. 2023, figure 9: ILQL, AWR and APA on logged responses.

Claim: offline, AWR learns more than ILQL, and APA does not learn.

Run:      python -m rlhf_jax.main --workdir=runs/zhu_fig9 \
            --config=experiments/zhu2023_advantage_induced_policy_alignment/fig9_offline.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models: pairs of samples of the SFT policy in place
          of Anthropic HH, both responses of each; a policy of 2 layers from
          scratch; one reward model on clean pairs, whose standardised score is
          the reward. Lambda is 1, as in the released script, and for APA .1
          too, as online; ILQL is trlX's (tau .7, CQL .1) but for targets that
          move faster in fewer steps, sampled with top-k 20 and a shift of 4 or
          1. Three seeds where the paper has one.
"""

from experiments import zhu2023
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = zhu2023.offline(
      size, 'figure 9: ILQL (by logits + shift A), AWR and APA, offline')
  for algorithm, beta in (('awr', 1.0), ('apa', 1.0), ('apa', 0.1)):
    config.runs[f'{algorithm}_{base.tag(beta)}'] = dict(
        algorithm=f'{algorithm}_offline',
        arguments={algorithm: dict(beta=beta)},
        labels=dict(method=f'{algorithm.upper()}, lambda {beta:g}'))
  for shift in (4.0, 1.0):
    config.runs[f'ilql_{base.tag(shift)}'] = dict(
        algorithm='ilql', q=dict(shift=shift), value=dict(trunk='shared'),
        labels=dict(method=f'ILQL, shift {shift:g}'))
  config.figure = dict(
      kind='curves', x='updates', y=('proxy', 'gold', 'kl_k1'),
      line=('method',), columns=zhu2023.COLUMNS)
  return base.finish(config, smoke=('awr_1', 'apa_1', 'ilql_4'))
