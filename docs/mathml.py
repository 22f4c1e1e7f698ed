"""Equations as MathML, by docutils: browsers draw them without a script."""

from docutils import nodes
from docutils.utils.math import latex2mathml
from docutils.utils.math import MathError
from sphinx.errors import SphinxError


def _mathml(node: nodes.Element, is_block: bool) -> str:
  text = node.astext()
  try:
    return latex2mathml.tex2mathml(text, as_block=is_block)
  except MathError as error:
    raise SphinxError(f'{text!r}: {error}') from error


def _inline(writer, node):
  writer.body.append(_mathml(node, False))
  raise nodes.SkipNode


def _block(writer, node):
  writer.body.append(f'<div class="math">\n{_mathml(node, True)}\n</div>\n')
  raise nodes.SkipNode


def setup(app):
  app.add_html_math_renderer('mathml', (_inline, None), (_block, None))
  return {'parallel_read_safe': True, 'parallel_write_safe': True}
