"""Tests for rlhf_jax.runner.code_cache: nothing is parsed twice, or stale."""

import importlib
import json
import pathlib
import sys

import jax
import pytest

from rlhf_jax.runner import code
from rlhf_jax.runner import code_cache
from rlhf_jax.stages import sft
from rlhf_jax.storage import files

SAME = 'from .words import POLITE\n\nscore = len\n'
FILES = {'one/__init__': '', 'one/rewards': SAME, 'one/words': 'POLITE = 1\n',
         'two/__init__': '', 'two/rewards': SAME, 'two/words': 'POLITE = 2\n',
         'two/all/__init__': 'from importlib import import_module\n'}
MODULES = ('one.rewards', 'two.rewards', 'two.all')


def forget():
  """As in a new process."""
  code_cache.load.cache_clear()
  code._read.cache_clear()


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """Where entries are kept, of this test alone."""
  before = jax.config.jax_compilation_cache_dir
  path = tmp_path / 'cache' / 'rlhf_jax_code.json'
  jax.config.update('jax_compilation_cache_dir', str(path.parent))
  for name, text in FILES.items():
    (tmp_path / f'{name}.py').parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / f'{name}.py').write_text(text)
  monkeypatch.syspath_prepend(str(tmp_path))
  importlib.invalidate_caches()
  forget()
  yield path
  jax.config.update('jax_compilation_cache_dir', before)
  forget()
  for name in [x for x in sys.modules if x.split('.')[0] in ('one', 'two')]:
    del sys.modules[name]


def of_all():
  return code.of(sft.run, MODULES)


def test_what_is_kept_is_not_parsed_again(cache, monkeypatch):
  first = of_all()
  assert {'one.words', 'two.words', 'rlhf_jax.train'} <= {*first}
  forget()
  with monkeypatch.context() as patch:
    patch.setattr(code, '_parse', None)
    assert of_all() == first
  cache.unlink()
  forget()
  assert of_all() == first


def test_an_edit_is_noticed(cache):
  first = of_all()
  (cache.parents[1] / 'one/words.py').write_text('POLITE = 3\n')
  (cache.parents[1] / 'two/all/more.py').write_text('')
  forget()
  assert code.difference(first, of_all()) == ['one.words', 'two.all.more']


@pytest.mark.parametrize('damage', [
    lambda text: text[:-20], lambda text: '[]', lambda text: '{"entries": {}}',
    lambda text: json.dumps(json.loads(text) | {'sha256': '0'}),
    lambda text: text.replace('two.words', 'two.birds')])
def test_what_is_damaged_is_made_again(cache, damage):
  first, text = of_all(), cache.read_text()
  assert damage(text) != text
  cache.write_text(damage(text))
  forget()
  assert of_all() == first
  assert files.read_json(cache)['entries'] == files.read_json(cache)[
      'entries'] | json.loads(text)['entries']


def test_the_newest_are_kept(cache, monkeypatch):
  monkeypatch.setattr(code_cache, '_MOST', 3)
  of_all()
  entries = files.read_json(cache)['entries']
  assert [*entries] == [*code_cache.load()][-3:]


@pytest.mark.parametrize('place', ['gs://bucket/cache', None, 'a file'])
def test_nothing_can_be_kept(cache, place):
  first = of_all()
  if place == 'a file':
    place = str(cache / 'below')  # a file has no files
  jax.config.update('jax_compilation_cache_dir', place)
  forget()
  assert of_all() == first
  assert not pathlib.Path('gs:').exists()
