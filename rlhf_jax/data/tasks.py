"""Writes small worlds in the file formats of corpora that cannot be had.

  python -m rlhf_jax.data.tasks reddit --num_rows=1000 --seed=0 reddit.csv

Files have the fields of the real ones, so that the readers of `logged` are the
same; their texts come from closed vocabularies, and what is good in them is
known (`reviews.Reviews.rule`, `task_rules`).

  reddit             comment, response and votes, up and down, with the header
                     of Baheti et al. (2024), https://arxiv.org/abs/2305.14718
  hh_scored          their HH pairs with a reward model's scores
  stack_exchange     a question, its answers with Beeching et al.'s (2023)
                     pm_score, and which one is accepted
  comet              triples of ATOMIC10X (West et al. 2022) with the score of
                     its critic; without the fields rec_<recall>
  grounded_dialogue  FaithDial (Dziri et al. 2022), a turn on each line
  gsm8k              questions, and solutions of four models with their
                     correctness (example_model_solutions.jsonl)
"""

import argparse
from collections.abc import Callable, Iterator
import functools
import itertools
import math
import os
import random
from typing import Any

from rlhf_jax.data import formats
from rlhf_jax.data import kinds
from rlhf_jax.data import reviews
from rlhf_jax.data import task_reviews
from rlhf_jax.data import task_rules
from rlhf_jax.storage import files

_HISTORY = (
    ('do you know the {topic} ?', 'yes i like the {topic} a lot .'),
    ('my friend likes the {topic} .', 'it is great fun .'))
_ASKED = ('tell me more about the {topic} .', 'where did it begin ?',
          'who began it ?', 'when did it begin ?')
_SAID = ('it began in {place} .', 'it began among {people} .',
         'it began in the {century} century .',
         'the {topic} began among {people} in {place} .',
         'the {topic} began in {place} in the {century} century .')
_LIVED = 'i saw it in {place} last year .'
_GENERIC = ('that is great .', 'i do not know .', 'i like it a lot .')
_BACK = ('have you tried it ?', 'what do you think ?')
_NAMES = 'ann ben carla dan eva finn gina hugo'.split()
_GOODS = 'apples books coins eggs pens shells stamps toys'.split()
_MODELS = {'6b_finetuning': 0.3, '6b_verification': 0.5,
           '175b_finetuning': 0.5, '175b_verification': 0.7}  # correct


def _comet(num_rows: int, rng: random.Random, noise: float = 1.0,
           invalid: float = 0.35) -> Iterator[dict]:
  """A share `invalid` of tails is of another relation or object, or cut."""
  heads = [f'PersonX {verb} the {thing}'
           for node in task_rules.KINDS.values()
           for verb in node['verbs'].split()
           for thing in node['objects'].split()]
  for _ in range(num_rows):
    head, relation = rng.choice(heads), rng.choice(task_rules.RELATIONS)
    valid = task_rules.valid_tails(head, relation)
    tail = rng.choice(valid)
    fails = rng.random() < invalid
    while fails and tail in valid:  # another's tail may be valid here too
      tail = rng.choice((
          'none',
          ' '.join(rng.choice(valid).split()[:-1]) or 'none',
          rng.choice(task_rules.valid_tails(
              head, rng.choice(task_rules.RELATIONS))),
          rng.choice(task_rules.valid_tails(rng.choice(heads), relation))))
    logit = (3 if tail in valid else -3) + rng.gauss(0, noise)
    score = min(max(1 / (1 + math.exp(-logit)), 1e-6), 1 - 1e-6)
    yield {'head': head, 'relation': relation, 'tail': tail,
           'split': 'train', 'p_valid_model': round(score, 6)}


def _grounded_dialogue(num_rows: int, rng: random.Random,
                       edited: float = 0.7) -> Iterator[dict]:
  """A share `edited` of original responses was hallucinated or generic.

  BEGIN and VRM are of the original response, which is null where it was kept;
  half true is both Entailment and Hallucination.
  """
  slots = {slot: words.split() for slot, words in task_rules.FACTS.items()}
  for i in range(num_rows):
    drawn = {slot: rng.sample(words, 2) for slot, words in slots.items()}
    facts = {slot: pair[0] for slot, pair in drawn.items()}
    other = {slot: pair[1] for slot, pair in drawn.items()}
    other['topic'] = facts['topic']
    before = rng.choice(_HISTORY)[:rng.choice((0, 2))]
    template = rng.choice(_SAID)
    response, original, begin = template.format(**facts), None, ['Entailment']
    if rng.random() < edited:
      original, begin = rng.choice((
          (rng.choice(_SAID).format(**other), ['Hallucination']),
          (_LIVED.format(**other), ['Hallucination']),
          (f'{template.format(**facts)} {_LIVED.format(**other)}',
           ['Hallucination', 'Entailment']),
          (rng.choice(_GENERIC), ['Generic'])))
    speech = ['Ack.' if begin == ['Generic'] else
              'Disclosure' if original and ' saw ' in original else
              'Edification']
    if rng.random() < .5:
      back = rng.choice(_BACK)
      response = f'{response} {back}'
      original = original and f'{original} {back}'
      speech.append('Question')
    yield {'dialog_idx': i, 'response': response,
           'original_response': original,
           'history': [text.format(**facts)
                       for text in (*before, rng.choice(_ASKED))],
           'knowledge': task_rules.KNOWLEDGE.format(**facts),
           'BEGIN': begin, 'VRM': speech}


