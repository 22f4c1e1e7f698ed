"""Tests for rlhf_jax.runner.code: which code a stage runs."""

import importlib
import sys
import textwrap

import pytest

from rlhf_jax.runner import code
from rlhf_jax.stages import policy_report
from rlhf_jax.stages import sft

FILES = {
    'mine/__init__': '',
    'mine/rewards': '''
        """Of mine."""
        import json
        import numpy as np
        from mine import words
        from .deep import count

        def polite(prompts, responses):
          """Longer is better."""
          from mine.late import scale
          return [scale * count(words.POLITE, x) for x in responses]
        ''',
    'mine/words': 'POLITE = ["please"]  # of mine\n',
    'mine/deep': 'def count(words, text):\n  return len(text)\n',
    'mine/late': 'scale = 2\n',
    'mine/unused': 'scale = 3\n'}


@pytest.fixture
def package(tmp_path, monkeypatch):
  """A user's package; writing to it is seen at once."""
  def write(name, text):
    (tmp_path / 'mine').mkdir(exist_ok=True)
    (tmp_path / f'{name}.py').write_text(textwrap.dedent(text))
    code._read.cache_clear()

  for name, text in FILES.items():
    write(name, text)
  monkeypatch.syspath_prepend(str(tmp_path))
  importlib.invalidate_caches()
  yield write
  for name in [name for name in sys.modules if name.split('.')[0] == 'mine']:
    del sys.modules[name]


def of_mine():
  return {name: digest for name, digest in code.of(
      sft.run, ['mine.rewards']).items() if name.startswith('mine')}


def test_all_that_is_imported(package):
  assert {*of_mine()} == {'mine', 'mine.rewards', 'mine.words', 'mine.deep',
                          'mine.late'}


@pytest.mark.parametrize('name, old, new', [
    ('mine/rewards', 'Of mine', 'Of yours'),
    ('mine/rewards', 'Longer is', 'Shorter is'),
    ('mine/words', '  # of mine', ''),
    ('mine/deep', '\n', '\n\n\n# a comment\n'),
    ('mine/unused', '3', '4')])
def test_what_changes_nothing(package, name, old, new):
  before = of_mine()
  assert old in FILES[name]
  package(name, FILES[name].replace(old, new))
  assert of_mine() == before


@pytest.mark.parametrize('name, old, new', [
    ('mine/rewards', 'scale * count', 'scale + count'),
    ('mine/words', '"please"', '"thanks"'),
    ('mine/deep', 'len(text)', 'len(words)'), ('mine/late', '2', '2.0')])
def test_what_changes_a_result(package, name, old, new):
  before = of_mine()
  assert old in FILES[name]
  package(name, FILES[name].replace(old, new))
  assert code.difference(before, of_mine()) == [name.replace('/', '.')]


def test_a_module_with_a_syntax_error_is_no_concern_of_ours(package):
  package('mine/words', 'def (')
  assert 'mine.words' in of_mine()


def test_this_package():
  modules = code.of(sft.run)
  for name in ('rlhf_jax', 'rlhf_jax.stages.sft', 'rlhf_jax.train',
               'rlhf_jax.objectives.sft', 'rlhf_jax.models.transformer',
               'rlhf_jax.data.reviews', 'jax', 'python'):
    assert name in modules
  for name in ('rlhf_jax.stages.online_policy', 'rlhf_jax.commands.train',
               'rlhf_jax.reports.figures', 'rlhf_jax.studies.plan'):
    assert name not in modules
  report = code.of(policy_report.run)
  assert 'rlhf_jax.reports.figures' in report
  assert 'rlhf_jax.train' not in report


def test_versions():
  assert code.difference({'jax': '1', 'a': 'x'}, {'jax': '2', 'a': 'x'}) == [
      'jax 1 -> 2']
