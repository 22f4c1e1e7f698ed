"""Tests for rlhf_jax.rewards.programmatic and its processes."""

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from rlhf_jax import errors
from rlhf_jax.rewards import programmatic

# Functions of a user: `act` does what the first prompt of its chunk says.
MODULE = """
  import ctypes, os, signal, socket, subprocess, sys, time
  import numpy as np

  table = [1]

  def length(prompts, responses):
    print('a user prints')
    return [len(x) for x in responses]

  def asks(prompts, responses):
    assert len(prompts) <= 2
    lengths = np.array([len(x) for x in prompts], np.float32)
    prompts.clear()  # its own
    responses += 'more'
    return lengths

  def world(prompts, responses):
    ours = {x for x in sys.modules if x.startswith('rlhf_jax.')}
    return [float('jax' in sys.modules),
            len(ours - {'rlhf_jax.errors', 'rlhf_jax.rewards'}),
            os.getpgrp() - os.getpid(), float(os.path.sameopenfile(1, 2))]

  def pid(prompts, responses):
    return np.full(len(prompts), os.getpid())

  def mixed(prompts, responses):
    return [None, float('nan'), 10**400, -float('inf'), 1e39, 2.]

  def act(prompts, responses):
    what = prompts[0]
    if what == 'hang':
      child = subprocess.Popen(['sleep', '1000'])
      with open(responses[0], 'w') as stream:
        stream.write(f'{os.getpid()} {child.pid}')
      # As does native code that holds the lock of the interpreter.
      (ctypes.PyDLL(None).sleep if 'deaf' in prompts else time.sleep)(1000)
    if what.startswith('write '):
      for number in map(int, os.listdir('/dev/fd')):
        try:
          socket.socket(fileno=os.dup(number)).sendall(what[6:].encode())
        except OSError:  # no socket
          pass
    if what == 'raise':
      raise ValueError('no such word\\nin the list')
    if what == 'exit':
      sys.exit('bye')
    if what == 'die':
      os._exit(3)
    if what == 'crash':
      os.kill(os.getpid(), signal.SIGSEGV)
    if what == 'nan':
      return [0.] * (len(prompts) - 1) + [float('nan')]
    return [0.] * len(prompts)
"""
directory = tempfile.TemporaryDirectory()


def setUpModule():
  for name, text in (('user_rewards', MODULE), ('user_fails', '1 / 0'),
                     ('user_hangs', 'import time; time.sleep(1000)'),
                     ('user_dies', 'import os; os._exit(5)'),
                     ('user_writes', 'import os, sys; '
                      'os.write(int(sys.argv[1]), b"noise\\n")')):
    with open(os.path.join(directory.name, f'{name}.py'), 'w') as stream:
      stream.write(textwrap.dedent(text))
  sys.path.insert(0, directory.name)


def tearDownModule():
  sys.path.remove(directory.name)
  directory.cleanup()


def named(*names):
  return {name: f'user_rewards:{name}' for name in names}


def pids(functions):
  return [worker._process.pid for worker in functions._workers]


def gone(pid, seconds=20):
  """Whether a process ends, or is only waited for, within some time."""
  for _ in range(int(seconds / .05)):
    try:
      with open(f'/proc/{pid}/stat') as stream:
        if stream.read().rpartition(')')[2].split()[0] == 'Z':
          return True
    except (FileNotFoundError, ProcessLookupError):
      return True
    time.sleep(.05)
  return False


