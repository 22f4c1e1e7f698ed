"""Tests for rlhf_jax.sampling."""

import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import worlds

from rlhf_jax import policy
from rlhf_jax import sampling
from rlhf_jax.data import tokenizer
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.ops import endings
from rlhf_jax.ops import kl
from rlhf_jax.ops import logprobs
from rlhf_jax.ops import nucleus
from rlhf_jax.ops import ratios
from rlhf_jax.ops import stops
from rlhf_jax.parallel import sharding
from rlhf_jax.parallel import threads

V, P, N, K = 11, 4, 6, 8
PAD, EOS = 0, 1
PROMPTS = np.array([[2, 5, 3, 8], [7, 9, 9, 9], [4, 2, 6, 9]], np.int32)
LENGTHS = np.array([4, 1, 3], np.int32)
SIZES = dict(vocab_size=V, hidden_size=16, num_layers=2, num_heads=2,
             intermediate_size=24)
LLAMA = transformer.make_config('llama', num_kv_heads=1, **SIZES)
NEOX = transformer.make_config('gpt_neox', **SIZES)
# Windows are shorter than a row, tables exactly as long.
CONFIGS = {
    family: transformer.make_config(family, **SIZES, **shape)
    for family, shape in (
        ('gpt2', dict(max_positions=P + N)),
        ('gpt_neo', dict(max_positions=P + N, windows=(0, 3))),
        ('gptj', {}),
        ('mistral', dict(num_kv_heads=1, windows=(3, 2))),
        ('qwen2', dict(num_kv_heads=1)),
        ('qwen3', dict(head_size=6)))
} | {'llama': LLAMA, 'gpt_neox': NEOX}
DEFAULTS = dict(num_samples=K, max_new_tokens=N, eos_id=EOS, pad_id=PAD)


@functools.cache
def _params(config):
  """Not fresh ones, where biases are 0 and scales 1."""
  shapes = jax.eval_shape(
      functools.partial(transformer.init, config), jax.random.key(0))
  rng = np.random.default_rng(3)

  def leaf(path, x):
    mean = 1. if path[-1].key == 'scale' else 0.
    return jnp.asarray(mean + .25 * rng.normal(size=x.shape), x.dtype)
  return jax.tree_util.tree_map_with_path(leaf, shapes)


def _sample(prompts=PROMPTS, lengths=LENGTHS, seed=0, *, config=LLAMA,
            params=None, **kwargs):
  return jax.device_get(sampling.sample(
      config, params or _params(config), prompts, lengths,
      jax.random.key(seed), **(DEFAULTS | kwargs)))


@functools.cache
def _rollout(**kwargs):
  return _sample(**kwargs)


@functools.cache
def _with_heads(config, mlp):
  """The policy with ILQL's target heads and value, of the scale of logits."""
  keys = jax.random.split(jax.random.key(5))
  q_heads = heads.init_q(keys[0], 16, V, scale=.5, mlp=mlp)
  if mlp:
    for i, head in enumerate(q_heads):
      head['bias'] = jnp.cos(3 * i + jnp.arange(V))
  return _params(config) | {
      'target_q_heads': q_heads,
      'value_head': heads.init_scalar(keys[1], 16, mlp=mlp)}


_hidden = jax.jit(transformer.hidden_states, static_argnums=0)


@functools.partial(jax.jit, static_argnames=('config', 'temperature'))
def _training_logprobs(config, params, batch, temperature):
  return policy.forward(
      config, params, batch, temperature=temperature).logprobs


def _next(params, row):
  """Logits f64[V] after the tokens of `row`, from the training forward."""
  padded = np.full((1, P + N), 9, np.int32)
  padded[0, :len(row)] = row
  logits = jax.jit(transformer.logits, static_argnums=0)(LLAMA, params, padded)
  return np.asarray(logits[0, len(row) - 1], np.float64)


def _exact(logits, temperature=1., top_k=0, top_p=1.):
  """What one token must be distributed as, by brute force."""
  probs = np.exp(logits / temperature)
  order = np.argsort(-probs)
  probs[order[top_k or len(probs):]] = 0
  probs /= probs.sum()
  mass, kept = 0., np.zeros(len(probs), bool)
  for token in order:
    if mass < top_p:
      kept[token] = True
    mass += probs[token]
  return np.where(kept, probs, 0) / probs[kept].sum()


