"""The reference of the wiring tests against the proven lower half.

So that a rollout that differs from the reference is a fault in what wires
them. `worked_test` has the reference alone, against numbers of objectives.md.
"""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
import twin
from wiring import reference_losses as losses
from wiring import reference_models as models
from wiring import reference_rewards as rewards
from wiring import reference_updates as updates

from rlhf_jax import algorithms
from rlhf_jax import policy
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.annotators import chain as chain_lib
from rlhf_jax.annotators import running
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.ops import ensembles
from rlhf_jax.ops import kl
from rlhf_jax.ops import q_learning
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.rewards import scale as scale_lib

B, K, T, V, D, EOS = 6, 3, 9, 11, 16, 1
CLOSE = dict(rtol=1e-5, atol=2e-6)
close = functools.partial(np.testing.assert_allclose, **CLOSE)


def trees_close(a, b, **tolerance):
  jax.tree.map(functools.partial(
      np.testing.assert_allclose, **{**CLOSE, **tolerance}), a, b)


def exactly(function, *args):
  return models.precise(jax.jit(function))(*args)


def config(num_layers=1):
  return transformer.make_config(
      'llama', vocab_size=V, hidden_size=D, num_layers=num_layers,
      num_heads=models.NUM_HEADS, intermediate_size=24)


@functools.cache
def decoder(seed, num_layers=1):
  params = jax.jit(transformer.init, static_argnums=0)(
      config(num_layers), jax.random.key(seed))
  # Norms that scale, or a norm left out would not be seen.
  return jax.tree.map(lambda x: np.asarray(x) * (1 + .1 * np.cos(
      np.arange(x.size, dtype=np.float32).reshape(x.shape))), params)


@functools.cache
def rows():
  """tokens i32[B, K, T] and a ragged mask; some responses end in an EOS."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(2, V, (B, K, T), np.int32)
  first, length = rng.integers(1, 4, (B, 1, 1)), rng.integers(1, 6, (B, K, 1))
  at = np.arange(T)[None, None]
  mask = (at >= first) & (at < first + length)
  ends = (at == first + length - 1) & (rng.random((B, K, 1)) < .5)
  return np.where(ends, EOS, np.where(at < first + length, tokens, 0)
                  ).astype(np.int32), mask


class ModelTest(parameterized.TestCase):

  @parameterized.parameters((1, False, False, 1.), (2, True, True, .8))
  def test_policy(self, num_layers, mlp, trunk, temperature):
    keys = jax.random.split(jax.random.key(3), 3)
    params = {**decoder(0, num_layers),
              'value_head': heads.init_scalar(keys[0], D, mlp=mlp),
              'q_heads': heads.init_q(keys[1], D, V, mlp=mlp)}
    targets = heads.init_q(keys[2], D, V, mlp=mlp)
    if trunk:
      params['value_trunk'] = heads.trunk(decoder(1, num_layers))
    tokens, mask = rows()
    out = jax.jit(functools.partial(
        policy.forward, config(num_layers), temperature=temperature))(
            params, types.Batch(tokens, mask), targets)
    twin_of = exactly(models.policy, params, tokens, targets, temperature)
    self.assertEqual(twin_of['logprobs'].dtype, np.float64)
    for name, value in twin_of.items():
      trees_close(list(getattr(out, name)) if isinstance(value, list)
                  else getattr(out, name), value)

  def test_members(self):
    params = reward_models.init_members(
        config(), jax.random.split(jax.random.key(0), 3), trunk=decoder(0))
    scores = jax.jit(reward_models.score_members, static_argnums=0)(
        config(), params, *rows())
    close(scores, exactly(models.members, params, *rows()))

  def test_prompt_values(self):
    head = heads.init_prompt_value(jax.random.key(5), D, num_heads=4)
    head['scalar'] = heads.init_scalar(jax.random.key(6), D, scale=3.)
    tokens = rows()[0][:, 0]
    lengths = np.array([1, 9, 4, 2, 7, 5])
    out = jax.jit(lambda params, mask: heads.prompt_value(
        head, transformer.hidden_states(config(), params, tokens), mask,
        num_heads=4, max_value=5.))(
            decoder(0), np.arange(T)[None] < lengths[:, None])
    close(out, exactly(
        models.prompt_values, head, decoder(0), tokens, lengths, 5.))
    self.assertGreater(np.ptp(out), .1)


def batch_of(rng, **fields):
  """A batch dict with what annotators and objectives read."""
  tokens, mask = rows()
  noise = lambda *shape: rng.normal(size=shape).astype(np.float32)
  old = -np.abs(noise(B, K, T)) - .1
  return {
      'tokens': tokens, 'mask': mask, 'scores': noise(B, K),
      'old_logprobs': np.where(mask, old, 0).astype(np.float32),
      'ref_logprobs': old + .3 * noise(B, K, T),
      'old_values': noise(B, K, T),
      'targets': rng.integers(0, 2, (B, K)).astype(np.float32),
      'reference_points': np.full((B, K), .7, np.float32), **fields}


def annotated(nodes, batch, statistics=None):
  """What the package's annotators fill; and the statistics after them."""
  state = types.TrainState(
      step=jnp.int32(0), params={}, opt_state=(), key=jax.random.key(0),
      statistics=statistics or running.init(nodes))
  done, state = jax.jit(
      lambda batch, state: chain_lib.chain(nodes, {})(batch, state, None))(
          types.Batch(**batch), state)
  return done, state.statistics


class RewardTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.batch = batch_of(np.random.default_rng(7))
    self.mask = self.batch['mask']
    self.logprobs = [self.batch[k] for k in ('old_logprobs', 'ref_logprobs')]

  @parameterized.parameters('mean', 'worst_case', 'uncertainty_weighted',
                            'single')
  def test_members(self, kind):
    raw = np.random.default_rng(0).normal(2, 3, (4, B, K)).astype(np.float32)
    scale = {'mean': np.float32([1, 2, 3, 4]), 'std': np.float32([1, 2, .5, 3])}
    options = {'kind': kind}
    if kind == 'uncertainty_weighted':
      options['uncertainty_coef'] = .3
    if kind == 'single':
      options['member'] = 2
    close(ensembles.aggregate(scale_lib.standardize(raw, scale), **options),
          rewards.aggregate(rewards.standardize(raw, **scale), **options))

  @parameterized.parameters(dict(penalty=.7), dict(value=-1.))
  def test_clip_and_missing_eos(self, **how):
    done, _ = annotated([
        {'name': 'clip_scores', 'limit': .8},
        {'name': 'missing_eos', 'eos_id': EOS, **how}], self.batch)
    scores = np.clip(self.batch['scores'], -.8, .8)
    other = rewards.missing_eos(
        scores, self.batch['tokens'], self.mask, EOS, **how)
    close(done.scores, other)
    self.assertBetween((other != scores).mean(), .2, .8)

  def test_scales(self):
    scores = [np.random.default_rng(i).normal(size=(B, K)).astype(np.float32)
              for i in range(3)]
    for kind in ('running', 'first'):
      statistics = None
      for i, x in enumerate(scores):
        done, statistics = annotated(
            [{'name': 'scale_scores', 'kind': kind}],
            self.batch | {'scores': x}, statistics)
        last = i + 1 if kind == 'running' else 1
        close(done.scores, x / rewards.deviation(scores[:last]))

  def test_kl_and_its_controller(self):
    nodes = [{'name': 'kl_scores', 'kl_coef': .2},
             {'name': 'kl_rewards', 'kl_coef': .2},
             {'name': 'adapt_kl_coef', 'target': .05, 'horizon': 50}]
    done, statistics = annotated(nodes, self.batch)
    scores = rewards.kl_scores(
        self.batch['scores'], *self.logprobs, self.mask, .2)
    close(done.scores, scores)
    close(done.rewards, rewards.kl_rewards(
        scores, *self.logprobs, self.mask, .2))
    close(statistics['kl_coef'], rewards.adapted_coef(
        .2, *self.logprobs, self.mask, .05, 50))

  @parameterized.parameters((.5, 1.), (1., 1.), (2., 1.), (1.6, 1.))
  def test_doubling(self, observed, target):
    close(kl.doubling_coef(jnp.float32(.3), jnp.float32(observed),
                           target=target),
          rewards.doubled_coef(.3, observed, target))

  def test_moving_average(self):
    scores, statistics = [], None
    for i in range(3):
      x = np.random.default_rng(i).normal(size=(B, K)).astype(np.float32)
      done, statistics = annotated(
          [{'name': 'moving_average'}], self.batch | {'scores': x}, statistics)
      close(done.advantages, rewards.moving_average(x, scores))
      scores.append(x)

  @parameterized.parameters(
      ('leave_one_out', {}), ('group_normalize', {}),
      ('group_normalize', {'scale': False}))
  def test_groups(self, name, arguments):
    done, _ = annotated([{'name': name, **arguments}], self.batch)
    close(done.advantages, getattr(rewards, name)(
        self.batch['scores'], **arguments))

  def test_keep_best(self):
    done, _ = annotated([{'name': 'keep_best'}], self.batch)
    np.testing.assert_array_equal(
        done.mask, rewards.keep_best(self.batch['scores'], self.mask))

  @parameterized.parameters((1., .95), (1., 1.), (.9, .5))
  def test_gae_and_whitening(self, discount, gae_lambda):
    batch = self.batch | {'rewards': np.where(
        self.mask, self.batch['ref_logprobs'], 0)}
    options = dict(discount=discount, gae_lambda=gae_lambda)
    done, _ = annotated([{'name': 'gae', **options}], batch)
    advantages, returns = rewards.gae(
        batch['rewards'], batch['old_values'], self.mask, **options)
    close(done.advantages, advantages)
    close(done.returns, returns)
    done, _ = annotated([{'name': 'gae', **options}, {'name': 'whiten'}], batch)
    close(done.advantages, rewards.whiten(advantages, self.mask))

  def test_of_a_log(self):
    done, _ = annotated([{'name': 'standardize_scores'}], self.batch)
    close(done.scores, rewards.standardize_log(self.batch['scores']))


