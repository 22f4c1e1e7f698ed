"""The commands of README and docs/ on one's own data, as they stand there."""

import pathlib
import re
import shlex
import shutil
import sys

from absl.testing import absltest
import own_data
import worlds

# In this order, in one directory; a command that stands twice is run once.
PAGES = ('README.md', 'docs/tutorial.md', 'docs/how-to/own_data.md',
         'docs/how-to/own_reward.md', 'docs/how-to/sweep.md',
         'docs/how-to/own_objective.md', 'docs/how-to/pod.md')
BLOCK = re.compile(r'^ *```(\S*)\n(.*?)^ *```', re.DOTALL | re.MULTILINE)


def blocks(page: str) -> list[tuple[str, str]]:
  """(language, text) of each block of a page, in order."""
  text = (worlds.ROOT / page).read_text()
  return [(match[1], match[2]) for match in BLOCK.finditer(text)]


def commands() -> list[list[str]]:
  """Those that read a user's files; of a study's config see docs_test."""
  lines = dict.fromkeys(
      line.strip() for page in PAGES for language, text in blocks(page)
      if not language for line in text.splitlines())
  return [shlex.split(line)[1:] for line in lines
          if line.startswith('rlhf-jax ') and '--config=' not in line]


def smaller(words: list[str]) -> list[str]:
  """The command at size smoke, of short texts and few reward models."""
  if words[0] in ('train', 'doctor'):
    words = [*words, *own_data.SHORT]
  return [word.replace('--members=5', '--members=2') for word in words]


class ReadmeTest(absltest.TestCase):

  def test_every_command(self):
    """In one directory, each after those before it."""
    directory = worlds.folder()
    shutil.copytree(own_data.folder(), directory, dirs_exist_ok=True)
    worlds.importable(self, directory)
    loss, law = [text for language, text in blocks(
        'docs/how-to/own_objective.md') if language == 'python']
    with open(directory / 'mine.py', 'a') as stream:
      stream.write(f'\n\n{loss}')
    # Of this directory alone: a library that is forgotten comes in twice.
    self.addCleanup(sys.modules.pop, 'mine', None)
    self.enterContext(worlds.inside(directory))
    # A model that others share, by the name that the commands have for it.
    shutil.copytree(own_data.trained() / 'model', 'models/mine')
    exec(law, {})  # the page's own words
    self.assertGreater(len(commands()), 12)
    for words in commands():
      code, out, err = own_data.run(*smaller(words), stdin='Hello\n')
      self.assertEqual(code, 0, f'{words}: {err}')
      self.assertTrue(out.strip(), words)
    for left in ('scores.csv', 'models/rewards/ensemble.json',
                 'runs/compared/figure.png'):
      self.assertTrue(pathlib.Path(left).exists(), left)

  def test_every_command_that_there_is(self):
    """Is named by the table of the page, and by no other name."""
    from rlhf_jax import main
    text = (worlds.ROOT / 'docs/how-to/own_data.md').read_text()
    table = text[text.index('| command |'):]
    named = {name for line in table.splitlines()[2:] if line.startswith('|')
             for name in re.findall(r'`(\w+)`', line.split('|')[1])}
    self.assertEqual(named, {*main.COMMANDS})


if __name__ == '__main__':
  absltest.main()
