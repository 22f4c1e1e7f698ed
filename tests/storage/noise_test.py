"""Tests for rlhf_jax.storage.noise, in a process of its own: it hooks."""

import subprocess
import sys

from rlhf_jax.storage import noise

SCRIPT = """
import asyncio, gc, logging
from rlhf_jax.storage import noise

class Leftover:
  def __init__(self, word):
    self.word = word
  def __del__(self):
    raise RuntimeError(self.word)

logging.basicConfig()
for name in ('absl', 'asyncio'):
  logging.getLogger(name).error('%s before orbax', name)
with noise.quiet():
  logging.getLogger('absl').error('absl within')
  logging.getLogger('other').error('other within')
for name in ('absl', 'asyncio'):
  logging.getLogger(name).error('%s after orbax', name)
logging.getLogger('asyncio').error('of others')
Leftover('Event loop is closed')
Leftover('a bug')
"""


def test_only_the_words_of_orbax_are_dropped():
  done = subprocess.run([sys.executable, '-c', SCRIPT], capture_output=True,
                        text=True)
  lines = done.stderr.splitlines()
  assert [line for line in lines if line.startswith('ERROR:')] == [
      'ERROR:absl:absl before orbax', 'ERROR:asyncio:asyncio before orbax',
      'ERROR:other:other within', 'ERROR:absl:absl after orbax',
      'ERROR:asyncio:of others']
  assert lines[-1] == 'RuntimeError: a bug'
  assert 'Event loop' not in done.stderr


def test_the_reason_is_that_of_the_disk():
  long = ValueError('RESOURCE_EXHAUSTED: ' + 'path ' * 99 +
                    '\n  No space left on device')
  assert noise.reason(long) == 'No space left on device'
  assert noise.reason(KeyError('x\ny')) == "KeyError: 'x\\ny'"
