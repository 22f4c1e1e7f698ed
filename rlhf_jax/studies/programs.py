"""The programs that decide what a stage needs, by their shapes alone.

Each function gives a program and the shapes that it is called with, which lie
on the mesh in use as they would in a run. Nothing is computed: they are there
to be compiled and looked at.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import functools
import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
import jax.numpy as jnp

from rlhf_jax import errors
from rlhf_jax import objectives
from rlhf_jax import policy
from rlhf_jax import sampling
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.models import transformer
from rlhf_jax.parallel import sharding
from rlhf_jax.pipeline import learners
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.studies import shapes

COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
               'collective-permute')
_DTYPES = {'tokens': jnp.int32, 'mask': bool}


class Program(NamedTuple):
  """A function of arrays, and what it is called with."""

  function: Callable[..., Any]
  arguments: tuple
  donated: tuple[int, ...] = ()  # which of them it may write over


class Figures(NamedTuple):
  """What a compiler says of a program, of one device."""

  held: int  # bytes of what it is called with
  beside: int  # bytes that it needs besides
  # Floating point operations, a loop's body once; NaN where it does not say.
  flops: float
  collectives: dict[str, int]  # how often each occurs; a loop's body once


def policy_step(config: transformer.Config, trainable: types.Params,
                base: types.Params | None, *, rows: int, length: int,
                num_microbatches: int = 1) -> Program:
  """A step of supervised fine-tuning.

  Args:
    config: of the policy.
    trainable: shapes of what is trained.
    base: shapes of what lies under it; None: nothing.
    rows: B, of a step.
    length: T, tokens of a row.
    num_microbatches: of `train.make_train_step`.
  """
  step = train.make_train_step(
      functools.partial(policy.forward, config),
      objectives.get('sft', aggregate='token'), shapes.TX,
      num_microbatches=num_microbatches)
  return Program(step, (
      sharding.abstract(shapes.state(trainable)),
      batch('tokens', 'mask', shape=(rows, 1, length)),
      base and sharding.abstract(base)), donated=(0,))


def reward_step(config: transformer.Config, params: types.Params,
                base: types.Params | None, *, members: int, pairs: int,
                length: int, num_microbatches: int = 1) -> Program:
  """A step of all members of an ensemble, each on pairs of its own.

  Args:
    config: of the reward models.
    params: shapes of what is trained, leaves [E, ...].
    base: shapes of what lies under it, one for all members; None: nothing.
    members: E.
    pairs: B, of each member.
    length: T, tokens of a row.
    num_microbatches: of `train.make_train_step`.
  """
  step = train.make_train_step(
      functools.partial(reward_models.forward, config),
      objectives.get('bradley_terry'), shapes.TX,
      num_microbatches=num_microbatches)
  return Program(learners.of_members(step, members), (
      sharding.abstract(shapes.state(params, members), members=members),
      batch('tokens', 'mask', shape=(members, pairs, 2, length),
            members=members), base and sharding.abstract(base)), donated=(0,))


def sampler(config: transformer.Config, params: types.Params, *, prompts: int,
            samples: int, prompt: int, new_tokens: int) -> Program:
  """Responses to prompts.

  Args:
    config: of the policy.
    params: its shapes.
    prompts: B.
    samples: K, responses to each.
    prompt: tokens of a prompt.
    new_tokens: of a response.
  """
  def sample(params, prompts, lengths, key, row_ids):
    return sampling.sample(
        config, params, prompts, lengths, key, row_ids=row_ids,
        num_samples=samples, max_new_tokens=new_tokens, eos_id=0, pad_id=1,
        num_slots=0)  # as an accelerator does, wherever it is lowered
  each = jax.ShapeDtypeStruct((prompts,), jnp.int32)
  tokens, lengths, row_ids = _rows(
      (jax.ShapeDtypeStruct((prompts, prompt), jnp.int32), each, each))
  key = jax.eval_shape(lambda: jax.random.key(0))
  return Program(
      sample, (sharding.abstract(params), tokens, lengths, key, row_ids))


def scorer(config: transformer.Config, params: types.Params,
           base: types.Params | None, *, members: int, rows: int, length: int
           ) -> Program:
  """Scores of rows by all members of an ensemble.

  Args:
    config: of the reward models.
    params: shapes of what each has, leaves [E, ...].
    base: shapes of what all share; None: nothing.
    members: E.
    rows: that each of them scores.
    length: T, tokens of a row.
  """
  def score(members, base, tokens, mask):
    return reward_models.score_members(
        config, types.with_base(base, members), tokens, mask)
  some = batch('tokens', 'mask', shape=(rows, 1, length))
  return Program(score, (
      sharding.abstract(params, members=members),
      base and sharding.abstract(base), some.tokens, some.mask))


def batch(*fields: str, shape: Sequence[int], members: int = 0) -> types.Batch:
  """Shapes of these fields of a batch, rows split."""
  return _rows(types.Batch(**{name: jax.ShapeDtypeStruct(
      tuple(shape), _DTYPES.get(name, jnp.float32)) for name in fields}),
      members)


def _rows(tree, members=0):
  where = sharding.rows_sharding(members)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=where), tree)


# Compilers.


def has_tpu_compiler() -> bool:
  """Whether libtpu is installed, or said where to be."""
  return 'TPU_LIBRARY_PATH' in os.environ or (
      importlib.util.find_spec('libtpu') is not None)


def tpu_devices(name: str) -> list:
  """The devices of a slice such as 'v5e:4x4', which need not be there.

  Raises:
    TopologyError: the compiler knows no such slice.
  """
  # It would ask a server about the machine it runs on, and lock it.
  for variable, value in dict(
      TPU_SKIP_MDS_QUERY='1', TPU_ACCELERATOR_TYPE='v5litepod-8',
      TPU_WORKER_HOSTNAMES='localhost', TPU_WORKER_ID='0',
      ALLOW_MULTIPLE_LIBTPU_LOAD='1').items():
    os.environ.setdefault(variable, value)
  try:
    return topologies.get_topology_desc(name, platform='tpu').devices
  except Exception as error:  # of whatever kind the library raises
    raise errors.TopologyError(
        f'{name}: libtpu has no such slice '
        f'({str(error).partition(chr(10))[0]})') from None


def lower(program: Program, platform: str) -> jax.stages.Lowered:
  """A program for a platform that need not be there."""
  return jax.jit(program.function, donate_argnums=program.donated).trace(
      *program.arguments).lower(lowering_platforms=(platform,))


@contextlib.contextmanager
def quick_compiler() -> Iterator[None]:
  """Compiles in seconds what would take minutes, and keeps nothing.

  Memory and collectives are nearly those of an optimised program. What a cache
  holds cannot be read back without a device.
  """
  flags = {'jax_optimization_level': 'O0',
           'jax_enable_compilation_cache': False}
  before = {name: getattr(jax.config, name) for name in flags}
  for name, value in flags.items():
    jax.config.update(name, value)
  try:
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)


def figures(compiled: jax.stages.Compiled) -> Figures:
  """What a compiler says."""
  memory, counts = compiled.memory_analysis(), {}
  for (kind, _), count in collectives(compiled.as_text()).items():
    counts[kind] = counts.get(kind, 0) + count
  return Figures(
      memory.argument_size_in_bytes,
      memory.temp_size_in_bytes + memory.output_size_in_bytes
      - memory.alias_size_in_bytes,
      (compiled.cost_analysis() or {}).get('flops', math.nan), counts)


def collectives(hlo: str) -> dict[tuple[str, tuple[int, ...]], int]:
  """How often each collective of a program gives a shape.

  Args:
    hlo: text of the compiled program.
  """
  counts = {}
  for line in hlo.splitlines():
    match = re.search(rf'= (.*?) ({"|".join(COLLECTIVES)})(?:-start)?\(', line)
    for shape in re.findall(r'\w+\[([\d,]*)\]', match[1]) if match else ():
      what = match[2], tuple(map(int, filter(None, shape.split(','))))
      counts[what] = counts.get(what, 0) + 1
  return counts
