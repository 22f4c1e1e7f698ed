"""How easily a text is read, by the length of its words and sentences."""

from collections.abc import Sequence
import re

import numpy as np


def flesch_reading_ease(texts: Sequence[str]) -> np.ndarray:
  """206.835 - 1.015 words / sentences - 84.6 syllables / words (Flesch 1948).

  Of English: a word is a run of letters, a sentence ends at a run of '.', '!'
  or '?', and a syllable is a run of vowels, y among them, but for the silent e
  at the end of a word; every word has one.

  Args:
    texts: the responses.

  Returns:
    f64[N]; plain English has 60 to 70, and short words in short sentences up
    to 121. 0 for a text without words.

  Raises:
    ValueError: if `texts` is one string.
  """
  if isinstance(texts, str):
    raise ValueError(f'texts must be a list of texts, got one: {texts!r}.')
  return np.array([_ease(text.lower()) for text in texts])


def _ease(text: str) -> float:
  words = re.findall(r"[a-z]+(?:'[a-z]+)*", text)
  if not words:
    return 0.0
  # A run of letters, and whatever else comes before its end.
  sentences = len(re.findall('[a-z][^.!?]*', text))
  syllables = sum(map(_syllables, words))
  return (206.835 - 1.015 * len(words) / sentences
          - 84.6 * syllables / len(words))


def _syllables(word: str) -> int:
  # Not silent in 'ta-ble', nor in 'the' or 'free'.
  silent = re.search('[^aeiouyl]e$|[aeiouy]le$', word) is not None
  return max(len(re.findall('[aeiouy]+', word)) - silent, 1)
