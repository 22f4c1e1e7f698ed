"""Which code a stage runs: its modules by their content, and the versions.

An edited loss must not be taken for the one that a result was made by. What
counts is what Python runs: comments, docstrings and white space do not.
"""

import ast
from collections.abc import Callable, Iterable, Iterator
import contextlib
import functools
import gc
import hashlib
import importlib.metadata
import importlib.util
import pathlib
import platform
from typing import NamedTuple

from rlhf_jax.runner import code_cache

# Of which another version may give other numbers.
_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'tokenizers')
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_ROOTS = {'rlhf_jax': pathlib.Path(__file__).parents[2]}


class _Module(NamedTuple):
  """A file of source code."""

  digest: str
  imports: tuple[str, ...]  # modules, or names in them


def of(function: Callable, modules: Iterable[str] = ()) -> dict[str, str]:
  """Digests of all source code that a stage may run, and versions.

  Args:
    function: of the stage.
    modules: of users, whose functions the stage is told of.

  Returns:
    {module: first 16 digits of a SHA-256} of those that are imported from
    there at any depth, unless they are installed or Python's own, and
    {library: version}.
  """
  roots, digests, queue = dict(_ROOTS), {}, [function.__module__, *modules]
  entries = code_cache.load()
  num_kept = len(entries)
  while queue:
    name = queue.pop()
    path = None if name in digests else _file(name, roots)
    if path is None:
      continue
    module = _read(path, name)
    digests[name] = module.digest
    parents = name.split('.')[:-1]
    queue += ['.'.join(parents[:n]) for n in range(1, len(parents) + 1)]
    queue += module.imports
  if len(entries) > num_kept:
    code_cache.save(entries)
  return dict(sorted(digests.items())) | _versions()


def difference(old: dict[str, str], new: dict[str, str]) -> list[str]:
  """What differs between two results of `of`, in words."""
  libraries = {*_LIBRARIES, 'python'}
  return [
      f'{name} {old.get(name)} -> {new.get(name)}' if name in libraries
      else name for name in sorted(old.keys() | new.keys())
      if old.get(name) != new.get(name)]


@functools.cache
def _versions() -> dict[str, str]:
  return {'python': platform.python_version()} | {
      name: importlib.metadata.version(name) for name in _LIBRARIES}


def _file(name: str, roots: dict[str, pathlib.Path]) -> pathlib.Path | None:
  """The source of a module below one of the roots, None if it is elsewhere."""
  top = name.partition('.')[0]
  if top in roots:
    path = roots[top].joinpath(*name.split('.'))
    return next((p for p in (path / '__init__.py', path.with_suffix('.py'))
                 if p.is_file()), None)
  try:
    spec = importlib.util.find_spec(top)
  except (ImportError, ValueError):
    return None
  if spec is None or not spec.has_location or not spec.origin.endswith('.py'):
    return None
  path = pathlib.Path(spec.origin)
  # Neither installed nor Python's own: somebody may edit it.
  if 'site-packages' in path.parts or 'dist-packages' in path.parts or (
      path.is_relative_to(pathlib.Path(ast.__file__).parent)):
    return None
  root = path.parent.parent if path.stem == '__init__' else path.parent
  roots[top] = root
  return _file(name, roots)


@contextlib.contextmanager
def _without_collection():
  """For syntax trees, whose nodes have no cycles: collecting takes longest."""
  was_enabled = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if was_enabled:
      gc.enable()


@functools.cache
def _read(path: pathlib.Path, name: str) -> _Module:
  source, is_package = path.read_bytes(), path.stem == '__init__'
  key = hashlib.sha256(
      f'{_parser()} {name} {is_package} '.encode() + source).hexdigest()
  entries = code_cache.load()
  if key not in entries:
    entries[key] = [*_parse(source, name, is_package)]
  digest, imports = entries[key]
  if is_package and b'import_module' in source:
    # A registry: which of its modules is imported is known only when it runs.
    imports = [*imports, *(
        f'{name}.{other.stem}' for other in path.parent.glob('*.py'))]
  return _Module(digest, tuple(imports))


@functools.cache
def _parser() -> str:
  """What else than a source decides what `_parse` gives."""
  source = pathlib.Path(__file__).read_bytes()
  return f'{platform.python_version()} {hashlib.sha256(source).hexdigest()}'


@_without_collection()
def _parse(source: bytes, name: str, is_package: bool) -> _Module:
  try:
    tree = ast.parse(source)
  except (SyntaxError, ValueError):  # importing it will say so
    return _Module(hashlib.sha256(source).hexdigest()[:16], ())
  statements = [tree, *_statements(tree)]
  imports = tuple(_imports(statements, name, is_package))
  for node in statements:
    if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, False):
      node.body.pop(0)
  text = ast.dump(tree)
  return _Module(hashlib.sha256(text.encode()).hexdigest()[:16], imports)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
  """Those below a node, at any depth, without the expressions in them."""
  for child in ast.iter_child_nodes(node):
    if not isinstance(child, ast.expr):
      yield child
      yield from _statements(child)


def _imports(
    statements: Iterable[ast.AST], name: str, is_package: bool
) -> Iterator[str]:
  """What a module imports, wherever it does so."""
  for node in statements:
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      above = name.split('.')
      above = above[:len(above) - node.level + is_package]
      base = '.'.join([*(above if node.level else ()),
                       *filter(None, [node.module])])
      yield base
      # A name in it may be a module of its own.
      yield from (f'{base}.{alias.name}' for alias in node.names)
