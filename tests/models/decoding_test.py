"""Tests for rlhf_jax.models.decoding, through the sampler that it serves."""

import functools
import re
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import worlds

from rlhf_jax import sampling
from rlhf_jax.models import cached
from rlhf_jax.models import decoding
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.ops import nucleus
from rlhf_jax.ops import stops
from rlhf_jax.parallel import meshes
from rlhf_jax.parallel import threads

V, P, N, K = 11, 4, 7, 6
ROWS = 3 * K
PROMPTS = np.array([[2, 5, 3, 8], [7, 9, 9, 9], [4, 2, 6, 9]], np.int32)
LENGTHS = np.array([4, 1, 3], np.int32)
SIZES = dict(vocab_size=V, hidden_size=16, num_layers=2, num_heads=2,
             intermediate_size=24)
CONFIGS = {
    'llama': dict(num_kv_heads=1), 'gpt2': dict(max_positions=P + N),
    'mistral': dict(num_kv_heads=1, windows=(3, 2)), 'gpt_neox': {}}


def make_config(family):
  return transformer.make_config(family, **SIZES, **CONFIGS[family])


@functools.cache
def params_of(config, seed=0):
  params = jax.jit(transformer.init, static_argnums=0)(
      config, jax.random.key(seed))
  return jax.tree.map(lambda x: 2 * x, params)


def sample(num_slots, *, family='llama', seed=0, **kwargs):
  config = make_config(family)
  return jax.device_get(sampling.sample(config, **{
      'params': params_of(config), 'prompts': PROMPTS,
      'prompt_lengths': LENGTHS, 'key': jax.random.key(seed), 'num_samples': K,
      'max_new_tokens': N, 'eos_id': (1, 4), 'pad_id': 0, **kwargs},
                                        num_slots=num_slots))


def quick_stops():
  """Strings 5 6 and 3, each a token."""
  texts = [str(i).encode() for i in range(V)]
  return stops.table(('56', '3'), texts, texts)


class InSlotsTest(parameterized.TestCase):

  def check(self, *slots, **kwargs):
    """The same as all rows together, whatever the slots."""
    whole = sample(0, **kwargs)
    for count in slots:
      some = sample(count, **kwargs)
      np.testing.assert_array_equal(some.tokens, whole.tokens)
      np.testing.assert_array_equal(some.mask, whole.mask)
      np.testing.assert_allclose(
          some.old_logprobs, whole.old_logprobs, atol=1e-4)
    return whole

  def test_any_number_of_slots(self):
    whole = self.check(1, 2, 3, 8, ROWS - 1, ROWS, ROWS + 9)
    lengths = whole.mask.sum(axis=-1)
    self.assertGreater(len({*lengths.ravel()}), 2)  # ragged
    self.assertEqual(lengths.max(), N)  # unfinished ones too

  @parameterized.parameters(*CONFIGS)
  def test_families(self, family):
    self.check(5, family=family, seed=1)

  @parameterized.parameters(
      dict(temperature=0.), dict(temperature=.7, top_p=.8), dict(top_k=3),
      dict(force_eos=True), dict(num_samples=1, max_new_tokens=1),
      dict(min_new_tokens=3), dict(row_ids=np.array([5, 0, 9])))
  def test_how_tokens_are_chosen(self, **kwargs):
    self.check(2, **kwargs)

  def test_strings_that_end_a_response(self):
    self.check(4, stops=quick_stops(), eos_id=1)

  def test_a_guide(self):
    config = make_config('llama')
    self.check(4, guide=nucleus.Guide(params_of(config, 7), .6))

  def test_values_that_shift(self):
    config = make_config('llama')
    params = dict(params_of(config), target_q_heads=heads.init_q(
        jax.random.key(3), config.hidden_size, V, mlp=False, scale=1.))
    self.check(4, params=params, value_shift=2.)

  def test_fewer_steps(self):
    """Slots of rows that have ended do not wait for the longest."""
    extend, steps = cached.extend, []

    def counted(*args):
      jax.debug.callback(lambda: steps.append(1))
      return extend(*args)

    def count(slots):
      steps.clear()
      jax.clear_caches()
      with (mock.patch.object(cached, 'extend', counted),
            mock.patch.object(threads, 'on_host', lambda *_: False)):  # whole
        lengths = sample(slots, seed=2, num_samples=20).mask.sum(axis=-1)
      jax.effects_barrier()
      return len(steps), lengths

    alone, lengths = count(1)
    self.assertEqual(alone, lengths.sum())  # one row after the other
    few, _ = count(6)
    self.assertLess(few, N * lengths.size / 6)
    self.assertGreaterEqual(few, lengths.sum() / 6)


