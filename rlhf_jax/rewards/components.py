"""Rewards that are sums of named parts, each in its range.

Baheti et al. 2024, https://arxiv.org/abs/2305.14718, section 5, adds five
rewards of a Reddit response, each in [0, 1] (objectives.md, 11.8 and 11.10),
and takes the sigmoid of a reward model's logit (11.11). A config names the
parts:

  {'fluent': {'kind': 'function', 'function': 'package.module:fluent'},
   'votes': {'kind': 'gold', 'weight': 2.0}}

Every node has a `kind` and a `weight`, 1 if none is given; a weight of 0 keeps
the part as a column only. The kinds and their other fields:

  gold, proxy: score of a trained model, in its standard deviations.
  file: number `column` of the logged file; responses that are not logged get
    what a model predicts for it. Both in the units of the file.
  tfidf: `ops.texts.TfidfDiversity`, fitted on logged responses; `min_words`.
  vader: (compound + 1) / 2, the sentiment of the response.
  readability: `ops.readability.flesch_reading_ease` / 100, clipped to [0, 1].
  length: words / `target`, clipped to 1.
  exact_match: 1 where the response is the reference, up to white space; with
    `extract` 'final_answer', where the final answers of both agree. Of kind
    'gsm8k' the reference is a final answer alone, which needs the latter.
  function: `function` of texts, see `programmatic`; a value outside `range`,
    (0, 1) if none is given, is an error.

A score of the first three becomes x = score / `scale`, which is 1 if none is
given. `squash` is 'sigmoid' (if none is given); 'clip', to `range`, (0, 1) if
none is given; or 'none', for x itself, which must lie in `range` if one is
given. What is not squashed and has no range is unbounded.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np
import scipy.special

from rlhf_jax import errors
from rlhf_jax.data import logged
from rlhf_jax.ops import readability
from rlhf_jax.ops import texts as texts_lib
from rlhf_jax.rewards import nodes as nodes_lib
from rlhf_jax.rewards import programmatic

Scorer = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (tokens, mask)


@dataclasses.dataclass(frozen=True)
class Scored:
  """The parts of the rewards of N responses, before weights."""

  values: dict[str, np.ndarray]  # f32[N] by name, in the ranges
  raw: dict[str, np.ndarray]  # f32[N] by name, before `squash`


def _plain(text: str) -> str:
  return ' '.join(text.split())


def _exact(extract: str | None, responses, references) -> list[float]:
  """1 where a response gives the answer of its reference, else 0."""
  if extract is None:
    return [float(_plain(a) == _plain(b))
            for a, b in zip(responses, references, strict=True)]
  # What is logged as the right answer may be the bare number.
  expected = [logged.final_answer(b) or _plain(b) for b in references]
  return [float(logged.final_answer(a) == b)
          for a, b in zip(responses, expected, strict=True)]


def _vader(responses: Sequence[str]) -> list[float]:
  from vaderSentiment import vaderSentiment
  analyzer = vaderSentiment.SentimentIntensityAnalyzer()
  return [analyzer.polarity_scores(text)['compound'] for text in responses]


class Components:
  """Rewards as a weighted sum of named parts, each in its range.

  Close it, or use it as a context manager; then no process is left.

  Attributes:
    names: of the components, in the order of the config.
    lower, upper: the least and the largest `total` that there can be; infinite
      where a component has no range.
  """

  def __init__(self, nodes: Mapping[str, Mapping[str, Any]], *,
               models: Mapping[str, Scorer] | None = None,
               responses: Sequence[str] = (),
               pool: Mapping[str, Any] | None = None):
    """Fits and starts what the components need.

    Args:
      nodes: see the module.
      models: (tokens i32[N, T], mask bool[N, T]) -> f[N] for 'gold', 'proxy'
        and 'file:<column>', as far as there are any.
      responses: texts that TF-IDF is fitted on.
      pool: timeout, num_workers and chunk_size of `programmatic.Functions`.

    Raises:
      ConfigError: as `check`, and if a function cannot be imported.
      ValueError: if a model is missing, or TF-IDF has no words to be fitted
        on.
    """
    self._nodes = nodes_lib.check(nodes)
    self._models = dict(models or {})
    for name, node in self._nodes.items():
      if node['kind'] in ('gold', 'proxy') and node['kind'] not in self._models:
        raise ValueError(f'models must hold {node["kind"]!r} for the component '
                         f'{name}, got {list(self._models)}.')
    self._tfidf = {
        name: texts_lib.TfidfDiversity(responses, min_words=node['min_words'])
        for name, node in self._nodes.items() if node['kind'] == 'tfidf'}
    self.names = tuple(self._nodes)
    limits = np.array([nodes_lib.bounds(node) for node in self._nodes.values()])
    # As `total` rounds, so that it is never outside.
    self.lower, self.upper = map(float, limits.sum(axis=0).astype(np.float32))
    asked = nodes_lib.functions(nodes)
    self._functions = (
        programmatic.Functions(asked, **(pool or {})) if asked else None)

  def __enter__(self) -> 'Components':
    return self

  def __exit__(self, *unused_exc):
    self.close()

  def close(self):
    """Ends the processes of the functions."""
    if self._functions is not None:
      self._functions.close()

  def __call__(self, tokens: np.ndarray, mask: np.ndarray,
               prompts: Sequence[str], responses: Sequence[str], *,
               step: int = 0,
               columns: Mapping[str, np.ndarray] | None = None,
               references: Sequence[str] | None = None) -> Scored:
    """Scores N responses.

    Args:
      tokens: i32[N, T], prompt, response, padding.
      mask: bool[N, T], true on response tokens.
      prompts: N texts.
      responses: N texts.
      step: of the training, for messages.
      columns: f[N] by name, the numbers of logged rows; None where rows are
        not logged.
      references: N right answers, or None.

    Raises:
      RewardError: a component gives a value that is not finite or is out of
        its range, or lacks a column, a model or the references.
    """
    found = {}
    if self._functions is not None:
      found = self._functions.components(prompts, responses, step)
    rows = {'tokens': tokens, 'mask': mask, 'responses': responses,
            'columns': columns, 'references': references}
    values, raw = {}, {}
    for name, node in self._nodes.items():
      given = found.get(name)
      if given is None:
        given = self._raw(name, node, rows)
      where = f'component {name!r} ({node["kind"]}) gave'
      raw[name] = _finite(given, len(responses), where, step)
      values[name] = _bounded(raw[name], node, where, step)
    return Scored(values, raw)

  def total(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """f32[N], the weighted sum of `Scored.values` (or of `Scored.raw`)."""
    return sum(node['weight'] * np.asarray(values[name], np.float64)
               for name, node in self._nodes.items()).astype(np.float32)

  def _raw(self, name, node, rows) -> Any:
    """f[N] of a component that is not a function, before it is squashed."""
    kind, responses = node['kind'], rows['responses']
    if kind == 'file' and rows['columns'] is not None:
      columns = rows['columns']
      _need(node['column'] in columns, name, f'the log has no column '
            f'{node["column"]!r}; there are {", ".join(columns) or "none"}')
      return _logged(columns[node['column']], name, node['column'])
    if kind in ('gold', 'proxy', 'file'):
      model = kind if kind != 'file' else f'file:{node["column"]}'
      _need(model in self._models, name, 'responses that are not logged need '
            f'a model of the column {node.get("column")!r}, and there is none; '
            'have the gold model learn that column')
      return self._models[model](rows['tokens'], rows['mask'])
    if kind == 'tfidf':
      return self._tfidf[name](responses)
    if kind == 'vader':
      return _vader(responses)
    if kind == 'readability':
      return readability.flesch_reading_ease(responses)
    if kind == 'length':
      return [len(text.split()) for text in responses]
    _need(rows['references'] is not None, name, "'exact_match' compares with "
          'right answers, and there are none for these prompts; use data that '
          'has them')
    return _exact(node['extract'], responses, rows['references'])


def _need(ok: bool, name: str, what: str):
  if not ok:
    raise errors.RewardError(f'component {name!r}: {what}')


def _logged(column: np.ndarray, name: str, what: str) -> np.ndarray:
  """A column of the log; RewardError if a response has no such score."""
  missing = np.flatnonzero(np.isnan(column))
  if missing.size:
    raise errors.RewardError(
        f'component {name!r}: logged response {missing[0]} has no score '
        f'{what!r} ({missing.size} of {len(column)} have none); choose a '
        'column that all rows of the file have')
  return column


def _finite(given: Any, count: int, where: str, step: int) -> np.ndarray:
  """f32[N]; RewardError says which value is no number."""
  with np.errstate(over='ignore'):
    found = np.asarray(given, np.float64).astype(np.float32)
  if found.shape != (count,):
    raise errors.RewardError(f'{where} scores of shape {found.shape} for '
                             f'{count} responses; it has to give one for each')
  bad = np.flatnonzero(~np.isfinite(found))
  if bad.size:
    raise errors.RewardError(
        f'{where} {np.asarray(given)[bad[0]]} at step {step}, row {bad[0]} '
        f'({bad.size} of {count} are not finite); mend it, train it again, or '
        'choose another')
  return found


def _bounded(raw: np.ndarray, node: Mapping[str, Any], where: str, step: int
             ) -> np.ndarray:
  """f32[N] in the range of the component."""
  kind = node['kind']
  if kind == 'vader':
    return (raw + 1) / 2
  if kind == 'readability':
    return np.clip(raw / 100, 0, 1)
  if kind == 'length':
    return np.minimum(raw / node['target'], 1)
  x = raw.astype(np.float64) / node.get('scale', 1.0)
  if node.get('squash') == 'sigmoid':
    return scipy.special.expit(x).astype(np.float32)
  x = x.astype(np.float32)
  if node.get('squash') == 'clip':
    return np.clip(x, *(node['range'] or (0, 1)))
  low, high = node.get('range') or (-math.inf, math.inf)
  bad = np.flatnonzero((x < low) | (x > high))  # in float32, limits too
  if bad.size:
    raise errors.RewardError(
        f'{where} {x[bad[0]]:.6g} at step {step}, row {bad[0]}, outside its '
        f'range [{low:g}, {high:g}] ({bad.size} of {len(x)} are); mend it, or '
        'give another range')
  return x
