"""Shape of a decoder: what tells one family of models from another.

| family | norm | MLP | residual | positions | attention |
|---|---|---|---|---|---|
| gpt2 | layer | gelu_new | sequential | learned | biases |
| gpt_neo | layer | gelu_new | sequential | learned | unscaled, local windows |
| gptj | layer | gelu_new | parallel, one norm | rotary on a part | - |
| gpt_neox | layer | gelu | parallel | rotary on a part | biases |
| llama | rms | gated silu | sequential | rotary | grouped queries |
| mistral | rms | gated silu | sequential | rotary | sliding window |
| qwen2 | rms | gated silu | sequential | rotary | biases on q, k, v |
| qwen3 | rms | gated silu | sequential | rotary | norms on q and k |
"""

import dataclasses
from typing import Any

NORMS = ('rms', 'layer')
MLPS = ('gated', 'plain')
ACTIVATIONS = ('silu', 'gelu', 'gelu_new', 'relu')
RESIDUALS = ('sequential', 'parallel', 'shared')
REMATS = ('none', 'full', 'dots')


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How rotary frequencies are stretched beyond the trained length.

  'linear' (Chen et al. 2023) divides all of them by `factor`; 'llama3'
  (Dubois et al. 2024) divides the slow ones, leaves the fast ones, and
  interpolates between wavelengths original_length / high_frequency_factor
  and original_length / low_frequency_factor.
  """

  kind: str  # 'linear' | 'llama3'
  factor: float
  low_frequency_factor: float = 1.0
  high_frequency_factor: float = 4.0
  original_length: int = 8192  # tokens

  def __post_init__(self):
    if self.kind not in ('linear', 'llama3'):
      raise ValueError("rope_scaling.kind must be 'linear' or 'llama3', got "
                       f'{self.kind!r}.')
    if not self.factor >= 1:
      raise ValueError(f'rope_scaling.factor must be >= 1, got {self.factor}.')
    if not 0 < self.low_frequency_factor < self.high_frequency_factor:
      raise ValueError(
          'rope_scaling needs 0 < low_frequency_factor < '
          f'high_frequency_factor, got {self.low_frequency_factor} and '
          f'{self.high_frequency_factor}.')


@dataclasses.dataclass(frozen=True)
class Config:
  """Shape of a decoder; hashable, so that it can be a static argument."""

  vocab_size: int
  hidden_size: int
  num_layers: int
  num_heads: int
  intermediate_size: int
  num_kv_heads: int | None = None  # None: as many as query heads
  head_size: int | None = None  # None: hidden_size / num_heads
  family: str = 'llama'  # names the export; the fields below say the shape
  norm: str = 'rms'  # 'rms' | 'layer'
  norm_epsilon: float = 1e-5
  mlp: str = 'gated'  # 'gated' | 'plain'
  activation: str = 'silu'  # 'silu' | 'gelu' | 'gelu_new' (tanh) | 'relu'
  attention_bias: bool = False  # on q, k and v
  output_bias: bool = False  # on o
  mlp_bias: bool = False
  unembed_bias: bool = False
  qk_norm: bool = False  # RMS norm of each head's q and k
  residual: str = 'sequential'  # | 'parallel' | 'shared': parallel, one norm
  max_positions: int | None = None  # rows of a learned table; None: rotary
  rotary_fraction: float = 1.0
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | None = None
  attention_scale: float | None = None  # None: head_size ** -.5
  scale_by_depth: bool = False  # attention logits divided by layer + 1
  windows: tuple[int, ...] = ()  # tokens that each layer sees, 0: all; (): all
  tie_embeddings: bool = False
  dropout: float = 0.0  # of embeddings and residuals, where a key is given
  adapter_scale: float = 1.0  # of low-rank adapters: alpha / rank
  adapter_dropout: float = 0.0
  dtype: str = 'float32'  # of the computation; parameters stay as they are
  remat: str = 'none'  # | 'full': keep layer inputs | 'dots': and products
  attention: str | None = None  # 'xla' | 'cudnn'; None: jax chooses
  extra: str = ''  # JSON: other fields of the config.json it was loaded from

  def __post_init__(self):
    for name in ('vocab_size', 'hidden_size', 'num_layers', 'num_heads',
                 'intermediate_size'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name} must be >= 1, got {getattr(self, name)}.')
    if self.head_size is None:
      if self.hidden_size % self.num_heads:
        raise ValueError(f'hidden_size {self.hidden_size} is not divisible by '
                         f'num_heads {self.num_heads}.')
      object.__setattr__(self, 'head_size', self.hidden_size // self.num_heads)
    if self.num_kv_heads is None:
      object.__setattr__(self, 'num_kv_heads', self.num_heads)
    if self.num_heads % self.num_kv_heads:
      raise ValueError(f'num_heads {self.num_heads} is not divisible by '
                       f'num_kv_heads {self.num_kv_heads}.')
    if self.max_positions is None and self.rotary_size % 2:
      raise ValueError(f'rotary_fraction {self.rotary_fraction} rotates '
                       f'{self.rotary_size} of {self.head_size} dimensions; '
                       'the number must be even.')
    if len(self.windows) not in (0, self.num_layers):
      raise ValueError(f'windows has {len(self.windows)} entries for '
                       f'{self.num_layers} layers.')
    if any(window < 0 for window in self.windows):
      raise ValueError(f'windows must be >= 0, got {self.windows}.')
    if self.max_positions is not None and self.max_positions < 1:
      raise ValueError(
          f'max_positions must be >= 1, got {self.max_positions}.')
    for name, allowed in (
        ('norm', NORMS), ('mlp', MLPS), ('activation', ACTIVATIONS),
        ('residual', RESIDUALS), ('remat', REMATS),
        ('attention', (None, 'xla', 'cudnn')),
        ('dtype', ('float32', 'bfloat16', 'float16'))):
      if getattr(self, name) not in allowed:
        raise ValueError(f'{name} must be one of {allowed}, '
                         f'got {getattr(self, name)!r}.')
    for name in ('dropout', 'adapter_dropout'):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f'{name} must be in [0, 1), got '
                         f'{getattr(self, name)}.')

  @property
  def rotary_size(self) -> int:
    return int(self.head_size * self.rotary_fraction)

  def replace(self, **kwargs) -> 'Config':
    return dataclasses.replace(self, **kwargs)


_BIASES = dict(attention_bias=True, output_bias=True, mlp_bias=True)
_GPT = dict(norm='layer', mlp='plain', activation='gelu_new')

FAMILIES: dict[str, dict[str, Any]] = {
    'gpt2': _GPT | _BIASES | dict(max_positions=1024, tie_embeddings=True),
    'gpt_neo': _GPT | dict(
        output_bias=True, mlp_bias=True, max_positions=2048,
        tie_embeddings=True, attention_scale=1.0),
    'gptj': _GPT | dict(
        mlp_bias=True, unembed_bias=True, residual='shared',
        rotary_fraction=0.25),
    'gpt_neox': _GPT | _BIASES | dict(
        activation='gelu', residual='parallel', rotary_fraction=0.25),
    'llama': {},
    'mistral': {},
    'qwen2': dict(attention_bias=True, norm_epsilon=1e-6),
    'qwen3': dict(qk_norm=True, norm_epsilon=1e-6),
}


def make_config(family: str, **kwargs) -> Config:
  """Returns the `Config` of a family; `kwargs` override its defaults.

  Raises:
    ValueError: the family is unknown or a number does not fit.
    TypeError: a field is unknown.
  """
  if family not in FAMILIES:
    raise ValueError(f'family must be one of {sorted(FAMILIES)}, '
                     f'got {family!r}.')
  kwargs = {'family': family} | FAMILIES[family] | kwargs
  if 'intermediate_size' not in kwargs:
    kwargs['intermediate_size'] = 4 * kwargs['hidden_size']
  if isinstance(kwargs.get('rope_scaling'), dict):
    kwargs['rope_scaling'] = RopeScaling(**kwargs['rope_scaling'])
  if 'windows' in kwargs:
    kwargs['windows'] = tuple(kwargs['windows'])
  return Config(**kwargs)
