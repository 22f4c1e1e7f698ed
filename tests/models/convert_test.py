"""Tests for rlhf_jax.models.convert and rlhf_jax.models.names.

The goldens were made with transformers and torch, see
tests/peers/make_goldens.py; neither is needed here.
"""

import functools
import json
import os
import pathlib
import tempfile
import time
import tracemalloc

from absl.testing import absltest
from absl.testing import parameterized
import jax
import ml_dtypes
import numpy as np

from rlhf_jax import errors
from rlhf_jax.models import convert
from rlhf_jax.models import families
from rlhf_jax.models import names
from rlhf_jax.models import tensors
from rlhf_jax.models import transformer
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.storage import files

GOLDENS = pathlib.Path(__file__).resolve().parents[1] / 'goldens'
FAMILIES = tuple(families.FAMILIES)
UNEMBED = {'gpt_neox': 'embed_out.weight'}
# Names of one tensor of the trunk.
EMBED = {'gpt_neox': 'gpt_neox.embed_in.weight', 'llama':
         'model.embed_tokens.weight'}
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@functools.cache
def _golden(family):
  return files.load_arrays(GOLDENS / f'{family}.npz')


def _weights(family, classifier=False):
  """Tensors by name, of a language model or a reward model."""
  actual = {k.removeprefix('weights/'): v for k, v in _golden(family).items()
            if k.startswith('weights/')}
  if classifier:
    actual = {k: v for k, v in actual.items()
              if not k.startswith(('lm_head.', 'embed_out.'))}
    actual['score.weight'] = _golden(family)['score']
  return actual


def _write(directory, family, weights=None, **change):
  raw = json.loads(str(_golden(family)['config'])) | change
  tensors.write(directory, _weights(family) if weights is None else weights)
  files.write_json(pathlib.Path(directory) / 'config.json', raw)
  return directory


def _shapes(init, config):
  return jax.eval_shape(lambda: init(config, jax.random.key(0)))


_logits = jax.jit(transformer.logits, static_argnums=0)


class DirectoryTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self._temporary = self.enter_context(tempfile.TemporaryDirectory())
    self._count = 0

  def directory(self):
    self._count += 1
    return pathlib.Path(self._temporary, str(self._count))

  def write(self, family, weights=None, **change):
    return _write(self.directory(), family, weights, **change)

  def refused(self, directory, *words, load=convert.load, **kwargs):
    """The message of the CheckpointError, which must have these words."""
    with self.assertRaises(errors.CheckpointError) as caught:
      load(directory, **kwargs)
    message = str(caught.exception)
    self.assertNotIn('\n', message)
    for word in (str(directory), *words):
      self.assertIn(word, message)
    return message


class GoldenTest(DirectoryTest):

  @parameterized.parameters(*FAMILIES)
  def test_logits_and_scores(self, family):
    golden = _golden(family)
    tokens, mask = golden['tokens'], golden['mask']
    config, params = convert.load(self.write(family))
    ours = np.asarray(_logits(config, params, tokens, mask))
    np.testing.assert_allclose(
        ours[mask], golden['logits'][mask], rtol=0, atol=1e-4)
    self.assertGreater(np.abs(golden['logits'][mask]).max(), 1)

    again, reward = convert.load_reward(
        self.write(family, _weights(family, classifier=True)))
    self.assertEqual(again, config)
    self.assertEqual(convert.load_config(self.write(family)), config)
    # A score is a row of an unembedding; the program is compiled already.
    as_policy = reward['trunk'] | {'unembed': np.zeros(
        (config.vocab_size, config.hidden_size), np.float32)}
    as_policy['unembed'][0] = reward['head']['weight']
    if 'unembed_bias' in params:
      as_policy['unembed_bias'] = np.zeros_like(params['unembed_bias'])
    scores = np.asarray(_logits(config, as_policy, tokens, mask))[..., 0]
    last = np.where(mask, np.arange(mask.shape[1]), 0).argmax(1)
    np.testing.assert_allclose(
        scores[np.arange(len(last)), last], golden['scores'], rtol=0,
        atol=1e-4)
    self.assertEqual(reward['head']['bias'], 0)

  def test_there_is_one_of_each_family_and_it_is_small(self):
    for family in FAMILIES:
      size = (GOLDENS / f'{family}.npz').stat().st_size
      self.assertBetween(size, 1, 60_000)

  @parameterized.parameters(*FAMILIES)
  def test_trees_are_those_of_init(self, family):
    config, params = convert.load(self.write(family))
    expected = _shapes(transformer.init, config)
    self.assertEqual(
        jax.tree.map(lambda x: (x.shape, x.dtype), params),
        jax.tree.map(lambda x: (x.shape, x.dtype), expected))
    config, reward = convert.load_reward(
        self.write(family, _weights(family, classifier=True)))
    expected = _shapes(reward_models.init, config)
    self.assertEqual(
        jax.tree.map(lambda x: (x.shape, x.dtype), reward),
        jax.tree.map(lambda x: (x.shape, x.dtype), expected))


