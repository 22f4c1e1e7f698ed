"""Tests for rlhf_jax.configs.fields: no field too many, too few, mistyped."""

import importlib
import math
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

import rlhf_jax
from rlhf_jax import errors
from rlhf_jax.configs import base
from rlhf_jax.configs import fields
from rlhf_jax.configs import templates
from rlhf_jax.studies import trees

EXPERIMENTS = pathlib.Path(rlhf_jax.__path__[0]).parent / 'experiments'
STUDIES = ('online', 'offline', 'best_of_n', 'iterated', 'reward_models')


class FieldsTest(parameterized.TestCase):

  def changed(self, study, place, value):
    """A config with another value at a dotted place; None: without it."""
    config = node = templates.get(study)
    *above, name = place.split('.')
    for part in above:
      node = node[part]
    node[name] = value
    if value is None:
      del node[name]
    return config

  def test_every_config_that_is_shipped_has_them(self):
    count = 0
    for path in sorted(EXPERIMENTS.glob('*/*.py')):
      module = importlib.import_module(
          f'experiments.{path.parent.name}.{path.stem}')
      for size in base.SIZES:
        fields.check(module.get_config(size).to_dict())
        count += 1
    self.assertGreater(count, 100)

  @parameterized.parameters(*STUDIES)
  def test_a_template_has_them(self, study):
    template = templates.get(study)
    self.assertEqual(template['study'], study)
    fields.check(template)

  @parameterized.parameters(
      ('policy.num_stpes', 3, "did you mean 'num_steps'"),
      ('sampler.topk', 3, "did you mean 'top_k'"),
      ('training.save_evry', 3, "did you mean 'save_every'"),
      ('gold.heldout', 3, "did you mean 'held_out'"),
      ('proxy.optimizer.warmup', 3, "did you mean 'warmup_steps'"),
      ('online.rolout', {}, "did you mean 'rollout'"),
      ('data.files.colums', {}, "did you mean 'columns'"),
      ('sedds', (1,), "did you mean 'seeds'"))
  def test_a_field_too_many(self, place, value, message):
    with self.assertRaisesRegex(
        errors.ConfigError, f'^config.{place} is no field; {message}'):
      fields.check(self.changed('online', place, value))

  @parameterized.parameters(
      'sampler.top_p', 'training.log_every', 'online.evaluation.chunk_size',
      'policy.optimizer.learning_rate', 'proxy.sft.batch_size',
      'data.logged.path', 'pool', 'figure', 'title')
  def test_a_field_too_few(self, place):
    with self.assertRaisesRegex(
        errors.ConfigError, f'^config.{place} is missing; change fields one '
        f'by one, as in config.{place} = '):
      fields.check(self.changed('online', place, None))

  @parameterized.parameters(
      ('sampler.temperature', 'hot', 'give a number'),
      ('sampler.temperature', math.inf, 'give a number'),
      ('policy.optimizer.learning_rate', math.nan, 'give a number'),
      ('proxy.num_members', 2.0, 'give an integer'),
      ('proxy.num_members', True, 'give an integer'),
      ('force_eos', 1, 'give True or False'),
      ('title', 3, 'give text'), ('seeds', 3, 'give a list of values'),
      ('sampler', 3, 'give its fields'), ('runs', 3, 'give a dict'))
  def test_a_field_of_another_type(self, place, value, message):
    with self.assertRaisesRegex(
        errors.ConfigError, f'^config.{place} is .*; {message}$'):
      fields.check(self.changed('online', place, value))

  @parameterized.parameters(
      ('data.path', 'a.json'), ('proxy.num_pairs', 3), ('mesh.fsdp', -1),
      ('policy.model.num_kv_heads', 1), ('data.world.topics', 3),
      ('policy.optimizer.learning_rate', 1), ('seeds', [1, 2]),
      ('runs', {'a': {'algorithm': 'rloo'}}))
  def test_what_may_be_changed(self, place, value):
    fields.check(self.changed('online', place, value))

  def test_a_config_of_another_study(self):
    with self.assertRaisesRegex(errors.ConfigError, 'is no field; there are'):
      fields.check(templates.get('iterated') | {'study': 'online'})
    fields.check({'study': 'of one who says what it has'})

  def test_what_is_open_is_in_a_template(self):
    names = set()

    def read(node):
      for name, value in node.items():
        if isinstance(value, dict):
          names.add(name)
          read(value)

    for study in STUDIES:
      read(templates.get(study))
    self.assertContainsSubset({*fields.OPEN} - {*trees.OPEN}, names)


if __name__ == '__main__':
  absltest.main()
