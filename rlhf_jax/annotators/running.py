"""Annotators that remember or draw: (batch, state, **kwargs) -> (batch, state).

What they remember of earlier rollouts is `state.statistics`, a dictionary of
float32 arrays that is checkpointed with the rest of the state; `init` starts
it. Noise comes from `state.key`. Everything here is pure and runs under jit.

A response whose mask is all false is missing. It counts nowhere, and neither
does a score that is not finite: that stays in its own rollout, to be noticed,
and spoils no later one.
"""

from collections.abc import Mapping, Sequence
import functools
import numbers
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import streams
from rlhf_jax import types
from rlhf_jax.ops import advantages
from rlhf_jax.ops import ensembles
from rlhf_jax.ops import kl
from rlhf_jax.ops import masked
from rlhf_jax.ops import moments

SCALES = ('running', 'first')


def init(nodes: Sequence[Mapping[str, Any]], *,
         kl_coef: float | None = None) -> dict[str, Any]:
  """The statistics that a list of annotators starts with.

  Args:
    nodes: as for `annotators.chain`.
    kl_coef: what `adapt_kl_coef` starts from; None: what the first node that
      has a `kl_coef` says. Not read without a controller.

  Returns:
    Arrays f32[], of those annotators alone that are in `nodes`: 'kl_coef' of
    `adapt_kl_coef`, 'baseline' {'mean', 'count'} of `moving_average` and
    'score_moments' (`ops.moments.Moments`) of `scale_scores`.

  Raises:
    ValueError: if there is a controller and nothing positive to start from.
  """
  names = {node['name'] for node in nodes}
  statistics = {}
  if 'adapt_kl_coef' in names:
    if kl_coef is None:
      kl_coef = next((x['kl_coef'] for x in nodes if 'kl_coef' in x), None)
    if kl_coef is None or not kl_coef > 0:
      raise ValueError('kl_coef must be > 0, since adapt_kl_coef multiplies '
                       f'it, got {kl_coef}.')
    statistics['kl_coef'] = jnp.float32(kl_coef)
  if 'moving_average' in names:
    statistics['baseline'] = {x: jnp.float32(0) for x in ('mean', 'count')}
  if 'scale_scores' in names:
    statistics['score_moments'] = moments.init()
  return statistics


def need(batch: types.Batch, *names: str) -> list[jax.Array]:
  """Fields of a batch; a ValueError names one that nothing has filled."""
  for name in names:
    if getattr(batch, name) is None:
      raise ValueError(f'batch.{name} is None: an annotator that fills it has '
                       'to come before.')
  return [getattr(batch, name) for name in names]


def _seen(state, name):
  """An entry of the statistics, which an annotator cannot do without."""
  statistics = getattr(state, 'statistics', None) or {}
  if name not in statistics:
    raise ValueError(f'state.statistics has no {name!r}: start it with '
                     'running.init.')
  return statistics[name]


def _remember(state, **entries):
  return state.replace(statistics={**state.statistics, **entries})


def _counted(batch, values):
  """bool[B, K]: of the responses that are there, the finite `values`."""
  return batch.mask.any(axis=-1) & jnp.isfinite(values)


def noise(batch: types.Batch, state: types.TrainState, *,
          sigma: float) -> tuple[types.Batch, types.TrainState]:
  """Adds N(0, sigma^2) to `scores`, independently for each sample.

  Ahmadian et al. 2024, section 5.2.2, with sigma 1, 3 and 5; for training
  alone. A draw shared by the samples of a prompt would leave RLOO and RAFT as
  they are (objectives.md 7.7).

  Raises:
    ValueError: if `sigma` is negative.
  """
  if not sigma >= 0:
    raise ValueError(f'sigma must be >= 0, got {sigma}.')
  scores, = need(batch, 'scores')
  drawn = jax.random.normal(
      streams.child(state.key, 'noise'), scores.shape)
  return batch.replace(scores=scores + sigma * drawn), state


