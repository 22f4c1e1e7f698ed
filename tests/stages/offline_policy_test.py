"""Tests for rlhf_jax.stages.offline_policy, on a policy that nobody trained."""

import contextlib
import functools
import json
import math
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import orbax.checkpoint as ocp
import worlds

from rlhf_jax import errors
from rlhf_jax import policy as policy_lib
from rlhf_jax import streams
from rlhf_jax import types
from rlhf_jax.models import heads
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import fit as fit_lib
from rlhf_jax.pipeline import offline_data
from rlhf_jax.pipeline import offline_methods
from rlhf_jax.pipeline import policies
from rlhf_jax.stages import logged
from rlhf_jax.stages import offline_policy
from rlhf_jax.storage import files

EXAMPLES, VALIDATION, STEPS, BATCH = worlds.NUM_PAIRS, 4, 5, 8
NODES = dict(short=dict(kind='length', target=20, weight=2.),
             readable=dict(kind='readability', weight=.5))
CLIP = dict(clip_ratio=.8)
ONE = dict(one=dict(kind='length', target=.01))  # of any text
Q = dict(mlp=True, scale=1., rate=.25, every=2, shift=4., top_k=20)
UPSTREAM = dict(reference='sft', gold='gold', pairs='pairs', log='log',
                values='log_values')
NO_VALUES = dict(UPSTREAM, values=None)
RUN = dict(
    algorithm='a_lol', arguments={}, use='all', filtered=False,
    priority='none', batch_size=BATCH, num_microbatches=1, packing=False,
    num_steps=STEPS, scale_steps=False,
    value=dict(trunk='separate', mlp=True, scale=.5), q=Q,
    optimizer=dict(learning_rate=1e-2, schedule='constant'),
    evaluation=dict(every=STEPS, num_prompts=4, texts=1, chunk_size=256))


@functools.cache
def workdir():
  """The untrained world with logs and values of their prompts."""
  path = worlds.folder()
  worlds.copy(worlds.untrained(), path)
  arrays = make_log()
  save_log(path, 'log', arrays,
           np.random.default_rng(6).uniform(.6, 1.2, EXAMPLES))
  save_log(path, 'hopeless', arrays, np.full(EXAMPLES, 2.))
  save_log(path, 'worthless', arrays | {'scores': -arrays['scores']})
  return path


def make_log():
  """Two responses to each prompt, the second cut; of some one is missing."""
  pairs = files.load_arrays(worlds.untrained() / 'pairs/pairs.npz')
  tokens, mask = pairs['tokens'].copy(), pairs['mask'].copy()
  mask[2, 1] = mask[7, 0] = mask[-1, 1] = False
  there = mask.any(axis=-1)
  rng = np.random.default_rng(5)
  scores = np.where(there, rng.uniform(.2, 1.8, there.shape), 0)
  return dict(tokens=tokens, mask=mask, scores=scores.astype(np.float32),
              raw_scores=(10 * scores).astype(np.float32),
              group=np.where(there, [0, 1], -1).astype(np.int32))


def save_log(path, name, arrays, values=None):
  """A stage `logged`, and one of values beside it."""
  worlds.save(path, name, {'num_validation': VALIDATION, 'source': 'pairs',
                           'groups': ['up', 'down']}, logged=arrays)
  if values is not None:
    worlds.save(path, f'{name}_values', {},
                values={'values': np.asarray(values, np.float32)})


def log():
  return files.load_arrays(workdir() / 'log/logged.npz')


def values():
  return files.load_arrays(workdir() / 'log_values/values.npz')['values']


def run(context=None, *, evaluate=False, upstream=UPSTREAM, num_devices=1,
        **changes):
  """(context, result) of the stage; without evaluations, which compile."""
  context = context or worlds.Context(workdir(), num_devices=num_devices)
  if 'algorithm' not in changes:
    changes['arguments'] = dict(alol=CLIP)
  stage = functools.partial(
      offline_policy.run, context, seed=0, data=worlds.DATA, upstream=upstream,
      run=RUN | changes, training=dict(save_every=1, log_every=1),
      measure=dict(components=NODES, pool={}, sampler=dict(temperature=1.)))
  if evaluate:
    return context, stage()
  with context.devices(), mock.patch.object(policies, 'watch', return_value=(
      contextlib.nullcontext())):
    return context, stage()


def stopped(step, context=None, **changes):
  """As `run`, stopped after `step` steps, one at a time."""
  context = context or worlds.Context(workdir())
  context.stop = worlds.Stop(step - 1)
  try:
    run(context, **changes)
  except errors.Interrupted:
    context.stop = worlds.Stop()
    return context
  raise AssertionError(f'not stopped at step {step}')


