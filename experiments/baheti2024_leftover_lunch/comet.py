r"""Baheti et al. 2024, appendix C.1: commonsense inference, COMET and ATOMIC.

Claim: with a critic's probability as the reward, A-LOL and its variants write
more valid tails than NLL.

Run:      python -m rlhf_jax.main --workdir=runs/baheti_comet \
            --config=experiments/baheti2024_leftover_lunch/comet.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  triples of a grammar in the file format of ATOMIC10X, whose truth is
          known (`valid`, not trained on); the critic is a model from scratch
          that has learned `p_valid_model` of the file.
"""

from experiments import baheti2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = baheti2024.task(
      size, 'appendix C.1: commonsense inference', 'comet',
      max_prompt_length=16,
      max_response_length=12, max_samples=1, target='p_valid_model')
  config.logs.comet.components = dict(
      critic=dict(kind='file', column='p_valid_model', squash='clip'),
      valid=dict(kind='function', weight=0.0,
                 function='rlhf_jax.data.task_rules:valid_tail'))
  baheti2024.add_reference(config)
  for method in baheti2024.LOGGED:
    baheti2024.add(config, method)
  config.figure = dict(
      kind='table', columns=(
          'component_valid', 'component_critic', 'kl_k1', 'words',
          'distinct_1', 'distinct_2', 'distinct_3'),
      baseline=baheti2024.NLL)
  return base.finish(config, smoke=('nll', 'a_lol'))
