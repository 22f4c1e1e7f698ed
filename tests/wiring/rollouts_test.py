"""Whole rollouts of the stage `online_policy`, computed again in float64.

A stage passes arrays on; nothing in it is arithmetic of its own, and nothing
else in the suite would notice if it passed on the wrong ones. So a stage runs
with everything switched on that a config can switch on: another temperature
than 1, a KL penalty, noise, clipping, a penalty without EOS, members that are
standardised, a component of texts beside them, several minibatches and
epochs. What it sampled, and the keys of its draws, are taken from it; all else
is computed from objectives.md by `reference_*`, without the package's own
arithmetic, up to the parameters after all updates.
"""

import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import optax
from wiring import recording
from wiring import reference_losses as losses
from wiring import reference_models as models
from wiring import reference_rewards as rewards
from wiring import reference_updates as updates
from wiring import shared
import worlds

from rlhf_jax import algorithms
from rlhf_jax import streams
from rlhf_jax import train
from rlhf_jax.data import order
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import online_methods
from rlhf_jax.stages import online_policy

SEED, TEMPERATURE, SIGMA, LIMIT, PENALTY = 0, .8, .3, .9, .4
WEIGHTS, COEF, TARGET = dict(proxy=.7, short=.5), .2, 8
UPSTREAM = dict(reference='sft', gold='gold', pairs='pairs', proxies='proxies')
AGGREGATE = dict(kind='uncertainty_weighted', uncertainty_coef=.7)
# What of a run is particular to each case: k, and changes of its node.
CASES = dict(
    ppo=(1, {}),
    # A mask policy that the policy has left, and that is renewed at the end.
    nlpo=(1, dict(arguments=dict(nucleus=dict(top_p=.8, every=2)))),
    ppo_separate=(1, dict(algorithm='ppo', value=dict(
        trunk='separate', mlp=False, scale=.5))),
    ppo_reward_trunk=(1, dict(algorithm='ppo', value=dict(
        trunk='reward', mlp=True, scale=.5))),
    ppo_adaptive=(1, dict(algorithm='ppo', kl=dict(
        coef=COEF, place='reward', target=.01, horizon=20))),
    ppo_loss_kl=(1, dict(algorithm='ppo', kl=dict(
        coef=COEF, place='loss', target=None, horizon=20))),
    # Of three: two alike with opposite advantages would cancel to rounding.
    rloo=(3, {}), raft=(2, {}), reinforce=(1, {}),
    grpo=(3, dict(kl=dict(coef=None, place='reward', target=None,
                          horizon=20))),
    apa=(1, dict(kl=dict(coef=0., place='reward', target=None, horizon=20))),
    awr=(1, {}),
    # Clipped so far that many prompts have responses of one score.
    dapo_resampled=(2, dict(
        algorithm='dapo', kl=dict(coef=None, place='reward', target=None,
                                  horizon=20),
        reward=dict(noise=0., clip=.05), rollout=dict(resample=3))),
    online_dpo=(2, dict(kl=dict(coef=None, place='reward', target=None,
                                horizon=20))))


def make_run(case):
  samples, changes = CASES[case]
  run = dict(
      algorithm=case, arguments={},
      reward=dict(
          components=dict(
              proxy=dict(kind='proxy', aggregate=AGGREGATE, standardize=True,
                         weight=WEIGHTS['proxy']),
              short=dict(kind='length', target=TARGET,
                         weight=WEIGHTS['short'])),
          noise=SIGMA, clip=LIMIT, scale=None,
          eos=dict(penalty=PENALTY, value=None)),
      kl=dict(coef=COEF, place='reward', target=None, horizon=20),
      rollout=dict(batch_size=4, samples=samples, temperature=TEMPERATURE,
                   top_k=0, top_p=1., min_new_tokens=0, chunk_size=2,
                   resample=0),
      updates=dict(num_epochs=2, num_minibatches=2, repeats=1,
                   num_microbatches=1, penalty_target=None),
      value=dict(trunk='shared', mlp=True, scale=.5),
      num_steps=2, optimizer=shared.OPTIMIZER,
      evaluation=dict(every=2, num_prompts=2, texts=1, chunk_size=8))
  return run | {k: run[k] | v if k in ('reward', 'rollout') else v
                for k, v in changes.items()}


