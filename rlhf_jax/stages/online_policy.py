"""One policy trained online by one row of the algorithm table.

Prompts are answered by the current policy, the answers scored by a reward of
the config, and the policy is updated one or more times on each such rollout.
Every method runs through here; what differs is the row and its arguments.
"""

from collections.abc import Mapping
import contextlib
import functools
from typing import Any

import numpy as np

from rlhf_jax import sources
from rlhf_jax import streams
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import fit as fit_lib
from rlhf_jax.pipeline import methods
from rlhf_jax.pipeline import online_methods
from rlhf_jax.pipeline import online_models
from rlhf_jax.pipeline import policies
from rlhf_jax.pipeline import rewarding
from rlhf_jax.rewards import nodes as nodes_lib
from rlhf_jax.storage import files

NEEDS = ('reference',)
READS = ('policy', 'gold', 'pairs', 'proxies', 'log')


def run(context, *, seed: int, data: dict, upstream: Mapping[str, Any],
        run: Mapping[str, Any], measure: Mapping[str, Any], part: int,
        training: Mapping[str, int]) -> dict:
  """Trains, evaluates on the way, and writes what a report reads.

  `evaluation.jsonl` has a line for every evaluation, `metrics.jsonl` for
  logged rollouts, `updates.jsonl` for optimizer steps; `texts/` and
  `final.jsonl` hold responses, `training/` checkpoints of everything and
  `checkpoints/` the trained policy alone.

  Args:
    context: of the stage.
    seed: of the study.
    data: config node of the corpus.
    upstream: stages by role, see `artifacts`: `policy` goes on, the reference
      is that of the KL.
    run: node `online` of the config: algorithm, arguments, reward, kl,
      rollout, updates, value, num_steps (rollouts), optimizer, evaluation.
    measure: of `policies.watch`.
    part: which of several trainings of one seed; each has prompts in an order
      of its own, and noise.
    training: save_every and log_every of `fit.Loop`.

  What is counted as responses or samples are those trained on; with
  `rollout.resample` more are drawn, 'rollout/rounds' times as many.
  """
  world = artifacts.World(context, data, seed, upstream)
  key = functools.partial(streams.key, seed, 'online', part)
  model, reward, rollout = world.start(), run['reward'], run['rollout']
  shapes, frozen, scales = rewarding.frozen_models(
      world, reward['components'])
  trainable, value_config = model.trainable, None
  row = online_methods.of_run(run)
  targets = model.trainable if online_models.mask(row) else None
  if methods.has_values(row):
    value_config = policies.value_config(world, run['value'])
    trainable = policies.add_value_head(
        world, trainable, run['value'], key('value_head'))
  method = online_methods.make(run, world, model.config, shapes, value_config)
  programs = online_methods.programs(method)
  state = train.place_state(
      trainable, programs.tx, key('state'), targets).replace(
          statistics=online_methods.statistics(run, method.nodes))
  artifacts.write_model(context, 'policy', world.node, world.corpus.tokenizer,
                        texts=artifacts.texts_of(world.corpus))

  stops = world.corpus.tokenizer.stops
  steps, updates = run['num_steps'], online_methods.updates_per_rollout(run)
  responses = rollout['batch_size'] * rollout['samples']
  view = policies.View(model, steps, lambda step: {
      'updates': step * updates, 'samples': step * responses})
  by_texts = nodes_lib.by_texts(reward['components'])
  with contextlib.ExitStack() as stack:
    score = None
    if by_texts:
      score = rewarding.on_texts(world, stack.enter_context(
          rewarding.bind(world, by_texts, measure['pool'])))
    watch = stack.enter_context(policies.watch(
        world, measure, run['evaluation'], streams.key(seed, 'evaluation'),
        view))
    source = sources.online(
        world.corpus.pair_prompts,
        functools.partial(programs.sampler, stops=stops), programs.annotated,
        batch_size=rollout['batch_size'], score=score,
        seed=streams.number(seed, 'online', part, 'order'),
        chunk_size=rollout['chunk_size'], multiple=(
            run['updates']['num_minibatches']
            * run['updates']['num_microbatches']),
        resample=sources.Resample(rollout['resample'], programs.varied)
        if rollout['resample'] else None)
    state, last = fit_lib.fit(
        context, state, source, programs.updates, watch=watch,
        loop=fit_lib.Loop(steps, folder='training', **training),
        frozen=types.Frozen(
            reference=world.reference.params, reward=frozen,
            reward_scale=scales, base=model.base, stops=stops))
  policies.save_policy(context, steps, state.params)
  lengths = [line['rollout/length'] for line in files.read_jsonl(
      context.directory / 'metrics.jsonl')]
  return {**fit_lib.rate(last, responses * steps * np.mean(lengths)),
          'rollouts': steps, 'updates': steps * updates,
          'responses': steps * responses,
          'responses_per_second': steps * responses / last['seconds']}
