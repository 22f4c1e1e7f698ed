"""Labels of preference pairs: soft, voted and noisy; scores from upvotes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np


def check_share(name: str, x: jax.Array) -> None:
  """Refuses values outside [0, 1], NaN too, where they are known."""
  if isinstance(x, jax.core.Tracer):
    return
  shares = np.asarray(x)
  wrong = shares[~((shares >= 0) & (shares <= 1))]
  if wrong.size:
    raise ValueError(f'{name} must be in [0, 1], got {wrong[0]}.')


def flip(key: jax.Array, labels: jax.Array, *, rate: float,
         exact: bool = True) -> jax.Array:
  """Flips the preferred index of a fraction of pairs.

  Coste et al. 2024, https://arxiv.org/abs/2310.02743, section 4.3 (rate 0.25)
  and appendix F.6 (0.35). For the training split only, once, so that all
  members of an ensemble see the same noise.

  Args:
    key: PRNG key.
    labels: bool[N] or int[N] in {0, 1}, index of the preferred response.
    rate: fraction flipped, in [0, 1].
    exact: true flips round(rate * N) labels drawn without replacement; false
      flips each independently with probability `rate`.

  Returns:
    The labels, same shape and dtype.

  Raises:
    ValueError: if `rate` is out of range, or a label is (not under jit).
    AssertionError: if `labels` is not one axis of bool or int.
  """
  if not 0 <= rate <= 1:
    raise ValueError(f'rate must be in [0, 1], got {rate}.')
  chex.assert_rank(labels, 1)
  if labels.dtype != bool:
    chex.assert_type(labels, int)
    check_share('labels', labels)
  share = round(rate * labels.shape[0]) if exact else rate
  return _flipped(key, labels, share, exact)


@functools.partial(jax.jit, static_argnums=3)
def _flipped(key, labels, share, exact):
  """Labels with `share` of them flipped: a number of them if `exact`."""
  size = labels.shape[0]
  if exact:
    chosen = jax.random.permutation(key, size) < share
  else:
    chosen = jax.random.bernoulli(key, share, (size,))
  other = ~labels if labels.dtype == bool else 1 - labels
  return jnp.where(chosen, other, labels)


def soft_label(scores: jax.Array, *, temperature: float = 1.0,
               tie_margin: float = 0.0) -> jax.Array:
  """Probability that the first of two responses is preferred.

  Christiano et al. 2017, https://arxiv.org/abs/1706.03741, sections 2.2.2 and
  2.2.3: the logistic of the difference of scores; equal shares to a tie.

  Args:
    scores: float[B, 2].
    temperature: divides the difference, >= 0; 0 gives the label 1, 0 or, for
      equal scores, 0.5.
    tie_margin: a difference of at most this size is a tie, in score units,
      >= 0; 0 leaves all differences as they are.

  Returns:
    f32[B], in [0, 1], without gradient.

  Raises:
    ValueError: if `temperature` or `tie_margin` is negative.
    AssertionError: if shapes or dtypes disagree.
  """
  for name, value in (('temperature', temperature), ('tie_margin', tie_margin)):
    if not value >= 0:
      raise ValueError(f'{name} must be >= 0, got {value}.')
  chex.assert_shape(scores, (None, 2))
  chex.assert_type(scores, float)
  scores = jax.lax.stop_gradient(scores.astype(jnp.float32))
  gap = scores[:, 0] - scores[:, 1]
  if temperature == 0:
    probability = (jnp.sign(gap) + 1) / 2
  else:
    probability = jax.nn.sigmoid(gap / temperature)
  if tie_margin == 0:
    return probability
  return jnp.where(jnp.abs(gap) <= tie_margin, 0.5, probability)


def sample_labels(key: jax.Array, probability: jax.Array) -> jax.Array:
  """Draws the index of the preferred response of each pair.

  Args:
    key: PRNG key.
    probability: float[B], that the first is preferred (of `soft_label` or
      `vote_label`), in [0, 1].

  Returns:
    i32[B], 0 with that probability, else 1; each pair is a draw of its own.

  Raises:
    ValueError: if a probability is out of range; not checked under jit.
    AssertionError: if shape or dtype is wrong.
  """
  chex.assert_rank(probability, 1)
  chex.assert_type(probability, float)
  check_share('probability', probability)
  return 1 - jax.random.bernoulli(key, probability).astype(jnp.int32)


def vote_label(votes: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Labels of pairs that several annotators judged.

  PandaLM's test set, https://github.com/WeOpenML/PandaLM (annotator1 to 3):
  1 or 2 where response 1 or 2 is better, 0 where they are similar.

  Args:
    votes: int[B, A], in {0, 1, 2}; not checked under jit.

  Returns:
    majority: i32[B], the most frequent vote; 0 where two share that place.
      (PandaLM's script then takes the vote of the first annotator.)
    probability: f32[B], that the first is preferred: its votes and half the
      ties, over A; a soft label as in Christiano et al. 2017.

  Raises:
    ValueError: if A is 0 or a vote is none of 0, 1, 2.
    AssertionError: if shape or dtype is wrong.
  """
  chex.assert_rank(votes, 2)
  chex.assert_type(votes, int)
  if votes.shape[1] < 1:
    raise ValueError(f'votes needs an annotator, got shape {votes.shape}.')
  if not isinstance(votes, jax.core.Tracer):
    unknown = np.setdiff1d(votes, (0, 1, 2))
    if unknown.size:
      raise ValueError(f'votes must be 0, 1 or 2, got {unknown[0]}.')
  ties, first, second = (jnp.sum(votes == v, axis=1) for v in range(3))
  majority = jnp.where(
      (first > second) & (first > ties), 1,
      jnp.where((second > first) & (second > ties), 2, 0))
  probability = (first + 0.5 * ties) / votes.shape[1]
  return majority.astype(jnp.int32), probability.astype(jnp.float32)


