"""What pages take from elsewhere at build time, so that nothing is copied.

Below `generated/`, which git ignores: a page for each package with all its
modules, and the pages of the experiments with their figures. Directives:

  between    a command: what it has written into README.md
  tests      an objective: what its tests hold it to, and how many faults
             of it they notice
  house      the packages
  laws       of all objectives
  faults     how many small ones the tests must notice, by package
  matrix     kinds of faults of a run, and what is not tested of them
"""

import ast
import collections
import pathlib
import shutil

from docutils import nodes
import links
from sphinx.util.docutils import SphinxDirective

ROOT = links.ROOT
GENERATED = ROOT / 'docs' / 'generated'
PACKAGE = ROOT / 'rlhf_jax'


def order() -> tuple[str, ...]:
  """The packages, lowest first, as the test of the imports has them."""
  tree = ast.parse((ROOT / 'tests' / 'layering_test.py').read_text())
  for node in tree.body:
    if isinstance(node, ast.Assign) and (
        ast.unparse(node.targets[0]) == 'ORDER'):
      return ast.literal_eval(node.value)
  raise LookupError('tests/layering_test.py has no ORDER')


def modules(name: str) -> list[str]:
  """Dotted names of a package and what is in it, or of one module."""
  folder = PACKAGE / name
  if not folder.is_dir():
    return [f'rlhf_jax.{name}']
  paths = sorted(path.relative_to(PACKAGE).with_suffix('')
                 for path in folder.rglob('*.py'))
  names = ['.'.join(('rlhf_jax', *path.parts)) for path in paths]
  return [x for x in (n.removesuffix('.__init__') for n in names)
          if not x.rpartition('.')[2].startswith('_')]


def _summary(name: str) -> str:
  """The first line of what a package or module says of itself."""
  path = PACKAGE / name / '__init__.py'
  path = path if path.exists() else PACKAGE / f'{name}.py'
  text = ast.get_docstring(ast.parse(path.read_text())) or ''
  return ' '.join(text.split('\n\n')[0].split())


def _write(path: pathlib.Path, text: str):
  """Only where it differs, so that a second build reads what has changed."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if not path.exists() or path.read_text() != text:
    path.write_text(text)


def _reference():
  """A page for each package, by autodoc."""
  names = [name for name in order() if name != '__main__']
  for name in names:
    title = f'rlhf_jax.{name}'
    page = [title, '=' * len(title), '']
    for module in modules(name):
      if module != title:
        short = module.removeprefix('rlhf_jax.')
        page += [short, '-' * len(short), '']
      page += [f'.. automodule:: {module}', '']
    _write(GENERATED / 'reference' / f'{name}.rst', '\n'.join(page))


def _copies():
  """The pages and figures of the experiments, and pages beside docs/."""
  for path in sorted((*(ROOT / 'experiments').rglob('*'), *ROOT.glob('*.md'))):
    copy = GENERATED / path.relative_to(ROOT)
    if links.is_copied(path):
      _write(copy, path.read_text())
    elif path.suffix == '.png' and not (
        copy.exists() and copy.stat().st_mtime >= path.stat().st_mtime):
      copy.parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(path, copy)


def _read(app, page: str, content: list[str]):
  content[0] = links.relink(content[0], links.folder(page))


def generate(app):
  _reference()
  _copies()


class _Markdown(SphinxDirective):
  """A directive whose content is Markdown that is made here."""

  optional_arguments = 1
  final_argument_whitespace = True
  has_content = False

  def run(self) -> list[nodes.Node]:
    self.env.note_reread()  # what it shows is in other files
    return self.parse_text_to_nodes(
        self.text(*self.arguments), allow_section_headings=False)


class House(_Markdown):
  """The packages, the highest first."""

  def text(self) -> str:
    rows = [f'| [`{name}`](/generated/reference/{name}.rst) | '
            f'{_summary(name)} |' for name in reversed(order())
            if name != '__main__']
    return '\n'.join(['| | what it says of itself |', '|---|---|', *rows])


class Laws(_Markdown):

  def text(self) -> str:
    from rlhf_jax import testing
    return '\n'.join(f'- **{name}**: {" ".join(law.__doc__.split())}'
                     for name, law in testing.LAWS.items())


class Faults(_Markdown):
  """How many there are of each symbol, by package."""

  def text(self) -> str:
    rows = ['| package | faults | of |', '|---|---|---|']
    for path in sorted((ROOT / 'tests' / 'faults').glob('*.diff')):
      counts = collections.Counter(_symbols(path))
      of = ', '.join(f'`{name}` {n}' for name, n in counts.items())
      rows.append(f'| {path.stem} | {counts.total()} | {of} |')
    return '\n'.join(rows)


class Matrix(_Markdown):
  """The fault matrix: kinds of faults, and what is not tested of them."""

  def text(self) -> str:
    tree = ast.parse((ROOT / 'tests' / 'fault_matrix.py').read_text())
    table, = (node.value for node in tree.body if isinstance(node, ast.Assign)
              and ast.unparse(node.targets[0]) == 'ROWS')
    rows = ['| | fault | groups of tests | not tested |', '|---|---|---|---|']
    for key, row in zip(table.keys, table.values):
      fault, tests, *lacking = map(ast.literal_eval, row.args)
      rows.append(f'| {key.value} | {fault} | {len(tests)} | '
                  f'{"".join(lacking)} |')
    return '\n'.join(rows)


class Between(_Markdown):

  def text(self, command: str) -> str:
    page = (ROOT / 'README.md').read_text()
    begin, end = (f'<!-- {word} of {command} -->' for word in ('begin', 'end'))
    return links.relink(page.split(begin)[1].split(end)[0], ROOT)


class Tests(_Markdown):

  def text(self, name: str) -> str:
    path = ROOT / 'tests' / 'objectives' / f'{name}_test.py'
    lines = [f'- {what}' for what in checks(path)]
    count = faults(name)
    return '\n'.join([
        *lines, '',
        f'{count} small faults of it stand in `tests/faults/`, each of which '
        'a test notices (`make mutants`).'])


def checks(path: pathlib.Path) -> list[str]:
  """What the tests of a file are called, in words."""
  result = []
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.FunctionDef) and node.name.startswith('test_'):
      words = node.name.removeprefix('test_').replace('_', ' ')
      doc = (ast.get_docstring(node) or '').split('\n\n')[0]
      result.append(f'{words}: {" ".join(doc.split())}' if doc else words)
  return result


def faults(name: str) -> int:
  """How many faults of an objective the tests have to notice."""
  tree = ast.parse((PACKAGE / 'objectives' / f'{name}.py').read_text())
  own = {node.name for node in tree.body if isinstance(
      node, ast.FunctionDef | ast.ClassDef)} - {'objective'}
  own |= {f'{name}.{x}' for x in own} | {f'{name}.objective', name}
  path = ROOT / 'tests' / 'faults' / 'objectives.diff'
  return sum(symbol.removeprefix('objectives.') in own
             for symbol in _symbols(path))


def _symbols(path: pathlib.Path) -> list[str]:
  """What each fault of a file is a fault of."""
  return [paragraph.split('\n')[0]
          for paragraph in path.read_text().strip('\n').split('\n\n')]


def setup(app):
  app.connect('builder-inited', generate)
  app.connect('source-read', _read)
  for name, directive in dict(between=Between, faults=Faults, house=House,
                              laws=Laws, matrix=Matrix, tests=Tests).items():
    app.add_directive(name, directive, override=True)
  return {'parallel_read_safe': True, 'parallel_write_safe': True}
