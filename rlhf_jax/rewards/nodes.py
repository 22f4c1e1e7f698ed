"""What a config may say of a reward: a weighted sum of named components.

The one reward language of the package: online and offline, in training and in
evaluation. A config names the components,

  {'fluent': {'kind': 'function', 'function': 'package.module:fluent'},
   'votes': {'kind': 'gold', 'weight': 2.0}}

Every node has a `kind` and a `weight`, 1 if none is given; a weight of 0 keeps
the component as a column only. The kinds and their other fields:

  proxy: an ensemble of reward models, each member standardised on held-out
    responses (`standardize`), combined by `aggregate`, arguments of
    `ops.ensembles.aggregate`.
  gold: the gold model's score, in standard deviations of the initial policy's
    samples from their mean.
  file: number `column` of the logged file, in the file's own units; responses
    that are not logged get what the gold model, which has learned that column,
    predicts for it, in the same units.
  tfidf: `ops.texts.TfidfDiversity`, fitted on logged responses; `min_words`.
  vader: (compound + 1) / 2, the sentiment of the response.
  readability: `ops.readability.flesch_reading_ease` / 100, clipped to [0, 1].
  length: words / `target`, clipped to 1.
  exact_match: 1 where the response is the reference, up to white space; with
    `extract` 'final_answer', where the final answers of both agree. Of kind
    'gsm8k' the reference is a final answer alone, which needs the latter.
  function: `function` of texts, see `programmatic`; a value outside `range`,
    where one is given, is an error. So is None, NaN or an infinite one, unless
    `on_bad_reward` is 'drop': then, in training, the prompt is left out of its
    rollout with all its samples, and an evaluation is of the others.

A score of the first three becomes x = score / `scale`, which is 1 if none is
given, and is reported as it is unless `squash` asks for more: 'sigmoid', or
'clip', to `range`, (0, 1) if none is given. What is not squashed must lie in
its `range`, if one is given; without one it is unbounded.
"""

from collections.abc import Iterator, Mapping
import importlib.util
import math
import numbers
from typing import Any

from rlhf_jax import errors
from rlhf_jax.ops import ensembles

_REQUIRED = object()
_MODEL = {'squash': 'none', 'scale': 1.0, 'range': None}
# The fields of each kind beside `kind` and `weight`, and what they are if they
# are not given.
KINDS = {
    'gold': _MODEL,
    'proxy': {'aggregate': {'kind': 'mean'}, 'standardize': True, **_MODEL},
    'file': {'column': _REQUIRED, **_MODEL},
    'tfidf': {'min_words': 5},
    'vader': {},
    'readability': {},
    'length': {'target': _REQUIRED},
    'exact_match': {'extract': None},
    'function': {'function': _REQUIRED, 'range': None,
                 'on_bad_reward': 'error'},
}
BAD_REWARDS = ('error', 'drop')
MODELS = ('gold', 'proxy', 'file')  # kinds that a trained model answers
# The stages, by role, that new responses are scored with.
ROLES = {'gold': ('gold', 'pairs'), 'proxy': ('proxies',), 'file': ('gold',),
         'tfidf': ('log',)}


