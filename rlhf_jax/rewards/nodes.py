"""What a config may say of the components of a reward, checked."""

from collections.abc import Mapping
import importlib.util
import math
import numbers
from typing import Any

from rlhf_jax import errors

_REQUIRED = object()


_MODEL = {'squash': 'sigmoid', 'scale': 1.0, 'range': None}


# The fields of each kind beside `kind` and `weight`, and what they are if they
# are not given.
KINDS = {
    'gold': _MODEL,
    'proxy': _MODEL,
    'file': {'column': _REQUIRED, **_MODEL},
    'tfidf': {'min_words': 5},
    'vader': {},
    'readability': {},
    'length': {'target': _REQUIRED},
    'exact_match': {'extract': None},
    'function': {'function': _REQUIRED, 'range': (0.0, 1.0)},
}


def check(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
  """Checks what a config says of components; loads and starts nothing.

  Args:
    nodes: by the names that columns and messages use, which are identifiers;
      see the module.

  Returns:
    The nodes with every field.

  Raises:
    ConfigError: naming the component and the field, or the package that one
      needs.
  """
  if not isinstance(nodes, Mapping) or not nodes:
    raise errors.ConfigError(
        f"components are {nodes!r}; give {{name: {{'kind': ...}}}}, at least "
        'one')
  return {name: _node(name, node) for name, node in nodes.items()}


def functions(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict]:
  """The part of `nodes` that is for `programmatic.Functions`."""
  return {name: {'function': node['function']}
          for name, node in check(nodes).items() if node['kind'] == 'function'}


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
    ('target', lambda x: _is_number(x) and x > 0, 'give words, more than 0'),
    ('min_words', lambda x: isinstance(x, int) and 0 <= x <= 10,
     'give a number of words in [0, 10]'),
    ('extract', lambda x: x in (None, 'final_answer'),
     "there are None, 'final_answer'"),
    ('column', lambda x: isinstance(x, str) and x, 'give a name'),
    ('function', lambda x: isinstance(x, str) and ':' in x,
     "give it as 'package.module:function'"),
)


def bounds(node: Mapping[str, Any]) -> tuple[float, float]:
  """The least and the largest weighted value of a node of `check`."""
  low, high = node.get('range') or (
      (-math.inf, math.inf) if node.get('squash') == 'none' else (0.0, 1.0))
  if not node['weight']:
    return 0.0, 0.0
  low, high = sorted((node['weight'] * low, node['weight'] * high))
  return low + 0.0, high + 0.0  # no -0
