"""What the nodes of a config stand for: its data, conditions, logs and runs."""

from collections.abc import Callable, Iterable, Mapping
import functools
import pathlib
from typing import Any

from rlhf_jax import errors
from rlhf_jax.data import load as load_lib
from rlhf_jax.data import small_worlds
from rlhf_jax.models import pretrained
from rlhf_jax.pipeline import online_methods
from rlhf_jax.pipeline import reward_directory
from rlhf_jax.reports import spec
from rlhf_jax.rewards import nodes as reward_nodes
from rlhf_jax.studies import trees

PARTS = ('policy', 'proxy', 'gold')  # of a config, with a model each
# Of a seed, beside which each condition has a directory.
STAGES = ('sft', 'trunk', 'gold', 'pairs', 'preferences', 'feedback',
          'samples', 'logs', 'policies')
# Of `config.data`: what has no meaning unless a log, or files, are read.
_OF_LOG = ('kind', 'split', 'columns', 'num_rows', 'noise', 'target',
           'demonstrations', 'format', 'control', 'tokenizer', 'pad', 'bos',
           'eos')
_OF_FILES = ('kind', 'columns', 'split', 'preference_kind',
             'preference_format')
_JUDGE = {'against': None, 'num_prompts': None, 'show_reference': False,
          'judge': {'kind': 'gold', 'margin': 0.0}}
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

  Raises:
    ConfigError: two of them are given, or a field of one that is not.
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
    return {'name': 'logged', **data, **_paths(config, _renaming(of_log))}
  _check_unread('logged', of_log, _OF_LOG,
                'config.data.logged.path (or config.data.logged.task)')
  if path is None:
    _check_unread('files', of_files, _OF_FILES, 'config.data.path')
    return {**data, **of_world}
  return {'name': 'files', **data, **_paths(config, _renaming(
      of_files | {'path': path, 'preferences': preferences}))}


def _renaming(node: dict) -> dict:
  """A node whose `columns` are those that have another name."""
  columns = {name: column for name, column in node['columns'].items()
             if column is not None}
  return dict(node, columns=columns or None)


def _check_unread(part: str, node: Mapping, fields: Iterable[str],
                  source: str):
  """ConfigError for a field of texts that nothing reads."""
  for field in fields:
    of_field = {field: node.get(field)}
    if isinstance(node.get(field), Mapping):
      of_field = {f'{field}.{name}': x for name, x in node[field].items()}
    for name, value in of_field.items():
      if value is not None and value not in ((), []):
        raise errors.ConfigError(
            f'config.data.{part}.{name} is {value!r}, but {source} is not '
            'given, so that nothing reads it; give both or leave it out')


def _paths(config: dict, named: dict) -> dict:
  """Absolute paths, and the tokenizer that a loaded model comes with.

  That of the policy, or else of the first reward models that are loaded.
  """
  loaded = pretrained.source(config['policy']['model'])
  conditions = config.get('conditions')  # not yet checked
  rewards = [node['path'] for node in (
      conditions.values() if isinstance(conditions, Mapping) else ())
             if isinstance(node, Mapping) and node.get('path') is not None]
  own = {}
  if named['tokenizer'] is None and loaded is None and rewards:
    own = reward_directory.tokenizer(rewards[0])
  elif named['tokenizer'] is None and loaded and loaded.suffix != '.bin':
    own = {'tokenizer': str(loaded)}
  named = named | {name: x for name, x in own.items() if not named.get(name)}
  return named | {field: str(pathlib.Path(named[field]).absolute())
                  for field in load_lib.FILES if named.get(field) is not None}


def has_rule(data: dict) -> bool:
  """Whether a corpus has the rule of the small world to learn from."""
  return data['name'] in small_worlds.NAMES or (
      data.get('task') == 'reddit' and not data.get('tokenizer'))


def check_kinds(where: str, components: Any):
  """ConfigError unless every component is a node of some kind."""
  trees.check_mapping(where, components, "{name: {'kind': ...}}")
  for name, node in components.items():
    _check_kind(f'{where}.{name}', node)


def _check_kind(where: str, node: Any):
  if not isinstance(node, Mapping) or not isinstance(node.get('kind'), str):
    raise errors.ConfigError(
        f"config.{where} is {node!r}; give {{'kind': ...}}, with a name")


