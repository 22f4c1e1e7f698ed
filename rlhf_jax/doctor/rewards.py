"""Checks of a reward against what is made of it: finite, in range, reachable.
"""

from collections.abc import Iterable, Mapping, Sequence
import contextlib
from typing import Any

import numpy as np

from rlhf_jax import errors
from rlhf_jax.doctor import findings
from rlhf_jax.pipeline import prompt_values
from rlhf_jax.rewards import components as components_lib
from rlhf_jax.rewards import nodes as nodes_lib

_KINDS = ('function', 'vader', 'readability', 'length')  # read a text alone


def check(components: Mapping[str, Mapping], pool: Mapping[str, Any],
          tokens: np.ndarray, mask: np.ndarray, prompts: Sequence[str],
          responses: Sequence[str]) -> tuple[
              np.ndarray | None, list[findings.Finding]]:
  """Asks the components that need no trained model.

  Args:
    components: of the config.
    pool: of `programmatic.Functions`.
    tokens: i32[N, T], of responses.
    mask: bool[N, T].
    prompts: N texts.
    responses: N texts.

  Returns:
    Their sum f32[N] of the responses that they do not drop, None where there
    is no such component, and what was found.
  """
  nodes = {name: dict(node) for name, node in components.items()
           if node['kind'] in _KINDS}
  if not nodes:
    return None, []
  try:
    with contextlib.closing(components_lib.Components(
        nodes, pool=pool)) as rewards:
      total = rewards.total(rewards(tokens, mask, prompts, responses).values)
  except errors.RewardError as error:
    return None, [findings.Finding(
        'fail', 'reward', str(error), 'mend the function, or give it a range')]
  total = total[~np.isnan(total)]  # without what `on_bad_reward` drops
  equal = len(total) > 1 and bool(np.all(total == total[0]))
  return total, [findings.judge(
      'reward', f'{", ".join(nodes)}: {total.min():.4g} to {total.max():.4g} '
      f'on {len(total)} responses', warn=equal, remedy='all are alike, so '
      'that nothing is learned from them; look at the function, or sample '
      'more')]


def check_values(components: Mapping[str, Mapping]
                 ) -> Iterable[findings.Finding]:
  """Whether the value head of A-LOL can represent a reward."""
  try:
    prompt_values.check(components)
  except errors.ConfigError as error:
    yield findings.Finding('fail', 'value range', str(error),
                           "squash='sigmoid', or 'clip' with a range from 0")
    return
  low, high = (sum(x) for x in zip(*map(
      nodes_lib.bounds, nodes_lib.check(components).values())))
  yield findings.Finding(
      'pass', 'value range', f'rewards in [{low:g}, {high:g}], as prompt '
      'values')


def check_critic(total: np.ndarray, run: Mapping[str, Any],
                 value_clip: float | None) -> Iterable[findings.Finding]:
  """Whether a clipped value head comes as far as rewards, and clips of them.

  A value moves by at most `value_clip` in a rollout, from near 0.

  Args:
    total: f32[N], rewards of responses.
    run: node `online` of the config.
    value_clip: of its objective; None: there is no clip or no head.
  """
  largest, clip = float(np.abs(total).max()), run['reward']['clip']
  beyond = 0.0 if clip is None else float((np.abs(total) > clip).mean())
  yield findings.judge(
      'reward clip', f'{beyond:.0%} of the rewards are beyond +-{clip}',
      warn=beyond > 0, fail=beyond > .5, remedy='what is clipped is not '
      "learned from; raise reward.clip, or scale='running'")
  if value_clip is None or run['reward']['scale'] is not None:
    return
  reach = value_clip * run['num_steps']
  yield findings.judge(
      'value range', f'rewards up to {largest:.4g}; values move by at most '
      f'{value_clip:g} a rollout, {reach:.4g} in all', fail=largest > reach,
      warn=largest > reach / 2, remedy="rewards are outside of the values' "
      "reach; set reward.scale='running', weigh them less, or raise "
      'value_clip')
