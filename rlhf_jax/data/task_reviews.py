"""The tasks of `tasks` whose texts are reviews, judged by their rule."""

from collections.abc import Iterator, Sequence
import itertools
import math
import random
import statistics
from typing import Any

from rlhf_jax.data import reviews

REDDIT = (
    'id', 'parent_id', 'subreddit_id', 'link_id', 'text', 'score', 'ups',
    'author', 'controversiality', 'parent_link_id', 'parent_text',
    'parent_score', 'parent_ups', 'parent_author', 'parent_controversiality')
OPTIONS = ('noise', 'damage')  # others are of `reviews.Reviews`
_LEAST_VOTES = 6  # of the real file


def _damaged(text: str, rng: random.Random) -> str:
  """A review as somebody might type it: cut, or with a slip in it."""
  words = text.split()
  way = rng.randrange(3)
  if way == 0:
    return ' '.join(words[:rng.randrange(2, len(words))])
  if way == 1:  # one word twice
    at = rng.randrange(len(words) - 1)
    return ' '.join([*words[:at + 1], *words[at:]])
  return ' '.join([*words[:-1], 'very', '.'])


def _reviews(num_rows: int, rng: random.Random, *, damage: float = 0.2,
             **world: Any) -> tuple[reviews.Reviews, list[str], list[str]]:
  """The world, prompts and reviews, a share of which is damaged."""
  if not 0 <= damage <= 1:
    raise ValueError(f'damage must be in [0, 1], got {damage}')
  world = reviews.Reviews(**world)
  prompts, texts = world.write(num_rows, rng.getrandbits(32))
  return world, prompts, [
      _damaged(text, rng) if rng.random() < damage else text for text in texts]


def _quality(world: reviews.Reviews, prompts: Sequence[str],
             texts: Sequence[str]) -> list[float]:
  """The rule, in standard deviations of these texts from their mean."""
  rows = world.tokenizer.encode_rows(
      prompts, texts, max_prompt_length=reviews.PROMPT_LENGTH,
      max_response_length=1 + max(len(text.split()) for text in texts))
  rule = world.rule(rows.tokens, rows.mask).tolist()
  mean, std = statistics.fmean(rule), statistics.pstdev(rule) or 1.0
  return [(x - mean) / std for x in rule]


def _votes(opinions: Sequence[float]) -> list[int]:
  """Heavy-tailed votes, one half up and one down, at least six either way."""
  middle = statistics.median(opinions)
  return [int(math.copysign(_LEAST_VOTES * math.exp(1.7 * abs(x - middle)),
                            x - middle)) for x in opinions]


def reddit(num_rows: int, rng: random.Random, noise: float = 1.0, **options
           ) -> Iterator[dict]:
  """A comment on a prompt; readers vote by the rule and `noise`."""
  world, prompts, texts = _reviews(num_rows, rng, **options)
  votes = _votes([x + rng.gauss(0, noise)
                  for x in _quality(world, prompts, texts)])
  for i, (prompt, text, vote) in enumerate(zip(prompts, texts, votes)):
    parent = rng.randrange(1, 500)
    yield dict(zip(REDDIT, (
        f'c{i}', f't1_p{i}', 't5_reviews', f't3_l{i}', text, vote, vote,
        f'user{rng.randrange(1000)}', int(rng.random() < .1), f't3_l{i}',
        prompt, parent, parent, f'user{rng.randrange(1000)}', 0)))


def _moved(text: str, old: str, new: str) -> str:
  """A review of one prompt turned into one of another."""
  names = dict(zip(reviews.subject(old), reviews.subject(new)))
  return ' '.join(names.get(word, word) for word in text.split())


def _answered(num_rows: int, rng: random.Random, most: int, **options
              ) -> Iterator[tuple[str, list[str], list[float]]]:
  """Prompts, 2 to `most` reviews of each, and how good each of them is."""
  counts = [rng.randint(2, most) for _ in range(num_rows)]
  world, prompts, texts = _reviews(sum(counts), rng, **options)
  ends = list(itertools.accumulate(counts))
  row_prompts = [prompts[end - count] for count, end in zip(counts, ends)
                 for _ in range(count)]
  texts = [_moved(*row) for row in zip(texts, prompts, row_prompts)]
  quality = _quality(world, row_prompts, texts)
  for count, end in zip(counts, ends):
    yield row_prompts[end - 1], texts[end - count:end], quality[end - count:end]


def hh_scored(num_rows: int, rng: random.Random, noise: float = 1.0,
              **options) -> Iterator[dict]:
  """People choose by the rule and `noise`; scores are the rule, in half."""
  earlier = None
  for i, (prompt, texts, quality) in enumerate(
      _answered(num_rows, rng, 2, **options)):
    liked = [x + rng.gauss(0, noise) for x in quality]
    order = sorted(range(2), key=lambda k: -liked[k])
    turns = [f'<|prompter|>{prompt}', '<|assistant|>']
    if earlier is not None and rng.random() < .3:
      turns = [*earlier, *turns]
    yield {'prefix': [turns, turns],
           'suffix': [texts[k] for k in order],
           'reward': [round(quality[k] + rng.gauss(0, .5), 4) for k in order],
           'sft_index': 0,
           'meta': {'path': f'data/{reviews.split_of([prompt])[0]}/dev.jsonl',
                    'line_num': i, 'task': 'dialogue'}}
    earlier = f'<|prompter|>{prompt}', f'<|assistant|>{texts[order[0]]}'


def stack_exchange(num_rows: int, rng: random.Random, noise: float = 1.0,
                   **options) -> Iterator[dict]:
  """Answers with votes by the rule and `noise`; the most may be accepted."""
  for i, (prompt, texts, quality) in enumerate(
      _answered(num_rows, rng, 4, **options)):
    liked = [x + rng.gauss(0, noise) for x in quality]
    votes = [int(math.copysign(math.expm1(2 * abs(x)), x)) for x in liked]
    chosen = [vote > 0 and vote == max(votes) and rng.random() < .7
              for vote in votes]
    accepted = chosen.index(True) if any(chosen) else None
    yield {'qid': i, 'question': prompt, 'answers': [
        {'answer_id': k, 'pm_score': (
            int(math.log2(1 + vote) + .5) + (k == accepted) if vote > 0
            else -1), 'selected': k == accepted, 'text': text}
        for k, (text, vote) in enumerate(zip(texts, votes))]}
