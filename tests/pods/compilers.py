"""Prints the compilers that the installed jax asks for, as pip takes them."""

import importlib.metadata
import re

for requirement in importlib.metadata.requires('jax'):
  match = re.match(r'(libtpu)==([\d.*]+) *;', requirement)
  if match:
    print(f'{match[1]}=={match[2]}')
version = importlib.metadata.version('jaxlib')
print(f'jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version}')
