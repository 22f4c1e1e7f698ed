"""The study `reward_models`: what it plans, what it refuses, and its rows."""

from absl.testing import absltest
from absl.testing import parameterized
import worlds

from rlhf_jax import errors
from rlhf_jax.storage import files
from rlhf_jax.studies import plan

FIGURE_15 = f'{worlds.COSTE}/fig15_validation_loss.py'


def config() -> dict:
  return worlds.get_config(FIGURE_15, 'smoke')


class RewardModelsTest(parameterized.TestCase):

  def test_stages(self):
    study = config()
    study['seeds'] = (2, 0)
    study['conditions'] = {'clean': {}, 'large': dict(
        model=dict(hidden_size=32), label_noise=.25)}
    study['figure'] = dict(study['figure'], line=(), panel=('condition',))
    stages = {stage.name: stage.run.keywords for stage in plan.plan(study)}
    self.assertEqual(list(stages), [
        *(f'seed_{seed}/{name}' for seed in (2, 0) for name in (
            'sft', 'gold', 'pairs', 'trunk', 'clean/proxies', 'large/trunk',
            'large/proxies')), 'report_seeds_2_0'])
    for name, noise in (('clean', 0.), ('large', .25)):
      kwargs = stages[f'seed_2/{name}/proxies']
      self.assertEqual(
          (kwargs['validate'], kwargs['label_noise']), (True, noise))
      self.assertEqual(kwargs['upstream']['pairs'], 'seed_2/pairs')
    self.assertEqual(stages['report_seeds_2_0']['policies'], [
        {'stage': f'seed_{seed}/{name}/proxies', 'run': name, 'seed': seed,
         'labels': {'condition': name}}
        for seed in (2, 0) for name in ('clean', 'large')])

  @parameterized.parameters(
      (dict(conditions={}), r'config\.conditions is {}; give at least one'),
      (dict(conditions={'gold': {}}), r'conditions\.gold has the name of a'),
      (dict(conditions={'a': dict(num_members=0)}),
       r'config\.conditions\.a\.num_members is 0'),
      (dict(conditions={'a': dict(noise=1)}), r'conditions\.a\.noise is no'))
  def test_rejects(self, changes, message):
    with self.assertRaisesRegex(errors.ConfigError, message):
      plan.plan(config() | changes)

  def test_a_line_for_each_epoch(self):
    """And one before the first."""
    workdir, _ = worlds.smoke(FIGURE_15)
    study = files.read_json(workdir / 'config.json')
    epochs = study['proxy']['num_epochs']
    for name in study['conditions']:
      rows = files.read_jsonl(
          workdir / f'seed_0/{name}/proxies/evaluation.jsonl')
      self.assertEqual([row['epoch'] for row in rows],
                       list(range(epochs + 1)))
      for row in rows:
        self.assertBetween(row['accuracy'], 0, 1)
        self.assertBetween(row['loss'], 0, 2)


if __name__ == '__main__':
  absltest.main()
