"""Tests for rlhf_jax.data.native: a panic is one exception, and no more."""

import os
import subprocess
import sys

import pytest
import tokenizers
from tokenizers import models
from tokenizers import pre_tokenizers

from rlhf_jax.data import native

# Its pattern asks for an 'a' at the end, in exponentially many ways.
TEXT = 'a' * 30 + '!'


def greedy():
  backend = tokenizers.Tokenizer(models.BPE(vocab={'a': 0, '!': 1}, merges=[]))
  backend.pre_tokenizer = pre_tokenizers.Split(
      tokenizers.Regex('(a+)+$'), 'isolated')
  return backend


def test_a_panic_is_one_quiet_exception(capfd):
  with pytest.raises(RuntimeError, match='retry-limit') as caught:
    with native.guarded():
      greedy().encode(TEXT)
  assert '\n' not in str(caught.value)
  os.write(2, b'and then\n')
  assert capfd.readouterr().err == 'and then\n'


def test_other_words_and_errors_pass(capfd):
  with native.guarded():
    os.write(2, b'a warning\n')
  with pytest.raises(KeyboardInterrupt), native.guarded():
    raise KeyboardInterrupt
  assert capfd.readouterr().err == 'a warning\n'


def test_stderr_may_be_closed():
  script = ('import os\nfrom rlhf_jax.data import native\nos.close(2)\n'
            'with native.guarded():\n  print("in")\n')
  done = subprocess.run([sys.executable, '-c', script], capture_output=True,
                        text=True)
  assert (done.returncode, done.stdout) == (0, 'in\n')
