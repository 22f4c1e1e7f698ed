"""Every row of the algorithm table learns a toy problem, in seconds.

The reward of a response is the share of its tokens that are GOOD; the policy
is a decoder of one layer, from scratch.
"""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax import algorithms
from rlhf_jax import policy
from rlhf_jax import sampling
from rlhf_jax import sources
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.annotators import chain as chain_lib
from rlhf_jax.annotators import from_models
from rlhf_jax.annotators import running
from rlhf_jax.data import corpus
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.objectives import ppo
from rlhf_jax.ops import kl
from rlhf_jax.ops import logprobs
from rlhf_jax.ops import masked
from rlhf_jax.ops import nucleus
from rlhf_jax.ops import q_learning
from rlhf_jax.pipeline import online_models
from rlhf_jax.pipeline import unpaired
from rlhf_jax.rewards import models as reward_models

V, N, ROWS = 8, 5, 64
PAD, EOS, GOOD = 0, 1, 7
CONFIG = transformer.make_config(
    'llama', vocab_size=V, hidden_size=16, num_layers=1, num_heads=2,
    intermediate_size=24)
FORWARD = functools.partial(policy.forward, CONFIG)
# In what each row learns here; the data are made by _data.
REWARD_MODELS = ('reward_model', 'step_rewards', 'choice', 'plackett_luce',
                 'preference_lm', 'gold_model')
CHANGES = {
    # ILQL's policy term is plain imitation unless beta weighs it.
    'ilql': {'num_steps': 80, 'ilql': {'beta': 4.}},
    'awr_offline': {'awr': {'beta': .5}},
    # Without a reference, a small beta lets both responses fall without end.
    'simpo': {'simpo': {'beta': 10.}},
    # As it is little more than imitation, which learns these prompts by heart.
    'orpo': {'learning_rate': .01, 'orpo': {'odds_coef': 1.}},
    # One-step advantages show the policy only what the critic has learned.
    'actor_critic': {'num_steps': 80, 'kl_rewards': {'kl_coef': .01},
                     'ppo': {'value_coef': 5.}},
}


@functools.cache
def _params(seed=0):
  """The reference policy, and the heads that some algorithms train."""
  params = jax.jit(transformer.init, static_argnums=0)(
      CONFIG, jax.random.key(seed))
  keys = jax.random.split(jax.random.key(seed + 1))
  return {**params, 'value_head': heads.init_scalar(keys[0], 16, scale=.01),
          'q_heads': heads.init_q(keys[1], 16, V, scale=.01)}


@functools.cache
def _prompts():
  return (np.random.default_rng(0).integers(2, V, (ROWS, 3), np.int32),
          np.random.default_rng(1).integers(1, 4, ROWS, np.int32))


@functools.partial(jax.jit, static_argnames='num_samples')
def _sample(params, prompts, lengths, key, row_ids=None, *, num_samples=4,
            guide=None):
  if guide is not None:
    guide = nucleus.Guide(guide)
  return sampling.sample(
      CONFIG, params, prompts, lengths, key, num_samples=num_samples,
      max_new_tokens=N, eos_id=EOS, pad_id=PAD, force_eos=True,
      row_ids=row_ids, guide=guide)


def _reward(batch):
  return ((batch.tokens == GOOD) & batch.mask).sum(-1) / N


@functools.cache
def _before():
  return _average_reward(_params())[0]


def _average_reward(params):
  """Mean reward and KL (nats per response) of a policy's samples."""
  batch = _sample(params, *_prompts(), jax.random.key(9), num_samples=16)
  ref = _with_reference(batch, _params()).ref_logprobs
  gap = kl.estimate(batch.old_logprobs, ref, kind='k3')
  return (float(_reward(batch).mean()),
          float(masked.masked_sum(gap, batch.mask, axis=-1).mean()))


_with_reference = jax.jit(
    lambda batch, params: from_models.ref_logprobs(batch, CONFIG, params))
