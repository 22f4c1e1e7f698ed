"""What the small worlds have in common: words, their valences, and damage."""

from collections.abc import Iterator, Mapping, Sequence
import functools
import itertools
import random

import numpy as np
from vaderSentiment import vaderSentiment

from rlhf_jax.data import tokenizer as tokenizer_lib

BOOSTS = {  # VADER's boosters add .293; a factor reads the same and scales
    'extremely': 1.6, 'really': 1.4, 'very': 1.4, 'quite': 1.2,
    'rather': 0.9, 'somewhat': 0.7, 'slightly': 0.6, 'barely': 0.4}
NEGATIONS = {'not': -0.74, 'never': -0.74}  # VADER's N_SCALAR
MODIFIERS = frozenset({*BOOSTS, *NEGATIONS})  # of an adjective
MOST_ADJECTIVES = 342  # of `valences`
_SUFFIXES = ('ful', 'less', 'ous', 'ive', 'able', 'ible')
_ONSETS, _NUCLEI = 'b d f g k l m n p r s t v z br cr dr fl gr pl st tr'.split(
    ), 'a e i o u'.split()


@functools.cache
def _lexicon() -> dict[str, float]:
  """VADER's adjectives, by their suffixes, and their valences."""
  lexicon = vaderSentiment.SentimentIntensityAnalyzer().lexicon
  return {w: lexicon[w] for w in sorted(lexicon) if w.isalpha()
          and w.islower() and w.endswith(_SUFFIXES) and abs(lexicon[w]) >= 0.5}


@functools.cache
def valences(num_adjectives: int) -> dict[str, float]:
  """Half positive, half negative adjectives of VADER, spread over strength.

  Positive and negative alternate, so that either half is as frequent.
  """
  sides = []
  for sign in (1, -1):
    side = [w for w, v in _lexicon().items() if v * sign > 0]
    if num_adjectives // 2 > len(side):
      raise ValueError(f'num_adjectives must be <= {2 * len(side)}, '
                       f'got {num_adjectives}.')
    random.Random(0).shuffle(side)  # frequency independent of the alphabet
    sides.append(side[:num_adjectives // 2])
  return {w: _lexicon()[w] for pair in zip(*sides) for w in pair}


@functools.cache
def coined(num_adjectives: int) -> dict[str, float]:
  """Adjectives that no language has, with valences as VADER's are spread.

  Positive and negative alternate, as in `valences`.

  Args:
    num_adjectives: half of them positive.
  """
  rng = random.Random(1)
  strengths = sorted(abs(v) for v in _lexicon().values())
  words = {}
  while len(words) < 2 * (num_adjectives // 2):
    word = ''.join(rng.choice(part) for _ in range(2)
                   for part in (_ONSETS, _NUCLEI)) + rng.choice(_SUFFIXES)
    if word not in words and word not in _lexicon():
      words[word] = (-1) ** len(words) * rng.choice(strengths)
  return words


def zipf(count: int, exponent: float) -> list[float]:
  """Cumulative weights of words by their rank, rank^-exponent."""
  return list(itertools.accumulate(
      (rank + 1) ** -exponent for rank in range(count)))


def table(coder: tokenizer_lib.Tokenizer, values: Mapping[str, float],
          default: float) -> np.ndarray:
  """A value for every token id, f32[V]."""
  values_of = np.full(coder.vocab_size, default, np.float32)
  values_of[[row[0] for row in coder.encode(list(values))]] = list(
      values.values())
  return values_of


def members(coder: tokenizer_lib.Tokenizer, words: Sequence[str]
            ) -> np.ndarray:
  """Which token ids are of some words, bool[V]."""
  return table(coder, dict.fromkeys(words, 1.0), 0.0) > 0


def prompts(tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Tokens before each response, i32[N, T], and 0 from there on."""
  return np.where(~mask & (np.cumsum(mask, axis=1) == 0), tokens, 0)


def named(prompt: np.ndarray, among: np.ndarray) -> np.ndarray:
  """The word of a kind in each prompt, i32[N] token ids; -1 where none is.

  Args:
    prompt: of `prompts`.
    among: of `members`; not token 0.
  """
  return np.where(among[prompt], prompt, -1).max(axis=1)


def says(tokens: np.ndarray, mask: np.ndarray, word: np.ndarray
         ) -> np.ndarray:
  """Whether each response has its word, bool[N], of token ids [N]."""
  return (mask & (tokens == word[:, None])).any(axis=1)


def read(tokens: np.ndarray, mask: np.ndarray, valence_of: np.ndarray,
         factor_of: np.ndarray, stops: Sequence[int]
         ) -> Iterator[tuple[np.ndarray, ...]]:
  """Goes through responses word by word, with what modifies an adjective.

  Args:
    tokens: i32[N, T].
    mask: bool[N, T], true on the response.
    valence_of: f32[V], 0 of what is no adjective.
    factor_of: f32[V] of the modifiers, 1 of what is none.
    stops: ids at which a sentence ends.

  Yields:
    T times the tokens [N]; bool[N], which of them are of a response; their
    valences f32[N] times the factors of the modifiers before them, 0 outside
    of a response and of all but adjectives; and bool[N], whether a sentence
    ends after a modifier.
  """
  factor = np.ones(len(tokens), np.float32)  # of the modifiers so far
  for token, here in zip(tokens.T, mask.T):
    valence = np.where(here, valence_of[token], 0.0) * factor
    dangles = here & np.isin(token, stops) & (factor != 1)
    yield token, here, valence, dangles
    modifies = np.where(here, factor_of[token], 1.0)
    factor = np.where((valence != 0) | dangles, 1.0, factor * modifies)


def corrupt(coder: tokenizer_lib.Tokenizer, tokens: np.ndarray,
            mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Damages responses, one of three ways each, as a policy might.

  Cuts a tail off (and the EOS with it), overwrites words with random ones,
  or repeats a stretch of the response.

  Args:
    coder: of one token a word.
    tokens: i32[N, T].
    mask: bool[N, T], true on the response.
    seed: of the damage.

  Returns:
    New tokens and mask of the same shapes.
  """
  rng = np.random.Generator(np.random.Philox(seed))
  rows, width = tokens.shape
  column = np.arange(width)
  start = np.argmax(mask, axis=1)[:, None]
  length = mask.sum(axis=1)[:, None]
  kind = rng.integers(3, size=(rows, 1))
  prefix = 1 + (rng.random((rows, 1)) * (length - 1)).astype(int)
  cut = (kind == 0) & (column >= start + prefix)
  body = mask & (tokens != coder.eos_id)
  noise = (kind == 1) & body & (rng.random(tokens.shape) < 0.25)
  back = rng.integers(1, 4, size=(rows, 1))
  from_ = np.clip(column - back, 0, None)
  echo = (kind == 2) & body & (from_ >= start) & (
      rng.random((rows, 1)) < 0.9) & (column % 6 < 3)
  out = np.where(noise, rng.integers(3, coder.vocab_size, tokens.shape), tokens)
  out = np.where(echo, np.take_along_axis(out, from_, axis=1), out)
  out = np.where(cut, coder.pad_id, out).astype(tokens.dtype)
  return out, mask & ~cut
