"""From the config of a study to its figure: flags, plan, stages.

What takes a second to import is imported where it is used, so that a mistyped
flag is refused at once.
"""

from collections.abc import Mapping
import logging
import os
import pathlib

from absl import flags

from rlhf_jax.commands import arguments

SAFE_KEYS = ('seeds', 'title', 'training.*', 'mesh.*')  # of a config


def define(values: flags.FlagValues):
  """Adds the flags of whatever runs a study."""
  flags.DEFINE_list(
      'stages', [], 'run only these stages; names or patterns',
      flag_values=values)
  flags.DEFINE_list(
      'reuse', [], 'workdirs of other studies. A stage that is complete in one '
      'of them, under whatever name, is taken over and not run if it was made '
      'from the same arguments, input files, earlier stages and code. The '
      'files are hard links, or copies across file systems: '
      'the other workdir may be deleted, and may be in use',
      flag_values=values)
  flags.DEFINE_list(
      'redo', [], 'make these stages again, names or patterns, and all that '
      'are made from them; what there was is set aside', flag_values=values)
  flags.DEFINE_boolean(
      'accept_code_change', False, 'whether stages count that were made by '
      'other code than they would be now, this package, a library or a module '
      'of yours; their results then say so', flag_values=values)
  flags.DEFINE_boolean(
      'strict_resume', False, 'end with an error where a checkpoint is '
      'damaged, and not go on from the one before it', flag_values=values)
  flags.DEFINE_list(
      'log_to', [], 'who else is told the metrics while they are written: '
      'tensorboard, by event files in <workdir>/tensorboard, wandb, by runs in '
      '<workdir>/wandb, which are sent only where WANDB_MODE is online',
      flag_values=values)
  arguments.define_texts(
      values,
      workdir='where everything is written',
      plan=('run nothing; say what each stage needs of one device of a '
            'machine, such as v5e:4x4 or h100x8; alone: of this one. Where '
            'libtpu is installed, also what the compiler for a slice says'),
      coordinator=('host:port of process 0, where several run together; '
                   "'auto' asks the environment, as on TPU VMs; under SLURM, "
                   'Open MPI and GKE they find each other without'))
  flags.DEFINE_integer(
      'num_processes', None, 'how many run together', flag_values=values)
  flags.DEFINE_integer(
      'process_id', None, 'which of them this is, from 0', flag_values=values)
  flags.DEFINE_integer(
      'heartbeat', 15, 'seconds of silence after which a process counts as '
      'dead', flag_values=values)


def spelled_out(argv: list[str]) -> list[str]:
  """`--plan` alone as the flag with a value that it is."""
  return ['--plan=here' if x == '--plan' else x for x in argv]


def launch(config: dict, values: flags.FlagValues):
  """Plans a study, and runs it unless it is only to be planned.

  Args:
    config: of the study.
    values: parsed, with the flags of `define`.

  Raises:
    UserError: of whatever kind.
  """
  from rlhf_jax.runner import cluster
  from rlhf_jax.runner import run as run_lib
  from rlhf_jax.studies import memory
  from rlhf_jax.studies import plan

  # As much of a GPU as a plan counts on; jax takes less by itself.
  os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', str(memory.USABLE))
  together = cluster.Cluster(values.coordinator, values.num_processes,
                             values.process_id, values.heartbeat)
  if together.several:
    cluster.supervise()
    cluster.connect(together)
  stages = plan.plan(config)
  prepare()
  if any(size == -1 for axis, size in config['mesh'].items()
         if axis != 'data'):
    # Into how many parts models are split is known only now.
    stages = plan.plan(config, _num_devices(values.plan))
  if values.plan:
    _show_memory(config, stages, values.plan)
    return
  run_lib.run_study(
      plan.with_inputs(config, stages), values.workdir, config=config,
      only=values.stages, reuse=values.reuse, redo=values.redo,
      accept_code_change=values.accept_code_change,
      strict_resume=values.strict_resume, log_to=values.log_to,
      safe_keys=SAFE_KEYS)
  _show_figure(config, values.workdir)


def prepare():
  """Quiet, and with compiled programs kept between runs."""
  for name in ('absl', 'jax', 'orbax'):
    logging.getLogger(name).setLevel(logging.ERROR)
  import jax

  if not jax.config.jax_compilation_cache_dir:
    cache = pathlib.Path.home() / '.cache' / 'rlhf_jax' / 'xla'
    jax.config.update('jax_compilation_cache_dir', str(cache))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


def _show_memory(config: Mapping, stages: list, name: str):
  """Prints what a plan needs; TopologyError if it does not fit."""
  from rlhf_jax.runner import voice
  from rlhf_jax.studies import memory
  from rlhf_jax.studies import programs

  machine = memory.machine(name)
  uses = memory.uses(config, stages, machine.count)
  voice.say(memory.page(uses, machine))
  memory.check(uses, machine)
  if machine.is_slice and programs.has_tpu_compiler():
    for line in memory.compiled(uses, machine, config['mesh']):
      voice.say(line)


def _num_devices(name: str | None) -> int:
  """Of the machine that is planned for, or of this run."""
  import jax

  from rlhf_jax.studies import memory

  if name:
    return memory.machine(name).count
  return jax.device_count()


def _show_figure(config: Mapping, workdir: str):
  """Prints where the study's figure is, if it is there."""
  from rlhf_jax.parallel import processes
  from rlhf_jax.runner import cluster
  from rlhf_jax.runner import run as run_lib
  from rlhf_jax.runner import voice
  from rlhf_jax.studies import plan

  final = plan.final(config)
  with cluster.losing():
    result = processes.from_owner(
        lambda: run_lib.read_result(workdir, final))
  if result is not None:
    # Not the recorded directory: the workdir may have been moved.
    figure = (pathlib.Path(workdir).absolute() / final
              / pathlib.Path(result['figure']).name)
    voice.say(str(figure))