class Trace:
  """A stage that has run, and what went through its programs."""

  def __init__(self, case):
    self.case, self.run = case, make_run(case)
    self.annotated, self.updated, self.frozen = [], [], []
    self.sampled, self.rounds = [], []  # what was drawn, at all, by rollout
    self.context = worlds.Context(shared.world())
    programs = online_methods.programs
    with mock.patch.object(online_methods, 'programs', lambda method:
                           self._recorded(programs(method))):
      self.result = online_policy.run(
          self.context, seed=SEED, data=worlds.DATA, upstream=UPSTREAM,
          run=self.run, part=0, training=dict(save_every=1, log_every=1),
          measure=dict(components=self.run['reward']['components'], pool={},
                       sampler=dict(temperature=1.)))
    self.reference = shared.host(
        artifacts.restore_policy(shared.world() / 'sft').params)
    self.proxies = artifacts.restore_rewards(shared.world() / 'proxies')

  def _recorded(self, programs):
    def sampler(params, prompts, lengths, key, rows, stops, **guide):
      assert stops is None
      batch = programs.sampler(params, prompts, lengths, key, rows, **guide)
      self.sampled.append(tuple(map(shared.host, (rows, batch))))
      return batch

    def annotated(batch, state, frozen):
      self.rounds.append(self.sampled)
      self.sampled = []
      rollout = programs.annotated(batch, state, frozen)
      self.annotated.append(tuple(map(
          shared.host, (batch, state, rollout))))
      self.frozen.append(dict(
          reference=recording.digest(frozen.reference),
          proxies=recording.digest(frozen.reward['proxy']),
          kinds=[*frozen.reward]))
      return rollout

    def updated(state, rollout, *base):
      before = shared.host(state)
      after, metrics = programs.updates(state, rollout, *base)
      self.updated.append((before, *map(
          shared.host, (rollout, after, metrics))))
      return after, metrics

    return programs._replace(
        sampler=sampler, annotated=annotated, updates=updated)

  def row(self):
    return algorithms.ALGORITHMS[self.run['algorithm']]


@functools.cache
def trace(case):
  return Trace(case)


@functools.cache
def kept(stage):
  """Digest of what a stage has left on disk."""
  return recording.digest(recording.restore(shared.world() / stage))


def setUpModule():
  shared.world()


def words(batch):
  """Words of each response, [B, K], from its tokens alone."""
  decode = worlds.corpus().tokenizer.decode
  return np.array([[len(decode(row[mask], continuation=True).split())
                    for row, mask in zip(*both)]
                   for both in zip(batch.tokens, batch.mask)])


def scored(case, batch, state):
  """Scores [B, K] after noise, clipping and the penalty without an EOS."""
  members = models.precise(models.members)(
      case.proxies.params, batch.tokens, batch.mask)
  members = rewards.standardize(members, **case.proxies.scale)
  total = (WEIGHTS['proxy'] * rewards.aggregate(members, **AGGREGATE)
           + WEIGHTS['short'] * np.minimum(words(batch) / TARGET, 1))
  draws = jax.random.normal(streams.child(state.key, 'noise'), total.shape)
  reward = case.run['reward']
  total = np.clip(total + reward['noise'] * np.asarray(draws),
                  -reward['clip'], reward['clip'])
  return members, rewards.missing_eos(
      total, batch.tokens, batch.mask, worlds.corpus().tokenizer.eos_id,
      penalty=PENALTY)


