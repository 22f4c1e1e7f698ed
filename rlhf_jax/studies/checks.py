"""What the studies share: checks, input files, and the first stages.

  sft ---------+--> gold --> pairs --> proxies
  trunk (SFT) -+                          ^
       +----------------------------------+
"""

from collections.abc import Callable
import functools
import pathlib

import jax
import jax.numpy as jnp

from rlhf_jax import errors
from rlhf_jax import train
from rlhf_jax.data import coders
from rlhf_jax.data import load as load_lib
from rlhf_jax.data import logs
from rlhf_jax.models import pretrained
from rlhf_jax.ops import ensembles
from rlhf_jax.runner import run as run_lib
from rlhf_jax.stages import gold
from rlhf_jax.stages import pairs
from rlhf_jax.stages import proxies
from rlhf_jax.stages import sft
from rlhf_jax.storage import files

PARTS = ('policy', 'proxy', 'gold')  # of a config, with a model each


def data_config(config: dict) -> dict:
  """The corpus node: logged responses, real files, or the world.

  By `data.logged.kind`, or `data.path`; the world where neither is given.
  """
  data = dict(config['data'])
  of_files, of_world = data.pop('files'), data.pop('world')
  of_log = data.pop('logged')
  path, preferences = data.pop('path'), data.pop('preferences')
  if (path is None) != (preferences is None):
    raise errors.ConfigError(
        'config.data.path (demonstrations) and config.data.preferences '
        '(human pairs for the gold model) must be given together')
  if of_log['kind'] is not None:
    if path is not None:
      raise errors.ConfigError(
          f'config.data.path is {path!r}, but config.data.logged.kind '
          f'{of_log["kind"]!r} is a whole corpus; give one of them')
    del data['num_demonstrations']  # its log has as many as it has
    if of_log['path'] is not None:  # the real thing, where it can be had
      of_log = dict(of_log, task=None, num_rows=None, noise=None)
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


def requirement(config: dict) -> Callable[[bool, str, str], None]:
  """require(ok, field, what): a ConfigError that names the field if not ok."""
  def require(ok, field, what):
    if not ok:
      value = functools.reduce(lambda node, name: node[name],
                               field.split('.'), config)
      raise errors.ConfigError(f'config.{field} is {value!r}; {what}')
  return require


def check_values(config: dict, field: str):
  """Raises ConfigError unless `field` holds values, each of them once."""
  require = requirement(config)
  require(config[field], field, 'give at least one value')
  require(len(set(config[field])) == len(config[field]), field,
          'give each value once')


def check(config: dict):
  """Raises ConfigError for what the first stages would fail at later."""
  require = requirement(config)
  check_values(config, 'seeds')
  require(all(isinstance(x, int) and x >= 0 for x in config['seeds']),
          'seeds', 'seeds are integers >= 0')
  require(config['proxy']['num_members'] >= 1, 'proxy.num_members',
          'an ensemble has at least one member')
  require(config['proxy']['trunk'] in ('shared', 'member'), 'proxy.trunk',
          "'shared' (one SFT trunk) or 'member' (one for each)")
  data = config['data']
  for field, least in (
      ('data.num_demonstrations', 1), ('data.num_pair_prompts', 1),
      ('data.num_eval_prompts', 2), ('gold.held_out', 2)):
    part, name = field.split('.')
    require(config[part][name] >= least, field, f'give at least {least}')
  require(0 < config['proxy']['held_out'] < data['num_pair_prompts'],
          'proxy.held_out', 'must leave some of data.num_pair_prompts '
          f'{data["num_pair_prompts"]} to train on')
  most = data['num_pair_prompts'] - config['proxy']['held_out']
  require(config['proxy']['num_pairs'] is None
          or 1 <= config['proxy']['num_pairs'] <= most, 'proxy.num_pairs',
          f'there are {most} training pairs: None (all of them) or 1 to {most}')
  require((config['proxy']['num_pairs'] or most)
          >= config['proxy']['batch_size'], 'proxy.batch_size',
          'more than there are training pairs; lower it')
  for field in ('save_every', 'log_every'):
    require(config['training'][field] >= 1, f'training.{field}',
            'give at least 1')
  require(config['sampler']['temperature'] > 0, 'sampler.temperature',
          'samples must differ; give more than 0')
  require(0 < config['sampler']['top_p'] <= 1, 'sampler.top_p', 'in (0, 1]')
  require(config['sampler']['top_k'] >= 0, 'sampler.top_k', 'give 0 or more')
  _check_models(config, require)


