"""Judges of two responses, and the win rates that they give.

A judge is a function (prompt, a, b, reference=None) -> one of `CHOICES`: 'A'
or 'B' for the better response, 'tie' for equally good ones ('equal' in Baheti
et al. 2024, https://arxiv.org/abs/2305.14718), 'neither' for equally bad ones.
"""

from collections.abc import Callable, Sequence
import importlib

import numpy as np

from rlhf_jax import errors

CHOICES = ('A', 'B', 'tie', 'neither')
EXCHANGED = {'A': 'B', 'B': 'A', 'tie': 'tie', 'neither': 'neither'}
Judge = Callable[..., str]


def score_judge(score: Callable[[str, str], float], *,
                margin: float = 0.0) -> Judge:
  """A deterministic judge that prefers the higher score.

  Args:
    score: (prompt, response) -> score, such as that of a gold reward model.
    margin: largest difference that is a tie, in score units, >= 0.

  Returns:
    A judge without position bias; it does not read the reference.

  Raises:
    ValueError: if `margin` is negative; when asked, if a score is NaN.
  """
  if not margin >= 0:
    raise ValueError(f'margin must be >= 0, got {margin}.')

  def judge(prompt: str, a: str, b: str, reference: str | None = None) -> str:
    del reference
    gap = score(prompt, a) - score(prompt, b)
    if np.isnan(gap):
      raise ValueError(f'score must not be NaN, got a gap of {gap}.')
    if abs(gap) <= margin:
      return 'tie'
    return 'A' if gap > 0 else 'B'

  return judge


def function_judge(function: str) -> Judge:
  """A judge of one's own, 'package.module:function' of (prompt, a, b).

  Raises:
    ValueError: it cannot be imported; when asked, if it does not answer one of
      `CHOICES`.
  """
  module, _, name = function.partition(':')
  try:
    ask = getattr(importlib.import_module(module), name)
  except (ImportError, AttributeError, ValueError) as error:
    raise ValueError(f'function {function!r} cannot be imported ({error}); '
                     'give it as package.module:function') from error

  def judge(prompt: str, a: str, b: str, reference: str | None = None) -> str:
    del reference
    try:
      answer = ask(prompt, a, b)
    except Exception as error:  # a user's function may raise anything
      raise errors.RewardError(
          f'judge {function} raised {errors.of_user(error, module)}'
      ) from error
    if answer not in CHOICES:
      raise errors.RewardError(
          f'judge {function} must answer one of {", ".join(CHOICES)}, got '
          f'{answer!r}')
    return answer

  return judge


def ask_twice(judge: Judge, prompts: Sequence[str], responses: Sequence[str],
              others: Sequence[str],
              references: Sequence[str] | None = None,
              ) -> tuple[list[str], list[str]]:
  """Asks about each prompt in both orders.

  Args:
    judge: (prompt, a, b, reference) -> one of `CHOICES`.
    prompts: N prompts.
    responses: N responses of the method; A in the first query.
    others: N responses of what it is compared with; A in the second query.
    references: N texts for the judge to go by, or None.

  Returns:
    (choices, swapped_choices), N each, as the judge gave them.

  Raises:
    ValueError: if lengths disagree.
  """
  references = [None] * len(prompts) if references is None else references
  sizes = [len(x) for x in (prompts, responses, others, references)]
  if len(set(sizes)) > 1:
    raise ValueError('prompts, responses, others and references must be '
                     f'equally many, got {sizes}.')
  rows = list(zip(prompts, responses, others, references))
  return ([judge(p, a, b, ref) for p, a, b, ref in rows],
          [judge(p, b, a, ref) for p, a, b, ref in rows])


def _unswapped(choices: Sequence[str], swapped_choices: Sequence[str]):
  """Both lists, checked, with the second as if asked in the first order."""
  for name, answers in (('choices', choices),
                        ('swapped_choices', swapped_choices)):
    for i, choice in enumerate(answers):
      if choice not in CHOICES:
        raise ValueError(
            f'{name}[{i}] must be one of {CHOICES}, got {choice!r}.')
  if len(choices) != len(swapped_choices) or not len(choices):
    raise ValueError(
        'choices and swapped_choices must be equally many and not empty, '
        f'got {len(choices)} and {len(swapped_choices)}.')
  return list(choices), [EXCHANGED[choice] for choice in swapped_choices]


def judge_win_rate(choices: Sequence[str],
                   swapped_choices: Sequence[str]) -> dict[str, float]:
  """Outcomes on the prompts where the judge holds to its choice.

  Baheti et al. 2024, Table 3: a prompt is asked about twice, with the
  responses in either order, and left out if the two answers disagree. So a
  judge that always says A keeps none.

  Args:
    choices: each of `CHOICES`, where A is the method's response.
    swapped_choices: the same prompts' answers with the order exchanged (B is
      the method's response), as the judge gave them.

  Returns:
    kept, the number of prompts that count; win, tie, lose and neither, shares
    of them (the table has percent); NaN where none is kept.

  Raises:
    ValueError: if an answer is none of `CHOICES`, or lengths disagree or
      are 0.
  """
  pairs = zip(*_unswapped(choices, swapped_choices))
  firm = [first for first, second in pairs if first == second]
  share = {choice: firm.count(choice) / len(firm) if firm else np.nan
           for choice in CHOICES}
  return {'kept': len(firm), 'win': share['A'], 'tie': share['tie'],
          'lose': share['B'], 'neither': share['neither']}


def preference(choices: Sequence[str], swapped_choices: Sequence[str]
               ) -> np.ndarray:
  """How much each first response is preferred, over both orders, f64[N].

  The mean of 1 for it, 0 for the other, and half for no preference: .5 where a
  judge has none, or where the order alone decides.

  Args:
    choices: each of `CHOICES`, as for `judge_win_rate`.
    swapped_choices: likewise.

  Raises:
    ValueError: as `judge_win_rate`.
  """
  worth = {'A': 1.0, 'B': 0.0, 'tie': 0.5, 'neither': 0.5}
  first, second = _unswapped(choices, swapped_choices)
  return np.array([(worth[a] + worth[b]) / 2 for a, b in zip(first, second)])


def judge_average(choices: Sequence[str],
                  swapped_choices: Sequence[str]) -> float:
  """Win rate over all answers in both orders; no preference is half a win.

  A judge that always says A gives .5.

  Args:
    choices: as for `judge_win_rate`.
    swapped_choices: as for `judge_win_rate`.

  Returns:
    In [0, 1]. With the two methods exchanged it is 1 - this.

  Raises:
    ValueError: as `judge_win_rate`.
  """
  return float(preference(choices, swapped_choices).mean())