MODELS = {
    'scores': lambda batch, state, frozen: batch.replace(
        scores=_reward(batch)),
    'ref_logprobs': lambda batch, state, frozen: from_models.ref_logprobs(
        batch, CONFIG, frozen.reference),
    'nucleus': lambda batch, state, frozen, top_p, every: (
        from_models.old_logprobs(batch, CONFIG, state.params, guide=(
            nucleus.Guide(state.targets, top_p)))),
    'old_values': lambda batch, state, frozen: from_models.old_values(
        batch, CONFIG, state.params),
    'prompt_values': lambda batch, state, frozen: batch.replace(
        prompt_values=jnp.repeat(_logged().scores.mean(1), 4)),
    'reference_point': lambda batch, state, frozen: (
        from_models.reference_point(batch, CONFIG, state.params)),
}


@functools.cache
def _logged():
  """Four responses of the reference to each prompt, worst first."""
  batch = _sample(_params(), *_prompts(), jax.random.key(3))
  order = jnp.argsort(_reward(batch), axis=1)
  take = lambda x: jnp.take_along_axis(
      x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1)
  batch = jax.tree.map(take, batch)
  return batch.replace(scores=_reward(batch))


def _data(source):
  """Offline data of one kind, made of what the reference said."""
  batch = _logged()
  pick = lambda *at: jax.tree.map(lambda x: x[:, jnp.array(at)], batch)
  if source == 'demonstrations':
    return pick(3)
  if source == 'preferences':
    return pick(3, 0)
  if source == 'rankings':
    return pick(3, 2, 0)
  if source == 'choices':
    return batch.replace(targets=jnp.eye(4)[jnp.full(ROWS, 3)])
  if source == 'unpaired':  # the best and the worst, as logs have them
    tokens, mask = (np.asarray(x)[:, [3, 0]] for x in (
        batch.tokens, batch.mask))
    return unpaired.select(dict(tokens=tokens, mask=mask, group=np.tile(
        [0, 1], (ROWS, 1))), ['liked', 'disliked'])
  if source == 'targets':
    batch = batch.replace(targets=batch.scores)
  return jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:]), batch)


def _start(name, params, tx):
  """The forward pass and the first state of a row."""
  if name not in REWARD_MODELS:
    targets, forward = None, FORWARD
    if name == 'ilql':
      targets = params['q_heads']
    if name == 'nlpo':
      targets = {k: x for k, x in params.items() if 'head' not in k}
      forward = online_models.within(FORWARD, .9)
    return forward, train.init_state(params, tx, jax.random.key(0), targets)
  params = reward_models.init(CONFIG, jax.random.key(1), trunk=params)
  forward = functools.partial(
      reward_models.forward, CONFIG, per_step=name == 'step_rewards')
  if name == 'preference_lm':  # one trunk, two last layers
    forward = lambda params, batch: FORWARD(
        params['trunk'], batch).replace(scores=reward_models.score(
            CONFIG, params, batch.tokens, batch.mask))
    params['trunk'] = _params()
  return forward, train.init_state(params, tx, jax.random.key(0))


