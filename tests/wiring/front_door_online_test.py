"""Online policies trained through the front door, computed again in float64.

What the config of a study says arrives: log-probabilities, reference, members,
components, noise, scale, clip, endings, KL, advantages, losses, the schedule,
and the parameters after the updates. `rollouts_test` does so for every row, on
the stage alone; here is the whole way, from a seed that is not 0.
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
from wiring import reference_updates as updates

TEMPERATURE = front_door_config.TEMPERATURE
LOSSES = {
    'ppo': (losses.ppo, dict(value_coef=.5, entropy_coef=.02)),
    'ppo_separate': (losses.ppo, dict(kl_coef=.2)),
    'rloo': (losses.reinforce, {}), 'reinforce': (losses.reinforce, {})}
CASES = [(f'{name}_{rollout}', name, rollout)
         for name in LOSSES for rollout in range(3)]
close, run_of = front_door.close, front_door.run_of


def setUpModule():
  front_door.study()


def training(name):
  return front_door.training(f'policies/{name}')


def before(name, rollout):
  return front_door.before(f'policies/{name}', rollout)


def sampled(name, rollout):
  return training(name).rollouts[rollout]['sampled']


# From the responses of a rollout to what its updates see.


@functools.cache
def noisy(name, rollout):
  """The sum of the components with its noise, f64[B, K]."""
  batch, reward = sampled(name, rollout), run_of(name)['reward']
  total = front_door.total(
      reward['components'], batch['tokens'], batch['mask'])
  draws = jax.random.normal(
      front_door.child(before(name, rollout), 'noise'), total.shape)
  return total + reward['noise'] * np.asarray(draws)


def scores(name, rollout):
  """After scale, clip and what becomes of the unfinished."""
  reward, batch = run_of(name)['reward'], sampled(name, rollout)
  raw = [noisy(name, i) for i in range(rollout + 1)]
  score = raw[-1]
  if reward['scale'] is not None:
    score = score / rewards.deviation(
        raw[:1] if reward['scale'] == 'first' else raw)
  return rewards.missing_eos(
      np.clip(score, -reward['clip'], reward['clip']), batch['tokens'],
      batch['mask'], front_door.corpus().tokenizer.eos_id, **reward['eos'])


@functools.cache
def logprobs(name, rollout):
  """What the policy, its value head and the reference say."""
  tokens, mask = (sampled(name, rollout)[k] for k in ('tokens', 'mask'))
  only = lambda x: np.where(mask, x, 0)
  own = front_door.policy(
      before(name, rollout)['params'], tokens, TEMPERATURE)
  reference = front_door.policy(
      front_door.trained('sft'), tokens, TEMPERATURE)
  values = {'old_values': own['values']} if 'values' in own else {}
  return values | {
      'tokens': tokens, 'mask': mask, 'old_logprobs': only(own['logprobs']),
      'ref_logprobs': only(reference['logprobs'])}


def ratio(name, rollout):
  return [logprobs(name, rollout)[k]
          for k in ('old_logprobs', 'ref_logprobs', 'mask')]


def coefficient(name, rollout):
  """Of the KL: what the controller has made of it by then."""
  kl = run_of(name)['kl']
  coef = kl['coef']
  for i in range(rollout if kl['target'] is not None else 0):
    coef = rewards.adapted_coef(
        coef, *ratio(name, i), kl['target'], kl['horizon'])
  return coef


@functools.cache
def rollout_of(name, rollout):
  """A rollout as its updates see it."""
  score, coef = scores(name, rollout), coefficient(name, rollout)
  batch = logprobs(name, rollout)
  if 'old_values' in batch:
    shaped = rewards.kl_rewards(
        score, *ratio(name, rollout), coef * (name == 'ppo'))
    advantages, returns = rewards.gae(
        shaped, batch['old_values'], batch['mask'])
    return batch | {
        'scores': score, 'rewards': shaped, 'returns': returns,
        'advantages': rewards.whiten(advantages, batch['mask'])}
  score = rewards.kl_scores(score, *ratio(name, rollout), coef)
  advantages = rewards.leave_one_out(score) if name == 'rloo' else (
      rewards.moving_average(score, [
          rollout_of(name, i)['scores'] for i in range(rollout)]))
  return batch | {'scores': score, 'advantages': advantages}


def minibatches(name, rollout):
  """Places of the prompts of each update."""
  plan = run_of(name)['updates']
  count = len(sampled(name, rollout)['tokens'])
  parts = plan['num_minibatches']
  keys = jax.random.split(front_door.child(
      before(name, rollout), 'minibatches'), plan['num_epochs'])
  for key in keys:
    # Of each `parts` neighbours every minibatch has one.
    ranks = np.argsort(jax.random.uniform(key, (count // parts, parts)))
    for part in range(parts):
      yield np.arange(0, count, parts) + ranks[:, part]


@functools.cache
def gradient(name):
  """(params, batch) -> loss and gradient."""
  loss, arguments = LOSSES[name]
  return front_door.policy_gradient(loss, TEMPERATURE, **arguments)


class OnlineTest(parameterized.TestCase):

  @parameterized.named_parameters(*CASES)
  def test_samples(self, name, rollout):
    """Training prompts, in an order of the seed, by the current policy."""
    run, node = training(name), run_of(name)['rollout']
    prompts = front_door.corpus().pair_prompts
    at = front_door.order(rollout, node['batch_size'], len(prompts.tokens),
                          'online', 0, 'order')
    calls = run.rollouts[rollout]['calls']
    self.assertLen(calls, 2 if name == 'ppo' else 1)
    for part, name_of in (('tokens', 'tokens'), ('lengths', 'lengths')):
      np.testing.assert_array_equal(
          np.concatenate([call[part] for call in calls]),
          getattr(prompts, name_of)[at])
    np.testing.assert_array_equal(
        np.concatenate([call['rows'] for call in calls]),
        np.arange(node['batch_size']))
    state, batch = before(name, rollout), sampled(name, rollout)
    for call in calls:
      self.assertEqual(call['params_digest'],
                       recording.digest(state['params']))
      np.testing.assert_array_equal(
          call['key'], jax.random.key_data(front_door.child(state, 'sampler')))
    np.testing.assert_array_equal(
        batch['mask'].argmax(axis=-1),
        np.broadcast_to(prompts.lengths[at, None], batch['mask'].shape[:2]))
    close(batch['old_logprobs'], logprobs(name, rollout)['old_logprobs'])

  @parameterized.named_parameters(*CASES)
  def test_batch(self, name, rollout):
    batch = sampled(name, rollout)
    members = front_door.proxies(batch['tokens'], batch['mask'])
    seen = training(name).steps[rollout]['batch']
    front_door.assert_batch(seen, rollout_of(name, rollout))
    close(seen['member_scores'], members)

  @parameterized.named_parameters(*CASES)
  def test_updates(self, name, rollout):
    run, node = training(name), run_of(name)
    metrics = run.steps[rollout]['metrics']
    each = len(metrics['train/loss'])
    state = front_door.state_of(before(name, rollout), rollout * each)
    for update, at in enumerate(minibatches(name, rollout)):
      loss, slope = gradient(name)(state.params, {
          k: v[at] for k, v in rollout_of(name, rollout).items()})
      close(metrics['train/loss'][update], loss)
      close(metrics['train/grad_norm'][update], updates.norm(slope))
      state = updates.update(state, slope, num_steps=each * run.num_steps,
                             **node['optimizer'])
    self.assertEqual(update + 1, each)
    front_door.assert_state(state, run.steps[rollout]['state'])

  def test_statistics(self):
    last = training('ppo').steps[-1]['state']['statistics']
    close(last['kl_coef'], coefficient('ppo', 3))
    last = training('reinforce').steps[-1]['state']['statistics']
    shaped = np.stack([rollout_of('reinforce', i)['scores'] for i in range(3)])
    close(last['baseline']['mean'], shaped.mean())
    self.assertEqual(last['baseline']['count'], shaped.size)
    self.assertEqual(last['score_moments']['count'], 8)  # of the first rollout

  def test_every_part_has_something_to_do(self):
    """Or a fault in it would change no number."""
    ends, limits = [], []
    for name in LOSSES:
      for rollout in range(3):
        batch, limit = sampled(name, rollout), run_of(name)['reward']['clip']
        ends += rewards.missing_eos(
            np.zeros(batch['mask'].shape[:2]), batch['tokens'], batch['mask'],
            front_door.corpus().tokenizer.eos_id, value=1.).ravel().tolist()
        limits += (np.abs(noisy(name, rollout)) > limit).ravel().tolist()
    self.assertBetween(np.mean(ends), .1, .9)
    self.assertBetween(np.mean(limits), .05, .8)
    clipped = training('ppo').steps[-1]['metrics']['policy/clip_fraction']
    self.assertGreater(clipped.max(), 0)

  def test_nothing_frozen_moves(self):
    for name in LOSSES:
      run = training(name)
      jax.tree.map(np.testing.assert_array_equal, run.frozen['reference'],
                   front_door.trained('sft'))
      for kind, part in (('proxy', front_door.PROXIES), ('gold', 'gold')):
        if kind in run.frozen['reward']:
          models_of = jax.tree.map(
              lambda x, kind=kind: x if kind == 'proxy' else x[None],
              front_door.trained(part))
          jax.tree.map(np.testing.assert_array_equal,
                       run.frozen['reward'][kind], models_of)
      self.assertEqual({rollout['digest'] for rollout in run.rollouts}, {
          recording.digest([run.frozen[x] for x in ('reference', 'reward')])})
    self.assertNotIn('gold', training('ppo').frozen['reward'])


if __name__ == '__main__':
  absltest.main()
