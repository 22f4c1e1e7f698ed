"""What the wiring tests share: their world, and how close is close."""

import functools

import jax
import numpy as np
from wiring import reference_models as models
import worlds

from rlhf_jax.pipeline import artifacts

OPTIMIZER = dict(learning_rate=1e-2, warmup_steps=1, schedule='cosine',
                 clip_norm=.5, weight_decay=.1, b1=.9, b2=.95)
close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)
policy_of = models.precise(models.policy)


def host(tree):
  """A copy that no donation can take away."""
  def copy(x):
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      return jax.random.wrap_key_data(np.array(jax.random.key_data(x)))
    return np.array(x)
  return jax.tree.map(copy, tree)


@functools.cache
def world():
  """The untrained world with a policy that ends some of its responses."""
  def make(workdir):
    worlds.copy(worlds.untrained(), workdir)
    params = host(artifacts.restore_policy(workdir / 'sft').params)
    coder, prompts = worlds.corpus().tokenizer, worlds.corpus().pair_prompts
    states = models.precise(models.hidden_states)(params, prompts.tokens)
    mean = states.mean(axis=(0, 1))
    # A logit near 4 in every state: about a quarter of the probability.
    params.setdefault('unembed', params['embed'].copy())
    params['unembed'][coder.eos_id] = 4 * mean / (mean**2).sum()
    worlds.replace(workdir, 'sft', params)
  return worlds.once('wired', make)


def close_trees(test, value, wanted, start, what, exact=None):
  """How far two trees have gone from `start` differs by little of it.

  `exact`: a tree of bools, the numbers to compare; all without it.
  """
  exact = exact or jax.tree.map(lambda x: np.ones(x.shape, bool), wanted)

  def close(path, value, wanted, start, exact):
    moved = np.linalg.norm((wanted - start)[exact])
    off = np.linalg.norm((np.asarray(value, np.float64) - wanted)[exact])
    test.assertLess(off, 2e-4 * moved + 1e-7,
                    f'{what} {jax.tree_util.keystr(path)}')

  jax.tree_util.tree_map_with_path(close, host(value), wanted, start, exact)
