"""Config of a Hugging Face model <-> ours, one family at a time.

What a config.json says is read with the defaults that transformers gives to
what it leaves out. A setting that the decoder does not have is refused by its
name and value: weights that run under a nearly right config give numbers that
look right. A config is written in the words that transformers 4 and 5 both
read, and only if reading it gives the same decoder back.

Fields that do not shape the decoder (ids of special tokens, the initialiser's
range, ...) go through `Config.extra`. Rates of dropout are among them: a
loaded model drops nothing unless `Config.dropout` is set.
"""

from collections.abc import Callable
import dataclasses
import json
import math
from typing import Any, NamedTuple

from rlhf_jax import errors
from rlhf_jax.models import config as config_lib
from rlhf_jax.models import fields

Config = config_lib.Config

_MAX_LAYERS = 10_000  # a wrong number must not exhaust the memory
_UNSUPPORTED = (
    'add_cross_attention', 'is_encoder_decoder', 'pruned_heads',
    'quantization_config')
# Written anew, or true only of the file that was read.
_DROPPED = (
    '_name_or_path', 'architectures', 'dtype', 'id2label', 'label2id',
    'model_type', 'num_labels', 'torch_dtype', 'transformers_version')
# Of a `Config`, but not of the decoder's shape.
_FREE = frozenset({
    'dropout', 'adapter_scale', 'adapter_dropout', 'dtype', 'remat',
    'attention', 'extra'})


# GPT-2, GPT-Neo, GPT-J ------------------------------------------------------


def _read_gpt2(f: fields.Fields) -> dict[str, Any]:
  size = f.whole('n_embd hidden_size', 768)
  return dict(
      vocab_size=f.whole('vocab_size', 50257), hidden_size=size,
      num_layers=f.whole('n_layer num_hidden_layers', 12, most=_MAX_LAYERS),
      num_heads=f.whole('n_head num_attention_heads', 12),
      intermediate_size=f.maybe('n_inner') or 4 * size,
      max_positions=f.whole('n_positions max_position_embeddings', 1024),
      norm_epsilon=f.number('layer_norm_epsilon', 1e-5),
      activation=f.activation('activation_function', 'gelu_new'),
      attention_scale=None if f.flag('scale_attn_weights', True) else 1.0,
      scale_by_depth=f.flag('scale_attn_by_inverse_layer_idx', False),
      tie_embeddings=f.flag('tie_word_embeddings', True))


def _write_gpt2(c: Config) -> dict[str, Any]:
  return dict(
      n_embd=c.hidden_size, n_layer=c.num_layers, n_head=c.num_heads,
      n_inner=c.intermediate_size, n_positions=c.max_positions,
      layer_norm_epsilon=c.norm_epsilon, activation_function=c.activation,
      scale_attn_weights=c.attention_scale is None,
      scale_attn_by_inverse_layer_idx=c.scale_by_depth)


def _read_gpt_neo(f: fields.Fields) -> dict[str, Any]:
  size = f.whole('hidden_size', 2048)
  layers = f.whole('num_layers num_hidden_layers', 24, most=_MAX_LAYERS)
  window = f.whole('window_size', 256)
  kinds = _attention_types(
      f.get('attention_types') or [[['global', 'local'], 12]], layers)
  f.get('attention_layers')  # attention_types spelt out, by transformers 5
  return dict(
      vocab_size=f.whole('vocab_size', 50257), hidden_size=size,
      num_layers=layers, num_heads=f.whole('num_heads num_attention_heads', 16),
      intermediate_size=f.maybe('intermediate_size') or 4 * size,
      max_positions=f.whole('max_position_embeddings', 2048),
      norm_epsilon=f.number('layer_norm_epsilon', 1e-5),
      activation=f.activation('activation_function', 'gelu_new'),
      windows=[window if kind == 'local' else 0 for kind in kinds],
      tie_embeddings=f.flag('tie_word_embeddings', True))


