"""Whole trainings of the stage `offline_policy`, computed again in float64.

From the raw log: which responses each row learns from and in which order, what
annotators fill, the losses, the Q targets, and the parameters after all
updates. As `rollouts_test`, without the package's own arithmetic.
"""

import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import optax
from wiring import reference_losses as losses
from wiring import reference_models as models
from wiring import reference_rewards as rewards
from wiring import reference_updates as updates
from wiring import shared
import worlds

from rlhf_jax import algorithms
from rlhf_jax import streams
from rlhf_jax.data import order
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import offline_methods
from rlhf_jax.stages import offline_policy
from rlhf_jax.storage import files

SEED, STEPS, BATCH, VALIDATION = 0, 3, 6, 4
GROUPS = ['rejected', 'chosen']  # a log may name its groups in any order
UPSTREAM = dict(reference='sft', gold='gold', pairs='pairs', log='log',
                values='values')
Q = dict(mlp=True, scale=.5, rate=.25, every=2, shift=4., top_k=20)
ROWS = [name for name, row in algorithms.ALGORITHMS.items()
        if name in offline_methods.names()]
close = shared.close


def world():
  """The shared world with a log, of which some is missing."""
  def make(workdir):
    worlds.copy(shared.world(), workdir)
    arrays = files.load_arrays(workdir / 'pairs/pairs.npz')
    tokens, mask = arrays['tokens'], arrays['mask'].copy()
    mask[2, 1] = mask[7, 0] = mask[-1, 1] = False
    present = mask.any(axis=-1)
    rng = np.random.default_rng(5)
    scores = np.where(present, rng.uniform(.2, 1.8, present.shape), 0)
    sides = np.tile([1, 0], (len(tokens), 1))
    sides[::3] = [0, 1]
    result = {'num_validation': VALIDATION, 'groups': GROUPS,
              'source': 'pairs'}
    worlds.save(workdir, 'log', result, logged=dict(
        tokens=tokens, mask=mask, group=np.where(
            present, sides, -1).astype(np.int32),
        scores=scores.astype(np.float32), example=np.arange(len(tokens)),
        raw_scores=(3 * scores - 1).astype(np.float32)))
    worlds.save(workdir, 'values', {}, values=dict(
        values=rng.uniform(.6, 1.2, len(tokens)).astype(np.float32)))
  return worlds.once('wired_log', make)


class Trace:
  """A stage that has run, and what went through its step."""

  def __init__(self, name):
    self.run = dict(
        algorithm=name, arguments={}, use='all', filtered=False,
        priority='none', batch_size=BATCH, num_microbatches=1,
        packing=False, num_steps=STEPS, scale_steps=False,
        optimizer=shared.OPTIMIZER,
        value=dict(trunk='separate', mlp=True, scale=.5), q=Q,
        evaluation=dict(every=STEPS, num_prompts=2, texts=1, chunk_size=8))
    self.row, self.steps = algorithms.ALGORITHMS[name], []
    self.context, programs = worlds.Context(world()), offline_methods.programs

    def recorded(method):
      compiled = programs(method)

      def step(state, batch, *base):
        before = shared.host(state)
        after, metrics = compiled.step(state, batch, *base)
        self.steps.append((before, shared.host(batch), shared.host(after)))
        return after, metrics

      return compiled._replace(step=step)

    with mock.patch.object(offline_methods, 'programs', recorded):
      offline_policy.run(
          self.context, seed=SEED, data=worlds.DATA, upstream=UPSTREAM,
          run=self.run, training=dict(save_every=1, log_every=1),
          measure=dict(components=dict(short=dict(kind='length', target=8)),
                       pool={}, sampler=dict(temperature=1.)))
    self.reference = shared.host(
        artifacts.restore_policy(world() / 'sft').params)


@functools.cache
def trace(name):
  return Trace(name)


def raw():
  """The training examples of the log, and their prompts' values."""
  load = files.load_arrays
  arrays = load(world() / 'log/logged.npz')
  values = load(world() / 'values/values.npz')['values']
  return {k: x[:-VALIDATION] for k, x in arrays.items()}, values[:-VALIDATION]


def selected(row):
  """(example, response) of each sample of the data set, [N, K] of pairs."""
  log, _ = raw()
  present, sides = log['mask'].any(axis=-1), []
  for i, there in enumerate(present):
    if row.source == 'preferences':  # chosen, then rejected
      if there.all():
        sides.append([(i, int(np.flatnonzero(log['group'][i] == g)[0]))
                      for g in (1, 0)])
    elif row.source == 'rankings':
      if there.all():
        sides.append([(i, k) for k in range(len(there))])
    else:
      sides += [[(i, int(k))] for k in np.flatnonzero(there)]
  return np.array(sides)


