"""The samples of a study, to be read and searched, and how they score.

`first.jsonl` of a policy has its answers before training, `final.jsonl` those
after it; where a run has not come as far, what `texts/` has of the last
evaluation. Of best-of-n there are the samples that it picks from.
"""

from collections.abc import Iterator, Mapping, Sequence
import pathlib
from typing import Any

import numpy as np

from rlhf_jax import errors
from rlhf_jax.data import coders
from rlhf_jax.evaluation import texts as texts_lib
from rlhf_jax.ops import ensembles
from rlhf_jax.reports import page_figures
from rlhf_jax.reports import page_study
from rlhf_jax.reports import style
from rlhf_jax.storage import files

BEFORE, AFTER = 'before', 'after'
TEXTS = ('prompt', 'response', 'reference')
NUMBERS = ('gold', 'proxy', 'rule', 'kl_k1', 'ensemble_variance', 'length')
_MOST = 5_000  # samples of best-of-n that are read
_SCORES = ('gold', 'proxy', 'rule')  # of histograms
_NAMES = {'kl_k1': 'KL, nats', 'ensemble_variance': 'disagreement',
          'length': 'tokens'}
Source = tuple[dict[str, Any], list[dict]]  # {'seed', 'run', 'phase'}, rows


def of_studies(studies: Sequence[page_study.Study], most: int
               ) -> dict[str, Any]:
  """The samples of all studies, and the histograms of their scores.

  Args:
    studies: in order.
    most: samples on the page; of every source as many, evenly spread.

  Returns:
    'texts' and 'numbers', {name: [...]} alike in length; 'study', 'run',
    'seed' and 'phase' of each; 'names' of the numbers; 'total', how many there
    are; 'spread', see `_spread`.
  """
  sources = [(i, labels, rows) for i, study in enumerate(studies)
             for labels, rows in _sources(study)]
  total = sum(len(rows) for _, _, rows in sources)
  chosen = []
  for (i, labels, rows), count in zip(sources, _shares(
      [len(rows) for _, _, rows in sources], most)):
    at = np.linspace(0, len(rows), count, endpoint=False).astype(int)
    chosen += [(i, labels, rows[k]) for k in at]
  names = [name for name in dict.fromkeys(
      [*NUMBERS, *(key for _, _, row in chosen for key in row
                   if key.startswith('component_'))])
           if any(row.get(name) is not None for _, _, row in chosen)]
  return {
      'study': [i for i, _, _ in chosen],
      **{key: [labels[key] for _, labels, _ in chosen]
         for key in ('seed', 'run', 'phase')},
      'texts': {name: [row.get(name) for _, _, row in chosen]
                for name in TEXTS},
      'numbers': {name: page_figures.numbers(
          [row.get(name) for _, _, row in chosen]) for name in names},
      'names': {name: _NAMES.get(name) or page_figures.plain(
          style.axis_name(name)).partition(',')[0] for name in names},
      'total': total, 'spread': _spread(sources)}


def _shares(sizes: Sequence[int], most: int) -> list[int]:
  """How many of each source: all of small ones, of others as many."""
  left, shares = most, [0] * len(sizes)
  for rank, i in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
    shares[i] = min(sizes[i], left // (len(sizes) - rank))
    left -= shares[i]
  return shares


def _spread(sources) -> list[dict]:
  """{'study', 'run', 'column', 'name', 'before', 'after'}: scores, all seeds.
  """
  parts: dict[tuple, dict[str, list]] = {}
  for i, labels, rows in sources:
    for name in _SCORES:
      values = [row[name] for row in rows if row.get(name) is not None]
      if values and labels['phase'] in (BEFORE, AFTER):
        part = parts.setdefault(
            (i, labels['run'], name), {BEFORE: [], AFTER: []})
        part[labels['phase']] += values
  return [{'study': i, 'run': run, 'column': name,
           'name': page_figures.plain(style.axis_name(name)),
           **{phase: page_figures.numbers(x) for phase, x in part.items()}}
          for (i, run, name), part in parts.items()]


def _sources(study: page_study.Study) -> Iterator[Source]:
  """The samples of each stage that has some; what is damaged is noted."""
  for stage in study.stages:
    seed, _, run = stage.name.partition('/')
    labels = {'seed': seed.removeprefix('seed_'),
              'run': run.removeprefix('policies/')}
    try:
      if (stage.directory / 'evaluation.jsonl').is_file():
        for phase, rows in _of_policy(stage.directory):
          yield labels | {'phase': phase}, rows
      elif (stage.directory / 'shard_0000.npz').is_file():
        yield labels | {'phase': 'sampled'}, _of_shards(study, stage, seed)
    except (errors.UserError, OSError, LookupError, TypeError, ValueError
            ) as error:
      study.notes.append(f'The samples of {stage.name} cannot be read: '
                         f'{errors.first_line(error)}.')


def _of_policy(directory: pathlib.Path) -> Iterator[tuple[str, list[dict]]]:
  texts = sorted(directory.glob('texts/*.json'))
  first, final = directory / 'first.jsonl', directory / 'final.jsonl'
  if first.is_file():
    yield BEFORE, _with_response(files.read_jsonl(first))
  elif texts and not int(texts[0].stem):
    yield BEFORE, _with_response(files.read_json(texts[0]))
  if final.is_file():
    yield AFTER, _with_response(files.read_jsonl(final))
  elif texts and int(texts[-1].stem):
    step = int(texts[-1].stem)
    yield f'step {step}', _with_response(files.read_json(texts[-1]))


def _with_response(rows: Sequence[Mapping]) -> list[dict]:
  """Rows with a response; best-of-n as a policy has expectations only."""
  return [dict(row) for row in rows if row.get('response') is not None]


def _of_shards(study: page_study.Study, stage: page_study.Stage, seed: str
               ) -> list[dict]:
  """Samples of best-of-n; scores of the first condition that has them."""
  home = study.directory.joinpath(seed, 'sft')
  coder = coders.of_model(home, files.read_json(home / 'model.json'))
  shards = [files.load_arrays(path)
            for path in sorted(stage.directory.glob('shard_*.npz'))]
  columns = {'gold': np.concatenate([x['gold_scores'] for x in shards])}
  path = next(iter(sorted(stage.directory.parent.glob(
      '*/scores/scores.npz'))), None)
  if path is not None:
    scores = files.load_arrays(path)
    if scores['members'].shape[1:] == columns['gold'].shape:
      members = scores['members']
      columns |= {'proxy': members.mean(axis=0),
                  'ensemble_variance': np.asarray(ensembles.variance(members)),
                  'length': scores['length']}
  tokens, mask = (np.concatenate([x[name] for x in shards])
                  for name in ('tokens', 'mask'))
  places = _some(columns['gold'].shape)
  some = tuple(np.transpose(places))
  return [{'prompt': prompt, 'response': response,
           **{name: float(x[at]) for name, x in columns.items()}}
          for at, prompt, response in zip(places, *texts_lib.decode(
              coder, tokens[some].astype(np.int32), mask[some]))]


def _some(shape: tuple[int, int]) -> list[tuple[int, int]]:
  """(prompt, sample) of about `_MOST` at most, of all prompts as many."""
  each = min(shape[1], -(-_MOST // shape[0]))
  return [(i, k) for i in range(shape[0]) for k in range(each)]
