"""How the documentation is built: `make docs`, warnings are errors.

Sphinx, because it is kept well, reads docstrings by importing the package, and
its search index is a file beside the pages. Nothing in a page comes from the
network: furo has no fonts of its own, and equations are MathML.
"""

import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import rlhf_jax  # noqa: E402

project, author = 'rlhf_jax', 'the rlhf_jax contributors'
release = version = rlhf_jax.__version__
extensions = [
    'myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon',
    'sphinx.ext.doctest', 'docstrings', 'mathml', 'parts']
exclude_patterns = ['build']
default_role = 'code'

myst_enable_extensions = ['dollarmath', 'colon_fence']
myst_heading_anchors = 3

autodoc_member_order = 'bysource'
autodoc_preserve_defaults = True
autodoc_default_options = {'members': True, 'show-inheritance': False}
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
# Numbers of the pages are computed; those of docstrings too.
doctest_global_setup = '''
import jax, jax.numpy as jnp, numpy as np
jax.config.update('jax_disable_most_optimizations', True)
'''

# Fields of several classes have one name; nothing links to them.
suppress_warnings = ['ref.python']

html_theme = 'furo'
html_title = f'rlhf_jax {release}'
html_math_renderer = 'mathml'
html_copy_source = html_show_sphinx = False
