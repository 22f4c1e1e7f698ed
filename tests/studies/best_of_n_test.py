"""The study `best_of_n`: what it plans, and what it refuses."""

from absl.testing import absltest
from absl.testing import parameterized
import worlds

from rlhf_jax import errors
from rlhf_jax.studies import plan


def config() -> dict:
  return worlds.get_config(worlds.FIGURE_3, 'smoke')


def keywords(study: dict) -> dict[str, dict]:
  return {stage.name: stage.run.keywords for stage in plan.plan(study)}


class BestOfNTest(parameterized.TestCase):

  def test_stages(self):
    """Texts are shared by all noises of an ending, models by all endings."""
    self.assertEqual(list(keywords(config())), [
        *(f'seed_0/{name}' for name in (
            'sft', 'gold', 'as_sampled/pairs', 'as_sampled/samples', 'trunk',
            *(f'as_sampled/noise_{noise}/{stage}' for noise in ('0', '0.25')
              for stage in ('proxies', 'scores', 'best_of_n')),
            'forced_eos/pairs', 'forced_eos/samples',
            *(f'forced_eos/noise_{noise}/{stage}' for noise in ('0', '0.25')
              for stage in ('proxies', 'scores', 'best_of_n')))),
        'report_seeds_0'])

  def test_who_reads_what(self):
    stages = keywords(config())
    for ending, force_eos in (('as_sampled', False), ('forced_eos', True)):
      pairs, samples = (f'seed_0/{ending}/{x}' for x in ('pairs', 'samples'))
      for name in (pairs, samples):
        self.assertEqual(stages[name]['force_eos'], force_eos)
        self.assertEqual(stages[name]['upstream'], {
            'reference': 'seed_0/sft', 'gold': 'seed_0/gold'})
      for noise in (0, .25):
        here = f'seed_0/{ending}/noise_{noise:g}'
        kwargs = stages[f'{here}/proxies']
        self.assertEqual(kwargs['upstream'], {
            'pairs': pairs, 'trunks': ['seed_0/trunk']})
        self.assertEqual(kwargs['label_noise'], noise)
        self.assertEqual(stages[f'{here}/scores']['upstream'], {
            'samples': samples, 'proxies': f'{here}/proxies'})
        self.assertEqual(stages[f'{here}/best_of_n']['upstream'], {
            'scores': f'{here}/scores', 'proxies': f'{here}/proxies'})

  def test_heads_on_a_frozen_trunk_read_responses_once(self):
    study = worlds.on_files(config())
    model = str(worlds.loaded() / 'model')
    study['data']['files']['tokenizer'] = model
    study['force_eos'] = (False,)
    study['proxy']['sft']['num_steps'] = 0
    study['proxy']['model'].update(path=model, trainable_layers=0)
    stages = keywords(study)
    self.assertNotIn('seed_0/trunk', stages)
    self.assertLen([x for x in stages if x.endswith('features')], 2)
    pairs, samples = (f'seed_0/as_sampled/{x}' for x in ('pairs', 'samples'))
    for noise in (0, .25):
      here = f'seed_0/as_sampled/noise_{noise:g}'
      self.assertEqual(stages[f'{here}/proxies']['upstream'], {
          'pairs': pairs, 'trunks': ['seed_0/sft'],
          'features': [f'{pairs}_features']})
      self.assertEqual(stages[f'{here}/scores']['upstream'], {
          'samples': samples, 'proxies': f'{here}/proxies',
          'features': f'{samples}_features'})

  def test_what_the_report_shows(self):
    study = config()
    study['seeds'] = (0, 5)
    report = keywords(study)['report_seeds_0_5']
    self.assertEqual(
        [(line['stage'], line['seed'], line['force_eos'], line['label_noise'])
         for line in report['runs']],
        [(f'seed_{seed}/{ending}/noise_{noise:g}/best_of_n', seed,
          ending == 'forced_eos', noise) for seed in (0, 5)
         for ending in ('as_sampled', 'forced_eos') for noise in (0, .25)])

  @parameterized.parameters(
      ('label_noise', (1.5,), r'config\.label_noise is .*shares'),
      ('label_noise', (), r'config\.label_noise is .*at least one'),
      ('force_eos', (2,), r'config\.force_eos is .*True, False or both'),
      ('force_eos', (True, True), r'config\.force_eos is .*once'))
  def test_rejects(self, field, value, message):
    with self.assertRaisesRegex(errors.ConfigError, message):
      plan.plan(config() | {field: value})

  @parameterized.parameters(
      ('methods', {'a': dict(kind='best')}, r'methods\.a\.kind is'),
      ('methods', {'a': dict(kind='single', member=2)}, r'methods\.a: '),
      ('methods', {'single': dict(kind='mean')}, r'methods\.single: names'),
      ('methods', {'single_max': dict(kind='mean')}, r'methods\.single_max: '),
      ('methods', {'a__b': dict(kind='mean')}, r'methods\.a__b: .*columns'),
      ('num_samples', 24, 'num_samples is 24'))
  def test_rejects_of_its_node(self, field, value, message):
    study = config()
    study['best_of_n'][field] = value
    with self.assertRaisesRegex(
        errors.ConfigError, rf'^config\.best_of_n\.{message}'):
      plan.plan(study)


if __name__ == '__main__':
  absltest.main()