def scale_scores(batch: types.Batch, state: types.TrainState, *,
                 kind: str = 'running'
                 ) -> tuple[types.Batch, types.TrainState]:
  """Divides `scores` by a standard deviation (ddof 1), without centring them.

  As trlX does, before it clips them (objectives.md 2.8).

  Args:
    batch: `scores` and mask.
    state: with 'score_moments' in its statistics.
    kind: 'running', over all rollouts so far and this one; 'first', over the
      first rollout, ever after. A deviation of 0 changes nothing.

  Raises:
    ValueError: if `kind` is unknown.
  """
  if kind not in SCALES:
    raise ValueError(f'kind must be one of {SCALES}, got {kind!r}.')
  scores, = need(batch, 'scores')
  seen = _seen(state, 'score_moments')
  current = moments.update(seen, scores, _counted(batch, scores))
  if kind == 'first':
    current = jax.tree.map(
        functools.partial(jnp.where, seen.count > 0), seen, current)
  return batch.replace(scores=moments.normalize(
      scores, 0., moments.std(current))), _remember(
          state, score_moments=current)


def moving_average(batch: types.Batch, state: types.TrainState, *,
                   decay: float | None = None
                   ) -> tuple[types.Batch, types.TrainState]:
  """Advantages f32[B, K] against the mean score of *earlier* rollouts.

  Ahmadian et al. 2024, eq. 8; see `ops.advantages.moving_average`; missing
  responses are left out. The first baseline is 0.

  Args:
    batch: `scores` and mask.
    state: with 'baseline' in its statistics.
    decay: in [0, 1), share of the old mean that a rollout keeps; the first
      rollout's mean starts it. None weighs all scores alike, as the paper.

  Returns:
    The batch, with advantage 0 for a missing response, and the state.

  Raises:
    ValueError: if `decay` is out of range.
  """
  scores, = need(batch, 'scores')
  seen = _seen(state, 'baseline')
  baseline, mean, count = advantages.moving_average(
      seen['mean'], seen['count'], scores, mask=_counted(batch, scores),
      ema_decay=decay)
  advantage = jax.lax.stop_gradient(jnp.where(
      batch.mask.any(axis=-1), scores.astype(jnp.float32) - baseline, 0))
  return batch.replace(advantages=advantage), _remember(
      state, baseline={'mean': mean, 'count': count})


def _coefficient(state, kl_coef):
  """The adapted coefficient where there is one; a constant 0 is no penalty."""
  if isinstance(kl_coef, numbers.Real) and kl_coef == 0:
    return 0.
  return (getattr(state, 'statistics', None) or {}).get('kl_coef', kl_coef)


def kl_scores(batch: types.Batch, state: types.TrainState | None, *,
              kl_coef: float | jax.Array
              ) -> tuple[types.Batch, types.TrainState]:
  """Subtracts kl_coef times the sequence KL (k1) from `scores`.

  Ahmadian et al. 2024, section 2: R(x, y) = r(x, y) - beta log(pi / pi_ref).

  Args:
    batch: `scores`, `old_logprobs`, `ref_logprobs` and mask.
    state: 'kl_coef' in its statistics takes the place of `kl_coef`.
    kl_coef: score units per nat, >= 0; a 0 written here stays 0.
  """
  scores, old, ref = need(batch, 'scores', 'old_logprobs', 'ref_logprobs')
  penalized = advantages.kl_scores(
      scores, old, ref, batch.mask, kl_coef=_coefficient(state, kl_coef))
  return batch.replace(scores=penalized), state


def kl_rewards(batch: types.Batch, state: types.TrainState | None, *,
               kl_coef: float | jax.Array
               ) -> tuple[types.Batch, types.TrainState]:
  """`rewards` f32[B, K, T]: a KL penalty on each token, the score on the last.

  Ziegler et al. 2019, eq. 2; see `ops.advantages.shape_rewards`. Arguments are
  those of `kl_scores`; without a penalty (kl_coef = 0) no reference is read.
  """
  scores, = need(batch, 'scores')
  kl_coef = _coefficient(state, kl_coef)
  if isinstance(kl_coef, numbers.Real) and kl_coef == 0:
    logprobs = [jnp.zeros(batch.mask.shape)] * 2
  else:
    logprobs = need(batch, 'old_logprobs', 'ref_logprobs')
  return batch.replace(rewards=advantages.shape_rewards(
      scores, *logprobs, batch.mask, kl_coef=kl_coef)), state


