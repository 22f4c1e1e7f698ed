"""What the nodes of a config stand for: its data, conditions, logs and runs."""

from collections.abc import Callable, Iterable, Mapping
import functools
import pathlib
from typing import Any

from rlhf_jax import errors
from rlhf_jax.data import load as load_lib
from rlhf_jax.models import pretrained
from rlhf_jax.pipeline import online_methods
from rlhf_jax.reports import spec
from rlhf_jax.rewards import nodes as reward_nodes

PARTS = ('policy', 'proxy', 'gold')  # of a config, with a model each
# Of a seed, beside which each condition has a directory.
STAGES = ('sft', 'trunk', 'gold', 'pairs', 'samples', 'logs', 'policies')
# Arguments that belong to a name or kind, so that a run replaces them whole.
OPEN = ('aggregate', 'arguments', 'components', 'labels')
BEST_OF_N = 'best_of_n'  # an `algorithm` that trains nothing


def requirement(config: Mapping) -> Callable[[bool, str, str], None]:
  """require(ok, field, what): a ConfigError that names the field if not ok."""
  def require(ok, field, what):
    if not ok:
      value = functools.reduce(lambda node, name: node[name],
                               field.split('.'), config)
      raise errors.ConfigError(f'config.{field} is {value!r}; {what}')
  return require


def at(where: str, node: Any) -> dict:
  """A config that holds nothing but `node`, at a dotted place."""
  return functools.reduce(lambda inner, name: {name: inner},
                          reversed(where.split('.')), node)


def absolute(config: dict) -> dict:
  """The config with the paths of models made absolute."""
  return dict(config) | {
      part: dict(config[part], model=pretrained.absolute(config[part]['model']))
      for part in PARTS}


def data_config(config: dict) -> dict:
  """The corpus node: logged responses, real files, or the world.

  By `data.logged.path` or `.task`, or `data.path`; the world where none is
  given.
  """
  data = dict(config['data'])
  of_files, of_world = data.pop('files'), data.pop('world')
  of_log = data.pop('logged')
  path, preferences = data.pop('path'), data.pop('preferences')
  if path is None and preferences is not None:
    raise errors.ConfigError(
        'config.data.preferences (human pairs for the gold model) is given '
        'without config.data.path (demonstrations); give both')
  if of_log['path'] is not None or of_log['task'] is not None:
    if path is not None:
      raise errors.ConfigError(
          f'config.data.path is {path!r}, but config.data.logged '
          f'{of_log["path"] or of_log["task"]!r} is a whole corpus; give one '
          'of them')
    del data['num_demonstrations']  # its log has as many as it has
    if of_log['path'] is not None:  # the real thing, where it can be had
      of_log = dict(of_log, task=None, num_rows=None, noise=None)
    columns = {name: column for name, column in of_log['columns'].items()
               if column is not None}
    of_log = dict(of_log, columns=columns or None)
    return {'name': 'logged', **data, **_paths(config, of_log)}
  if path is None:
    return {'name': 'reviews', **data, **of_world}
  return {'name': 'files', **data, **_paths(
      config, of_files | {'path': path, 'preferences': preferences})}


def _paths(config: dict, named: dict) -> dict:
  """Absolute paths, and the tokenizer that a loaded policy comes with."""
  loaded = pretrained.source(config['policy']['model'])
  if (named['tokenizer'] is None and loaded is not None
      and loaded.suffix != '.bin'):
    named = named | {'tokenizer': str(loaded)}
  return named | {field: str(pathlib.Path(named[field]).absolute())
                  for field in load_lib.FILES if named.get(field) is not None}


def has_rule(data: dict) -> bool:
  """Whether a corpus has the rule of the small world to learn from."""
  return data['name'] == 'reviews' or (
      data.get('task') == 'reddit' and not data.get('tokenizer'))


def merge(base: dict, changes: dict, where: str) -> dict:
  """`base` with nested changes.

  Raises:
    ConfigError: naming a field that `base` does not have.
  """
  merged = dict(base)
  for name, value in changes.items():
    if name not in base:
      raise errors.ConfigError(f'config.{where}.{name} is no field; there are '
                               f'{", ".join(sorted(base))}')
    if isinstance(base[name], dict) and name not in OPEN:
      if not isinstance(value, dict):
        raise errors.ConfigError(f'config.{where}.{name} is {value!r}; give '
                                 'changes of its fields')
      value = merge(base[name], value, f'{where}.{name}')
    merged[name] = value
  return merged


def conditions(config: dict) -> dict[str, dict]:
  """The `proxy` node and `label_noise` of each condition, paths absolute."""
  base = {'label_noise': 0.0, **config['proxy']}
  merged = {name: merge(base, changes, f'conditions.{name}')
            for name, changes in config['conditions'].items()}
  return {name: dict(node, model=pretrained.absolute(node['model']))
          for name, node in merged.items()}


def online_runs(config: dict) -> dict[str, dict]:
  """What each run of a study `online` is, labels included."""
  base = {'labels': {}, **config['online']}
  return {name: merge(base, changes, f'runs.{name}')
          for name, changes in config['runs'].items()}


def offline_runs(config: dict) -> dict[str, dict]:
  """What each run of a study `offline` is, labels included.

  A run of an algorithm that samples is a change of the node `online`, all
  others are changes of `offline`.
  """
  runs = {}
  for name, changes in config['runs'].items():
    algorithm = changes.get('algorithm', config['offline']['algorithm'])
    node = 'online' if algorithm in online_methods.names() else 'offline'
    # One that samples is compared by the rewards of a log too.
    base = {'labels': {}, 'log': config['offline']['log'], **config[node]}
    runs[name] = merge(base, changes, f'runs.{name}')
  return runs


def logs(config: dict) -> dict[str, dict]:
  """What each log is."""
  return {name: merge(config['log'], changes, f'logs.{name}')
          for name, changes in config['logs'].items()}


def of_stage(run: Mapping, *labels: str) -> dict:
  """The part of a run that its stage is told."""
  return {k: v for k, v in run.items() if k not in ('labels', *labels)}


def is_best_of_n(run: Mapping) -> bool:
  """Whether a run chooses among samples and trains nothing."""
  return run['algorithm'] == BEST_OF_N


def reads_proxies(run: Mapping) -> bool:
  """Whether a run of the node `online` needs the ensemble of its condition."""
  return (is_best_of_n(run) or run['value']['trunk'] == 'reward'
          or 'proxy' in reward_nodes.kinds(run['reward']['components']))


def reads_gold(config: dict, components: Iterable[Mapping[str, Mapping]]
               ) -> bool:
  """Whether a study of policies needs a gold model beside its conditions.

  Somebody has to read it: a component, a column that the figure names, or the
  judge.

  Args:
    config: of the study.
    components: of all its runs and logs.
  """
  figure, judge = config['figure'], config.get('judge')
  named = [name for field in ('columns', 'y')
           for name in figure.get(field) or ()]
  return (any({'gold', 'file'} & reward_nodes.kinds(nodes)
              for nodes in components)
          or any(spec.origin(name) is not None for name in named)
          or figure.get('kind') == 'win_rates'
          or bool(judge and judge['against'] is not None
                  and judge['judge'].get('kind') == 'gold'))
