"""What a model card says is what transformers then gives, to 1e-4."""

import csv
import re

from absl.testing import absltest
import numpy as np
import own_data
import pytest
import worlds

from rlhf_jax.data import formats
from rlhf_jax.storage import files

torch = pytest.importorskip(
    'torch', reason='parity with transformers needs torch: make test-peers')

BLOCK = re.compile(r'```python\n(.*?)```', re.DOTALL)


class CardTest(absltest.TestCase):

  def scores(self, directory) -> list[dict]:
    """As `rlhf-jax score` gives them."""
    output = worlds.folder() / 'out.csv'
    own_data.succeed('score', f'--rewards={directory}', f'--output={output}',
                     f'--data={own_data.folder()}/scored.csv')
    with open(output, newline='') as stream:
      return list(csv.DictReader(stream))[:4]

  def follow(self, directory, row) -> dict:
    """The names that the card's own lines leave."""
    prompt, response = formats.alpaca(row['prompt'], row['response'])
    lines = BLOCK.search((directory / 'README.md').read_text())[1]
    names = {'prompt': prompt, 'response': response}
    with worlds.inside(directory), torch.no_grad():
      exec(lines, names)
    return names

  def setUp(self):
    super().setUp()
    # All prompts are longer, some responses, so that the card has to cut them.
    self.path = worlds.folder() / 'narrow'
    directory = own_data.trained()
    own_data.succeed(
        'train', '--algorithm=reward', '--size=smoke', '--members=3',
        f'--data={own_data.folder()}/pairs.jsonl', f'--model={directory}/model',
        '--max_prompt_length=24', '--max_response_length=6',
        f'--workdir={self.path}')

  def test_an_ensemble(self):
    out = worlds.folder() / 'ensemble'
    where = (f'--workdir={self.path}', '--stage=seed_0/rewards/proxies')
    own_data.succeed('export', *where, f'--directory={out}')
    for row in self.scores(out):
      names = self.follow(out, row)
      members = [float(row[f'member_{i}']) for i in range(3)]
      np.testing.assert_allclose(names['scores'].numpy(), members, atol=1e-4)
      self.assertAlmostEqual(names['mean'].item(), float(row['reward']), 4)
      self.assertAlmostEqual(names['worst'].item(), min(members), 4)
      self.assertAlmostEqual(
          names['uncertainty_weighted'].item(),
          np.mean(members) - .5 * np.var(members), 4)

  def test_one_model(self):
    out = worlds.folder() / 'one'
    own_data.succeed(
        'export', f'--workdir={self.path}', '--stage=seed_0/rewards/proxies',
        f'--directory={out}', '--member=1')
    told = files.read_json(out / 'reward.json')
    for row in self.scores(out):
      names = self.follow(out, row)
      self.assertAlmostEqual(
          (names['score'] - told['mean']) / told['std'],
          float(row['reward']), 4)

  def test_a_policy(self):
    directory = own_data.trained() / 'model'
    lines = BLOCK.search((directory / 'README.md').read_text())[1]
    with worlds.inside(directory), torch.no_grad():
      exec(lines, {'prompt': 'Name a colour.'})


if __name__ == '__main__':
  absltest.main()