def check_shares(config: dict, field: str):
  """Raises ConfigError unless `field` holds different shares in [0, 1]."""
  check_values(config, field)
  requirement(config)(
      all(isinstance(x, int | float) and 0 <= x <= 1 for x in config[field]),
      field, 'shares lie in [0, 1]')


def _check_models(config: dict, require):
  require(config['proxy']['head_scale'] >= 0, 'proxy.head_scale',
          'give 0 or more')
  require(config['proxy']['sft']['batch_size'] >= 1, 'proxy.sft.batch_size',
          'give at least 1')
  require(config['proxy']['sft']['num_steps'] >= 1, 'proxy.sft.num_steps',
          'give at least 1')
  for part, node in (('policy', config['policy']), ('gold', config['gold']),
                     ('proxy', config['proxy']),
                     ('proxy.sft', config['proxy']['sft'])):
    parts, size = node['num_microbatches'], node['batch_size']
    require(parts >= 1 and size % parts == 0, f'{part}.num_microbatches',
            f'must divide {part}.batch_size {size}')
  for part in PARTS:
    for field in ('batch_size', 'num_steps' if part != 'proxy' else
                  'num_epochs'):
      require(config[part][field] >= 1, f'{part}.{field}', 'give at least 1')
    optimizer = config[part]['optimizer']
    require(optimizer['learning_rate'] > 0, f'{part}.optimizer.learning_rate',
            'give more than 0')
    check_model(part, config)
    try_to_make(f'{part}.optimizer', functools.partial(
        train.optimizer, num_steps=1), optimizer)
  try_to_make('proxy.sft.optimizer', functools.partial(
      train.optimizer, num_steps=1), config['proxy']['sft']['optimizer'])


def check_model(part: str, config: dict):
  """The shape of a model; a loaded one needs the tokenizer it came with."""
  model = config[part]['model']
  try:
    pretrained.config(model, 1)
    loaded = pretrained.source(model) is not None
  except errors.UserError as error:
    raise type(error)(f'config.{part}.model: {error}') from None
  if not loaded:
    return
  if config['data']['path'] is None and (
      config['data']['logged']['path'] is None):
    raise errors.ConfigError(
        f'config.{part}.model is loaded; give config.data.path and '
        'config.data.preferences, or config.data.logged.path: text in a '
        'language that it knows')
  if data_config(config)['tokenizer'] is None:
    raise errors.ConfigError(
        f'config.{part}.model is loaded; give config.data.files.tokenizer (or '
        'data.logged.tokenizer), the tokens that it knows')


def check_tokens(config: dict, data: dict):
  """Refuses models that do not fit the texts, and two vocabularies."""
  length = data['max_prompt_length'] + data['max_response_length']
  coder = coders.named_tokenizer(data)
  vocab_size = 1 if coder is None else coder.vocab_size
  for part in PARTS:
    model = config[part]['model']
    try:
      pretrained.check(model, vocab_size, length)
    except errors.UserError as error:
      raise type(error)(f'config.{part}.model: {error}') from None
    path = pretrained.source(model)
    if path is None or str(path.absolute()) == data.get('tokenizer'):
      continue
    try:
      own = coders.load_tokenizer(str(path))
    except errors.UserError:  # it came without one
      continue
    token = own.differs_from(coder)
    if token is not None:
      raise errors.ConfigError(
          f'config.{part}.model: in {path}, the token {token!r} has another id '
          f'than in {data["tokenizer"]}; all loaded models of a study must '
          'have one vocabulary')


def has_rule(data: dict) -> bool:
  """Whether a corpus has the rule of the small world to learn from."""
  return data['name'] == 'reviews' or (
      data.get('task') == 'reddit' and not data.get('tokenizer'))


def check_gold(config: dict, data: dict):
  """On files, the gold model must have pairs or scores to train on."""
  if has_rule(data):
    return
  gold, scored = config['gold'], bool(data.get('target'))
  count = logs.num_scored(data) if scored else load_lib.num_preferences(data)
  if not count:
    raise errors.ConfigError(
        'config.data.logged.target is None, but the log has no chosen and '
        'rejected responses that the gold model could learn from; name a '
        'score of the log')
  if count - gold['held_out'] < gold['batch_size']:
    what = 'scored responses' if scored else 'pairs'
    raise errors.ConfigError(
        f'config.gold.held_out is {gold["held_out"]} of {count} {what}, which '
        f'leaves fewer than config.gold.batch_size {gold["batch_size"]}; '
        'lower one of them')


