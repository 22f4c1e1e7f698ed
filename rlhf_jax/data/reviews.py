"""A small world from scratch: reviews from a grammar, and a rule that reads.

Everything the demo needs, without a download. A prompt names a thing and an
aspect of it; a review is a few sentences from nine templates, whose
adjectives carry VADER valences (Hutto and Gilbert 2014, PyPI vaderSentiment)
and may be intensified or negated. Words follow Zipf's law, so that most
adjectives are rare. The rule is the true reward: it sums the sentiment it
reads, and takes points off for what is wrong with the text.

  rule = sum over adjectives of valence * intensifier * negation
         + 1 if the thing of the prompt is named
         - 4 if unfinished (no EOS)   - 1 for each repeated adjective
         - 1 for each sentence that ends in an intensifier or negation
         - 1.5 for each misspelt word (a misspelt adjective has no valence)
         - 4 if it advertises
"""

from collections.abc import Sequence
import functools
import random
import re

import numpy as np

from rlhf_jax.data import grammar
from rlhf_jax.data import tokenizer as tokenizer_lib

_THINGS = (
    'phone hotel book film camera coat lamp novel car laptop bike song play '
    'game watch chair meal cafe course tent train boat garden printer radio '
    'jacket sofa mirror kettle guitar').split()
_ASPECTS = (
    'price sound staff plot screen fabric light style engine battery frame '
    'voice cast story strap seat taste coffee lesson zip service design view '
    'paper signal lining colour finish handle tone').split()
_GROUPS = {  # of things; parts of an evaluation, as 'helpful-base' is of HH
    'electronics': 'phone camera laptop watch printer radio kettle',
    'media': 'book film novel song play game course guitar',
    'travel': 'hotel car bike cafe tent train boat garden',
    'household': 'coat lamp chair meal jacket sofa mirror'}
_PEOPLE = 'friend sister neighbour teacher doctor cousin boss uncle'.split()
_FUNCTION = (
    'review the and its : . was is it i found we think a my says felt '
    'but for looks seemed to me this has').split()
# {t} thing, {s} aspect, {p} person, {n} optional negation, {a} adjective with
# an optional intensifier, {b} the bare adjective.
_TEMPLATES = (
    'the {t} was {n} {a} .',
    'its {s} is {n} {a} .',
    'i found the {s} {a} .',
    'we think it is {n} {a} and {a} .',
    'this {b} {t} has {a} {s} .',
    'my {p} says the {t} is {n} {a} .',
    'it felt {b} but the {s} was {a} .',
    'for a {t} it looks {a} .',
    'the {s} never seemed {a} to me .',
)
_ADVERTS = (
    'visit our shop for offers .',
    'click here to win today .',
    'order now and save money .',
)
_PROMPT = 'review the {t} and its {s} :'
_REQUEST = re.compile(r'review the (\S+) and its (\S+) :')
PROMPT_LENGTH = 8  # BOS and seven words


def subject(prompt: str) -> tuple[str, str]:
  """The thing and the aspect that the last request of a prompt names.

  Args:
    prompt: text that has 'review the <thing> and its <aspect> :' in it.

  Raises:
    ValueError: it has not.
  """
  requests = _REQUEST.findall(prompt)
  if not requests:
    raise ValueError('prompt must ask for a review of a thing and its aspect, '
                     f'got {prompt[-80:]!r}')
  return requests[-1]


def split_of(prompts: Sequence[str]) -> list[str]:
  """The group that the thing of each prompt belongs to.

  Args:
    prompts: N texts, see `subject`.

  Returns:
    N names: 'electronics', 'media', 'travel' or 'household'.

  Raises:
    ValueError: a prompt names no thing of this world.
  """
  group = {thing: name for name, things in _GROUPS.items()
           for thing in things.split()}
  things = [subject(prompt)[0] for prompt in prompts]
  foreign = next((thing for thing in things if thing not in group), None)
  if foreign is not None:
    raise ValueError(f'prompts must name things of this world, got {foreign!r}')
  return [group[thing] for thing in things]


def _misspelt(word: str) -> str:
  """Swaps two inner letters: 'wonderful' -> 'wodnerful'."""
  if len(word) < 4:
    return word + word[-1]
  return word[:2] + word[3] + word[2] + word[4:]


