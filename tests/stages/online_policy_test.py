"""Tests for rlhf_jax.stages.online_policy, on a policy that nobody trained."""

import contextlib
import functools
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import worlds

from rlhf_jax import errors
from rlhf_jax import policy as policy_lib
from rlhf_jax import sampling
from rlhf_jax import sources
from rlhf_jax import streams
from rlhf_jax import types
from rlhf_jax.configs import base
from rlhf_jax.data import order
from rlhf_jax.evaluation import texts
from rlhf_jax.models import decoding
from rlhf_jax.models import transformer
from rlhf_jax.ops import endings
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import fit as fit_lib
from rlhf_jax.pipeline import online_methods
from rlhf_jax.pipeline import policies
from rlhf_jax.rewards import components
from rlhf_jax.stages import online_policy
from rlhf_jax.storage import checkpoint
from rlhf_jax.storage import files
from rlhf_jax.studies import trees

# One row of each way to an update; k = 2 where samples are compared.
METHODS = dict(ppo=1, reinforce=1, raft=2, grpo=2, apa=1)
RATIOS = ('ppo', 'grpo')  # have an importance ratio
UPSTREAM = dict(reference='sft', gold='gold', pairs='pairs', proxies='proxies')
ALONE = dict(reference='sft')  # a policy, and no one else
BATCH = 8  # prompts a rollout
NOT_OF_THE_POLICY = ('step', 'updates', 'samples')


def run_node(**changes):
  """The node of a run: one rollout of 8 prompts."""
  node = base.online_config('smoke').to_dict()['online']
  del node['condition']
  node = trees.merge(node, dict(
      num_steps=1, rollout=dict(batch_size=BATCH)), 'test')
  return trees.merge(node, changes, 'test')


def run(context=None, *, workdir=None, upstream=UPSTREAM, seed=0, part=0,
        measured=None, num_devices=1, timeout=60., save_every=100, stop=(),
        **changes):
  """The context of the stage, run to its end; one device compiles faster."""
  context = context or worlds.Context(
      workdir or worlds.untrained(), num_devices=num_devices)
  node = run_node(**changes)
  with context.devices():
    context.result = online_policy.run(
        context, seed=seed, data=worlds.DATA | dict(stop=stop),
        upstream=upstream, run=node, part=part,
        measure=dict(components=measured or node['reward']['components'],
                     pool=dict(timeout=timeout, num_workers=1),
                     sampler=dict(temperature=1.)),
        training=dict(save_every=save_every, log_every=1))
  return context


def restored(path):
  """What the last checkpoint of a directory holds, as orbax has it."""
  step = max(int(p.name) for p in path.iterdir() if p.name.isdecimal())
  with ocp.PyTreeCheckpointer() as reader:
    return {part: reader.restore(path / str(step) / part)
            for part in ('params', 'training')
            if (path / str(step) / part).exists()}


def decoder(path):
  return restored(path)['params']


def sft():
  return artifacts.restore_policy(worlds.untrained() / 'sft').params


def equal(a, b):
  """All leaves, keys among them."""
  bits = lambda x: jax.random.key_data(x) if jnp.issubdtype(
      x.dtype, jax.dtypes.prng_key) else x
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(bits(x), bits(y)),
               a, b)


def assert_same_numbers(context, other):
  """Everything that two equal runs write, in all digits."""
  for name in ('evaluation', 'metrics', 'updates', 'final'):
    assert context.lines(name) == other.lines(name), name
  for folder in ('training', 'checkpoints'):
    equal(restored(context.directory / folder),
          restored(other.directory / folder))


class Killed(BaseException):
  """Passes by all that handles errors; what closes files still runs."""


def dying(function, call, *, is_after=False):
  """A function that ends the process before, or after, its so-manieth call."""
  calls = []

  def dies(*args, **kwargs):
    calls.append(args)
    if len(calls) == call and not is_after:
      raise Killed
    result = function(*args, **kwargs)
    if len(calls) == call:
      raise Killed
    return result
  return dies


@contextlib.contextmanager
def expect_killed():
  try:
    yield
  except Killed:
    return
  raise AssertionError('it has come to its end')


@contextlib.contextmanager
def killed(owner, name, call, *, is_after=False):
  """Expects what is run within to be killed in a call of that method."""
  dies = dying(getattr(owner, name), call, is_after=is_after)
  with mock.patch.object(owner, name, dies), expect_killed():
    yield