def _learn(name, num_steps=40, learning_rate=.02, updates=1, **changes):
  """Runs a row; the last parameters and the history of its metrics."""
  row = algorithms.ALGORITHMS[name].replace(**changes)
  tx = train.optimizer(learning_rate=learning_rate, num_steps=num_steps,
                       schedule='constant')
  forward, state = _start(name, _params(), tx)
  state = state.replace(statistics=running.init(row.annotators))
  frozen = types.Frozen(reference=_params())
  first, current = chain_lib.split(row.annotators)
  annotators = chain_lib.chain(first, MODELS)
  polyak = functools.partial(q_learning.polyak_every, rate=.1, every=1)
  step = train.make_train_step(
      forward, row.bind(), tx,
      update_targets=(lambda targets, params, step: polyak(
          targets, params['q_heads'], step)) if name == 'ilql' else None)
  if current:
    step = chain_lib.before_step(step, chain_lib.chain(current, MODELS))
  if row.source == 'prompts':
    sampler = functools.partial(
        _sample, num_samples=4 if row.more else row.samples)
    source = sources.online(
        corpus.Prompts(*_prompts()), sampler,
        jax.jit(sources.rollout(annotators)),
        batch_size=ROWS, seed=0)
    step = train.make_updates(step, num_epochs=updates)
    if name == 'nlpo':
      step = online_models.renewing(
          step, online_models.mask(row)['every'] * updates)
  else:
    data, _ = jax.jit(annotators)(_data(row.source), state, frozen)
    source = sources.offline(jax.device_get(data), batch_size=ROWS, seed=0)
  steps = list(train.train(state, frozen, source, jax.jit(step), start=0,
                           num_steps=num_steps // updates))
  history = jax.device_get([metrics for _, _, metrics in steps])
  return steps[-1][1], [  # one for each update, of what is measured at each
      {k: np.ravel(x)[i] for k, x in metrics.items() if np.size(x) == updates}
      for metrics in history for i in range(updates)]


def _mean_of(history, name, part):
  values = [metrics[name] for metrics in history]
  return np.mean(values[:5] if part == 'first' else values[-5:])


class PolicyTest(parameterized.TestCase):

  @parameterized.named_parameters(
      *((name, name) for name, row in algorithms.ALGORITHMS.items()
        if row.objective and name not in REWARD_MODELS))
  def test_reward_rises(self, name):
    state, history = _learn(name, **CHANGES.get(name, {}))
    after, _ = _average_reward(state.params)
    self.assertEqual(max(m['train/skipped'] for m in history), 0)
    self.assertGreater(after, _before() + .1)
    # The targets of one-step advantages are the critic's own guesses.
    if 'value/loss' in history[0] and name != 'actor_critic':
      self.assertLess(_mean_of(history, 'value/loss', 'last'),
                      _mean_of(history, 'value/loss', 'first'))

  @parameterized.named_parameters(
      ('ppo', 'ppo', {}),
      ('ppo_kl_penalty', 'ppo_kl_penalty', {}), ('nlpo', 'nlpo', {}),
      ('rloo_in_trl', 'rloo', {
          'reinforce': {'ratio': 'sequence', 'clip_ratio': .2}}),
      ('grpo', 'grpo', {}), ('dapo', 'dapo', {}), ('gspo', 'gspo', {}))
  def test_several_updates_of_one_rollout(self, name, changes):
    """The ratio leaves 1, is clipped where there is a clip, and all learn."""
    state, history = _learn(name, updates=4, **changes)
    after, _ = _average_reward(state.params)
    self.assertGreater(after, _before() + .1)
    first, later = history[0::4], history[3::4]
    for metrics in first:
      self.assertLess(abs(metrics['policy/approx_kl']), 1e-6)
      self.assertEqual(metrics['policy/clip_fraction'], 0)
    self.assertGreater(_mean_of(later, 'policy/approx_kl', 'first'), 1e-4)
    clipped = max(m['policy/clip_fraction'] for m in later)
    self.assertEqual(clipped > 0, name != 'ppo_kl_penalty')

  @parameterized.parameters(
      ('rloo', 'kl_scores', 'kl_coef', .01, 1.),
      ('vanilla_pg', 'kl_rewards', 'kl_coef', .01, 1.),
      ('grpo', 'reinforce', 'kl_coef', 0., 1.),
      ('apa', 'apa', 'beta', .1, 10.),
      ('dpo', 'dpo', 'beta', .05, 5.))
  def test_kl_falls_as_its_coefficient_grows(
      self, name, node, argument, small, large):
    far, near = (_average_reward(_learn(
        name, **{node: {argument: value}})[0].params)[1]
                 for value in (small, large))
    self.assertLess(near, .5 * far)

  def test_ilql_shifts_generation_to_the_reward(self):
    state, _ = _learn('ilql')
    prompts, lengths = _prompts()
    hidden = transformer.hidden_states(CONFIG, state.params, prompts)
    hidden = hidden[np.arange(ROWS), lengths - 1]
    logits = lambda weight: jnp.einsum('bd,vd->bv', hidden, weight)
    shifted = lambda beta: jax.nn.softmax(q_learning.shift_logits(
        logits(transformer.unembedding(state.params)),
        tuple(logits(head) for head in state.targets),
        heads.scalar(state.params['value_head'], hidden), beta=beta))
    good = [float(shifted(beta)[:, GOOD].mean()) for beta in (0., 4., 16.)]
    self.assertGreater(good[1], good[0] + .05)
    self.assertGreater(good[2], good[1] + .05)


class MaskedPolicyTest(absltest.TestCase):

  def test_nlpo_learns_inside_its_nucleus(self):
    """PPO on a table of logits; the mask policy is refreshed every 5 steps."""
    start = jnp.zeros((V, V)).at[:, GOOD].set(-1.).at[:, 2].set(-6.)
    prompts = jnp.arange(ROWS) % V
    tx = train.optimizer(learning_rate=.1, num_steps=40, schedule='constant')

    def logits(table, batch):
      return table[batch.tokens]

    def draw(table, guide, key):
      """Responses [ROWS, 1, 1 + N] from `table` in the nucleus of `guide`."""
      def step(token, key):
        allowed = nucleus.nucleus(guide[token], top_p=.95)
        token = jax.random.categorical(
            key, nucleus.restrict(table[token], allowed))
        return token, token
      _, tokens = jax.lax.scan(step, prompts, jax.random.split(key, N))
      tokens = jnp.concatenate([prompts[None], tokens]).T[:, None]
      mask = jnp.broadcast_to(jnp.arange(N + 1) > 0, tokens.shape)
      return types.Batch(tokens=tokens, mask=mask)

    def logprobs_of(table, batch, allowed):
      return logprobs.token_logprobs(
          nucleus.restrict(logits(table, batch), allowed), batch.tokens)

    @jax.jit
    def step(table, guide, opt_state, key):
      batch = draw(table, guide, key)
      allowed = nucleus.nucleus(logits(guide, batch), top_p=.95)  # kept
      old = logprobs_of(table, batch, allowed)
      score = _reward(batch)
      actual = jnp.where(batch.mask, (score - score.mean())[..., None], 0)
      for _ in range(2):  # updates of one rollout
        loss = lambda x: twin.mean(ppo.ppo_loss(
            logprobs_of(x, batch, allowed), old, actual, batch.mask))
        updates, opt_state = tx.update(
            jax.grad(loss)(table), opt_state, table)
        table = table + updates
      forbidden = jnp.sum((batch.tokens == 2)[..., 1:])
      return table, opt_state, score.mean(), jnp.isfinite(old).all(), forbidden

    table, guide, opt_state, rewards_seen = start, start, tx.init(start), []
    for i, key in enumerate(jax.random.split(jax.random.key(0), 40)):
      guide = table if i % 5 == 0 else guide
      table, opt_state, score, finite, forbidden = step(
          table, guide, opt_state, key)
      self.assertTrue(finite)
      self.assertEqual(forbidden, 0)  # never in the nucleus
      rewards_seen.append(float(score))
    self.assertGreater(rewards_seen[-1], rewards_seen[0] + .3)


class RewardModelTest(parameterized.TestCase):

  @parameterized.parameters(
      ('reward_model', 'reward/accuracy'), ('step_rewards', 'reward/accuracy'),
      ('choice', 'reward/accuracy'), ('plackett_luce', 'reward/accuracy'),
      ('preference_lm', 'reward/accuracy'))
  def test_accuracy_rises(self, name, metric):
    _, history = _learn(name)
    self.assertGreater(_mean_of(history, metric, 'last'), .8)
    self.assertGreater(_mean_of(history, metric, 'last'),
                       _mean_of(history, metric, 'first') + .1)

  def test_error_of_the_gold_model_falls(self):
    _, history = _learn('gold_model')
    self.assertLess(history[-1]['train/loss'], .3 * history[0]['train/loss'])

  def test_members_of_an_ensemble_learn_apart(self):
    tx, members = train.optimizer(
        learning_rate=.02, num_steps=80, schedule='constant'), 3
    params = reward_models.init_members(
        CONFIG, jax.random.split(jax.random.key(0), members), trunk=_params())
    keys = jax.random.split(jax.random.key(1), members)
    state = jax.vmap(lambda p, k: train.init_state(p, tx, k))(params, keys)
    step = jax.jit(jax.vmap(train.make_train_step(
        functools.partial(reward_models.forward, CONFIG),
        algorithms.ALGORITHMS['reward_model'].bind(), tx)))
    source = sources.offline_members(
        jax.device_get(_data('preferences')), batch_size=16,
        seeds=range(members))
    steps = list(train.train(
        state, types.Frozen(), source, step, start=0, num_steps=60))
    history = jax.device_get([metrics for _, _, metrics in steps])
    accuracy = np.mean([m['reward/accuracy'] for m in history[-5:]], axis=0)
    self.assertEqual(accuracy.shape, (members,))
    self.assertGreater(accuracy.min(), .8)
    weight = steps[-1][1].params['trunk']['embed']  # apart, from one trunk
    self.assertGreater(np.abs(weight[0] - weight[1]).max(), .01)


if __name__ == '__main__':
  absltest.main()