def _gsm8k(num_rows: int, rng: random.Random) -> Iterator[dict]:
  solution = '{name} has {a} {sign} {b} = {c} {goods} .\nA: {c}'
  for _ in range(num_rows):
    plus = rng.random() < .5
    a, b = sorted((rng.randint(1, 20), rng.randint(1, 20)), reverse=True)
    row = dict(name=rng.choice(_NAMES), goods=rng.choice(_GOODS), a=a, b=b,
               sign='+' if plus else '-', c=a + b if plus else a - b)
    verb = 'gets' if plus else 'loses'
    entry = {
        'question': '{name} has {a} {goods} and {verb} {b} . how many {goods} '
                    'does {name} have ?'.format(verb=verb, **row),
        'ground_truth': solution.format(**row)}
    for model, share in _MODELS.items():
      correct = rng.random() < share
      c = row['c'] if correct else rng.choice(
          [x for x in range(41) if x != row['c']])
      entry[model] = {'is_correct': correct,
                      'solution': solution.format(**row | {'c': c})}
    yield entry


_TASKS: dict[str, Callable[..., Iterator[dict]]] = {
    'reddit': task_reviews.reddit, 'hh_scored': task_reviews.hh_scored,
    'stack_exchange': task_reviews.stack_exchange, 'comet': _comet,
    'grounded_dialogue': _grounded_dialogue, 'gsm8k': _gsm8k}
SUFFIXES = {name: '.csv' if name == 'reddit' else '.jsonl' for name in _TASKS}


def write(task: str, path: str | os.PathLike, *, num_rows: int, seed: int,
          **options: Any):
  """Writes a file of one task, the same for the same arguments.

  Args:
    task: a name of the table above.
    path: '.csv' for 'reddit' and '.jsonl' for the others (`SUFFIXES`), the
      ending by which a reader knows it.
    num_rows: rows of the file, >= 1: comments, pairs, questions with their
      answers, triples, turns, or questions with four solutions.
    seed: of the texts and their scores.
    **options: noise (reddit, hh_scored, stack_exchange: standard deviation of
      what readers add to the standardised rule before they vote or choose;
      comet: of the critic's logit); damage (these three: share of reviews
      that are cut or have a slip) and the arguments of `reviews.Reviews`;
      invalid (comet); edited (grounded_dialogue).

  Raises:
    ValueError: an argument is out of range, or no option of the task.
  """
  if task not in _TASKS:
    raise ValueError(f'task must be one of {", ".join(_TASKS)}, got {task!r}')
  if num_rows < 1:
    raise ValueError(f'num_rows must be >= 1, got {num_rows}')
  for name in ('noise', 'invalid', 'edited'):
    top = math.inf if name == 'noise' else 1
    if not 0 <= options.get(name, 0) <= top:
      raise ValueError(f'{name} must be in [0, {top}], got {options[name]}')
  try:
    rows = list(_TASKS[task](num_rows, random.Random(seed), **options))
  except TypeError as error:
    raise ValueError(f'options of {task}: {error}') from None
  if task == 'reddit':
    files.write_csv(path, [
        {name: row[name] for name in task_reviews.REDDIT} for row in rows])
  else:
    files.write_jsonl(path, rows)


@functools.cache
def _formula_words(task: str) -> list[str]:
  """Words that the prompt format of a task adds to its texts."""
  prompt, _ = formats.get(kinds.KINDS[task].format)(
      '\n\nHuman: \n\nAssistant:' if task == 'hh_scored' else 'PersonX',
      '', 'xWant' if task in ('comet', 'grounded_dialogue') else '')
  parts = (prompt,) if isinstance(prompt, str) else prompt
  return ' '.join(part for part in parts if isinstance(part, str)).split()


def vocabulary(task: str, **options: Any) -> list[str]:
  """All words of a task, those of its prompt format too.

  Args:
    task: as in `write`.
    **options: as in `write`; those of `reviews.Reviews` count.

  Returns:
    Different words, for `Tokenizer.word_level`.

  Raises:
    ValueError: unknown task.
  """
  if task not in _TASKS:
    raise ValueError(f'task must be one of {", ".join(_TASKS)}, got {task!r}')
  if task == 'comet':
    texts = ['none', *task_rules.RELATIONS]
    for node in task_rules.KINDS.values():
      texts += [f'the {node["objects"]} {node["verbs"]}']
      texts += [tail for name in task_rules.RELATIONS for tail in node[name]]
  elif task == 'grounded_dialogue':
    texts = [task_rules.KNOWLEDGE, *task_rules.FACTS.values(), *_ASKED, *_SAID,
             _LIVED, *_GENERIC, *_BACK, *itertools.chain(*_HISTORY)]
  elif task == 'gsm8k':
    texts = [*_NAMES, *_GOODS, *map(str, range(41)), 'has and gets loses . how '
             'many does have ? + - = A:']
  else:
    texts = reviews.Reviews(**{
        k: v for k, v in options.items()
        if k not in task_reviews.OPTIONS}).words
  words = ' '.join([*texts, *_formula_words(task)]).split()
  return [word for word in dict.fromkeys(words) if '{' not in word]


def main():
  """Entry point of `python -m rlhf_jax.data.tasks`."""
  parser = argparse.ArgumentParser(
      prog='python -m rlhf_jax.data.tasks', description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('task', choices=list(_TASKS))
  parser.add_argument('path', help='the file to write')
  parser.add_argument('--num_rows', type=int, required=True)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  try:
    write(args.task, args.path, num_rows=args.num_rows, seed=args.seed)
  except (ValueError, OSError) as error:
    parser.error(str(error))


if __name__ == '__main__':
  main()