class RoundTripTest(DirectoryTest):

  @parameterized.product(
      family=FAMILIES, dtype=(np.float32, np.float16, BFLOAT16))
  def test_every_bit(self, family, dtype):
    rng = np.random.default_rng(0)
    def awkward(x):
      x = x.astype(dtype)
      odd = np.array([-0., np.finfo(dtype).max if dtype != BFLOAT16
                      else ml_dtypes.finfo(dtype).max, 1e-40, 5e-8], dtype)
      at = rng.random(x.shape) < .3
      return np.where(at, rng.choice(odd, x.shape), x)
    for classifier, load, save in (
        (False, convert.load, convert.save),
        (True, convert.load_reward, convert.save_reward)):
      weights = {k: awkward(v)
                 for k, v in _weights(family, classifier).items()}
      first, second = self.write(family, weights), self.directory()
      config, params = load(first)
      self.assertEqual(
          {x.dtype for x in jax.tree.leaves(params)}, {np.dtype(dtype)})
      save(second, config, params)
      actual = tensors.read(second / 'model.safetensors')
      self.assertEqual(actual.keys(), weights.keys())
      for name, x in weights.items():
        self.assertEqual(actual[name].dtype, x.dtype)
        self.assertEqual(actual[name].tobytes(), x.tobytes(), name)
      raw = files.read_json(second / 'config.json')
      self.assertEqual(raw['torch_dtype'], str(np.dtype(dtype)))
      self.assertEqual(raw['eos_token_id'], 2)
      self.assertEqual(load(second)[0], config)

  def test_from_arrays_of_jax(self):
    config, params = convert.load(self.write('gptj'))
    first, second = self.directory(), self.directory()
    convert.save(first, config, params)
    convert.save(second, config, jax.tree.map(jax.numpy.asarray, params))
    for name in ('model.safetensors', 'config.json'):
      self.assertEqual((first / name).read_bytes(),
                       (second / name).read_bytes())

  def test_shards(self):
    config, params = convert.load(self.write('llama'))
    directory = self.directory()
    written = tensors.write(
        directory, _weights('llama'), max_shard_bytes=4000)
    self.assertGreater(len(written), 3)
    (directory / 'config.json').write_text(str(_golden('llama')['config']))
    again, actual = convert.load(directory)
    self.assertEqual(again, config)
    jax.tree.map(np.testing.assert_array_equal, actual, params)

  def test_extra_fields(self):
    config, params = convert.load(self.write('gpt2', made_by='us'))
    directory = self.directory()
    convert.save(directory, config, params, extra=dict(eos_token_id=9))
    raw = files.read_json(directory / 'config.json')
    self.assertEqual(raw['eos_token_id'], 9)
    self.assertEqual(raw['made_by'], 'us')
    self.assertEqual(raw['architectures'], ['GPT2LMHeadModel'])

  def test_layouts_are_permutations(self):
    config = transformer.make_config(
        'gptj', vocab_size=9, hidden_size=24, num_layers=1, num_heads=3,
        rotary_fraction=.75)
    for layout in (names.SAME, names.LINEAR, names.COLUMNS, names.HEADS,
                   names.PAIRS, names.ROW):
      for shape in ((5, 24), (24,)):
        if layout is names.PAIRS and len(shape) == 1:
          continue  # no family has such biases
        whole = layout.shape(shape)
        x = np.arange(np.prod(whole)).reshape(whole)
        parts = layout.split(x, config)
        self.assertEqual({part.shape for part in parts}, {shape})
        self.assertLen(np.unique(np.stack(parts)), x.size)
        np.testing.assert_array_equal(layout.join(parts, config), x)

  def test_neighbours_that_turn_together_are_half_a_rotation_apart(self):
    config = transformer.make_config(
        'gptj', vocab_size=9, hidden_size=20, num_layers=1, num_heads=2,
        rotary_fraction=.6)
    x = np.arange(20)[:, None]
    part, = names.PAIRS.split(x, config)
    self.assertEqual(part[0, :10].tolist(), [0, 2, 4, 1, 3, 5, 6, 7, 8, 9])
    self.assertEqual(part[0, 10:13].tolist(), [10, 12, 14])