class SampleTest(parameterized.TestCase):

  def _check_logprobs(self, config, params=None, **kwargs):
    """Equal to the training forward's: ratios are 1 and KL is 0."""
    sample = _rollout if params is None else _sample
    batch = sample(config=config, params=params, **kwargs)
    logprobs = _training_logprobs(
        config, params or _params(config), batch,
        kwargs.get('temperature', 1) or 1.)
    old, new = batch.old_logprobs[batch.mask], logprobs[batch.mask]
    np.testing.assert_allclose(old, new, atol=1e-5)
    np.testing.assert_allclose(ratios.ratio(new - old), 1, atol=1e-5)
    for kind in ('k1', 'k2', 'k3'):
      np.testing.assert_allclose(
          kl.estimate(old, new, kind=kind), 0, atol=1e-5)
    np.testing.assert_array_equal(batch.old_logprobs[~batch.mask], 0)

  @parameterized.parameters(
      {}, dict(temperature=.5), dict(top_k=3), dict(temperature=.5, top_p=.7),
      dict(temperature=0), dict(force_eos=True), dict(min_new_tokens=3))
  def test_logprobs_are_those_of_training(self, **kwargs):
    self._check_logprobs(LLAMA, **kwargs)

  @parameterized.parameters(*CONFIGS)
  def test_logprobs_of_every_family(self, family):
    self._check_logprobs(CONFIGS[family], temperature=.5, top_p=.9)

  def test_logprobs_of_an_adapter_below_layers_apart(self):
    config, params = CONFIGS['mistral'], _params(CONFIGS['mistral'])
    a, b = (jax.random.normal(jax.random.key(i), shape)
            for i, shape in enumerate([(1, 16, 2), (1, 2, 16)]))
    params = params | {
        'layers': jax.tree.map(lambda x: x[:1], params['layers']),
        'top_layers': jax.tree.map(lambda x: x[1:], params['layers']),
        'adapter': {'layers': {'q': {'a': a, 'b': b}}}}
    self._check_logprobs(config, params, temperature=.5)
    bare = {k: v for k, v in params.items() if k != 'adapter'}
    one, other = (_sample(config=config, params=p, temperature=.5)
                  for p in (params, bare))
    self.assertGreater((one.tokens != other.tokens).mean(), .1)

  def test_every_family_is_sampled(self):
    self.assertEqual(set(CONFIGS), set(transformer.config_lib.FAMILIES))

  @parameterized.parameters(1, 3, 4, 10)
  def test_logprobs_whatever_the_chunk_of_the_vocabulary(self, chunk_size):
    """Of GPT-J, whose unembedding has a bias."""
    config = CONFIGS['gptj']
    batch = _rollout(config=config, temperature=.5, top_p=.9)
    rows = batch.tokens.reshape(-1, P + N)
    params = _params(config)
    actual = jax.jit(logprobs.from_hidden, static_argnames=(
        'temperature', 'chunk_size'))(
            _hidden(config, params, rows), transformer.unembedding(params),
            rows, bias=params['unembed_bias'], temperature=.5,
            chunk_size=chunk_size).logprobs.reshape(batch.mask.shape)
    np.testing.assert_allclose(
        batch.old_logprobs[batch.mask], actual[batch.mask], atol=1e-5)

  def test_bfloat16_logprobs_are_near_those_of_training(self):
    config = LLAMA.replace(dtype='bfloat16')
    batch = _sample(config=config, params=_params(LLAMA))
    self.assertEqual(batch.old_logprobs.dtype, np.float32)
    expected = _training_logprobs(config, _params(LLAMA), batch, 1.)
    np.testing.assert_allclose(batch.old_logprobs[batch.mask],
                               expected[batch.mask], atol=.1)

  def test_rejects_rows_beyond_the_table_of_positions(self):
    with self.assertRaisesRegex(
        ValueError, 'rows of 11 tokens exceed the gpt2 .*max_positions 10'):
      _sample(config=CONFIGS['gpt2'], max_new_tokens=N + 1)

  def test_rows_are_prompt_response_padding(self):
    batch = _rollout()
    self.assertEqual(batch.tokens.shape, (3, K, P + N))
    self.assertEqual(batch.mask.dtype, bool)
    finished = []
    for b, k in np.ndindex(3, K):
      row, mask, start = batch.tokens[b, k], batch.mask[b, k], LENGTHS[b]
      np.testing.assert_array_equal(row[:start], PROMPTS[b, :start])
      count = int(mask.sum())
      self.assertBetween(count, 1, N)
      np.testing.assert_array_equal(np.flatnonzero(mask),
                                    start + np.arange(count))
      np.testing.assert_array_equal(row[start + count:], PAD)
      ends = row[start:start + count] == EOS
      self.assertFalse(ends[:-1].any())
      if count < N:
        self.assertTrue(ends[-1])
      finished.append(ends[-1])
    self.assertIn(True, finished)  # so that both kinds were looked at
    self.assertIn(False, finished)

  def test_forced_eos_ends_what_is_unfinished(self):
    free, forced = _rollout(), _rollout(force_eos=True)
    np.testing.assert_array_equal(free.mask, forced.mask)
    last = np.where(free.mask, np.arange(P + N), 0).max(-1)[..., None]
    ends = np.take_along_axis(forced.tokens, last, -1)
    np.testing.assert_array_equal(ends, EOS)
    changed = forced.tokens != free.tokens
    cut = np.take_along_axis(free.tokens, last, -1) != EOS
    np.testing.assert_array_equal(
        changed, cut & (np.arange(P + N) == last))

  def test_greedy_is_stepwise_argmax(self):
    batch = _rollout(temperature=0)
    np.testing.assert_array_equal(batch.tokens, batch.tokens[:, :1].repeat(
        K, axis=1))
    for b in range(3):
      row = list(PROMPTS[b, :LENGTHS[b]])
      for _ in range(N):
        row.append(int(_next(_params(LLAMA), row).argmax()))
        if row[-1] == EOS:
          break
      np.testing.assert_array_equal(batch.tokens[b, 0, :len(row)], row)

  def test_key_decides(self):
    one, same, other = _rollout(), _sample(seed=0), _sample(seed=1)
    jax.tree.map(np.testing.assert_array_equal, one, same)
    self.assertGreater((one.tokens != other.tokens).mean(), .2)
    rows = {tuple(row) for row in one.tokens.reshape(-1, P + N)}
    self.assertGreater(len(rows), 2 * K)  # rows and samples have own noise

  def test_samples_do_not_depend_on_the_batch(self):
    whole = _rollout()
    wide = np.pad(PROMPTS[[2, 0]], ((0, 0), (0, 3)), constant_values=8)
    cut = _sample(wide, LENGTHS[[2, 0]], row_ids=np.array([2, 0]),
                  num_samples=3)
    np.testing.assert_array_equal(
        cut.tokens[..., :P + N], whole.tokens[[2, 0], :3])
    np.testing.assert_array_equal(
        cut.mask[..., :P + N], whole.mask[[2, 0], :3])
    np.testing.assert_array_equal(cut.mask[..., P + N:], False)
    moved = _sample(row_ids=np.array([5, 6, 7]))
    self.assertGreater((moved.tokens != whole.tokens).mean(), .2)

  @parameterized.parameters(
      dict(temperature=1.), dict(temperature=.5), dict(temperature=2., top_k=3),
      dict(top_p=.6), dict(temperature=1.5, top_k=6, top_p=.7))
  def test_distribution_of_two_tokens(self, **kwargs):
    count, prompt = 4000, [4, 2]
    batch = _sample(np.array([prompt]), np.array([2]), seed=11,
                    num_samples=count, max_new_tokens=2, **kwargs)
    np.testing.assert_array_equal(batch.mask[0, :, 2], True)
    pairs = batch.tokens[0, :, 2:].astype(int)
    seen = np.bincount(pairs[:, 0] * V + pairs[:, 1], minlength=V * V)
    first = _exact(_next(_params(LLAMA), prompt), **kwargs)
    expected = np.zeros((V, V))
    for token in range(V):
      expected[token] = first[token] * _exact(
          _next(_params(LLAMA), [*prompt, token]), **kwargs)
    expected[EOS] = first[EOS] * (np.arange(V) == PAD)
    expected = count * expected.reshape(-1)
    np.testing.assert_array_equal(seen[expected == 0], 0)
    common = expected >= 5  # the rest is pooled
    seen, expected = (np.append(x[common], x[~common].sum() + 1e-9)
                      for x in (seen, expected))
    freedom = common.sum()
    self.assertGreater(freedom, 3)
    chi_square = ((seen - expected)**2 / expected).sum()
    # Mean `freedom`, variance twice that; four sigma and a bit for the tail.
    self.assertLess(chi_square, freedom + 5 * (2 * freedom)**.5)

  def test_never_a_token_that_the_tokenizer_has_not(self):
    """Padded embeddings are not drawn; log-probabilities stay the model's."""
    params = dict(_params(LLAMA))
    params['unembed'] = params['unembed'].at[8:].multiply(20)
    free = _sample(params=params)
    self.assertGreater(free.tokens[free.mask].max(), 7)
    for kwargs in ({}, dict(temperature=0), dict(top_k=2), dict(top_p=.5)):
      batch = _sample(params=params, num_tokens=8, **kwargs)
      self.assertLess(batch.tokens[batch.mask].max(), 8)
      np.testing.assert_allclose(
          batch.old_logprobs, np.where(batch.mask, _training_logprobs(
              LLAMA, params, batch, kwargs.get('temperature') or 1.), 0),
          atol=1e-4)
    for wrong in (1, 12):
      with self.assertRaisesRegex(ValueError, fr'in \(1, 11\], got {wrong}'):
        _sample(num_tokens=wrong)

  def test_one_program_for_one_shape(self):
    # Counted by tracing: the sizes of jit's caches depend on earlier tests.
    with mock.patch.object(
        transformer, 'extend', side_effect=transformer.extend) as traced:
      _sample(max_new_tokens=7)  # a shape that no other test has
      first = traced.call_count
      self.assertGreater(first, 0)
      _sample(PROMPTS[::-1].copy(), LENGTHS[::-1].copy(), seed=5,
              row_ids=np.array([9, 4, 1]), max_new_tokens=7,
              params=jax.tree.map(lambda x: 2 * x, _params(LLAMA)))
      self.assertEqual(traced.call_count, first)
      _sample(num_samples=1, max_new_tokens=7)
      self.assertGreater(traced.call_count, first)

  def test_stops_when_every_row_has(self):
    params = dict(_params(NEOX))
    # The final state is the first axis, where the EOS has a logit of 50.
    axis = jnp.eye(16)[0]
    params['norm'] = {'scale': jnp.zeros(16), 'bias': axis}
    params['unembed'] = jnp.zeros((V, 16)).at[EOS].set(50 * axis)
    calls, extend = [], transformer.extend

    def counted(*args, **kwargs):
      jax.debug.callback(lambda: calls.append(1))
      return extend(*args, **kwargs)

    with mock.patch.object(transformer, 'extend', counted):
      batch = _sample(config=NEOX, params=params, max_new_tokens=50)
      jax.effects_barrier()
    # Of each part: the prompts, and the first token.
    self.assertLen(calls, 2 * max(threads.parts(*batch.tokens.shape[:2])))
    np.testing.assert_array_equal(batch.mask.sum(-1), 1)
    np.testing.assert_array_equal(batch.tokens[batch.mask], EOS)
    np.testing.assert_array_equal(batch.tokens[1, :, 2:], PAD)

  @parameterized.parameters(
      ((3, 8), (1, 2), {}), ((4, 5), (2, 1), dict(temperature=0.)),
      ((1, 260), (1, 4), dict(num_slots=20)), ((6, 32), (3, 1), {}),
      ((2, 8), (2, 1), dict(force_eos=True, min_new_tokens=3)))
  def test_parts_at_once_draw_the_same(self, shape, parts, options):
    rows = np.arange(shape[0]) % 3
    draw = lambda: _sample(
        PROMPTS[rows], LENGTHS[rows], num_samples=shape[1],
        row_ids=7 + np.arange(shape[0]), **options)
    with mock.patch.object(
        threads, 'in_parts', wraps=threads.in_parts) as in_parts:
      batch = draw()
    self.assertEqual(in_parts.call_args.kwargs['parts'], parts)
    with mock.patch.object(threads, 'on_host', lambda *_: False):
      whole = draw()
    np.testing.assert_array_equal(batch.tokens, whole.tokens)
    np.testing.assert_array_equal(batch.mask, whole.mask)
    np.testing.assert_allclose(
        batch.old_logprobs, whole.old_logprobs, atol=2e-6)

  @parameterized.parameters(
      ((13, 64), 256, 8, (1, 1)), ((12, 64), 256, 8, (6, 1)),
      ((13, 64), 8, 8, (1, 8)))
  def test_prompts_are_not_read_by_many_parts(
      self, shape, width, new, parts):
    with mock.patch.object(threads, 'in_parts', side_effect=ZeroDivisionError
                          ) as in_parts:
      with self.assertRaises(ZeroDivisionError):
        _sample(np.full((shape[0], width), 2), np.full(shape[0], width),
                num_samples=shape[1], max_new_tokens=new)
    self.assertEqual(in_parts.call_args.kwargs['parts'], parts)

  @parameterized.parameters(
      ('threefry_partitionable', False, True),
      ('default_prng_impl', 'rbg', False))  # whose draws are of a whole batch
  def test_contexts_of_jax_hold_in_parts(self, name, value, same):
    draw = lambda rows: jax.device_get(sampling.sample(
        LLAMA, _params(LLAMA), PROMPTS[rows], LENGTHS[rows],
        jax.random.PRNGKey(0), **DEFAULTS))
    rows = np.arange(3)
    with getattr(jax, name)(value):
      batch = draw(rows)
      with mock.patch.object(threads, 'parts', lambda *_, **__: (1, 1)):
        whole = draw(rows)
    self.assertEqual(batch.tokens.shape, whole.tokens.shape)
    if same:
      np.testing.assert_array_equal(batch.tokens, whole.tokens)

  def test_parts_share_a_program(self):
    jax.clear_caches()
    compiled = []
    # Listeners cannot be removed; this one writes to a list of its own.
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, fun_name='', **__: compiled.append(fun_name)
        if name == '/jax/core/compile/backend_compile_duration' else None)
    _sample(np.tile(PROMPTS, (64, 1)), np.tile(LENGTHS, 64), max_new_tokens=5)
    self.assertEqual([name for name in compiled if 'sample' in name],
                     ['jit(_sample)'])

  def test_pad_may_be_eos(self):
    one, other = _rollout(), _sample(pad_id=EOS)
    np.testing.assert_array_equal(one.mask, other.mask)
    np.testing.assert_array_equal(one.old_logprobs, other.old_logprobs)
    at = np.arange(P + N) < LENGTHS[:, None, None]
    used = one.mask | at
    np.testing.assert_array_equal(
        other.tokens, np.where(used, one.tokens, EOS))

  def test_same_on_eight_devices(self):
    prompts, lengths = PROMPTS[np.arange(8) % 3], LENGTHS[np.arange(8) % 3]
    kwargs = dict(num_samples=2, max_new_tokens=4)
    one = _sample(prompts, lengths, **kwargs)
    for axes in ({}, dict(fsdp=4), dict(fsdp=2, tensor=2), dict(member=2)):
      with worlds.devices(8, **axes):
        many = jax.device_get(_sample(
            *sharding.shard_batch((prompts, lengths)),
            params=sharding.shard_params(_params(LLAMA)), **kwargs))
      np.testing.assert_array_equal(one.tokens, many.tokens)
      np.testing.assert_allclose(
          one.old_logprobs, many.old_logprobs, atol=1e-5)

  @parameterized.parameters(
      ('num_samples .* got 0 and 6', dict(num_samples=0)),
      ('max_new_tokens .* got 8 and 0', dict(max_new_tokens=0)),
      ('temperature must be >= 0, got -0.1', dict(temperature=-.1)),
      ('top_k must be >= 0, got -1', dict(top_k=-1)),
      (r'top_p must be in \(0, 1\], got 0', dict(top_p=0)),
      ('top_p .* got 1.5', dict(top_p=1.5)))
  def test_rejects(self, message, kwargs):
    with self.assertRaisesRegex(ValueError, message):
      _sample(**kwargs)

  def test_rejects_lengths_and_ids(self):
    for lengths in (0, PROMPTS.shape[1] + 1):
      with self.assertRaisesRegex(ValueError, f'prompt_lengths.*{lengths}'):
        _sample(PROMPTS, np.full_like(LENGTHS, lengths))
    for name, token in (('eos_id', LLAMA.vocab_size), ('pad_id', -1)):
      with self.assertRaisesRegex(ValueError, f'{name}.*{token}'):
        _sample(**{name: token})

  def test_rejects_shapes_and_types(self):
    for prompts, lengths in ((PROMPTS[0], LENGTHS), (PROMPTS, LENGTHS[:, None]),
                             (PROMPTS.astype('f'), LENGTHS),
                             (PROMPTS, LENGTHS[:2])):
      with self.assertRaises(AssertionError):
        _sample(prompts, lengths)
    with self.assertRaises(AssertionError):
      _sample(row_ids=np.arange(2))


