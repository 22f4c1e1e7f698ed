"""The reference of the wiring tests against the numbers of objectives.md."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
from wiring import reference_losses as losses
from wiring import reference_models as models
from wiring import reference_rewards as rewards
from wiring import reference_updates as updates


@models.precise
def loss_of(name, out, batch, **arguments):
  return jax.jit(lambda out, batch: losses.mean(
      *losses.POLICY[name](out, batch, **arguments)))(out, batch)


def worked(name, lp, mask=None, out=None, **fields_and_arguments):
  """A loss of rows [B, T] as in objectives.md; scores are [B]."""
  fields = {'ref_logprobs', 'old_logprobs', 'advantages', 'scores', 'returns',
            'old_values', 'rewards'}
  lp = np.array(lp)
  wide = lambda x: np.array(x, np.float64)[:, None]
  batch = {k: wide(v) for k, v in fields_and_arguments.items() if k in fields}
  batch['mask'] = np.ones_like(lp, bool)[:, None] if mask is None else (
      np.array(mask, bool)[:, None])
  out = {'logprobs': lp[:, None], 'values': 0 * lp[:, None]} | (out or {})
  return loss_of(name, out, batch, **{
      k: v for k, v in fields_and_arguments.items() if k not in fields})


class WorkedTest(parameterized.TestCase):
  """Tests have the names of the sections."""

  def close(self, value, expected):
    np.testing.assert_allclose(value, expected, atol=5.1e-7, rtol=0)

  def test_1_sft(self):
    lp, mask = [[-.5, -1, -2], [-.25, -.75, -9]], [[1, 1, 1], [1, 1, 0]]
    for aggregate, expected in (('sequence', 2.25), ('token', .9),
                                ('sequence_mean', .833333)):
      self.close(worked('sft', lp, mask, aggregate=aggregate), expected)

  def test_2_and_3_reward_models(self):
    scores = np.array([[1, 0], [.2, .5]])
    of = models.precise(lambda x: losses.mean(*losses.bradley_terry(x)))
    self.close(of(scores), .583808)
    members = np.array([[1., 3], [3, 3], [2, 0]])
    for options, expected in (
        (dict(kind='mean'), [2, 2]), (dict(kind='worst_case'), [1, 0]),
        (dict(kind='uncertainty_weighted', uncertainty_coef=.5),
         [1.666667, 1])):
      self.close(rewards.aggregate(members, **options), expected)

  def test_5_kl(self):
    gap = np.array([[[.3, -.2, .1]]])
    mask = np.ones_like(gap, bool)
    shaped = rewards.kl_rewards(np.array([[1.5]]), gap, 0 * gap, mask, .1)
    self.close(shaped[0, 0], [-.03, .02, 1.49])
    self.close(rewards.kl_scores([[1.5]], gap, 0 * gap, mask, .1), [[1.48]])
    for observed, expected in ((9, .100512), (3, .099488), (6.3, .100128)):
      many = np.full((256, 1, 1), observed)
      self.close(rewards.adapted_coef(
          .1, many, 0 * many, many > 0, 6, 10_000), expected)

  def test_6_gae_and_whitening(self):
    r, v = np.array([[[-.03, .02, 1.49]]]), np.array([[[.5, .6, .8]]])
    mask = np.ones_like(r, bool)
    for gae_lambda, expected in ((0, [.07, .22, .69]), (1, [.98, .91, .69]),
                                 (.95, [.901725, .8755, .69])):
      advantages, returns = rewards.gae(r, v, mask, gae_lambda=gae_lambda)
      self.close(advantages[0, 0], expected)
    advantages, returns = rewards.gae(r, v, mask)
    self.close(returns[0, 0], [1.401725, 1.4755, 1.49])
    self.close(rewards.whiten(advantages, mask)[0, 0],
               [.841672, .563384, -1.405056])

  def test_6_ppo(self):
    lp = np.log([[1.5, 1.5, .5, .5]])
    fields = dict(old_logprobs=0 * lp, advantages=[[1, -1, 1, -1]],
                  value_coef=0., returns=0 * lp, old_values=0 * lp)
    self.close(worked('ppo', lp, **fields), .15)
    self.close(worked('ppo', lp, **fields, clip_ratio=None,
                      kl_penalty_coef=.2), .028768)
    self.close(worked(
        'ppo', [[-1, -2, -.5]], **fields | dict(
            old_logprobs=np.zeros((1, 3)), advantages=[[.98, .91, .69]],
            returns=np.zeros((1, 3)), old_values=np.zeros((1, 3))),
        ratio='none'), 1.048333)
    one = lambda x: np.array([[[x]]])
    self.close(loss_of('ppo', {'values': one(.9), 'logprobs': one(0.)}, {
        'mask': one(1) > 0, 'returns': one(1.), 'old_values': one(.5),
        'advantages': one(0.), 'old_logprobs': one(0.)}), .045)

  def test_7_sequences(self):
    self.close(rewards.moving_average([[1], [.2]], [np.full((2, 2), .5)]),
               [[.5], [-.3]])
    self.close(worked('reinforce', [[-3], [-2]], advantages=[.5, -.3]), .45)
    advantages = rewards.leave_one_out(np.array([[1., 2, 3, 6]]))
    self.close(advantages[0], [-2.666667, -1.333333, 0, 4])
    self.close(worked('reinforce', [[-1], [-2], [-3], [-4]],
                      advantages=advantages[0]), 2.666667)
    mask = np.ones((2, 3, 1), bool)
    kept = rewards.keep_best(np.array([[1., 4, 4], [0, -1, -2]]), mask)
    self.close(kept[..., 0], [[0, 1, 0], [1, 0, 0]])
    lp = np.array([[[-5.], [-4], [-9]], [[-2], [-7], [-8]]])
    self.close(loss_of('sft', {'logprobs': lp}, {'mask': kept},
                       aggregate='sequence'), 3.)

  def test_7_preferences(self):
    lp, ref = np.array([[[-10.], [-15]]]), np.array([[[-12.], [-14]]])
    batch = {'mask': lp < 0, 'ref_logprobs': ref}
    of = functools.partial(loss_of, 'dpo', {'logprobs': lp}, batch)
    self.close(of(beta=.1), .554355)
    self.close(of(beta=.1, reference_free=True), .474077)
    self.close(of(kind='ipo', tau=.1), 4.)

  def test_8_apa_and_awr(self):
    lp = [[-1, -2]]
    fields = dict(advantages=[[.05, -.03]], value_coef=0., returns=[[0, 0]])
    self.close(worked(
        'apa', lp, ref_logprobs=[[-1.2, -1.8]], beta=.1, **fields), .05)
    self.close(worked('awr', lp, beta=1., **fields), 1.496081)
    values = {'values': np.array([[[1, 1.2, 1.6]]])}
    returns = [[1.401725, 1.4755, 1.49]]
    self.close(worked('awr', [[0., 0, 0]], out=values, returns=returns,
                      advantages=0 * np.array(returns), beta=1.), .041564)

  @parameterized.parameters((0., 1.324768), (4., 1.324768 + 1.246871
                                             - 1.143669))
  def test_8_ilql(self, beta, expected):
    q = np.array([[[.4, .1], [.2, .7]], [[.3, .2], [0, .9]]])
    target = np.array([[[.35, 0], [.1, .6]], [[.25, 0], [.3, .8]]])
    logits = np.array([[0, .5], [1, 0]])
    taken = lambda x: np.array([x[0, 0], x[1, 1]])[None, None]
    normal = lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))
    out = {'logprobs': taken(normal(logits)), 'q_values': [taken(x) for x in q],
           'q_logprobs': [taken(normal(x)) for x in q],
           'target_q_values': [taken(x) for x in target],
           'values': np.array([[[.4, .5]]])}
    batch = {'mask': np.ones((1, 1, 2), bool),
             'rewards': np.array([[[0., 1]]])}
    self.close(loss_of('ilql', out, batch, beta=beta), expected)
    self.close(updates.polyak(target[0], q[0], .001)[0, 0], .35005)

  @parameterized.parameters(
      ('a_lol', .646), ('r_lol', 1.996402), ('ref_free', .34),
      ('sequence', .43767), ('kl', .355, dict(kl_coef=.05)), ('wbc', 1.365),
      ('gold', .503411), ('gold', .735155, dict(floor=.5)))
  def test_9_leftover(self, variant, expected, arguments=None):
    self.close(worked(
        'alol', [[-1, -.5, -.2], [-2, -1, 0]], [[1, 1, 1], [1, 1, 0]],
        ref_logprobs=[[-1.2, -.9, -.3], [-1.5, -1.4, 0]], scores=[.9, .4],
        advantages=[.4, -.2], variant=variant, **(arguments or {})), expected)

  def test_9_pro(self):
    means = np.array([[[-1, -.5, -.2], [-1.5, -1.5, -1.5]]])
    mask = np.ones((1, 2, 3), bool)
    for scores, expected in (([[2, .5]], .220417 + .085),
                             ([[.5, 2]], 1.620417 + .085)):
      self.close(loss_of('pro', {'logprobs': means}, {
          'mask': mask, 'scores': np.array(scores)}), expected)
    self.close(loss_of('pro', {'logprobs': np.array([[[-.5], [-1], [-2]]])}, {
        'mask': np.ones((1, 3, 1), bool), 'scores': np.array([[3., 2, 1]])},
                       sft_coef=0.), 1.030998)

  def test_10_nlpo(self):
    probs = np.array([.5, .3, .15, .05])
    of = models.precise(lambda x: jax.nn.log_softmax(models.restricted(
        x, x, .9, np.array([[1, 3]]))))
    logs = of(np.log(np.array([[probs, probs]])))[0]
    self.close(np.exp(logs[0]), [.526316, .315789, .157895, 0])
    self.close(logs[0, 1], -1.152680)
    self.close(np.exp(logs[1]), probs)  # whose fourth is there


if __name__ == '__main__':
  absltest.main()
