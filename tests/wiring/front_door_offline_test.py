"""Offline policies and all evaluations of a study, computed again in float64.

From the raw log of the study to the parameters after each step; and what any
policy starts from, leaves, and is measured by. `offline_test` does the former
for every row, on the stage alone.
"""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
from wiring import front_door
from wiring import front_door_config
from wiring import recording
from wiring import reference_losses as losses
from wiring import reference_rewards as rewards

ONLINE = ('ppo', 'ppo_separate', 'rloo', 'reinforce')
LOSSES = {'a_lol': (losses.alol, {}), 'awr': (losses.awr, dict(beta=1.)),
          'dpo': (losses.dpo, dict(beta=.1))}
close = front_door.close


def setUpModule():
  front_door.study()


def training(name):
  return front_door.training(f'policies/{name}')


def before(name, step):
  return front_door.before(f'policies/{name}', step)


@functools.cache
def gradient(name):
  """(params, batch) -> loss and gradient."""
  loss, arguments = LOSSES[name]
  return front_door.policy_gradient(loss, **arguments)


@functools.cache
def dataset(name):
  """The training data of a run, and where its rows come from."""
  log = {k: v[:front_door_config.PAIRS - front_door_config.HELD_OUT]
         for k, v in front_door.arrays(front_door.LOG, 'logged').items()}
  columns = {'a_lol': [0], 'awr': [0, 1], 'dpo': [0, 1]}[name]
  pick = lambda x: x[:, columns]
  if name == 'awr':
    pick = lambda x: x.reshape(-1, 1, *x.shape[2:])
  batch = {k: pick(log[k]) for k in ('tokens', 'mask', 'scores')}
  tokens, mask = batch['tokens'], batch['mask']
  own = front_door.policy(before(name, 0)['params'], tokens)
  if name != 'awr':
    batch['ref_logprobs'] = front_door.policy(
        front_door.trained('sft'), tokens)['logprobs']
  if name == 'a_lol':
    values = front_door.arrays(front_door.VALUES, 'values')['values']
    batch['advantages'] = batch['scores'] - np.float64(
        values[:len(tokens), None])
    left = batch['advantages'][:, 0] > 0
    return {k: v[left] for k, v in batch.items()}
  if name == 'awr':
    batch['scores'] = rewards.standardize_log(batch['scores'])
    batch['rewards'] = rewards.kl_rewards(
        batch['scores'], None, None, mask, 0.)
    batch['old_values'] = own['values']
    advantages, batch['returns'] = rewards.gae(
        batch['rewards'], own['values'], mask)
    batch['advantages'] = rewards.whiten(advantages, mask)
  return batch


class OfflineTest(parameterized.TestCase):

  @parameterized.named_parameters(
      *((f'{name}_{step}', name, step)
        for name in LOSSES for step in range(3)))
  def test_step(self, name, step):
    run, node, rows = training(name), front_door.run_of(name), dataset(name)
    done, count = run.steps[step], len(rows['tokens'])
    at = front_door.order(step, node['batch_size'], count, 'offline', 'order')
    if name == 'a_lol':  # drawn in proportion to the advantage
      self.assertBetween(count, 10, 40)
      at = front_door.draws(step, node['batch_size'], rows['advantages'][:, 0],
                            'offline', 'draws')
    part = {k: v[at] for k, v in rows.items()}
    front_door.assert_batch(done['batch'], part)
    loss, slope = gradient(name)(before(name, step)['params'], part)
    close(done['metrics']['train/loss'], loss)
    front_door.assert_update(f'policies/{name}', step, slope, node['optimizer'])


class PolicyTest(parameterized.TestCase):

  @parameterized.parameters(*ONLINE, *LOSSES)
  def test_starts_from_the_reference(self, name):
    sft, start = front_door.trained('sft'), training(name).start['params']
    jax.tree.map(np.testing.assert_array_equal,
                 {k: start[k] for k in sft}, sft)
    self.assertEqual('value_trunk' in start, name in ('ppo_separate', 'awr'))
    if 'value_trunk' in start:
      jax.tree.map(np.testing.assert_array_equal, start['value_trunk'],
                   {k: sft[k] for k in start['value_trunk']})
    last = training(name).steps[-1]['state']['params']
    left = front_door.trained(f'policies/{name}')  # without its heads
    jax.tree.map(np.testing.assert_array_equal,
                 left, {k: last[k] for k in sft})

  @parameterized.parameters(*ONLINE, *LOSSES)
  def test_measures(self, name):
    """Clean scores of held-out prompts, the KL at the sampler's temperature.
    """
    run, sampler = training(name), front_door.config()['sampler']
    prompts = front_door.corpus().eval_prompts
    self.assertEqual([x['step'] for x in run.evaluations], [0, 3])
    for look in run.evaluations:
      tokens, mask, row = look['tokens'], look['mask'], look['row']
      lengths = mask.argmax(axis=-1)
      np.testing.assert_array_equal(lengths, prompts.lengths[:len(tokens)])
      for i, length in enumerate(lengths):
        np.testing.assert_array_equal(
            tokens[i, :length], prompts.tokens[i, :length])
      close(look['proxy'], front_door.total(
          front_door.config()['log']['components'], tokens, mask))
      close(row['gold'], front_door.gold(tokens, mask).mean())
      params = before(name, look['step'])['params']
      self.assertEqual(
          recording.digest(look['params']), recording.digest(params))
      own, reference = (
          front_door.policy(x, tokens, sampler['temperature'])['logprobs']
          for x in (params, front_door.trained('sft')))
      gap = np.where(mask, own - reference, 0)
      close(row['kl_k1'], gap.sum(axis=-1).mean(), atol=1e-5)
      close(row['kl_k2'], (gap**2 / 2).sum(axis=-1).mean(), atol=1e-5)
      self.assertEqual(row['kl_k2'] > 1e-3, look['step'] > 0)
    np.testing.assert_array_equal(  # with the same noise for all
        run.evaluations[0]['tokens'],
        training('ppo').evaluations[0]['tokens'])


if __name__ == '__main__':
  absltest.main()
