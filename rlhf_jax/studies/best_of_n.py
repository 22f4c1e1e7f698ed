"""Reward-model overoptimization under best-of-n (Coste et al. 2024, Fig. 3).

  sft ----------+--> gold --> pairs --> proxies --> best_of_n --> report
  trunk (SFT) --|              |           ^           ^
                +--------------+--> samples -----------+

The policy, the trunk and the gold model are shared by all conditions of a
seed; pairs and samples by all noise levels of one kind of ending.
"""

from collections.abc import Iterator
import functools
import pathlib

import jax
import jax.numpy as jnp

from rlhf_jax import errors
from rlhf_jax import files
from rlhf_jax import study
from rlhf_jax import train
from rlhf_jax.data import corpus
from rlhf_jax.models import pretrained
from rlhf_jax.ops import ensembles
from rlhf_jax.stages import best_of_n
from rlhf_jax.stages import gold
from rlhf_jax.stages import pairs
from rlhf_jax.stages import proxies
from rlhf_jax.stages import report
from rlhf_jax.stages import samples
from rlhf_jax.stages import sft

KINDS = ('single', 'mean', 'worst_case', 'uncertainty_weighted')


def data_config(config: dict) -> dict:
  """The corpus node: real files if `data.path` is given, else the world."""
  data = dict(config['data'])
  of_files, of_world = data.pop('files'), data.pop('world')
  path, preferences = data.pop('path'), data.pop('preferences')
  if (path is None) != (preferences is None):
    raise errors.ConfigError(
        'config.data.path (demonstrations) and config.data.preferences '
        '(human pairs for the gold model) must be given together')
  if path is None:
    return {'name': 'reviews', **data, **of_world}
  named = of_files | {'path': path, 'preferences': preferences}
  # A loaded policy comes with its tokenizer.
  loaded = pretrained.source(config['policy']['model'])
  if (named['tokenizer'] is None and loaded is not None
      and loaded.suffix != '.bin'):
    named['tokenizer'] = str(loaded)
  named |= {field: str(pathlib.Path(named[field]).absolute())
            for field in corpus.FILES if named[field] is not None}
  return {'name': 'files', **data, **named}


def _check(config: dict):
  """Raises ConfigError for what would fail later, naming the field."""
  def require(ok, field, what):
    if not ok:
      value = functools.reduce(lambda node, name: node[name],
                               field.split('.'), config)
      raise errors.ConfigError(f'config.{field} is {value!r}; {what}')

  for field in ('seeds', 'label_noise', 'force_eos'):
    require(config[field], field, 'give at least one value')
    require(len(set(config[field])) == len(config[field]), field,
            'give each value once')
  require(all(isinstance(x, int | float) and 0 <= x <= 1
              for x in config['label_noise']), 'label_noise',
          'shares lie in [0, 1]')
  require(all(isinstance(x, int) and x >= 0 for x in config['seeds']),
          'seeds', 'seeds are integers >= 0')
  require(all(isinstance(x, bool) for x in config['force_eos']), 'force_eos',
          'give True, False or both')
  require(config['proxy']['num_members'] >= 1, 'proxy.num_members',
          'an ensemble has at least one member')
  require(config['proxy']['trunk'] in ('shared', 'member'), 'proxy.trunk',
          "'shared' (one SFT trunk) or 'member' (one for each)")
  bon, data = config['best_of_n'], config['data']
  for field, least in (
      ('data.num_demonstrations', 1), ('data.num_pair_prompts', 1),
      ('data.num_eval_prompts', 2), ('best_of_n.num_samples', 2),
      ('best_of_n.samples_per_call', 1), ('best_of_n.shard_prompts', 1),
      ('gold.held_out', 2)):
    part, name = field.split('.')
    require(config[part][name] >= least, field, f'give at least {least}')
  require(bon['num_samples'] % min(bon['samples_per_call'], bon['num_samples'])
          == 0, 'best_of_n.num_samples', 'give a multiple of '
          f'best_of_n.samples_per_call {bon["samples_per_call"]}')
  require(0 < config['proxy']['held_out'] < data['num_pair_prompts'],
          'proxy.held_out', 'must leave some of data.num_pair_prompts '
          f'{data["num_pair_prompts"]} to train on')
  require(data['num_pair_prompts'] - config['proxy']['held_out']
          >= config['proxy']['batch_size'], 'proxy.batch_size',
          'more than there are training pairs; lower it')
  for field in ('save_every', 'log_every'):
    require(config['training'][field] >= 1, f'training.{field}',
            'give at least 1')
  require(config['sampler']['temperature'] > 0, 'sampler.temperature',
          'best-of-n needs samples that differ; give more than 0')
  require(0 < config['sampler']['top_p'] <= 1, 'sampler.top_p', 'in (0, 1]')
  require(config['sampler']['top_k'] >= 0, 'sampler.top_k', 'give 0 or more')
  _check_models(config, require)


