"""Annotators in order, as one function.

An annotator fills optional fields of a batch: Batch -> Batch. They run on the
whole rollout, before it is cut into minibatches, so a statistic over samples
never depends on how the batch is split.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import inspect
from typing import Any

from rlhf_jax import types
from rlhf_jax.annotators import arithmetic
from rlhf_jax.annotators import running

Annotator = Callable[..., types.Batch]  # (batch, state, frozen, **kwargs)
EACH_STEP = ('reference_point',)  # those that read the policy of the moment


Chain = Callable[..., tuple[types.Batch, types.TrainState]]


def chain(nodes: Sequence[Mapping[str, Any]],
          models: Mapping[str, Annotator]) -> Chain:
  """One function that applies annotators in order.

  Args:
    nodes: each {'name': ..., **kwargs}: a key of `models`, of
      `running.RUNNING` or of `ARITHMETIC`, sought in that order.
    models: the annotators that need parameters, (batch, state, frozen,
      **kwargs) -> batch, bound to the models of a run.

  Returns:
    (batch, state, frozen) -> (batch, state). Of the state, only `statistics`
    may be another; start them with `running.init`.

  Raises:
    ValueError: if a name or an argument is unknown or missing.
  """
  steps = [_step(dict(node), models) for node in nodes]

  def annotators(batch, state, frozen):
    for step in steps:
      batch, state = step(batch, state, frozen)
    return batch, state

  return annotators


def split(nodes: Sequence[Mapping[str, Any]]) -> tuple[list, list]:
  """The nodes that see a data set once, and those for `before_step`."""
  late = lambda node: node['name'] in EACH_STEP
  return [x for x in nodes if not late(x)], [x for x in nodes if late(x)]


def before_step(step: Callable[..., Any], annotators: Chain
                ) -> Callable[..., Any]:
  """step(state, batch, base=None) on a batch that annotators see first.

  For those that read the policy as it is at each step. They see the batch
  whole: into how many micro-batches the step cuts it, and over how many
  devices of a mesh it lies, changes nothing.

  Args:
    step: of `train.make_train_step`.
    annotators: of `chain`; `frozen.base` is the `base` of the step, and the
      state that they return is not read.
  """
  def annotated(state, batch, base=None):
    batch, _ = annotators(batch, state, types.Frozen(base=base))
    return step(state, batch, base)

  return annotated


def _step(node, models) -> Chain:
  """One annotator of any kind as (batch, state, frozen) -> (batch, state)."""
  name = node.pop('name', None)
  if name in models:
    model = functools.partial(models[name], **node)
    return lambda batch, state, frozen: (model(batch, state, frozen), state)
  remembers = name in running.RUNNING
  function = (running.RUNNING if remembers else arithmetic.ARITHMETIC).get(name)
  if function is None:
    names = sorted({*models, *running.RUNNING, *arithmetic.ARITHMETIC})
    raise ValueError(
        f'unknown annotator {name!r}; available: {", ".join(names)}. One that '
        'needs parameters has to be bound to them in `models`.')
  try:
    inspect.signature(function).bind(*[None] * (1 + remembers), **node)
  except TypeError as error:
    raise ValueError(f'annotator {name}: {error}.') from None
  if remembers:
    return lambda batch, state, frozen: function(batch, state, **node)
  return lambda batch, state, frozen: (function(batch, **node), state)
