"""Tests for rlhf_jax.ops.texts."""

import math
import re
import subprocess
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import twin

from rlhf_jax.ops import texts

TWO = ['a b a', 'b c']
RESPONSES = ['red car', 'red dog dog', 'blue sky']


def _random_texts(seed, count=6):
  """Texts of 0 to 6 words of a small vocabulary, oddly spaced."""
  rng = np.random.default_rng(seed)
  return [' ' + '  '.join(rng.choice(list('abc'), size=rng.integers(0, 7)))
          for _ in range(count)]


def _windows(text, n):
  """The n-grams of one text, from every start that leaves room."""
  words = re.findall(r'\S+', text)
  return [' '.join(words[i:i + n]) for i in range(len(words)) if
          i + n <= len(words)]


class DistinctTest(parameterized.TestCase):

  @parameterized.parameters(
      # [Ex 11.1] 'a b a', 'b c': five words. Different unigrams a, b, c;
      # bigrams ab, ba, bc ('a b' across the texts is none); trigram aba.
      (1, .6, .6), (2, .6, 1.), (3, .2, 1.))
  def test_by_hand(self, n, by_words, by_ngrams):
    self.assertAlmostEqual(texts.distinct(TWO, n), by_words)
    self.assertAlmostEqual(texts.distinct(TWO, n, per_ngram=True), by_ngrams)

  def test_ngrams_do_not_cross_texts(self):
    self.assertEqual(texts.distinct(['a', 'b'], 2), 0)
    self.assertEqual(texts.distinct(['a', 'b'], 2, per_ngram=True), 0)

  def test_ngrams_are_of_the_corpus(self):
    # Per text and averaged, both would be 1.
    self.assertEqual(texts.distinct(['a b', 'a b'], 1), .5)
    self.assertEqual(texts.distinct(['a b', 'a b'], 2), .25)
    self.assertEqual(texts.distinct(['a b', 'a b'], 2, per_ngram=True), .5)

  def test_words_are_not_joined(self):
    # ('a', 'bc') is not ('ab', 'c').
    self.assertEqual(texts.distinct(['a bc', 'ab c'], 2), .5)

  @parameterized.parameters(([],), ([''],), (['  ', '\n'],))
  def test_empty_corpus_is_zero(self, corpus):
    for per_ngram in (False, True):
      self.assertEqual(texts.distinct(corpus, 1, per_ngram=per_ngram), 0)

  def test_identical_texts_are_hardly_distinct(self):
    self.assertAlmostEqual(texts.distinct(['the same words'] * 100, 1), .01)

  def test_double_spaces_make_no_words(self):
    # split(' ') would count two empty ones: 3 / 5.
    self.assertEqual(texts.distinct(['a  b  a'], 1), 2 / 3)

  def test_case_counts(self):
    self.assertEqual(texts.distinct(['A a'], 1), 1)

  @twin.few
  @twin.randomised
  def test_twin(self, seed):
    corpus = _random_texts(seed)
    words = sum(len(_windows(x, 1)) for x in corpus)
    for n in (1, 2, 3):
      ngrams = [ngram for x in corpus for ngram in _windows(x, n)]
      unique = len({*ngrams})
      self.assertAlmostEqual(
          texts.distinct(corpus, n), unique / max(words, 1))
      self.assertAlmostEqual(texts.distinct(corpus, n, per_ngram=True),
                             unique / max(len(ngrams), 1))


class NgramDiversityTest(parameterized.TestCase):

  def test_by_hand(self):
    # [Ex 11.2] unigrams (2/3 + 2/2) / 2; bigrams (2/2 + 1/1) / 2; trigrams of
    # the first text only.
    self.assertAlmostEqual(texts.ngram_diversity(TWO, 1), .833333, 6)
    self.assertAlmostEqual(texts.ngram_diversity(TWO, 2), 1.)
    self.assertAlmostEqual(texts.ngram_diversity(TWO, 3), 1.)

  def test_short_texts_are_left_out(self):
    # 'a a a': 1 bigram of 2. Counting 'b' as 0 would give .25, as 1 .75.
    self.assertAlmostEqual(texts.ngram_diversity(['a a a', 'b', ''], 2), .5)

  def test_is_per_text(self):
    # Equal texts do not repeat themselves; a corpus of them does.
    self.assertEqual(texts.ngram_diversity(['a b'] * 9, 1), 1)

  def test_texts_count_alike(self):
    # Over all n-grams at once it would be (1 + 1) / 5.
    self.assertAlmostEqual(texts.ngram_diversity(['a a a a', 'b'], 1), .625)

  def test_nothing_left_is_unknown(self):
    for corpus in ([], [''], ['a', 'b']):
      self.assertTrue(math.isnan(texts.ngram_diversity(corpus, 2)))

  @twin.few
  @twin.randomised
  def test_twin(self, seed):
    corpus = [*_random_texts(seed), 'a b c']
    for n in (1, 2, 3):
      rows = [_windows(x, n) for x in corpus]
      self.assertAlmostEqual(
          texts.ngram_diversity(corpus, n),
          np.mean([len({*row}) / len(row) for row in rows if len(row) > 0]))


class MeanWordsTest(absltest.TestCase):

  def test_by_hand(self):
    self.assertEqual(texts.mean_words(TWO), 2.5)
    # Spaces make no words; an empty response is one of length 0.
    self.assertEqual(texts.mean_words(['  a \n b ', '']), 1)
    self.assertTrue(math.isnan(texts.mean_words([])))


