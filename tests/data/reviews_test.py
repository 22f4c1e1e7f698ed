"""Tests for rlhf_jax.data.reviews."""

import collections

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from rlhf_jax.data import grammar
from rlhf_jax.data import reviews

PROMPT = 'review the phone and its price :'
# Two adjectives of VADER; `test_valences_of_the_cases` says what they weigh.
GOOD, BAD = 'beautiful', 'horrible'
BOOSTS = {'extremely': 1.6, 'really': 1.4, 'very': 1.4, 'quite': 1.2,
          'rather': .9, 'somewhat': .7, 'slightly': .6, 'barely': .4}


def _world(**kwargs):
  return reviews.Reviews(num_adjectives=342, **kwargs)


def _encode(world, texts, prompt=PROMPT, length=24):
  rows = world.tokenizer.encode_rows(
      [prompt] * len(texts), texts, max_prompt_length=reviews.PROMPT_LENGTH,
      max_response_length=length)
  return rows.tokens, rows.mask


def _slow_rule(world, typos, tokens, mask):
  """The rule of the module's docstring, word by word, on one row."""
  valence = grammar.valences(342)
  factors = BOOSTS | {'not': -.74, 'never': -.74}
  adverts = set('visit our shop offers click here win today order now save '
                'money'.split())
  name = {i[0]: w for w in (*valence, *factors, *typos, *adverts, '.',
                            *reviews._THINGS)
          for i in world.tokenizer.encode([w])}
  response = [int(t) for t, m in zip(tokens, mask) if m]
  prompt = [int(t) for t in tokens[:list(mask).index(True)]]
  things = [name[t] for t in prompt if name.get(t) in reviews._THINGS]
  end = world.tokenizer.eos_id
  total, said, pending = 0., [], []
  for token in response:
    word = name.get(token)
    if word in valence:
      total += valence[word] * np.prod([factors[w] for w in pending])
      total -= word in said
      said, pending = [*said, word], []
    elif word in factors:
      pending.append(word)
    elif word == '.' or token == end:
      total -= bool(pending)
      pending = []
    total -= 1.5 * (word in typos)
  words = [name.get(t) for t in response]
  total += any(thing in words for thing in things)
  total -= 4 * bool(adverts.intersection(words))
  return total - 4 * (end not in response)


class RuleTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.world = _world(typo_rate=.3, advert_rate=.2)

  def test_valences_of_the_cases(self):
    valence = grammar.valences(342)
    self.assertEqual((valence[GOOD], valence[BAD]), (2.9, -2.5))

  @parameterized.parameters(
      (f'it is {GOOD} .', 2.9),
      (f'it is {GOOD} and {BAD} .', .4),  # 2.9 - 2.5
      (f'it is very {GOOD} .', 4.06),  # 1.4 * 2.9
      (f'it is barely {BAD} .', -1.),  # .4 * -2.5
      (f'it is not {GOOD} .', -2.146),  # -.74 * 2.9
      (f'it is never {BAD} .', 1.85),  # -.74 * -2.5
      (f'it is not very {BAD} .', 2.59),  # -.74 * 1.4 * -2.5
      (f'it is not {GOOD} and {BAD} .', -4.646),  # -2.146 - 2.5: one each
      (f'it is {GOOD} and {GOOD} .', 4.8),  # 2 * 2.9 - 1 repeated
      (f'{GOOD} {GOOD} {GOOD} .', 6.7),  # 3 * 2.9 - 2 repeated
      (f'it is {GOOD} very .', 1.9),  # 2.9 - 1 dangling
      ('it is not .', -1.),
      ('it is not very', -1.),  # one at the EOS, however many words
      (f'it is not . it is {GOOD} .', 1.9),  # -1, and no carry over '.'
      ('this phone is .', 1.),  # on topic
      ('phone phone .', 1.),  # once
      ('this hotel is .', 0.),  # off topic
      (f'the phone was extremely {GOOD} .', 5.64),  # 1 + 1.6 * 2.9
      ('it is beuatiful .', -1.5),  # misspelt: no valence
      ('the phnoe is .', -1.5),  # misspelt: off topic too
      (f'it is not beuatiful and {BAD} .', .35),  # -1.5 + -.74 * -2.5
      ('click here to win today .', -4.),  # once, however many words
      (f'it is {GOOD} . order now and save money .', -1.1),  # 2.9 - 4
      (f'it is {GOOD} to me and for a friend .', 2.9),  # 'to', 'for': none
      ('', 0.))
  def test_by_hand(self, text, expected):
    score = self.world.rule(*_encode(self.world, [text]))
    np.testing.assert_allclose(score, [expected], rtol=1e-5, atol=1e-6)

  def test_unfinished(self):
    # Cut at five tokens, before the EOS: 2.9 - 4.
    tokens, mask = _encode(self.world, [f'it is {GOOD} . it is'], length=5)
    self.assertAlmostEqual(float(self.world.rule(tokens, mask)[0]), -1.1, 5)

  def test_padding_and_shape(self):
    texts = [f'it is {GOOD} .', f'the phone is not {BAD} and is very', 'it']
    tokens, mask = _encode(self.world, texts)
    expected = self.world.rule(tokens, mask)
    filled = np.arange(tokens.size).reshape(tokens.shape) % (
        self.world.tokenizer.vocab_size)
    after = np.cumsum(mask, axis=1) == mask.sum(axis=1, keepdims=True)
    padded = np.where(after & ~mask, filled, tokens)
    self.assertTrue((padded != tokens).any(axis=1).all())
    np.testing.assert_array_equal(self.world.rule(padded, mask), expected)
    np.testing.assert_array_equal(
        self.world.rule(tokens[:, None], mask[:, None]), expected[:, None])

  def test_agrees_with_a_slow_reading(self):
    world = self.world
    prompts, texts = world.write(120, 7)
    rows = world.tokenizer.encode_rows(
        prompts, texts, max_prompt_length=8, max_response_length=24)
    tokens, mask = rows.tokens, rows.mask
    damaged, damaged_mask = grammar.corrupt(world.tokenizer, tokens, mask, 3)
    tokens = np.concatenate([tokens[:24], damaged[24:]])
    mask = np.concatenate([mask[:24], damaged_mask[24:]])
    rng = np.random.default_rng(0)  # and words at random, EOS among them
    tokens[96:] = np.where(mask[96:], rng.integers(
        2, world.tokenizer.vocab_size, tokens[96:].shape), tokens[96:])
    typos = set(world._typos.values()) - set(world._typos)
    expected = [_slow_rule(world, typos, *row) for row in zip(tokens, mask)]
    self.assertGreater(np.std(expected), 1)
    np.testing.assert_allclose(
        world.rule(tokens, mask), expected, rtol=1e-4, atol=1e-4)


