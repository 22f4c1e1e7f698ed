"""What every study refuses before anything runs: fields that would fail later.

`plan` calls these for all studies, so that none can forget one.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from rlhf_jax import errors
from rlhf_jax import train
from rlhf_jax.data import coders
from rlhf_jax.data import load as load_lib
from rlhf_jax.data import logs
from rlhf_jax.models import pretrained
from rlhf_jax.ops import ensembles
from rlhf_jax.parallel import meshes
from rlhf_jax.parallel import sharding
from rlhf_jax.pipeline import gold_rows
from rlhf_jax.rewards import nodes as reward_nodes
from rlhf_jax.studies import labels
from rlhf_jax.studies import nodes
from rlhf_jax.studies import trees


def check_values(config: dict, field: str):
  """Raises ConfigError unless `field` holds values, each of them once."""
  require = nodes.requirement(config)
  require(config[field], field, 'give at least one value')
  require(len(set(config[field])) == len(config[field]), field,
          'give each value once')


def check_shares(config: dict, field: str):
  """Raises ConfigError unless `field` holds different shares in [0, 1]."""
  check_values(config, field)
  nodes.requirement(config)(
      all(isinstance(x, int | float) and 0 <= x <= 1 for x in config[field]),
      field, 'shares lie in [0, 1]')


def check(config: dict, proxies: Mapping[str, Mapping], mesh: AbstractMesh, *,
          trains_gold: bool):
  """Raises ConfigError for what the first stages would fail at later.

  Args:
    config: of the study.
    proxies: every `proxy` node that is trained, by its place in the config.
    mesh: of `meshes.planned`; a TopologyError if it divides no ensemble.
    trains_gold: whether a gold model is trained.
  """
  require = nodes.requirement(config)
  check_values(config, 'seeds')
  require(all(type(x) is int and x >= 0 for x in config['seeds']),
          'seeds', 'seeds are integers >= 0')
  for field, least in (('data.num_demonstrations', 1),
                       ('data.num_pair_prompts', 1),
                       ('data.num_eval_prompts', 2)):
    require(config['data'][field.partition('.')[2]] >= least, field,
            f'give at least {least}')
  for field in ('save_every', 'log_every'):
    require(config['training'][field] >= 1, f'training.{field}',
            'give at least 1')
  require(config['sampler']['temperature'] > 0, 'sampler.temperature',
          'samples must differ; give more than 0')
  require(0 < config['sampler']['top_p'] <= 1, 'sampler.top_p', 'in (0, 1]')
  require(config['sampler']['top_k'] >= 0, 'sampler.top_k', 'give 0 or more')
  _check_trained('policy', config['policy'], 'num_steps', config, least=0)
  require(not pretrained.is_frozen(config['policy']['model']),
          'policy.model.trainable_layers',
          'a policy has no head that is trained alone; give at least 1')
  if trains_gold:
    require(config['gold']['held_out'] >= 2, 'gold.held_out',
            'give at least 2')
    _check_trained('gold', config['gold'], 'num_steps', config)
  for where, proxy in proxies.items():
    _check_proxy(where, proxy, config)
    try:
      meshes.row_parts(mesh, members=proxy['num_members'])
    except errors.TopologyError as error:
      raise errors.TopologyError(f'config.{where}: {error}') from None


def _check_trained(where: str, node: Mapping, steps: str, config: dict,
                   least: int = 1):
  """A node of a model that is trained, for `least` steps at least."""
  require = nodes.requirement(nodes.at(where, node))
  for field, low in (('batch_size', 1), (steps, least)):
    require(node[field] >= low, f'{where}.{field}', f'give at least {low}')
  parts, size = node['num_microbatches'], node['batch_size']
  require(parts >= 1 and size % parts == 0, f'{where}.num_microbatches',
          f'must divide {where}.batch_size {size}')
  require(node['optimizer']['learning_rate'] > 0,
          f'{where}.optimizer.learning_rate', 'give more than 0')
  try_to_make(f'{where}.optimizer', functools.partial(
      train.optimizer, num_steps=1), node['optimizer'])
  if 'model' in node:
    _check_model(f'{where}.model', node['model'], config)


def _check_proxy(where: str, proxy: Mapping, config: dict):
  """A node of reward models, and of the trunk that they start from."""
  require = nodes.requirement(nodes.at(where, proxy))
  require(proxy['num_members'] >= 1, f'{where}.num_members',
          'an ensemble has at least one member')
  require(proxy['trunk'] in ('shared', 'member'), f'{where}.trunk',
          "'shared' (one SFT trunk) or 'member' (one for each)")
  require(proxy['head_scale'] >= 0, f'{where}.head_scale', 'give 0 or more')
  total, source = config['data']['num_pair_prompts'], 'data.num_pair_prompts'
  if labels.learns_from(config, {where: proxy}, 'preferences'):
    total, source = load_lib.num_preferences(
        nodes.data_config(config)), 'the preferences, which are'
  require(0 < proxy['held_out'] < total, f'{where}.held_out',
          f'must leave some of {source} {total} to train on')
  most, count = total - proxy['held_out'], proxy['num_pairs']
  require(count is None or 1 <= count <= most, f'{where}.num_pairs',
          f'there are {most} training pairs: None (all of them) or 1 to {most}')
  require((count or most) >= proxy['batch_size'], f'{where}.batch_size',
          'more than there are training pairs; lower it')
  noise = proxy.get('label_noise', 0.0)
  require(0 <= noise <= 1, f'{where}.label_noise', 'shares lie in [0, 1]')
  _check_trained(where, proxy, 'num_epochs', config)
  _check_trained(f'{where}.sft', proxy['sft'], 'num_steps', config, least=0)
  if pretrained.is_partial(proxy['model']):
    require(proxy['sft']['num_steps'] == 0, f'{where}.sft.num_steps',
            'a part of a loaded model is trained on the rest as it is; give 0')
    require(proxy['trunk'] == 'shared', f'{where}.trunk',
            'members share what of a loaded model is not trained')


def _check_model(where: str, model: Mapping, config: dict):
  """The shape of a model; a loaded one needs the tokenizer it came with."""
  try:
    pretrained.config(model, 1)
    loaded = pretrained.source(model) is not None
  except errors.UserError as error:
    raise type(error)(f'config.{where}: {error}') from None
  if not loaded:
    return
  if config['data']['path'] is None and (
      config['data']['logged']['path'] is None):
    raise errors.ConfigError(
        f'config.{where} is loaded; give config.data.path and '
        'config.data.preferences, or config.data.logged.path: text in a '
        'language that it knows')
  if nodes.data_config(config)['tokenizer'] is None:
    raise errors.ConfigError(
        f'config.{where} is loaded; give config.data.files.tokenizer (or '
        'data.logged.tokenizer), the tokens that it knows')


def check_demonstrations(config: dict, data: dict,
                         proxies: Mapping[str, Mapping]):
  """Raises ConfigError for policies that have nothing to imitate.

  Args:
    config: of the study.
    data: of `nodes.data_config`, which has passed `load.check`.
    proxies: as for `check`.
  """
  if load_lib.has_answers(data):
    return
  imitators = {'policy': config['policy']} | {
      f'{where}.sft': proxy['sft'] for where, proxy in proxies.items()}
  for where, node in imitators.items():
    nodes.requirement(nodes.at(where, node))(
        node['num_steps'] == 0, f'{where}.num_steps', 'but the data is prompts '
        'alone, with nothing to imitate: give 0, which keeps the model as it '
        'is, or data with responses')


def check_least(where: str, sampler: Mapping, data: Mapping):
  """ConfigError unless a response has room for `min_new_tokens`.

  Args:
    where: of the sampler in the config.
    sampler: with that field.
    data: of `nodes.data_config`.
  """
  most = data['max_response_length']
  nodes.requirement(nodes.at(where, sampler))(
      0 <= sampler['min_new_tokens'] <= most, f'{where}.min_new_tokens',
      f'give 0 to {most}, the tokens of a response')


def check_tokens(config: dict, data: dict, proxies: Mapping[str, Mapping],
                 mesh: AbstractMesh, *, trains_gold: bool):
  """Refuses models that do not fit the texts or the mesh, two vocabularies.

  And samples that are to be longer than a response can be.

  Args:
    config: of the study.
    data: of `nodes.data_config`.
    proxies: as for `check`.
    mesh: as for `check`.
    trains_gold: as for `check`.
  """
  models = {'policy.model': config['policy']['model']}
  if trains_gold:
    models['gold.model'] = config['gold']['model']
  models |= {f'{where}.model': proxy['model']
             for where, proxy in proxies.items()}
  check_least('sampler', config['sampler'], data)
  length = data['max_prompt_length'] + data['max_response_length']
  coder = coders.named_tokenizer(data)
  vocab_size = 1 if coder is None else coder.vocab_size
  checked = []  # conditions mostly share a model, and a check traces it
  for where, model in models.items():
    if model in checked:
      continue
    checked.append(model)
    try:
      shapes = pretrained.check(model, vocab_size, length)
      meshes.check_heads(shapes.config, mesh)
      for part in filter(None, shapes[1:]):
        sharding.shardings(part, mesh)
    except errors.UserError as error:
      raise type(error)(f'config.{where}: {error}') from None
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
          f'config.{where}: in {path}, the token {token!r} has another id '
          f'than in {data["tokenizer"]}; all loaded models of a study must '
          'have one vocabulary')


def check_gold(config: dict, data: dict):
  """Raises ConfigError unless the gold model has enough to train on.

  Texts by the rule of the small world; human pairs or logged scores where
  there is none.

  Args:
    config: of the study.
    data: of `nodes.data_config`.
  """
  kind = config['gold']['kind']
  nodes.requirement(config)(
      kind in ('model', 'rule'), 'gold.kind', "give 'model' or 'rule'")
  if kind == 'rule':
    _check_rule(config, data)
    return
  if nodes.has_rule(data):
    _check_rows(config['gold'], _most_texts(config, data), 'texts')
    return
  scored = bool(data.get('target'))
  if data['name'] == 'files' and data['preferences'] is None:
    raise errors.ConfigError(
        'config.data.preferences is None, and the gold model learns from '
        'human pairs; give them, or leave out what reads the gold model: '
        'conditions, components, columns of the figure and judge')
  count = (logs.num_scored(data) if scored
           else load_lib.num_preferences(data))
  if not count:
    raise errors.ConfigError(
        'config.data.logged.target is None, but the log has no chosen and '
        'rejected responses that the gold model could learn from; name a '
        'score of the log')
  _check_rows(config['gold'], count, 'scored responses' if scored else 'pairs')


def _check_rule(config: dict, data: dict):
  """The rule as gold score needs a world that has one.

  And nothing is trained against it, since no device has it.
  """
  if not nodes.has_rule(data):
    raise errors.ConfigError(
        "config.gold.kind is 'rule', and these texts have no rule, as those of "
        "config.data.world have; give 'model'")
  if any('gold' in reward_nodes.kinds(components)
         for components in reward_nodes.everywhere(config)):
    raise errors.ConfigError(
        "config.gold.kind is 'rule', and a component of kind 'gold' is a "
        "model; set config.gold.kind to 'model'")


def _most_texts(config: dict, data: dict) -> int:
  """Texts that `gold_rows.split` makes in the small world.

  At most so many: of a log, whose texts differ by seed, the first seed counts,
  and a training prompt may have no demonstration.
  """
  count = data.get('num_demonstrations')
  if data['name'] == 'logged':
    count = len(logs.training(data, config['seeds'][0]))
  sampled = -(-count // gold_rows.SAMPLES) * gold_rows.SAMPLES
  return 2 * count + sampled  # each of them clean and damaged


def _check_rows(gold: Mapping, count: int, what: str):
  """Enough of `count` rows are left beside those held out."""
  if count - gold['held_out'] < gold['batch_size']:
    raise errors.ConfigError(
        f'config.gold.held_out is {gold["held_out"]} of {count} {what}, which '
        f'leaves fewer than config.gold.batch_size {gold["batch_size"]}; '
        'lower one of them')


def try_to_make(field: str, make: Callable, kwargs: Mapping[str, Any]):
  """Raises ConfigError, naming `field`, if `make` refuses `kwargs`."""
  try:
    make(**kwargs)
  except (TypeError, ValueError) as error:
    raise errors.ConfigError(f'config.{field}: {error}') from None


def check_aggregate(field: str, kwargs: Mapping, num_members: int):
  """Raises ConfigError unless `ensembles.aggregate` takes these arguments."""
  trees.check_mapping(field, kwargs, "{'kind': ...}")
  if kwargs.get('kind') not in ensembles.KINDS:
    raise errors.ConfigError(f'config.{field}.kind is {kwargs.get("kind")!r}; '
                             f'there are {", ".join(ensembles.KINDS)}')
  try_to_make(field, lambda **kwargs: jax.eval_shape(
      lambda: ensembles.aggregate(jnp.zeros((num_members, 1)), **kwargs)),
      kwargs)


def check_samples_pairs(config: dict):
  """Raises ConfigError unless a study's reward models are of its samples."""
  require = nodes.requirement(config)
  require(config['pairs'] == 'samples', 'pairs',
          f"the study {config['study']!r} labels samples by its gold model; "
          "give 'samples'")
  require(config['proxy']['path'] is None, 'proxy.path',
          f'the study {config["study"]!r} trains its reward models; give None')


def check_samples(config: dict):
  """Raises ConfigError for what the samples of best-of-n would fail at."""
  require, drawn = nodes.requirement(config), config['best_of_n']
  for name, least in (('num_samples', 2), ('samples_per_call', 1),
                      ('shard_prompts', 1)):
    require(drawn[name] >= least, f'best_of_n.{name}', f'give at least {least}')
  require(drawn['num_samples'] % min(
      drawn['samples_per_call'], drawn['num_samples']) == 0,
          'best_of_n.num_samples', 'give a multiple of '
          f'best_of_n.samples_per_call {drawn["samples_per_call"]}')
