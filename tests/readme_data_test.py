"""The commands of the README for one's own data, run as they stand there."""

import pathlib
import re
import shlex
import shutil
from unittest import mock

from absl.testing import absltest
import own_data
import worlds

SECTION = re.compile(r'^## Your own data\n(.*?)^## ', re.DOTALL | re.MULTILINE)
BLOCK = re.compile(r'^```(\w*)\n(.*?)^```', re.DOTALL | re.MULTILINE)


def blocks() -> list[tuple[str, str]]:
  """(language, text) of each block of the section, in order."""
  text = (worlds.ROOT / 'README.md').read_text()
  return [(match[1], match[2]) for match in BLOCK.finditer(
      SECTION.search(text)[1])]


def commands() -> list[list[str]]:
  return [shlex.split(line)[1:] for language, text in blocks() if not language
          for line in text.splitlines()]


def smaller(words: list[str]) -> list[str]:
  """The command at size smoke, of few reward models."""
  if words[0] in ('train', 'doctor'):
    words = [*words, '--size=smoke']
  return [word.replace('--members=5', '--members=2') for word in words]


class ReadmeTest(absltest.TestCase):

  def test_every_command(self):
    """In one directory, each after those before it."""
    directory = worlds.folder()
    shutil.copytree(own_data.folder(), directory, dirs_exist_ok=True)
    worlds.importable(self, directory)
    loss, law = [text for language, text in blocks() if language == 'python']
    with open(directory / 'mine.py', 'a') as stream:
      stream.write(f'\n\n{loss}')
    self.enterContext(mock.patch.dict('sys.modules'))
    self.enterContext(worlds.inside(directory))
    # The model of the commands: of a file that they do not name.
    for words in (
        ('train', '--algorithm=sft', '--data=demonstrations.json',
         '--size=smoke', '--workdir=first'),
        ('export', '--workdir=first', '--stage=seed_0/policies/policy',
         '--directory=models/mine')):
      code, _, err = own_data.run(*words)
      self.assertEqual(code, 0, err)
    exec(law, {})  # the README's own words
    self.assertGreater(len(commands()), 12)
    for words in commands():
      code, out, err = own_data.run(*smaller(words), stdin='Hello\n')
      self.assertEqual(code, 0, f'{words}: {err}')
      self.assertTrue(out.strip(), words)
    for left in ('scores.csv', 'models/rewards/ensemble.json',
                 'runs/compared/figure.png'):
      self.assertTrue(pathlib.Path(left).exists(), left)

  def test_every_command_that_there_is(self):
    """Is named by the table of the section, and by no other name."""
    from rlhf_jax import main
    text = SECTION.search((worlds.ROOT / 'README.md').read_text())[1]
    table = text[text.index('| command |'):]
    named = {name for line in table.splitlines()[2:] if line.startswith('|')
             for name in re.findall(r'`(\w+)`', line.split('|')[1])}
    self.assertEqual(named, {*main.COMMANDS})


if __name__ == '__main__':
  absltest.main()
