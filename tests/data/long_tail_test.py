"""Tests for rlhf_jax.data.long_tail."""

import collections
import itertools

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from rlhf_jax.data import grammar
from rlhf_jax.data import long_tail

ASPECTS = {word: i % 4 for line in long_tail._ASPECTS
           for i, word in enumerate(line.split())}


def _rule(world, prompt, response, finished=True):
  """The rule of the module's docstring, word by word, on texts."""
  stance, _, thing, _, _, aspect, length, _ = prompt.split()
  words, pending, times = response.split(), [], collections.Counter()
  total = sum_ = 0.
  for word in [*words, *['<eos>'] * finished]:
    if word in world._valence:
      value = world._valence[word] * np.prod(
          [(grammar.BOOSTS | grammar.NEGATIONS)[w] for w in pending])
      pending = []
      times[word] += 1
      if times[word] > 2:
        total -= 1.5
        continue
      sum_ += value
      worth = {'praise': value, 'pan': -value, 'weigh': 1}[stance]
      total += worth * (1 if world._class[word] == ASPECTS[aspect] else .5)
    elif word in grammar.MODIFIERS:
      pending.append(word)
    elif word in ('.', '<eos>'):
      total -= bool(pending)
      pending = []
  total += (thing in words) + (aspect in words)
  total -= abs(words.count('.')
               - {'briefly': 1, 'plainly': 2, 'fully': 3}[length])
  if stance == 'weigh':
    total -= abs(sum_)
  return total - 4 * (not finished)


def _encode(world, prompts, texts, length=48):
  rows = world.tokenizer.encode_rows(
      prompts, texts, max_prompt_length=long_tail.PROMPT_LENGTH,
      max_response_length=length)
  return rows.tokens, rows.mask


class LongTailTest(parameterized.TestCase):

  @parameterized.parameters('praise', 'pan', 'weigh')
  def test_rule_word_by_word(self, stance):
    world = long_tail.LongTail()
    prompts, texts = world.write(300, 1)
    prompts = [' '.join([stance, *p.split()[1:]]) for p in prompts]
    # And texts as a policy writes them: words in any order.
    rng = np.random.default_rng(0)
    texts[150:] = [' '.join(rng.choice(world.words, 20)) for _ in texts[150:]]
    np.testing.assert_allclose(
        world.rule(*_encode(world, prompts, texts)),
        [_rule(world, *pair) for pair in zip(prompts, texts)],
        rtol=1e-5, atol=1e-4)

  def test_rule_of_an_unfinished_response(self):
    world = long_tail.LongTail()
    prompt = 'praise the phone and its price briefly :'
    np.testing.assert_allclose(
        world.rule(*_encode(world, [prompt], ['the phone was very'], 4)),
        _rule(world, prompt, 'the phone was very', finished=False))

  def test_emphasis_pays_once(self):
    world = long_tail.LongTail()
    word = next(w for w, v in world._valence.items()
                if v > 1.5 and world._class[w] == ASPECTS['price'])
    score = [world.rule(*_encode(
        world, ['praise the phone and its price briefly :'],
        [f'the price is {" ".join([word] * n)} .']))[0] for n in range(7)]
    gain = np.diff(score)
    np.testing.assert_allclose(gain[:2], world._valence[word], rtol=1e-5)
    np.testing.assert_allclose(gain[2:], -1.5, rtol=1e-5)

  def test_repeats_have_a_heavy_tail(self):
    world = long_tail.LongTail(tail=1.5, most=6)
    runs = collections.Counter()
    for text in world.write(8000, 0)[1]:
      last, length = None, 0
      for word in [*text.split(), None]:
        if word == last:
          length += 1
          continue
        if last in world._valence:
          runs[min(length, 6)] += 1
        last, length = word, 1
    total = runs.total()
    for n in range(2, 7):
      share = sum(runs[m] for m in range(n, 7)) / total
      self.assertAlmostEqual(share, n**-1.5, delta=.02)

  def test_texts_obey_their_prompts(self):
    world = long_tail.LongTail(obedience=.9)
    kinds = collections.defaultdict(list)
    for prompt, text in zip(*world.write(6000, 0)):
      signs = [world._valence[w] > 0 for w in text.split()
               if w in world._valence]
      stance, *_, length, _ = prompt.split()
      kinds[stance].append(np.mean(signs))
      kinds[length].append(text.split().count('.'))
    self.assertAlmostEqual(np.mean(kinds['praise']), .9, delta=.03)
    self.assertAlmostEqual(np.mean(kinds['pan']), .1, delta=.03)
    self.assertAlmostEqual(np.mean(kinds['weigh']), .5, delta=.03)
    for length, count in (('briefly', 1), ('plainly', 2), ('fully', 3)):
      right = np.mean(np.array(kinds[length]) == count)
      self.assertAlmostEqual(right, .9 + .1 / 3, delta=.03)

  def test_prompts(self):
    world = long_tail.LongTail()
    subject = lambda prompt: prompt.split()[2:6:3]
    apart = [tuple(subject(p)) for p in world.write(4000, 0, held_out=True)[0]]
    seen = {tuple(subject(p)) for p in world.write(20_000, 0)[0]}
    self.assertEmpty(seen.intersection(apart))
    # One in eight of all pairs of a thing and an aspect.
    self.assertLen({*apart}, 48 * 48 / 8)
    self.assertEqual(world.write(3, 5), world.write(3, 5))
    self.assertNotEqual(world.write(3, 5), world.write(3, 6))

  def test_prompts_set_the_emphasis(self):
    world = long_tail.LongTail(emphasis=4.)
    repeats = collections.defaultdict(list)
    for prompt, text in zip(*world.write(6000, 0)):
      words = text.split()
      repeats[prompt.split()[-2]] += [
          a == b for a, b in itertools.pairwise(words) if a in world._valence]
    # Of runs with P(length >= n) = n^-tail, n up to 6, the share of words
    # that are followed by themselves.
    for length, tail in (('briefly', 6), ('plainly', 1.5), ('fully', .375)):
      mean = sum(n**-tail for n in range(1, 7))
      self.assertAlmostEqual(
          np.mean(repeats[length]), 1 - 1 / mean, delta=.03)
    alike = long_tail.LongTail(emphasis=1.)
    self.assertEqual(alike.write(50, 3), long_tail.LongTail().write(50, 3))

  @parameterized.parameters(1., 4.)
  def test_all_texts_fit(self, emphasis):
    world = long_tail.LongTail(emphasis=emphasis)
    tokens, mask = _encode(world, *world.write(8000, 0))
    ended = (mask & (tokens == world.tokenizer.eos_id)).any(axis=1)
    self.assertGreater(ended.mean(), .99)

  def test_split_of(self):
    self.assertEqual(long_tail.split_of([
        'praise the phone and its price briefly :',
        'weigh the sofa and its tone fully :']),
        ['praise electronics', 'weigh household'])
    with self.assertRaisesRegex(ValueError, 'review of a thing of this world'):
      long_tail.split_of(['praise the moon and its price briefly :'])

  @parameterized.parameters(
      (dict(tail=0), 'tail'), (dict(most=0), 'most'),
      (dict(emphasis=0), 'emphasis'),
      (dict(fitting=1.1), 'fitting'), (dict(obedience=-.1), 'obedience'),
      (dict(num_adjectives=8), 'num_adjectives must be >= 16, got 8'))
  def test_bad_arguments(self, arguments, message):
    with self.assertRaisesRegex(ValueError, message):
      long_tail.LongTail(**arguments)


if __name__ == '__main__':
  absltest.main()
