"""What policies start from and are scored by, trained through the front door.

Batches by identity, losses and updates in float64: SFT, the gold model, the
ensemble, the log and the values of its prompts.
"""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
from wiring import front_door
from wiring import front_door_config
from wiring import reference_losses as losses
from wiring import reference_models as models
from wiring import reference_updates as updates

from rlhf_jax import streams
from rlhf_jax.data import grammar

HELD_OUT, PAIRS, SEED = (
    front_door_config.HELD_OUT, front_door_config.PAIRS, front_door.SEED)
TRAINING = PAIRS - HELD_OUT
close = front_door.close


def setUpModule():
  front_door.study()


class SftTest(parameterized.TestCase):

  @parameterized.parameters(('sft', 'policy'), ('trunk', 'trunk'))
  def test_updates(self, stage, part):
    node = (front_door.config()['policy'] if part == 'policy'
            else front_door.config()['proxy']['sft'])
    run, rows = front_door.training(stage), (
        front_door.corpus().demonstrations)
    self.assertLen(run.steps, node['num_steps'])
    of = front_door.policy_gradient(losses.sft, aggregate=node['aggregate'])
    for step in (0, 1, 4, len(run.steps) - 1):
      batch = run.steps[step]['batch']
      at = front_door.order(step, node['batch_size'], len(rows.tokens),
                            'sft', part, 'order')
      np.testing.assert_array_equal(batch['tokens'], rows.tokens[at])
      np.testing.assert_array_equal(batch['mask'], rows.mask[at])
      loss, slope = of(front_door.before(stage, step)['params'], batch)
      close(run.steps[step]['metrics']['train/loss'], loss)
      front_door.assert_update(stage, step, slope, node['optimizer'])


def preferred():
  """Which of the two responses to each prompt has the higher gold score."""
  scores = front_door.arrays('pairs', 'pairs')['gold_scores']
  return (scores[:, 1] > scores[:, 0]).astype(int)


class RewardModelTest(absltest.TestCase):

  def test_gold_scores_of_pairs(self):
    pairs = front_door.arrays('pairs', 'pairs')
    alone = jax.tree.map(lambda x: x[None], front_door.trained('gold'))
    close(pairs['gold_scores'], front_door.members(
        alone, pairs['tokens'], pairs['mask'])[0])

  def test_gold_model_sees_clean_damaged_and_sampled_texts(self):
    node, corpus = front_door.config()['gold'], front_door.corpus()
    clean = (corpus.demonstrations.tokens[:, 0],
             corpus.demonstrations.mask[:, 0])
    damaged = grammar.corrupt(
        corpus.tokenizer, *clean, seed=streams.number(SEED, 'gold', 'damage'))
    kinds = [{row.tobytes() for row in tokens}
             for tokens in (clean[0], damaged[0])]
    run, of = front_door.training('gold'), front_door.gradient(
        lambda params, batch: ((models.reward(
            params, batch['tokens'], batch['mask']) - batch['targets'])**2
        ).mean())
    seen, targets, rules = [], [], []
    for step, done in enumerate(run.steps):
      batch = done['batch']
      seen += [[row[0].tobytes() in kind for kind in kinds]
               for row in batch['tokens']]
      targets.append(batch['targets'][:, 0])
      rules.append(corpus.world.rule(batch['tokens'][:, 0],
                                     batch['mask'][:, 0]))
      loss, slope = of(front_door.before('gold', step)['params'], batch)
      close(done['metrics']['train/loss'], loss)
      front_door.assert_update('gold', step, slope, node['optimizer'])
    is_clean, is_damaged = np.array(seen).T
    for share in (is_clean.mean(), (is_damaged & ~is_clean).mean(),
                  (~is_damaged & ~is_clean).mean()):
      self.assertBetween(share, .15, .6)
    targets, rules = np.concatenate(targets), np.concatenate(rules)
    slope, shift = np.polyfit(rules, targets, 1)  # the rule, standardised
    close(targets, slope * rules + shift, atol=1e-5)
    self.assertGreater(slope, 0)

  def test_members_differ_in_order_alone(self):
    """Each pair once, the same labels flipped, and none that is held out."""
    node = front_door.config()['proxy']
    pairs, run = front_door.arrays('pairs', 'pairs'), front_door.training(
        front_door.PROXIES)
    orders, labels = [], []
    for member in range(front_door_config.NUM_MEMBERS):
      at, first = [], np.full(PAIRS, -1)
      for step, done in enumerate(run.steps):
        rows = HELD_OUT + front_door.order(
            step, node['batch_size'], TRAINING, 'proxies', 'order', member)
        tokens = done['batch']['tokens'][member]
        swapped = (tokens[:, 0] != pairs['tokens'][rows, 0]).any(axis=-1)
        choice = np.stack([swapped, ~swapped], axis=1)[..., None].astype(int)
        np.testing.assert_array_equal(tokens, np.take_along_axis(
            pairs['tokens'][rows], choice, axis=1))
        np.testing.assert_array_equal(
            done['batch']['mask'][member], np.take_along_axis(
                pairs['mask'][rows], choice, axis=1))
        at += rows.tolist()
        first[rows] = swapped
      self.assertCountEqual(at, range(HELD_OUT, PAIRS))
      orders.append(at)
      labels.append(first[HELD_OUT:])
      self.assertEqual((labels[-1] != preferred()[HELD_OUT:]).sum(),
                       .25 * TRAINING)
    for member in range(1, front_door_config.NUM_MEMBERS):
      self.assertNotEqual(orders[member], orders[0])
      np.testing.assert_array_equal(labels[member], labels[0])
    log = front_door.arrays(front_door.LOG, 'logged')
    for tokens, example in zip(log['tokens'], log['example']):
      if example >= HELD_OUT:  # a log has the labels of the reward models
        np.testing.assert_array_equal(
            tokens[0], pairs['tokens'][
                example, labels[0][example - HELD_OUT]])

  def test_updates_of_members(self):
    node, run = front_door.config()['proxy'], front_door.training(
        front_door.PROXIES)
    of = front_door.gradient(lambda params, batch: losses.mean(
        *losses.bradley_terry(models.reward(
            params, batch['tokens'], batch['mask']))))
    for step, done in enumerate(run.steps):
      start = front_door.before(front_door.PROXIES, step)
      each = []
      for member in range(front_door_config.NUM_MEMBERS):
        part = lambda tree, m=member: jax.tree.map(lambda x: x[m], tree)
        loss, slope = of(part(start['params']), part(done['batch']))
        close(done['metrics']['train/loss'][member], loss)
        each.append(updates.update(
            front_door.state_of(part(start), step), slope,
            num_steps=run.num_steps, **node['optimizer']))
      stack = lambda *x: np.stack(x)
      front_door.assert_state(updates.State(*(
          jax.tree.map(stack, *(state[i] for state in each))
          for i in range(3))), done['state'])

  def test_members_start_from_one_trunk(self):
    start = front_door.training(front_door.PROXIES).start['params']
    trunk = {k: x for k, x in front_door.trained('trunk').items()
             if k != 'unembed'}
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(
        x, np.broadcast_to(y, x.shape)), start['trunk'], trunk)
    heads = start['head']['weight']
    self.assertGreater(np.abs(heads[1:] - heads[:1]).min(axis=0).max(), .01)

  def test_scale_is_that_of_held_out_responses(self):
    pairs = front_door.arrays('pairs', 'pairs')
    scores = front_door.members(
        front_door.trained(front_door.PROXIES), pairs['tokens'][:HELD_OUT],
        pairs['mask'][:HELD_OUT])
    scale = front_door.arrays(front_door.PROXIES, 'scale')
    close(scale['mean'], scores.mean(axis=(1, 2)))
    close(scale['std'], scores.std(axis=(1, 2)))


class LogTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.log = front_door.arrays(front_door.LOG, 'logged')
    self.components = front_door.config()['log']['components']

  def test_scores(self):
    rows = self.log['tokens'], self.log['mask']
    close(self.log['scores'], front_door.total(self.components, *rows))
    close(self.log['raw_scores'], front_door.total(
        self.components, *rows, squashed=False))

  def test_validation_is_held_out_of_the_reward_models(self):
    """With clean labels, and last."""
    example = self.log['example']
    self.assertCountEqual(example[TRAINING:], range(HELD_OUT))
    pairs = front_door.arrays('pairs', 'pairs')
    for row in range(TRAINING, PAIRS):
      np.testing.assert_array_equal(
          self.log['tokens'][row, 0],
          pairs['tokens'][example[row], preferred()[example[row]]])

  def test_prompt_values(self):
    lengths = self.log['mask'][:, 0].argmax(axis=-1)
    value = functools.partial(models.prompt_values, max_value=.8 + .5 + .7)
    head = front_door.trained(front_door.VALUES)['head']
    close(front_door.arrays(front_door.VALUES, 'values')['values'],
          models.precise(jax.jit(value))(
              head, front_door.trained('sft'),
              self.log['tokens'][:, 0, :lengths.max()], lengths))

  def test_updates_of_prompt_values(self):
    """Of what the reference says to validation prompts, without noise."""
    node = front_door.config()['log']['value']
    run = front_door.training(front_door.VALUES)
    prompts = {row[:n].tobytes() for row, n in zip(
        self.log['tokens'][TRAINING:, 0],
        self.log['mask'][TRAINING:, 0].argmax(axis=-1))}

    def loss(params, reference, batch, lengths):
      values = models.prompt_values(
          params['head'], reference, batch['tokens'][:, 0], lengths,
          max_value=.8 + .5 + .7)
      return ((values[:, None] - batch['targets'])**2).mean()

    of = front_door.gradient(loss)
    for step, done in enumerate(run.steps):
      batch = done['batch']
      lengths = batch['mask'][:, 0].argmax(axis=-1)
      for row, length in zip(batch['tokens'][:, 0], lengths):
        self.assertIn(row[:length].tobytes(), prompts)
      close(batch['targets'], front_door.total(
          self.components, batch['tokens'], batch['mask']))
      value, slope = of(front_door.before(front_door.VALUES, step)['params'],
                        front_door.trained('sft'), batch, lengths)
      close(done['metrics']['train/loss'], value)
      front_door.assert_update(
          front_door.VALUES, step, slope, node['optimizer'])


if __name__ == '__main__':
  absltest.main()
