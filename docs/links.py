"""Links of the repository, as Sphinx needs them.

Pages link to files as a reader of the repository follows them, by paths from
where the page lies. Of what they link to outside docs/, pages are copied below
`generated/`, modules have a place in the reference, and for all else there is
the path, without a link.
"""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]
_LINK = re.compile(r'(?<!!)\[([^]]*)\]\(([^)\s]*)\)')


def is_copied(path: pathlib.Path) -> bool:
  """Whether a file of the repository has a copy below `generated/`."""
  name = path.relative_to(ROOT)
  if name.parts[0] == 'experiments':
    return name.suffix == '.md' and 'results' not in name.parts
  return str(name) in ('CHANGELOG.md', 'CONTRIBUTING.md')


def folder(page: str) -> pathlib.Path:
  """Where a page, by its name for Sphinx, or what it is copied from, lies."""
  name = page.removeprefix('generated/')
  return (ROOT / name if name != page else ROOT / 'docs' / page).parent


def relink(text: str, where: pathlib.Path) -> str:
  """Markdown from a folder of the repository, with links for Sphinx."""
  def change(match: re.Match) -> str:
    label, target = match.groups()
    path, mark, anchor = target.partition('#')
    file = (where / path).resolve()
    if not path or ':' in path or not file.is_relative_to(ROOT) or (
        not file.exists()):
      return match[0]  # of this page, on the network, or a warning
    name = file.relative_to(ROOT)
    if name.parts[:1] == ('docs',):
      return f'[{label}](/{name.relative_to("docs")}{mark}{anchor})'
    if is_copied(file):
      return f'[{label}](/generated/{name}{mark}{anchor})'
    words = label.replace('`', '')
    if name.suffix == '.py' and name.parts[0] == 'rlhf_jax':
      module = '.'.join(name.with_suffix('').parts).removesuffix('.__init__')
      return f'{{py:mod}}`{words} <{module}>`'
    return label if '`' in label else f'`{label}`'
  return _LINK.sub(change, text)