def _shifted(config, params, tokens, beta):
  """f64[..., T, V]: log pi + beta (min Q' - V), one forward pass, in NumPy."""
  rows = tokens.reshape(-1, tokens.shape[-1])
  params = jax.device_get(params)
  states = np.asarray(_hidden(config, params, rows), np.float64)

  def read(head):
    if not isinstance(head, dict):
      return states @ head.T
    x = states
    if 'features' in head:
      layer = head['features']
      x = np.maximum(x @ layer['kernel'] + layer['bias'], 0)
    return x @ head['weight'].T + head['bias']

  logits = states @ params['unembed'].T + params.get('unembed_bias', 0.)
  logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  smallest = np.minimum(*map(read, params['target_q_heads']))
  out = logits + beta * (smallest - read(params['value_head'])[..., None])
  return out.reshape(*tokens.shape, V)


class ValueShiftTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('mlp_heads', 'gptj', True, dict(temperature=.5, top_k=3)),
      ('linear_heads', 'llama', False, dict(top_k=1)))
  def test_as_one_forward_pass(self, family, mlp, kwargs):
    config = CONFIGS[family]
    params = _with_heads(config, mlp)
    batch = _sample(config=config, params=params, value_shift=4., **kwargs)
    temperature, top_k = kwargs.get('temperature', 1.), kwargs['top_k']
    logits, plain = (  # of the token after each
        _shifted(config, params, batch.tokens, beta)[:, :, :-1] / temperature
        for beta in (4., 0.))
    drawn = batch.tokens[:, :, 1:, None]
    take = lambda x: np.take_along_axis(x, drawn, axis=-1)[..., 0]
    mask = batch.mask[:, :, 1:]
    expected = take(logits) - np.log(np.exp(logits).sum(axis=-1))
    np.testing.assert_allclose(
        batch.old_logprobs[:, :, 1:][mask], expected[mask], atol=1e-5)
    np.testing.assert_array_equal(batch.old_logprobs[~batch.mask], 0)
    # Of the largest shifted logits; those of the language model are others.
    rank = lambda x: (x > take(x)[..., None]).sum(axis=-1)[mask]
    self.assertLess(rank(logits).max(), top_k)
    self.assertGreater((rank(plain) >= top_k).mean(), .05)

  def test_shift_of_0_is_the_language_model(self):
    params = _with_heads(LLAMA, True)
    one, other = _sample(params=params, value_shift=0., top_k=3), _sample(
        top_k=3)
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_allclose(
        one.old_logprobs, other.old_logprobs, atol=1e-5)

  def test_heads_are_not_read_without_a_shift(self):
    jax.tree.map(np.testing.assert_array_equal,
                 _sample(params=_with_heads(LLAMA, True)), _rollout())

  def test_by_hand(self):
    """[Ex 8.6] in the first feature; the second is not seen."""
    logits = np.float32([[0, .5]])
    params = {'target_q_heads': [jnp.array([[.35, 1.], [0, 1.]]),
                                 jnp.array([[.25, 1.], [.3, 1.]])]}
    out = sampling._shift(params, jnp.array([[1., 0.]]), logits, 4.)
    np.testing.assert_allclose(
        jax.nn.softmax(out), [[.622459, .377541]], atol=1e-6)

  @parameterized.parameters(-1., float('nan'), float('inf'))
  def test_rejects_shifts(self, shift):
    with self.assertRaisesRegex(
        ValueError, f'value_shift must be >= 0 and finite, got {shift}'):
      _sample(params=_with_heads(LLAMA, True), value_shift=shift)

  def test_rejects_parameters_without_heads(self):
    with self.assertRaisesRegex(
        ValueError, "must hold 'target_q_heads' .*got embed, layers, norm"):
      _sample(value_shift=1.)


