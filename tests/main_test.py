"""Bad input through the front door: one line, its code, nothing left behind.

The cases run in forks of one process that has imported everything, so that
each is a fresh command and costs milliseconds.
"""

import fcntl
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import worlds

from rlhf_jax import main

CONFIG = f'--config={worlds.FIGURE_3}:smoke'
BAD, HH, ALPACA = ('bad.jsonl', 'hh.jsonl', 'alpaca.json')
# RLOO on one component, of the kind that follows the colon, or mistyped.
ONLINE = """
from rlhf_jax.configs import base
COMPONENTS = dict(
    tfidf=dict(kind='tfidf'), file=dict(kind='file', column='votes'),
    proxy=dict(kind='proxy'), exact_match=dict(kind='exact_match'),
    length=dict(kind='length'), function=dict(
        kind='function', function='nowhere:f'))
RUNS = dict(
    number=3, temperature=dict(rollout=dict(temperature=None)),
    noise=dict(reward=dict(noise='1')), target=dict(kl=dict(target='6')),
    mine=dict(reward=dict(components=dict(mine='pkg:f'))),
    squash=dict(algorithm='best_of_n', reward=dict(
        components=base.proxy(squash='sigmoid'))))
CONDITIONS = dict(
    of_text=dict(clean='noisy'), members=dict(clean=dict(num_members='2')),
    squash=dict(clean=dict()))
def get_config(kind):
  config = base.online_config('smoke')
  config.title = 'RLOO'
  config.conditions = CONDITIONS.get(kind, dict())
  config.runs = dict(one=RUNS[kind] if kind in RUNS else dict(
      algorithm='rloo', rollout=dict(samples=2), labels=dict(method='RLOO'),
      reward=dict(components=dict(part=COMPONENTS.get(kind)))))
  config.figure = dict(kind='table', columns=('proxy',))
  return config
"""
FILES = {
    'online.py': ONLINE,
    'twice.py': 'def get_config(size):\n'
                "  return {'fluent': {'kind': 'vader'},\n"
                "          'fluent': {'kind': 'length'}}\n",
    'repeated.py': 'def get_config(size):\n  return dict(one={}, one={})\n',
    'old/config.json': '{"seeds": [0], "title": "by an older version"}',
    'syntax.py': 'def get_config(size):\n  retrun 1\n',
    'raises.py': 'def get_config(size):\n  return {}[size]\n',
    'empty.py': '',
    'no_study.py': 'from rlhf_jax.configs import base\n'
                   'def get_config(size):\n  return base.get_config(size)\n',
    BAD: '{"instruction": "a", "output": "b"}\n'
         '{"instruction": 3, "output": "b"}\n{"instr\n',
    HH: ''.join(json.dumps({
        'chosen': f'\n\nHuman: q{i}\n\nAssistant: yes {i}',
        'rejected': f'\n\nHuman: q{i}\n\nAssistant: no'}) + '\n'
        for i in range(4)),
    'pickled/pytorch_model.bin': 'a pickle',
    'pickled/config.json': '{"model_type": "llama"}',
    'few.json': '[{"instruction": "a", "output": "b"}]',
    ALPACA: json.dumps([{'instruction': f'say {i}', 'output': 'b'}
                        for i in range(9)]),
}
field = lambda text: (CONFIG, f'--config.{text}')
component = lambda kind: (f'--config=DIR/online.py:{kind}',)
files = lambda path, *more: (
    CONFIG, f'--config.data.path=DIR/{path}',
    f'--config.data.preferences=DIR/{HH}', *more)
