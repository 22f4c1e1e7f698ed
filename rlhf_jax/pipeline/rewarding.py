"""One reward of a config, bound to the models that the stages have trained.

Logged responses, the reference's own and those of a trained policy are all
scored by what `bind` returns, and a policy in training by the same components:
those of models as annotators on the device (`nodes_of_models`), the others on
the host (`on_texts`). So one reward has one meaning everywhere.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import errors
from rlhf_jax import types
from rlhf_jax.annotators import from_models
from rlhf_jax.evaluation import texts as texts_lib
from rlhf_jax.pipeline import artifacts
from rlhf_jax.rewards import components as components_lib
from rlhf_jax.rewards import nodes as nodes_lib
from rlhf_jax.rewards import parameters

Nodes = Mapping[str, Mapping[str, Any]]  # of `rewards.nodes`


def bind(world: artifacts.World, nodes: Nodes, pool: Mapping[str, Any], *,
         log: tuple[np.ndarray, np.ndarray] | None = None
         ) -> components_lib.Components:
  """The rewards of a config with everything that they read.

  Args:
    world: of the stage that asks.
    nodes: of the config.
    pool: of `programmatic.Functions`.
    log: tokens i32[..., T] and mask bool[..., T] of the responses on which
      TF-IDF is fitted: all that are logged, those of validation examples too
      (objectives.md 11.8 has the training responses). None: those of the
      world's log. Rows without a response are left out.

  Returns:
    The components; close them.

  Raises:
    ConfigError: kind 'file' is asked for, and no model has learned the score.
  """
  kinds = nodes_lib.kinds(nodes)
  column = world.column if 'file' in kinds else None
  if 'file' in kinds and 'gold' in world.upstream and column is None:
    raise errors.ConfigError(_not_learned(world))
  responses = []
  if 'tfidf' in kinds:
    arrays = log or [world.log.arrays[name] for name in ('tokens', 'mask')]
    tokens, mask = (x.reshape(-1, x.shape[-1]) for x in arrays)
    present = mask.any(axis=-1)
    responses = texts_lib.decode(
        world.corpus.tokenizer, tokens[present], mask[present])[1]
  return components_lib.Components(nodes, responses=responses, pool=pool,
                                   models=components_lib.Models(
      proxy=world.proxies if 'proxy' in kinds else None,
      gold=world.gold if 'gold' in kinds else None,
      file=column and column[1], column=column and column[0]))


def _not_learned(world: artifacts.World) -> str:
  """Why new responses have no score of a file, and what to do."""
  what = "kind 'file' scores new responses by the gold model, which "
  if world.corpus.world is not None:
    return what + ("of task 'reddit' learns the rule of the small world; use "
                   "kind 'gold', or give data.logged.path")
  return what + ('learned no score of the log; set data.logged.target to the '
                 'column')


def nodes_of_models(nodes: Nodes) -> list[dict[str, Any]]:
  """Annotators, in order, of the components that a trained model gives."""
  return [{'name': 'scores', 'component': node}
          for node in nodes_lib.by_models(nodes).values()]


def frozen_models(world: artifacts.World, nodes: Nodes
                  ) -> tuple[dict, dict, dict]:
  """Shapes, parameters and scales of those models, by kind of component."""
  models = {}
  for kind in nodes_lib.kinds(nodes_lib.by_models(nodes)):
    models[kind] = world.column[1] if kind == 'file' else getattr(
        world, {'proxy': 'proxies', 'gold': 'gold'}[kind])
  scales = {kind: {k: jnp.asarray(v, jnp.float32)
                   for k, v in model.scale.items()}
            for kind, model in models.items() if model.scale is not None}
  return ({kind: model.config for kind, model in models.items()},
          {kind: parameters.place(model.params)
           for kind, model in models.items()}, scales)


def score(batch: types.Batch, frozen: types.Frozen,
          configs: Mapping[str, Any], component: Mapping[str, Any]
          ) -> types.Batch:
  """Adds one component of a trained model to `scores`: an annotator's body.

  A `range` without a squash is not checked here, but in every evaluation.

  Args:
    batch: of a rollout.
    frozen: its `reward` and `reward_scale` hold the models, by kind.
    configs: their shapes, by kind.
    component: with every field, see `rewards.nodes`.
  """
  kind, squash = component['kind'], component['squash']

  def bounded(x):
    x = x / component['scale'] if component['scale'] != 1 else x
    if squash == 'sigmoid':
      return jax.nn.sigmoid(x)
    if squash == 'clip':
      return jnp.clip(x, *(component['range'] or (0, 1)))
    return x

  standardize = component.get('standardize', True)
  scored = from_models.scores(
      batch, configs[kind], frozen.reward[kind], squash=bounded,
      weight=component['weight'],
      scale=frozen.reward_scale.get(kind) if standardize else None,
      **component.get('aggregate', {'kind': 'single'}))
  if kind != 'proxy':  # whose members are those that may disagree
    scored = scored.replace(member_scores=batch.member_scores)
  return scored


def on_texts(world: artifacts.World, rewards: components_lib.Components
             ) -> Callable[[int, types.Batch, np.ndarray], np.ndarray]:
  """(step, batch, prompts) -> f32[B, K]: the components that read texts.

  NaN where a component drops a response, see `rewards.nodes`.

  Args:
    world: of the stage.
    rewards: of those components alone; `prompts` i64[B] are the places of the
      batch's among the pair prompts, whose right answers some compare with.
  """
  answers = world.corpus.pair_references

  def score_texts(step, batch, prompts):
    tokens, mask = np.asarray(batch.tokens), np.asarray(batch.mask)
    rows = [x.reshape(-1, x.shape[-1]) for x in (tokens, mask)]
    references = None if answers is None else [
        answers[at] for at in np.repeat(prompts, tokens.shape[1])]
    scored = rewards(*rows, *texts_lib.decode(world.corpus.tokenizer, *rows),
                     step=step, references=references)
    return rewards.total(scored.values).reshape(mask.shape[:2])

  return score_texts
