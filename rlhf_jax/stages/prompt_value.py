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
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import errors
from rlhf_jax import objectives
from rlhf_jax import sharding
from rlhf_jax import sources
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import order
from rlhf_jax.evaluation import monitor
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import fit as fit_lib
from rlhf_jax.pipeline import rewarding
from rlhf_jax.pipeline import rows as rows_lib
from rlhf_jax.rewards import nodes as nodes_lib
from rlhf_jax.storage import files

CHUNK = 256  # prompts at a time
LOWEST = 20  # responses that are shown


def check(components: Mapping[str, Mapping[str, Any]]):
  """Refuses rewards that the head cannot represent; loads nothing.

  Its values lie between 0 and the largest reward (objectives.md 9.10).

  Args:
    components: of `components.check`.

  Raises:
    ConfigError: the sum has no bound or may be negative; names the component
      that makes it so.
  """
  bounds = {name: nodes_lib.bounds(node)
            for name, node in nodes_lib.check(components).items()}
  low, high = (sum(x) for x in zip(*bounds.values()))
  if low >= 0 and 0 < high < math.inf:
    return
  name = next((k for k, (least, most) in bounds.items()
               if least < 0 or most == math.inf), next(iter(bounds)))
  raise errors.ConfigError(
      f'component {name!r} is in [{bounds[name][0]:g}, {bounds[name][1]:g}] '
      f'and the sum of all in [{low:g}, {high:g}]; the prompt values of A-LOL '
      "need a sum from 0 to a finite number: set its squash to 'sigmoid', its "
      'range or its weight')


def _prompts(tokens: np.ndarray, mask: np.ndarray, pad_id: int
             ) -> corpus_lib.Prompts:
  """The prompts of examples [N, K, T], each with a response somewhere."""
  row = np.argmax(mask.any(axis=-1), axis=1)
  pick = lambda x: np.take_along_axis(x, row[:, None, None], axis=1)[:, 0]
  lengths = np.argmax(pick(mask), axis=-1).astype(np.int32)
  tokens = pick(tokens)[:, :lengths.max()]
  # Padding may hold what is no token; attention to it has weight 0, but 0
  # times NaN is NaN.
  real = np.arange(tokens.shape[1]) < lengths[:, None]
  return corpus_lib.Prompts(
      np.where(real, tokens, pad_id).astype(np.int32), lengths)


def _value(config, params, tokens, lengths, *, num_heads, max_value):
  """f32[B] of prompts i32[B, P]; nothing is dropped out, ever."""
  hidden = transformer.hidden_states(config, params['reference'], tokens)
  real = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
  return heads.prompt_value(params['head'], hidden, real,
                            num_heads=num_heads, max_value=max_value)


def _forward(config, params, batch, *, width, **head) -> types.PolicyOutput:
  """The value of a prompt, at most `width` tokens, for each of its samples."""
  lengths = jnp.argmax(batch.mask[:, 0], axis=-1)
  values = _value(config, params, batch.tokens[:, 0, :width], lengths, **head)
  return types.PolicyOutput(
      scores=jnp.broadcast_to(values[:, None], batch.mask.shape[:2]))


_value_chunk = functools.partial(
    jax.jit, static_argnames=('config', 'num_heads', 'max_value'))(_value)