def reward_noise(key: jax.Array, scores: jax.Array, *,
                 deviation: float) -> jax.Array:
  """Adds Gaussian noise to the scores that training sees.

  Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740, section 5.2.2 (1, 3
  and 5). Each sample has a draw of its own: the text's noise "for each
  prompt", shared by its samples, would leave RLOO and RAFT as they are.

  Args:
    key: PRNG key, another one for each rollout.
    scores: float[...].
    deviation: standard deviation in score units, >= 0.

  Returns:
    f32[...].

  Raises:
    ValueError: if `deviation` is negative.
    AssertionError: if `scores` is not float.
  """
  if not deviation >= 0:
    raise ValueError(f'deviation must be >= 0, got {deviation}.')
  chex.assert_type(scores, float)
  noise = jax.random.normal(key, scores.shape, jnp.float32)
  return scores.astype(jnp.float32) + deviation * noise


def upvote_score(upvotes: jax.Array, accepted: jax.Array) -> jax.Array:
  """Score of a StackExchange answer.

  Zhu et al. 2023, https://arxiv.org/abs/2306.02231, section 4.1: -1 without a
  positive number of upvotes, else round(log2(1 + upvotes)), half up, plus 1
  if accepted. (StackLLaMA gives 0 upvotes the score 0.)

  Args:
    upvotes: int[...].
    accepted: bool[...].

  Returns:
    f32[...].

  Raises:
    AssertionError: if shapes or dtypes disagree.
  """
  upvotes, accepted = jnp.asarray(upvotes), jnp.asarray(accepted)
  chex.assert_equal_shape([upvotes, accepted])
  chex.assert_type([upvotes, accepted], [int, bool])
  positive = jnp.maximum(upvotes, 0).astype(jnp.float32)
  score = jnp.floor(jnp.log2(1 + positive) + 0.5) + accepted
  return jnp.where(upvotes > 0, score, -1.0)
