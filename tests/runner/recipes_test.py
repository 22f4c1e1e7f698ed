"""Tests for rlhf_jax.runner.recipes: what a stage is made from."""

import functools

import numpy as np
import pytest

from rlhf_jax.runner import code
from rlhf_jax.runner import recipes
from rlhf_jax.runner import run as run_lib


def draw(context, *, seed, training=None):
  return {'seed': seed}


def add(context, *, parts, more):
  return {'parts': parts}


def stage(name, run, **fields):
  return run_lib.Stage(name, run, **fields)


def of(*stages):
  return recipes.of_stages(stages)


BASE = stage('base', functools.partial(draw, seed=1))


@pytest.mark.parametrize('run', [
    lambda context: {}, functools.partial(lambda context: {}), draw,
    functools.partial(draw, seed=float('nan')),
    functools.partial(draw, seed={1: 'a'}), functools.partial(draw, seed={2}),
    functools.partial(draw, seed=np.arange(2)),
    functools.partial(add, parts={'drawn': ['old']}, more=1)])
def test_what_has_no_recipe(run):
  """Nor has a stage that is made from such a stage."""
  assert of(stage('old', lambda context: {}), stage('new', run))['new'] is None


def test_names_of_stages_do_not_matter():
  one, other = (of(stage(a, functools.partial(draw, seed=1)), stage(
      b, functools.partial(add, parts={'drawn': [a]}, more=2)))
                for a, b in ('ab', 'cd'))
  assert [recipe.key for recipe in one.values()] == [
      recipe.key for recipe in other.values()]
  assert len({recipe.key for recipe in one.values()}) == 2


def test_pace_does_not_matter():
  keys = {of(stage('a', functools.partial(draw, seed=1, training=training)))[
      'a'].key for training in (None, {}, {'save_every': 3, 'log_every': 2})}
  assert len(keys) == 1


@pytest.mark.parametrize('change', [
    dict(run=functools.partial(draw, seed=2)),
    dict(run=functools.partial(draw, seed=1.)),
    dict(run=functools.partial(draw, seed=1, training={'every': 3})),
    dict(run=functools.partial(add, seed=1)), dict(inputs={'path': 'ab'})])
def test_a_change_reaches_what_depends_on_it(change):
  after = stage('after', functools.partial(add, parts=['base'], more=1))
  apart = stage('apart', functools.partial(add, parts=['none'], more=1))
  fields = {'run': BASE.run, **change}
  old, new = (of(one, after, apart) for one in (
      BASE, stage('base', fields.pop('run'), **fields)))
  differ = {name for name in old if old[name].key != new[name].key}
  assert differ == {'base', 'after'}
  made_of, changed = recipes.differences(
      old['after'].record(), new['after'])
  assert (made_of, changed) == (['stage base'], [])
  made_of, _ = recipes.differences(old['base'].record(), new['base'])
  assert made_of == (['input path'] if 'inputs' in change
                     else ['config, or another stage'])


def test_code_of_what_it_is_made_from(monkeypatch):
  after = stage('after', functools.partial(add, parts=['base'], more=1))
  monkeypatch.setattr(code, 'of', lambda function, modules: {
      function.__name__: 'x', **dict.fromkeys(modules, 'y')})
  base = stage('base', BASE.run, modules=('mine',))
  old = of(base, after)
  assert old['after'].code == {'add': 'x', 'draw': 'x', 'mine': 'y'}
  monkeypatch.setattr(code, 'of', lambda function, modules: {
      function.__name__: 'z' if function is draw else 'x'})
  new = of(base, after)
  assert new['after'].key == old['after'].key
  assert recipes.differences(old['after'].record(), new['after']) == (
      [], ['draw', 'mine'])


def test_depending():
  after = stage('after', functools.partial(add, parts=['base'], more=1))
  last = stage('last', functools.partial(add, parts=[{'x': 'after'}], more=1))
  apart = stage('apart', functools.partial(draw, seed=3))
  made_of = of(BASE, apart, after, last)
  assert recipes.depending(['base'], made_of) == ['base', 'after', 'last']
  assert recipes.depending(['apart', 'last'], made_of) == ['apart', 'last']


def test_listed():
  assert recipes.listed(['a', 'b']) == 'a, b'
  assert recipes.listed('abcdef') == 'a, b, c, d and 2 more'
