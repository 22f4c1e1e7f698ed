"""Names and layouts of the weights of Hugging Face models, family by family.

A `Rule` says that one tensor of a file holds one or more parameters of ours
(see `models.transformer`), and how they lie in it. Every layout is a
permutation, so that nothing is rounded either way.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses

import numpy as np

from rlhf_jax.models import config as config_lib

Config = config_lib.Config
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
  """How parameters of one shape lie in a tensor."""

  shape: Callable[[Shape], Shape]  # of the tensor, from that of a parameter
  split: Callable[[np.ndarray, Config], Sequence[np.ndarray]]
  join: Callable[[Sequence[np.ndarray], Config], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rule:
  """One tensor, or one in each layer."""

  name: str  # with {} for the index of a layer
  layout: Layout
  leaves: tuple[str, ...]  # ours, as 'layers/q/kernel'; [L, ...] if layered

  @property
  def layered(self) -> bool:
    return '{}' in self.name

  def names(self, config: Config) -> Iterator[tuple[int | None, str]]:
    """(layer, name) of each tensor; the layer is None where there is none."""
    if not self.layered:
      yield None, self.name
      return
    for i in range(config.num_layers):
      yield i, self.name.format(i)


@dataclasses.dataclass(frozen=True)
class Table:
  """All weights of a model."""

  prefix: str  # before names of the trunk; files of a bare trunk lack it
  rules: tuple[Rule, ...]
  buffers: str  # regular expression: no weights, and not read
  unembed: str  # name of the output matrix, where it may repeat the embedding


def _split_heads(x, config):
  """GPT-NeoX: q, k, v of a head are neighbours on the output axis."""
  y = x.reshape(config.num_heads, 3, config.head_size, *x.shape[1:])
  return [y[:, i].reshape(-1, *x.shape[1:]).T for i in range(3)]


def _join_heads(parts, config):
  parts = [p.T for p in parts]
  shape = (config.num_heads, config.head_size, *parts[0].shape[1:])
  return np.stack([p.reshape(shape) for p in parts], axis=1).reshape(
      -1, *parts[0].shape[1:])


def _pairs(config):
  """Our order of a head's dimensions, of which GPT-J turns neighbours."""
  turned = np.arange(config.rotary_size)
  return np.concatenate([
      turned[::2], turned[1::2],
      np.arange(config.rotary_size, config.head_size)])


def _permute(x, order):
  """Rows of x [heads * h, D] in another order within every head."""
  return x.reshape(-1, len(order), x.shape[1])[:, order].reshape(x.shape)


SAME = Layout(lambda s: s, lambda x, _: [x], lambda parts, _: parts[0])
# torch.nn.Linear holds [out, in]; our kernels are [in, out].
LINEAR = Layout(lambda s: s[::-1], lambda x, _: [x.T],
                lambda parts, _: parts[0].T)
# GPT-2: [in, out], with q, k and v side by side.
COLUMNS = Layout(lambda s: (*s[:-1], 3 * s[-1]),
                 lambda x, _: np.split(x, 3, axis=-1),
                 lambda parts, _: np.concatenate(parts, axis=-1))
HEADS = Layout(lambda s: (3 * s[-1], *s[:-1]), _split_heads, _join_heads)
PAIRS = Layout(
    lambda s: s[::-1], lambda x, c: [_permute(x, _pairs(c)).T],
    lambda parts, c: _permute(parts[0].T, np.argsort(_pairs(c))))
# A score has one label.
ROW = Layout(lambda s: (1, *s), lambda x, _: [x[0]],
             lambda parts, _: parts[0][None])


def _norm(name: str, ours: str, config: Config) -> list[Rule]:
  out = [Rule(f'{name}.weight', SAME, (f'{ours}/scale',))]
  if config.norm == 'layer':
    out.append(Rule(f'{name}.bias', SAME, (f'{ours}/bias',)))
  return out


def _linear(name: str, ours: str, bias: bool,
            layout: Layout = LINEAR) -> list[Rule]:
  """A linear map, or several that lie in one; `ours` is split at spaces."""
  leaves = [f'layers/{each}' for each in ours.split()]
  out = [Rule(f'{name}.weight', layout,
              tuple(f'{leaf}/kernel' for leaf in leaves))]
  if bias:
    out.append(Rule(f'{name}.bias', SAME if layout is LINEAR else layout,
                    tuple(f'{leaf}/bias' for leaf in leaves)))
  return out


def _gpt2(c: Config) -> list[Rule]:
  block = 'transformer.h.{}.'
  # Its Conv1D holds [in, out].
  return [
      *_linear(block + 'attn.c_attn', 'q k v', True, COLUMNS),
      *_linear(block + 'attn.c_proj', 'o', True, SAME),
      *_linear(block + 'mlp.c_fc', 'up', True, SAME),
      *_linear(block + 'mlp.c_proj', 'down', True, SAME),
      *_norm(block + 'ln_1', 'layers/attention_norm', c),
      *_norm(block + 'ln_2', 'layers/mlp_norm', c),
      *_norm('transformer.ln_f', 'norm', c),
      Rule('transformer.wte.weight', SAME, ('embed',)),
      Rule('transformer.wpe.weight', SAME, ('positions',)),
  ]


