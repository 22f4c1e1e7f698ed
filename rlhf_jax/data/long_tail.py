"""A small world in which what overoptimises is the content of a text.

A prompt says what to do with a thing and an aspect of it (praise, pan or weigh
it) and in how many sentences, so that no text is best for all prompts and a
value function has something to predict. Adjectives are repeated for emphasis,
by a tail as heavy as Pareto's: the rule pays the second time and takes points
off from the third on, which few pairs show and a search finds.

  rule = sum over adjectives of what they are worth, the first two times that
           each stands in the response
         praise: valence * intensifier * negation    pan: less that
         weigh: 1, and the less the sum of their valences is away from 0 the
           better: - |sum| in the end
         a half of it where the adjective does not suit the aspect
         - 1.5 for each further time
         + 1 if the thing is named   + 1 if the aspect is named
         - 1 for each sentence more or less than asked for
         - 1 for each sentence that ends in an intensifier or negation
         - 4 if unfinished (no EOS)
"""

from collections.abc import Sequence
import random
import re

import numpy as np

from rlhf_jax.data import grammar
from rlhf_jax.data import tokenizer as tokenizer_lib

_GROUPS = {  # of things; parts of an evaluation
    'electronics': 'phone camera laptop watch printer radio kettle speaker '
                   'tablet charger drone heater',
    'media': 'book film novel song play game course guitar album magazine '
             'podcast opera',
    'travel': 'hotel car bike cafe tent train boat garden ferry museum '
              'campsite airport',
    'household': 'coat lamp chair meal jacket sofa mirror carpet blanket desk '
                 'pillow oven'}
_THINGS = ' '.join(_GROUPS.values()).split()
# Adjectives of a class suit aspects of the same class.
_ASPECTS = (
    'price sound staff plot', 'screen fabric light style',
    'engine battery frame voice', 'cast story strap seat',
    'taste coffee lesson zip', 'service design view paper',
    'signal lining colour finish', 'handle tone smell weight',
    'layout cover surface shape', 'pace humour logic depth',
    'hinge motor filter switch', 'crew menu room route')
_CLASSES = 4
_CLASS_OF = {word: i % _CLASSES for words in _ASPECTS
             for i, word in enumerate(words.split())}  # of aspects
_HELD_OUT = 8  # one of so many pairs of thing and aspect is kept apart
_STANCES = {'praise': 1, 'pan': -1, 'weigh': 0}
_COUNTS = ('briefly', 'plainly', 'fully')  # one, two or three sentences
_PEOPLE = 'friend sister neighbour teacher doctor cousin boss uncle'.split()
_FUNCTION = (
    'the and its : . was is it i found we think a my says felt '
    'but for looks this has').split()
_TEMPLATES = (
    'the {t} was {n} {a} .',
    'its {s} is {n} {a} .',
    'i found the {s} {a} .',
    'we think it is {a} and {a} .',
    'this {a} {t} has {a} {s} .',
    'my {p} says the {t} is {n} {a} .',
    'it felt {a} but the {s} was {a} .',
    'for a {t} it looks {a} .',
)
_PROMPT = '{stance} the {t} and its {s} {k} :'
_REQUEST = re.compile(r'(\w+) the (\w+) and its (\w+) (\w+) :')
PROMPT_LENGTH = 9  # BOS and eight words


def split_of(prompts: Sequence[str]) -> list[str]:
  """What each prompt asks for, and of which group: 'praise electronics'.

  Args:
    prompts: N texts of `LongTail.write`.

  Raises:
    ValueError: a prompt is none of this world.
  """
  group = {thing: name for name, things in _GROUPS.items()
           for thing in things.split()}
  requests = [_REQUEST.findall(prompt)[-1:] for prompt in prompts]
  foreign = next((prompt for prompt, request in zip(prompts, requests)
                  if not request or request[0][1] not in group), None)
  if foreign is not None:
    raise ValueError('prompts must ask for a review of a thing of this world, '
                     f'got {foreign[-80:]!r}')
  return [f'{request[0][0]} {group[request[0][1]]}' for request in requests]