def _changes(config: Mapping, field: str) -> Iterable[tuple[str, Mapping]]:
  """The name and the changes of each run, condition or log."""
  trees.check_mapping(field, config[field], '{name: changes}')
  for name, changes in config[field].items():
    if not name or name.startswith('.') or {*name} & {*'/\\\0'}:
      raise errors.ConfigError(
          f'config.{field} has the name {name!r}, and a directory is called '
          'so; leave out slashes and points before it')
    trees.check_mapping(f'{field}.{name}', changes, 'changes of its fields')
    yield name, changes


def conditions(config: dict) -> dict[str, dict]:
  """The `proxy` node and `label_noise` of each condition, paths absolute."""
  base = {'label_noise': 0.0, **config['proxy']}
  merged = {name: trees.merge(base, changes, f'conditions.{name}')
            for name, changes in _changes(config, 'conditions')}
  return {name: _condition(f'conditions.{name}', node)
          for name, node in merged.items()}


def _condition(where: str, node: dict) -> dict:
  """Paths absolute; of reward models that are loaded, as many as there are."""
  node = dict(node, model=pretrained.absolute(node['model']))
  if node['path'] is None:
    return node
  path = str(pathlib.Path(node['path']).absolute())
  try:
    return dict(node, path=path, num_members=reward_directory.shape(path)[1])
  except errors.UserError as error:
    raise type(error)(f'config.{where}.path: {error}') from None


def online_runs(config: dict) -> dict[str, dict]:
  """What each run of a study `online` is, labels included."""
  return {name: _online_run(config, name, changes, {})
          for name, changes in _changes(config, 'runs')}


def _online_run(config, name, changes, more) -> dict:
  """A change of the node `online`, which has the fields of `more` too."""
  run = trees.merge(
      {'labels': {}, **more, **config['online']}, changes, f'runs.{name}')
  check_kinds(f'runs.{name}.reward.components', run['reward']['components'])
  return run


def offline_runs(config: dict) -> dict[str, dict]:
  """What each run of a study `offline` is, labels included.

  A run of an algorithm that samples is a change of the node `online`, all
  others are changes of `offline`.
  """
  runs = {}
  for name, changes in _changes(config, 'runs'):
    algorithm = changes.get('algorithm', config['offline']['algorithm'])
    if algorithm in online_methods.names():
      # One that samples is compared by the rewards of a log too.
      runs[name] = _online_run(
          config, name, changes, {'log': config['offline']['log']})
    else:
      runs[name] = trees.merge(
          {'labels': {}, **config['offline']}, changes, f'runs.{name}')
  return runs


def logs(config: dict) -> dict[str, dict]:
  """What each log is."""
  merged = {name: trees.merge(config['log'], changes, f'logs.{name}')
            for name, changes in _changes(config, 'logs')}
  for name, log in merged.items():
    check_kinds(f'logs.{name}.components', log['components'])
  return merged


def judge(config: Mapping) -> dict:
  """Who compares the policies, with every field; of no one by default."""
  merged = trees.merge(_JUDGE, config.get('judge', {}), 'judge')
  _check_kind('judge.judge', merged['judge'])
  return merged


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

  As `compares_by_gold`, or to predict a score of a log.
  """
  components = list(components)
  return compares_by_gold(config, components) or any(
      'file' in reward_nodes.kinds(nodes) for nodes in components)


def compares_by_gold(config: dict, components: Iterable[Mapping[str, Mapping]]
                     ) -> bool:
  """Whether it needs the gold score, whose unit is that of samples.

  Somebody has to read it: a component, a column that the figure names, or the
  judge.

  Args:
    config: of the study.
    components: of all its runs and logs.
  """
  figure, compared = config['figure'], judge(config)
  named = [name for field in ('columns', 'y')
           if isinstance(figure.get(field), list | tuple)
           for name in figure[field] if isinstance(name, str)]
  return (any('gold' in reward_nodes.kinds(nodes) for nodes in components)
          or any(spec.origin(name) in ('gold', 'rule') for name in named)
          or figure.get('kind') == 'win_rates'
          or (compared['against'] is not None
              and compared['judge']['kind'] == 'gold'))