# Name: arguments, exit code, what the line must hold. DIR is the directory of
# FILES; --workdir=DIR/new is added where there is none.
CASES = {
    'field': (field('polciy.num_steps=3'), 2, (
        'config.polciy.num_steps', 'Did you mean "policy"')),
    'inner_field': (field('best_of_n.methods.mean.member=2'), 2, (
        'best_of_n.methods.mean.member', 'no field')),
    'type': (field('policy.num_steps=many'), 2, ('policy.num_steps', 'many')),
    'float': (field('policy.num_steps=2.5'), 2, ('policy.num_steps', '2.5')),
    'flag': ((CONFIG, '--wrokdir=x'), 2, ('wrokdir', 'workdir')),
    'argument': ((CONFIG, 'stray'), 2, ("'stray'", '--<name>=<value>')),
    'size': ((CONFIG.replace('smoke', 'tiny'),), 2, (
        ':tiny', 'smoke, laptop, full')),
    'no_config_file': (('--config=experiments/no.py',), 2, (
        'experiments/no.py', 'no such file')),
    'syntax': (('--config=DIR/syntax.py:x',), 2, (
        'DIR/syntax.py', 'SyntaxError', 'line 2')),
    'raises': (('--config=DIR/raises.py:x',), 2, (
        'DIR/raises.py', 'KeyError: x')),
    'no_get_config': (('--config=DIR/empty.py',), 2, (
        'DIR/empty.py', 'get_config')),
    'no_study': (('--config=DIR/no_study.py:smoke',), 2, ('config.study',)),
    'no_workdir': ((CONFIG, '--workdir='), 2, ('--workdir=',)),
    'nothing': (('--workdir=',), 2, ('--config=', '--workdir=')),
    'members': (field('proxy.num_members=0'), 2, (
        'proxy.num_members is 0', 'at least one')),
    'noise': (field('label_noise=(1.5,)'), 2, ('label_noise', '[0, 1]')),
    'twice': (field('label_noise=(0.25, 0.25)'), 2, ('label_noise', 'once')),
    'no_seeds': (field('seeds=()'), 2, ('seeds', 'at least one')),
    'seed_kind': (field('seeds=(0.5,)'), 2, ('seeds', 'integers')),
    'seed_text': (field('seeds=("a",)'), 2, ('seeds', 'integers')),
    'seed_sign': (field('seeds=(-1,)'), 2, ('seeds', '>= 0')),
    'ending': (field('force_eos=(2,)'), 2, ('force_eos', 'True, False')),
    'kind': (field('best_of_n.methods.mean.kind=median'), 2, (
        'methods.mean.kind', 'worst_case')),
    'microbatches': (field('proxy.sft.num_microbatches=3'), 2, (
        'proxy.sft.num_microbatches is 3', 'proxy.sft.batch_size 16')),
    'no_model': (field('policy.model.path=DIR/none'), 2, (
        'config.policy.model', 'DIR/none', 'no such model')),
    'no_such_name': (field('gold.model.name=smollm3'), 2, (
        'config.gold.model', "'smollm3'", 'smollm2')),
    'pickled_model': (field('policy.model.path=DIR/pickled'), 4, (
        'config.policy.model', 'pickle refused', 'safetensors')),
    'fresh_adapter': (field('policy.model.lora.rank=2'), 2, (
        'config.policy.model', 'lora', 'neither path nor name')),
    'uneven_n': (field('best_of_n.num_samples=20'), 2, (
        'num_samples is 20', 'samples_per_call 16')),
    'one_sample': (field('best_of_n.num_samples=1'), 2, ('num_samples',)),
    'calls': (field('best_of_n.samples_per_call=0'), 2, ('samples_per_call',)),
    'shards': (field('best_of_n.shard_prompts=0'), 2, ('shard_prompts',)),
    'one_prompt': (field('data.num_eval_prompts=1'), 2, (
        'num_eval_prompts is 1', 'at least 2')),
    'held_out': (field('proxy.held_out=96'), 2, ('proxy.held_out', '96')),
    'pairs': (field('proxy.batch_size=65'), 2, ('proxy.batch_size',)),
    'temperature': (field('sampler.temperature=0.0'), 2, ('temperature',)),
    'top_p': (field('sampler.top_p=0.0'), 2, ('top_p', '(0, 1]')),
    'heads': (field('gold.model.num_heads=3'), 2, ('gold.model', 'num_heads')),
    'family': (field('policy.model.family=mamba'), 2, ('mamba', 'llama')),
    'schedule': (field('proxy.optimizer.schedule=step'), 2, (
        'proxy.optimizer', "'cosine'")),
    'rate': (field('policy.optimizer.learning_rate=-1.0'), 2, (
        'policy.optimizer.learning_rate', 'more than 0')),
    'adjectives': (field('data.world.num_adjectives=9999'), 2, (
        'num_adjectives must be <=', '9999')),
    'coefficient': (field(
        'best_of_n.methods.uncertainty_weighted.uncertainty_coef=-1.0'), 2, (
            'methods.uncertainty_weighted', 'uncertainty_coef', '-1')),
    'trunk_batch': (field('proxy.sft.batch_size=0'), 2, (
        'proxy.sft.batch_size', 'at least 1')),
    'trunk_schedule': (field('proxy.sft.optimizer.schedule=linear'), 2, (
        'proxy.sft.optimizer', "'linear'")),
    'warmup': (field('gold.optimizer.warmup_steps=-5'), 2, (
        'gold.optimizer', 'warmup_steps', '-5')),
    'head': (field('proxy.head_scale=-1.0'), 2, ('proxy.head_scale',)),
    'typos': (field('data.world.typo_rate=7.0'), 2, ('typo_rate', '7')),
    'sentences': (field('data.world.sentences=(0.0,)'), 2, ('sentences',)),
    'no_adjectives': (field('data.world.num_adjectives=0'), 2, (
        'num_adjectives', '0')),
    'bad_rows': (files(ALPACA, '--config.data.files.max_bad_rows=-1'), 2, (
        'max_bad_rows', '-1')),
    'apart': (('--config', 'DIR/raises.py:x'), 2, (
        'DIR/raises.py', 'KeyError: x')),
    'width': (field('data.world.max_response_length=0'), 2, (
        'max_response_length', 'at least 1')),
    'one_file': (field(f'data.path=DIR/{ALPACA}'), 2, (
        'config.data.preferences is None', 'gold model', 'conditions')),
    'other_file': (field(f'data.preferences=DIR/{HH}'), 2, (
        'config.data.path', 'config.data.preferences', 'give both')),
    'no_file': (files('no.json'), 3, ('DIR/no.json', '--config.data.path')),
    'malformed': (files(BAD), 3, (
        'DIR/bad.jsonl:2', 'DIR/bad.jsonl:3', '2 bad rows of 3',
        'max_bad_rows')),
    'few_rows': (files('few.json'), 3, (
        'DIR/few.json', '1 usable', 'num_eval_prompts')),
    'vocabulary': (files(ALPACA, '--config.data.files.vocab_size=10'), 2, (
        'vocab_size', '259')),
    'tokenizer': (files(ALPACA, f'--config.data.files.tokenizer=DIR/{HH}'), 3,
                  (f'DIR/{HH}', 'tokenizer.json')),
    'no_log': (component('tfidf'), 2, (
        "config.runs.one.reward.components.part has kind 'tfidf'",
        "reads 'log'", 'offline')),
    'no_condition': (component('proxy'), 2, (
        "config.runs.one.condition is 'clean'", 'there are none')),
    'no_target': (component('file'), 2, (
        "config.runs.one.reward.components.part has kind 'file'",
        'config.data.logged.path', "'votes'")),
    'run': (component('number'), 2, (
        'config.runs.one is 3', 'changes of its fields')),
    'run_none': (component('temperature'), 2, (
        'config.runs.one.rollout.temperature is None', 'give a number')),
    'run_text': (component('noise'), 2, (
        "config.runs.one.reward.noise is '1'", 'give a number')),
    'run_absent': (component('target'), 2, (
        "config.runs.one.kl.target is '6'", 'give a number, or None')),
    'component': (component('mine'), 2, (
        "config.runs.one.reward.components.mine is 'pkg:f'", "'kind'")),
    'squash': (component('squash'), 2, (
        "config.runs.one.reward.components.proxy.squash is 'sigmoid'",
        'as it is')),
    'condition': (component('of_text'), 2, (
        "config.conditions.clean is 'noisy'", 'changes of its fields')),
    'condition_text': (component('members'), 2, (
        "config.conditions.clean.num_members is '2'", 'give an integer')),
    'no_log_read': (field('data.logged.kind=reddit'), 2, (
        "config.data.logged.kind is 'reddit'", 'config.data.logged.path')),
    'no_file_read': (field('data.files.kind=alpaca'), 2, (
        "config.data.files.kind is 'alpaca'", 'config.data.path')),
    'gold_held_out': (field('gold.held_out=760'), 2, (
        'config.gold.held_out is 760 of 768 texts', 'gold.batch_size 16')),
    'no_answers': (component('exact_match'), 2, (
        "config.runs.one.reward.components.part has kind 'exact_match'",
        'config.data.logged.path')),
    'no_field': (component('length'), 2, (
        "config.runs.one.reward.components: component 'part'",
        'target is absent')),
    'no_module': (component('function'), 2, ('part', 'nowhere')),
    'name_twice': (('--config=DIR/twice.py:x',), 2, (
        "DIR/twice.py:3: 'fluent' is given twice in one dict", 'rename')),
    'keyword_twice': (('--config=DIR/repeated.py:x',), 2, (
        'DIR/repeated.py', 'SyntaxError', 'repeated: one')),
    'old': ((CONFIG, '--workdir=DIR/old'), 2, (
        'DIR/old was made by an older version', 'start a new workdir')),
    'old_reuse': ((CONFIG, '--reuse=DIR/old'), 2, (
        'DIR/old was made by an older version', 'start a new workdir')),
    'stage': ((CONFIG, '--stages=slf'), 2, ("'slf'", 'seed_0/sft')),
    'reuse': ((CONFIG, '--reuse=DIR/owned'), 2, (
        '--reuse=DIR/owned', 'no study', 'check the path')),
    'no_reuse': ((CONFIG, '--reuse=DIR/none,DIR/owned'), 2, (
        '--reuse=DIR/none', 'no study')),
    'locked': ((CONFIG, '--workdir=DIR/owned'), 7, (
        'DIR/owned', 'in use by pid 123', '--workdir')),
    'file': ((CONFIG, f'--workdir=DIR/{BAD}'), 4, (
        f'DIR/{BAD}', '--workdir')),
    'below_file': ((CONFIG, f'--workdir=DIR/{BAD}/new'), 4, (
        f'DIR/{BAD}', '--workdir')),
}
CODES = {2: 'CONFIG', 3: 'DATA', 4: 'CHECKPOINT', 7: 'LOCKED'}
FORKS = """
import importlib, json, os, pkgutil, sys, tempfile, traceback
from rlhf_jax import main, studies
from rlhf_jax.commands import run

for module in pkgutil.iter_modules(studies.__path__):
  # Or every fork would, for a second.
  importlib.import_module(f'rlhf_jax.studies.{module.name}')

def child(argv, streams):
  for number, stream in enumerate(streams, 1):
    os.dup2(stream.fileno(), number)
  sys.argv = ['main', *argv]
  try:
    main.main()
  except SystemExit as error:
    return error.code
  except BaseException:
    traceback.print_exc()
    return 1

results = []
for argv in json.load(sys.stdin):
  streams = [tempfile.TemporaryFile('w+') for _ in range(2)]
  if not (pid := os.fork()):
    code = child(argv, streams)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
  for stream in streams:
    stream.seek(0)
  results.append([code, *(stream.read() for stream in streams)])
print(json.dumps(results))
"""


