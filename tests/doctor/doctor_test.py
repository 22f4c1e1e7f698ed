"""Tests of the doctor: what is sound passes, and each fault is caught."""

import dataclasses
import functools
import json
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import own_data
import worlds

from rlhf_jax import streams
from rlhf_jax import train
from rlhf_jax.commands import doctor
from rlhf_jax.configs import tasks
from rlhf_jax.configs import training
from rlhf_jax.data import load as load_lib
from rlhf_jax.data import tokenizer
from rlhf_jax.doctor import findings
from rlhf_jax.doctor import models
from rlhf_jax.doctor import rewards
from rlhf_jax.doctor import texts
from rlhf_jax.models import pretrained
from rlhf_jax.studies import nodes

SAMPLER = dict(temperature=1.0, top_k=0, top_p=1.0)


@functools.cache
def config(algorithm='dpo', data='pairs.jsonl', **fields) -> dict:
  return training.get_config(tasks.Task(
      algorithm=algorithm, data=str(own_data.folder() / data), size='smoke',
      max_prompt_length=48, **fields)).to_dict()


def states(some) -> dict[str, str]:
  return {one.check: one.state for one in some}


def check_texts(corpus=None, **changes) -> dict[str, str]:
  """What the texts of pairs are told, with another corpus or other fields."""
  data = nodes.data_config(config()) | changes
  if corpus is None:
    return states(texts.check(data, 0)[1])
  with mock.patch.object(load_lib, 'load', lambda *unused: corpus):
    return states(texts.check(data, 0)[1])


@functools.cache
def corpus():
  return load_lib.load(nodes.data_config(config()), 0)


@functools.cache
def model() -> pretrained.Model:
  return pretrained.init(
      config()['policy']['model'], corpus().tokenizer.vocab_size,
      streams.key(0, 'sft', 'policy', 'weights'))


class SoundTest(parameterized.TestCase):

  @parameterized.parameters(
      ('dpo', 'pairs.jsonl', None), ('rloo', 'prompts.jsonl', 'mine:polite'),
      ('a_lol', 'scored.csv', None), ('reward', 'pairs.jsonl', None))
  def test_nothing_fails(self, algorithm, data, reward):
    worlds.importable(self, own_data.folder())
    code, out, err = own_data.run(
        'doctor', f'--algorithm={algorithm}', '--size=smoke',
        f'--data={own_data.folder()}/{data}', '--max_prompt_length=48',
        *([f'--reward={reward}'] if reward else []))
    self.assertEqual(code, 0, err + out)
    shown = [line.split()[0] for line in out.splitlines()
             if line.split()[0] in findings.STATES]
    self.assertNotIn('fail', shown)
    self.assertGreater(shown.count('pass'), 8)
    for check in ('EOS', 'ratio at step 0', 'KL at step 0', 'reference',
                  'invariance to padding', 'memory'):
      if data != 'prompts.jsonl' or check != 'EOS':
        self.assertIn(f'pass  {check}', out)


class TextsTest(parameterized.TestCase):

  def test_padding_that_texts_have(self):
    """The BOS, as a wrong name would choose it."""
    self.assertEqual(check_texts()['padding token'], 'pass')
    path = worlds.folder()
    corpus().tokenizer.save(path / 'tokenizer.json')
    wrong = check_texts(tokenizer=str(path / 'tokenizer.json'),
                        pad=tokenizer.BOS)
    self.assertEqual(wrong['padding token'], 'fail')
    same = check_texts(tokenizer=str(path / 'tokenizer.json'),
                       pad=tokenizer.EOS)
    self.assertEqual(same['padding token'], 'warn')

  def test_a_template_that_drops_the_eos(self):
    rows = corpus().demonstrations
    mask = rows.mask & (rows.tokens != corpus().tokenizer.eos_id)
    dropped = dataclasses.replace(
        corpus(), demonstrations=rows.replace(mask=mask))
    self.assertEqual(check_texts()['EOS'], 'pass')
    self.assertEqual(check_texts(dropped)['EOS'], 'fail')

  def test_pairs_that_are_equal_after_truncation(self):
    self.assertEqual(check_texts()['pairs'], 'pass')
    self.assertEqual(check_texts(
        max_prompt_length=4, max_response_length=1)['lengths'], 'fail')
    pairs = corpus().preferences
    for count, state in ((1, 'warn'), (len(pairs.tokens), 'fail')):
      tokens = pairs.tokens.copy()
      tokens[:count, 1] = tokens[:count, 0]
      self.assertEqual(check_texts(dataclasses.replace(
          corpus(), preferences=pairs.replace(tokens=tokens)))['pairs'], state)

  def test_pairs_that_were_left_out_count(self):
    """As `identical_pairs` has it unless told otherwise."""
    path = worlds.folder() / 'a.jsonl'
    front = 'word ' * 20
    path.write_text(''.join(json.dumps(dict(
        prompt=f'q{i}', chosen=f'{front if i < 8 else ""}good {i}',
        rejected=f'{front if i < 8 else ""}bad {i}')) + '\n'
                            for i in range(24)))
    some = dict(path=str(path), num_pair_prompts=4, num_eval_prompts=2)
    for policy in ('drop', 'keep'):
      self.assertEqual(check_texts(
          **some, max_response_length=12, identical_pairs=policy)['pairs'],
                       'fail')
    self.assertEqual(check_texts(**some, max_response_length=60)['pairs'],
                     'pass')

  def test_a_bos_that_comes_twice(self):
    rows = corpus().demonstrations
    tokens = rows.tokens.copy()
    tokens[0, 0, 1] = corpus().tokenizer.bos_id
    self.assertEqual(check_texts()['BOS'], 'pass')
    self.assertEqual(check_texts(dataclasses.replace(
        corpus(), demonstrations=rows.replace(tokens=tokens)))['BOS'], 'warn')


class ModelsTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.batch, _ = models.check_sampler(model(), corpus(), SAMPLER, 1.0, 0)

  def test_another_temperature(self):
    for temperature, state in ((1.0, 'pass'), (.7, 'fail')):
      _, some = models.check_sampler(
          model(), corpus(), SAMPLER, temperature, 0)
      self.assertEqual(states(some)['ratio at step 0'], state)

  def test_evaluations_at_another_temperature(self):
    worlds.importable(self, own_data.folder())
    code, out, _ = own_data.run(
        'doctor', '--algorithm=rloo', '--reward=mine:polite', '--size=smoke',
        f'--data={own_data.folder()}/prompts.jsonl',
        '--config.online.rollout.temperature=0.5')
    self.assertEqual(code, 0)
    self.assertIn('warn  temperatures', out)

  def test_a_reference_that_is_not_where_the_policy_starts(self):
    params = jax.tree.map(lambda x: x * 1.5, model().trainable)
    other = model()._replace(trainable=params)
    with mock.patch.object(models, 'merged', lambda one: model().trainable):
      _, some = models.check_sampler(other, corpus(), SAMPLER, 1.0, 0)
    self.assertEqual(states(some)['KL at step 0'], 'fail')

  def test_a_reference_that_is_trained(self):
    """As where both are the same arrays, and one is written over."""
    self.assertEqual(
        states(models.check_step(model(), self.batch, 0))['reference'], 'pass')
    own = model()._replace(trainable=jax.tree.map(
        lambda x: np.array(x), model().trainable))

    def trained(one):
      return one.trainable

    def make(*args, **kwargs):
      step = train.make_train_step(*args, **kwargs)
      def wrong(state, batch, base):
        for x in jax.tree.leaves(own.trainable):
          jax.debug.callback(lambda x=x: np.add(x, 1, out=x))
        return step(state, batch, base)
      return wrong

    with mock.patch.object(models, 'merged', trained):
      actual = states(models.check_step(own, self.batch, 0, make))
    self.assertEqual(actual['reference'], 'fail')

  def test_nothing_is_trained(self):
    def make(*args, **kwargs):
      step = train.make_train_step(*args, **kwargs)
      return lambda state, batch, base: (state, step(state, batch, base)[1])
    self.assertEqual(states(models.check_step(
        model(), self.batch, 0, make))['reference'], 'fail')

  def test_a_loss_that_padding_or_a_cut_changes(self):
    def make(*args, num_microbatches, **kwargs):
      step = train.make_train_step(
          *args, num_microbatches=num_microbatches, **kwargs)
      def wrong(state, batch, base):
        state, metrics = step(state, batch, base)
        return state, metrics | {'train/loss': metrics['train/loss'] * (
            num_microbatches * jnp.float32(batch.tokens.shape[-1]))}
      return wrong
    actual = states(models.check_step(model(), self.batch, 0, make))
    self.assertEqual(actual['invariance to padding'], 'fail')
    self.assertEqual(actual['invariance to micro-batches'], 'fail')