def restored(context, step, part='params', folder='training'):
  with ocp.PyTreeCheckpointer() as reader:
    return reader.restore(context.directory / folder / str(step) / part)


def initial():
  """The SFT policy."""
  return restored(worlds.Context(workdir(), workdir() / 'sft'), 0,
                  folder='checkpoints')


def gradient(context):
  """What Adam remembers of the first step, a tenth of the gradient."""
  state = restored(context, 1, 'training')['opt_state']
  moments = [x for path, x in jax.tree_util.tree_leaves_with_path(state)
             if 'mu' in str(path)]
  assert moments
  return moments


@functools.cache
def _dataset(changes):
  with (mock.patch.object(offline_data, 'source') as source,
        mock.patch.object(fit_lib, 'fit', return_value=(
            mock.Mock(), {'seconds': 1.})),
        mock.patch.object(policies, 'save_policy')):
    _, result = run(**json.loads(changes))
  return source.call_args.args[0], result


def dataset(**changes):
  """What a run is trained on, and the result; nothing is trained."""
  return _dataset(json.dumps(changes, sort_keys=True))


def close(a, b, **tolerance):
  jax.tree.map(functools.partial(
      np.testing.assert_allclose, **tolerance), a, b)


def differ(a, b):
  return max(np.abs(x - y).max() for x, y in zip(
      jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@functools.cache
def first(algorithm, **arguments):
  """One step of it on the log."""
  return stopped(1, algorithm=algorithm, arguments=(
      dict(alol=arguments) if arguments else {}))


@functools.cache
def a_lol():
  return run()


class ReductionTest(parameterized.TestCase):

  def test_cloning_weighted_by_one_is_cloning(self):
    context = worlds.Context(workdir())
    result = logged.run(
        context, seed=0, data=worlds.DATA, upstream=UPSTREAM, label_noise=0.,
        pool={}, node=dict(source='pairs', components=ONE,
                           num_validation=VALIDATION))
    arrays = files.load_arrays(context.directory / 'logged.npz')
    np.testing.assert_array_equal(arrays['scores'], 1)
    worlds.save(workdir(), 'ones', result, logged=arrays)
    ones = dict(UPSTREAM, log='ones')
    nll = restored(run(
        algorithm='sft', arguments=dict(sft=dict(aggregate='sequence')),
        upstream=ones)[0], STEPS)
    wbc = restored(run(algorithm='wbc', upstream=ones)[0], STEPS)
    close(wbc, nll, rtol=1e-6, atol=1e-7)
    self.assertGreater(differ(nll, initial()), .01)
    # With rewards of its own it is another.
    other = restored(run(algorithm='wbc')[0], STEPS)
    self.assertGreater(differ(other, nll), .01)

  @parameterized.parameters(
      ('a_lol', CLIP, 'a_lol_ref_free'), ('r_lol', {}, 'wbc'),
      ('a_lol_kl', dict(kl_coef=0.), 'a_lol_ref_free'))
  def test_first_step_at_the_reference(self, name, arguments, other):
    mine, theirs = first(name, **arguments), first(other)
    for a, b in zip(gradient(mine), gradient(theirs), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    row, = mine.lines('metrics')
    reference, = theirs.lines('metrics')
    self.assertAlmostEqual(
        row['train/loss'] / reference['train/loss'], 1, delta=1e-5)
    if 'policy/ratio' in row:
      self.assertAlmostEqual(row['policy/ratio'], 1, 5)
      self.assertEqual(row['policy/clip_fraction'], 0)

  def test_later_steps_are_weighted(self):
    rows = a_lol()[0].lines('metrics')
    self.assertNotAlmostEqual(rows[-1]['policy/ratio'], 1, 2)
    self.assertGreater(rows[-1]['policy/clip_fraction'], 0)
    other = run(algorithm='a_lol_ref_free', arguments={})[0]
    self.assertGreater(
        differ(restored(a_lol()[0], STEPS), restored(other, STEPS)), 1e-3)


class DataTest(parameterized.TestCase):

  def expected(self):
    """(example, response) of a positive advantage, and how many there are."""
    arrays, of_prompts = log(), values()
    there = [(i, k) for i in range(EXAMPLES - VALIDATION) for k in range(2)
             if arrays['mask'][i, k].any()]
    return [(i, k) for i, k in there
            if arrays['scores'][i, k] > of_prompts[i]], len(there)

  def check_rows(self, batch, at):
    arrays = log()
    self.assertLen(batch.tokens, len(at))
    for row, (i, k) in enumerate(at):
      for name in ('tokens', 'mask'):
        np.testing.assert_array_equal(
            getattr(batch, name)[row, 0], arrays[name][i, k])

  def test_filter_is_a_count_by_hand(self):
    batch, result = dataset()
    at, count = self.expected()
    self.check_rows(batch, at)
    self.assertEqual(result['examples'], count)
    self.assertAlmostEqual(result['filtered_share'], 1 - len(at) / count)
    self.assertBetween(result['filtered_share'], .2, .8)
    arrays = log()
    np.testing.assert_allclose(batch.advantages[:, 0], [
        arrays['scores'][i, k] - values()[i] for i, k in at], rtol=1e-6)

  def test_same_filter_before_cloning(self):
    own, _ = dataset()
    other, result = dataset(algorithm='sft', filtered=True)
    np.testing.assert_array_equal(other.tokens, own.tokens)
    np.testing.assert_array_equal(other.mask, own.mask)
    self.assertGreater(result['filtered_share'], 0)
    _, result = dataset(algorithm='sft', upstream=NO_VALUES)
    self.assertEqual(result['filtered_share'], 0)

  @parameterized.parameters(
      ('first', (0,)), ('up', (0,)), ('down', (1,)), ('all', (0, 1)))
  def test_use(self, use, columns):
    batch, _ = dataset(algorithm='wbc', use=use, upstream=NO_VALUES)
    mask = log()['mask']
    self.check_rows(batch, [(i, k) for i in range(EXAMPLES - VALIDATION)
                            for k in columns if mask[i, k].any()])

  @parameterized.parameters(('dpo', 'scores'), ('pro', 'raw_scores'))
  def test_comparisons(self, algorithm, scores):
    batch, _ = dataset(algorithm=algorithm, upstream=NO_VALUES)
    arrays = log()
    whole = [i for i in range(EXAMPLES - VALIDATION)
             if arrays['mask'][i].any(axis=-1).all()]
    np.testing.assert_array_equal(batch.tokens, arrays['tokens'][whole])
    np.testing.assert_array_equal(batch.scores, arrays[scores][whole])

  def test_nothing_has_an_advantage(self):
    with self.assertRaisesRegex(errors.ConfigError,
                                'A-LOL is left without a response') as caught:
      run(upstream=dict(UPSTREAM, log='hopeless', values='hopeless_values'))
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
      (dict(use='best'), "use is 'best'; there are first, all, up, down"),
      (dict(algorithm='wbc', priority='reward',
            upstream=dict(UPSTREAM, log='worthless')),
       "priority is 'reward', and none of 38 responses"))
  def test_what_the_log_does_not_have(self, changes, message):
    with self.assertRaisesRegex(errors.ConfigError, message) as caught:
      run(**changes)
    self.assertNotIn('\n', str(caught.exception))

  def test_steps_shrink_with_the_data(self):
    at, count = self.expected()
    asked = next(n for n in range(STEPS, 99)
                 if math.ceil(n * len(at) / count) == STEPS)
    self.assertGreater(asked, STEPS)
    context, result = run(num_steps=asked, scale_steps=True)
    self.assertEqual(result['updates'], STEPS)
    self.assertAlmostEqual(result['epochs'], STEPS * BATCH / len(at))
    close(restored(context, STEPS), restored(a_lol()[0], STEPS), rtol=0)
    with (mock.patch.object(offline_methods, 'make', side_effect=StopIteration
                            ) as make, self.assertRaises(StopIteration)):
      run(num_steps=asked, scale_steps=True)
    self.assertEqual(make.call_args.args[-1], STEPS)  # as the schedule's
    _, result = run(num_steps=0, scale_steps=True)
    self.assertEqual(result['updates'], 0)


class WiringTest(parameterized.TestCase):

  @parameterized.parameters(('none', 'order'), ('advantage', 'draws'))
  def test_streams_are_those_of_the_seed(self, priority, name):
    with (mock.patch.object(offline_data, 'source') as source,
          mock.patch.object(fit_lib, 'fit', side_effect=StopIteration) as fit,
          self.assertRaises(StopIteration)):
      run(priority=priority)
    self.assertEqual(source.call_args.args[1], priority)
    self.assertEqual(source.call_args.kwargs, dict(
        batch_size=BATCH, seed=streams.number(0, 'offline', name)))
    np.testing.assert_array_equal(
        *map(jax.random.key_data, (
            fit.call_args.args[1].key, streams.key(0, 'offline', 'state'))))

  @parameterized.parameters(('a_lol', 0, None), ('ilql', 20, 4.))
  def test_how_evaluations_sample(self, algorithm, top_k, shift):
    with (mock.patch.object(policies, 'watch', side_effect=StopIteration
                            ) as watch, self.assertRaises(StopIteration)):
      run(evaluate=True, algorithm=algorithm)
    _, measure, _, key, view = watch.call_args.args
    self.assertEqual(measure['sampler'].get('top_k', 0), top_k)
    self.assertEqual(view.value_shift, shift)
    # The policies of a seed, online ones too, are compared with one noise.
    np.testing.assert_array_equal(*map(
        jax.random.key_data, (key, streams.key(0, 'evaluation'))))

  def test_rows_are_packed_where_the_node_says_so(self):
    for packing in (False, True):
      loop = worlds.loop_of(lambda packing=packing: run(packing=packing))
      self.assertIs(loop.packing, packing)


class CriticTest(parameterized.TestCase):

  @parameterized.parameters('apa_offline', 'awr_offline')
  def test_devices_change_nothing(self, algorithm):
    """What the initial policy says is computed over all of them."""
    one, eight = (dataset(num_devices=devices, algorithm=algorithm,
                          upstream=NO_VALUES)[0] for devices in (1, 8))
    close(one, eight, rtol=1e-4, atol=1e-5)

  @parameterized.parameters('apa_offline', 'awr_offline')
  def test_data_set_by_hand(self, algorithm):
    """Values and reference of the initial model; statistics of all rows."""
    filled, _ = dataset(algorithm=algorithm, upstream=NO_VALUES)
    config = worlds.config()
    sft = artifacts.restore_policy(workdir() / 'sft').params
    params = {**sft, 'value_trunk': heads.trunk(sft),
              'value_head': heads.init_scalar(
                  streams.key(0, 'offline', 'value_head'), config.hidden_size,
                  scale=.5, mlp=True)}
    arrays = {k: x[:EXAMPLES - VALIDATION] for k, x in log().items()}
    there = arrays['mask'].any(axis=-1)
    batch = types.Batch(arrays['tokens'][there][:, None],
                        arrays['mask'][there][:, None])
    out = jax.jit(functools.partial(
        policy_lib.forward, config, value_config=config))(params, batch)
    mask = batch.mask
    np.testing.assert_array_equal(filled.tokens, batch.tokens)
    np.testing.assert_allclose(
        filled.old_values[mask], out.values[mask], rtol=1e-4, atol=1e-5)
    self.assertGreater(np.abs(filled.old_values[mask]).max(), .1)
    if algorithm == 'apa_offline':
      np.testing.assert_allclose(
          filled.ref_logprobs[mask], out.logprobs[mask], rtol=1e-4, atol=1e-5)
    else:
      self.assertIsNone(filled.ref_logprobs)
    scores = arrays['scores'][there].astype(np.float64)
    scores = (scores - scores.mean()) / scores.std(ddof=1)
    advantages = []
    for values_of, at, score in zip(
        np.asarray(out.values, np.float64)[:, 0], mask[:, 0], scores):
      v = np.append(values_of[at], 0.)
      delta = v[1:] - v[:-1]
      delta[-1] += score
      powers = .95 ** np.arange(len(delta))
      advantages += [np.sum(powers[:len(delta) - t] * delta[t:])
                     for t in range(len(delta))]
    advantages = np.array(advantages)
    np.testing.assert_allclose(
        filled.returns[mask], advantages + np.asarray(out.values)[mask],
        rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        filled.advantages[mask],
        (advantages - advantages.mean()) / advantages.std(),
        rtol=1e-3, atol=1e-4)


class ResumeTest(parameterized.TestCase):

  @parameterized.parameters('none', 'advantage')
  def test_goes_on_bitwise_in_the_middle_of_an_epoch(self, priority):
    whole = a_lol()[0] if priority == 'none' else run(priority=priority)[0]
    context = stopped(2, priority=priority)
    rows, _ = dataset(priority=priority)
    self.assertNotEqual(2 * BATCH % len(rows.tokens), 0)
    _, result = run(context, priority=priority)
    for folder, step in (('training', STEPS), ('checkpoints', STEPS)):
      jax.tree.map(np.testing.assert_array_equal,
                   restored(context, step, folder=folder),
                   restored(whole, step, folder=folder))
    self.assertEqual(context.lines('metrics'), whole.lines('metrics'))
    self.assertEqual(result['updates'], STEPS)
    self.assertFalse((context.directory / 'updates.jsonl').exists())
    if priority == 'advantage':
      self.assertNotEqual(whole.lines('metrics'), a_lol()[0].lines('metrics'))


class IlqlTest(parameterized.TestCase):

  @parameterized.parameters((0., 1.), (1., 0.))
  def test_heads_begin_with_scales_of_their_own(self, q, value):
    with (mock.patch.object(fit_lib, 'fit', side_effect=StopIteration) as fit,
          self.assertRaises(StopIteration)):
      run(algorithm='ilql', q=Q | dict(scale=q),
          value=RUN['value'] | dict(scale=value))
    params = fit.call_args.args[1].params
    for head, scale in (*((head, q) for head in params['q_heads']),
                        (params['value_head'], value)):
      self.assertEqual(np.any(head['weight']), bool(scale))

  def test_targets_follow_every_second_step(self):
    ilql = dict(algorithm='ilql', upstream=NO_VALUES)
    context = stopped(1, **ilql)
    start = restored(context, 1, 'training')['targets']
    stopped(1, context, **ilql)
    online = restored(context, 2)['q_heads']
    targets = restored(context, 2, 'training')['targets']
    self.assertGreater(differ(online, start), .005)
    close(targets, jax.tree.map(lambda a, b: .75 * a + .25 * b, start, online),
          rtol=1e-5, atol=1e-7)
    stopped(1, context, **ilql)
    close(restored(context, 3, 'training')['targets'], targets, rtol=0)
    run(context, **ilql)
    self.assertContainsSubset(
        ['q_heads', 'value_head', 'value_trunk'], restored(context, STEPS))
    self.assertEqual(
        restored(context, STEPS, folder='checkpoints').keys(), initial().keys())


@functools.cache
def untrained():
  return run(evaluate=True, num_steps=0)


class EvaluationTest(parameterized.TestCase):

  def test_no_step_is_the_reference(self):
    context, result = untrained()
    row, = context.lines('evaluation')
    for name in ('kl_k1', 'kl_k2', 'kl_k3'):
      self.assertAlmostEqual(row[name], 0, delta=1e-6)
    self.assertEqual((row['step'], row['updates'], row['epoch']), (0, 0, 0))
    self.assertEqual(result['updates'], 0)
    jax.tree.map(
        np.testing.assert_array_equal,
        restored(context, 0, folder='checkpoints'), initial())

  def test_proxy_is_the_sum_of_its_parts(self):
    context, _ = untrained()
    row, = context.lines('evaluation')
    self.assertAlmostEqual(
        row['proxy'],
        2 * row['component_short'] + .5 * row['component_readable'], 5)
    final = context.lines('final')
    self.assertLen(final, 4)
    for one_of in final:
      words = len(one_of['response'].split())
      self.assertAlmostEqual(one_of['component_short'], min(words / 20, 1), 6)
      self.assertAlmostEqual(
          one_of['proxy'], 2 * one_of['component_short']
          + .5 * one_of['component_readable'], 5)
    texts = files.read_json(context.directory / 'texts/000000.json')
    self.assertEqual(texts[0]['response'], final[0]['response'])

  def test_columns_of_gold_where_there_is_gold(self):
    context, _ = untrained()
    bare, _ = run(evaluate=True, num_steps=0,
                  upstream=dict(UPSTREAM, gold=None, pairs=None))
    (row,), (other,) = (c.lines('evaluation') for c in (context, bare))
    splits = {f'gold_split_{split}' for split in worlds.corpus().eval_splits}
    self.assertEqual(row.keys() - other.keys(), {
        f'{name}{end}' for name in ('gold', 'rule', *splits)
        for end in ('', '_se')})
    self.assertEqual({k: row[k] for k in other}, other)

  def test_ilql_samples_by_the_shift(self):
    row = {}
    for shift in (0., 4.):
      context, _ = run(evaluate=True, num_steps=0, algorithm='ilql',
                       upstream=NO_VALUES, q=Q | dict(shift=shift))
      row[shift], = context.lines('evaluation')
      self.assertNotIn('perplexity', row[shift])
    # Without a shift it is the language model, but for top-k.
    self.assertAlmostEqual(row[0.]['kl_k2'], 0, delta=1e-6)
    self.assertGreater(row[4.]['kl_k2'], .1)


if __name__ == '__main__':
  absltest.main()
