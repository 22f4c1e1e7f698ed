"""What online and offline methods share: rows of the algorithm table."""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import inspect
from typing import Any

import jax

from rlhf_jax import algorithms
from rlhf_jax import errors
from rlhf_jax import objectives
from rlhf_jax import types
from rlhf_jax.annotators import arithmetic
from rlhf_jax.annotators import running

# Their arguments are fields of the config elsewhere: the reward, the KL.
_ELSEWHERE = ('scores', 'ref_logprobs', 'old_values', 'kl_scores', 'kl_rewards')
# Rows of these learn a reward model, not a policy.
REWARDS = ('bradley_terry', 'ranking', 'preference_lm', 'value_regression')


def names(*sources: str) -> list[str]:
  """The algorithms that train a policy on batches of these sources."""
  return [name for name, row in algorithms.ALGORITHMS.items()
          if row.source in sources and row.objective is not None
          and row.objective['name'] not in REWARDS]


def get(algorithm: str, arguments: Mapping[str, Mapping],
        sources: Iterable[str], objective: str | None = None
        ) -> algorithms.Algorithm:
  """The row of a run, with the run's own arguments.

  Args:
    algorithm: a key of `algorithms.ALGORITHMS`.
    arguments: of `Algorithm.adapt`.
    sources: that a batch may be made of.
    objective: 'package.module:function', in place of the row's; its arguments
      are those of 'objective'. None: the row's.

  Raises:
    ValueError: no such algorithm learns from these sources, or an argument is
      unknown or does not fit it.
  """
  known = names(*sources)
  if algorithm not in known:
    raise ValueError(
        f'algorithm is {algorithm!r}, which trains no policy from '
        f'{" or ".join(sources)}; there are {", ".join(known)}.')
  row = algorithms.ALGORITHMS[algorithm]
  if objective is None:
    return row.adapt(arguments)
  if not isinstance(objective, str) or ':' not in objective:
    raise ValueError(f'objective is {objective!r}; give your own as '
                     "'package.module:function', or None.")
  others = {name: x for name, x in arguments.items() if name != 'objective'}
  return dataclasses.replace(row.adapt(others), objective=algorithms.node({
      **arguments.get('objective', {}), 'name': objective}))


def arguments(row: algorithms.Algorithm, objective: str | None = None
              ) -> dict[str, dict[str, Any]]:
  """What `get` takes as arguments, with the values that hold without them.

  Args:
    row: of the table.
    objective: see `get`.

  Returns:
    {node: {argument: value}}, of those that are a number, a text or a tuple;
    a KL coefficient of the objective only where the row has one.

  Raises:
    ValueError: the objective cannot be imported.
  """
  nodes = {node['name']: node for node in row.annotators}
  functions = running.RUNNING | arithmetic.ARITHMETIC
  name = objective or row.objective['name']
  label = 'objective' if objective else name
  nodes[label] = {} if objective else row.objective
  functions = functions | {label: objectives.get(name).func}
  values = {}
  for name, node in nodes.items():
    if name in _ELSEWHERE:
      continue
    values[name] = _defaults(functions.get(name)) | {
        k: v for k, v in node.items() if k != 'name'}
  return {name: kwargs for name, of_node in values.items() if (kwargs := {
      k: v for k, v in of_node.items()
      if isinstance(v, bool | int | float | str | tuple)})}


def _defaults(function: Callable | None) -> dict[str, Any]:
  if function is None:
    return {}
  return {name: one.default
          for name, one in inspect.signature(function).parameters.items()
          if one.default is not one.empty and name != 'kl_coef'}


def has(row: algorithms.Algorithm, annotator: str) -> bool:
  """Whether a row has an annotator of this name."""
  return any(node['name'] == annotator for node in row.annotators)


def has_values(row: algorithms.Algorithm) -> bool:
  """Whether a run trains a value head."""
  return has(row, 'old_values') or is_ilql(row)


def is_ilql(row: algorithms.Algorithm) -> bool:
  """Whether a run has Q heads, and samples by them."""
  return row.objective['name'] == 'ilql'


def try_out(trace: Callable[[], types.LossOutput | Any],
            objective: str | None = None):
  """Runs a run's annotators and objective on shapes; touches no device.

  Args:
    trace: calls them, on arrays of zeros.
    objective: a user's own, of which anything may be raised; None: the row's.

  Raises:
    ValueError: in one line, what an argument lacks or has too much.
  """
  try:
    jax.eval_shape(trace)
  except Exception as error:
    if objective is not None:
      raise ValueError(f'objective {objective}: '
                       f'{errors.of_user(error, objective.partition(":")[0])}'
                       ) from error
    if not isinstance(error, AssertionError | AttributeError | KeyError
                      | TypeError | ValueError):
      raise
    raise ValueError(str(error).partition('\n')[0]) from error