def adapt_kl_coef(batch: types.Batch, state: types.TrainState, *,
                  target: float, horizon: float
                  ) -> tuple[types.Batch, types.TrainState]:
  """The KL coefficient of the next rollout, by the proportional controller.

  Ziegler et al. 2019, section 2.2; `ops.kl.adaptive_coef`. It observes the
  mean over responses of the sum of their tokens' k1. Put it after `kl_scores`
  or `kl_rewards`, which then still use the old coefficient, and before what
  clears the mask of responses (`keep_best`): those were sampled too.

  Args:
    batch: `old_logprobs`, `ref_logprobs` and mask.
    state: with 'kl_coef' in its statistics.
    target: nats per response, > 0.
    horizon: responses, > 0.
  """
  sums = _sequence_kl(batch, 'k1')
  counted, old = _counted(batch, sums), _seen(state, 'kl_coef')
  new = kl.adaptive_coef(
      old, masked.masked_mean(sums, counted), target=target, horizon=horizon,
      num_samples=counted.size)
  # The step is linear in the number of samples, which is not known before.
  return batch, _remember(state, kl_coef=old + (new - old) * counted.mean())


def _sequence_kl(batch, kind):
  """f32[B, K]: sum over the response's tokens, in nats."""
  estimate = kl.estimate(*need(batch, 'old_logprobs', 'ref_logprobs'),
                         kind=kind)
  return masked.masked_sum(estimate, batch.mask, axis=-1)


def metrics(batch: types.Batch) -> dict[str, jax.Array]:
  """What a rollout looks like after its annotators.

  Args:
    batch: of `annotators.chain`; what it has not is not measured.

  Returns:
    f32[] each, means over the responses that are there; deviations and
    variances are the population's:
      'rollout/score', 'rollout/score_std': `scores` as they stand, which
        after `kl_scores` hold its penalty.
      'rollout/reward': what is trained on, with the KL penalty: sum over
        tokens of `rewards`, or `scores` where there are none.
      'rollout/kl_k1', 'rollout/kl_k2', 'rollout/kl_k3': sums over tokens, in
        nats, of the policy that sampled to the reference.
      'rollout/length': tokens, EOS included.
      'rollout/ensemble_variance': over members, in score units squared.
      'rollout/advantage_std': over responses, or tokens.
      'rollout/explained_variance': 1 - var(returns - old_values) /
        var(returns), over tokens: 1 at best, 0 of a constant; NaN where all
        returns are equal.
  """
  present = batch.mask.any(axis=-1)
  mean = lambda x: masked.masked_mean(x, present)
  deviation = lambda x, mask: moments.std(
      moments.update(moments.init(), x, mask), ddof=0)
  row = {'rollout/length': mean(batch.mask.sum(axis=-1))}
  if batch.scores is not None:
    row['rollout/score'] = row['rollout/reward'] = mean(batch.scores)
    row['rollout/score_std'] = deviation(batch.scores, present)
  if batch.rewards is not None:
    row['rollout/reward'] = mean(
        masked.masked_sum(batch.rewards, batch.mask, axis=-1))
  if batch.old_logprobs is not None and batch.ref_logprobs is not None:
    for kind in kl.KINDS:
      row[f'rollout/kl_{kind}'] = mean(_sequence_kl(batch, kind))
  if batch.member_scores is not None:
    row['rollout/ensemble_variance'] = mean(
        ensembles.variance(batch.member_scores))
  if batch.advantages is not None:
    whole = batch.advantages.ndim == present.ndim
    row['rollout/advantage_std'] = deviation(
        batch.advantages, present if whole else batch.mask)
  if batch.returns is not None and batch.old_values is not None:
    missed = deviation(batch.returns - batch.old_values, batch.mask)
    row['rollout/explained_variance'] = 1 - (
        missed / deviation(batch.returns, batch.mask)) ** 2
  return row


# By the names that rows and configs use.
RUNNING = {f.__name__: f for f in (
    noise, scale_scores, moving_average, kl_scores, kl_rewards,
    adapt_kl_coef)}
