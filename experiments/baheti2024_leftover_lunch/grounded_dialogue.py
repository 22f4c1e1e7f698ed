r"""Baheti et al. 2024, appendix C.2: knowledge-grounded dialogue, four rewards.

Claim: A-LOL and its variants raise the sum of the rewards above NLL's, on data
half of which is not faithful to the knowledge.

Run:      python -m rlhf_jax.main --workdir=runs/baheti_dialogue \
            --config=experiments/baheti2024_leftover_lunch/grounded_dialogue.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  dialogues of a grammar in the file format of FaithDial; rules of the
          text in place of the critic of faithfulness and of the classifiers of
          fluency and engagement.
"""

from experiments import baheti2024
from rlhf_jax.configs import base

COMPONENTS = ('fluent', 'faithful', 'engaging', 'tfidf')


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = baheti2024.task(
      size, 'appendix C.2: knowledge-grounded dialogue', 'grounded_dialogue',
      max_prompt_length=64, max_response_length=24, max_samples=2,
      target='faithful')
  rule = 'rlhf_jax.data.task_rules'
  config.logs.grounded_dialogue.components = {
      name: dict(kind='function', function=f'{rule}:{name}', range=(0, 1))
      for name in COMPONENTS[:-1]} | dict(tfidf=dict(kind='tfidf'))
  baheti2024.add_reference(config)
  for method in baheti2024.LOGGED:
    baheti2024.add(config, method, use='all')
  config.figure = dict(
      kind='table', columns=(
          'proxy', *(f'component_{name}' for name in COMPONENTS),
          'kl_k1', 'words', 'distinct_1', 'distinct_2', 'distinct_3'),
      baseline=baheti2024.NLL)
  return base.finish(config, smoke=('nll', 'a_lol'))