def _check_models(config: dict, require):
  members = config['proxy']['num_members']
  require(config['proxy']['head_scale'] >= 0, 'proxy.head_scale',
          'give 0 or more')
  for name, method in config['best_of_n']['methods'].items():
    require(method['kind'] in KINDS, f'best_of_n.methods.{name}.kind',
            f'there are {", ".join(KINDS)}')
    _try_to_make(f'best_of_n.methods.{name}', lambda **kwargs: jax.eval_shape(
        lambda: ensembles.aggregate(jnp.zeros((members, 1)), **kwargs)),
        method)
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
  for part in ('policy', 'proxy', 'gold'):
    for field in ('batch_size', 'num_steps' if part != 'proxy' else
                  'num_epochs'):
      require(config[part][field] >= 1, f'{part}.{field}', 'give at least 1')
    optimizer = config[part]['optimizer']
    require(optimizer['learning_rate'] > 0, f'{part}.optimizer.learning_rate',
            'give more than 0')
    _check_model(part, config)
    _try_to_make(f'{part}.optimizer', functools.partial(
        train.optimizer, num_steps=1), optimizer)
  _try_to_make('proxy.sft.optimizer', functools.partial(
      train.optimizer, num_steps=1), config['proxy']['sft']['optimizer'])


def _check_model(part: str, config: dict):
  """The shape of a model; a loaded one needs the tokenizer it came with."""
  model = config[part]['model']
  try:
    pretrained.config(model, 1)
    loaded = pretrained.source(model) is not None
  except errors.UserError as error:
    raise type(error)(f'config.{part}.model: {error}') from None
  if not loaded:
    return
  if config['data']['path'] is None:
    raise errors.ConfigError(
        f'config.{part}.model is loaded; give config.data.path and '
        'config.data.preferences, text in a language that it knows')
  if data_config(config)['tokenizer'] is None:
    raise errors.ConfigError(
        f'config.{part}.model is loaded; give config.data.files.tokenizer, '
        'the tokens that it knows')


def _check_tokens(config: dict, data: dict):
  """Refuses models that do not fit the texts, and two vocabularies."""
  length = data['max_prompt_length'] + data['max_response_length']
  coder = corpus.named_tokenizer(data)
  vocab_size = 1 if coder is None else coder.vocab_size
  for part in ('policy', 'proxy', 'gold'):
    model = config[part]['model']
    try:
      pretrained.check(model, vocab_size, length)
    except errors.UserError as error:
      raise type(error)(f'config.{part}.model: {error}') from None
    path = pretrained.source(model)
    if path is None or str(path.absolute()) == data['tokenizer']:
      continue
    try:
      own = corpus.load_tokenizer(str(path))
    except errors.UserError:  # it came without one
      continue
    token = own.differs_from(coder)
    if token is not None:
      raise errors.ConfigError(
          f'config.{part}.model: in {path}, the token {token!r} has another id '
          f'than in {data["tokenizer"]}; all loaded models of a study must '
          'have one vocabulary')


def _check_gold(config: dict, data: dict):
  """On files, the gold model must have pairs to train on."""
  if data['name'] != 'files':
    return
  gold = config['gold']
  count = corpus.num_preferences(data)
  if count - gold['held_out'] < gold['batch_size']:
    raise errors.ConfigError(
        f'config.gold.held_out is {gold["held_out"]} of {count} pairs, which '
        f'leaves fewer than config.gold.batch_size {gold["batch_size"]}; '
        'lower one of them')


