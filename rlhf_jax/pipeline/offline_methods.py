"""How one row of the algorithm table learns from logged responses.

Baheti et al. 2024, https://arxiv.org/abs/2305.14718, section 2; Zhu et al.
2023, https://arxiv.org/abs/2306.02231, appendix D.3; objectives.md 8.5, 8.6
and 9.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any, NamedTuple

from flax.core import FrozenDict
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import algorithms
from rlhf_jax import policy as policy_lib
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.annotators import chain as chain_lib
from rlhf_jax.annotators import from_models
from rlhf_jax.models import transformer
from rlhf_jax.ops import q_learning
from rlhf_jax.pipeline import methods
from rlhf_jax.pipeline import offline_data

SOURCES = ('demonstrations', 'logged', 'preferences', 'rankings', 'unpaired')
PRIORITIES = ('none', 'advantage', 'reward')
FILTER = ('prompt_values', 'prompt_advantages', 'keep_positive')


def names() -> list[str]:
  """The algorithms that learn from logged responses."""
  return methods.names(*SOURCES)


def make_row(run: Mapping[str, Any]) -> algorithms.Algorithm:
  """The row of a run, with the run's own arguments.

  Args:
    run: node `offline` of the config, of which 'algorithm', one of `names`,
      'arguments' of `Algorithm.adapt`, and 'filtered' are read: whether
      responses without a positive advantage are left out, though the row does
      not ask for it.

  Raises:
    ValueError: an argument is unknown or does not fit the algorithm.
  """
  row = methods.get(run['algorithm'], run['arguments'], SOURCES,
                    run.get('objective'))
  if not run['filtered']:
    return row
  if row.source in offline_data.WHOLE:
    raise ValueError(f'{row.title} learns from '
                     f'{offline_data.WHOLE[row.source]}, so that '
                     'filtered=True would leave too little.')
  if methods.has(row, 'standardize_scores'):
    raise ValueError(f'{row.title} learns from standardised scores, which have '
                     'no value of a prompt to be compared with; set '
                     'filtered=False.')
  added = tuple(algorithms.node({'name': name}) for name in FILTER
                if not methods.has(row, name))
  return dataclasses.replace(row, annotators=(*row.annotators, *added))


def needs_values(row: algorithms.Algorithm) -> bool:
  """Whether a run reads the reference's values of the prompts."""
  return methods.has(row, 'prompt_values')


def can_pack(row: algorithms.Algorithm) -> bool:
  """Whether a step takes its rows as they come, see `fit.Loop.packing`."""
  return not chain_lib.split(row.annotators)[1]


@dataclasses.dataclass(frozen=True)
class Method:
  """What the programs of a run depend on, and nothing else."""

  row: algorithms.Algorithm
  config: transformer.Config
  value_config: transformer.Config | None  # of a trunk of its own
  q: FrozenDict  # of ILQL: 'rate' and 'every' of `polyak_every`
  num_microbatches: int
  optimizer: FrozenDict  # with `num_steps`


def make(run: Mapping[str, Any], config: transformer.Config,
         value_config: transformer.Config | None, num_steps: int) -> Method:
  """The method of a run.

  Args:
    run: node `offline` of the config.
    config: shape of the policy.
    value_config: shape of a value trunk of its own.
    num_steps: optimizer steps.
  """
  return Method(
      make_row(run), config, value_config, FrozenDict(run['q']),
      run['num_microbatches'],
      FrozenDict(run['optimizer'], num_steps=num_steps))


class Programs(NamedTuple):
  """The compiled parts of a run."""

  step: Any
  tx: Any


@functools.lru_cache(maxsize=16)
def programs(method: Method) -> Programs:
  """Compiles what a method describes; the same for the same method."""
  config, update_targets = method.config, None
  if methods.is_ilql(method.row):
    def update_targets(targets, params, step):
      return q_learning.polyak_every(
          targets, params['q_heads'], step, rate=method.q['rate'],
          every=method.q['every'])
  tx = train.optimizer(**method.optimizer)
  step = train.make_train_step(
      functools.partial(
          policy_lib.forward, config, value_config=method.value_config),
      method.row.bind(), tx, num_microbatches=method.num_microbatches,
      update_targets=update_targets,
      dropout=bool(config.dropout or config.adapter_dropout))
  _, current = chain_lib.split(method.row.annotators)
  if current:
    step = chain_lib.before_step(step, chain_lib.chain(current, {
        'reference_point': lambda batch, state, frozen: (
            from_models.reference_point(batch, config, types.with_base(
                frozen.base, state.params)))}))
  return Programs(jax.jit(step, donate_argnums=0), tx)


@functools.partial(jax.jit, static_argnames=('config', 'value_config'))
def forward(config, value_config, params, tokens, mask):
  """Log-probabilities and values [B, K, T] of the initial policy."""
  out = policy_lib.forward(config, params, types.Batch(tokens, mask),
                           value_config=value_config)
  return out.logprobs, out.values


def check(run: Mapping[str, Any]):
  """Traces annotators and objective of a run on shapes; touches no device.

  Args:
    run: node `offline` of the config.

  Raises:
    ValueError: an argument is unknown, missing or out of range.
  """
  row, priority = make_row(run), run['priority']
  if priority not in PRIORITIES:
    raise ValueError(f'priority is {priority!r}; there are '
                     f'{", ".join(PRIORITIES)}.')
  if priority == 'advantage' and not methods.has(row, 'prompt_advantages'):
    raise ValueError(f"{row.title} has no advantages of prompts; choose "
                     "priority='reward' or 'none', or filtered=True.")
  if priority != 'none' and row.source in offline_data.WHOLE:
    raise ValueError(f'{row.title} learns from '
                     f"{offline_data.WHOLE[row.source]}; set priority='none'.")
  if run['packing'] and not can_pack(row):
    raise ValueError(f'{row.title} cuts the responses of other prompts from '
                     'each batch; set packing=False.')
  shape = (2, 2 if row.source in offline_data.PAIRED else 1, 4)
  zeros = lambda: (np.zeros(shape, np.float32),) * 2

  def trace():
    flat = jnp.zeros(shape)
    batch = types.Batch(
        tokens=np.zeros(shape, np.int32), mask=np.ones(shape, bool),
        scores=np.ones(shape[:2], np.float32),
        targets=np.ones(shape[:2], np.float32),
        prompt_values=(np.zeros(len(flat), np.float32)
                       if needs_values(row) else None))
    chain = chain_lib.chain(row.annotators, offline_data.models(zeros) | {
        'reference_point': lambda batch, *unused: batch.replace(
            reference_points=np.zeros(shape[:2], np.float32))})
    out = types.PolicyOutput(
        logprobs=flat, entropy=flat, values=flat, q_values=(flat,) * 2,
        q_logprobs=(flat,) * 2, target_q_values=(flat,) * 2)
    batch, _ = chain(batch, None, None)
    loss = row.bind()(out, batch)
    types.check_units(loss, batch)
    return loss

  methods.try_out(trace, run.get('objective'))