def resting(name):
  """Two updates on one rollout, learning rate 0, at another temperature."""
  more = dict(value=dict(trunk='separate')) if name == 'apa' else {}
  return dict(  # of apa the reference, which must not be donated
      algorithm=name, rollout=dict(samples=METHODS[name], temperature=.7),
      updates=dict(num_epochs=2, num_minibatches=1),
      optimizer=dict(learning_rate=1e-30, warmup_steps=0), **more)


@functools.cache
def at_rest(name):
  return run(**resting(name))


class AtRestTest(parameterized.TestCase):

  @parameterized.parameters(*METHODS)
  def test_nothing_moves(self, name):
    context = at_rest(name)
    rows = context.lines('evaluation')
    self.assertEqual([row['step'] for row in rows], [0, 1])
    for row in rows:  # the policy is the reference
      for kind in ('kl_k1', 'kl_k2', 'kl_k3'):
        self.assertAlmostEqual(row[kind], 0, delta=1e-6)
    first, last = ({k: v for k, v in row.items()
                    if k not in NOT_OF_THE_POLICY} for row in rows)
    self.assertEqual(first, last)
    equal(decoder(context.directory / 'checkpoints'), sft())

  @parameterized.parameters(*METHODS)
  def test_first_rollout_is_that_of_the_reference(self, name):
    row, = at_rest(name).lines('metrics')
    # All three passes are at the temperature of the sampler.
    self.assertAlmostEqual(row['rollout/kl_k1'], 0, delta=1e-4)
    updates = at_rest(name).lines('updates')
    self.assertEqual([u['update'] for u in updates], [0, 1])
    for update in updates:
      self.assertEqual(update['train/skipped'], 0)
      if name in RATIOS:  # all ratios are 1, so nothing is clipped
        self.assertAlmostEqual(update['policy/approx_kl'], 0, delta=1e-6)
        self.assertEqual(update.get('policy/clip_fraction', 0), 0)

  def test_what_a_report_reads(self):
    context = at_rest('raft')
    rows = context.lines('final')
    self.assertLen(rows, 4)
    for row in rows:
      self.assertGreaterEqual(row.keys(), {
          'prompt', 'response', 'reference', 'gold', 'reference_gold',
          'proxy', 'rule', 'length'})
    last = context.lines('evaluation')[-1]
    self.assertAlmostEqual(
        np.mean([row['gold'] for row in rows]), last['gold'], delta=1e-5)
    self.assertEqual(last['samples'], 16)
    self.assertEqual(last['updates'], 2)
    self.assertLen(
        files.read_json(context.directory / 'texts/000001.json'), 1)
    self.assertEqual(
        {k: context.result[k] for k in ('rollouts', 'updates', 'responses')},
        dict(rollouts=1, updates=2, responses=16))

  def test_value_head_is_not_left_behind(self):
    directory = at_rest('ppo').directory
    self.assertNotIn('value_head', decoder(directory / 'checkpoints'))
    self.assertIn('value_head', decoder(directory / 'training'))


def ppo(**changes):
  """Two rollouts of PPO with all that a rollout remembers."""
  changes = dict(updates={}, rollout={}) | changes
  return functools.partial(
      run, kl=dict(coef=.1, target=6., horizon=100),
      reward=dict(noise=.5, scale='running'), num_steps=2,
      rollout=changes['rollout'],
      updates=dict(num_epochs=2, num_minibatches=1) | changes['updates'],
      optimizer=dict(learning_rate=3e-3, warmup_steps=0))


@functools.cache
def learned():
  return ppo()()


