"""Every algorithm learns a toy problem, through the parts users call."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from rlhf_jax import annotate
from rlhf_jax import objectives
from rlhf_jax import policy
from rlhf_jax import rewards
from rlhf_jax import sampling
from rlhf_jax import sources
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.models import transformer

V, N = 8, 5
PAD, EOS, GOOD = 0, 1, 7
CONFIG = transformer.make_config(
    'llama', vocab_size=V, hidden_size=16, num_layers=1, num_heads=2,
    intermediate_size=24)
FORWARD = functools.partial(policy.forward, CONFIG)


@functools.cache
def _params(seed=0):
  return jax.jit(transformer.init, static_argnums=0)(
      CONFIG, jax.random.key(seed))


def _tx(num_steps, learning_rate):
  return train.optimizer(learning_rate=learning_rate, num_steps=num_steps,
                         schedule='constant')


def _run(state, source, step, num_steps, frozen=None):
  """The last state and the history of metrics, one dict a step."""
  steps = list(train.train(
      state, frozen or types.Frozen(), source, jax.jit(step), start=0,
      num_steps=num_steps))
  return steps[-1][1], jax.device_get([metrics for _, _, metrics in steps])


def _pairs(count, seed=0):
  """Prompt of two, response of four; GOOD is in the chosen one alone."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(2, GOOD, (count, 2, 6), dtype=np.int32)
  tokens[np.arange(count), 0, rng.integers(2, 5, count)] = GOOD
  tokens[..., 5] = EOS
  tokens[:, 1, :2] = tokens[:, 0, :2]
  mask = np.broadcast_to(np.arange(6) >= 2, tokens.shape)
  return types.Batch(tokens=tokens, mask=mask)


class LearningTest(parameterized.TestCase):

  def test_sft_lowers_the_likelihood_loss(self):
    rng = np.random.default_rng(0)
    start = rng.integers(0, V, (64, 1, 1))
    tokens = ((start + 3 * np.arange(6)) % V).astype(np.int32)
    data = types.Batch(
        tokens=tokens, mask=np.broadcast_to(np.arange(6) >= 1, tokens.shape))
    tx = _tx(60, .02)
    _, history = _run(
        train.init_state(_params(), tx, jax.random.key(0)),
        sources.offline(data, batch_size=16, seed=0),
        train.make_train_step(FORWARD, objectives.get('sft'), tx), 60)
    self.assertGreater(history[0]['train/loss'], 1.5)
    self.assertLess(history[-1]['train/loss'], .1)

  def test_reward_ensemble_learns_a_preference(self):
    tx, members = _tx(80, .02), 3
    params = rewards.init_members(
        CONFIG, jax.random.split(jax.random.key(0), members), trunk=_params())
    keys = jax.random.split(jax.random.key(1), members)
    state = jax.vmap(lambda p, k: train.init_state(p, tx, k))(params, keys)
    step = jax.vmap(train.make_train_step(
        functools.partial(rewards.forward, CONFIG),
        objectives.get('bradley_terry'), tx))
    state, history = _run(state, sources.offline_members(
        _pairs(128), batch_size=16, seeds=range(members)), step, 80)
    self.assertEqual(history[0]['train/loss'].shape, (members,))
    test = _pairs(200, seed=1)
    scores = jax.jit(rewards.score_members, static_argnums=0)(
        CONFIG, state.params, test.tokens, test.mask)
    accuracy = np.mean(scores[..., 0] > scores[..., 1], axis=1)
    self.assertGreater(accuracy.min(), .9)
    weight = state.params['trunk']['embed']  # apart, from one trunk
    self.assertGreater(np.abs(weight[0] - weight[1]).max(), .01)

  @parameterized.parameters('programmatic', 'ensemble')
  def test_rloo_raises_the_reward(self, kind):
    def sampler(params, prompts, lengths, key):
      return sampling.sample(
          CONFIG, params, prompts, lengths, key, num_samples=4,
          max_new_tokens=N, eos_id=EOS, pad_id=PAD, force_eos=True)

    seen = []

    @jax.jit
    def annotate_all(batch, frozen):
      if kind == 'ensemble':
        batch = annotate.scores(
            batch, CONFIG, frozen.reward, kind='worst_case')
      else:
        good = (batch.tokens == GOOD) & batch.mask
        batch = batch.replace(scores=good.sum(-1) / N)
      score = (batch.scores.mean(), batch.scores.std())
      batch = annotate.ref_logprobs(batch, CONFIG, frozen.reference)
      batch = annotate.kl_scores(batch, kl_coef=.01)
      return annotate.leave_one_out(batch), score

    def annotators(batch, frozen):
      batch, score = annotate_all(batch, frozen)
      seen.append(score)
      return batch

    prompts = np.random.default_rng(0).integers(2, V, (32, 3), np.int32)
    lengths = np.random.default_rng(1).integers(1, 4, 32, np.int32)
    frozen = types.Frozen(
        reference=_params(), reward=rewards.init_members(
            CONFIG, jax.random.split(jax.random.key(5), 2), trunk=_params()))
    tx = _tx(60, .02)
    step = train.make_train_step(FORWARD, objectives.get('reinforce'), tx)
    _run(train.init_state(_params(), tx, jax.random.key(0)), sources.online(
        prompts, lengths, sampler, annotators, batch_size=16, seed=0), step,
         60, frozen)
    mean, deviation = np.array(seen).T
    gain = mean[-5:].mean() - mean[:5].mean()
    self.assertGreater(
        gain / deviation[0], {'programmatic': 1.5, 'ensemble': .5}[kind])

  def test_dpo_raises_the_margin(self):
    tx = _tx(40, .02)
    reference = jax.jit(lambda b, p: annotate.ref_logprobs(b, CONFIG, p))
    data = jax.device_get(reference(_pairs(64), _params()))
    step = train.make_train_step(FORWARD, objectives.get('dpo', beta=.1), tx)
    _, history = _run(
        train.init_state(_params(), tx, jax.random.key(0)),
        sources.offline(data, batch_size=16, seed=0), step, 40)
    self.assertAlmostEqual(
        history[0]['train/loss'], np.log(2), delta=1e-5)
    self.assertAlmostEqual(history[0]['reward/margin'], 0, delta=1e-5)
    self.assertGreater(history[-1]['reward/margin'], .3)
    self.assertEqual(history[-1]['reward/accuracy'], 1)


if __name__ == '__main__':
  absltest.main()