@functools.cache
def _other(config):
  """A mask policy: the policy with other signs of some weights."""
  return jax.tree.map(
      lambda x: x * jnp.where(jnp.arange(x.size) % 3 == 0, -1., 1.).reshape(
          x.shape).astype(x.dtype), _params(config))


def _nucleus(logits, top_p):
  """The tokens of the nucleus of f64[V], one by one."""
  probs = np.exp(logits - logits.max())
  probs /= probs.sum()
  inside = set()
  for token in np.argsort(-probs):
    if probs[[*inside]].sum() < top_p:
      inside.add(int(token))
  return inside


class GuideTest(parameterized.TestCase):
  """Samples of NLPO against passes over each prefix, in float64."""

  @parameterized.parameters((1., .6), (.7, .9))
  def test_every_token_is_in_the_nucleus(self, temperature, top_p):
    guide, drawn = nucleus.Guide(_other(LLAMA), top_p), {}
    batch = _sample(guide=guide, temperature=temperature, num_samples=64,
                    max_new_tokens=3)
    for row, mask, actual in zip(*(
        x.reshape(-1, x.shape[-1]) for x in (
            batch.tokens, batch.mask, batch.old_logprobs)), strict=True):
      for t in np.flatnonzero(mask):
        drawn.setdefault(tuple(row[:t]), []).append((row[t], actual[t]))
    left_out = []
    for prefix, pairs in drawn.items():
      own, theirs = (_next(params, prefix) / temperature
                     for params in (_params(LLAMA), guide.params))
      inside = _nucleus(theirs, top_p)
      self.assertContainsSubset({int(token) for token, _ in pairs}, inside)
      probs = np.exp(own - own.max())
      probs /= probs[[*inside]].sum()
      for token, logprob in pairs:
        self.assertAlmostEqual(logprob, np.log(probs[token]), delta=1e-4)
      # After a prompt there are 64: what is likely there has been drawn.
      if len(pairs) == 64:
        self.assertContainsSubset(
            {x for x in inside if probs[x] > .15}, {x for x, _ in pairs})
      left_out.append(probs.sum() - 1)
    self.assertGreater(np.mean(left_out), .1)  # of the policy

  @parameterized.parameters('llama', 'gpt2', 'mistral')
  def test_as_one_forward_pass(self, family):
    """The numbers of training, and its mask."""
    config, guide = CONFIGS[family], nucleus.Guide(_other(CONFIGS[family]), .7)
    batch = _sample(config=config, guide=guide, temperature=.8)
    out = jax.jit(lambda batch: policy.forward(
        config, _params(config), batch, temperature=.8, guide=guide))(batch)
    np.testing.assert_allclose(
        batch.old_logprobs[batch.mask], out.logprobs[batch.mask], atol=1e-5)
    self.assertGreater(np.abs(
        _training_logprobs(config, _params(config), batch, .8)
        - batch.old_logprobs)[batch.mask].mean(), .1)

  def test_of_itself_is_top_p(self):
    one = _sample(guide=nucleus.Guide(_params(LLAMA), .7))
    np.testing.assert_array_equal(one.tokens, _sample(top_p=.7).tokens)
    whole = _sample(guide=nucleus.Guide(_other(LLAMA), 1.))
    np.testing.assert_array_equal(whole.tokens, _rollout().tokens)
    np.testing.assert_allclose(
        whole.old_logprobs, _rollout().old_logprobs, atol=1e-6)

  def test_greedy(self):
    """The likeliest of the nucleus, where the policy has another."""
    guide = nucleus.Guide(_other(LLAMA), .5)
    batch = _sample(guide=guide, temperature=0., num_samples=1)
    differ = 0
    for row, mask in zip(batch.tokens[:, 0], batch.mask[:, 0], strict=True):
      for t in np.flatnonzero(mask):
        own, theirs = (_next(x, row[:t]) for x in (
            _params(LLAMA), guide.params))
        best = max(_nucleus(theirs, .5), key=lambda x, own=own: own[x])
        self.assertEqual(row[t], best)
        differ += best != own.argmax()
    self.assertGreater(differ, 0)

  def test_gives_way(self):
    """To a forced EOS, and where it allows none of the tokenizer's tokens."""
    guide = nucleus.Guide(_other(LLAMA), 1e-9)  # one token
    forced = _sample(guide=guide, force_eos=True, max_new_tokens=2)
    self.assertTrue(np.isfinite(forced.old_logprobs).all())
    self.assertTrue(((forced.tokens == EOS) & forced.mask).any(-1).all())
    # As if there were none; but what is drawn is then beside the last token.
    last = nucleus.Guide(_other(LLAMA) | {
        'unembed_bias': 99. * (jnp.arange(V) == V - 1)}, .1)
    batch, free = (_sample(guide=x, num_tokens=V - 1) for x in (last, None))
    np.testing.assert_array_equal(batch.tokens, free.tokens)
    own = free.old_logprobs[free.mask]
    self.assertTrue((batch.old_logprobs[batch.mask] > own).all())

  def test_rejects(self):
    with self.assertRaisesRegex(ValueError, r'top_p must be in \(0, 1\]'):
      _sample(guide=nucleus.Guide(_params(LLAMA), 0.))