def _tfidf(text, corpus):
  """Mean non-zero entry and their number, word by word from the formula."""
  words = lambda x: [w for w in re.findall(r'[a-z]+', x.lower())
                     if len(w) > 1]
  df = {}
  for document in corpus:
    for word in {*words(document)}:
      df[word] = df.get(word, 0) + 1
  weights = [words(text).count(w) * (math.log((1 + len(corpus)) / (1 + n)) + 1)
             for w, n in df.items() if w in words(text)]
  if not weights:
    return 0., 0
  return sum(weights) / math.hypot(*weights) / len(weights), len(weights)


class TfidfDiversityTest(parameterized.TestCase):

  @parameterized.parameters(
      # [Ex 11.8] idf: red log(4/3) + 1 = 1.287682, the others log(4/2) + 1 =
      # 1.693147. 'red dog': (1.287682 + 1.693147) / 2 / 2.127175.
      ('red dog', .700655 * .2), ('dog', .1), ('dog ' * 5, .1), ('zzz', 0.),
      ('', 0.), ('red car dog blue sky', .444967),
      # Four words are scaled by .4, five by 1. Of equal idf: 1 / root 4.
      ('car dog blue sky', .5 * .4),
      # Lower case; one letter is no token; unseen words do not count.
      ('RED, Dog!', .140131), ('red dog a b', .140131),
      ('red dog zzz yyy xxx', .140131))
  def test_by_hand(self, text, expected):
    score = texts.TfidfDiversity(RESPONSES)
    np.testing.assert_allclose(score([text]), [expected], atol=5e-7)

  def test_scores_each_text_alone(self):
    score = texts.TfidfDiversity(RESPONSES)
    both = score(['dog', 'red dog', 'zzz'])
    self.assertEqual((both.shape, both.dtype), ((3,), np.float64))
    np.testing.assert_array_equal(
        both, np.concatenate([score([x]) for x in ('dog', 'red dog', 'zzz')]))
    self.assertEqual(score([]).shape, (0,))

  def test_fits_both_splits(self):
    # With 'blue sky' in another split, the idf of red would be 1 there.
    whole = texts.TfidfDiversity(RESPONSES)(['red dog'])
    part = texts.TfidfDiversity(RESPONSES[:2])(['red dog'])
    self.assertGreater(abs(whole - part), 1e-4)

  def test_limit_of_the_comment(self):
    score = texts.TfidfDiversity(RESPONSES, min_words=10)
    np.testing.assert_allclose(
        score(['red car dog blue sky', 'dog']), [.444967 / 2, .1], atol=5e-7)
    score = texts.TfidfDiversity(RESPONSES, min_words=0)
    np.testing.assert_allclose(
        score(['red dog', 'dog', 'zzz']), [.700655, 1, 0], atol=5e-7)

  @twin.few
  @twin.randomised
  def test_twin(self, seed):
    rng = np.random.default_rng(seed)
    vocabulary = [c * 2 for c in 'abcdefghij']
    draw = lambda count, size: [
        ' '.join(rng.choice(vocabulary[:size], size=rng.integers(1, 12)))
        for _ in range(count)]
    corpus, new = draw(5, 8), draw(8, 10)
    means, counts = np.array([_tfidf(text, corpus) for text in new]).T
    np.testing.assert_allclose(
        texts.TfidfDiversity(corpus)(new),
        means * np.where(counts >= 5, 1, counts / 10), rtol=1e-12)

  def test_missing_package_names_the_extra(self):
    with mock.patch.dict(sys.modules, {'sklearn.feature_extraction': None}):
      with self.assertRaisesRegex(ImportError, r'rlhf_jax\[text\]'):
        texts.TfidfDiversity(RESPONSES)

  def test_import_is_light(self):
    code = ('import sys; from rlhf_jax.ops import texts; '
            'print(sorted({"jax", "sklearn", "scipy"} & {*sys.modules}))')
    out = subprocess.run([sys.executable, '-c', code], check=True,
                         capture_output=True, text=True).stdout
    self.assertEqual(out.strip(), '[]')

  @parameterized.parameters(-1, 11)
  def test_rejects_min_words(self, min_words):
    with self.assertRaisesRegex(ValueError, f'min_words.*{min_words}'):
      texts.TfidfDiversity(RESPONSES, min_words=min_words)

  @parameterized.parameters(([],), (['a b', '!'],))
  def test_rejects_responses_without_words(self, responses):
    with self.assertRaisesRegex(
        ValueError, f'responses must hold.*{len(responses)} texts'):
      texts.TfidfDiversity(responses)

  def test_rejects_what_is_no_text(self):
    with self.assertRaisesRegex(ValueError, r'responses\[1\].*None'):
      texts.TfidfDiversity(['red', None])
    score = texts.TfidfDiversity(RESPONSES)
    for fn in (score, lambda x: texts.distinct(x, 1),
               lambda x: texts.ngram_diversity(x, 1), texts.mean_words):
      with self.assertRaisesRegex(ValueError, "texts must be.*'red dog'"):
        fn('red dog')
      with self.assertRaisesRegex(ValueError, r'texts\[1\].*3'):
        fn(['red', 3])

  @parameterized.parameters(0, -1)
  def test_rejects_n(self, n):
    for fn in (texts.distinct, texts.ngram_diversity):
      with self.assertRaisesRegex(ValueError, f'n must.*{n}'):
        fn(TWO, n)


if __name__ == '__main__':
  absltest.main()
