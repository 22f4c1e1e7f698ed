"""Eight fake CPU devices, a compilation cache and shared worlds for the suite.
"""

import atexit
import ctypes
import importlib.metadata
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import threading

DEVICES = 8
# jaxlib 0.10.2 deadlocks in async collectives when fake devices outnumber
# the threads of its pool, so the pool is made larger before jax starts.
os.environ.setdefault('NPROC', str(2 * DEVICES))
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
CACHE = pathlib.Path(
    os.environ.get('JAX_COMPILATION_CACHE_DIR')
    or pathlib.Path.home() / '.cache' / 'rlhf_jax' / 'xla'
)
os.environ['JAX_COMPILATION_CACHE_DIR'] = str(CACHE)  # for subprocesses too
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '0'
# Compiling takes most of the suite's time, and what it computes is tiny. The
# older of two generators of code needs half the time for it; a flag that XLA
# does not know would end the process.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  os.environ['XLA_FLAGS'] = ' '.join((
      os.environ.get('XLA_FLAGS', ''), '--xla_cpu_use_fusion_emitters=false',
      # As many workers as cores: no program is compiled by several threads.
      '--xla_cpu_parallel_codegen_split_count=1'))

# What is lowered would say of each line whence it was called.
os.environ.setdefault('JAX_TRACEBACK_IN_LOCATIONS_LIMIT', '0')

# Checkpoints and records are synced to the disk, for which the suite would
# wait a quarter of its time: they go to memory where there is some.
MEMORY, ENOUGH = pathlib.Path('/dev/shm'), 4 * 2**30  # bytes
if ('TMPDIR' not in os.environ and os.access(MEMORY, os.W_OK)
    and shutil.disk_usage(MEMORY).free > ENOUGH):
  tempfile.tempdir = os.environ['TMPDIR'] = tempfile.mkdtemp(
      prefix='rlhf_jax_', dir=MEMORY)  # for workers and programs too
  atexit.register(shutil.rmtree, tempfile.tempdir, ignore_errors=True)

# Where Python is told to keep no bytecode, each of some hundred programs would
# compile the sources again, which takes as long as importing jax.
os.environ.pop('PYTHONDONTWRITEBYTECODE', None)
sys.dont_write_bytecode = False

# A suite in the background, or under nohup, would hand the signals that it
# ignores to every program that it starts.
if threading.current_thread() is threading.main_thread():
  for number, handler in ((signal.SIGINT, signal.default_int_handler),
                          (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
      signal.signal(number, handler)

import fault_matrix
import jax
import pytest

jax.config.update('jax_num_cpu_devices', DEVICES)
# Catches (B,) against (B, 1) in a loss, which would broadcast to (B, B).
jax.config.update('jax_numpy_rank_promotion', 'raise')

# They set what a process compiles for: `make test-pods` alone asks for them.
collect_ignore = [] if 'RLHF_JAX_PODS' in os.environ else ['pods']
WORLDS = 'RLHF_JAX_TEST_WORLDS'  # of worlds.py
# Beginnings of the names of tests that take half of the suite's time, which
# `make test` leaves to `make test-slow`.
SLOW = tuple(pathlib.Path(__file__).with_name('slow.txt').read_text().split())


def pytest_configure(config):
  """One directory of worlds, told to the workers before they start."""
  config.pluginmanager.register(fault_matrix.Recorder(), 'fault_matrix')
  config.addinivalue_line('markers', 'slow: listed in tests/slow.txt')
  if not hasattr(config, 'workerinput') and WORLDS not in os.environ:
    os.environ[WORLDS] = config.rlhf_jax_worlds = tempfile.mkdtemp(
        prefix='rlhf_jax_worlds_')


def pytest_collection_modifyitems(items):
  for item in items:
    if item.nodeid.removeprefix('tests/').startswith(SLOW):
      item.add_marker('slow')
  if 'RLHF_JAX_SHARD' in os.environ:  # '1/2': every second file of slow tests
    number, count = map(int, os.environ['RLHF_JAX_SHARD'].split('/'))
    slow = [item for item in items if item.get_closest_marker('slow')]
    chosen = sorted({item.path for item in slow})[number::count]
    items[:] = [item for item in slow if item.path in chosen]


def pytest_unconfigure(config):
  """Removes it with the process that has made it, after the last worker."""
  if hasattr(config, 'rlhf_jax_worlds'):
    shutil.rmtree(config.rlhf_jax_worlds, ignore_errors=True)


@pytest.fixture(autouse=True, scope='module')
def _programs_fit_in_memory():
  """Forgets compiled programs, of which a long suite gathers gigabytes."""
  yield
  workers = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1))
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  if pages * os.sysconf('SC_PAGE_SIZE') > 3 * 2**30 / workers:
    jax.clear_caches()
    # What glibc keeps of it is gigabytes, too.
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
      trim(0)
