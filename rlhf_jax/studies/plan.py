"""The one way from a config to stages: check, the stages of each seed, report.

A study says what is its own: what it checks, which reward models it trains,
which stages a seed has and what they show. What a study reads from outside is
not listed by anyone: `inputs` finds it in what the stages are told, so that no
study can forget a model or a function.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import functools
import importlib.util
from types import ModuleType
from typing import Any

from rlhf_jax import studies
from rlhf_jax.data import load as load_lib
from rlhf_jax.models import pretrained
from rlhf_jax.parallel import meshes
from rlhf_jax.runner import run as run_lib
from rlhf_jax.stages import policy_report
from rlhf_jax.storage import files
from rlhf_jax.studies import checks
from rlhf_jax.studies import nodes
from rlhf_jax.studies import seed as seed_lib
from rlhf_jax.studies import trees

# What a seed has to show: {'stage', 'run', 'labels'} of each line of a report.
Shown = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Study:
  """What a study adds to the planning path.

  Attributes:
    check: (data node) -> None, a ConfigError for what is the study's own.
    proxies: every `proxy` node that reward models are trained from, and no
      other, by its place in the config.
    reads_gold: whether gold scores are read, of a model or by the rule.
    of_seed: adds the stages of a seed, and says what they show.
    judge: (all that is shown) -> further stages, which see all seeds.
    report: the last stage.
    arguments: (all that is shown) -> its own arguments.
  """

  check: Callable[[dict], None]
  proxies: Mapping[str, Mapping]
  reads_gold: bool
  of_seed: Callable[[seed_lib.Seed], Shown]
  arguments: Callable[[Shown], dict[str, Any]]
  judge: Callable[[Shown], list[run_lib.Stage]] = lambda shown: []
  report: ModuleType = policy_report


def plan(config: dict, num_devices: int | None = None) -> list[run_lib.Stage]:
  """The stages of all seeds and the report of a study.

  Args:
    config: of the study.
    num_devices: that it will run on, by which an axis of -1 of the mesh is
      known; None: not known, and such an axis counts as 1. No device is
      touched here.

  Raises:
    ConfigError: a field is unknown, mistyped or out of range; nothing has been
      touched.
    DataError: a file it names is missing or malformed.
    TopologyError: the mesh does not fit the devices, or divides no model.
  """
  trees.check_mapping('figure', config.get('figure', {}), "{'kind': ...}")
  config = nodes.absolute(config)
  study = studies.get(config['study']).describe(config)
  data = nodes.data_config(config)
  mesh = meshes.planned(config['mesh'], num_devices)
  trains_gold = study.reads_gold and config['gold']['kind'] != 'rule'
  checks.check(config, study.proxies, mesh, trains_gold=trains_gold)
  load_lib.check(data)
  checks.check_demonstrations(config, data, study.proxies)
  study.check(data)
  checks.check_tokens(config, data, study.proxies, mesh,
                      trains_gold=trains_gold)
  if study.reads_gold:
    checks.check_gold(config, data)
  stages, shown = [], []
  for number in config['seeds']:
    seed = seed_lib.Seed(config, data, number)
    shown += [{**line, 'seed': number} for line in study.of_seed(seed)]
    stages += seed.stages
  judges = study.judge(shown)
  stages += judges
  keywords = study.arguments(shown)
  if judges:
    keywords |= {'judged': judges[-1].name}
  return [*stages, run_lib.Stage(final(config), functools.partial(
      study.report.run, stages=[stage.name for stage in stages],
      title=config['title'], **keywords), alone=True, quick=True)]


def with_inputs(config: dict, stages: Iterable[run_lib.Stage]
                ) -> list[run_lib.Stage]:
  """Stages with what each of them reads from outside.

  Args:
    config: of the study.
    stages: of `plan`.
  """
  digests = inputs(config, stages)
  of_data = {name: digest for name, digest in digests.items()
             if name in load_lib.FILES}
  complete = []
  for stage in stages:
    outside = {*_outside(stage.run.keywords)}
    complete.append(dataclasses.replace(
        stage, modules=tuple(sorted(
            name for place, name in outside if place == 'function')),
        inputs={f'{place} {name}': digests[f'{place} {name}']
                for place, name in outside if place != 'function'}
        | (of_data if 'data' in stage.run.keywords else {})))
  return complete


def inputs(config: dict, stages: Iterable[run_lib.Stage]) -> dict[str, str]:
  """SHA-256 of everything that the stages read from outside.

  Args:
    config: of the study, for its data.
    stages: of `plan`: every model node and every function of a user that one
      of them is told, at any depth.
  """
  digests = load_lib.fingerprints(nodes.data_config(config))
  for stage in stages:
    for place, name in _outside(stage.run.keywords):
      if f'{place} {name}' not in digests:
        digests[f'{place} {name}'] = _DIGEST[place](name)
  return digests


def _outside(value: Any) -> Iterable[tuple[str, str]]:
  """(what it is, its name) of models and functions at any depth."""
  if isinstance(value, list | tuple):
    for item in value:
      yield from _outside(item)
  if not isinstance(value, Mapping):
    return
  for field, item in value.items():
    if field == 'model' and isinstance(item, Mapping):
      source = pretrained.source(item)
      if source is not None:
        yield 'model', str(source)
    elif field == 'rewards' and isinstance(item, str):
      yield 'rewards', item
    elif field in ('function', 'objective') and isinstance(
        item, str) and ':' in item:
      module = item.partition(':')[0]
      if not module.startswith('rlhf_jax.'):
        yield 'function', module
    yield from _outside(item)


def _module_digest(name: str) -> str:
  return files.fingerprint(importlib.util.find_spec(name).origin, ())


_DIGEST = {'model': lambda path: pretrained.fingerprint({'path': path}),
           'rewards': files.tree_fingerprint,
           'function': _module_digest}


def final(config: dict) -> str:
  """The stage whose result names the figure."""
  seeds = '_'.join(str(seed) for seed in config['seeds'])
  if len(seeds) > 40:  # a file name has a limit
    seeds = f'{len(config["seeds"])}_{files.digest(list(config["seeds"]))[:8]}'
  return f'report_seeds_{seeds}'