class VariantTest(DirectoryTest):

  def _same(self, directory, family):
    expected = convert.load(self.write(family))[1]
    jax.tree.map(np.testing.assert_array_equal,
                 convert.load(directory)[1], expected)

  @parameterized.parameters(*FAMILIES)
  def test_bare_names(self, family):
    prefix = {'gpt_neox': 'gpt_neox.', 'llama': 'model.', 'mistral': 'model.',
              'qwen2': 'model.', 'qwen3': 'model.'}.get(family, 'transformer.')
    self._same(self.write(family, {
        k.removeprefix(prefix): v for k, v in _weights(family).items()}),
               family)

  @parameterized.parameters(
      ('gpt2', 'transformer.h.1.attn.bias'),
      ('gpt2', 'transformer.h.1.attn.masked_bias'),
      ('gpt_neo', 'transformer.h.0.attn.attention.bias'),
      ('gptj', 'transformer.h.0.attn.bias'),
      ('gpt_neox', 'gpt_neox.layers.0.attention.bias'),
      ('gpt_neox', 'gpt_neox.layers.0.attention.masked_bias'),
      ('gpt_neox', 'gpt_neox.layers.1.attention.rotary_emb.inv_freq'),
      ('llama', 'model.layers.1.self_attn.rotary_emb.inv_freq'),
      ('llama', 'model.rotary_emb.inv_freq'))
  def test_buffers_are_not_read(self, family, name):
    self._same(self.write(family, _weights(family) | {
        name: np.full((1, 1, 4, 4), np.nan, np.float32)}), family)
    self.refused(self.write(family, _weights(family) | {
        f'{name}es': np.zeros(4, np.float32)}), f"'{name}es' is not")

  def test_masks_of_neox_are_of_a_dtype_that_is_not_read(self):
    directory = self.write('gpt_neox', _weights('gpt_neox') | {
        'gpt_neox.layers.0.attention.bias': np.zeros((4,), np.float16)})
    path = directory / 'model.safetensors'
    raw = path.read_bytes()
    path.write_bytes(raw.replace(  # a byte for each of 8, in place of 2 for 4
        b'{"dtype":"F16","shape":[4],', b'{"dtype":"U8","shape":[8], '))
    self._same(directory, 'gpt_neox')

  def test_tied_embeddings_may_be_in_the_file_twice(self):
    weights = _weights('qwen3')
    embed = weights['model.embed_tokens.weight']
    self._same(self.write('qwen3', weights | {'lm_head.weight': embed}),
               'qwen3')
    for other in (embed + np.float32(1e-3), embed[:-1],
                  embed.astype(np.float16)):
      self.refused(
          self.write('qwen3', weights | {'lm_head.weight': other}),
          "'lm_head.weight' is not 'model.embed_tokens.weight'",
          'tie_word_embeddings')

  def test_tied_embeddings_may_be_the_unembedding_alone(self):
    weights = _weights('qwen3')
    embed = weights.pop('model.embed_tokens.weight')
    self._same(self.write('qwen3', weights | {'lm_head.weight': embed}),
               'qwen3')
    self.refused(self.write('qwen3', weights),
                 "'model.embed_tokens.weight' is missing")

  def test_extra_tensors(self):
    directory = self.write('gpt2', _weights('gpt2') | {
        'v_head.weight': np.zeros(3, np.float32)})
    self.refused(directory, "'v_head.weight' is not of this model")
    with self.assertLogs(level='WARNING') as logs:
      config, params = convert.load(directory, allow_extra=True)
    self.assertIn('v_head.weight', logs.output[0])
    self.assertEqual(config.family, 'gpt2')
    self.assertNotIn('v_head', params)


