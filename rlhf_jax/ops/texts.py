"""Statistics of texts: diversity and length in words.

Distinct-n and the TF-IDF reward are those of Baheti et al. 2024,
https://arxiv.org/abs/2305.14718, Tables 2 and 4, as their code has them;
n-gram diversity is our reading of Ahmadian et al. 2024,
https://arxiv.org/abs/2402.14740, Table 2, who do not define theirs. Words are
what str.split() gives; the code of Baheti et al. splits at every single space,
so that two in a row make an empty word.
"""

from collections.abc import Iterable, Sequence

import numpy as np


def _words(texts: Sequence[str], name: str = 'texts') -> list[list[str]]:
  """The words of each text; refuses one string in the place of a list."""
  if isinstance(texts, str):
    raise ValueError(f'{name} must be a list of texts, got one: {texts!r}.')
  texts = list(texts)  # a generator can be read once
  for i, text in enumerate(texts):
    if not isinstance(text, str):
      raise ValueError(f'{name}[{i}] must be a string, got {text!r}.')
  return [text.split() for text in texts]


def _ngrams(words: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
  """All n-grams of one text, in order."""
  return zip(*(words[i:] for i in range(n)))


def _check_n(n: int):
  if n < 1:
    raise ValueError(f'n must be >= 1, got {n}.')


def distinct(texts: Sequence[str], n: int, *, per_ngram: bool = False) -> float:
  """Distinct-n of a corpus: different n-grams over words.

  It falls as the corpus grows: compare equal numbers of texts only.

  Args:
    texts: the responses; an n-gram never reaches from one into the next.
    n: words in an n-gram, >= 1.
    per_ngram: divide by the number of n-grams (Li et al. 2016), not by the
      number of words, as Baheti et al.'s code does for every n.

  Returns:
    Share in [0, 1]; 0 where there is nothing to divide by.

  Raises:
    ValueError: if `n` is out of range or `texts` is not a list of strings.
  """
  _check_n(n)
  words = _words(texts)
  ngrams = [ngram for text in words for ngram in _ngrams(text, n)]
  total = len(ngrams) if per_ngram else sum(map(len, words))
  return len(set(ngrams)) / total if total else 0.0


def ngram_diversity(texts: Sequence[str], n: int) -> float:
  """Different n-grams over n-grams of each text, averaged over texts.

  Args:
    texts: the responses.
    n: words in an n-gram, >= 1. A text of fewer words is left out.

  Returns:
    Share in (0, 1]; NaN where no text is left, since 0 would say that all
    repeat themselves.

  Raises:
    ValueError: if `n` is out of range or `texts` is not a list of strings.
  """
  _check_n(n)
  ngrams = [list(_ngrams(words, n)) for words in _words(texts)]
  ratios = [len(set(x)) / len(x) for x in ngrams if x]
  return sum(ratios) / len(ratios) if ratios else float('nan')


def mean_words(texts: Sequence[str]) -> float:
  """Mean length of texts in words (Baheti et al. 2024, Table 2).

  Args:
    texts: the responses; an empty one has 0 words.

  Returns:
    Words; NaN without texts.

  Raises:
    ValueError: if `texts` is not a list of strings.
  """
  lengths = [len(words) for words in _words(texts)]
  return sum(lengths) / len(lengths) if lengths else float('nan')


class TfidfDiversity:
  """How rare the words of a text are, a reward of Baheti et al. 2024, sec. 5.

  A text becomes its TF-IDF vector, with idf = log((1 + texts) / (1 + texts
  with the word)) + 1, scaled to length 1; the score is the mean of its
  non-zero entries. Tokens are lower-case runs of two or more word characters;
  those that fitting has not seen do not count. A text of fewer than
  `min_words` different tokens is scaled by their number / 10. (A comment in
  the paper's code says 10 where the code says 5, so that the factor jumps
  from .4 to 1; min_words=10 removes the jump.)
  """

  def __init__(self, responses: Sequence[str], *, min_words: int = 5):
    """Fits vocabulary and idf.

    Args:
      responses: the training responses, those of both splits together (the
        paper's upvoted and downvoted comments).
      min_words: different tokens from which on nothing is scaled, 0 to 10.

    Raises:
      ImportError: scikit-learn is not installed.
      ValueError: if `min_words` is out of range, or `responses` is not a list
        of strings or holds no token.
    """
    if not 0 <= min_words <= 10:
      raise ValueError(f'min_words must be in [0, 10], got {min_words}.')
    _words(responses, 'responses')
    try:
      from sklearn.feature_extraction import text
    except ImportError as error:
      raise ImportError(
          'TfidfDiversity needs scikit-learn: '
          "pip install 'rlhf_jax[text]'") from error
    self._min_words = min_words
    self._counts = text.CountVectorizer()
    tokens = self._counts.build_analyzer()
    if not any(tokens(response) for response in responses):
      raise ValueError('responses must hold a word of two or more characters, '
                       f'got {len(responses)} texts without.')
    self._weights = text.TfidfTransformer().fit(
        self._counts.fit_transform(responses))

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Scores texts.

    Args:
      texts: N responses.

    Returns:
      f64[N], in [0, 1]; 0 for a text of unseen words only.

    Raises:
      ValueError: if `texts` is not a list of strings.
    """
    if not _words(texts):
      return np.zeros(0)
    rows = self._weights.transform(self._counts.transform(texts))
    different = rows.getnnz(axis=1)
    means = np.asarray(rows.sum(axis=1)).ravel() / np.maximum(different, 1)
    return means * np.where(different < self._min_words, different / 10, 1.0)
