"""The logged responses that offline methods learn from, with their rewards.

Baheti et al. 2024, https://arxiv.org/abs/2305.14718, section 2; objectives.md
9. They are the pairs that the reward models of the study learn from, or those
of a file. All offline methods of a seed read the same responses and rewards,
and validate on the same examples.
"""

from typing import Any

import jax
import numpy as np

from rlhf_jax import errors
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import order
from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.evaluation import monitor
from rlhf_jax.ops import labels as labels_lib
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import rewarding
from rlhf_jax.pipeline import rows as rows_lib
from rlhf_jax.rewards import components as components_lib
from rlhf_jax.storage import files

SOURCES = ('pairs', 'corpus')


def _check_split(num_validation: int, count: int):
  if not 0 <= num_validation < count:
    raise errors.ConfigError(
        f'num_validation is {num_validation}, and there are {count} logged '
        'examples; leave some to train on')


def _chosen_first(context, pairs, seed, label_noise, clean
                  ) -> tuple[corpus_lib.Log, float]:
  """Pairs as noisy labels order them, and the share of labels flipped.

  The first `clean` pairs are ordered by gold.
  """
  arrays = files.load_arrays(context.directory_of(pairs) / 'pairs.npz')
  scores = arrays['gold_scores']
  _check_split(clean, len(scores))
  best = (scores[:, 1] > scores[:, 0]).astype(np.int32)
  # The key of `proxies`: of as many pairs, the same ones are flipped.
  key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 2), 3)[0]
  first = np.concatenate([
      best[:clean], labels_lib.flip(key, best[clean:], rate=label_noise)])
  ranking = np.stack([first, 1 - first], axis=1)
  take = lambda x: np.take_along_axis(x, ranking[..., None], axis=1)
  log = corpus_lib.Log(
      tokens=take(arrays['tokens']), mask=take(arrays['mask']),
      group=np.tile(np.arange(2, dtype=np.int32), (len(first), 1)),
      groups=('chosen', 'rejected'), scores={})
  return log, float(np.mean(first[clean:] != best[clean:]))


def _load(context, corpus, pairs, source, seed, label_noise, num_validation
          ) -> tuple[corpus_lib.Log, np.ndarray, float]:
  """The log, the order of its examples, and the share of labels flipped."""
  if source not in SOURCES:
    raise errors.ConfigError(
        f'source is {source!r}; there are {", ".join(SOURCES)}')
  if source == 'corpus' and corpus.log is None:
    raise errors.ConfigError(
        "source is 'corpus', but config.data holds no log; set its name to "
        "'logged', or source to 'pairs'")
  if source == 'corpus' and label_noise:
    raise errors.ConfigError(
        f"label_noise is {label_noise}, which flips labels of source 'pairs' "
        'alone; set it to 0')
  if source == 'corpus':  # whose file may be sorted
    count = len(corpus.log.tokens)
    _check_split(num_validation, count)
    return corpus.log, order.indices(seed, 0, count, count), 0.0
  log, flipped = _chosen_first(
      context, pairs, seed, label_noise, num_validation)
  rest = len(log.tokens) - num_validation
  # Those at the front, as `proxies` holds them out, with right labels. (Of
  # files they share at most one prompt with the others; the small world has
  # so few prompts that most of them recur.)
  return log, np.concatenate([
      num_validation + order.indices(seed, 0, rest, rest),
      np.arange(num_validation)]), flipped


def _score(rewards: components_lib.Components, log: corpus_lib.Log,
           coder: tokenizer_lib.Tokenizer) -> dict[str, np.ndarray]:
  """Rewards f32[N, K] by the names of `run`, 0 of a missing response."""
  present = log.mask.any(axis=-1)
  tokens, mask = log.tokens[present], log.mask[present]
  references = log.references and [
      log.references[example] for example in np.nonzero(present)[0]]
  # Without columns, models say what a file would have said.
  columns = {name: x[present] for name, x in log.scores.items()} or None
  scored = rewards(tokens, mask, *monitor.decode(coder, tokens, mask),
                   columns=columns, references=references)
  found = {'scores': rewards.total(scored.values),
           'raw_scores': rewards.total(scored.raw)}
  found |= {f'value_{name}': x for name, x in scored.values.items()}
  arrays = {name: np.zeros(present.shape, np.float32) for name in found}
  for name, x in found.items():
    arrays[name][present] = x
  return arrays