class EndTest(parameterized.TestCase):
  """Several EOS ids, and stop strings, against a rollout without them."""

  def _cut(self, batch, ends):
    """The rollout cut after the first token at which `ends` is true.

    What comes after an end is drawn by nobody, so that what comes before is
    the same.
    """
    tokens, mask, logprobs = (
        x.copy() for x in (batch.tokens, batch.mask, batch.old_logprobs))
    for row in np.ndindex(mask.shape[:2]):
      at = np.flatnonzero(mask[row])
      last = next((n for n in range(len(at))
                   if ends(tokens[row][at[:n + 1]])), None)
      if last is not None:
        later = at[last + 1:]
        tokens[row][later], mask[row][later] = PAD, False
        logprobs[row][later] = 0
    return tokens, mask, logprobs

  def _assert_equal(self, batch, expected):
    for name, value in zip(('tokens', 'mask', 'old_logprobs'), expected):
      np.testing.assert_array_equal(getattr(batch, name), value, err_msg=name)

  def test_each_of_several_ids_ends(self):
    whole, ids = _rollout(), (EOS, 5, 8)
    expected = self._cut(whole, lambda ids_: ids_[-1] in ids)
    batch = _sample(eos_id=ids)
    self._assert_equal(batch, expected)
    self.assertLess(batch.mask.sum(), .8 * whole.mask.sum())
    self._assert_equal(_sample(eos_id=(EOS,)), (
        whole.tokens, whole.mask, whole.old_logprobs))
    forced = _sample(eos_id=(8, EOS), force_eos=True)
    full = forced.mask.sum(-1) == N
    last = np.take_along_axis(
        forced.tokens, forced.mask.cumsum(-1).argmax(-1)[..., None], -1)
    np.testing.assert_array_equal(last[full & (last[..., 0] != EOS)], 8)
    self.assertTrue(np.isin(last, (8, EOS)).all())

  @parameterized.product(seed=[*range(4)], kind=('words', 'bytes'))
  def test_against_decoding_after_every_token(self, seed, kind):
    """Random texts of tokens and strings; some span several tokens."""
    rng = np.random.default_rng(seed)
    if kind == 'words':  # with spaces between, which a string may have
      words = sorted({''.join(rng.choice([*'ab'], rng.integers(1, 4)))
                      for _ in range(60)})[:V - 3]
      coder = tokenizer.Tokenizer.word_level(words)
      strings = ('a b', 'aa')
    else:
      texts = [''.join(rng.choice([*'ab\u00e9'], 30)) for _ in range(20)]
      coder = tokenizer.Tokenizer.train_bpe(texts, vocab_size=280)
      strings = ('ab\u00e9b', '\u00e9\u00e9')
    # A policy of few tokens draws from all that the tokenizer has of letters.
    first, later = coder.pieces()
    chosen = [coder.pad_id, coder.eos_id, *(
        i for i in np.argsort([-len(x) for x in later])
        if later[i].strip(b' ab\xc3\xa9') == b'' and later[i])][:V]
    ids = np.resize(chosen, V)  # PAD and EOS are those of the policy
    table = stops.table(strings, *([x[i] for i in ids] for x in (first, later)))

    def ends(tokens):
      text = coder.decode(ids[tokens], continuation=True)
      return any(s in text for s in strings)

    whole = _sample(max_new_tokens=12, num_samples=16)
    expected = self._cut(whole, ends)
    batch = _sample(max_new_tokens=12, num_samples=16, stops=table)
    self._assert_equal(batch, expected)
    finished = endings.finished(batch.tokens, batch.mask, EOS, table)
    cut = expected[1].sum(-1) < 12
    np.testing.assert_array_equal(finished | ~cut, True)
    self.assertBetween(finished.mean(), .2, 1.)
    self.assertLess(expected[1].sum(), .9 * whole.mask.sum())

  def test_several_tokens_of_one_string(self):
    """Begins inside a token, takes three, and ends inside the last."""
    pieces = [b''] * V
    pieces[2:7] = b'xE', b'N', b'Dy', b'E', b'ND'
    table = stops.table(['END'], pieces, pieces)
    kwargs = dict(num_samples=1024, temperature=9.)  # all tokens are likely
    whole = _sample(**kwargs)
    text = lambda tokens: b''.join(pieces[i] for i in tokens)
    batch = _sample(**kwargs, stops=table)
    self._assert_equal(batch, self._cut(
        whole, lambda tokens: b'END' in text(tokens)))
    rows = [tuple(row[at]) for row, at in zip(
        batch.tokens.reshape(-1, P + N), batch.mask.reshape(-1, P + N))]
    self.assertTrue(any(row[-3:] == (2, 3, 4) for row in rows))

  def test_rejects(self):
    for kwargs, message in (
        (dict(eos_id=()), 'one id or several'),
        (dict(eos_id=(EOS, V)), 'eos_id must be in'),
        (dict(eos_id=(EOS, 5), num_tokens=5), 'num_tokens must be in')):
      with self.assertRaisesRegex(ValueError, message):
        _sample(**kwargs)
    with self.assertRaises(AssertionError):
      _sample(stops=np.zeros((3, V - 1), np.int32))


