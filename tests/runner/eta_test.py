"""When a study ends, in numbers that can be added in the head."""

import pytest

from rlhf_jax.runner import eta


def kinds(*names):
  """The function of a stage is the last word of its name, but of policies."""
  return [eta.Kind(name, 'policy' if '/policies/' in name
                   else name.rpartition('/')[2]) for name in names]


def seconds(**values):
  return dict(zip(kinds(*(x.replace('__', '/') for x in values)),
                  values.values()))


def test_nothing_is_left():
  assert eta.seconds_left([], {}) == 0


def test_unknown_until_there_is_a_ground():
  later = kinds('seed_0/sft', 'seed_0/gold')
  assert eta.seconds_left(later, {}) is None
  assert eta.seconds_left(later, seconds(seed_1__sft=10.)) is None
  assert eta.seconds_left(
      later, seconds(seed_1__sft=10., seed_2__gold=5.)) == 15


def test_other_seeds_are_averaged():
  known = seconds(seed_1__sft=10., seed_2__sft=20.)
  assert eta.seconds_left(kinds('seed_0/sft', 'seed_3/sft'), known) == 30


@pytest.mark.parametrize('known, expected', [
    (seconds(seed_0__a__proxies=8.), 8),
    # The same condition of another seed is a better ground than another one.
    (seconds(seed_0__a__proxies=8., seed_1__b__proxies=2.), 2),
    (seconds(seed_0__b__scores=8.), None)])
def test_other_conditions(known, expected):
  assert eta.seconds_left(kinds('seed_0/b/proxies'), known) == expected


def test_other_runs_of_one_folder():
  known = seconds(seed_0__policies__ppo=100., seed_0__sft=1.)
  assert eta.seconds_left(kinds('seed_0/policies/rloo'), known) == 100
  # Two trainings that only share their code and a seed are not alike.
  assert eta.seconds_left([eta.Kind('seed_0/trunk', 'sft')], known) is None


@pytest.mark.parametrize('age, of_loop, expected', [
    (10., None, 30),  # 20 of this one, and 10 of the next
    (50., None, 10),  # later than it was thought
    (10., 5., 15)])
def test_the_stage_that_runs(age, of_loop, expected):
  sft, gold = kinds('seed_0/sft', 'seed_0/gold')
  known = seconds(seed_1__sft=30., seed_1__gold=10.)
  assert eta.seconds_left([gold], known, running=sft, age=age,
                          of_loop=of_loop) == expected


def test_a_loop_is_a_ground_for_its_stage_and_for_those_alike():
  one, other = kinds('seed_0/policies/ppo', 'seed_0/policies/rloo')
  assert eta.seconds_left([other], {}, running=one, age=10.) is None
  assert eta.seconds_left(
      [other], {}, running=one, age=10., of_loop=30.) == 70