def _agreement(scores: np.ndarray, present: np.ndarray) -> float:
  """Share of two responses of an example of which the first scores higher."""
  pairs = present[:, :, None] & present[:, None] & np.triu(
      np.ones((scores.shape[1],) * 2, bool), k=1)
  higher = scores[:, :, None] > scores[:, None]
  return float(higher[pairs].mean()) if pairs.any() else float('nan')


def run(context, *, seed: int, data: dict, policy: str, policy_model: dict,
        gold: str, gold_model: dict, pairs: str, source: str,
        label_noise: float, components: dict[str, dict[str, Any]],
        num_validation: int, proxies: str | None = None,
        proxy_model: dict | None = None, num_members: int | None = None,
        pool: dict | None = None) -> dict:
  """Scores the log; `logged.npz` then holds N examples of K responses.

  In a seeded order, the `num_validation` examples that no policy learns from
  last: tokens, mask [N, K, T]; group i32[N, K], an index into `groups` of the
  result, -1 where there is no response; example i64[N], where it was in the
  source; scores f32[N, K], the weighted sum of the components; raw_scores
  f32[N, K], the same sum before they are squashed; value_<component> f32[N,
  K]. The scores of a missing response are 0.

  Args:
    context: of the stage.
    seed: of the noise and the order.
    data: config node of the corpus.
    policy: stage that holds the SFT policy, by which the corpus is known.
    policy_model: its shape; not read, for nothing is sampled.
    gold: stage that holds the gold reward model.
    gold_model: its shape.
    pairs: stage that holds pairs, and sets the zero and unit of gold scores.
    source: 'pairs', of that stage, the one of higher gold score as 'chosen'
      before the 'rejected' one; 'corpus', the log of the corpus.
    label_noise: exact share of the training pairs whose labels are flipped,
      by what `proxies` flips if its `held_out` is `num_validation`.
    components: of `rewarding.build`.
    num_validation: examples, with clean labels: of 'pairs' the first.
    proxies: stage that holds an ensemble, where a component reads it.
    proxy_model: shape of its members.
    num_members: E.
    pool: of `programmatic.Functions`.

  Returns:
    Beside `source`, counts and `groups`, of the training examples alone:
    `flipped`; `agreement`, the share of two responses of an example of which
    the first has the higher score; `unfinished`, the share without EOS;
    `score_mean` and mean_<component>. `upper` is the largest score that there
    can be.

  Raises:
    ConfigError: an argument is out of range, or the corpus has no log.
    RewardError: a component gives no usable value, see `components`.
  """
  del policy_model
  corpus = artifacts.load_corpus(context, data, seed, policy)
  log, at, flipped = _load(
      context, corpus, pairs, source, seed, label_noise, num_validation)
  with rewarding.build(
      context, components, corpus=corpus, gold=gold, gold_model=gold_model,
      pairs=pairs, proxies=proxies, proxy_model=proxy_model,
      num_members=num_members, pool=pool, log=(log.tokens, log.mask)
  ) as rewards:
    arrays = _score(rewards, log, corpus.tokenizer)
    upper = rewards.upper
  arrays |= {'tokens': log.tokens, 'mask': log.mask, 'group': log.group,
             'example': np.arange(len(at))}
  arrays = {name: x[at] for name, x in arrays.items()}
  files.save_arrays(context.directory / 'logged.npz', **arrays)

  part = {k: x[:len(at) - num_validation] for k, x in arrays.items()}
  present = part['mask'].any(axis=-1)
  finished = rows_lib.finished(
      part['tokens'], part['mask'], corpus.tokenizer.eos_id)[present]
  mean = lambda name: float(part[name][present].mean())
  return {
      'source': source, 'examples': len(at), 'num_validation': num_validation,
      'responses': int(arrays['mask'].any(axis=-1).sum()),
      'groups': list(log.groups), 'flipped': flipped,
      'agreement': _agreement(part['scores'], present),
      'unfinished': float(1 - finished.mean()), 'upper': upper,
      'score_mean': mean('scores')} | {
          f'mean_{name}': mean(f'value_{name}') for name in components}