class LearningTest(parameterized.TestCase):

  def test_same_seed_is_bitwise_equal(self):
    assert_same_numbers(ppo()(), learned())

  @parameterized.named_parameters(
      ('microbatches', dict(updates=dict(num_microbatches=4)), 1),
      ('chunks', dict(rollout=dict(chunk_size=2)), 1),
      ('eight_devices', {}, 8))
  def test_cut_changes_nothing(self, changes, num_devices):
    other = ppo(**changes)(num_devices=num_devices)
    for mine, theirs in zip(other.lines('updates'),
                            learned().lines('updates'), strict=True):
      for name in theirs:
        np.testing.assert_allclose(
            mine[name], theirs[name], rtol=2e-2, atol=2e-4, err_msg=name)

  def test_moves_and_remembers(self):
    first, last = learned().lines('evaluation')[::2]
    self.assertGreater(last['kl_k2'], 10 * first['kl_k2'] + 1e-4)
    updates = learned().lines('updates')
    self.assertEqual([(u['step'], u['update']) for u in updates],
                     [(1, 0), (1, 1), (2, 0), (2, 1)])
    self.assertAlmostEqual(updates[0]['policy/approx_kl'], 0, delta=1e-6)
    self.assertGreater(updates[1]['policy/approx_kl'], 1e-5)
    self.assertAlmostEqual(updates[2]['policy/approx_kl'], 0, delta=1e-6)
    kept = decoder(learned().directory / 'training').keys()
    self.assertIn('value_head', kept)

  def test_statistics_are_saved(self):
    statistics = restored(
        learned().directory / 'training')['training']['statistics']
    self.assertEqual(statistics['score_moments']['count'], 2 * BATCH)
    # KL is far below 6 nats, so the coefficient falls by as much as it may.
    self.assertLess(
        max(row['rollout/kl_k1'] for row in learned().lines('metrics')), 4.8)
    self.assertAlmostEqual(
        float(statistics['kl_coef']), .1 * (1 - .2 * BATCH / 100)**2, 6)

  def test_killed_in_each_phase_it_goes_on_bitwise(self):
    """Of the second step, after the first is saved; one after the other."""
    context = worlds.Context(worlds.untrained())
    train = lambda: ppo()(context, save_every=1)
    with killed(fit_lib._Log, 'step', 2):
      train()
    self.assertFalse((context.directory / 'checkpoints').exists())
    real = sources.online
    for is_after in (False, True):  # between sampling, annotators and updates
      online = lambda prompts, sampler, annotated, after=is_after, **kwargs: (
          real(prompts, sampler, dying(annotated, 1, is_after=after), **kwargs))
      with mock.patch.object(sources, 'online', online), expect_killed():
        train()
    # Logged and evaluated, or only one of them; not saved, or not told so.
    for owner, name, is_after in (
        (fit_lib._Log, 'evaluation', False), (fit_lib._Log, 'evaluation', True),
        (checkpoint.Checkpointer, 'save', True)):
      with killed(owner, name, 1, is_after=is_after):
        train()
    self.assertEqual([x for x in context.shown if x.startswith('goes on')],
                     5 * ['goes on at step 1 of 2'])
    train()
    self.assertIn('goes on at step 2 of 2', context.shown)
    assert_same_numbers(context, learned())

  def test_decoder_is_restored_as_a_policy(self):
    policy = artifacts.restore_policy(learned().directory)
    self.assertEqual(policy.config, worlds.config())
    equal(policy.params, decoder(learned().directory / 'checkpoints'))


def nlpo(**changes):
  """Two rollouts, after the second of which the mask policy is renewed."""
  return functools.partial(ppo(**changes), algorithm='nlpo', arguments=dict(
      nucleus=dict(top_p=.7, every=2)))


@functools.cache
def masked():
  return nlpo()()


class MaskPolicyTest(parameterized.TestCase):

  def test_ratios_begin_at_1(self):
    """In both rollouts, in the second under a mask policy left behind."""
    for update in masked().lines('updates'):
      self.assertEqual(update['train/skipped'], 0)
      if update['update'] == 0:
        self.assertAlmostEqual(update['policy/approx_kl'], 0, delta=1e-9)
        self.assertEqual(update['policy/clip_fraction'], 0)
      else:
        self.assertGreater(update['policy/approx_kl'], 1e-5)

  def test_is_saved_and_renewed(self):
    state = restored(masked().directory / 'training')
    targets = state['training']['targets']
    self.assertNotIn('value_head', targets)
    equal(targets, {k: state['params'][k] for k in targets})
    self.assertEqual(decoder(masked().directory / 'checkpoints').keys(),
                     targets.keys())

  def test_killed_run_goes_on_bitwise(self):
    context = worlds.Context(worlds.untrained())
    with killed(fit_lib._Log, 'step', 2):
      nlpo()(context, save_every=1)
    equal(restored(context.directory / 'training')['training']['targets'],
          sft())  # while the policy has moved
    nlpo()(context, save_every=1)
    assert_same_numbers(context, masked())

  @parameterized.named_parameters(
      ('microbatches', dict(updates=dict(num_microbatches=4)), 1),
      ('chunks', dict(rollout=dict(chunk_size=2)), 1),
      ('eight_devices', {}, 8))
  def test_cut_changes_nothing(self, changes, num_devices):
    other = nlpo(**changes)(num_devices=num_devices)
    for mine, theirs in zip(other.lines('updates'),
                            masked().lines('updates'), strict=True):
      for name in theirs:
        np.testing.assert_allclose(
            mine[name], theirs[name], rtol=2e-2, atol=2e-4, err_msg=name)