class ScoreTest(parameterized.TestCase):

  def test_by_hand(self):
    prompts = ['', 'a', 'bc', 'd\u2028e\n', '\ud800']
    responses = ['abc', '', 'é', '{"a": 1}\n', '\0\n']
    before = list(prompts), list(responses)
    with programmatic.Functions(
        named('length', 'asks'), timeout=60, num_workers=2,
        chunk_size=2) as functions:
      scores = functions.components(prompts, responses, 7)
      self.assertEqual(list(scores), ['length', 'asks'])
      np.testing.assert_array_equal(scores['length'], [3, 0, 1, 9, 2])
      np.testing.assert_array_equal(scores['asks'], [0, 1, 2, 4, 1])
      for values in scores.values():
        self.assertEqual(values.dtype, np.float32)
      first = set(pids(functions))
      self.assertLen(first, 2)
      self.assertEqual((prompts, responses), before)
      nothing = functions.components([], [], 0)
      self.assertEqual([x.shape for x in nothing.values()], [(0,), (0,)])
      with self.assertRaisesRegex(ValueError, 'equally many, got 2 and 1'):
        functions.components(['a', 'b'], ['a'], 0)
      # One dies between two calls: another takes its place.
      killed = functions._workers[0]
      os.kill(killed._process.pid, signal.SIGKILL)
      # All its threads have to end, which takes a moment.
      for _ in range(400):
        if not killed.is_alive():
          break
        time.sleep(.05)
      again = functions.components(prompts, responses, 8)
      for name, values in scores.items():
        np.testing.assert_array_equal(again[name], values)
      self.assertLen(first & set(pids(functions)), 1)
      self.assertLen(pids(functions), 2)
      started = pids(functions)
    for pid in started:
      with self.assertRaises(ProcessLookupError):
        os.kill(pid, 0)

  def test_processes_are_small_and_few(self):
    with programmatic.Functions(
        named('world', 'pid'), num_workers=1) as functions:
      scores = functions.components('abcd', 'abcd', 0)
      # No JAX, of this package only `errors`; a group of their own; what they
      # print goes where errors go.
      np.testing.assert_array_equal(scores['world'], [0, 0, 0, 1])
      self.assertEqual([*scores['pid']], pids(functions) * 4)


class DropTest(absltest.TestCase):

  def test_what_is_no_number_becomes_nan(self):
    """Of those that are named, and nothing else of theirs."""
    with programmatic.Functions(
        named('mixed', 'length') | {'same': 'user_rewards:mixed'},
        num_workers=1, drop=('mixed',)) as functions:
      with self.assertRaisesRegex(
          errors.RewardError, 'function same .* returned None, a NoneType'):
        functions.components('abcdef', 'abcdef', 1)
    with programmatic.Functions(
        named('mixed', 'length'), num_workers=1, drop=('mixed',)) as functions:
      scores = functions.components('abcdef', 'abcdef', 1)
      np.testing.assert_array_equal(scores['mixed'], [np.nan] * 5 + [2])
      np.testing.assert_array_equal(scores['length'], [1] * 6)
      with self.assertRaisesRegex(errors.RewardError, '6 numbers for 2'):
        functions.components('ab', 'ab', 1)


class FaultTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.functions = programmatic.Functions(
        named('act'), timeout=60, num_workers=1, chunk_size=2)

  @classmethod
  def tearDownClass(cls):
    cls.functions.close()
    super().tearDownClass()

  @parameterized.parameters(
      ('raise', r'raised ValueError: no such word \(.*user_rewards\.py:\d+\) '
       'at step 12, rows 2-3; '),
      ('exit', r'raised SystemExit: bye \(.*user_rewards\.py:\d+\) '
       'at step 12, rows 2-3; '),
      ('die', r'ended its process \(exit code 3\) at step 12, rows 2-3; '),
      ('crash', r'ended its process \(signal SIGSEGV\) at step 12, rows 2-3; '),
      ('nan', 'returned nan, not a finite float32 number at step 12, row 3; '),
      *((f'write {text}', 'wrote to a descriptor that it has not opened, where '
         'its values belong at step 12, rows 2-3; ') for text in (
             'noise', '[]\n', '[' * 10**5 + '\n', ' ' * (2**24 + 1))))
  def test_one_line_and_nothing_else(self, what, message):
    prompts = ['a', 'b', what, 'c', 'd']
    with self.assertRaisesRegex(
        errors.RewardError,
        r'^reward function act \(user_rewards:act\) ' + message) as caught:
      self.functions.components(prompts, prompts, 12)
    self.assertNotIn('\n', str(caught.exception))
    self.assertEmpty(self.functions._workers)

  def test_hang(self):
    path = os.path.join(directory.name, self.id())
    with mock.patch.object(self.functions, '_timeout', 1):
      with self.assertRaisesRegex(
          errors.RewardError, r'act \(user_rewards:act\) did not return within '
          '1 s and was killed at step 3, row 0; make it faster'):
        self.functions.components(['hang'], [path], 3)
    with open(path) as stream:
      hung, its_child = map(int, stream.read().split())
    with self.assertRaises(ProcessLookupError):
      os.kill(hung, 0)
    self.assertTrue(gone(its_child))
    # The pool is not lost.
    again = self.functions.components(['a'] * 3, ['b'] * 3, 4)
    np.testing.assert_array_equal(again['act'], np.zeros(3))

  @parameterized.parameters('waits', 'deaf')
  def test_parent_is_killed(self, how):
    """Ctrl-C in a terminal, and then SIGKILL of the command alone."""
    path = os.path.join(directory.name, self.id())
    program = f"""
        import signal, sys
        signal.signal(signal.SIGINT, lambda *_: print('seen', flush=True))
        from rlhf_jax.rewards import programmatic
        functions = programmatic.Functions({named('act')!r})
        functions.components(['hang', {how!r}], [{path!r}, ''], 0)
        """
    parent = subprocess.Popen(
        [sys.executable, '-c', textwrap.dedent(program)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)})
    try:
      for _ in range(1200):
        if os.path.exists(path) and len(open(path).read().split()) == 2:
          break
        time.sleep(.05)
      hung, its_child = map(int, open(path).read().split())
      os.killpg(parent.pid, signal.SIGINT)
      self.assertEqual(parent.stdout.readline(), 'seen\n')
    finally:
      parent.kill()
    # Returns only when no process holds the pipes any more.
    _, messages = parent.communicate(timeout=60)
    self.assertEqual(messages, '')
    self.assertTrue(gone(hung))
    self.assertTrue(gone(its_child))


class ConfigTest(parameterized.TestCase):

  @parameterized.parameters(
      ('user_rewards:lenght', r"AttributeError: module 'user_rewards' has no"),
      ('user_rewards:table', 'table is a list, which cannot be called'),
      ('user_fails:f', 'ZeroDivisionError: division by zero; correct it'),
      ('no_such.module:f', "ModuleNotFoundError: No module named 'no_such'"),
      ('user_dies:f', r'importing them ended the process \(exit code 5\)'),
      ('user_writes:f', 'importing them wrote to a descriptor that they have'))
  def test_cannot_be_found(self, function, message):
    with self.assertRaisesRegex(errors.ConfigError, message) as caught:
      programmatic.check({'mine': function}, num_workers=9)
    self.assertIn(function, str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))

  def test_import_hangs(self):
    with mock.patch.object(programmatic, '_START_SECONDS', .2):
      with self.assertRaisesRegex(
          errors.ConfigError, 'user_hangs:f could not be imported within 0.2'):
        programmatic.check({'mine': 'user_hangs:f'})

  @parameterized.parameters(
      'length', 'a.b:c d', 'a:b:c', ':f', 'a:', 'a..b:c', '1a:b', None, 3.)
  def test_names(self, function):
    with mock.patch.object(programmatic, '_Worker', side_effect=ValueError):
      with self.assertRaisesRegex(
          errors.ConfigError, f"^reward function mine is {function!r}; give it "
          "as 'package.module:function'$"):
        programmatic.check({'mine': function})

  @parameterized.parameters('timeout', 'num_workers', 'chunk_size')
  def test_ranges(self, name):
    with self.assertRaisesRegex(ValueError, f'^{name} must be > 0, got 0'):
      programmatic.check(named('length'), **{name: 0})
    with self.assertRaisesRegex(ValueError, 'at least one'):
      programmatic.check({})

  def test_check_leaves_nothing(self):
    started = []
    popen = programmatic.subprocess.Popen

    def spy(*args, **kwargs):
      started.append(popen(*args, **kwargs))
      return started[-1]

    with mock.patch.object(programmatic.subprocess, 'Popen', spy):
      programmatic.check(named('length'), num_workers=9)
    process, = started
    self.assertEqual(process.returncode, -signal.SIGKILL)


if __name__ == '__main__':
  absltest.main()
