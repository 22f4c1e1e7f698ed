"""What a stage is made from, so that it is known when anything of it changes.

A recipe has a key, of what a stage is told and of what it reads from outside,
and the code that it runs, apart: somebody may know that an edit changes no
result, but nobody that another file does not.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import functools
import inspect
from typing import Any, NamedTuple

from rlhf_jax.runner import code as code_lib
from rlhf_jax.storage import files

_PACE = ('save_every', 'log_every')  # of `training`: they change no result


class Recipe(NamedTuple):
  """What the result of a stage depends on.

  Attributes:
    key: SHA-256 of `parts`, whatever earlier stages are called.
    parts: {'function', 'arguments', 'inputs', 'earlier'}: its name, a SHA-256,
      and those of what is read from outside and the keys of earlier stages, by
      name.
    code: of `code.of`, its own and that of the earlier stages.
  """

  key: str
  parts: dict[str, Any]
  code: dict[str, str]

  def record(self) -> dict[str, Any]:
    """The fields of it that a workdir keeps."""
    return {'recipe': self.key, 'parts': self.parts, 'code': self.code}


def of_stages(stages: Sequence[Any]) -> dict[str, Recipe | None]:
  """The recipes of the stages of a study, by name.

  Where an argument names an earlier stage, at any depth, the key of that
  stage's recipe stands in for its name.

  Args:
    stages: of `run.Stage`, in order.

  Returns:
    None for a stage of which it cannot be told: its `run` is no partial of a
    function that can be imported, an argument is not JSON, or an earlier stage
    that it names has no recipe.
  """
  recipes = {}
  code_of = functools.cache(code_lib.of)  # of many stages of one module
  for stage in stages:
    recipes[stage.name] = _recipe(stage, dict(recipes), code_of)
  return recipes


def _recipe(stage: Any, earlier: Mapping[str, Recipe | None],
            code_of: Callable[..., dict[str, str]]) -> Recipe | None:
  run, named = stage.run, {}
  if not isinstance(run, functools.partial) or not _importable(run.func):
    return None

  def resolved(value):
    if isinstance(value, dict):
      return {_text(resolved(k)): resolved(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
      return [resolved(item) for item in value]
    if not isinstance(value, str) or value not in earlier:
      return value
    named[value] = _key(earlier[value])
    return f'recipe {named[value]}'

  keywords = dict(run.keywords)
  training = keywords.pop('training', None) or {}
  try:
    keywords['training'] = {
        k: v for k, v in training.items() if k not in _PACE}
    parts = {
        'function': f'{run.func.__module__}.{run.func.__qualname__}',
        'arguments': files.digest(resolved([list(run.args), keywords])),
        'inputs': dict(stage.inputs)}
    code = dict(code_of(run.func, stage.modules))
    for name in named:
      code |= earlier[name].code
    return Recipe(files.digest(parts), parts | {'earlier': named}, code)
  except (AttributeError, TypeError, ValueError):
    return None


def differences(record: Mapping[str, Any], recipe: Recipe
                ) -> tuple[list[str], list[str]]:
  """What has changed since a stage was made, in words: its recipe, its code.

  Args:
    record: of the stage, with the fields of `Recipe.record`.
    recipe: of today.
  """
  code = code_lib.difference(record.get('code', {}), recipe.code)
  if record.get('recipe') == recipe.key:
    return [], code
  old, new = record.get('parts', {}), recipe.parts
  changes = [f'{kind} {name}' for kind, field in (
      ('input', 'inputs'), ('stage', 'earlier')) for name in sorted(
          old.get(field, {}).keys() | new[field].keys())
             if old.get(field, {}).get(name) != new[field].get(name)]
  return changes or ['config, or another stage'], code


def depending(names: Iterable[str], recipes: Mapping[str, Recipe | None]
              ) -> list[str]:
  """These stages and all that are made from them, in order."""
  names = {*names}
  for name, recipe in recipes.items():
    if recipe is not None and names & recipe.parts['earlier'].keys():
      names.add(name)
  return [name for name in recipes if name in names]


def listed(names: Sequence[str]) -> str:
  """A few names of many, for a message."""
  more = f' and {len(names) - 4} more' if len(names) > 4 else ''
  return ', '.join(names[:4]) + more


def _key(recipe: Recipe | None) -> str:
  if recipe is None:
    raise ValueError('made from a stage without a recipe')
  return recipe.key


def _importable(function: Callable) -> bool:
  """Whether its name says what it does; not so for closures and scripts."""
  return (inspect.isfunction(function) and function.__module__ != '__main__'
          and '<' not in function.__qualname__)


def _text(value: Any) -> str:
  """A string; JSON would silently make one of a number or of None."""
  if not isinstance(value, str):
    raise TypeError(f'not a string: {value!r}')
  return value