class Reviews:
  """The grammar, its vocabulary and its rule.

  Attributes:
    tokenizer: one token for each word.
    words: the vocabulary without special tokens, in the order of its ids.
  """

  def __init__(self, *, num_adjectives: int = 240, zipf: float = 1.0,
               typo_rate: float = 0.0, advert_rate: float = 0.0,
               sentences: tuple[float, ...] = (0.45, 0.52, 0.03)):
    """Builds the vocabulary.

    Args:
      num_adjectives: half of them positive.
      zipf: exponent of the word frequencies; larger makes rare words rarer.
      typo_rate: probability that a thing, aspect or adjective is misspelt.
        All but a few misspellings ("terrible" has a pair of equal letters)
        are rare tokens of their own.
      advert_rate: probability that a sentence is an advertisement instead.
      sentences: weights of a review with 1, 2, ... sentences. Those of more
        than the response length are what a policy learns not to finish.
    """
    for name, rate in dict(typo_rate=typo_rate,
                           advert_rate=advert_rate).items():
      if not 0 <= rate <= 1:
        raise ValueError(f'{name} must be in [0, 1], got {rate}.')
    if num_adjectives < 2:
      raise ValueError(f'num_adjectives must be >= 2, got {num_adjectives}.')
    if min(sentences, default=-1) < 0 or not sum(sentences):
      raise ValueError(f'sentences must be weights >= 0, got {sentences}.')
    self._valence = grammar.valences(num_adjectives)
    self._typo_rate = typo_rate
    self._advert_rate = advert_rate
    self._sentences = sentences
    self._zipf = zipf
    content = [*self._valence, *_THINGS, *_ASPECTS]
    self._typos = {w: _misspelt(w) for w in content} if typo_rate else {}
    words = [*_FUNCTION, *grammar.BOOSTS, *grammar.NEGATIONS, *_PEOPLE,
             *content]
    if advert_rate:
      words += [w for w in dict.fromkeys(' '.join(_ADVERTS).split())
                if w not in words]
    typos = [w for w in dict.fromkeys(self._typos.values()) if w not in words]
    self.words = [*words, *typos]
    self.tokenizer = tokenizer_lib.Tokenizer.word_level(self.words)
    coder = self.tokenizer
    self._valence_of = grammar.table(coder, self._valence, 0.0)
    self._factor_of = grammar.table(
        coder, grammar.BOOSTS | grammar.NEGATIONS, 1.0)
    self._is_thing = grammar.members(coder, _THINGS)
    adverts = {w for text in _ADVERTS for w in text.split()}
    adverts = adverts.difference(_FUNCTION) if advert_rate else ()
    self._is_advert = grammar.members(coder, adverts)
    self._is_typo = grammar.members(coder, typos)
    self._stops = (*coder.encode(['.'])[0], coder.eos_id)

  def write(self, count: int, seed: int) -> tuple[list[str], list[str]]:
    """Writes `count` prompts and reviews, the same for the same seed."""
    rng = random.Random(seed)
    positive = [w for w, v in self._valence.items() if v > 0]
    negative = [w for w, v in self._valence.items() if v < 0]
    pick = {name: functools.partial(
        rng.choices, words, cum_weights=grammar.zipf(len(words), self._zipf))
            for name, words in dict(
                t=_THINGS, s=_ASPECTS, p=_PEOPLE, boost=list(grammar.BOOSTS),
                n=list(grammar.NEGATIONS), pos=positive, neg=negative).items()}

    def spell(word):
      typo = self._typo_rate and rng.random() < self._typo_rate
      return self._typos.get(word, word) if typo else word

    def fill(slot, mood, thing, aspect):
      if slot == '{n}':
        return pick['n']()[0] if rng.random() < 0.15 else ''
      if slot in ('{a}', '{b}'):
        word = spell(pick['pos' if rng.random() < mood else 'neg']()[0])
        boosted = slot == '{a}' and rng.random() < 0.3
        return f'{pick["boost"]()[0]} {word}' if boosted else word
      if slot == '{t}':
        return spell(thing)
      if slot == '{s}':
        return spell(aspect if rng.random() < 0.5 else pick['s']()[0])
      return pick['p']()[0]

    prompts, reviews = [], []
    for _ in range(count):
      thing, aspect = pick['t']()[0], pick['s']()[0]
      mood = rng.betavariate(1.2, 1.2)  # how positive the reviewer is
      words = []
      for _ in range(rng.choices(range(1, 1 + len(self._sentences)),
                                 self._sentences)[0]):
        advert = self._advert_rate and rng.random() < self._advert_rate
        template = rng.choice(_ADVERTS if advert else _TEMPLATES)
        for slot in template.split():
          words.append(fill(slot, mood, thing, aspect)
                       if slot.startswith('{') else slot)
      prompts.append(_PROMPT.format(t=thing, s=aspect))
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
    score = np.zeros(len(tokens), np.float32)
    seen = np.zeros((len(tokens), coder.vocab_size), bool)
    for token, here, valence, dangles in grammar.read(
        tokens, mask, self._valence_of, self._factor_of, self._stops):
      adjective = valence != 0
      score += valence - dangles
      score -= adjective & seen[rows, token]
      score -= 1.5 * (here & self._is_typo[token])
      seen[rows, token] |= adjective
    thing = grammar.named(grammar.prompts(tokens, mask), self._is_thing)
    on_topic = grammar.says(tokens, mask, thing)
    advertises = (mask & self._is_advert[tokens]).any(axis=1)
    score += (on_topic - 4.0 * ~coder.finished(tokens, mask)
              - 4.0 * advertises)
    return score.reshape(shape)
