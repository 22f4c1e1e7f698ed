"""What a plan needs of a machine that need not be there: memory of a device."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import math
import re
from typing import Any

import jax

from rlhf_jax import errors
from rlhf_jax.data import small_worlds
from rlhf_jax.parallel import meshes
from rlhf_jax.runner import run as run_lib
from rlhf_jax.studies import estimates
from rlhf_jax.studies import footprints
from rlhf_jax.studies import nodes
from rlhf_jax.studies import programs

# GiB of memory of a device; makers' data sheets.
TPUS = {'v4': 32, 'v5e': 16, 'v5p': 95, 'v6e': 32, 'tpu7x': 96}  # in slices
GPUS = {'l4': 24, 'a100': 80, 'h100': 80, 'h200': 141, 'b200': 180}
DEVICES = TPUS | GPUS

COLUMNS = ('trained', 'optimizer', 'frozen', 'sampler', 'activations', 'peak')
# What a device keeps for itself and for fragments.
USABLE = .92


@dataclasses.dataclass(frozen=True)
class Machine:
  """Devices of one kind."""

  name: str
  count: int
  gib: float | None  # of memory each; None: not known
  usable: float = USABLE  # share of it that a program may have

  @property
  def is_slice(self) -> bool:
    """Whether it is a TPU slice, by name."""
    return self.name.partition(':')[0] in TPUS


def machine(name: str) -> Machine:
  """A machine by name: 'v5e:4x4', a slice, or 'h100x8', GPUs; 'here'.

  Raises:
    TopologyError: there is no such device, or it is not written so.
  """
  if name == 'here':  # whose runtime has kept its share already
    limit = (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit')
    return Machine(jax.devices()[0].device_kind, jax.device_count(),
                   limit and limit / footprints.GIB, usable=1.)
  match = re.fullmatch(r'([a-z]\w*?\d\w*?)(?::(\d+(?:x\d+)*)|x(\d+))', name)
  if match is None or match[1] not in DEVICES:
    raise errors.TopologyError(
        f'--plan={name}: no such machine; give a slice such as v5e:4x4 or a '
        f'number such as h100x8, of {", ".join(DEVICES)}')
  sizes = [int(n) for n in (match[2] or match[3]).split('x')]
  count = math.prod(sizes)
  if (match[1] in TPUS) != (match[2] is not None):
    how = ('TPUs come in slices; write the sides of one, such as v5e:4x4 or '
           'v5p:2x2x2' if match[1] in TPUS
           else f'GPUs come in numbers; write {match[1]}x{count}')
    raise errors.TopologyError(f'--plan={name}: no such machine; {how}')
  return Machine(name, count, DEVICES[match[1]])


def uses(config: Mapping[str, Any], stages: Sequence[run_lib.Stage],
         count: int) -> list[footprints.Use]:
  """What each stage of a plan holds on one of `count` devices.

  Args:
    config: of the study, for its mesh.
    stages: of `plan.plan`.
    count: of devices.

  Raises:
    TopologyError: the mesh does not fit the devices or a model.
  """
  data = nodes.data_config(config)
  if data['name'] in small_worlds.NAMES and config['size'] == 'full':
    # Real text, which need not be there for a plan.
    data = {'name': 'files', **config['data']['files']}
  planner = footprints.Planner(
      meshes.planned(config['mesh'], count),
      estimates.Sizes.of(data, config['seeds'][0]))
  return [planner.use(stage) for stage in stages]


def check(uses: Sequence[footprints.Use], machine: Machine):
  """TopologyError for the stage that needs more than a device has."""
  if machine.gib is None:
    return
  worst = max(uses, key=lambda use: use.peak)
  if worst.peak > machine.usable * machine.gib * footprints.GIB:
    raise errors.TopologyError(
        f'stage {worst.stage} needs {worst.peak / footprints.GIB:.1f} GiB a '
        f'device and {machine.name} has {machine.gib:g}, of which '
        f'{machine.usable:.0%} are usable; split more by '
        'config.mesh, raise num_microbatches, lower chunk_size, or set '
        "model.remat='full'")


def page(uses: Sequence[footprints.Use], machine: Machine) -> str:
  """What `--plan` prints."""
  memory = f' of {machine.gib:g} GiB' if machine.gib else ''
  return (f'{machine.name}: {machine.count} devices{memory}\n'
          f'{table(uses)}')


def table(uses: Sequence[footprints.Use]) -> str:
  """Lines for people: GiB on one device; stages that are alike share one."""
  lines = [_line('GiB on one device', COLUMNS)]
  lines += [_line(name, (_gib(getattr(use, c)) for c in COLUMNS))
            for name, use in _alike(uses)]
  return '\n'.join(lines)


def compiled(uses: Sequence[footprints.Use], machine: Machine,
             axes: Mapping[str, int]) -> Iterator[str]:
  """Lines beside those of `table`: what the compiler says of each program.

  Yields one at a time, for compiling takes up to a minute.

  Args:
    uses: of stages.
    machine: a TPU slice.
    axes: `config.mesh`.
  """
  mesh = meshes.make(axes, programs.tpu_devices(machine.name))
  yield (f'compiled for {machine.name} without optimization, nothing timed; '
         'flops and collectives of a loop are those of one pass')
  yield _line('GiB on one device', ('held', 'beside', 'TFLOP')) + (
      '  collectives')
  for name, use in _alike(uses):
    if use.program is None:
      continue
    with jax.set_mesh(mesh), programs.quick_compiler():
      figures = programs.figures(
          programs.lower(use.program(), 'tpu').compile())
    yield _line(name, (_gib(figures.held), _gib(figures.beside),
                       f'{figures.flops / 1e12:.3f}')) + '  ' + ', '.join(
        f'{count} {kind}' for kind, count in figures.collectives.items())


def _alike(uses):
  """Stages that need something, (name, use); one stands for those like it."""
  groups = {}
  for use in uses:
    if use.peak:
      groups.setdefault(
          tuple(getattr(use, c) for c in COLUMNS), []).append(use)
  return [(first.stage + (f' and {len(more)} more' if more else ''), first)
          for first, *more in groups.values()]


def _gib(size):
  return f'{size / footprints.GIB:.3f}'


def _line(name, columns):
  return f'{name:<46}' + ''.join(f'{column:>12}' for column in columns)