class DtypeTest(DirectoryTest):

  @parameterized.parameters('float32', 'float16', 'bfloat16')
  def test_cast(self, dtype):
    directory = self.write('gpt_neox', {
        k: v.astype(np.float16) for k, v in _weights('gpt_neox').items()})
    _, expected = convert.load(directory)
    if dtype == 'float16':
      with self.assertNoLogs():
        _, params = convert.load(directory, dtype=dtype)
    else:
      with self.assertLogs(level='WARNING') as logs:
        _, params = convert.load(directory, dtype=dtype)
      self.assertLen(logs.output, 1)
      self.assertIn(f'float16 are cast to {dtype}', logs.output[0])
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(expected),
                    strict=True):
      self.assertEqual(x.dtype, dtype)
      np.testing.assert_array_equal(x, y.astype(dtype))

  def test_mixed(self):
    weights = _weights('llama')
    norm = 'model.norm.weight'
    weights = {k: v if k == norm else v.astype(BFLOAT16)
               for k, v in weights.items()}
    first, second = self.write('llama', weights), self.directory()
    config, params = convert.load(first)
    self.assertEqual(params['norm']['scale'].dtype, np.float32)
    convert.save(second, config, params)
    actual = tensors.read(second / 'model.safetensors')
    for name, x in weights.items():
      self.assertEqual(actual[name].tobytes(), x.tobytes())
    name = 'model.layers.1.mlp.up_proj.weight'
    weights[name] = weights[name].astype(np.float32)
    directory = self.write('llama', weights)
    self.refused(directory, f"'{name}' has dtype float32", 'bfloat16')
    _, params = convert.load(directory, dtype='float32')
    np.testing.assert_array_equal(
        params['layers']['up']['kernel'][1], weights[name].T)

  def test_overflow(self):
    weights = _weights('gpt2')
    weights['transformer.wte.weight'] = np.full((40, 16), 1e5, np.float32)
    directory = self.write('gpt2', weights)
    self.refused(directory, "'transformer.wte.weight' does not fit into "
                 'float16', dtype='float16')
    convert.load(directory, dtype='bfloat16')

  def test_no_such_dtype(self):
    for dtype in ('int8', 'float64'):
      with self.assertRaisesRegex(ValueError, dtype):
        convert.load(self._temporary, dtype=dtype)