def single(batch):
  """The first response of each prompt, as those of one row are."""
  return {k: x[:, :1] for k, x in batch.items()}


def outputs(rng, count):
  """What a policy might say of B x count responses, f32."""
  mask = rows()[1][:, :count]
  make = lambda: -np.abs(rng.normal(size=mask.shape)).astype(np.float32) - .1
  two = lambda: [make(), make()]
  return {'logprobs': make(), 'entropy': -make(), 'values': make(),
          'q_values': two(), 'q_logprobs': two(), 'target_q_values': two()}


# Rows of the table as they are, and arguments that tests of wiring give.
VARIANTS = {
    'ppo': [{}, dict(entropy_coef=.02, value_coef=.5, clip_ratio=.1),
            dict(kl_coef=.3), dict(value_clip=None, clip_ratio=(.1, .3))],
    'rloo': [{}, dict(ratio='sequence', clip_ratio=.2)],
    'dr_grpo': [dict(constant_length=7)],
    'sft': [dict(aggregate=x) for x in ('token', 'sequence', 'sequence_mean')],
    'ilql': [{}, dict(beta=.7, expectile=.6, discount=.9)],
    'a_lol': [{}, dict(clip_ratio=.3)],
    'kto': [{}, dict(desirable_weight=1.3, undesirable_weight=.6)],
}
ROWS = {name: row for name, row in algorithms.ALGORITHMS.items()
        if row.objective and row.objective['name'] in losses.POLICY}


def cases():
  for name in ROWS:
    for number, arguments in enumerate(VARIANTS.get(name, [{}])):
      yield f'{name}_{number}', name, arguments


