"""Tests for rlhf_jax.pipeline.online_checks: every row, and mistakes."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from rlhf_jax import algorithms
from rlhf_jax.configs import base
from rlhf_jax.pipeline import online_checks
from rlhf_jax.pipeline import online_methods
from rlhf_jax.studies import trees


def run(**changes):
  """The node of a run."""
  node = base.online_config('smoke').to_dict()['online']
  del node['condition']
  return trees.merge(node, changes, 'test')


class CheckTest(parameterized.TestCase):

  @parameterized.parameters(*online_methods.names())
  def test_every_row_traces(self, name):
    row = algorithms.ALGORITHMS[name]
    online_checks.check(run(algorithm=name, rollout=dict(
        samples=max(2, row.samples) if row.more else row.samples)))

  @parameterized.parameters(
      (dict(algorithm='rloo'), 'RLOO takes rollout.samples 2 or more, got 1'),
      (dict(rollout=dict(samples=2)), 'PPO takes rollout.samples 1, got 2'),
      (dict(algorithm='dapo', rollout=dict(resample=2)),
       'set rollout.samples >= 2, got 1'),
      (dict(algorithm='dapo', rollout=dict(resample=2, samples=4),
            reward=dict(noise=1.)), 'reward.noise=0.0, got 1.0'),
      (dict(kl=dict(coef=0., target=6.)), 'kl.target adapts a coefficient'),
      (dict(updates=dict(penalty_target=.1)), 'needs the KL-penalty form'),
      (dict(algorithm='ppo_kl_penalty', updates=dict(
          penalty_target=.1, num_epochs=1)), 'set updates.num_epochs >= 2'),
      (dict(arguments=dict(gae=dict(lam=.9))), 'annotator gae.*lam'),
      (dict(algorithm='nlpo', arguments=dict(nucleus=dict(top_p=2.))),
       r'top_p must be in \(0, 1\], got 2.0'),
      (dict(algorithm='nlpo', arguments=dict(nucleus=dict(mu=2))), 'mu'),
      (dict(arguments=dict(ppo=dict(clip=.9))), 'clip'))
  def test_mistakes_are_one_line(self, changes, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      online_checks.check(run(**changes))
    self.assertNotIn('\n', str(caught.exception))

  def test_what_differs_in_its_reward_models_is_traced_once(self):
    proxy = lambda kind: dict(components=dict(proxy=dict(
        kind='proxy', aggregate=dict(kind=kind))))
    with (mock.patch.object(online_checks, '_CHECKED', set()),
          mock.patch.object(online_checks, '_trace') as trace):
      for changes, count in (
          (dict(reward=proxy('mean')), 1),
          (dict(reward=proxy('worst_case')), 1),
          (dict(reward=dict(clip=1.)), 2), (dict(algorithm='apa'), 3),
          (dict(kl=dict(coef=.5)), 4), (dict(updates=dict(num_epochs=1)), 5),
          (dict(arguments=dict(gae=dict(gae_lambda=.5))), 6),
          (dict(rollout=dict(samples=2)), 7),
          (dict(objective='mine:loss'), 8), (dict(objective='mine:loss'), 9)):
        online_checks.check(run(**changes))
        self.assertEqual(trace.call_count, count, changes)

  def test_a_mistake_is_said_each_time(self):
    for _ in range(2):
      with self.assertRaisesRegex(ValueError, 'clip'):
        online_checks.check(run(arguments=dict(ppo=dict(clip=.9))))


if __name__ == '__main__':
  absltest.main()