class RefusalTest(DirectoryTest):

  @parameterized.parameters(*FAMILIES)
  def test_all_problems_at_once(self, family):
    weights = _weights(family)
    actual = sorted(weights)
    missing, shape, transposed, nan, infinite = (
        actual[0], actual[1],
        next(k for k in actual[5:] if weights[k].ndim == 2
             and len(set(weights[k].shape)) > 1), actual[3], actual[4])
    del weights[missing]
    weights[shape] = np.zeros(3, np.float32)
    weights[transposed] = np.ascontiguousarray(weights[transposed].T)
    for name, value in ((nan, np.nan), (infinite, -np.inf)):
      weights[name] = weights[name].copy()
      weights[name].flat[-1] = value
    weights['model.extra.weight'] = np.zeros(3, np.float32)
    message = self.refused(self.write(family, weights), ': 6 tensors', family)
    for word in (f"'{missing}' is missing", f"'{shape}' has shape [3] and not",
                 f"'{transposed}' has shape "
                 f'{list(weights[transposed].shape)} and not '
                 f'{list(weights[transposed].shape[::-1])}',
                 f"'{nan}' has a NaN", f"'{infinite}' has a NaN",
                 "'model.extra.weight' is not of this model"):
      self.assertIn(word, message)

  def test_ten_are_listed_and_the_rest_counted(self):
    weights = {k: v for k, v in _weights('llama').items()
               if not k.endswith('bias')}
    message = self.refused(self.write('llama', weights), ': 14 tensors',
                           '; and 4 more')
    self.assertEqual(message.count('is missing'), 10)

  def test_dtype(self):
    directory = self.write('gpt2')
    path = directory / 'model.safetensors'
    raw = path.read_bytes()
    old = b'"transformer.ln_f.bias":{"dtype":"F32"'
    self.assertIn(old, raw)
    path.write_bytes(raw.replace(old, old.replace(b'F32', b'I32')))
    self.refused(directory, "'transformer.ln_f.bias' has dtype I32", 'BF16')

  def test_config(self):
    for change in (dict(model_type='mamba'), dict(hidden_act='mish'),
                   dict(num_hidden_layers=10**9)):
      directory, name = self.write('llama', **change), next(iter(change))
      with self.assertRaisesRegex(
          errors.ConfigError, f'^{directory}/config.json: {name} is '):
        convert.load(directory)

  def test_layers_that_are_not_there(self):
    directory = self.write('llama', num_hidden_layers=9999)
    start = time.monotonic()
    self.refused(directory, '9999 layers')
    self.assertLess(time.monotonic() - start, 1)
    self.refused(self.write('llama', num_hidden_layers=3), ': 16 tensors',
                 "'model.layers.2.")
    self.refused(self.write('llama', num_hidden_layers=1), ': 16 tensors',
                 "'model.layers.1.")

  def test_sizes_that_are_not_there(self):
    start = time.monotonic()
    self.refused(self.write('llama', vocab_size=2**31 - 1),
                 "'model.embed_tokens.weight' has shape [40, 16] and not "
                 '[2147483647, 16]')
    self.refused(self.write('llama', intermediate_size=2**31 - 1), 'up_proj')
    self.assertLess(time.monotonic() - start, 2)

  def test_pickles(self):
    directory = self.write('gpt2')
    os.rename(directory / 'model.safetensors', directory / 'pytorch_model.bin')
    self.refused(directory, 'pickle refused')

  def test_no_config(self):
    directory = self.write('gpt2')
    os.remove(directory / 'config.json')
    self.refused(directory, 'config.json')

  def test_a_reward_model_is_not_a_language_model(self):
    self.refused(self.write('llama', _weights('llama', classifier=True)),
                 "'score.weight' is not of", "'lm_head.weight' is missing")
    self.refused(self.write('llama'), "'lm_head.weight' is not of",
                 "'score.weight' is missing", load=convert.load_reward)

  def test_a_reward_model_has_one_label(self):
    weights = _weights('gpt2', classifier=True)
    weights['score.weight'] = np.zeros((2, 16), np.float32)
    self.refused(self.write('gpt2', weights),
                 "'score.weight' has shape [2, 16] and not [1, 16]",
                 load=convert.load_reward)


