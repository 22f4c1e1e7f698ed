"""The named rewards of a study, bound to the models that its stages trained.

Logged responses, the reference's own and those of a trained policy are all
scored by what `build` returns, so that one reward has one meaning.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rlhf_jax import errors
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.evaluation import monitor
from rlhf_jax.models import pretrained
from rlhf_jax.pipeline import artifacts
from rlhf_jax.rewards import components
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.storage import files

MODELS = ('gold', 'proxy', 'file')  # kinds that a trained model answers


def _gold(context, corpus, gold, gold_model) -> Callable[..., np.ndarray]:
  """(tokens, mask) -> f32[N], the gold model's score as it is."""
  config = pretrained.config(gold_model, corpus.tokenizer.vocab_size)
  params = artifacts.load_members(context, gold, config, None)
  return lambda tokens, mask: reward_models.score_rows(
      config, params, tokens, mask)[0]


def _proxy(context, corpus, proxies, model, num_members
           ) -> Callable[..., np.ndarray]:
  """(tokens, mask) -> f32[N], mean of the members, standardised."""
  config = pretrained.config(model, corpus.tokenizer.vocab_size)
  params = artifacts.load_members(context, proxies, config, num_members)
  scale = files.load_arrays(context.directory_of(proxies) / 'scale.npz')
  mean, std = (scale[name][:, None] for name in ('mean', 'std'))

  def score(tokens, mask):
    found = reward_models.score_rows(config, params, tokens, mask)
    return ((found - mean) / np.where(std == 0, 1, std)).mean(axis=0)

  return score


def kinds(nodes: Mapping[str, Mapping[str, Any]]) -> set[str]:
  """The kinds of rewards that a config asks for."""
  return {node.get('kind') for node in nodes.values()}


def build(context: Any, nodes: Mapping[str, Mapping[str, Any]], *,
          corpus: corpus_lib.Corpus, gold: str, gold_model: dict, pairs: str,
          proxies: str | None = None, proxy_model: dict | None = None,
          num_members: int | None = None, pool: Mapping[str, Any] | None = None,
          log: tuple[np.ndarray, np.ndarray] | None = None
          ) -> components.Components:
  """The rewards of a config with everything that they read.

  Args:
    context: of the stage that asks.
    nodes: of `components.Components`.
    corpus: of the study.
    gold: stage that holds the gold model: kind 'gold', in standard deviations
      of the SFT policy's samples from their mean, and kind 'file', in the
      units of the score that the model was trained on.
    gold_model: its shape.
    pairs: stage whose samples set that zero and that unit.
    proxies: stage that holds an ensemble: kind 'proxy', the mean of its
      standardised members.
    proxy_model: its shape.
    num_members: E.
    pool: of `programmatic.Functions`.
    log: tokens i32[..., T] and mask bool[..., T] of the logged responses, on
      which TF-IDF is fitted: on all that are given, those of validation
      examples too (objectives.md 11.8 has the training responses). Rows
      without a response are left out.

  Returns:
    The components; close them.

  Raises:
    ConfigError: kind 'file' is asked for, and the gold model has learned no
      score of a file.
  """
  models, asked = {}, kinds(nodes)
  if asked & {'gold', 'file'}:
    score = _gold(context, corpus, gold, gold_model)
    (mean, std), _ = artifacts.score_scales(context, corpus, pairs)
    models['gold'] = lambda *rows: (score(*rows) - mean) / std
    learned = context.result_of(gold)
    if 'file' in asked and 'target_mean' not in learned:
      raise errors.ConfigError(_not_learned(corpus))
    if 'target_mean' in learned:
      unit = learned['target_mean'], learned['target_std']
      models[f'file:{corpus.log_target}'] = (
          lambda *rows: unit[0] + unit[1] * score(*rows))
  if 'proxy' in asked:
    models['proxy'] = _proxy(
        context, corpus, proxies, proxy_model, num_members)
  responses = []
  if 'tfidf' in asked:
    tokens, mask = (x.reshape(-1, x.shape[-1]) for x in log)
    there = mask.any(axis=-1)
    responses = monitor.decode(
        corpus.tokenizer, tokens[there], mask[there])[1]
  return components.Components(
      nodes, models=models, responses=responses, pool=pool or {})


def _not_learned(corpus: corpus_lib.Corpus) -> str:
  """Why new responses have no score of a file, and what to do."""
  what = "kind 'file' scores new responses by the gold model, which "
  if corpus.world is not None:
    return what + ("of task 'reddit' learns the rule of the small world; use "
                   "kind 'gold', or give data.logged.path")
  return what + ('learned no score of the log; set data.logged.target to the '
                 'column')


def of_log(context: Any, nodes: Mapping[str, Mapping[str, Any]], logged: str,
           pool: Mapping[str, Any], **models) -> components.Components:
  """As `build`, with TF-IDF of the responses of a stage `logged`, all of them.

  Raises:
    ConfigError: as `build`.
  """
  arrays = files.load_arrays(context.directory_of(logged) / 'logged.npz')
  return build(context, nodes, pool=pool,
               log=(arrays['tokens'], arrays['mask']), **models)
