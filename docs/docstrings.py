"""Docstrings of the package, which are plain text, as reStructuredText.

Before napoleon reads their sections: what is indented outside of a section is
an equation or a table and stays as it stands, `x` is code, and no star, bar or
underscore is markup.
"""

import re

_SECTION = re.compile(r'(Args|Returns|Raises|Yields|Attributes):$')
_MARKUP = re.compile(r'[*|\\]|(?<=\w)_(?!\w)')
_ITEM = re.compile(r'(- |\d+\. )')


class _Inline:
  """Escapes text, line by line: a span of code may go over two of them."""

  def __init__(self):
    self._is_code = False

  def __call__(self, line: str) -> str:
    if not line:
      self._is_code = False
      return line
    indent = line[:len(line) - len(line.lstrip())]
    pieces, parts = [], line.lstrip().replace('``', '`').split('`')
    for i, part in enumerate(parts):
      if i:
        self._is_code = not self._is_code
      if self._is_code:
        pieces.append(f'``{part.strip()}``' if part.strip() else '')
      else:  # a plural after code needs a break of markup
        glue = '\\ ' if i and part[:1].isalnum() else ''
        pieces.append(glue + _MARKUP.sub(r'\\\g<0>', part))
    return indent + ''.join(pieces)


def _is_even(lines: list[str]) -> bool:
  """Whether no line of a section is indented further than its first."""
  indents = {len(x) - len(x.lstrip()) for x in lines if x}
  return len(indents) < 2


def _blocks(lines: list[str]) -> list[tuple[str, list[str]]]:
  """(kind, lines): 'section', 'verbatim' or 'text', in their order."""
  blocks, kind, is_item = [], 'text', False
  for line in lines:
    is_indented = line.startswith(' ')
    if _SECTION.match(line):
      kind = 'section'
      blocks.append((kind, []))
    elif line and not is_indented:
      is_item = bool(_ITEM.match(line)) or (is_item and kind == 'text')
      if kind != 'text':
        kind = 'text'
    elif is_indented and kind == 'text' and not is_item:
      kind = 'verbatim'
    if not line:
      is_item = False
    if not blocks or blocks[-1][0] != kind:
      blocks.append((kind, []))
    blocks[-1][1].append(line)
  return blocks


def converted(lines: list[str]) -> list[str]:
  """A docstring's lines, as Google's style and reStructuredText have them."""
  result, inline = [], _Inline()
  for kind, block in _blocks([line.rstrip() for line in lines]):
    head, *rest = block
    if kind == 'verbatim':
      result += ['', '::', '', *block, '']
    elif kind == 'section' and head == 'Returns:' and not _is_even(rest):
      result += ['', ':returns:', '  ::', '', *(f'  {x}' for x in rest), '']
    elif kind == 'section':
      result += ['', head, *map(inline, rest)]
    elif any(line.startswith('>>> ') for line in block):
      result += block
    else:
      result += map(inline, block)
  return result


def _convert(app, what, name, object_, options, lines):
  lines[:] = converted(lines)


def setup(app):
  app.connect('autodoc-process-docstring', _convert, priority=400)
  return {'parallel_read_safe': True, 'parallel_write_safe': True}