class SaveTest(DirectoryTest):

  def test_wrong_parameters(self):
    config, params = convert.load(self.write('gpt2'))
    layers = params['layers']
    for change, word in (
        (dict(unembed=params['embed']), 'unembed is not of this model'),
        (dict(top_layers=layers), 'top_layers/'),
        (dict(adapter=dict(layers=dict(q=dict(a=np.zeros(1))))),
         'adapter/layers/q/a'),
        (dict(embed=params['embed'][:-1]), r'embed has shape \(39, 16\)'),
        (dict(layers=layers | dict(q=dict(bias=layers['q']['bias']))),
         'layers/q/kernel is missing'),
        (dict(embed='x'), 'embed has shape None')):
      directory = self.directory()
      with self.assertRaisesRegex(ValueError, word):
        convert.save(directory, config, params | change)
      self.assertFalse(directory.exists())

  def test_dtypes_that_share_a_tensor(self):
    for family in ('gpt2', 'gpt_neox'):
      config, params = convert.load(self.write(family))
      q = params['layers']['q']
      q['bias'] = q['bias'].astype(np.float16)
      with self.assertRaisesRegex(ValueError, 'q/bias.*float16, float32'):
        convert.save(self.directory(), config, params)

  def test_other_dtypes(self):
    config, params = convert.load(self.write('llama'))
    with self.assertRaisesRegex(ValueError, 'float64'):
      convert.save(self.directory(), config, jax.tree.map(
          lambda x: x.astype(np.float64), params))

  def test_a_model_is_not_overwritten(self):
    directory = self.write('llama')
    config, params = convert.load(directory)
    before = {p.name: p.read_bytes() for p in directory.iterdir()}
    with self.assertRaisesRegex(errors.CheckpointError, 'there already'):
      convert.save(directory, config.replace(extra=''), params)
    self.assertEqual(
        {p.name: p.read_bytes() for p in directory.iterdir()}, before)

  def test_no_such_shape(self):
    config, params = convert.load(self.write('llama'))
    directory = self.directory()
    with self.assertRaisesRegex(errors.ConfigError, 'windows'):
      convert.save(directory, config.replace(windows=(3, 3)), params)
    self.assertFalse(directory.exists())

  def test_reward_models(self):
    config, params = convert.load_reward(
        self.write('gptj', _weights('gptj', classifier=True)))
    directory = self.directory()
    biased = params | {'head': params['head'] | {'bias': np.float32(.5)}}
    with self.assertRaisesRegex(ValueError, 'bias 0.5'):
      convert.save_reward(directory, config, biased)
    fresh = config.replace(extra='')
    with self.assertRaisesRegex(errors.ConfigError, 'pad_token_id'):
      convert.save_reward(directory, fresh, params)
    self.assertFalse(directory.exists())
    convert.save_reward(directory, fresh, params, extra=dict(pad_token_id=3))
    raw = files.read_json(directory / 'config.json')
    self.assertEqual(raw['pad_token_id'], 3)
    self.assertEqual(raw['architectures'], ['GPTJForSequenceClassification'])
    self.assertLen(raw['id2label'], 1)


class MemoryTest(DirectoryTest):

  def test_neither_way_holds_a_model_twice(self):
    config = transformer.make_config(
        'gpt_neox', vocab_size=64, hidden_size=256, num_layers=8, num_heads=4)
    shapes = _shapes(transformer.init, config)
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    layer = size / config.num_layers
    first = self.directory()
    def peak(f):
      tracemalloc.start()
      actual = f()
      _, most = tracemalloc.get_traced_memory()
      tracemalloc.stop()
      return actual, most
    _, most = peak(lambda: convert.save(first, config, params))
    self.assertLess(most, 2 * layer)
    (again, _), most = peak(lambda: convert.load(first))
    self.assertEqual(again.num_layers, 8)
    self.assertLess(most, size + 2 * layer)


if __name__ == '__main__':
  absltest.main()