def _attention_types(value: Any, layers: int) -> list[str]:
  """GPT-Neo's [[[kind, ...], times], ...] as a list of kinds."""
  kinds: list[str] = []
  try:
    for group, times in value:
      if type(times) is not int or not 0 <= times <= layers:
        raise ValueError
      kinds += list(group) * times
  except (TypeError, ValueError):
    fields.refuse('attention_types', value,
                  'it must be like [[["global", "local"], 12]]')
  if len(kinds) != layers or set(map(str, kinds)) - {'global', 'local'}:
    fields.refuse('attention_types', value,
                  'it must give "global" or "local" to each of '
                  f'{layers} layers')
  return kinds


def _write_gpt_neo(c: Config) -> dict[str, Any]:
  kinds = ['local' if w else 'global' for w in c.windows or [0] * c.num_layers]
  return dict(
      hidden_size=c.hidden_size, num_layers=c.num_layers, num_heads=c.num_heads,
      intermediate_size=c.intermediate_size, window_size=_window(c) or 256,
      max_position_embeddings=c.max_positions, attention_types=[[kinds, 1]],
      layer_norm_epsilon=c.norm_epsilon, activation_function=c.activation)


def _read_gptj(f: fields.Fields) -> dict[str, Any]:
  size, heads = f.whole('n_embd hidden_size', 4096), f.whole(
      'n_head num_attention_heads', 16)
  # null would turn hidden_size dimensions of each head, which none has.
  turned = f.whole('rotary_dim', 64, least=2, most=max(size // heads, 2))
  return dict(
      vocab_size=f.whole('vocab_size', 50400), hidden_size=size,
      num_layers=f.whole('n_layer num_hidden_layers', 28, most=_MAX_LAYERS),
      num_heads=heads, intermediate_size=f.maybe('n_inner') or 4 * size,
      rotary_fraction=_fraction(turned, size // heads),
      norm_epsilon=f.number('layer_norm_epsilon', 1e-5),
      activation=f.activation('activation_function', 'gelu_new'),
      tie_embeddings=f.flag('tie_word_embeddings', False))


def _fraction(part: int, whole: int) -> float:
  """The number whose product with `whole` is `part` after truncation."""
  fraction = part / whole
  return fraction if int(whole * fraction) == part else math.nextafter(
      fraction, 1)


def _write_gptj(c: Config) -> dict[str, Any]:
  return dict(
      n_embd=c.hidden_size, n_layer=c.num_layers, n_head=c.num_heads,
      n_inner=c.intermediate_size, rotary_dim=c.rotary_size,
      layer_norm_epsilon=c.norm_epsilon, activation_function=c.activation)


# GPT-NeoX, and LLaMA and its kin --------------------------------------------


def _read_gpt_neox(f: fields.Fields) -> dict[str, Any]:
  biased = f.flag('attention_bias', True)
  return dict(
      vocab_size=f.whole('vocab_size', 50432),
      hidden_size=f.whole('hidden_size', 6144),
      num_layers=f.whole('num_hidden_layers', 44, most=_MAX_LAYERS),
      num_heads=f.whole('num_attention_heads', 64),
      intermediate_size=f.whole('intermediate_size', 24576),
      norm_epsilon=f.number('layer_norm_eps', 1e-5),
      activation=f.activation('hidden_act', 'gelu'),
      attention_bias=biased, output_bias=biased,
      residual=('parallel' if f.flag('use_parallel_residual', True)
                else 'sequential'),
      tie_embeddings=f.flag('tie_word_embeddings', False),
      **fields.read_rope(
          f, base='rotary_emb_base', part='rotary_pct', fraction=.25))


def _write_gpt_neox(c: Config) -> dict[str, Any]:
  return dict(
      hidden_size=c.hidden_size, num_hidden_layers=c.num_layers,
      num_attention_heads=c.num_heads, intermediate_size=c.intermediate_size,
      layer_norm_eps=c.norm_epsilon, hidden_act=c.activation,
      attention_bias=c.attention_bias, rotary_pct=c.rotary_fraction,
      use_parallel_residual=c.residual == 'parallel',
      **fields.write_rope(c, 'rotary_emb_base'))


def _read_llama(f: fields.Fields, family: str) -> dict[str, Any]:
  size = f.whole('hidden_size', 4096)
  layers = f.whole('num_hidden_layers', 32, most=_MAX_LAYERS)
  heads = f.whole('num_attention_heads', 32)
  if family == 'llama' and size % heads:  # whatever head_dim says
    raise errors.ConfigError(
        f'hidden_size {size} is not a multiple of num_attention_heads {heads}')
  kwargs = dict(
      vocab_size=f.whole('vocab_size', 151_936 if 'qwen' in family else 32_000),
      hidden_size=size, num_layers=layers, num_heads=heads,
      num_kv_heads=f.maybe('num_key_value_heads', {
          'llama': None, 'mistral': 8}.get(family, 32)),
      head_size=f.maybe('head_dim', 128 if family == 'qwen3' else None),
      intermediate_size=f.whole('intermediate_size', {
          'llama': 11_008, 'mistral': 14_336}.get(family, 22_016)),
      norm_epsilon=f.number('rms_norm_eps', 1e-6),
      activation=f.activation('hidden_act', 'silu'),
      windows=_read_windows(f, family, layers),
      tie_embeddings=f.flag('tie_word_embeddings', False),
      **fields.read_rope(
          f, base='rope_theta', part='partial_rotary_factor', fraction=1.0))
  if kwargs['rotary_fraction'] != 1:
    fields.refuse('partial_rotary_factor', kwargs['rotary_fraction'],
                  f'the heads of {family} turn as a whole, so it must be 1')
  if family in ('llama', 'qwen3'):
    biased = f.flag('attention_bias', False)
    kwargs.update(attention_bias=biased, output_bias=biased)
  if family == 'llama':
    kwargs.update(mlp_bias=f.flag('mlp_bias', False))
  return kwargs


def _read_windows(f: fields.Fields, family: str, layers: int) -> list[int]:
  """Tokens that each layer sees, 0 for all."""
  types = f.get('layer_types')
  if types is not None and (
      not isinstance(types, list) or len(types) != layers
      or set(map(str, types)) - {'full_attention', 'sliding_attention'}):
    fields.refuse('layer_types', types, 'it must give "full_attention" or '
                  f'"sliding_attention" to each of {layers} layers')
  if family == 'llama':
    window, first = 0, layers
  elif family == 'mistral':
    window, first = f.maybe('sliding_window', 4096) or 0, 0
  else:
    window = f.maybe('sliding_window', 4096) or 0
    window = window if f.flag('use_sliding_window', False) else 0
    first = f.whole('max_window_layers', 28, least=0)
  slides = [window > 0 and i >= first for i in range(layers)]
  if types is not None:
    sliding = [t == 'sliding_attention' for t in types]
    if (any(sliding) and not window) or (
        family in ('llama', 'mistral') and sliding != slides):
      fields.refuse('layer_types', types, f'the layers of {family} have a '
                    f'window of {window or "all"}')
    slides = sliding
  return [window if slide else 0 for slide in slides]


def _window(c: Config) -> int | None:
  """The window of a model; where layers differ, the check below refuses."""
  return max(c.windows, default=0) or None


def _write_llama(c: Config) -> dict[str, Any]:
  out = dict(
      hidden_size=c.hidden_size, num_hidden_layers=c.num_layers,
      num_attention_heads=c.num_heads, num_key_value_heads=c.num_kv_heads,
      head_dim=c.head_size, intermediate_size=c.intermediate_size,
      rms_norm_eps=c.norm_epsilon, hidden_act=c.activation,
      **fields.write_rope(c, 'rope_theta'))
  if c.family in ('llama', 'qwen3'):
    out.update(attention_bias=c.attention_bias)
  if c.family == 'llama':
    out.update(mlp_bias=c.mlp_bias)
  else:
    out.update(sliding_window=_window(c))
  if c.family in ('qwen2', 'qwen3'):
    slides = [w > 0 for w in c.windows or [0] * c.num_layers]
    out.update(
        use_sliding_window=any(slides),
        max_window_layers=[*slides, True].index(True),
        layer_types=['sliding_attention' if s else 'full_attention'
                     for s in slides])
  return out


class Family(NamedTuple):
  """How transformers calls a family, and what its config.json says."""

  causal: str  # class with an unembedding
  classifier: str  # class with a score
  read: Callable[[fields.Fields], dict[str, Any]]  # arguments of `make_config`
  write: Callable[[Config], dict[str, Any]]  # fields of config.json


def _kin(name: str, family: str) -> Family:
  return Family(f'{name}ForCausalLM', f'{name}ForSequenceClassification',
                lambda f: _read_llama(f, family), _write_llama)


FAMILIES: dict[str, Family] = {
    'gpt2': Family('GPT2LMHeadModel', 'GPT2ForSequenceClassification',
                   _read_gpt2, _write_gpt2),
    'gpt_neo': Family('GPTNeoForCausalLM', 'GPTNeoForSequenceClassification',
                      _read_gpt_neo, _write_gpt_neo),
    'gptj': Family('GPTJForCausalLM', 'GPTJForSequenceClassification',
                   _read_gptj, _write_gptj),
    'gpt_neox': Family('GPTNeoXForCausalLM', 'GPTNeoXForSequenceClassification',
                       _read_gpt_neox, _write_gpt_neox),
    'llama': _kin('Llama', 'llama'),
    'mistral': _kin('Mistral', 'mistral'),
    'qwen2': _kin('Qwen2', 'qwen2'),
    'qwen3': _kin('Qwen3', 'qwen3'),
}


def from_json(raw: dict[str, Any]) -> Config:
  """The decoder that a config.json describes.

  Args:
    raw: what the file holds.

  Raises:
    ConfigError: its model_type is not one of `FAMILIES`; a field has a value
      that cannot be, or that the decoder does not have; or fields contradict
      each other.
  """
  family = raw.get('model_type')
  if not isinstance(family, str) or family not in FAMILIES:
    fields.refuse('model_type', family, f'there are {", ".join(FAMILIES)}')
  for name in _UNSUPPORTED:
    if raw.get(name):
      fields.refuse(name, raw[name], 'the decoder does not have it')
  settings = fields.Fields(raw)
  try:
    kwargs = FAMILIES[family].read(settings)
    if not any(kwargs.get('windows', ())):
      kwargs['windows'] = ()
    config = config_lib.make_config(family, **kwargs)
  except ValueError as error:
    raise errors.ConfigError(str(error)) from error
  extra = {key: value for key, value in raw.items()
           if key not in settings.read and key not in _DROPPED}
  return config.replace(extra=json.dumps(extra, sort_keys=True))


def to_json(config: Config, *, classifier: bool = False,
            extra: dict[str, Any] | None = None) -> dict[str, Any]:
  """The config.json of a decoder, without its dtype.

  Args:
    config: of the decoder.
    classifier: whether it has a score in place of an unembedding.
    extra: fields to put in place of those in `config.extra`.

  Raises:
    ConfigError: no model of this family in transformers has this shape.
    ValueError: a field of `extra` says something of the shape.
  """
  if config.family not in FAMILIES:
    fields.refuse('family', config.family, f'there are {", ".join(FAMILIES)}')
  family = FAMILIES[config.family]
  shape = {
      'model_type': config.family, 'vocab_size': config.vocab_size,
      'tie_word_embeddings': config.tie_embeddings} | family.write(config)
  _check_same(config, from_json(shape))
  # Else transformers fills in the ids of somebody else's tokenizer.
  rest = json.loads(config.extra) if config.extra else dict.fromkeys(
      ('bos_token_id', 'eos_token_id', 'pad_token_id'))
  rest |= extra or {}
  clash = sorted(rest.keys() & (shape.keys() | set(_DROPPED)))
  if clash:
    raise ValueError(f'extra has {", ".join(clash)}, which config says.')
  shape['architectures'] = [
      family.classifier if classifier else family.causal]
  if classifier:
    shape |= {'id2label': {'0': 'LABEL_0'}, 'label2id': {'LABEL_0': 0}}
  return shape | rest


def _check_same(config: Config, read: Config):
  """ConfigError if what was written is not what would be read."""
  for field in dataclasses.fields(Config):
    ours, theirs = getattr(config, field.name), getattr(read, field.name)
    if field.name == 'windows' and not any(ours):
      ours = ()
    if field.name not in _FREE and ours != theirs:
      raise errors.ConfigError(
          f'{field.name} is {ours!r}, and a {config.family} of transformers '
          f'can only have {theirs!r}; keep the model as a checkpoint')