class RewardsTest(parameterized.TestCase):

  def critic(self, total, **changes):
    run = config('ppo', 'prompts.jsonl', reward='vader')['online']
    run = run | {'reward': run['reward'] | changes}
    return states(rewards.check_critic(np.float32(total), run, .2))

  def test_outside_of_the_values_reach(self):
    """Two rollouts move a value by .4 at most."""
    self.assertEqual(self.critic([.1, -.1])['value range'], 'pass')
    self.assertEqual(self.critic([.3, .1])['value range'], 'warn')
    self.assertEqual(self.critic([5., .1])['value range'], 'fail')
    self.assertNotIn('value range', self.critic([5., .1], scale='running'))

  def test_clipped(self):
    self.assertEqual(self.critic([5., 11., 1.])['reward clip'], 'warn')
    self.assertEqual(self.critic([50., 11., 1.])['reward clip'], 'fail')
    self.assertEqual(self.critic([50.], clip=None)['reward clip'], 'pass')

  @parameterized.parameters(
      (dict(kind='function', function='mine:polite'), 'fail'),
      (dict(kind='function', function='mine:polite', range=(0, 1)), 'pass'),
      (dict(kind='file', column='reward'), 'fail'),
      (dict(kind='file', column='reward', squash='sigmoid'), 'pass'))
  def test_prompt_values(self, node, state):
    self.assertEqual(states(rewards.check_values({'mine': node})),
                     {'value range': state})

  @parameterized.parameters(
      ('polite', None, 'pass'), ('huge', None, 'pass'),
      ('huge', (0, 1), 'fail'), ('polite', (0, 1), 'pass'))
  def test_a_function(self, name, limits, state):
    worlds.importable(self, own_data.folder())
    node = dict(kind='function', function=f'mine:{name}', range=limits)
    total, some = rewards.check(
        {'mine': node}, dict(timeout=30., num_workers=1, chunk_size=4),
        np.zeros((2, 3), np.int32), np.ones((2, 3), bool), ['p', 'q'],
        ['a', 'bb'])
    self.assertEqual(states(some), {'reward': state})
    if state == 'pass':
      expected = [.01, .02] if name == 'polite' else [1e6 + 1, 1e6 + 2]
      np.testing.assert_allclose(total, expected, rtol=1e-6)

  def test_rewards_that_are_all_alike(self):
    _, some = rewards.check(
        {'v': dict(kind='length', target=2)}, {}, np.zeros((2, 3), np.int32),
        np.ones((2, 3), bool), ['p', 'q'], ['a b', 'c d'])
    self.assertEqual(states(some), {'reward': 'warn'})


class FrontDoorTest(absltest.TestCase):

  def test_a_fail_is_an_error(self):
    worlds.importable(self, own_data.folder())
    code, out, err = own_data.run(
        'doctor', '--algorithm=ppo', '--reward=mine:huge', '--size=smoke',
        f'--data={own_data.folder()}/prompts.jsonl')
    self.assertEqual(code, 2)
    self.assertIn("fail  value range", out)
    self.assertIn("-> rewards are outside of the values' reach", out)
    self.assertRegex(err, 'CONFIG: 2 checks fail: reward clip, value range;')

  def test_of_a_study(self):
    some = states(doctor.check(worlds.get_config(worlds.FIGURE_3, 'smoke')))
    self.assertNotIn('fail', some.values(), some)

  def test_samples_as_rollouts_do(self):
    study = worlds.get_config(f'{worlds.COSTE}/fig4_ppo.py', 'smoke')
    study['online']['rollout'].update(min_new_tokens=3, temperature=.5)
    with mock.patch.object(models, 'check_sampler',
                           side_effect=ZeroDivisionError) as check:
      with self.assertRaises(ZeroDivisionError):
        list(doctor.check(study))
    sampler = check.call_args.args[2]
    self.assertEqual(sampler, study['sampler'] | {
        'min_new_tokens': 3, 'temperature': .5})

  def test_of_a_study_of_heads_alone(self):
    """Of which no step on a trunk could be taken; that of its policy is."""
    study = worlds.on_files(worlds.get_config(worlds.FIGURE_3, 'smoke'))
    for part in ('policy', 'proxy'):
      study[part]['model']['path'] = str(worlds.loaded() / 'model')
    study['proxy']['model']['trainable_layers'] = 0
    study['proxy']['sft']['num_steps'] = 0
    some = states(doctor.check(study))
    for check in ('ratio at step 0', 'reference', 'invariance to padding'):
      self.assertEqual(some[check], 'pass')


if __name__ == '__main__':
  absltest.main()