def asked(case, index):
  """Places of the prompts of a rollout among those of training.

  And of dynamic sampling what was kept, of all that was drawn for it.
  """
  turns = 1 + case.run['rollout']['resample']
  places = lambda turn: order.indices(
      streams.number(SEED, 'online', 0, 'order'), index * turns + turn, 4,
      len(worlds.corpus_of(SEED).pair_prompts.tokens))
  if turns == 1:
    return places(0), None
  kept, parts = [], []
  for turn in range(len(case.rounds[index]) // 2):
    rows, chunks = zip(*case.rounds[index][2 * turn:2 * turn + 2])
    np.testing.assert_array_equal(np.concatenate(rows), 4 * turn + np.arange(4))
    batch = jax.tree.map(lambda *x: np.concatenate(x), *chunks)
    _, scores = scored(case, batch, case.annotated[index][1])
    keep = np.ptp(scores, axis=1) > 1e-6
    kept.append(places(turn)[keep])
    parts.append(jax.tree.map(lambda x, keep=keep: x[keep], batch))
  assert sum(map(len, kept[:-1])) < 4 <= sum(map(len, kept))
  return np.concatenate(kept)[:4], jax.tree.map(
      lambda *x: np.concatenate(x)[:4], *parts)


def annotations(case, index):
  """What the annotators of a rollout should have filled, by field."""
  batch, state, _ = case.annotated[index]
  row, kl = case.row(), case.run['kl']
  tokens, mask = batch.tokens, batch.mask
  members, scores = scored(case, batch, state)
  own = shared.policy_of(
      state.params, tokens, temperature=TEMPERATURE, guide=guide(case, index))
  ref = shared.policy_of(case.reference, tokens, temperature=TEMPERATURE)
  out = dict(tokens=tokens, mask=mask, member_scores=members, scores=scores,
             old_logprobs=own['logprobs'], ref_logprobs=ref['logprobs'])
  logs = out['old_logprobs'], out['ref_logprobs'], mask
  coef = kl['coef'] if kl['place'] == 'reward' else 0.
  if kl['target'] is not None:
    for earlier in range(index):
      before = case.annotated[earlier][0]
      coef = rewards.adapted_coef(
          coef, *logprobs(case, earlier), before.mask, kl['target'],
          kl['horizon'])
  names = [node['name'] for node in row.annotators]
  if 'kl_scores' in names:
    out['scores'] = scores = rewards.kl_scores(scores, *logs, coef)
  if 'old_values' in names:
    out['old_values'] = own['values']
    out['rewards'] = rewards.kl_rewards(scores, *logs, coef)
    out['advantages'], out['returns'] = rewards.gae(
        out['rewards'], own['values'], mask)
    out['advantages'] = rewards.whiten(out['advantages'], mask)
  if 'leave_one_out' in names:
    out['advantages'] = rewards.leave_one_out(scores)
  if 'group_normalize' in names:
    out['advantages'] = rewards.group_normalize(scores)
  if 'moving_average' in names:
    out['advantages'] = rewards.moving_average(scores, [
        annotations(case, earlier)['scores'] for earlier in range(index)])
  if 'keep_best' in names:
    out['mask'] = rewards.keep_best(scores, mask)
  if 'best_first' in names:
    order = rewards.best_first(scores)
    place = lambda x: np.stack([row[at] for row, at in zip(x, order)])
    out = {k: np.stack([*map(place, x)]) if k == 'member_scores' else place(x)
           for k, x in out.items()}
  return out


def logprobs(case, index):
  """Of the policy that sampled a rollout, and of the reference."""
  batch, state, _ = case.annotated[index]
  return tuple(
      shared.policy_of(params, batch.tokens, temperature=TEMPERATURE,
                       guide=guide)['logprobs']
      for params, guide in ((state.params, guide(case, index)),
                            (case.reference, None)))


def guide(case, index):
  """The mask policy of a rollout and its top_p; None without one."""
  if case.run['algorithm'] != 'nlpo':
    return None
  targets = case.annotated[index][1].targets
  return (jax.tree.map(np.float64, targets),
          case.run['arguments']['nucleus']['top_p'])


def step(case, state, part, count, total, guide):
  """One update of the reference, `count` of `total`, on a minibatch."""
  objective = dict(case.row().objective)
  loss = losses.POLICY[objective.pop('name')]
  if case.run['kl']['place'] == 'loss':
    objective['kl_coef'] = case.run['kl']['coef']

  def value(params):
    out = models.policy(params, part['tokens'], temperature=TEMPERATURE,
                        guide=guide)
    return losses.mean(*loss(out, part, **objective))

  gradients = models.precise(jax.grad(value))(state.params)
  assert count == state.count
  return updates.update(state, gradients, num_steps=total, **shared.OPTIMIZER)


class OnlineTest(parameterized.TestCase):

  @parameterized.parameters(*CASES)
  def test_draws(self, name):
    """What is sampled, and from whom: training prompts in the named order."""
    case = trace(name)
    corpus, count = worlds.corpus_of(SEED), 0
    for index, (batch, *_) in enumerate(case.annotated):
      at, kept = asked(case, index)
      if kept is not None:
        jax.tree.map(np.testing.assert_array_equal,
                     batch.replace(scores=None), kept)  # of words
      prompts, lengths = (
          getattr(corpus.pair_prompts, x)[at] for x in ('tokens', 'lengths'))
      for b in range(4):
        for k in range(case.run['rollout']['samples']):
          np.testing.assert_array_equal(
              batch.tokens[b, k, :lengths[b]], prompts[b, :lengths[b]])
          self.assertEqual(batch.mask[b, k].argmax(), lengths[b])
      own, _ = logprobs(case, index)
      shared.close(np.where(batch.mask, batch.old_logprobs, 0),
            np.where(batch.mask, own, 0), err_msg='logprobs of the sampler')
      count += rewards.missing_eos(
          np.zeros(batch.mask.shape[:2]), batch.tokens, batch.mask,
          corpus.tokenizer.eos_id, value=1.).sum()
    if name == 'dapo_resampled':  # two chunks each
      self.assertGreater(max(map(len, case.rounds)), 2)
    if name == 'rloo':  # the most of them: some end, some do not
      self.assertBetween(count, 1, 23)

  @parameterized.parameters(*CASES)
  def test_annotations(self, name):
    case = trace(name)
    for index, (_, _, rollout) in enumerate(case.annotated):
      expected = annotations(case, index)
      for field in ('tokens', 'ref_logprobs', 'member_scores', 'scores',
                    'old_values', 'rewards', 'returns', 'advantages', 'mask'):
        if field not in expected:
          self.assertIn(field, ('old_values', 'rewards', 'returns',
                                'advantages'))
          continue
        value, wanted = getattr(rollout.batch, field), expected[field]
        if wanted.shape == expected['tokens'].shape:
          mask = expected['mask']
          value, wanted = np.where(mask, value, 0), np.where(mask, wanted, 0)
        shared.close(value, wanted, err_msg=f'{field} of rollout {index}')

  @parameterized.parameters(*CASES)
  def test_updates(self, name):
    """Parameters after all updates of all rollouts, and the schedule."""
    case = trace(name)
    run, state = case.run, None
    each = online_methods.updates_per_rollout(run)
    total = each * run['num_steps']
    for index, (before, _, after, metrics) in enumerate(case.updated):
      if state is None:
        state = updates.start(before.params)
      batch = annotations(case, index)
      at = np.asarray(train.minibatch_order(
          streams.child(before.key, 'minibatches'), 4,
          num_epochs=run['updates']['num_epochs'],
          num_minibatches=run['updates']['num_minibatches']))
      self.assertLen(metrics['train/loss'], each)
      start = state.params
      for count, rows in enumerate(at):
        part = {k: v[rows] for k, v in batch.items() if k != 'member_scores'}
        state = step(case, state, part, index * each + count, total,
                     guide(case, index))
      self.assertEqual(int(after.step), (index + 1) * each)
      shared.close_trees(
          self, optax.tree.get(after.opt_state, 'mu'), state.mu,
          jax.tree.map(np.zeros_like, state.mu), 'gradients')
      shared.close_trees(self, after.params, state.params, start,
                         'parameters', state.exact)

  @parameterized.parameters(*CASES)
  def test_nothing_frozen_moves(self, name):
    """What each rollout was given are the models that were trained."""
    case = trace(name)
    self.assertEqual(case.frozen, case.run['num_steps'] * [dict(
        reference=kept('sft'), proxies=kept('proxies'), kinds=['proxy'])])
    # While the policy leaves the reference, where it has begun.
    first, *_, last = (recording.digest(
        {k: state.params[k] for k in case.reference})
                       for _, state, _ in case.annotated)
    self.assertEqual(first, kept('sft'))
    self.assertNotEqual(last, kept('sft'))

  def test_mask_policy(self):
    """It is the first policy, bitwise, until a copy of the last one."""
    case = trace('nlpo')
    first, last = case.updated
    decoder = lambda state: recording.digest(
        {k: state.params[k] for k in state.targets})
    self.assertEqual(recording.digest(first[0].targets), kept('sft'))
    for before in (first[2], last[0]):
      self.assertEqual(recording.digest(before.targets), kept('sft'))
      self.assertNotEqual(decoder(before), kept('sft'))
    self.assertEqual(recording.digest(last[2].targets), decoder(last[2]))
    # It matters: without it, and under that of the moment.
    own, _ = logprobs(case, 1)
    batch, state, _ = case.annotated[1]
    for other in (None, ({k: state.params[k] for k in state.targets}, .8)):
      free = shared.policy_of(state.params, batch.tokens, guide=other,
                              temperature=TEMPERATURE)['logprobs']
      self.assertGreater(np.abs(free - own)[batch.mask].max(), .01)

  def test_evaluation_asks_what_is_not_trained_on(self):
    case, corpus = trace('rloo'), worlds.corpus_of(SEED)
    decode = corpus.tokenizer.decode
    pairs, others = (
        [decode(row[:n]) for row, n in zip(prompts.tokens, prompts.lengths)]
        for prompts in (corpus.pair_prompts, corpus.eval_prompts))
    self.assertNotEmpty({*pairs} - {*others})
    self.assertNotEmpty({*others} - {*pairs})
    asked = [decode(row[:mask.argmax()]) for batch, *_ in case.annotated
             for row, mask in zip(*(x.reshape(-1, x.shape[-1])
                                    for x in (batch.tokens, batch.mask)))]
    self.assertLen(asked, 2 * 4 * 3)
    self.assertContainsSubset(asked, pairs)
    self.assertNoCommonElements(asked, others)
    # `final.jsonl` answers the evaluation prompts, in their order.
    self.assertEqual(
        [line['prompt'] for line in case.context.lines('final')], others[:2])


if __name__ == '__main__':
  absltest.main()