class LeastTest(parameterized.TestCase):
  """So many tokens before an EOS, against passes over each prefix."""

  IDS = (EOS, 5, 8)

  @parameterized.product(least=(1, 3, N), num_slots=(0, 2, 24))
  def test_greedy(self, least, num_slots):
    """Each step's likeliest, of which the EOS ids are none at first."""
    batch = _sample(temperature=0, eos_id=self.IDS, min_new_tokens=least,
                    num_slots=num_slots)
    held_back = 0
    for b in range(3):
      row = list(PROMPTS[b, :LENGTHS[b]])
      for t in range(N):
        logits = _next(_params(LLAMA), row)
        if t < least:
          held_back += logits.argmax() in self.IDS
          logits[[*self.IDS]] = -np.inf
        row.append(int(logits.argmax()))
        if row[-1] in self.IDS:
          break
      for k in range(K):
        np.testing.assert_array_equal(
            batch.tokens[b, k][:len(row)], row)
        self.assertEqual(batch.mask[b, k].sum(), len(row) - LENGTHS[b])
    self.assertGreater(held_back, 0)

  @parameterized.parameters(
      {}, dict(temperature=.5, top_k=3), dict(top_p=.6))
  def test_distribution(self, **kwargs):
    """Filters come after it: of top_k three there are three, without EOS."""
    count, prompt = 4000, [4, 2]
    batch = _sample(np.array([prompt]), np.array([2]), seed=11,
                    num_samples=count, max_new_tokens=2, min_new_tokens=1,
                    **kwargs)
    logits = _next(_params(LLAMA), prompt)
    logits[EOS] = -np.inf
    expected = count * _exact(logits, **kwargs)
    seen = np.bincount(batch.tokens[0, :, 2], minlength=V)
    np.testing.assert_array_equal(seen[expected == 0], 0)
    self.assertLess(np.abs(seen - expected).max(), 5 * count**.5 / 2)
    common = expected >= 5
    freedom = common.sum() - 1
    self.assertLess(((seen - expected)[common]**2 / expected[common]).sum(),
                    freedom + 5 * (2 * freedom)**.5)
    if not kwargs:  # the second may be
      self.assertIn(EOS, batch.tokens[0, :, 3])

  def test_what_ends_all_the_same(self):
    """A forced EOS at the last token, and a stop string."""
    forced = _sample(min_new_tokens=N, force_eos=True)
    np.testing.assert_array_equal(forced.mask.sum(-1), N)
    free = _sample(min_new_tokens=N)
    for batch, ends in ((forced, True), (free, False)):
      self.assertEqual(
          ((batch.tokens == EOS) & batch.mask).sum(), ends * 3 * K)
    pieces = [str(i).encode() for i in range(V)]
    stopped = _sample(min_new_tokens=N, stops=stops.table(
        ['3'], pieces, pieces))
    self.assertLess(stopped.mask.sum(-1).min(), N)

  def test_a_guide_does_not_allow_it(self):
    for temperature in (0, 1.):
      batch = _sample(min_new_tokens=N, temperature=temperature,
                      guide=nucleus.Guide(_other(LLAMA), .5))
      self.assertFalse(((batch.tokens == EOS) & batch.mask).any())
      self.assertTrue(np.isfinite(batch.old_logprobs).all())

  @parameterized.parameters(-1, N + 1)
  def test_rejects(self, least):
    with self.assertRaisesRegex(
        ValueError, fr'min_new_tokens must be in \[0, {N}\], got {least}'):
      _sample(min_new_tokens=least)