class OneCpuTest(parameterized.TestCase):
  """On a mesh of one CPU, where decoding has forms of its own."""

  @parameterized.product(
      family=('llama', 'mistral'), rows=(slice(1), slice(3)))
  def test_the_same_is_drawn(self, family, rows):
    kwargs = dict(family=family, num_samples=1, prompts=PROMPTS[rows],
                  prompt_lengths=LENGTHS[rows])
    plain = sample(0, **kwargs)
    with jax.set_mesh(meshes.make(devices=jax.devices()[:1])):
      ours = sample(0, **kwargs)
    np.testing.assert_array_equal(ours.tokens, plain.tokens)
    np.testing.assert_array_equal(ours.mask, plain.mask)
    np.testing.assert_allclose(
        ours.old_logprobs, plain.old_logprobs, rtol=1e-5, atol=1e-6)

  def test_one_prompt_in_slots(self):
    kwargs = dict(prompts=PROMPTS[:1], prompt_lengths=LENGTHS[:1])
    plain = sample(2, **kwargs)
    with jax.set_mesh(meshes.make(devices=jax.devices()[:1])):
      ours = sample(2, **kwargs), sample(1, **kwargs)
    for one in ours:
      np.testing.assert_array_equal(one.tokens, plain.tokens)

  def test_forms_of_the_program(self):
    """Products are no convolutions when compiled; one row has few copies."""
    config = make_config('gpt_neox')  # of two heads

    def program(rows):
      def run(params):
        models = [cached.prepare(config, params)]
        rules = decoding.Rules(
            lambda states, rows, t: (
                states[0].hidden.argmax(-1).astype('int32') % V,
                states[0].hidden[:, 0]),
            lambda token, seen: (token < 0, seen), lambda count: (), 1, N, 0)
        return decoding.together(
            config, models, rules, PROMPTS[:rows], LENGTHS[:rows])
      with jax.set_mesh(meshes.make(devices=jax.devices()[:1])):
        lowered = jax.jit(run).lower(params_of(config))
        return lowered.as_text(), lowered.compile().as_text()

    few, compiled = program(3)
    self.assertEqual(few.count('stablehlo.convolution'), 2 * 6)
    self.assertNotIn(' convolution(', compiled)
    one, compiled = program(1)
    self.assertNotIn('stablehlo.convolution', one)
    cache = rf'= f32\[(?:1,)?2,{P + N},8\]\S* copy\('
    # Keys and values of two layers once; with the axis of rows 16 in all.
    self.assertLessEqual(len(re.findall(cache, compiled)), 4)


class ChoiceTest(absltest.TestCase):

  def test_of_many_rows_on_one_cpu(self):
    many = dict(num_samples=40)  # 120 rows
    with mock.patch.object(
        decoding, 'in_slots', side_effect=decoding.in_slots) as called:
      sample(None, **many)
      # In two parts, which share them.
      self.assertEqual(
          called.call_args.kwargs, {'slots': sampling.SLOTS // 2})
      called.reset_mock()
      sample(None)  # not so many
      sample(0, **many, seed=1)
      with worlds.devices(3):
        sample(8, **many)
      called.assert_not_called()

  def test_rejects(self):
    with self.assertRaisesRegex(ValueError, 'num_slots must be >= 0, got -1'):
      sample(-1)


if __name__ == '__main__':
  absltest.main()