class WiringTest(absltest.TestCase):

  def arguments(self, **changes):
    """What `fit` and `sources.online` are called with."""
    with (mock.patch.object(fit_lib, 'fit', side_effect=StopIteration) as fit,
          mock.patch.object(sources, 'online', wraps=sources.online) as online,
          mock.patch.object(policies, 'watch', wraps=policies.watch) as watch,
          self.assertRaises(StopIteration)):
      run(**changes)
    self.watch = watch
    return fit.call_args, online.call_args

  def test_streams_are_those_of_the_seed_and_the_part(self):
    for part in (0, 3):
      fit, online = self.arguments(part=part)
      equal(fit.args[1].key, streams.key(0, 'online', part, 'state'))
      self.assertEqual(online.kwargs['seed'],
                       streams.number(0, 'online', part, 'order'))
      # Evaluations have one noise, whatever is trained.
      equal(self.watch.call_args.args[3], streams.key(0, 'evaluation'))

  def test_stop_strings_of_the_corpus(self):
    words = worlds.corpus().tokenizer.decode(range(3, 9)).split()
    real, seen = sources.online, []

    def online(prompts, sampler, annotated, **kwargs):
      def recorded(batch, state, frozen):
        rollout = annotated(batch, state, frozen)
        seen.append((batch, rollout.batch.scores))
        return rollout
      return real(prompts, sampler, recorded, **kwargs)

    with mock.patch.object(sources, 'online', online):
      done = run(stop=tuple(words), algorithm='reinforce',
                 kl=dict(coef=0.), reward=dict(
                     components=dict(a=dict(kind='length', target=1e9)),
                     eos=dict(value=-7.)))
    (batch, scores), = jax.device_get(seen)
    coder = worlds.corpus().tokenizer.ending_at(words)
    finished = coder.finished(batch.tokens, batch.mask)
    self.assertBetween(finished.mean(), .1, .99)
    self.assertGreater(
        (finished & ~endings.finished(
            batch.tokens, batch.mask, coder.eos_id)).sum(), 0)
    np.testing.assert_array_equal(scores == -7, ~finished)
    # Evaluations end there too, and their texts before.
    for line in done.lines('final'):
      self.assertFalse(any(word in line['response'] for word in words))

  def test_least_tokens(self):
    """Of rollouts; evaluations have a sampler of their own."""
    of_rollouts = mock.Mock(wraps=sampling)
    with mock.patch.object(online_methods, 'sampling', of_rollouts):
      run(upstream=ALONE, algorithm='reinforce', kl=dict(coef=0.),
          reward=dict(components=dict(a=dict(kind='length', target=1e9))),
          rollout=dict(min_new_tokens=3))
    self.assertEqual(
        of_rollouts.sample.call_args.kwargs['min_new_tokens'], 3)

  def test_training_prompts_reference_and_reward_models(self):
    fit, online = self.arguments()
    self.assertIs(online.args[0], worlds.corpus().pair_prompts)
    frozen = fit.kwargs['frozen']
    equal(frozen.reference, sft())
    self.assertIsNone(frozen.base)
    proxies = artifacts.restore_rewards(worlds.untrained() / 'proxies')
    equal(frozen.reward, {'proxy': proxies.params})
    equal(frozen.reward_scale, {'proxy': proxies.scale})

  def test_policy_that_goes_on_keeps_the_reference(self):
    workdir = worlds.folder()
    worlds.copy(worlds.untrained(), workdir)
    better = transformer.init(worlds.config(), jax.random.key(9))
    worlds.save(workdir, 'better', {}, kind='policy', params=better)
    context = run(workdir=workdir, upstream=UPSTREAM | dict(policy='better'),
                  **resting('reinforce'))
    for row in context.lines('evaluation'):  # far from the reference
      self.assertGreater(row['kl_k1'], 1)
    row, = context.lines('metrics')
    self.assertGreater(row['rollout/kl_k1'], 1)
    equal(decoder(context.directory / 'checkpoints'), better)


