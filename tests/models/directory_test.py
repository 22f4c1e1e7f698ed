"""Tests for rlhf_jax.models.directory."""

import builtins
import io
import json
import os
import pathlib
import pickle
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from unittest import mock
import zipfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from rlhf_jax import errors
from rlhf_jax.models import directory
from rlhf_jax.models import tensors

_ROOT = pathlib.Path(__file__).resolve().parents[2]


class _Touch:
  """Pickled, it makes a file when it is loaded."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


def _npy(obj):
  stream = io.BytesIO()
  np.save(stream, np.array([obj], object), allow_pickle=True)
  return stream.getvalue()


def _torch_zip(obj):
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, 'w') as archive:
    archive.writestr('archive/data.pkl', pickle.dumps(obj))
  return stream.getvalue()


class DirectoryTestCase(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    holder = tempfile.TemporaryDirectory()
    self.addCleanup(holder.cleanup)
    self.outside = pathlib.Path(holder.name)
    self.path = self.outside / 'model'
    self.path.mkdir()

  def put(self, **contents):
    """Writes files; `a__json='x'` is a.json; what is no bytes is JSON."""
    for name, content in contents.items():
      if not isinstance(content, bytes):
        content = json.dumps(content).encode()
      (self.path / name.replace('__', '.')).write_bytes(content)

  def refused(self, pattern, function=directory.check, *args, **kwargs):
    """`function` refuses in one line, with exit code 4, within 1 s of work."""
    started = time.process_time()
    with self.assertRaisesRegex(errors.CheckpointError, pattern) as caught:
      function(self.path, *args, **kwargs)
    self.assertLess(time.process_time() - started, 1)
    self.assertEqual(caught.exception.exit_code, 4)
    self.assertNotIn('\n', str(caught.exception))
    return str(caught.exception)


class CheckTest(DirectoryTestCase):

  def test_good(self):
    self.put(
        config__json={'model_type': 'llama', 'auto_map': None},
        model__safetensors=b'not opened', pytorch_model__bin=b'not opened',
        tokenizer__json={'model': {'vocab': {'auto_map': 1}}},
        trainer_state__json=b'not JSON, and nobody reads it',
        modeling_evil__py=b'raise SystemExit')
    (self.path / 'onnx').mkdir()
    (self.path / 'chat.jinja').symlink_to('modeling_evil.py')  # stays inside
    with mock.patch.object(
        builtins, 'open', side_effect=builtins.open) as opened:
      self.assertEqual(directory.check(str(self.path)), self.path)
    self.assertCountEqual(
        [pathlib.Path(call.args[0]).name for call in opened.call_args_list],
        ['config.json', 'tokenizer.json'])
    self.assertEqual(
        directory.read_config(self.path)['model_type'], 'llama')

  def test_tokenizer_alone_passes(self):
    self.put(tokenizer__json={}, tokenizer_config__json={})
    directory.check(self.path)

  def test_directory_may_be_reached_by_a_link(self):
    self.put(config__json={'model_type': 'llama'}, model__safetensors=b'')
    link = self.outside / 'link'
    link.symlink_to(self.path)
    directory.check(link)
    self.assertEqual(directory.weight_files(link),
                     {link / 'model.safetensors': None})

  def test_not_a_directory(self):
    for name in ('missing', 'file'):
      (self.outside / 'file').touch()
      with self.assertRaisesRegex(errors.CheckpointError, 'not a directory'):
        directory.check(self.outside / name)

  @parameterized.parameters(
      'config.json', 'tokenizer_config.json', 'preprocessor_config.json',
      'processor_config.json', 'generation_config.json', 'adapter_config.json',
      'model_index.json')
  def test_code_of_its_own_is_refused(self, name):
    for key, value in (('auto_map', {'AutoModel': 'evil.Model'}),
                       ('trust_remote_code', True),
                       ('custom_pipelines', {'x': {'impl': 'evil.P'}})):
      for content in ({key: value}, {'text_config': [{'a': 1, key: value}]}):
        (self.path / name).write_text(json.dumps(content))
        self.refused(f'{name}: {key} refused')
        self.refused(f'{name}: {key} refused', directory.read_json, name)
    (self.path / name).write_text('{"trust_remote_code": false}')
    directory.check(self.path)

  @parameterized.parameters(
      ('tokenizer_file', '/etc/passwd'), ('vocab_file', '../secret.json'),
      ('merges_file', 'C:\\secret'), ('tokenizer_file', 'below/vocab.json'),
      ('fast_tokenizer_files', ['tokenizer.json', '../x/tokenizer.4.0.json']))
  def test_paths_in_configs_are_refused(self, key, value):
    for content in ({key: value}, {'nested': [{key: value}]}):
      self.put(tokenizer_config__json=content)
      self.refused(f"tokenizer_config.json: '{key}' is the path")
    # Of the author's disk, and opened by nobody; the others are harmless.
    self.put(tokenizer_config__json={
        'special_tokens_map_file': '/home/author/map.json',
        'vocab_file': 'vocab.json', 'tokenizer_file': None,
        'fast_tokenizer_files': ['tokenizer.4.0.json', 3],
        'name_or_path': '/home/author', 'chat_template': '</s>'})
    directory.check(self.path)

  def test_templates_in_the_subdirectory_that_is_read(self):
    templates = self.path / 'additional_chat_templates'
    templates.mkdir()
    (templates / 'good.jinja').touch()
    directory.check(self.path)
    (templates / 'evil.jinja').symlink_to('/etc/passwd')
    self.refused("additional_chat_templates: 'evil.jinja' is a link out")
    (templates / 'evil.jinja').unlink()
    os.mkfifo(templates / 'evil.jinja')
    self.refused('evil.jinja is not a regular file')

  @parameterized.parameters(
      (b'{"a": 1, "b": 2, "a": 3}', "key 'a' occurs twice"),
      (b'[{"x": {"a": 1, "a": 1}}]', "key 'a' occurs twice"),
      (b'{"a": 1', 'not valid JSON'), (b'', 'not valid JSON'),
      (b'{"a": NaN}', 'NaN'), (b'{"a": -Infinity}', 'Infinity'),
      (b'{"a": "\xff"}', 'utf-8'), (b'{} {}', 'Extra data'),
      (b'[' * 100_000, 'not valid JSON'), (b'9' * 10_000, 'not valid JSON'),
      (b'\x80\x04\x95pickle', 'not valid JSON'))
  def test_malformed_json(self, raw, pattern):
    for name in ('config.json', 'tokenizer.json', 'tokenizer_config.json'):
      (self.path / name).write_bytes(raw)
      message = self.refused(pattern)
      self.assertIn(str(self.path / name), message)
      (self.path / name).unlink()

  @parameterized.parameters(
      ('config.json', 16), ('special_tokens_map.json', 16),
      ('tokenizer.json', 64))
  def test_oversize_json(self, name, mebibytes):
    path = self.path / name
    path.write_text('{}')
    os.truncate(path, mebibytes * 2**20 + 1)
    self.refused(f'{name} is larger than {mebibytes} MiB')

  def test_at_the_cap_json_is_read(self):
    self.put(config__json=b'{}'.ljust(2**24))
    directory.check(self.path)

  def test_links_out(self):
    (self.outside / 'secret').write_text('{}')
    (self.outside / 'model2').mkdir()  # its name begins as the model's does
    (self.outside / 'model2' / 'x').touch()
    for target in ('../secret', self.outside / 'secret', '/dev/zero', '..',
                   '../model2/x', '/nowhere', '../../../../../etc/passwd'):
      for name in ('config.json', 'x', 'model.safetensors'):
        link = self.path / name
        link.symlink_to(target)
        self.assertIn('cp -rL', self.refused(f"'{name}' is a link out"))
        link.unlink()

  def test_hub_cache_is_refused_with_what_to_do(self):
    for name in ('blobs', 'snapshots'):
      (self.path / name).mkdir()
    (self.path / 'blobs/abc').write_text('{"model_type": "llama"}')
    self.path = self.path / 'snapshots/rev'
    self.path.mkdir()
    (self.path / 'config.json').symlink_to('../../blobs/abc')
    self.refused(f'cp -rL {self.path} NEW')

  def test_links_to_nothing(self):
    (self.path / 'a').symlink_to('b')
    self.refused('a is missing')
    (self.path / 'b').symlink_to('a')  # a loop
    self.refused('a is missing or cannot be read')

  def test_pipes_and_sockets(self):
    os.mkfifo(self.path / 'config.json')
    self.refused('config.json is not a regular file')
    self.refused('not a regular file', directory.read_config)
    os.unlink(self.path / 'config.json')
    here = os.open('.', os.O_RDONLY)
    os.chdir(self.path)  # a socket's path must be short
    try:
      with socket.socket(socket.AF_UNIX) as server:
        server.bind('s')
    finally:
      os.fchdir(here)
      os.close(here)
    self.refused('s is not a regular file')

  def test_device_file(self):
    try:
      os.mknod(self.path / 'config.json', 0o20600, os.makedev(1, 5))
    except OSError:
      self.skipTest('only root makes device files')
    self.refused('config.json is not a regular file')

  def test_pipe_that_takes_the_place_of_a_file_does_not_hang(self):
    os.mkfifo(self.path / 'config.json')
    with mock.patch.object(directory, '_regular'):
      self.refused('not valid JSON', directory.read_config)

  @parameterized.parameters('a\nb', 'a\x1b[2J', 'a\\b', '\u202eevil')
  def test_names_that_would_garble_a_message(self, name):
    (self.path / name).touch()
    self.refused('not a bare file name')


class PickleTest(DirectoryTestCase):

  @parameterized.parameters(
      'pytorch_model.bin', 'model.pt', 'model.pth', 'model.ckpt', 'model.PKL',
      'model.joblib', 'model.npy', 'model.npz', 'model.pickle')
  def test_refused_by_name(self, name):
    (self.path / name).touch()
    self.put(config__json={'model_type': 'llama'})
    for function in (directory.check, directory.weight_files):
      self.assertIn(
          'model.safetensors', self.refused('pickle refused', function))
    (self.path / 'model.safetensors').touch()
    directory.check(self.path)
    directory.weight_files(self.path)

  def test_no_disguise_runs_it(self):
    """F19: in a process of its own; what is loaded makes a file."""
    canary = self.outside / 'canary'
    touch = _Touch(canary)
    ascii_ = pickle.dumps(touch, protocol=0)  # no magic bytes tell it
    cases = [
        ('pytorch_model.bin', _torch_zip(touch)),
        ('model.pt', _torch_zip(touch)),
        ('legacy.pth', pickle.dumps(touch, protocol=2)),
        ('model.pkl', pickle.dumps(touch)),
        ('model.joblib', pickle.dumps(touch)),
        ('model.npy', _npy(touch)), ('model.npz', _torch_zip(touch)),
    ] + [('model.safetensors', content) for content in (
        _torch_zip(touch), _npy(touch), ascii_,
        *(pickle.dumps(touch, protocol=i) for i in range(2, 6)))]
    for i, (name, content) in enumerate(cases):
      (self.path / str(i)).mkdir()
      (self.path / str(i) / name).write_bytes(content)
    script = textwrap.dedent('''
        import pathlib, sys
        from rlhf_jax import errors
        from rlhf_jax.models import directory, tensors
        for path in sorted(pathlib.Path(sys.argv[1]).rglob('*.*')):
          if path.is_file():
            for step in (lambda: tensors.read(directory.weight_files(
                            directory.check(path.parent))),
                         lambda: tensors.read(path)):
              try:
                step()
                print('READ', path)
              except errors.CheckpointError as error:
                print(error.exit_code, str(error))
        ''')
    done = subprocess.run(
        [sys.executable, '-c', script, self.path], capture_output=True,
        text=True, cwd=_ROOT, env=os.environ | {'PYTHONPATH': str(_ROOT)})
    self.assertEqual(done.stderr, '')
    lines = done.stdout.splitlines()
    self.assertLen(lines, 2 * len(cases))
    for line in lines:
      self.assertStartsWith(line, '4 ')
    others = [line for line in lines if 'pickle refused' not in line]
    self.assertLen(others, 2)
    for line in others:
      self.assertIn('9/model.safetensors is not sound', line)
    self.assertFalse(canary.exists())
    for content in (pickle.dumps(touch), ascii_):
      pickle.loads(content)  # the canary would have told
      canary.unlink()


class ConfigTest(DirectoryTestCase):

  def test_read(self):
    config = {'model_type': 'gpt2', 'n_layer': 2, 'x': [1e-5, None, True]}
    self.put(config__json=config)
    self.assertEqual(directory.read_config(self.path), config)

  def test_model_type(self):
    for config in ({}, [], {'model_type': 3}, {'model_type': None}, 'x'):
      self.put(config__json=config)
      self.refused('no model_type', directory.read_config)

  def test_missing(self):
    self.refused('config.json is missing', directory.read_config)

  @parameterized.parameters(
      '../secret', '/etc/passwd', '', '.', '..', 'a/b', 'a\\b', 'a\0b')
  def test_inside(self, name):
    (self.outside / 'secret').touch()
    self.refused('not a bare file name', directory.inside, name)
    self.refused('not a bare file name', directory.read_json, name)


class WeightFilesTest(DirectoryTestCase):

  def index(self, weight_map, stem='model'):
    (self.path / f'{stem}.safetensors.index.json').write_text(
        json.dumps({'metadata': {}, 'weight_map': weight_map}))

  def test_single(self):
    self.put(model__safetensors=b'not opened')
    self.assertEqual(directory.weight_files(str(self.path)),
                     {self.path / 'model.safetensors': None})

  def test_shards(self):
    self.put(b__safetensors=b'', a__safetensors=b'', c__safetensors=b'')
    self.index({'x': 'b.safetensors', 'y': 'a.safetensors',
                'z': 'b.safetensors'})
    actual = directory.weight_files(self.path)
    self.assertEqual(list(actual.items()), [
        (self.path / 'a.safetensors', {'y'}),
        (self.path / 'b.safetensors', {'x', 'z'})])

  def test_adapter(self):
    self.put(adapter_model__safetensors=b'', model__safetensors=b'')
    self.assertEqual(directory.weight_files(self.path, stem='adapter_model'),
                     {self.path / 'adapter_model.safetensors': None})

  def test_none(self):
    self.refused('no model.safetensors and no', directory.weight_files)
    self.put(adapter_model__safetensors=b'')
    self.refused("only 'adapter_model.safetensors'", directory.weight_files)

  def test_two_models(self):
    self.put(model__safetensors=b'', a__safetensors=b'')
    self.index({'x': 'a.safetensors'})
    self.refused('two models', directory.weight_files)
    self.index({'x': 'a.safetensors', 'y': 'model.safetensors'})
    self.assertLen(directory.weight_files(self.path), 2)

  @parameterized.named_parameters(
      ('parent', '../evil.safetensors', 'bare file name'),
      ('absolute', '/tmp/evil.safetensors', 'bare file name'),
      ('below', 'sub/evil.safetensors', 'bare file name'),
      ('link', 'link.safetensors', 'link out'),
      ('device', 'device.safetensors', 'link out'),
      ('pipe', 'pipe.safetensors', 'not a regular file'),
      ('directory', 'sub.safetensors', 'not a regular file'),
      ('missing', 'model-00002-of-00002.safetensors',
       'model-00002-of-00002.safetensors is missing'),
      ('nul', 'a\0.safetensors', 'bare file name'),
      ('dots', '..', 'not safetensors'),
      ('empty', '', 'not safetensors'),
      ('pickle', 'pytorch_model.bin', 'pickle refused'),
      ('device_path', '/dev/zero', 'not safetensors'),
      ('number', 3, 'not safetensors'), ('null', None, 'not safetensors'),
      ('list', ['good.safetensors'], 'not safetensors'),
      ('long', 'a' * 10**6 + '.safetensors', 'bare file name'))
  def test_bad_shard_is_refused_before_any_is_opened(self, shard, pattern):
    """F21, and more of its kind."""
    self.put(good__safetensors=b'', pytorch_model__bin=b'')
    (self.outside / 'evil.safetensors').touch()
    (self.path / 'sub').mkdir()
    (self.path / 'sub/evil.safetensors').touch()
    (self.path / 'sub.safetensors').mkdir()
    (self.path / 'link.safetensors').symlink_to('../evil.safetensors')
    (self.path / 'device.safetensors').symlink_to('/dev/zero')
    os.mkfifo(self.path / 'pipe.safetensors')
    self.index({'w': 'good.safetensors', 'x': shard})
    opened = []
    real = os.open
    def spy(path, *args, **kwargs):
      opened.append(pathlib.Path(path).name)
      return real(path, *args, **kwargs)
    with mock.patch.object(os, 'open', spy):
      message = self.refused(
          pattern, lambda path: tensors.read(directory.weight_files(path)))
    self.assertEqual(opened, ['model.safetensors.index.json'])
    self.assertLess(len(message), 500 + 2 * len(str(self.path)))

  def test_device_file_as_shard(self):
    self.index({'x': 'device.safetensors'})
    try:
      os.mknod(self.path / 'device.safetensors', 0o20600, os.makedev(1, 5))
    except OSError:
      self.skipTest('only root makes device files')
    self.refused('not a regular file', directory.weight_files)

  @parameterized.parameters(
      b'[]', b'{}', b'{"weight_map": []}', b'{"weight_map": {}}', b'null')
  def test_no_weight_map(self, raw):
    (self.path / 'model.safetensors.index.json').write_bytes(raw)
    self.refused('no weight_map', directory.weight_files)

  def test_malformed_index(self):
    path = self.path / 'model.safetensors.index.json'
    path.write_text('{"weight_map": {"x": "a.safetensors", '
                    '"x": "b.safetensors"}}')
    self.refused("key 'x' occurs twice", directory.weight_files)
    path.unlink()
    os.mkfifo(path)
    self.refused('index.json is not a regular file', directory.weight_files)
    path.unlink()
    path.symlink_to('/dev/zero')
    self.refused('link out', directory.weight_files)


if __name__ == '__main__':
  absltest.main()