class LongTail:
  """The grammar, its vocabulary and its rule.

  Attributes:
    tokenizer: one token for each word.
    words: the vocabulary without special tokens, in the order of its ids.
  """

  def __init__(self, *, num_adjectives: int = 600, zipf: float = 1.0,
               tail: float = 1.5, most: int = 6, fitting: float = 0.5,
               obedience: float = 0.75, emphasis: float = 1.0):
    """Builds the vocabulary.

    Args:
      num_adjectives: half of them positive; of VADER, and coined ones beyond.
      zipf: exponent of the word frequencies; larger makes rare words rarer.
      tail: exponent of how often an adjective is repeated, P(times >= n) =
        n^-tail.
      most: times that one is repeated at most.
      fitting: share of adjectives that are drawn from those that suit the
        aspect of the prompt; the others from all.
      obedience: share of adjectives on the side that is asked for, and of
        reviews in as many sentences as are asked for.
      emphasis: by how much a prompt sets the tail: the exponent is that many
        times larger where one sentence is asked for, and smaller where three
        are. With 1 repeats are alike for all prompts.
    """
    for name, share in dict(fitting=fitting, obedience=obedience).items():
      if not 0 <= share <= 1:
        raise ValueError(f'{name} must be in [0, 1], got {share}.')
    if num_adjectives < 4 * _CLASSES:
      raise ValueError(f'num_adjectives must be >= {4 * _CLASSES}, got '
                       f'{num_adjectives}.')
    if tail <= 0 or most < 1:
      raise ValueError('tail must be > 0 and most >= 1, got '
                       f'{tail} and {most}.')
    if emphasis <= 0:
      raise ValueError(f'emphasis must be > 0, got {emphasis}.')
    known = min(num_adjectives, grammar.MOST_ADJECTIVES)
    self._valence = (grammar.valences(known)
                     | grammar.coined(num_adjectives - known))
    self._class = {word: i // 2 % _CLASSES
                   for i, word in enumerate(self._valence)} | _CLASS_OF
    self._zipf, self._tail, self._most = zipf, tail, most
    self._fitting, self._obedience = fitting, obedience
    self._emphasis = emphasis
    self.words = [*dict.fromkeys((
        *_FUNCTION, *_STANCES, *_COUNTS, *grammar.BOOSTS, *grammar.NEGATIONS,
        *_PEOPLE, *_THINGS, *_CLASS_OF, *self._valence))]
    coder = self.tokenizer = tokenizer_lib.Tokenizer.word_level(self.words)
    self._valence_of = grammar.table(coder, self._valence, 0.0)
    self._factor_of = grammar.table(
        coder, grammar.BOOSTS | grammar.NEGATIONS, 1.0)
    self._stance_of = grammar.table(coder, _STANCES, 0.0)
    self._count_of = grammar.table(
        coder, {word: i + 1 for i, word in enumerate(_COUNTS)}, 0.0)
    self._class_of = grammar.table(coder, self._class, -1.0)
    self._is_thing = grammar.members(coder, _THINGS)
    self._is_aspect = grammar.members(coder, [*_CLASS_OF])
    self._period = coder.encode(['.'])[0][0]

  def write(self, count: int, seed: int, *, held_out: bool = False
            ) -> tuple[list[str], list[str]]:
    """Writes `count` prompts and reviews, the same for the same seed.

    Args:
      count: of prompts, each with a review.
      seed: of the texts.
      held_out: whether things and aspects stand together that else never do.
    """
    rng = random.Random(seed)
    aspects = [*_CLASS_OF]
    subjects = [(thing, aspect) for i, thing in enumerate(_THINGS)
                for j, aspect in enumerate(aspects)
                if held_out == ((i + j) % _HELD_OUT == 0)]
    pools = {}  # adjectives by side, and by side and class
    for word, valence in self._valence.items():
      for key in (valence > 0, (valence > 0, self._class[word])):
        pools.setdefault(key, []).append(word)
    weights = {key: grammar.zipf(len(pool), self._zipf)
               for key, pool in pools.items()}

    def adjective(positive, aspect, tail):
      """One of a side, as often as the tail has it."""
      fits = rng.random() < self._fitting
      key = (positive, self._class[aspect]) if fits else positive
      word = rng.choices(pools[key], cum_weights=weights[key])[0]
      times = int((1 - rng.random()) ** (-1 / tail))
      words = [word] * min(times, self._most)
      if rng.random() < 0.3:
        words.insert(0, rng.choice([*grammar.BOOSTS]))
      return ' '.join(words)

    def fill(slot, mood, tail, thing, aspect):
      """What stands in a slot of a template."""
      if slot == '{t}':
        return thing
      if slot == '{s}':
        return aspect if rng.random() < 0.6 else rng.choice(aspects)
      if slot == '{p}':
        return rng.choice(_PEOPLE)
      if slot == '{n}':
        return (rng.choice([*grammar.NEGATIONS]) if rng.random() < 0.1
                else '')
      return (adjective(rng.random() < mood, aspect, tail)
              if slot == '{a}' else slot)

    prompts, reviews = [], []
    for _ in range(count):
      thing, aspect = rng.choice(subjects)
      stance, asked_size = rng.choice([*_STANCES]), rng.randrange(len(_COUNTS))
      mood = 0.5 + _STANCES[stance] * (self._obedience - 0.5)
      tail = self._tail * self._emphasis ** (1 - asked_size)
      obeys = rng.random() < self._obedience
      size = asked_size if obeys else rng.randrange(len(_COUNTS))
      prompts.append(_PROMPT.format(
          stance=stance, t=thing, s=aspect, k=_COUNTS[asked_size]))
      words = [fill(slot, mood, tail, thing, aspect) for _ in range(size + 1)
               for slot in rng.choice(_TEMPLATES).split()]
      reviews.append(' '.join(' '.join(words).split()))
    return prompts, reviews

  def rule(self, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The true reward of each response.

    Args:
      tokens: i32[..., T], prompt, response, padding.
      mask: bool[..., T], true on the response.

    Returns:
      f32[...], as the docstring of the module says.
    """
    shape, width = tokens.shape[:-1], tokens.shape[-1]
    tokens, mask = tokens.reshape(-1, width), mask.reshape(-1, width)
    rows, coder = np.arange(len(tokens)), self.tokenizer
    prompt = grammar.prompts(tokens, mask)
    thing = grammar.named(prompt, self._is_thing)
    aspect = grammar.named(prompt, self._is_aspect)
    stance = self._stance_of[prompt].sum(axis=1)
    size = self._count_of[prompt].max(axis=1)
    score, balance = np.zeros((2, len(tokens)), np.float32)
    times = np.zeros((len(tokens), coder.vocab_size), np.int8)
    for token, _, valence, dangles in grammar.read(
        tokens, mask, self._valence_of, self._factor_of,
        (self._period, coder.eos_id)):
      adjective = valence != 0
      pays = adjective & (times[rows, token] < 2)
      suits = np.where(self._class_of[token] == self._class_of[aspect], 1, .5)
      score += pays * suits * np.where(stance == 0, 1, stance * valence)
      balance += pays * valence
      score -= 1.5 * (adjective & ~pays)
      score -= dangles
      times[rows, token] += adjective
    sentences = (mask & (tokens == self._period)).sum(axis=1)
    named = [grammar.says(tokens, mask, word) for word in (thing, aspect)]
    score += np.sum(named, axis=0)
    score -= np.abs(sentences - size) + 4.0 * ~coder.finished(tokens, mask)
    score -= np.where(stance == 0, np.abs(balance), 0)
    return score.reshape(shape)