class FilterTest(parameterized.TestCase):

  @parameterized.parameters(
      (dict(), '11111'), (dict(top_k=5), '11111'), (dict(top_k=9), '11111'),
      (dict(top_k=1), '00100'), (dict(top_k=2), '01110'),  # a tie at the border
      (dict(top_k=3), '01110'), (dict(top_k=4), '11110'),
      (dict(top_p=1e-9), '00100'), (dict(top_p=.39), '00100'),
      (dict(top_p=.41), '01110'),  # a tie again
      (dict(top_p=.85), '11110'), (dict(top_p=.97), '11111'),
      # Of the three or four that top_k keeps, with their mass made 1.
      (dict(top_k=3, top_p=.49), '00100'), (dict(top_k=4, top_p=.83), '01110'))
  def test_by_hand(self, kwargs, kept):
    logits = jnp.log(jnp.array([.15, .2, .4, .2, .05]))
    out = sampling.filter_logits(logits, **kwargs)
    kept = np.array([c == '1' for c in kept])
    np.testing.assert_array_equal(out, np.where(kept, logits, -np.inf))

  def test_rows_are_apart(self):
    logits = jnp.array([[[0., 1, 2], [5, 4, 3]]])
    out = sampling.filter_logits(logits, top_k=2, top_p=.5)
    np.testing.assert_array_equal(np.isfinite(out),
                                  [[[0, 0, 1], [1, 0, 0]]])


class DrawTest(absltest.TestCase):

  def test_inverts_the_distribution(self):
    logits = jnp.log(jnp.array([.25, 0., .5, .25, 0.]))
    for uniform, token in ((0., 0), (.24, 0), (.26, 2), (.74, 2), (.76, 3),
                           (1 - 2**-24, 3), (1., 3)):
      self.assertEqual(sampling._draw(logits, jnp.float32(uniform)), token)

  def test_never_an_excluded_token(self):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(64, 2000)).astype('f')
    logits = jnp.where(rng.random(logits.shape) < .5, logits, -jnp.inf)
    draw = jax.jit(sampling._draw)
    mass = np.asarray(jnp.cumsum(jnp.exp(
        logits - logits.max(-1, keepdims=True)), axis=-1))
    excluded = np.isinf(logits)
    # Points on which rounding of the sums would put an excluded token.
    rises = (np.diff(mass) > 0) & excluded[:, 1:]
    row, at = np.nonzero(rises)
    points = (mass[row, at] / mass[row, -1]).astype('f')
    for _ in range(3):
      tokens = draw(logits[row], points)
      self.assertFalse(excluded[row, tokens].any())
      points = np.nextafter(points, np.float32(1))


if __name__ == '__main__':
  absltest.main()
