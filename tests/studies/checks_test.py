"""Tests for rlhf_jax.studies.checks: what every study refuses."""

import functools
import shutil

from absl.testing import absltest
from absl.testing import parameterized
import worlds

from rlhf_jax import errors
from rlhf_jax.data import logs
from rlhf_jax.data import tokenizer
from rlhf_jax.parallel import meshes
from rlhf_jax.studies import checks
from rlhf_jax.studies import nodes


def config() -> dict:
  return worlds.get_config(worlds.FIGURE_3, 'smoke')


def change(node: dict, field: str, value) -> dict:
  *path, last = field.split('.')
  functools.reduce(lambda node, name: node[name], path, node)[last] = value
  return node


def mesh(one: dict, num_devices=None):
  return meshes.planned(one['mesh'], num_devices)


def check(one: dict, *, trains_gold=True):
  checks.check(one, {'proxy': one['proxy']}, mesh(one), trains_gold=trains_gold)


def check_mesh(num_devices=None, **axes):
  one = config() | {'mesh': axes}
  proxies, planned = {'proxy': one['proxy']}, mesh(one, num_devices)
  checks.check(one, proxies, planned, trains_gold=True)
  checks.check_tokens(one, nodes.data_config(one), proxies, planned,
                      trains_gold=True)


class FieldsTest(parameterized.TestCase):

  def test_what_runs_is_let_through(self):
    check(config())

  @parameterized.parameters(
      ('seeds', ()), ('seeds', (1, 1)), ('seeds', (-1,)), ('seeds', ('0',)),
      ('seeds', (True,)),
      ('data.num_demonstrations', 0), ('data.num_pair_prompts', 0),
      ('data.num_eval_prompts', 1), ('training.save_every', 0),
      ('training.log_every', 0), ('sampler.temperature', 0.),
      ('sampler.top_p', 1.5), ('sampler.top_k', -1), ('policy.num_steps', -1),
      ('policy.batch_size', 0), ('policy.num_microbatches', 5),
      ('policy.optimizer.learning_rate', 0.), ('gold.held_out', 1),
      ('gold.num_steps', 0), ('proxy.num_members', 0),
      ('proxy.trunk', 'none'), ('proxy.head_scale', -1.),
      ('proxy.held_out', 96), ('proxy.held_out', 0), ('proxy.num_pairs', 0),
      ('proxy.num_pairs', 65), ('proxy.batch_size', 65),
      ('proxy.num_epochs', 0), ('proxy.sft.batch_size', 0),
      ('proxy.sft.num_steps', -1))
  def test_a_field_out_of_range(self, field, value):
    one = change(config(), field, value)
    with self.assertRaisesRegex(errors.ConfigError, rf'^config\.{field} is '):
      check(one)

  @parameterized.parameters(
      (dict(tensor=4), r'policy\.model: num_heads 2 is not .* tensor 4'),
      (dict(fsdp=3, data=-1), r'policy\.model: parameter embed .* fsdp 3'),
      (dict(member=4), r'proxy: 2 members are not divisible by member 4'),
      (dict(dta=8), "config.mesh has an axis 'dta'"))
  def test_a_mesh_that_divides_no_model(self, mesh, message):
    with self.assertRaisesRegex(errors.TopologyError, message):
      check_mesh(**mesh)
    check_mesh(data=-1, fsdp=2, tensor=2, member=2)

  @parameterized.parameters(
      (dict(tensor=-1), 4, r'policy\.model: num_heads 2 is not .* tensor 4'),
      (dict(fsdp=-1), 3, r'policy\.model: parameter embed .* fsdp 3'),
      (dict(member=-1), 3, r'proxy: 2 members are not divisible by member 3'),
      (dict(data=-1, tensor=2), 3, 'but there are 3 devices'))
  def test_what_is_left_of_the_devices_divides_no_model(
      self, axes, count, message):
    """An axis of -1 is known where the number of devices is."""
    with self.assertRaisesRegex(errors.TopologyError, message):
      check_mesh(count, **axes)
    check_mesh(**axes)

  @parameterized.parameters(
      ('policy.optimizer.schedule', 'step', r'policy\.optimizer: '),
      ('policy.model.family', 'mamba', r'policy\.model: .*mamba'),
      ('gold.model.num_heads', 3, r'gold\.model: '),
      ('proxy.model.num_heads', 3, r'proxy\.model: '),
      ('proxy.sft.optimizer.warmup_steps', -1, r'proxy\.sft\.optimizer: '))
  def test_what_could_not_be_made(self, field, value, message):
    with self.assertRaisesRegex(errors.ConfigError, rf'^config\.{message}'):
      check(change(config(), field, value))

  def test_the_gold_model_is_checked_where_it_is_read(self):
    one = change(config(), 'gold.num_steps', 0)
    check(one, trains_gold=False)
    with self.assertRaises(errors.ConfigError):
      check(one)

  def test_the_place_of_a_proxy_is_named(self):
    one = config()
    with self.assertRaisesRegex(
        errors.ConfigError, r'^config\.conditions\.a\.held_out is 96; must '
        r'leave some of data\.num_pair_prompts 96'):
      checks.check(one, {'conditions.a': dict(one['proxy'], held_out=96)},
                   mesh(one), trains_gold=True)

  @parameterized.parameters(
      ((), 'give at least'), ((.25, .25), 'once'), ((1.5,), r'\[0, 1\]'),
      (('a',), r'\[0, 1\]'))
  def test_shares(self, value, message):
    checks.check_shares({'label_noise': (0, .25, 1.)}, 'label_noise')
    with self.assertRaisesRegex(
        errors.ConfigError, rf'^config\.label_noise is .*{message}'):
      checks.check_shares({'label_noise': value}, 'label_noise')

  @parameterized.parameters(
      ('mean', r" is 'mean'; give {'kind': ...}"),
      (dict(kind='median'), r"\.kind is 'median'; there are "),
      (dict(kind='single', member=2), ': '),
      (dict(kind='uncertainty_weighted', uncertainty_coef=-1.), ': '))
  def test_aggregates(self, kwargs, message):
    checks.check_aggregate('a', dict(kind='single', member=1), 2)
    with self.assertRaisesRegex(errors.ConfigError, f'^config.a{message}'):
      checks.check_aggregate('a', kwargs, 2)

  @parameterized.parameters(
      ('num_samples', 1), ('samples_per_call', 0), ('shard_prompts', 0),
      ('num_samples', 24))
  def test_samples(self, field, value):
    checks.check_samples(config())
    with self.assertRaisesRegex(
        errors.ConfigError, rf'^config\.best_of_n\.{field} is {value}; '):
      checks.check_samples(change(config(), f'best_of_n.{field}', value))