class ProgramsTest(absltest.TestCase):

  def test_seed_and_size_of_the_coefficient_compile_nothing(self):
    workdir = worlds.folder()
    worlds.copy(worlds.untrained(), workdir)
    worlds.save(workdir, 'sft_1', {'corpus': worlds.corpus_of(1).fingerprint()},
                kind='policy', params=sft())
    for function in (online_methods.programs, online_methods._of_policy):
      function.cache_clear()
      self.addCleanup(function.cache_clear)
    traced = []
    sampling._sample.clear_cache()
    with (mock.patch.object(decoding, 'together',
                            wraps=decoding.together) as decode,
          mock.patch.object(policy_lib, 'forward',
                            wraps=policy_lib.forward) as forward):
      for seed, coefficient, reference in ((0, .1, 'sft'), (1, .7, 'sft_1')):
        context = ppo()(
            workdir=workdir, upstream=UPSTREAM | dict(reference=reference),
            seed=seed, kl=dict(coef=coefficient, target=6., horizon=100))
        traced.append((decode.call_count, forward.call_count))
    info = online_methods.programs.cache_info()
    self.assertEqual((info.hits, info.misses), (1, 1))
    self.assertGreaterEqual(min(traced[0]), 1)
    self.assertEqual(*traced)
    # It is the size that counts all the same, and not that of the first run.
    statistics = restored(
        context.directory / 'training')['training']['statistics']
    self.assertAlmostEqual(
        float(statistics['kl_coef']), .7 * (1 - .2 * BATCH / 100)**2, 5)


FUNCTIONS = '''
import json
import pathlib
import time

def words(prompts, responses):
  with open(pathlib.Path(__file__).with_name('seen.jsonl'), 'a') as stream:
    stream.write(json.dumps([prompts, responses]) + '\\n')
  return [len(text.split()) for text in responses]

def picky(prompts, responses):
  return [None if len(text) % 5 == 1 else len(text.split())
          for text in responses]

def never(prompts, responses):
  if len(responses) > 1 and len(prompts[0]) > 0:
    time.sleep(60)
  return [0.0] * len(responses)
'''
SAMPLES = 2


def rloo(name, context=None, on_bad_reward='error', **changes):
  """One step on a reward of texts alone, and where the function lies."""
  folder = worlds.folder()
  (folder / 'rewards_of_texts.py').write_text(FUNCTIONS)
  with mock.patch.object(sys, 'path', [str(folder), *sys.path]):
    return folder, run(
        context, upstream=ALONE, algorithm='rloo', kl=dict(coef=0.),
        reward=dict(clip=None, components={name: dict(
            kind='function', function=f'rewards_of_texts:{name}', weight=.5,
            on_bad_reward=on_bad_reward)}),
        rollout=dict(samples=SAMPLES, temperature=.8),
        updates=dict(num_epochs=1), optimizer=dict(
            learning_rate=1e-3, warmup_steps=0, clip_norm=None),
        **changes)


@functools.cache
def of_words():
  return rloo('words')


