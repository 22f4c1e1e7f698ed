"""A log of responses in a seeded order, and what its rewards are."""

import numpy as np

from rlhf_jax import errors
from rlhf_jax import streams
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import order
from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.evaluation import texts as texts_lib
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import labelled_pairs
from rlhf_jax.rewards import components as components_lib
from rlhf_jax.storage import files

SOURCES = ('pairs', 'corpus')


def load(world: artifacts.World, seed: int, source: str, label_noise: float,
         num_validation: int) -> tuple[corpus_lib.Log, np.ndarray, float]:
  """The log, the order of its examples, and the share of labels flipped.

  Args:
    world: of the stage.
    seed: of the study.
    source: one of `SOURCES`.
    label_noise: share of the labels of training pairs that is flipped.
    num_validation: examples that no policy learns from, last in the order.

  Raises:
    ConfigError: an argument is out of range, or the corpus has no log.
  """
  if source not in SOURCES:
    raise errors.ConfigError(
        f'source is {source!r}; there are {", ".join(SOURCES)}')
  place = lambda count: order.indices(
      streams.number(seed, 'logged'), 0, count, count)
  if source == 'pairs':
    log, flipped = _of_pairs(world, seed, label_noise, num_validation)
    rest = len(log.tokens) - num_validation
    # Those at the front, as `proxies` holds them out, with right labels. (Of
    # files they share at most one prompt with the others; the small world has
    # so few prompts that most of them recur.)
    return log, np.concatenate([
        num_validation + place(rest), np.arange(num_validation)]), flipped
  log = world.corpus.log
  if log is None:
    raise errors.ConfigError(
        "source is 'corpus', but config.data holds no log; set its name to "
        "'logged', or source to 'pairs'")
  if label_noise:
    raise errors.ConfigError(
        f"label_noise is {label_noise}, which flips labels of source 'pairs' "
        'alone; set it to 0')
  _check_split(num_validation, len(log.tokens))
  return log, place(len(log.tokens)), 0.0  # its file may be sorted


def _check_split(num_validation: int, count: int):
  if not 0 <= num_validation < count:
    raise errors.ConfigError(
        f'num_validation is {num_validation}, and there are {count} logged '
        'examples; leave some to train on')


def _of_pairs(world, seed, label_noise, clean) -> tuple[corpus_lib.Log, float]:
  """Pairs as noisy labels order them, and the share of labels flipped.

  The first `clean` pairs are ordered by gold.
  """
  if 'pairs' not in world.upstream:
    raise errors.ConfigError(
        "source is 'pairs', and this study has none; give source='corpus'")
  arrays = files.load_arrays(world.directory('pairs') / 'pairs.npz')
  best = labelled_pairs.preferred(arrays['gold_scores'])
  _check_split(clean, len(best))
  first = np.concatenate([best[:clean], labelled_pairs.flip(
      best[clean:], seed, label_noise)])
  rows = labelled_pairs.chosen_first(arrays, first)
  log = corpus_lib.Log(
      tokens=rows.tokens, mask=rows.mask,
      group=np.tile(np.arange(2, dtype=np.int32), (len(first), 1)),
      groups=('chosen', 'rejected'), scores={})
  return log, float(np.mean(first[clean:] != best[clean:]))


def score(rewards: components_lib.Components, log: corpus_lib.Log,
          coder: tokenizer_lib.Tokenizer) -> dict[str, np.ndarray]:
  """Rewards f32[N, K] by the names of `stages.logged`, 0 of a missing response.
  """
  present = log.mask.any(axis=-1)
  tokens, mask = log.tokens[present], log.mask[present]
  references = log.references and [
      log.references[example] for example in np.nonzero(present)[0]]
  # Without columns, models say what a file would have said.
  columns = {name: x[present] for name, x in log.scores.items()} or None
  scored = rewards(tokens, mask, *texts_lib.decode(coder, tokens, mask),
                   columns=columns, references=references)
  values = {name: rewards.total(x) if rewards.names
            else np.zeros(len(tokens), np.float32)
            for name, x in (('scores', scored.values),
                            ('raw_scores', scored.raw))}
  values |= {f'value_{name}': x for name, x in scored.values.items()}
  arrays = {name: np.zeros(present.shape, np.float32) for name in values}
  for name, x in values.items():
    arrays[name][present] = x
  return arrays


def agreement(scores: np.ndarray, present: np.ndarray) -> float:
  """Share of two responses of an example of which the first scores higher.

  Args:
    scores: f32[N, K].
    present: bool[N, K], where there is a response.
  """
  pairs = present[:, :, None] & present[:, None] & np.triu(
      np.ones((scores.shape[1],) * 2, bool), k=1)
  higher = scores[:, :, None] > scores[:, None]
  return float(higher[pairs].mean()) if pairs.any() else float('nan')