@models.precise
def reference_gradient(name, out, batch, arguments):
  return jax.jit(jax.value_and_grad(lambda out: losses.mean(
      *losses.POLICY[name](out, batch, **arguments))))(out)


class LossTest(parameterized.TestCase):

  def test_no_row_is_left_out(self):
    trained = {row.objective['name'] for row in algorithms.ALGORITHMS.values()
               if row.objective}
    self.assertEqual(trained - set(losses.POLICY), {
        'bradley_terry', 'ranking', 'preference_lm', 'value_regression'})

  @parameterized.named_parameters(*cases())
  def test_value_and_gradient(self, name, arguments):
    row = ROWS[name].replace(**{ROWS[name].objective['name']: arguments})
    rng = np.random.default_rng(len(name))
    batch = batch_of(
        rng, rewards=rng.normal(size=(B, K, T)).astype(np.float32),
        returns=rng.normal(size=(B, K, T)).astype(np.float32))
    of_response = row.unit != 'token' or row.objective['name'] == 'reinforce'
    batch['advantages'] = rng.normal(size=(B, K) if of_response else (
        B, K, T)).astype(np.float32)
    count = {1: 1, 2: 2}[row.samples] if not row.more else K
    batch = {k: x[:, :count] for k, x in batch.items()}
    out = outputs(rng, count)

    def loss(out):
      tuples = {k: tuple(x) if isinstance(x, list) else x
                for k, x in out.items()}
      return twin.mean(row.bind()(
          types.PolicyOutput(**tuples), types.Batch(**batch)))

    value, gradient = jax.jit(jax.value_and_grad(loss))(out)
    arguments = {k: v for k, v in row.objective.items() if k != 'name'}
    expected, slope = reference_gradient(
        row.objective['name'], out, batch, arguments)
    close(value, expected)
    trees_close(gradient, slope)
    self.assertGreater(np.abs(slope['logprobs']).max(), 1e-4)

  def test_bradley_terry(self):
    scores = np.random.default_rng(0).normal(size=(B, 2)).astype(np.float32)
    out = types.PolicyOutput(scores=scores)
    close(twin.mean(algorithms.ALGORITHMS['reward_model'].bind()(
        out, types.Batch(rows()[0][:, :2], rows()[1][:, :2]))),
          exactly(lambda x: losses.mean(*losses.bradley_terry(x)), scores))


class UpdateTest(parameterized.TestCase):

  @parameterized.parameters(
      dict(), dict(warmup_steps=3), dict(schedule='constant', warmup_steps=4),
      dict(schedule='constant', clip_norm=None), dict(weight_decay=.1),
      dict(weight_decay=.1, decay_all=True),
      dict(b2=.95, clip_norm=.2, num_steps=5))
  def test_optimizer(self, **options):
    options = dict(learning_rate=.01, num_steps=9) | options
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(3, size=shape).astype(np.float32)
    make = lambda: {'a': draw(3, 2), 'b': [draw(4)], 'norm': {'scale': draw(4)},
                    'unembed_bias': draw(4)}
    params = make()
    tx = train.optimizer(**options)
    opt_state, state = tx.init(params), updates.start(params)
    for i in range(8):
      gradients = jax.tree.map(lambda x, i=i: x * 2.**(i % 3 - 1), make())
      step, opt_state = tx.update(gradients, opt_state, params)
      params = optax.apply_updates(params, step)
      state = updates.update(state, gradients, **options)
      trees_close(params, state.params, atol=2e-7)
      trees_close(optax.tree.get(opt_state, 'mu'), state.mu)
      trees_close(optax.tree.get(opt_state, 'nu'), state.nu)

  def test_polyak(self):
    old, new = decoder(0), decoder(1)
    trees_close(q_learning.polyak(old, new, rate=.3),
                updates.polyak(old, new, .3))


if __name__ == '__main__':
  absltest.main()