class FunctionsTest(absltest.TestCase):
  """A reward of texts alone: no gold model, pairs or reward models."""

  def sample(self):
    """The first rollout by hand: tokens and mask [B, K, T]."""
    corpus = worlds.corpus()
    prompts, coder = corpus.pair_prompts, corpus.tokenizer
    at = order.indices(streams.number(0, 'online', 0, 'order'), 0, BATCH,
                       len(prompts.tokens))
    batch = sampling.sample(
        worlds.config(), sft(), prompts.tokens[at], prompts.lengths[at],
        streams.child(streams.key(0, 'online', 0, 'state'), 'sampler'),
        num_samples=SAMPLES, max_new_tokens=corpus.max_response_length,
        eos_id=coder.eos_id, pad_id=coder.pad_id, temperature=.8,
        num_tokens=coder.vocab_size)
    return np.asarray(batch.tokens), np.asarray(batch.mask)

  def gradient(self, tokens, mask, scores):
    """Of Ahmadian et al. 2024, eq. 7: a response against the other one."""
    advantages = scores - scores[:, ::-1]
    forward = functools.partial(
        policy_lib.forward, worlds.config(), temperature=.8)

    def loss(params):
      logprobs = forward(params, types.Batch(tokens, mask)).logprobs
      return -jnp.mean(advantages * jnp.where(mask, logprobs, 0).sum(axis=-1))

    return jax.jit(jax.grad(loss))(sft())

  def test_score_of_texts_is_what_is_trained_on(self):
    folder, context = of_words()
    # The function has seen two evaluations, and the rollout between them.
    seen = files.read_jsonl(folder / 'seen.jsonl')
    rollout, = [pair for pair in seen if len(pair[1]) == BATCH * SAMPLES]
    tokens, mask = self.sample()
    self.assertEqual(rollout, [*texts.decode(
        worlds.corpus().tokenizer, tokens, mask)])
    scores = .5 * np.array([len(text.split()) for text in rollout[1]])
    self.assertGreater(np.ptp(scores), 0)
    metrics, = context.lines('metrics')
    self.assertAlmostEqual(metrics['rollout/score'], scores.mean(), 5)
    # And the first moments of Adam are a tenth of the gradient.
    state = restored(context.directory / 'training')['training']['opt_state']
    moments = [x for path, x in jax.tree_util.tree_leaves_with_path(state)
               if 'mu' in str(path)]
    expected = jax.tree.leaves(self.gradient(
        tokens, mask, scores.reshape(BATCH, SAMPLES)))
    self.assertGreater(max(np.abs(x).max() for x in expected), .01)
    for moment, gradient in zip(moments, expected, strict=True):
      np.testing.assert_allclose(10 * moment, gradient, rtol=1e-3, atol=1e-5)

  def test_evaluation_has_no_column_of_what_there_is_not(self):
    _, context = of_words()
    row = context.lines('evaluation')[-1]
    words = [len(line['response'].split()) for line in context.lines('final')]
    self.assertAlmostEqual(row['proxy'], .5 * np.mean(words), delta=1e-5)
    self.assertAlmostEqual(row['component_words'], np.mean(words), delta=1e-5)
    self.assertContainsSubset({'kl_k1', 'length', 'distinct_1'}, row)
    for name in row:
      self.assertNotRegex(name, '^(gold|rule|member|ensemble)')
    for line in context.lines('final'):
      for name in ('gold', 'reference_gold', 'rule'):
        self.assertIsNone(line[name])

  def test_bad_rewards_are_left_out(self):
    """In training whole prompts, whose gradient is that of the others alone."""
    _, context = rloo('picky', on_bad_reward='drop')
    tokens, mask = self.sample()
    _, responses = texts.decode(worlds.corpus().tokenizer, tokens, mask)
    bad = np.array([len(x) % 5 == 1 for x in responses]).reshape(BATCH, SAMPLES)
    kept = ~bad.any(axis=1)
    self.assertBetween(kept.sum(), 1, BATCH - 1)
    metrics, = context.lines('metrics')
    self.assertEqual(metrics['rollout/bad_rewards'], bad.sum())
    scores = .5 * np.array([len(x.split()) for x in responses]).reshape(
        BATCH, SAMPLES)[kept]
    self.assertAlmostEqual(metrics['rollout/score'], scores.mean(), 5)
    state = restored(context.directory / 'training')['training']['opt_state']
    moments = [x for path, x in jax.tree_util.tree_leaves_with_path(state)
               if 'mu' in str(path)]
    expected = jax.tree.leaves(self.gradient(tokens[kept], mask[kept], scores))
    for moment, gradient in zip(moments, expected, strict=True):
      np.testing.assert_allclose(10 * moment, gradient, rtol=1e-3, atol=1e-5)
    # An evaluation is of the others, and says so.
    row, lines = context.lines('evaluation')[-1], context.lines('final')
    good = [len(x['response'].split()) for x in lines
            if len(x['response']) % 5 != 1]
    self.assertAlmostEqual(row['proxy'], .5 * np.mean(good), delta=1e-5)
    self.assertEqual(row['bad_rewards'], len(lines) - len(good))
    for line in lines:
      self.assertEqual(line['proxy'] is None, len(line['response']) % 5 == 1)
    with self.assertRaisesRegex(errors.RewardError, 'picky.*returned None'):
      rloo('picky')

  def test_hung_function_stops_the_run_by_name(self):
    context = worlds.Context(worlds.untrained())
    with self.assertRaisesRegex(errors.RewardError, 'never.*step 0.*row'):
      rloo('never', context, timeout=1.)
    self.assertFalse((context.directory / 'checkpoints').exists())
    self.assertEmpty([*(context.directory / 'training').glob('[0-9]*')])

  def test_no_process_is_left_if_the_evaluation_cannot_begin(self):
    with (mock.patch.object(components.Components, 'close',
                            autospec=True) as close,
          self.assertRaisesRegex(ValueError, "models must hold 'gold'")):
      rloo('words', measured=dict(good=dict(kind='gold')))
    (opened,), _ = close.call_args
    self.assertEqual(opened.names, ('words',))
    components.Components.close(opened)


if __name__ == '__main__':
  absltest.main()