def check(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
  """Checks what a config says of components; loads and starts nothing.

  Args:
    nodes: by the names that columns and messages use, which are identifiers;
      see the module. Without any there is no reward.

  Returns:
    The nodes with every field.

  Raises:
    ConfigError: naming the component and the field, or the package that one
      needs.
  """
  if not isinstance(nodes, Mapping):
    raise errors.ConfigError(
        f"components are {nodes!r}; give {{name: {{'kind': ...}}}}")
  return {name: _node(name, node) for name, node in nodes.items()}


def kinds(nodes: Mapping[str, Mapping[str, Any]]) -> set[str]:
  """The kinds of components that a config asks for."""
  return {node.get('kind') for node in nodes.values()}


def everywhere(config: Mapping) -> Iterator[Mapping[str, Mapping]]:
  """Every node `components` of a config, wherever it stands."""
  for name, value in config.items():
    if name == 'components' and isinstance(value, Mapping):
      yield value
    elif isinstance(value, Mapping):
      yield from everywhere(value)


def roles(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
  """The roles whose stages the components read, {role: component}."""
  return {role: name for name, node in nodes.items()
          for role in ROLES.get(node.get('kind'), ())}


def functions(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
  """'package.module:function' of each component that is one."""
  return {name: node['function'] for name, node in check(nodes).items()
          if node['kind'] == 'function'}


def dropping(nodes: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
  """The components of which a response without a number is left out."""
  return tuple(name for name, node in nodes.items()
               if node.get('on_bad_reward') == 'drop')


def by_models(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict]:
  """The components, with every field, that a model gives on the device."""
  return {name: node for name, node in check(nodes).items()
          if node['kind'] in MODELS}


def by_texts(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict]:
  """The others, with every field, which read texts on the host."""
  return {name: node for name, node in check(nodes).items()
          if node['kind'] not in MODELS}


def bounds(node: Mapping[str, Any]) -> tuple[float, float]:
  """The least and the largest weighted value of a node of `check`."""
  unbounded = node['kind'] == 'function' or node.get('squash') == 'none'
  low, high = node.get('range') or (
      (-math.inf, math.inf) if unbounded else (0.0, 1.0))
  if not node['weight']:
    return 0.0, 0.0
  low, high = sorted((node['weight'] * low, node['weight'] * high))
  return low + 0.0, high + 0.0  # no -0


def _node(name: str, node: Any) -> dict[str, Any]:
  """A node with every field; ConfigError names what is wrong."""
  def require(ok, field, what):
    if not ok:
      value = full.get(field) if isinstance(node, Mapping) else node
      shown = 'absent' if value is _REQUIRED else repr(value)
      raise errors.ConfigError(f'component {name!r}: {field} is {shown}; '
                               f'{what}')

  full = node
  require(isinstance(name, str) and name.isidentifier()
          and not name.endswith('_se'), 'name',
          "give a Python identifier that does not end in '_se'")
  require(isinstance(node, Mapping), 'node', "give {'kind': ...}")
  full = dict(node)
  require(full.get('kind') in KINDS, 'kind', f'there are {", ".join(KINDS)}')
  fields = {'weight': 1.0, **KINDS[full['kind']]}
  for field in node:
    require(field == 'kind' or field in fields, field,
            f'{full["kind"]!r} has {", ".join(fields)}')
  full = {'kind': full['kind'], **fields, **node}
  for field, value in full.items():
    require(value is not _REQUIRED, field, f'{full["kind"]!r} needs it')
  require(_is_number(full['weight']), 'weight', 'give a finite number')
  for field, ok, what in _CHECKS:
    require(field not in full or ok(full[field]), field, what)
  require(full.get('squash') != 'sigmoid' or full['range'] is None, 'range',
          "'sigmoid' has its own, (0, 1)")
  require(full['kind'] != 'tfidf' or importlib.util.find_spec('sklearn'),
          'kind', "it needs scikit-learn: pip install 'rlhf_jax[text]'")
  return full


def _is_number(x: Any) -> bool:
  return (isinstance(x, numbers.Real) and not isinstance(x, bool)
          and math.isfinite(x))


def _is_range(x: Any) -> bool:
  return (isinstance(x, list | tuple) and len(x) == 2
          and all(map(_is_number, x)) and x[0] < x[1])


_CHECKS = (
    ('squash', lambda x: x in ('sigmoid', 'clip', 'none'),
     "there are 'sigmoid', 'clip', 'none'"),
    ('scale', lambda x: _is_number(x) and x > 0, 'give a number above 0'),
    ('range', lambda x: x is None or _is_range(x),
     'give (least, largest), such as (0, 1)'),
    ('aggregate', lambda x: (isinstance(x, Mapping)
                             and x.get('kind') in ensembles.KINDS),
     f"give {{'kind': ...}}; there are {', '.join(ensembles.KINDS)}"),
    ('standardize', lambda x: isinstance(x, bool), 'give True or False'),
    ('target', lambda x: _is_number(x) and x > 0, 'give words, more than 0'),
    ('min_words', lambda x: isinstance(x, int) and 0 <= x <= 10,
     'give a number of words in [0, 10]'),
    ('extract', lambda x: x in (None, 'final_answer'),
     "there are None, 'final_answer'"),
    ('column', lambda x: isinstance(x, str) and x, 'give a name'),
    ('on_bad_reward', lambda x: x in BAD_REWARDS,
     f'there are {", ".join(map(repr, BAD_REWARDS))}'),
    ('function', lambda x: isinstance(x, str) and ':' in x,
     "give it as 'package.module:function'"),
)