def mismatched(tokens, mask):
  """Every prompt [N, 1, T] with a response to another, each of them once."""
  starts = [int(np.flatnonzero(row[0])[0]) for row in mask]
  prompts = [tuple(row[0, :n]) for row, n in zip(tokens, starts)]
  turn = max(map(prompts.count, prompts))
  assert turn > 1  # else the next one would do
  grouped = sorted(range(len(prompts)), key=lambda i: prompts.index(prompts[i]))
  others, there = np.zeros_like(tokens), np.zeros_like(mask)
  for place, i in enumerate(grouped):
    j = grouped[(place + turn) % len(grouped)]
    assert prompts[i] != prompts[j]
    row = [*prompts[i], *tokens[j][mask[j]]][:tokens.shape[-1]]
    others[i, 0, :len(row)] = row
    there[i, 0, starts[i]:len(row)] = True
  return others, there


def labelled(data, at):
  """What is liked, and those beside them, in place of scores."""
  log, _ = raw()
  others = mismatched(data['tokens'], data['mask'])
  liked = log['group'][at[..., 0], at[..., 1]] == GROUPS.index('chosen')
  assert 0 < liked.sum() < len(liked)
  return dict(zip(('tokens', 'mask', 'targets'), (
      np.concatenate(pair, axis=1) for pair in (
          (data['tokens'], others[0]), (data['mask'], others[1]),
          (liked.astype(float), np.zeros(liked.shape))))))


def dataset(case):
  """What a row learns from, whole, with what its annotators fill."""
  row, (log, values) = case.row, raw()
  at = selected(row)
  pick = lambda x: x[at[..., 0], at[..., 1]]
  data = dict(tokens=pick(log['tokens']), mask=pick(log['mask']),
              scores=np.float64(pick(log[
                  'raw_scores' if row.source == 'rankings' else 'scores'])))
  if row.source == 'unpaired':
    data = labelled(data, at)
  names = [node['name'] for node in row.annotators]
  if 'standardize_scores' in names:
    data['scores'] = rewards.standardize_log(data['scores'])
  start = shared.policy_of(case.steps[0][0].params, data['tokens'])
  if 'ref_logprobs' in names:
    data['ref_logprobs'] = shared.policy_of(
        case.reference, data['tokens'])['logprobs']
  if 'kl_rewards' in names:  # without a penalty
    zeros = np.zeros(data['mask'].shape)
    data['rewards'] = rewards.kl_rewards(
        data['scores'], zeros, zeros, data['mask'], 0.)
  if 'gae' in names:
    data['old_values'] = start['values']
    data['advantages'], data['returns'] = rewards.gae(
        data['rewards'], start['values'], data['mask'])
    data['advantages'] = rewards.whiten(data['advantages'], data['mask'])
  if 'prompt_advantages' in names:
    data['advantages'] = data['scores'] - values[at[..., 0]]
    left = data['advantages'][:, 0] > 0
    assert 0 < left.sum() < len(left)
    data = {k: x[left] for k, x in data.items()}
  return data


class OfflineTest(parameterized.TestCase):

  @parameterized.parameters(*ROWS)
  def test_training(self, name):
    case = trace(name)
    data = dataset(case)
    before = case.steps[0][0]
    state, targets = updates.start(before.params), before.targets
    self.assertLen(case.steps, STEPS)
    after = case.steps[-1][2]
    for count, (_, batch, _) in enumerate(case.steps):
      at = order.indices(streams.number(SEED, 'offline', 'order'), count,
                         BATCH, len(data['tokens']))
      part = {k: x[at] for k, x in data.items()}
      for field, wanted in part.items():
        value = getattr(batch, field)
        if wanted.shape == part['mask'].shape:
          value, wanted = (np.where(part['mask'], x, 0)
                           for x in (value, wanted))
        close(value, wanted, err_msg=f'{name}: {field} of batch {count}')
      state = self.step(case, state, part, targets)
      if targets is not None and (count + 1) % Q['every'] == 0:
        targets = updates.polyak(targets, state.params['q_heads'], Q['rate'])
    shared.close_trees(
        self, optax.tree.get(after.opt_state, 'mu'), state.mu,
        jax.tree.map(np.zeros_like, state.mu), 'gradients')
    shared.close_trees(self, after.params, state.params, before.params,
                       'parameters', state.exact)
    if targets is not None:
      shared.close_trees(self, after.targets, targets, before.targets,
                         'targets')

  def step(self, case, state, part, targets):
    objective = dict(case.row.objective)
    loss = losses.POLICY[objective.pop('name')]
    if case.row.source == 'unpaired':  # of the policy before the step
      others = {k: x[:, 1:] for k, x in part.items()}
      point = models.precise(losses.reference_point)(
          shared.policy_of(state.params, others['tokens'])['logprobs'],
          others['ref_logprobs'], others['mask'])
      part = {k: x[:, :1] for k, x in part.items()}
      part['reference_points'] = np.full(part['targets'].shape, point)

    def value(params):
      out = models.policy(params, part['tokens'], targets)
      return losses.mean(*loss(out, part, **objective))

    gradients = models.precise(jax.grad(value))(state.params)
    return updates.update(
        state, gradients, num_steps=STEPS, **shared.OPTIMIZER)


if __name__ == '__main__':
  absltest.main()
