"""The optimizer of everything that is trained."""

from typing import Any

import jax
import optax


def decays(params: Any) -> Any:
  """Which leaves shrink by weight decay: all but biases and scales of norms.

  Args:
    params: a pytree, whose last keys are the names of `models.transformer`.

  Returns:
    The same tree of bool.
  """
  def decay(path, unused_leaf):
    name = jax.tree_util.keystr(path[-1:], simple=True)
    return name != 'scale' and not name.endswith('bias')
  return jax.tree_util.tree_map_with_path(decay, params)


def adamw(*, learning_rate: float, num_steps: int, warmup_steps: int = 0,
          schedule: str = 'cosine', clip_norm: float | None = 1.0,
          weight_decay: float = 0.0, decay_all: bool = False,
          b1: float = 0.9, b2: float = 0.999) -> optax.GradientTransformation:
  """AdamW with warm-up, a schedule over `num_steps` and clipping.

  Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101.

  Args:
    learning_rate: the largest, after the warm-up.
    num_steps: of the schedule, warm-up included.
    warmup_steps: from 0 to it.
    schedule: 'cosine', to 0 at the last step, or 'constant'.
    clip_norm: of the gradient, all leaves together; None or 0: no clipping.
    weight_decay: of each step, times the learning rate.
    decay_all: whether biases and the scales of norms decay too, as where an
      optimizer is given all parameters alike (trlX); they do not in the
      Trainer of transformers.
    b1: decay of the first moment.
    b2: of the second.

  Raises:
    ValueError: a number is negative, or the schedule is unknown.
  """
  for name, value in dict(
      learning_rate=learning_rate, warmup_steps=warmup_steps,
      clip_norm=clip_norm or 0, weight_decay=weight_decay).items():
    if value < 0:
      raise ValueError(f'{name} must be >= 0, got {value}.')
  if schedule == 'cosine':
    rate = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup_steps, max(num_steps, warmup_steps + 1))
  elif schedule == 'constant':
    rate = optax.join_schedules(
        [optax.linear_schedule(0.0, learning_rate, warmup_steps),
         optax.constant_schedule(learning_rate)], [warmup_steps])
  else:
    raise ValueError(f"schedule is {schedule!r}, not 'cosine' or 'constant'.")
  clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
  return optax.chain(clip, optax.adamw(
      rate, b1=b1, b2=b2, weight_decay=weight_decay,
      mask=None if decay_all else decays))
