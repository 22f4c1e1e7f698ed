"""README, docs/ and notebooks/: what they name is there, what they say runs.

The commands that read a user's files are run by readme_data_test; worked
numbers by `make docs`, notebooks by `make notebooks`.
"""

import ast
import contextlib
import functools
import importlib.util
import io
import json
import re
import shlex
import sys

from absl.testing import absltest
from absl.testing import parameterized
import worlds

from rlhf_jax import main

DOCS = worlds.ROOT / 'docs'
PAGES = sorted(str(path.relative_to(worlds.ROOT)) for path in (
    worlds.ROOT / 'README.md', *DOCS.rglob('*.md'))
    if not {'build', 'generated'} & {*path.parts})
# Pages that Sphinx builds too, from a copy.
BESIDE = ('CONTRIBUTING.md', *sorted(
    str(path.relative_to(worlds.ROOT)) for path in (
        worlds.ROOT / 'experiments').rglob('README.md')))
NOTEBOOKS = sorted(path.name for path in (
    worlds.ROOT / 'notebooks').glob('*.ipynb'))
BLOCK = re.compile(r'^ *```(\S*)\n(.*?)^ *```', re.DOTALL | re.MULTILINE)
LINK = re.compile(r'\]\(([^)\s]+)\)')
OBJECTIVES = sorted(
    path.stem for path in (worlds.ROOT / 'rlhf_jax/objectives').glob('*.py')
    if path.stem != '__init__')
SECTIONS = ('Equation', 'Where paper and code disagree', 'A worked number',
            'Shapes and arguments', 'What it is held to')
# Run by readme_data_test, with the commands around it.
ELSEWHERE = ('docs/how-to/own_objective.md',)
# What the kernel brings along, and what a cell writes.
WITH_A_KERNEL = ('IPython', 'mine')


@functools.cache
def text(page: str) -> str:
  return (worlds.ROOT / page).read_text()


def commands(page: str) -> list[str]:
  """Lines of its blocks without a language, continued ones as one."""
  return [line.strip() for language, block in BLOCK.findall(text(page))
          if not language
          for line in block.replace('\\\n', ' ').splitlines() if line.strip()]


def anchors(page) -> set[str]:
  """Of the headings of a page, as GitHub makes them."""
  return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
          for heading in re.findall(r'^#+ (.*)$', page.read_text(), re.M)}


