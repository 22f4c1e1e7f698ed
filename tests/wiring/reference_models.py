"""A decoder of the llama family and its heads, in float64, by the formulas.

What the package's models are held against when whole rollouts are computed
again. Nothing of the package is imported: a decoder is RMS norms, rotary
attention and a gated MLP (Touvron et al. 2023,
https://arxiv.org/abs/2302.13971), and only the names of the parameters are
the package's, with layers stacked [L, ...].

Axes: N rows, T tokens, D features, V vocabulary, E members. What has a T axis
is about emitting the token at t; t = 0 is 0.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

NORM_EPSILON, ROPE_THETA = 1e-5, 10_000.
NUM_HEADS = 2  # of attention, in the models that tests train


def precise(function):
  """`function` in float64: floats of its arguments widen, results are NumPy."""
  @functools.wraps(function)
  def wrapped(*args, **kwargs):
    with jax.enable_x64(True):
      args, kwargs = jax.tree.map(_widen, (args, kwargs))
      return jax.tree.map(np.asarray, function(*args, **kwargs))
  return wrapped


def _widen(x):
  if isinstance(x, jax.Array | np.ndarray | np.generic) and (
      jnp.issubdtype(x.dtype, jnp.floating)):
    return jnp.asarray(np.asarray(x), jnp.float64)
  return x


def _norm(x, params):
  size = jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + NORM_EPSILON)
  return x / size * params['scale'][None, None]


def _turn(x):
  """Rotary embedding of [N, T, H, h]: dimensions i and i + h / 2 turn."""
  half = x.shape[-1] // 2
  angle = jnp.arange(x.shape[1])[:, None] * (
      ROPE_THETA ** (-jnp.arange(half) / half))[None]
  z = jax.lax.complex(x[..., :half], x[..., half:])
  z = z * jnp.exp(1j * angle)[None, :, None]
  return jnp.concatenate([z.real, z.imag], axis=-1)


def _attend(x, params, num_heads):
  q, k, v = ((x @ params[name]['kernel']).reshape(
      *x.shape[:2], num_heads, -1) for name in 'qkv')
  scores = jnp.einsum('nqhd,nkhd->nhqk', _turn(q), _turn(k))
  past = jnp.tril(jnp.ones((x.shape[1],) * 2, bool))
  weights = jax.nn.softmax(jnp.where(
      past[None, None], scores / np.sqrt(q.shape[-1]), -jnp.inf))
  out = jnp.einsum('nhqk,nkhd->nqhd', weights, v)
  return out.reshape(x.shape) @ params['o']['kernel']


def _mlp(x, params):
  gate, up = (x @ params[name]['kernel'] for name in ('gate', 'up'))
  return (gate / (1 + jnp.exp(-gate)) * up) @ params['down']['kernel']


def hidden_states(params, tokens, num_heads=NUM_HEADS):
  """Normalised final states f64[N, T, D] of tokens i32[N, T]."""
  x = params['embed'][tokens]
  for depth in range(len(params['layers']['q']['kernel'])):
    layer = jax.tree.map(lambda leaf, i=depth: leaf[i], params['layers'])
    x = x + _attend(_norm(x, layer['attention_norm']), layer, num_heads)
    x = x + _mlp(_norm(x, layer['mlp_norm']), layer)
  return _norm(x, params['norm'])


def _aligned(x):
  """[N, T] of [N, T - 1]: the states before tokens 1, 2, ..."""
  return jnp.concatenate([jnp.zeros((len(x), 1)), x], axis=1)


def _at(x, tokens):
  return jnp.take_along_axis(x, tokens[:, 1:, None], axis=-1)[..., 0]


def _features(params, hidden):
  """What the last layer of a head reads: two layers where there are two."""
  if not isinstance(params, dict) or 'features' not in params:
    return hidden
  layer = params['features']
  return jnp.maximum(
      hidden @ layer['kernel'] + layer['bias'][None, None], 0)


def scalar(params, hidden):
  """f64[N, T] of a value or reward head on states f64[N, T, D]."""
  return _features(params, hidden) @ params['weight'] + params['bias']


def _q_logits(params, hidden):
  """f64[N, T, V]: what each token is worth in each state."""
  if not isinstance(params, dict):
    return hidden @ params.T
  return (_features(params, hidden) @ params['weight'].T
          + params['bias'][None, None])


def restricted(logits, guide, top_p, tokens):
  """Logits f64[N, T, V] with -inf off the nucleus of those of a guide.

  The likeliest tokens, as many as reach the mass, and tokens i32[N, T].
  """
  order = jnp.argsort(-guide, axis=-1)
  probs = jnp.take_along_axis(jax.nn.softmax(guide), order, axis=-1)
  before = jnp.take_along_axis(  # the mass of what is likelier
      jnp.cumsum(probs, axis=-1) - probs, jnp.argsort(order, axis=-1), axis=-1)
  own = jnp.arange(logits.shape[-1])[None, None] == tokens[..., None]
  return jnp.where((before < top_p) | own, logits, -jnp.inf)


def policy(params, tokens, targets=None, temperature=1., num_heads=NUM_HEADS,
           guide=None):
  """Everything that a policy and its heads say.

  Args:
    params: a decoder's, and 'value_head', 'value_trunk' and 'q_heads' as far
      as there are any; a value trunk has as many heads of attention.
    tokens: i32[..., T].
    targets: slowly moving copies of 'q_heads'.
    temperature: that the logits are divided by.
    num_heads: of attention.
    guide: parameters of a mask policy and its top_p (objectives.md 10.1).

  Returns:
    f64[..., T] each: 'logprobs', 'entropy', 'values'; a list with one for
    each Q head: 'q_values', 'q_logprobs', 'target_q_values'.
  """
  rows = tokens.reshape(-1, tokens.shape[-1])
  hidden = hidden_states(params, rows, num_heads)
  states = hidden[:, :-1]
  project = lambda params, x: x @ params.get(
      'unembed', params['embed']).T / temperature
  logits = project(params, states)
  if guide is not None:
    theirs = hidden_states(guide[0], rows, num_heads)[:, :-1]
    logits = restricted(
        logits, project(guide[0], theirs), guide[1], rows[:, 1:])
  logprobs = jax.nn.log_softmax(logits)
  probs = jnp.exp(logprobs)
  out = {'logprobs': _aligned(_at(logprobs, rows)),
         'entropy': _aligned(-(probs * jnp.where(
             probs > 0, logprobs, 0)).sum(axis=-1))}
  if 'value_head' in params:
    trunk = params.get('value_trunk')
    read = states if trunk is None else hidden_states(
        trunk, rows, num_heads)[:, :-1]
    out['values'] = _aligned(scalar(params['value_head'], read))
  if 'q_heads' in params:
    each = [_q_logits(head, states) for head in params['q_heads']]
    out['q_values'] = [_aligned(_at(q, rows)) for q in each]
    out['q_logprobs'] = [
        _aligned(_at(jax.nn.log_softmax(q), rows)) for q in each]
  if targets is not None:
    out['target_q_values'] = [
        _aligned(_at(_q_logits(head, states), rows)) for head in targets]
  return jax.tree.map(lambda x: x.reshape(tokens.shape), out)


def reward(params, tokens, mask, num_heads=NUM_HEADS):
  """f64[...]: a reward model at the last response token of rows [..., T]."""
  rows = tokens.reshape(-1, tokens.shape[-1])
  scores = scalar(params['head'], hidden_states(
      params['trunk'], rows, num_heads))
  last = rows.shape[1] - 1 - jnp.argmax(
      mask.reshape(rows.shape)[:, ::-1], axis=1)
  return scores[jnp.arange(len(rows)), last].reshape(tokens.shape[:-1])


def members(params, tokens, mask, num_heads=NUM_HEADS):
  """f64[E, ...]: each of E reward models, leaves [E, ...]."""
  count = len(params['head']['bias'])
  return jnp.stack([
      reward(jax.tree.map(lambda x, e=member: x[e], params), tokens, mask,
             num_heads) for member in range(count)])


def prompt_values(head, reference, tokens, lengths, max_value=1.,
                  num_heads=NUM_HEADS):
  """f64[N]: what prompts i32[N, P] of some lengths i32[N] are worth.

  One learned query attends to the reference's states of the prompt alone;
  then a linear map, a sigmoid, and the largest reward (objectives.md 9.10).
  """
  hidden = hidden_states(reference, tokens)
  attention = head['attention']
  project = lambda name, x: jnp.einsum(
      'nd,dhk->nhk', x, attention[name]['kernel']
  ) + attention[name]['bias'][None]
  keys, values = (jax.vmap(functools.partial(project, name))(hidden)
                  for name in ('key', 'value'))  # [N, P, h, k]
  query = project('query', head['query'][None])[0]  # [h, k]
  scores = jnp.einsum('hk,nphk->nhp', query, keys) / np.sqrt(keys.shape[-1])
  real = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
  weights = jax.nn.softmax(jnp.where(real[:, None], scores, -jnp.inf))
  read = jnp.einsum('nhp,nphk->nhk', weights, values)
  out = jnp.einsum('nhk,hkd->nd', read, attention['out']['kernel']
                   ) + attention['out']['bias'][None]
  return max_value / (1 + jnp.exp(-scalar(head['scalar'], out)))