def _tree(directory):
  return {str(p): p.read_bytes() if p.is_file() else None
          for p in sorted(directory.rglob('*'))}


@functools.cache
def outcomes():
  """{name: (code, stdout, stderr)}, and the files before and after."""
  directory = pathlib.Path(tempfile.mkdtemp(prefix='rlhf_jax_main_'))
  try:
    for name, text in FILES.items():
      (directory / name).parent.mkdir(exist_ok=True)
      (directory / name).write_text(text)
    (directory / 'owned').mkdir()
    before = _tree(directory) | {str(directory / 'owned/lock'): b'pid 123\n'}
    jobs = []
    for arguments, _, _ in CASES.values():
      if not any(a.startswith('--workdir') for a in arguments):
        arguments = (*arguments, '--workdir=DIR/new')
      jobs.append([a.replace('DIR', str(directory)) for a in arguments])
    with open(directory / 'owned/lock', 'w+') as lock:
      lock.write('pid 123\n')
      lock.flush()
      fcntl.flock(lock, fcntl.LOCK_EX)
      done = subprocess.run(
          [sys.executable, '-c', FORKS], input=json.dumps(jobs),
          # Else Python leaves the bytecode of a user's module beside it.
          cwd=worlds.ROOT, env=worlds.environment() | {
              'PYTHONDONTWRITEBYTECODE': '1'},
          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = dict(zip(CASES, json.loads(done.stdout), strict=True))
    return results, before, _tree(directory), str(directory)
  finally:
    shutil.rmtree(directory)


class DevicesTest(absltest.TestCase):

  def test_parts_that_are_known_here_alone(self):
    """An axis of -1 on three devices, before anything is trained."""
    workdir = worlds.folder() / 'study'
    done = subprocess.run(
        worlds.command(f'{worlds.FIGURE_3}:smoke', workdir,
                       '--config.mesh.data=1', '--config.mesh.fsdp=-1'),
        cwd=worlds.ROOT, capture_output=True, text=True, timeout=120,
        env=worlds.environment() | {'JAX_NUM_CPU_DEVICES': '3'})
    self.assertEqual(done.returncode, 8, done.stderr)
    self.assertRegex(
        done.stderr.splitlines()[-1],
        '^rlhf_jax: TOPOLOGY: .*(cannot be split|not divisible).* 3')
    self.assertFalse(workdir.exists())


class BadInputTest(parameterized.TestCase):

  @parameterized.named_parameters((name, name) for name in CASES)
  def test_one_line_that_helps(self, name):
    _, expected, parts = CASES[name]
    results, _, _, directory = outcomes()
    code, output, log = results[name]
    log = log.replace(directory, 'DIR')
    self.assertEqual((code, output), (expected, ''), log)
    self.assertLen(log.splitlines(), 1)
    self.assertStartsWith(log, f'rlhf_jax: {CODES[code]}: ')
    for part in parts:
      self.assertIn(part, log)
    for noise in ('Traceback', 'config_config', '\\n', '  '):
      self.assertNotIn(noise, log)
    if name != 'stage':  # lists all stages
      self.assertLess(len(log), 420)

  def test_nothing_is_left_behind(self):
    _, before, after, directory = outcomes()
    # Whoever looks into a workdir leaves its name in the lock.
    self.assertIn(b'pid ', after.pop(f'{directory}/old/lock'))
    self.assertEqual(before, after)


class FrontDoorTest(absltest.TestCase):

  def test_a_python_that_lacks_the_dependencies(self):
    done = subprocess.run(
        [sys.executable, '-S', '-m', 'rlhf_jax.main', '--help'],
        cwd=worlds.ROOT, capture_output=True, text=True, check=False)
    self.assertEqual((done.returncode, done.stdout), (2, ''))
    self.assertRegex(done.stderr, r'\Arlhf_jax: CONFIG: absl is not installed '
                     r'in .*; run \.venv/bin/python -m rlhf_jax.*\n\Z')

  def test_what_other_code_lacks_is_a_bug(self):
    def run(argv):
      raise ModuleNotFoundError('no such module', name=argv[0])
    with (mock.patch.object(main, 'run', run),
          self.assertRaises(ModuleNotFoundError)):
      main.main()

  def test_help(self):
    done = subprocess.run(
        [sys.executable, '-m', 'rlhf_jax.main', 'run', '--help'], text=True,
        cwd=worlds.ROOT, env=worlds.environment(),
        capture_output=True, timeout=120)
    for part in ('--config', '--workdir', '--stages', '--reuse'):
      self.assertIn(part, done.stdout)
    self.assertNotIn('Traceback', done.stderr)

  def test_ctrl_c_is_not_lost(self):
    """Even where Python only prints what a callback raises, and goes on."""
    directory = worlds.folder()
    (directory / 'interrupted.py').write_text(
        'import gc, os, signal\n'
        'gc.callbacks.append(lambda *_: os.kill(os.getpid(), signal.SIGINT))\n'
        'gc.collect()\ngc.callbacks.clear()\n')
    done = worlds.launch(f'{directory}/interrupted.py', directory / 'study')
    self.assertEqual((done.returncode, done.stdout, done.stderr), (
        75, '', 'rlhf_jax: INTERRUPTED: nothing was written; run the same '
        'command to start\n'))
    self.assertFalse((directory / 'study').exists())

  def test_output_that_cannot_be_printed(self):
    """A pipe that is closed, a full disk, and no descriptor at all."""
    reader, writer = os.pipe()
    os.close(reader)
    with open('/dev/full', 'w') as full:
      for words, streams, code, said in (
          ('--help', dict(stdout=writer), 1, ''),
          ('list', dict(stdout=full), 3, 'DATA: cannot print to stdout: No sp'),
          ('lost', dict(stderr=full), 2, ''),
          ('list', dict(stdout=full, stderr=full), 3, '')):
        done = subprocess.run(
            [sys.executable, '-m', 'rlhf_jax', words], text=True,
            cwd=worlds.ROOT, env=worlds.environment(), timeout=120,
            **dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE) | streams)
        log = done.stderr or ''
        self.assertEqual(done.returncode, code, (words, log))
        self.assertIn(said, log)
        self.assertLen(log.splitlines(), bool(said))
    os.close(writer)

  def test_a_stage_without_what_it_needs(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    done = worlds.launch(
        CONFIG.removeprefix('--config='), workdir, '--stages=gold')
    self.assertEqual(done.returncode, 4)
    self.assertLen(done.stderr.splitlines(), 1)
    self.assertIn('--stages=seed_0/sft', done.stderr)
    status = json.loads((pathlib.Path(workdir) / 'status.json').read_text())
    self.assertEqual(status['code'], 'CHECKPOINT')
    self.assertFalse(os.path.exists(f'{workdir}/seed_0/gold/result.json'))

  def test_a_changed_config_is_refused(self):
    whole, _ = worlds.smoke()
    workdir = worlds.folder()
    shutil.copytree(whole, workdir, dirs_exist_ok=True)
    before = (workdir / 'config.json').read_bytes()
    done = worlds.launch(
        CONFIG.removeprefix('--config='), workdir,
        '--config.policy.num_steps=9')
    self.assertEqual(done.returncode, 2)
    self.assertLen(done.stderr.splitlines(), 1)
    self.assertIn('policy.num_steps: 8 -> 9', done.stderr)
    self.assertEqual((workdir / 'config.json').read_bytes(), before)


if __name__ == '__main__':
  absltest.main()