class LoadedTest(parameterized.TestCase):
  """Models that are loaded, and files that they learn from."""

  def test_a_loaded_model_needs_texts_and_their_tokens(self):
    one = change(config(), 'gold.model.path', str(worlds.loaded() / 'model'))
    with self.assertRaisesRegex(
        errors.ConfigError, r'^config\.gold\.model is loaded; give '
        r'config\.data\.path'):
      check(one)
    one = worlds.on_files(one)
    with self.assertRaisesRegex(
        errors.ConfigError, r'^config\.gold\.model is loaded; give '
        r'config\.data\.files\.tokenizer'):
      check(one)
    one['data']['files']['tokenizer'] = str(worlds.loaded() / 'model')
    check(one)

  @parameterized.parameters(
      ('policy.model.trainable_layers', 0, 'a policy has no head'),
      ('proxy.sft.num_steps', 3, 'the rest as it is; give 0'),
      ('proxy.trunk', 'member', 'members share'))
  def test_what_a_part_of_a_model_cannot_be(self, field, value, message):
    one = worlds.on_files(config())
    model = str(worlds.loaded() / 'model')
    one['data']['files']['tokenizer'] = model
    for part in ('policy', 'gold', 'proxy'):
      one[part]['model']['path'] = model
    for part, layers in (('policy', 1), ('gold', 0), ('proxy', 0)):
      one[part]['model']['trainable_layers'] = layers
    one['proxy']['sft']['num_steps'] = 0
    check(one)
    with self.assertRaisesRegex(
        errors.ConfigError, rf'^config\.{field} is .*{message}'):
      check(change(one, field, value))

  @parameterized.parameters('gold', 'proxy')
  def test_a_part_of_fresh_weights_would_stay_random(self, part):
    with self.assertRaisesRegex(
        errors.ConfigError, rf'^config\.{part}\.model: .*trainable_layers but '
        'neither path nor name'):
      check(change(config(), f'{part}.model.trainable_layers', 0))

  @parameterized.parameters(-1, 999)
  def test_least_tokens_of_a_response(self, least):
    one = change(config(), 'sampler.min_new_tokens', least)
    with self.assertRaisesRegex(
        errors.ConfigError, rf'^config\.sampler\.min_new_tokens is {least}; '
        r'give 0 to \d+, the tokens of a response'):
      checks.check_tokens(one, nodes.data_config(one), {}, mesh(one),
                          trains_gold=True)

  def tokens(self, part: str, model, *, trains_gold=True):
    one = worlds.on_files(config())
    one['data']['files']['tokenizer'] = str(worlds.loaded() / 'model')
    one[part]['model']['path'] = str(model)
    checks.check_tokens(one, nodes.data_config(one), {
        'conditions.a': one['proxy']}, mesh(one), trains_gold=trains_gold)

  @parameterized.parameters(
      ('policy', 'policy'), ('gold', 'gold'), ('proxy', r'conditions\.a'))
  def test_one_vocabulary(self, part, where):
    self.tokens(part, worlds.loaded() / 'model')
    other = worlds.folder() / 'model'
    shutil.copytree(worlds.loaded() / 'model', other)
    tokenizer.Tokenizer.train_bpe(
        ['unlike other texts'], vocab_size=270).save_directory(other)
    with self.assertRaisesRegex(
        errors.ConfigError, rf'^config\.{where}\.model: in {other}, the token '
        r'.* has another id than in .*one vocabulary'):
      self.tokens(part, other)
    if part == 'gold':
      self.tokens(part, other, trains_gold=False)

  def test_the_gold_model_has_what_it_learns_from(self):
    one = worlds.on_files(config())
    checks.check_gold(one, nodes.data_config(one))
    one['gold']['held_out'] = 30
    with self.assertRaisesRegex(
        errors.ConfigError, r'^config\.gold\.held_out is 30 of 40 pairs'):
      checks.check_gold(one, nodes.data_config(one))
    one['data']['preferences'] = None
    with self.assertRaisesRegex(
        errors.ConfigError, r'^config\.data\.preferences is None, and the '
        'gold model learns from human pairs'):
      checks.check_gold(one, nodes.data_config(one))

  def test_texts_of_the_small_world_are_counted(self):
    """256 demonstrations, as many damaged, and 256 samples; batches of 16."""
    one = config()
    one['gold']['held_out'] = 768 - 16
    checks.check_gold(one, nodes.data_config(one))
    one['gold']['held_out'] += 1
    with self.assertRaisesRegex(
        errors.ConfigError, r'^config\.gold\.held_out is 753 of 768 texts, '
        r'which leaves fewer than config\.gold\.batch_size 16; lower one'):
      checks.check_gold(one, nodes.data_config(one))
    one['data']['num_demonstrations'] = 257  # 264 samples, 8 to a prompt
    one['gold']['held_out'] = 778 - 16
    checks.check_gold(one, nodes.data_config(one))
    one['gold']['held_out'] += 1
    with self.assertRaisesRegex(errors.ConfigError, ' 763 of 778 texts'):
      checks.check_gold(one, nodes.data_config(one))

  def test_texts_of_a_task_with_the_rule_are_counted(self):
    one = config()
    one['data']['logged'].update(task='reddit', num_rows=99)
    data = nodes.data_config(one)
    count = len(logs.training(data, 0))
    self.assertLess(count, 99)
    most = 2 * count + 8 * -(-count // 8) - 16
    one['gold']['held_out'] = most
    checks.check_gold(one, data)
    one['gold']['held_out'] += 1
    with self.assertRaisesRegex(errors.ConfigError, r'gold\.held_out is '):
      checks.check_gold(one, data)


if __name__ == '__main__':
  absltest.main()