def imported(source: str):
  """(module, names of it) of each import of a cell."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      yield from ((alias.name, []) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield node.module, [alias.name for alias in node.names]


class PagesTest(parameterized.TestCase):

  @parameterized.parameters(*PAGES, *BESIDE)
  def test_links_lead_somewhere(self, page):
    """In the repository: relative links, without the built documentation."""
    for link in LINK.findall(text(page)):
      name, _, anchor = link.partition('#')
      if name.startswith('http'):
        continue
      path = worlds.ROOT / page
      if name:
        self.assertFalse(name.startswith('/'), link)
        path = path.parent / name
      self.assertTrue(path.exists(), link)
      if anchor:
        self.assertIn(anchor, anchors(path), link)

  @parameterized.parameters(PAGES)
  def test_commands_are_understood(self, page):
    """Every field that a flag sets is there; every make target too."""
    targets = re.findall(r'^([\w-]+):', text('Makefile'), re.MULTILINE)
    for line in commands(page):
      words = shlex.split(line, comments=True)
      if words[0] == 'make':
        self.assertIn(words[1], targets)
        continue
      self.assertEqual(words[0], 'rlhf-jax', line)
      self.assertIn(words[1], main.COMMANDS)
      flags = [word for word in words if word.startswith('--config')]
      if flags and flags[0].startswith('--config='):
        with worlds.inside(worlds.ROOT):
          self.assertEqual(self.run_('show', *flags, '--print_config'), 0, line)

  def run_(self, *words) -> int:
    with contextlib.redirect_stdout(io.StringIO()):
      return main.run(['rlhf-jax', *words])

  @parameterized.parameters(page for page in PAGES if page not in ELSEWHERE)
  def test_python_runs(self, page):
    for language, block in BLOCK.findall(text(page)):
      if language == 'python':
        exec(compile(block, page, 'exec'), {})

  def test_the_front_page_is_short(self):
    page = re.sub(r'<!-- begin .*?<!-- end [^\n]*', '', text('README.md'),
                  flags=re.DOTALL)  # what commands write
    prose = [line for line in page.splitlines() if not line.startswith('|')]
    self.assertLess(len(' '.join(prose).split()), 1150)


class LinksTest(parameterized.TestCase):

  @parameterized.parameters(
      ('[a](../guide/logs.md#x)', '[a](/guide/logs.md#x)'),
      ('[a](sft.md)', '[a](/objectives/sft.md)'),
      ('[a](../../CONTRIBUTING.md)', '[a](/generated/CONTRIBUTING.md)'),
      ('[a](../../experiments/README.md#b)',
       '[a](/generated/experiments/README.md#b)'),
      ('[`m`](../../rlhf_jax/objectives/sft.py)',
       '{py:mod}`m <rlhf_jax.objectives.sft>`'),
      ('[`m`](../../rlhf_jax/testing/__init__.py)',
       '{py:mod}`m <rlhf_jax.testing>`'),
      ('[a](../../experiments/launch/gke.yaml)', '`a`'),
      ('[`a`](../../tests/faults)', '`a`'),
      *((same, same) for same in (
          '[a](#x)', '[a](https://b.c/d.md)', '![a](../index.md)',
          '[a](../nowhere.md)')))
  def test_for_sphinx(self, text_, expected):
    """Of a page of docs/objectives: pages, modules and paths."""
    worlds.importable(self, DOCS)
    import links
    self.addCleanup(sys.modules.pop, 'links', None)
    self.assertEqual(
        links.relink(text_, links.folder('objectives/dpo')), expected)

  def test_copies_lie_where_they_come_from(self):
    worlds.importable(self, DOCS)
    import links
    self.addCleanup(sys.modules.pop, 'links', None)
    for page, expected in (
        ('index', 'docs'), ('generated/CHANGELOG', '.'),
        ('generated/experiments/launch/README', 'experiments/launch')):
      self.assertEqual(links.folder(page), worlds.ROOT / expected, page)


class ObjectivePagesTest(parameterized.TestCase):

  @parameterized.parameters(OBJECTIVES)
  def test_a_page_says_all_of_it(self, name):
    page = text(f'docs/objectives/{name}.md')
    self.assertSequenceEqual(
        re.findall(r'^## (.*)$', page, re.MULTILINE), SECTIONS)
    for file in (f'rlhf_jax/objectives/{name}.py',
                 f'tests/objectives/{name}_test.py'):
      self.assertIn(f'](../../{file})', page)
    # Numbers are computed, not typed.
    self.assertIn('```{doctest}', page)
    self.assertIn(f'```{{tests}} {name}\n', page)
    self.assertIn(f'\n{name}\n', text('docs/objectives/index.md'))

  @parameterized.parameters(OBJECTIVES)
  def test_every_loss_is_on_it(self, name):
    module = importlib.import_module(f'rlhf_jax.objectives.{name}')
    losses = {key for key in vars(module) if key.endswith('_loss')
              and key != 'add_value_loss'}
    page = text(f'docs/objectives/{name}.md')
    self.assertEqual({*re.findall(r'autofunction:: [\w.]*\.(\w+)', page)},
                     losses)


class NotebooksTest(parameterized.TestCase):

  def test_there_is_one_for_each_paper(self):
    papers = {path.parent.name for path in (
        worlds.ROOT / 'experiments').glob('*/verdicts.csv')}
    self.assertEqual(papers | {'own_data', 'own_objective'},
                     {name.removesuffix('.ipynb') for name in NOTEBOOKS})

  @parameterized.parameters(NOTEBOOKS)
  def test_is_valid_stripped_and_compiles(self, name):
    notebook = json.loads(text(f'notebooks/{name}'))
    self.assertEqual(notebook['nbformat'], 4)
    self.assertGreaterEqual(notebook['nbformat_minor'], 5)
    self.assertEqual(notebook['metadata']['kernelspec']['name'], 'python3')
    ids = [cell['id'] for cell in notebook['cells']]
    self.assertLen({*ids}, len(ids))
    self.assertEqual(notebook['cells'][0]['cell_type'], 'markdown')
    for cell in notebook['cells']:
      source = ''.join(cell['source'])
      if cell['cell_type'] != 'code':
        self.assertEqual({*cell}, {'cell_type', 'id', 'metadata', 'source'})
        continue
      self.assertEmpty(cell['outputs'])
      self.assertIsNone(cell['execution_count'])
      for module, names in imported(source):
        self.resolve(module, names)

  def resolve(self, module: str, names: list[str]):
    """Of the package and the notebooks' own; of others, that they are there."""
    if module in WITH_A_KERNEL:
      return
    top = module.partition('.')[0]
    if top not in ('papers', 'rlhf_jax'):
      self.assertIsNotNone(importlib.util.find_spec(top), module)
      return
    module_ = importlib.import_module(module)
    for name in names:
      if not hasattr(module_, name):
        importlib.import_module(f'{module}.{name}')

  def setUp(self):
    super().setUp()
    worlds.importable(self, worlds.ROOT / 'notebooks')

  def test_missing_results_name_their_command(self):
    import papers
    with self.assertRaisesRegex(
        FileNotFoundError, 'fig99/results.csv is not there.*rlhf-jax run '
        '--config=experiments/a/fig99.py:laptop'):
      papers.results('a', 'fig99')
    with self.assertRaisesRegex(FileNotFoundError, 'rlhf-jax verdicts'):
      papers.verdicts('a')

  def test_a_curve_is_a_mean_over_seeds(self):
    """Of two seeds, the second with two members; t of one degree is 12.7."""
    import papers
    rows = [dict(seed=seed, step='3', kl='1', gold=gold) for seed, gold in (
        ('1', '1'), ('2', '2'), ('2', '4'))]
    x, mean, half = papers.curve(rows, 'kl', 'gold')
    self.assertEqual((x.tolist(), mean.tolist()), ([1.], [2.]))
    self.assertAlmostEqual(half[0], 12.7062, 3)

  def test_verdicts_are_those_of_the_file(self):
    import papers
    table = papers.verdicts(worlds.COSTE.removeprefix('experiments/'),
                            'Figure 3').splitlines()
    rows = [row for row in worlds.rows(
        worlds.ROOT / worlds.COSTE / 'verdicts.csv')
        if row['claim'].startswith('Figure 3')]
    self.assertLen(table, 2 + len(rows))
    for line, row in zip(table[2:], rows):
      self.assertIn(f"**{row['word']}**", line)


if __name__ == '__main__':
  absltest.main()