def try_to_make(field: str, make, kwargs: dict):
  """Raises ConfigError, naming `field`, if `make` refuses `kwargs`."""
  try:
    make(**kwargs)
  except (TypeError, ValueError) as error:
    raise errors.ConfigError(f'config.{field}: {error}') from None


def check_aggregate(field: str, kwargs: dict, num_members: int):
  """Raises ConfigError unless `ensembles.aggregate` takes these arguments."""
  if kwargs.get('kind') not in ensembles.KINDS:
    raise errors.ConfigError(f'config.{field}.kind is {kwargs.get("kind")!r}; '
                             f'there are {", ".join(ensembles.KINDS)}')
  try_to_make(field, lambda **kwargs: jax.eval_shape(
      lambda: ensembles.aggregate(jnp.zeros((num_members, 1)), **kwargs)),
      kwargs)


def inputs(config: dict) -> dict:
  """SHA-256 of every input file; a study does not go on with another."""
  models = {f'{part}.model': pretrained.fingerprint(config[part]['model'])
            for part in PARTS}
  return load_lib.fingerprints(data_config(config)) | {
      field: found for field, found in models.items() if found}


class Seed:
  """The stages of one seed, in the order in which they are asked for.

  Attributes:
    name: the first part of every stage's name.
    stages: so far.
    shared: what later stages are told of the policy and the gold model.
  """

  def __init__(self, config: dict, data: dict, seed: int):
    """Adds the SFT policy, the trunk of the proxies and the gold model."""
    self.name, self.stages = f'seed_{seed}', []
    self._config, self._seed = config, seed
    self._given = {'seed': seed, 'data': data}
    self._training = {'training': config['training']}
    policy = self.add('sft', sft.run, **config['policy'], **self._training)
    self.trunks = self.add_trunks(config['proxy'])
    self.shared = {'policy': policy, 'policy_model': config['policy']['model'],
                   'sampler': config['sampler']}
    name = self.add('gold', gold.run, **config['gold'], **self.shared,
                    **self._training)
    self.shared |= {'gold': name, 'gold_model': config['gold']['model']}

  def add(self, name: str, run: Callable[..., dict], **kwargs) -> str:
    """Adds one stage and returns its whole name."""
    name = f'{self.name}/{name}'
    self.stages.append(run_lib.Stage(
        name, functools.partial(run, **self._given, **kwargs)))
    return name

  def add_trunks(self, proxy: dict, prefix: str = '') -> list[str]:
    """SFT trunks of reward models: one shared, or one for each member."""
    names = ['trunk'] if proxy['trunk'] == 'shared' else [
        f'trunk_{m}' for m in range(proxy['num_members'])]
    return [self.add(f'{prefix}{name}', sft.run, model=proxy['model'],
                     **proxy['sft'], init_seed=self._seed + 1000 * (index + 1),
                     **self._training) for index, name in enumerate(names)]

  def add_pairs(self, name: str, *, force_eos: bool, **part) -> str:
    return self.add(name, pairs.run, force_eos=force_eos, **part,
                    **self.shared)

  def add_proxies(self, name: str, proxy: dict, *, pairs: str | list[str],
                  trunks: list[str], label_noise: float) -> str:
    """An ensemble, of a config's `proxy` node."""
    proxy = {k: v for k, v in proxy.items() if k not in ('sft', 'trunk')}
    for field, default in (('num_pairs', None), ('validate', False)):
      if proxy[field] == default:  # as if there were no such field
        del proxy[field]
    return self.add(name, proxies.run, pairs=pairs, trunks=trunks,
                    label_noise=label_noise, **proxy, **self._training)


def absolute(config: dict) -> dict:
  """The config with the paths of models made absolute."""
  return dict(config) | {
      part: dict(config[part], model=pretrained.absolute(config[part]['model']))
      for part in PARTS}


def report_name(config: dict) -> str:
  """The stage whose result names the figure."""
  seeds = '_'.join(str(seed) for seed in config['seeds'])
  if len(seeds) > 40:  # a file name has a limit
    seeds = f'{len(config["seeds"])}_{files.digest(list(config["seeds"]))[:8]}'
  return f'report_seeds_{seeds}'


