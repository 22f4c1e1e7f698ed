"""The gold stage of a study whose gold score is the rule of its world.

It trains nothing: `artifacts.World.gold` then asks the rule itself.
"""

from collections.abc import Mapping
from typing import Any

from rlhf_jax.pipeline import artifacts

NEEDS, READS = ('reference',), ()


def run(context, *, seed: int, data: dict, upstream: Mapping[str, Any]) -> dict:
  """Says which world's rule it is, and its mean over the demonstrations.

  Args:
    context: of the stage.
    seed: of the study.
    data: config node of the corpus.
    upstream: stages by role, see `artifacts`.
  """
  corpus = artifacts.World(context, data, seed, upstream).corpus
  scores = corpus.world.rule(
      corpus.demonstrations.tokens, corpus.demonstrations.mask)
  return {'rule': data['name'], 'mean': float(scores.mean()),
          'std': float(scores.std())}