def _try_to_make(field: str, make, kwargs: dict):
  try:
    make(**kwargs)
  except (TypeError, ValueError) as error:
    raise errors.ConfigError(f'config.{field}: {error}') from None


def inputs(config: dict) -> dict:
  """SHA-256 of every input file; a study does not go on with another."""
  models = {f'{part}.model': pretrained.fingerprint(config[part]['model'])
            for part in ('policy', 'proxy', 'gold')}
  return corpus.fingerprints(data_config(config)) | {
      field: found for field, found in models.items() if found}


def _proxy_names(seed: str, config: dict) -> list[str]:
  if config['proxy']['trunk'] == 'shared':
    return [f'{seed}/trunk']
  return [f'{seed}/trunk_{m}' for m in range(config['proxy']['num_members'])]


def _condition(force_eos: bool, noise: float | None = None) -> str:
  ending = 'forced_eos' if force_eos else 'as_sampled'
  return ending if noise is None else f'{ending}/noise_{noise:.12g}'


def _seed_stages(config: dict, data: dict, seed: int) -> Iterator[study.Stage]:
  """The stages of one seed, in order."""
  top, names = f'seed_{seed}', _proxy_names(f'seed_{seed}', config)
  proxy, common = dict(config['proxy']), {'seed': seed, 'data': data}
  training = {'training': config['training']}
  trunk_sft = proxy.pop('sft')
  del proxy['trunk']
  make = lambda name, run, **kwargs: study.Stage(
      name, functools.partial(run, **{**common, **kwargs}))
  yield make(f'{top}/sft', sft.run, **config['policy'], **training)
  for index, name in enumerate(names):
    yield make(name, sft.run, model=proxy['model'], **trunk_sft,
               init_seed=seed + 1000 * (index + 1), **training)
  shared = {'policy': f'{top}/sft', 'policy_model': config['policy']['model']}
  shared['sampler'] = config['sampler']
  yield make(f'{top}/gold', gold.run, **config['gold'], **shared, **training)
  shared |= {'gold': f'{top}/gold', 'gold_model': config['gold']['model']}
  bon = dict(config['best_of_n'])
  methods, standardize = bon.pop('methods'), bon.pop('standardize')
  for force_eos in config['force_eos']:
    part = f'{top}/{_condition(force_eos)}'
    yield make(f'{part}/pairs', pairs.run, force_eos=force_eos, **shared)
    yield make(f'{part}/samples', samples.run, force_eos=force_eos, **bon,
               **shared)
    for noise in config['label_noise']:
      here = f'{top}/{_condition(force_eos, noise)}'
      yield make(f'{here}/proxies', proxies.run, pairs=f'{part}/pairs',
                 trunks=names, label_noise=noise, **proxy, **training)
      yield make(f'{here}/best_of_n', best_of_n.run,
                 samples=f'{part}/samples', proxies=f'{here}/proxies',
                 model=proxy['model'], num_members=proxy['num_members'],
                 methods=methods, standardize=standardize)


def final(config: dict) -> str:
  """The stage whose result names the figure."""
  seeds = '_'.join(str(seed) for seed in config['seeds'])
  if len(seeds) > 40:  # a file name has a limit
    seeds = f'{len(config["seeds"])}_{files.digest(list(config["seeds"]))[:8]}'
  return f'report_seeds_{seeds}'


def plan(config: dict) -> list[study.Stage]:
  """The stages of all seeds and the report.

  Raises:
    ConfigError: a field is out of range; nothing has been touched.
    DataError: a file it names is missing or malformed.
  """
  _check(config)
  data = data_config(config)
  corpus.check(data)
  _check_tokens(config, data)
  _check_gold(config, data)
  config = dict(config) | {
      part: dict(config[part], model=pretrained.absolute(config[part]['model']))
      for part in ('policy', 'proxy', 'gold')}
  stages, runs = [], []
  for seed in config['seeds']:
    stages.extend(_seed_stages(config, data, seed))
    runs += [{'stage': f'seed_{seed}/{_condition(end, noise)}/best_of_n',
              'seed': seed, 'force_eos': end, 'label_noise': noise}
             for end in config['force_eos'] for noise in config['label_noise']]
  stages.append(study.Stage(final(config), functools.partial(
      report.run, runs=runs, stages=[s.name for s in stages],
      title=config['title'])))
  return stages
