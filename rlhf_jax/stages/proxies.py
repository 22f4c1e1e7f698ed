"""An ensemble of proxy reward models on noisy gold labels.

Coste et al. 2024, section 4.3: all members see the same pairs and the same
flipped labels; they differ in the initialisation of the head and in the order
of the data.
"""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import objectives
from rlhf_jax import sources
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.data import load as load_lib
from rlhf_jax.evaluation import statistics
from rlhf_jax.models import pretrained
from rlhf_jax.ops import labels as labels_lib
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import fit as fit_lib
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.storage import files


def _chosen_first(arrays, preferred) -> types.Batch:
  """Reorders each pair so that the preferred response comes first."""
  order = np.stack([preferred, 1 - preferred], axis=1)[..., None]
  take = lambda x: np.take_along_axis(x, order, axis=1)
  return types.Batch(tokens=take(arrays['tokens']), mask=take(arrays['mask']))


def _load(context, pairs, key, label_noise, held_out, num_pairs):
  """Training rows, validation rows, and the share of labels flipped."""
  parts = [files.load_arrays(context.directory_of(stage) / 'pairs.npz')
           for stage in ([pairs] if isinstance(pairs, str) else pairs)]
  arrays = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
  scores = arrays['gold_scores']
  preferred = (scores[:, 1] > scores[:, 0]).astype(np.int32)
  total = len(scores) if num_pairs is None else held_out + num_pairs
  ends = np.minimum(np.cumsum([len(p['gold_scores']) for p in parts]), total)
  noisy, start = [], held_out
  # Each stage has its own noise, so that a label given once stays as it is.
  for index, end in enumerate(ends):
    own = key if index == 0 else jax.random.fold_in(key, index)
    if end > start:
      noisy.append(labels_lib.flip(own, preferred[start:end],
                                   rate=label_noise))
      start = end
  noisy = np.concatenate(noisy)
  part = lambda at: {k: v[at] for k, v in arrays.items()}
  at = slice(held_out, total)
  return (_chosen_first(part(at), noisy),
          _chosen_first(part(slice(held_out)), preferred[:held_out]),
          float(np.mean(noisy != preferred[at])))


def _init(context, model, config, keys, trunks, head_scale):
  """Members on one shared SFT trunk, or each on one of its own."""
  load = lambda name: artifacts.load_policy(
      context, name, model, config.vocab_size)[1]
  if len(trunks) == 1:
    return reward_models.init_members(
        config, keys, trunk=load(trunks[0]), head_scale=head_scale)
  members = [reward_models.init(config, k, trunk=load(t), head_scale=head_scale)
             for k, t in zip(keys, trunks, strict=True)]
  return jax.tree.map(lambda *x: jnp.stack(x), *members)


def _quality(config, params, validation) -> tuple[np.ndarray, ...]:
  """Scores [E, N, 2] of held-out pairs; Bradley-Terry loss, accuracy [E]."""
  scores = reward_models.score_rows(
      config, params, validation.tokens, validation.mask)
  loss = np.logaddexp(0, scores[..., 1] - scores[..., 0]).mean(axis=-1)
  return scores, loss, statistics.pair_accuracy(scores)


def _validation(config, rows, validation, batch_size):
  """Arguments of `fit_lib.fit` that validate after every epoch."""
  def row(step, state):
    _, loss, accuracy = _quality(config, state.params, validation)
    found = {'epoch': step * batch_size / len(rows.tokens),
             'loss': loss.mean(), 'accuracy': accuracy.mean()}
    for member in range(len(loss)):
      found |= {f'loss_{member}': loss[member],
                f'accuracy_{member}': accuracy[member]}
    return found
  return {'evaluate': row, 'evaluate_every': -(-len(rows.tokens) // batch_size)}


def run(context, *, seed: int, data: dict, pairs: str | Sequence[str],
        trunks: list[str], model: dict, num_members: int, label_noise: float,
        num_epochs: int, batch_size: int, optimizer: dict, held_out: int,
        num_pairs: int | None = None, head_scale: float = 1.0,
        num_microbatches: int = 1, validate: bool = False,
        training: dict | None = None) -> dict:
  """Trains the members by one vmapped step.

  `checkpoints` then holds leaves [E, ...], and `scale.npz` each member's mean
  and standard deviation on the held-out responses. With `validate`, a line of
  `evaluation.jsonl` holds the epoch, the Bradley-Terry loss (nats) and the
  accuracy on the held-out pairs, means over members, and those of each,
  `loss_0` and so on.

  Args:
    context: of the stage.
    seed: of the noise, the heads and the orders.
    data: config node of the corpus.
    pairs: stage that holds the pairs, or several, whose pairs are all of
      them in this order.
    trunks: stages that hold SFT trunks: one shared, or one for each member.
    model: shape of the trunk.
    num_members: E.
    label_noise: exact share of the training labels of each stage that is
      flipped.
    num_epochs: over the training pairs.
    batch_size: pairs a step and member.
    optimizer: of `train.optimizer`.
    held_out: pairs kept, with clean labels, for validation: the first.
    num_pairs: training pairs used, the first of the others (Coste et al.
      2024, figure 9); None: all.
    head_scale: see `reward_models.init`.
    num_microbatches: see `train.make_train_step`.
    validate: before training and after each epoch (Coste et al. 2024, figure
      15).
    training: save_every and log_every of `fit_lib.fit`.
  """
  corpus = load_lib.load(data, seed)
  config = pretrained.config(model, corpus.tokenizer.vocab_size)
  noise_key, head_key, key = jax.random.split(
      jax.random.fold_in(jax.random.key(seed), 2), 3)
  rows, validation, flipped = _load(
      context, pairs, noise_key, label_noise, held_out, num_pairs)

  num_steps = num_epochs * len(rows.tokens) // batch_size
  tx = train.optimizer(num_steps=num_steps, **optimizer)
  params = _init(context, model, config,
                 jax.random.split(head_key, num_members), trunks, head_scale)
  state = jax.vmap(lambda p, k: train.init_state(p, tx, k))(
      params, jax.random.split(key, num_members))
  step_fn = jax.vmap(train.make_train_step(
      functools.partial(reward_models.forward, config),
      objectives.get('bradley_terry'), tx,
      num_microbatches=num_microbatches))
  source = sources.offline_members(
      rows, batch_size=batch_size,
      seeds=[seed * 1000 + member for member in range(num_members)])
  state, last = fit_lib.fit(
      context, state, source, jax.jit(step_fn, donate_argnums=0),
      num_steps=num_steps, **(training or {}),
      **(_validation(config, rows, validation, batch_size) if validate else {}),
      tokens_per_step=int(
          num_members * batch_size * 2 * rows.mask.sum(axis=-1).mean()))

  artifacts.write_model(context, 'reward', model, corpus.tokenizer,
                     num_members=num_members)
  held, _, accuracy = _quality(config, state.params, validation)
  every = held.reshape(num_members, -1)
  files.save_arrays(context.directory / 'scale.npz',
                    mean=every.mean(axis=1), std=every.std(axis=1))
  return {'accuracy': float(accuracy.mean()),
          'accuracies': [float(a) for a in accuracy],
          'flipped': flipped, **last}