class WriteTest(parameterized.TestCase):

  def test_seeds(self):
    world = _world()
    self.assertEqual(world.write(50, 1), world.write(50, 1))
    self.assertNotEqual(world.write(50, 1), world.write(50, 2))
    # The first ten of fifty are the ten.
    self.assertEqual(world.write(50, 1)[1][:10], world.write(10, 1)[1])

  def test_every_word_is_known(self):
    world = _world(typo_rate=.5, advert_rate=.2)
    for texts in world.write(300, 0):
      world.tokenizer.encode(texts)  # raises on an unknown word
      self.assertFalse([t for t in texts if '{' in t or '  ' in t])

  def test_zipf(self):
    world = _world()
    count = collections.Counter(' '.join(world.write(4000, 0)[1]).split())
    valence = grammar.valences(342)
    for sign in (1, -1):
      ranked = [w for w, v in valence.items() if v * sign > 0]
      # Frequency falls as 1 / rank: 50 to 1.
      self.assertBetween(count[ranked[0]] / count[ranked[49]], 25, 100)

  def test_misspellings(self):
    self.assertEqual(reviews._misspelt('wonderful'), 'wodnerful')
    self.assertEqual(reviews._misspelt('car'), 'carr')
    plain, noisy = _world(), _world(typo_rate=.2)
    typos = set(noisy._typos.values()) - set(noisy._typos)
    words = ' '.join(noisy.write(500, 0)[1]).split()
    self.assertBetween(np.mean([w in typos for w in words]), .05, .1)
    self.assertGreater(
        noisy.tokenizer.vocab_size, plain.tokenizer.vocab_size)
    self.assertFalse(typos & set(' '.join(plain.write(500, 0)[1]).split()))

  def test_adverts(self):
    world = _world(advert_rate=.2)
    texts = ' '.join(world.write(1000, 0)[1])
    # A fifth of the sentences, and a third of those is this one.
    share = texts.count('click here to win today .') / texts.count('.')
    self.assertBetween(share, .05, .085)
    self.assertNotIn('click', ' '.join(_world().write(1000, 0)[1]))

  def test_unfinished_share(self):
    # At 24 tokens the default mix of sentences leaves about one in a hundred.
    world = reviews.Reviews()
    tokens, mask = _encode(world, world.write(8000, 0)[1])
    unfinished = ~(mask & (tokens == world.tokenizer.eos_id)).any(axis=1)
    self.assertBetween(unfinished.mean(), .003, .02)


class SubjectTest(absltest.TestCase):

  def test_split_of(self):
    prompts = [f'review the {thing} and its price :' for thing in (
        'phone', 'song', 'hotel', 'sofa')]
    self.assertEqual(reviews.split_of(prompts), [
        'electronics', 'media', 'travel', 'household'])
    things = ' '.join(reviews._GROUPS.values()).split()
    self.assertCountEqual(things, reviews._THINGS)  # each in one group
    with self.assertRaisesRegex(ValueError, "this world, got 'moon'"):
      reviews.split_of([PROMPT, PROMPT.replace('phone', 'moon')])

  def test_subject(self):
    self.assertEqual(reviews.subject(f'{PROMPT} no . {PROMPT} '.replace(
        'price', 'style', 1)), ('phone', 'price'))  # the last request
    with self.assertRaisesRegex(ValueError, 'ask for a review'):
      reviews.subject('review the phone')

  def test_words(self):
    world = _world(typo_rate=.1)
    self.assertLen(world.words, world.tokenizer.vocab_size - 3)
    self.assertEqual(world.tokenizer.encode([world.words[7]]), [[10]])


if __name__ == '__main__':
  absltest.main()
