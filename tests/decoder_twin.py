"""The decoder in NumPy, float64: one row, one head, one token at a time."""

import math

import jax
import numpy as np


def _norm(config, x, w):
  if config.norm == 'layer':
    x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon)
  return x * w['scale'] + w.get('bias', 0)


def _activate(config, x):
  if config.activation == 'relu':
    return np.where(x > 0, x, 0)
  if config.activation == 'silu':
    return x / (1 + np.exp(-x))
  if config.activation == 'gelu':
    return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
  assert config.activation == 'gelu_new'
  inner = math.sqrt(2 / math.pi) * (x + .044715 * x**3)
  return x / 2 * (1 + np.tanh(inner))


def _angle(config, i, size):
  """Radians a token of rotary pair i, as Hugging Face states the scalings."""
  angle = config.rope_theta ** (-2 * i / size)
  scaling = config.rope_scaling
  if scaling is None:
    return angle
  if scaling.kind == 'linear':
    return angle / scaling.factor
  wavelength = 2 * math.pi / angle
  longest = scaling.original_length / scaling.low_frequency_factor
  shortest = scaling.original_length / scaling.high_frequency_factor
  if wavelength < shortest:
    return angle
  if wavelength > longest:
    return angle / scaling.factor
  smooth = ((scaling.original_length / wavelength
             - scaling.low_frequency_factor)
            / (scaling.high_frequency_factor - scaling.low_frequency_factor))
  return (1 - smooth) * angle / scaling.factor + smooth * angle


def _turn(config, x, position):
  """Rotary embedding of one vector: pairs (i, i + half) as complex numbers."""
  if config.max_positions is not None:
    return x
  size = int(config.head_size * config.rotary_fraction)
  half = size // 2
  z = x[:half] + 1j * x[half:size]
  z = z * np.exp(1j * position * np.array(
      [_angle(config, i, size) for i in range(half)]))
  return np.concatenate([z.real, z.imag, x[size:]])


def _attend(config, x, w, depth):
  """[T, D], what attention adds to the normalised states x [T, D]."""
  size = config.head_size
  dense = lambda n: x @ w[n]['kernel'] + w[n].get('bias', 0)
  heads = {n: dense(n).reshape(len(x), -1, size) for n in 'qkv'}
  if config.qk_norm:
    for n in 'qk':
      y = heads[n]
      heads[n] = w[f'{n}_norm']['scale'] * y / np.sqrt(
          (y**2).mean(-1, keepdims=True) + config.norm_epsilon)
  scale = config.attention_scale
  if scale is None:
    scale = size ** -.5
  if config.scale_by_depth:
    scale /= depth + 1
  window = (config.windows[depth] if config.windows else 0) or len(x)
  out = np.zeros((len(x), config.num_heads, size))
  for t in range(len(x)):
    for n in range(config.num_heads):
      m = n * config.num_kv_heads // config.num_heads
      seen = range(max(0, t - window + 1), t + 1)
      scores = scale * np.array(
          [_turn(config, heads['q'][t, n], t)
           @ _turn(config, heads['k'][s, m], s) for s in seen])
      weights = np.exp(scores - scores.max())
      out[t, n] = weights / weights.sum() @ heads['v'][seen, m]
  out = out.reshape(len(x), -1)
  return out @ w['o']['kernel'] + w['o'].get('bias', 0)


def _mlp(config, x, w):
  dense = lambda y, n: y @ w[n]['kernel'] + w[n].get('bias', 0)
  if config.mlp == 'gated':
    return dense(_activate(config, dense(x, 'gate')) * dense(x, 'up'), 'down')
  return dense(_activate(config, dense(x, 'up')), 'down')


def hidden_states(config, params, tokens):
  """Normalised final states f64[T, D] of one row of tokens [T]."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  x = p['embed'][tokens]
  if config.max_positions is not None:
    x = x + p['positions'][:len(x)]
  for depth in range(config.num_layers):
    w = jax.tree.map(lambda leaf, i=depth: leaf[i], p['layers'])
    normed = _norm(config, x, w['attention_norm'])
    attended = _attend(config, normed, w, depth)
    if config.residual == 'sequential':
      normed = _norm(config, x + attended, w['mlp_norm'])
    elif config.residual == 'parallel':
      normed = _norm(config, x, w['mlp_norm'])
    x = x + attended + _mlp(config, normed, w)
  return _norm(config, x, p['norm'])


def logits(config, params, tokens):
  """Next-token logits f64[T, V] of one row of tokens [T]."""
  out = params['embed' if config.tie_embeddings else 'unembed']
  bias = np.asarray(params['unembed_bias']) if config.unembed_bias else 0
  return hidden_states(config, params, tokens) @ np.asarray(
      out, np.float64).T + bias