def _gpt_neo(c: Config) -> list[Rule]:
  block = 'transformer.h.{}.'
  attention = block + 'attn.attention.'
  return [
      *_linear(attention + 'q_proj', 'q', False),
      *_linear(attention + 'k_proj', 'k', False),
      *_linear(attention + 'v_proj', 'v', False),
      *_linear(attention + 'out_proj', 'o', True),
      *_linear(block + 'mlp.c_fc', 'up', True),
      *_linear(block + 'mlp.c_proj', 'down', True),
      *_norm(block + 'ln_1', 'layers/attention_norm', c),
      *_norm(block + 'ln_2', 'layers/mlp_norm', c),
      *_norm('transformer.ln_f', 'norm', c),
      Rule('transformer.wte.weight', SAME, ('embed',)),
      Rule('transformer.wpe.weight', SAME, ('positions',)),
  ]


def _gptj(c: Config) -> list[Rule]:
  block = 'transformer.h.{}.'
  return [
      *_linear(block + 'attn.q_proj', 'q', False, PAIRS),
      *_linear(block + 'attn.k_proj', 'k', False, PAIRS),
      *_linear(block + 'attn.v_proj', 'v', False),
      *_linear(block + 'attn.out_proj', 'o', False),
      *_linear(block + 'mlp.fc_in', 'up', True),
      *_linear(block + 'mlp.fc_out', 'down', True),
      *_norm(block + 'ln_1', 'layers/attention_norm', c),
      *_norm('transformer.ln_f', 'norm', c),
      Rule('transformer.wte.weight', SAME, ('embed',)),
  ]


def _gpt_neox(c: Config) -> list[Rule]:
  block = 'gpt_neox.layers.{}.'
  return [
      *_linear(block + 'attention.query_key_value', 'q k v', c.attention_bias,
               HEADS),
      *_linear(block + 'attention.dense', 'o', c.output_bias),
      *_linear(block + 'mlp.dense_h_to_4h', 'up', True),
      *_linear(block + 'mlp.dense_4h_to_h', 'down', True),
      *_norm(block + 'input_layernorm', 'layers/attention_norm', c),
      *_norm(block + 'post_attention_layernorm', 'layers/mlp_norm', c),
      *_norm('gpt_neox.final_layer_norm', 'norm', c),
      Rule('gpt_neox.embed_in.weight', SAME, ('embed',)),
  ]


def _llama(c: Config) -> list[Rule]:
  block = 'model.layers.{}.'
  rules = [
      *_linear(block + 'self_attn.q_proj', 'q', c.attention_bias),
      *_linear(block + 'self_attn.k_proj', 'k', c.attention_bias),
      *_linear(block + 'self_attn.v_proj', 'v', c.attention_bias),
      *_linear(block + 'self_attn.o_proj', 'o', c.output_bias),
      *_linear(block + 'mlp.gate_proj', 'gate', c.mlp_bias),
      *_linear(block + 'mlp.up_proj', 'up', c.mlp_bias),
      *_linear(block + 'mlp.down_proj', 'down', c.mlp_bias),
      *_norm(block + 'input_layernorm', 'layers/attention_norm', c),
      *_norm(block + 'post_attention_layernorm', 'layers/mlp_norm', c),
      *_norm('model.norm', 'norm', c),
      Rule('model.embed_tokens.weight', SAME, ('embed',)),
  ]
  if c.qk_norm:
    rules += [*_norm(block + 'self_attn.q_norm', 'layers/q_norm', c),
              *_norm(block + 'self_attn.k_norm', 'layers/k_norm', c)]
  return rules


# Trunk; its prefix; the output matrix; causal masks and rotary frequencies,
# which old versions of transformers wrote.
_TABLES: dict[str, tuple[Callable[[Config], list[Rule]], str, str, str]] = {
    'gpt2': (_gpt2, 'transformer.', 'lm_head',
             r'h\.\d+\.attn\.(bias|masked_bias)'),
    'gpt_neo': (_gpt_neo, 'transformer.', 'lm_head',
                r'h\.\d+\.attn\.attention\.(bias|masked_bias)'),
    'gptj': (_gptj, 'transformer.', 'lm_head',
             r'h\.\d+\.attn\.(bias|masked_bias|embed_positions)'),
    'gpt_neox': (
        _gpt_neox, 'gpt_neox.', 'embed_out',
        r'layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)'
        r'|rotary_emb\.inv_freq'),
} | dict.fromkeys(('llama', 'mistral', 'qwen2', 'qwen3'), (
    _llama, 'model.', 'lm_head',
    r'(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq'))


def table(config: Config, *, classifier: bool = False) -> Table:
  """The weights of a model.

  Args:
    config: of the decoder; its family is one of `families.FAMILIES`.
    classifier: whether it has a score in place of an unembedding.
  """
  trunk, prefix, unembed, buffers = _TABLES[config.family]
  rules = trunk(config)
  if classifier:
    rules.append(Rule('score.weight', ROW, ('head/weight',)))
  else:
    if not config.tie_embeddings:
      rules.append(Rule(f'{unembed}.weight', SAME, ('unembed',)))
    if config.unembed_bias:
      rules.append(Rule(f'{unembed}.bias', SAME, ('unembed_bias',)))
  return Table(prefix, tuple(rules), buffers, f'{unembed}.weight')
