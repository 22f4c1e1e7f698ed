"""Rewards as a weighted sum of named components, of N responses at once.

`nodes` has the language. Here are the components of texts, of logged columns
and of trained models, on the host: what a log, an evaluation and a prompt
value are scored by. In training, the models among them run as annotators
(`pipeline.rewarding`), with the same weights and squashes.

Baheti et al. 2024, https://arxiv.org/abs/2305.14718, sections 4 and 5;
objectives.md, section 11.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from rlhf_jax import errors
from rlhf_jax.data import logged
from rlhf_jax.ops import ensembles
from rlhf_jax.ops import readability
from rlhf_jax.ops import texts as texts_lib
from rlhf_jax.parallel import processes
from rlhf_jax.rewards import finite as finite_lib
from rlhf_jax.rewards import models as models_lib
from rlhf_jax.rewards import nodes as nodes_lib
from rlhf_jax.rewards import programmatic


@dataclasses.dataclass(frozen=True)
class Scored:
  """The components of the rewards of N responses, before weights."""

  values: dict[str, np.ndarray]  # f32[N] by name, in the ranges
  raw: dict[str, np.ndarray]  # f32[N] by name, before `squash`
  members: np.ndarray | None = None  # f[E, N] of the first ensemble
  # bool[N], whose reward is NaN, since a component that may drops it; None
  # where none may.
  bad: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Models:
  """The trained models that components read, by kind; None: there are none."""

  proxy: models_lib.RewardModels | None = None  # E members
  gold: models_lib.RewardModels | None = None  # E = 1, scaled to its samples
  file: models_lib.RewardModels | None = None  # E = 1, scaled to the column
  column: str | None = None  # that `file` has learned


class Components:
  """A reward, (responses) -> Scored, and its `total`.

  Close it, or use it as a context manager; then no process is left.

  Attributes:
    names: of the components, in the order of the config.
    lower, upper: the least and the largest `total` that there can be; infinite
      where a component has no range.
  """

  def __init__(self, nodes: Mapping[str, Mapping[str, Any]], *,
               models: Models = Models(), responses: Sequence[str] = (),
               pool: Mapping[str, Any] | None = None):
    """Fits and starts what the components need.

    Args:
      nodes: see `nodes`.
      models: as far as there are any.
      responses: texts that TF-IDF is fitted on.
      pool: timeout, num_workers and chunk_size of `programmatic.Functions`.

    Raises:
      ConfigError: as `nodes.check`, and if a function cannot be imported.
      ValueError: if a model is missing, or TF-IDF has no words to be fitted
        on.
    """
    self._nodes = nodes_lib.check(nodes)
    self._models = models
    for name, node in self._nodes.items():
      if node['kind'] in ('gold', 'proxy') and (
          getattr(models, node['kind']) is None):
        raise ValueError(f'models must hold {node["kind"]!r} for the component '
                         f'{name}, got none.')
    self._tfidf = {
        name: texts_lib.TfidfDiversity(responses, min_words=node['min_words'])
        for name, node in self._nodes.items() if node['kind'] == 'tfidf'}
    self.names = tuple(self._nodes)
    self._drop = nodes_lib.dropping(self._nodes)
    limits = np.array([nodes_lib.bounds(node)
                       for node in self._nodes.values()]).reshape(-1, 2)
    # As `total` rounds, so that it is never outside.
    self.lower, self.upper = map(float, limits.sum(axis=0).astype(np.float32))
    named = nodes_lib.functions(nodes)
    self._functions = (
        programmatic.Functions(named, drop=self._drop, **(pool or {}))
        if named else None)

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
        its range, or lacks a column, a model or the references; or those that
        may drop responses leave none.
    """
    by_functions = {}
    if self._functions is not None:
      # A user's functions run once, however many processes there are.
      by_functions = processes.from_owner(
          lambda: self._functions.components(prompts, responses, step))
    rows = {'tokens': tokens, 'mask': mask, 'responses': responses,
            'columns': columns, 'references': references}
    values, raw, members = {}, {}, None
    for name, node in self._nodes.items():
      if name in by_functions:
        scores = by_functions[name]
      elif node['kind'] == 'proxy':
        standing, scores = self._proxy(name, node, rows, step)
        members = standing if members is None else members
      else:
        scores = self._raw(name, node, rows)
      where = f'component {name!r} ({node["kind"]})'
      raw[name] = scores if name in self._drop else finite_lib.finite(
          scores, len(responses), where, f'step {step}').astype(np.float32)
      values[name] = _bounded(raw[name], node, where, step)
    return Scored(values, raw, members, self._bad(raw, len(responses), step))

  def _bad(self, raw, count, step) -> np.ndarray | None:
    """bool[N], of `Scored`; RewardError if no response is left."""
    if not self._drop:
      return None
    bad = np.isnan([raw[name] for name in self._drop]).any(axis=0)
    if count and bad.all():
      raise errors.RewardError(
          f'{", ".join(map(repr, self._drop))} left none of {count} responses '
          f"at step {step}: on_bad_reward='drop' drops what is None, NaN or "
          'infinite; mend the function')
    return bad

  def total(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """f32[N], the weighted sum of `Scored.values` (or of `Scored.raw`).

    NaN where a component that may drop responses is.

    Raises:
      RewardError: another sum is no finite float32 number.
    """
    total = sum(node['weight'] * np.asarray(values[name], np.float64)
                for name, node in self._nodes.items())
    fits = np.abs(total) <= np.finfo(np.float32).max
    for name in self._drop:
      fits |= np.isnan(values[name])
    if not fits.all():
      row = int(np.argmin(fits))
      raise errors.RewardError(
          f'the weighted sum of the rewards {", ".join(self._nodes)} is '
          f'{total[row]:.3g} in row {row}; lower their weights')
    return total.astype(np.float32)

  def _proxy(self, name, node, rows, step) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the members f[E, N], as they are combined, and f[N]."""
    members = self._models.proxy.scores(
        rows['tokens'], rows['mask'], standardize=node['standardize'])
    for member, scores in enumerate(members):
      finite_lib.finite(
          scores, len(rows['responses']), f'component {name!r}: member '
          f'{member} of the reward ensemble', f'step {step}')
    return members, np.asarray(
        ensembles.aggregate(members, **node['aggregate']))

  def _raw(self, name, node, rows) -> Any:
    """f[N] of a component, before it is squashed."""
    kind, responses = node['kind'], rows['responses']
    if kind == 'file' and rows['columns'] is not None:
      columns = rows['columns']
      _need(node['column'] in columns, name, f'the log has no column '
            f'{node["column"]!r}; there are {", ".join(columns) or "none"}')
      return _logged(columns[node['column']], name, node['column'])
    if kind in nodes_lib.MODELS:
      _need(kind != 'file' or (self._models.file is not None
                               and self._models.column == node['column']),
            name, 'responses that are not logged need a model of the column '
            f'{node.get("column")!r}, and there is none; have the gold model '
            'learn that column')
      return getattr(self._models, kind).scores(
          rows['tokens'], rows['mask'])[0]
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
    with np.errstate(invalid='ignore'):  # NaN is a response that is dropped
      return np.exp(-np.logaddexp(0, -x)).astype(np.float32)
  x = x.astype(np.float32)
  if node.get('squash') == 'clip':
    return np.clip(x, *(node['range'] or (0, 1)))
  low, high = node.get('range') or (-math.inf, math.inf)
  bad = np.flatnonzero((x < low) | (x > high))  # in float32, limits too
  if bad.size:
    raise errors.RewardError(
        f'{where} gave {x[bad[0]]:.6g} at step {step}, row {bad[0]}, outside '
        f'its range [{low:g}, {high:g}] ({bad.size} of {len(x)} are); mend it, '
        'or give another range')
  return x
