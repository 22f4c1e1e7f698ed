"""A workdir whose files are written by hand: nothing is trained."""

import json
import pathlib
import struct
from typing import Any
import zlib

from rlhf_jax.reports import page_study
from rlhf_jax.runner import status
from rlhf_jax.runner import workdirs
from rlhf_jax.storage import files

TITLE = 'Coste et al. 2024, figure 4: PPO'
NASTY = ('</script><script>window.hit = 1</script><img src=x onerror="window.'
         'hit = 2"><a href="javascript:window.hit = 3">x</a>\u2028{{ 1 }}'
         '<!-- <script>')
RUNS = {'single_0': {'method': 'single', 'member': 0, 'label_noise': .25},
        'worst': {'method': 'worst_case', 'label_noise': .25}}
FIGURE = {'kind': 'curves', 'x': 'sqrt_kl', 'y': ['gold', 'proxy'],
          'line': ['method'], 'panel': ['label_noise'], 'limit_kl': 150.,
          'columns': ['gold', 'proxy', 'kl_k1']}
# Gold scores at four evaluations, by run and seed.
GOLD = {'single_0': [[0, 4, 3, 1], [0, 2, 1, -1], [0, 3, 2, 3]],
        'worst': [[0, 2, 3, 4], [0, 1, 2, 3], [0, 3, 4, 5]]}


def config(**changes) -> dict[str, Any]:
  return {'study': 'online', 'title': TITLE, 'size': 'smoke', 'figure': FIGURE,
          'runs': {name: {'labels': labels} for name, labels in RUNS.items()},
          'layout': workdirs.LAYOUT} | changes


def write(workdir: pathlib.Path, *, samples: int = 4, text: str = NASTY,
          seeds: int = 3, complete: bool = True, **changes) -> pathlib.Path:
  """A study of RUNS; each policy has so many samples, before and after.

  Args:
    workdir: created.
    samples: of each evaluation.
    text: stands in every prompt and response.
    seeds: at most 3.
    complete: whether it came to its end; else one run of each seed is left.
    **changes: of the config.
  """
  workdir.mkdir(parents=True)
  files.write_json(workdir / workdirs.CONFIG, config(**changes))
  rows = []
  for run in GOLD if complete else ['single_0']:
    for seed in range(seeds):
      rows += _policy(workdir / f'seed_{seed}/policies/{run}', run, seed,
                      samples, text)
  if complete:
    report = workdir / 'report'
    report.mkdir()
    files.write_csv(report / 'results.csv', rows)
    (report / 'figure.png').write_bytes(_png())
    _complete(report, {'rows': len(rows)})
  say = {'state': 'complete', 'exit_code': 0} if complete else {
      'state': 'failed', 'code': 'NUMERICS', 'exit_code': 5,
      'message': f'the loss is not finite {text}'}
  files.write_json(workdir / status.NAME, say | {
      'stage': 'seed_0/policies/worst', 'started': status.now()})
  return workdir


def _complete(directory: pathlib.Path, result: dict):
  workdirs.write_record(directory, {
      'result': result, 'seconds': 1.5, 'recipe': 'a' * 64,
      'code': {'jax': '0.11.0', 'python': '3.11.4',
               'rlhf_jax.train': '0123456789abcdef'}})


def _policy(directory, run, seed, samples, text) -> list[dict]:
  directory.mkdir(parents=True)
  rows = [{'step': 10 * i, 'time': 1., 'gold': float(x), 'gold_se': .1,
           'proxy': i + .1 * seed, 'proxy_se': .2, 'kl_k1': 4. * i * i,
           'sqrt_kl': 2. * i, 'ensemble_variance': .1 * i, 'length': 20.}
          for i, x in enumerate(GOLD[run][seed])]
  files.write_jsonl(directory / 'evaluation.jsonl', rows)
  for name, shift in (('first', 0.), ('final', 1.)):
    files.write_jsonl(directory / f'{name}.jsonl', (
        sample(i, run, seed, shift, text) for i in range(samples)))
  _complete(directory, {'gold': rows[-1]['gold'], 'loss/x': 3.})
  return [{'seed': seed, 'run': run, 'method': RUNS[run]['method'],
           'member': RUNS[run].get('member'), 'label_noise': .25} | row
          for row in rows]


def sample(i, run, seed, shift, text) -> dict[str, Any]:
  return {'prompt': f'{text} question {i}',
          'response': f'{text} answer {run} {seed} {i} {"word " * 20}',
          'gold': shift + (7 * i % 11) / 10, 'proxy': shift - i / 100,
          'reference': None, 'reference_gold': None, 'rule': None,
          'length': i % 30, 'kl_k1': shift * i / 50,
          'ensemble_variance': (3 * i % 7) / 7, 'split': None,
          'component_proxy': shift}


def _png() -> bytes:
  """One white pixel."""
  def chunk(name, data):
    return struct.pack('>I', len(data)) + name + data + struct.pack(
        '>I', zlib.crc32(name + data))
  return (b'\x89PNG\r\n\x1a\n'
          + chunk(b'IHDR', struct.pack('>IIBBBBB', 1, 1, 8, 0, 0, 0, 0))
          + chunk(b'IDAT', zlib.compress(b'\0\xff')) + chunk(b'IEND', b''))


def read(*paths: pathlib.Path) -> list[page_study.Study]:
  return page_study.read(paths)


def data_of(page: str) -> dict[str, Any]:
  """The JSON that stands in a page."""
  _, _, rest = page.partition('<script type="application/json" id="data">')
  return json.loads(rest.partition('</script>')[0])
