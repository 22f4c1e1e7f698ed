"""One policy trained on logged responses by one row of the algorithm table.

Every offline method runs through here: what differs is the row, which of the
responses it is given, and how they are drawn. Annotators see the whole data
set once, with the initial policy, before it is cut; the evaluation is that of
online methods.
"""

from collections.abc import Mapping
import functools
import math
from typing import Any

from rlhf_jax import streams
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.models import heads
from rlhf_jax.parallel import sharding
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import fit as fit_lib
from rlhf_jax.pipeline import methods
from rlhf_jax.pipeline import offline_data
from rlhf_jax.pipeline import offline_methods
from rlhf_jax.pipeline import policies

NEEDS = ('reference', 'log')
READS = ('gold', 'pairs', 'proxies', 'values')


def run(context, *, seed: int, data: dict, upstream: Mapping[str, Any],
        run: Mapping[str, Any], measure: Mapping[str, Any],
        training: Mapping[str, int]) -> dict:
  """Trains, evaluates on the way, and writes what a report reads.

  The files are those of the stage `online_policy`, without `updates.jsonl`.

  Args:
    context: of the stage.
    seed: of the study.
    data: config node of the corpus.
    upstream: stages by role, see `artifacts`; `values` where the row has
      advantages of prompts.
    run: node `offline` of the config: algorithm, arguments, use, filtered,
      priority, batch_size (examples), num_microbatches, packing, num_steps,
      scale_steps (multiplies num_steps by the share of the responses that is
      left, as the code of Baheti et al. does, so that epochs stay equal),
      optimizer, value, q (of ILQL) and evaluation.
    measure: of `policies.watch`.
    training: save_every and log_every of `fit.Loop`.
  """
  world = artifacts.World(context, data, seed, upstream)
  model, row = world.start(), offline_methods.make_row(run)
  trainable, value_config, targets = _with_heads(
      world, model.trainable, row, run, functools.partial(
          streams.key, seed, 'offline'))
  log = world.log.training()
  if offline_methods.needs_values(row):
    log['values'] = world.values()[:world.log.num_training]
  examples = offline_data.select(row, log, run['use'], world.log.groups)
  initial = sharding.shard_params(types.with_base(model.base, trainable))
  dataset = offline_data.annotated(row, examples, lambda: sharding.map_rows(
      functools.partial(offline_methods.forward, model.config, value_config,
                        initial),
      examples.tokens, examples.mask,
      chunk_size=offline_data.CHUNK, poll=lambda: context.stop.check(
          f'the start of {context.directory.name}')))
  share = len(dataset.tokens) / len(examples.tokens)
  steps, batch_size = run['num_steps'], run['batch_size']
  if run['scale_steps']:
    steps = math.ceil(steps * share)
  programs = offline_methods.programs(
      offline_methods.make(run, model.config, value_config, steps))
  state = train.place_state(trainable, programs.tx, streams.key(
      seed, 'offline', 'state'), targets)
  artifacts.write_model(context, 'policy', world.node, world.corpus.tokenizer,
                        texts=artifacts.texts_of(world.corpus))
  if targets is not None:
    measure = measure | {
        'sampler': measure['sampler'] | {'top_k': run['q']['top_k']}}
  epochs = lambda step: step * batch_size / len(dataset.tokens)
  view = policies.View(
      model, steps, lambda step: {'updates': step, 'epoch': epochs(step)},
      None if targets is None else run['q']['shift'])
  order = 'order' if run['priority'] == 'none' else 'draws'
  with policies.watch(world, measure, run['evaluation'],
                      streams.key(seed, 'evaluation'), view) as watch:
    state, last = fit_lib.fit(
        context, state, offline_data.source(
            dataset, run['priority'], batch_size=batch_size,
            seed=streams.number(seed, 'offline', order)),
        programs.step, watch=watch, frozen=types.Frozen(base=model.base),
        loop=fit_lib.Loop(steps, folder='training',
                          num_microbatches=run['num_microbatches'],
                          packing=run['packing'], **training))
  policies.save_policy(context, steps, state.params)
  tokens = batch_size * dataset.mask.sum(axis=(1, 2)).mean()
  return {**fit_lib.rate(last, tokens * steps), 'updates': steps,
          'examples': len(examples.tokens), 'filtered_share': 1 - share,
          'epochs': epochs(steps)}


def _q_heads(config, mlp, scale, key):
  return {'q_heads': heads.init_q(
      key, config.hidden_size, config.vocab_size, mlp=mlp, scale=scale)}


def _with_heads(world, trainable, row, run, key):
  """The trained parameters with their heads; a value trunk; Q targets."""
  if not methods.has_values(row):
    return trainable, None, None
  value_config = policies.value_config(world, run['value'])
  trainable = policies.add_value_head(
      world, trainable, run['value'], key('value_head'))
  if not methods.is_ilql(row):
    return trainable, value_config, None
  config, q = world.reference.config, run['q']
  targets = sharding.born(_q_heads, key('q_heads'), static=(
      config, q['mlp'], q['scale']))['q_heads']
  return {**trainable, 'q_heads': targets}, value_config, targets
