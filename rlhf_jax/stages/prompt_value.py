"""What the reference's own responses to each logged prompt are worth.

Baheti et al. 2024, https://arxiv.org/abs/2305.14718, section 2.2, the first
stage of A-LOL; objectives.md 9.9 and 9.10. The reference answers the
validation prompts, a head learns from its frozen hidden states what they are
worth, and says it for all prompts. A logged response has the advantage A =
reward - value; those without a positive one are what A-LOL leaves out.

Other than in the paper's code there is no dropout, padding is not attended
to, and the last step counts, not the epoch with the lowest training error. A
part of the prompts is held out, to see what the head has learned.
"""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import numpy as np

from rlhf_jax import errors
from rlhf_jax import objectives
from rlhf_jax import sources
from rlhf_jax import streams
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.evaluation import texts as texts_lib
from rlhf_jax.models import heads
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import fit as fit_lib
from rlhf_jax.pipeline import leftover
from rlhf_jax.pipeline import prompt_values
from rlhf_jax.pipeline import rewarding
from rlhf_jax.pipeline import rows as rows_lib
from rlhf_jax.storage import files

NEEDS, READS = ('reference', 'log'), ('gold', 'pairs', 'proxies')


def run(context, *, seed: int, data: dict, upstream: Mapping[str, Any],
        node: Mapping[str, Any], components: Mapping[str, Any],
        pool: Mapping[str, Any], training: Mapping[str, int]) -> dict:
  """Trains the head; `values.npz` then holds `values` f32[N] of the log.

  `checkpoints` holds the head, and `lowest.jsonl` the training responses of
  least advantage, which the paper looks at to clean data: prompt, response,
  group, score, value and advantage.

  Args:
    context: of the stage.
    seed: of the study.
    data: config node of the corpus.
    upstream: stages by role, see `artifacts`; the validation prompts of `log`
      are answered.
    node: 'num_samples' responses to each of them; 'temperature' of these, 0
      is greedy, as in the paper; 'num_heads' of attention, 8 in the paper;
      'batch_size', prompts a step; 'num_steps'; 'optimizer' of
      `train.optimizer`; 'held_out', share of the different validation prompts
      that are not trained on.
    components: those that the log was scored by.
    pool: of `programmatic.Functions`.
    training: save_every and log_every of `fit.Loop`.

  Returns:
    `mse` and `target_variance` of the rewards of the samples that are trained
    on, `held_out_mse` and `held_out_variance` of the others, in squared score
    units; `filtered_share` and filtered_<group>, the share of the training
    responses whose advantage is not positive; `value_mean`.

  Raises:
    ConfigError: an argument is out of range, or the rewards are, see
      `prompt_values.check`.
    RewardError: a component gives no usable value, see `components`.
  """
  prompt_values.check(components)
  world = artifacts.World(context, data, seed, upstream)
  config, num_heads = world.reference.config, node['num_heads']
  if num_heads < 1 or config.hidden_size % num_heads:
    raise errors.ConfigError(
        f'num_heads is {num_heads}; give a divisor of the '
        f'{config.hidden_size} features of the policy')
  key = functools.partial(streams.key, seed, 'prompt_value')
  number = functools.partial(streams.number, seed, 'prompt_value')
  prompts = prompt_values.prompts_of(
      world.log.arrays['tokens'], world.log.arrays['mask'],
      world.corpus.tokenizer.pad_id)
  first = world.log.num_training
  validation = corpus_lib.Prompts(
      prompts.tokens[first:], prompts.lengths[first:])
  apart = prompt_values.held_out(
      validation, node['held_out'], number('held_out'))
  rows, upper = _sampled(world, validation, components, pool, node,
                         key('samples'))

  head = {'num_heads': num_heads, 'max_value': upper}
  tx = train.optimizer(num_steps=node['num_steps'], **node['optimizer'])
  state = train.place_state({'head': heads.init_prompt_value(
      key('head'), config.hidden_size, num_heads=num_heads)}, tx, key('state'))
  step = train.make_train_step(
      functools.partial(prompt_values.forward, config,
                        width=prompts.tokens.shape[1], **head),
      objectives.get('value_regression'), tx)
  reference = {'reference': world.reference.params}
  state, last = fit_lib.fit(
      context, state, sources.offline(
          jax.tree.map(lambda x: x[~apart], rows),
          batch_size=node['batch_size'], seed=number('order')),
      jax.jit(step, donate_argnums=0), frozen=types.Frozen(base=reference),
      loop=fit_lib.Loop(node['num_steps'], **training))

  values = prompt_values.all_values(
      context, config, {**reference, **state.params}, prompts, **head)
  files.save_arrays(context.directory / 'values.npz', values=values)
  tokens = node['batch_size'] * validation.lengths.mean() * node['num_steps']
  return {**_errors(rows.targets, values[first:], apart),
          'value_mean': float(values[:first].mean()),
          **leftover.report(world, values[:first]),
          **fit_lib.rate(last, tokens)}


def _sampled(world, prompts, components, pool, node, key
             ) -> tuple[types.Batch, float]:
  """Its answers [V, S, T] with their rewards, and the largest there can be."""
  count, first = node['num_samples'], world.log.num_training
  references = prompt_values.references(
      world, world.log.arrays['example'][first:])
  tokens, mask = rows_lib.sample_rows(
      world, world.reference, prompts, key,
      rows_lib.Draw(count, {'temperature': node['temperature']}))
  flat = [x.reshape(-1, x.shape[-1]) for x in (tokens, mask)]
  with rewarding.bind(world, components, pool) as rewards:
    scored = rewards(
        *flat, *texts_lib.decode(world.corpus.tokenizer, *flat),
        references=references and np.repeat(references, count).tolist())
    targets = rewards.total(scored.values).reshape(-1, count)
    return types.Batch(tokens=tokens, mask=mask,
                       targets=targets), rewards.upper


def _errors(targets, values, apart) -> dict[str, float | None]:
  """How far the head is off, on prompts that it learned and on others."""
  square = (targets - values[:, None])**2
  mean = lambda f, x: float(f(x)) if x.size else None
  return {'mse': mean(np.mean, square[~apart]),
          'held_out_mse': mean(np.mean, square[apart]),
          'target_variance': mean(np.var, targets[~apart]),
          'held_out_variance': mean(np.var, targets[apart])}