def _values(context, config, params, prompts, **head) -> np.ndarray:
  """f32[N], chunk by chunk on all devices."""
  mesh, rows = sharding.make_mesh(), len(prompts.tokens)
  params, parts = sharding.shard_params(params, mesh), mesh.shape['data']
  size, found = -(-min(CHUNK, rows) // parts) * parts, []
  for start in range(0, rows, size):
    context.stop.check(f'the end of training of {context.directory.name}')
    # The last chunk is filled up, so that it runs the same program.
    at = np.resize(np.arange(start, min(start + size, rows)), size)
    found.append(np.asarray(_value_chunk(config, params, *sharding.shard_batch(
        (prompts.tokens[at], prompts.lengths[at]), mesh), **head)))
  return np.concatenate(found)[:rows]


def _held_out(prompts: corpus_lib.Prompts, share: float, seed: int
              ) -> np.ndarray:
  """bool[V]: a seeded share of the different prompts, with all their rows."""
  which = np.unique(
      prompts.tokens, axis=0, return_inverse=True)[1].reshape(-1)
  count = int(which.max(initial=-1)) + 1
  kept_out = round(share * count)
  if not 0 <= share < 1 or kept_out == count:
    raise errors.ConfigError(
        f'held_out is {share} of {count} different validation prompts, which '
        'leaves none to learn values from; give a share in [0, 1), or raise '
        'num_validation')
  return np.isin(which, order.indices(seed, 0, count, count)[:kept_out])


def _references(corpus, source, examples) -> list[str] | None:
  """The right answers of a log's examples; None where there are none."""
  if source != 'corpus' or corpus.log.references is None:
    return None
  return [corpus.log.references[i] for i in examples]


def _sampled(context, corpus, config, reference, prompts, rewards, references,
             *, key, num_samples, temperature) -> types.Batch:
  """The reference's answers [V, S, T], their rewards as targets [V, S]."""
  rows = len(prompts.tokens)
  tokens, mask = rows_lib.sample_rows(
      context, dataclasses.replace(corpus, pair_prompts=prompts), config,
      reference, key, num_prompts=rows, num_samples=num_samples,
      chunk_size=min(CHUNK, rows), temperature=temperature)
  flat = [x.reshape(-1, x.shape[-1]) for x in (tokens, mask)]
  scored = rewards(
      *flat, *monitor.decode(corpus.tokenizer, *flat),
      references=references and np.repeat(references, num_samples).tolist())
  targets = rewards.total(scored.values).reshape(rows, num_samples)
  return types.Batch(tokens=tokens, mask=mask, targets=targets)


def _filtered(advantages, present, group, groups) -> dict[str, float]:
  """Share of the responses without a positive advantage, and by group."""
  share = lambda at: float(np.mean(advantages[at] <= 0)) if at.any() else None
  return {'filtered_share': share(present)} | {
      f'filtered_{name}': share(present & (group == i))
      for i, name in enumerate(groups)}


def _lowest(coder, arrays, values, advantages, groups) -> list[dict]:
  """The responses of least advantage, in order, with their texts."""
  present = arrays['mask'].any(axis=-1)
  ranked = np.argsort(np.where(present, advantages, np.inf), axis=None,
                      kind='stable')[:min(LOWEST, int(present.sum()))]
  at = np.unravel_index(ranked, present.shape)
  prompts, responses = monitor.decode(
      coder, arrays['tokens'][at], arrays['mask'][at])
  return [{'prompt': prompt, 'response': response,
           'group': groups[arrays['group'][i, k]],
           'score': arrays['scores'][i, k], 'value': values[i],
           'advantage': advantages[i, k]}
          for prompt, response, i, k in zip(prompts, responses, *at)]


def _show(context, found, groups, count):
  """One line that says what is left out."""
  each = ', '.join(f'{name} {found[f"filtered_{name}"]:.1%}'
                   for name in groups
                   if found[f'filtered_{name}'] is not None)
  context.show(
      f'{found["filtered_share"]:.1%} of {count} logged responses have no '
      f'positive advantage ({each}); the lowest are in '
      f'{context.directory / "lowest.jsonl"}')


def run(context, *, seed: int, data: dict, policy: str, policy_model: dict,
        gold: str, gold_model: dict, pairs: str,
        components: dict[str, dict[str, Any]], logged: str, num_samples: int,
        temperature: float, num_heads: int, batch_size: int, num_steps: int,
        optimizer: dict, held_out: float = 0.2, proxies: str | None = None,
        proxy_model: dict | None = None, num_members: int | None = None,
        pool: dict | None = None, training: dict | None = None) -> dict:
  """Trains the head; `values.npz` then holds `values` f32[N] of the log.

  `checkpoints` holds the head, and `lowest.jsonl` the training responses of
  least advantage, which the paper looks at to clean data: prompt, response,
  group, score, value and advantage.

  Args:
    context: of the stage.
    seed: of the samples, the head and the order.
    data: config node of the corpus.
    policy: stage that holds the SFT policy, which is the reference.
    policy_model: its shape.
    gold: of `rewarding.build`, as `gold_model`, `pairs`, `components`,
      `proxies`, `proxy_model`, `num_members` and `pool`.
    gold_model: see `gold`.
    pairs: see `gold`.
    components: see `gold`; those that `logged` was scored by.
    logged: stage that holds the log; its validation prompts are answered.
    num_samples: responses to each of them.
    temperature: of these; 0 is greedy, as in the paper.
    num_heads: of attention; 8 in the paper.
    batch_size: prompts a step.
    num_steps: optimizer steps.
    optimizer: of `train.optimizer`.
    held_out: share of the different validation prompts that are not trained
      on.
    proxies: see `gold`.
    proxy_model: see `gold`.
    num_members: see `gold`.
    pool: see `gold`.
    training: save_every and log_every of `fit_lib.fit`.

  Returns:
    `mse` and `target_variance` of the rewards of the samples that are trained
    on, `held_out_mse` and `held_out_variance` of the others, in squared score
    units; `filtered_share` and filtered_<group>, the share of the training
    responses whose advantage is not positive; `value_mean`.

  Raises:
    ConfigError: an argument is out of range, or the rewards are, see `check`.
    RewardError: a component gives no usable value, see `components`.
  """
  check(components)
  corpus = artifacts.load_corpus(context, data, seed, policy)
  coder = corpus.tokenizer
  config, reference = artifacts.load_policy(
      context, policy, policy_model, coder.vocab_size)
  if num_heads < 1 or config.hidden_size % num_heads:
    raise errors.ConfigError(
        f'num_heads is {num_heads}; give a divisor of the '
        f'{config.hidden_size} features of the policy')
  arrays = files.load_arrays(context.directory_of(logged) / 'logged.npz')
  known = context.result_of(logged)
  first = len(arrays['tokens']) - known['num_validation']
  prompts = _prompts(arrays['tokens'], arrays['mask'], coder.pad_id)
  validation = corpus_lib.Prompts(
      prompts.tokens[first:], prompts.lengths[first:])
  apart = _held_out(validation, held_out, seed)
  sample_key, head_key, key = jax.random.split(
      jax.random.fold_in(jax.random.key(seed), 9), 3)
  with rewarding.of_log(
      context, components, logged, pool or {}, corpus=corpus, gold=gold,
      gold_model=gold_model, pairs=pairs, proxies=proxies,
      proxy_model=proxy_model, num_members=num_members) as rewards:
    head = {'num_heads': num_heads, 'max_value': rewards.upper}
    rows = _sampled(
        context, corpus, config, reference, validation, rewards,
        _references(corpus, known['source'], arrays['example'][first:]),
        key=sample_key, num_samples=num_samples, temperature=temperature)

  tx = train.optimizer(num_steps=num_steps, **optimizer)
  state = train.init_state(
      {'head': heads.init_prompt_value(
          head_key, config.hidden_size, num_heads=num_heads)}, tx, key)
  step_fn = train.make_train_step(
      functools.partial(
          _forward, config, width=prompts.tokens.shape[1], **head),
      objectives.get('value_regression'), tx)
  state, last = fit_lib.fit(
      context, state, sources.offline(
          jax.tree.map(lambda x: x[~apart], rows), batch_size=batch_size,
          seed=seed), jax.jit(step_fn, donate_argnums=0),
      num_steps=num_steps, base={'reference': reference}, **(training or {}),
      tokens_per_step=int(batch_size * validation.lengths.mean()))

  values = _values(context, config, {'reference': reference, **state.params},
                   prompts, **head)
  files.save_arrays(context.directory / 'values.npz', values=values)
  arrays = {name: x[:first] for name, x in arrays.items()}
  present = arrays['mask'].any(axis=-1)
  advantages = arrays['scores'] - values[:first, None]
  files.write_jsonl(context.directory / 'lowest.jsonl', _lowest(
      coder, arrays, values, advantages, known['groups']))
  found = _filtered(advantages, present, arrays['group'], known['groups'])
  _show(context, found, known['groups'], int(present.sum()))
  error = (rows.targets - values[first:, None])**2
  mean = lambda f, x: float(f(x)) if x.size else None
  return {
      'mse': mean(np.mean, error[~apart]),
      'held_out_mse': mean(np.mean, error[apart]),
      'target_variance': mean(np.var, rows.targets[~apart]),
      'held_out_variance': mean(np.var, rows.targets[apart]),
      'value_mean': float(values[:first].mean())} | found | last
