"""Tests for rlhf_jax.commands.export: what leaves, and how it is padded."""

import shutil
import subprocess
import sys
from unittest import mock

from absl.testing import absltest
import worlds

from rlhf_jax import errors
from rlhf_jax.commands import export
from rlhf_jax.data import tokenizer
from rlhf_jax.pipeline import artifacts
from rlhf_jax.runner import workdirs
from rlhf_jax.storage import files


class ExportTest(absltest.TestCase):

  def tokenizer(self, kind, added=(), **roles):
    """What is exported of a stage whose tokenizer has other roles."""
    coder = tokenizer.Tokenizer.train_bpe(
        ['text'], vocab_size=270, control=added)
    context = worlds.Context(worlds.folder())
    artifacts.write_model(context, kind, {}, coder, texts=None)
    path = context.directory / 'model.json'
    model = files.read_json(path)
    model['tokenizer'] |= roles
    files.write_json(path, model)
    return export._padded(
        context.directory, artifacts.read_tokenizer(context.directory), kind)

  def test_tokenizer_goes_on_as_it_was(self):
    """Texts begin as in training, and the template is not lost."""
    for adds_bos in (True, False):
      coder = self.tokenizer(
          'policy', adds_bos=adds_bos, chat_template='{{ x }}')
      self.assertEqual(coder.adds_bos, adds_bos)
      self.assertEqual(coder.chat_template, '{{ x }}')

  def test_padding_of_a_reward_model_is_not_its_eos(self):
    eos = tokenizer.EOS
    self.assertEqual(self.tokenizer('policy', pad=eos).pad_id, 2)
    coder = self.tokenizer('reward', added=('<|pad|>',), pad=eos)
    self.assertIn(coder.pad_id, (0, coder.id_of('<|pad|>')))
    with self.assertRaisesRegex(errors.ConfigError, 'both .*<eos>'):
      self.tokenizer('reward', pad=eos, control=[tokenizer.BOS, eos])

  def test_all_that_ends_a_response(self):
    """Goes from a stage into an export, and is found there."""
    coder = tokenizer.Tokenizer.train_bpe(
        ['text'], vocab_size=270, control=('<|eot|>', '<|eom|>'))
    coder = tokenizer.Tokenizer(
        coder._backends[0], eos=(tokenizer.EOS, '<|eom|>', '<|eot|>'))
    context, directory = worlds.Context(worlds.folder()), worlds.folder()
    artifacts.write_model(context, 'policy', {}, coder, texts={
        'format': '', 'max_prompt_length': 4, 'max_response_length': 4})
    self.assertEqual(
        artifacts.read_tokenizer(context.directory).eos_ids, (2, 4, 3))
    with (mock.patch.object(artifacts, 'restore_policy', lambda _: (0, 0)),
          mock.patch.object(export.convert, 'save')):
      export.export(context.directory, directory)
    self.assertEqual(
        files.read_json(directory / 'generation_config.json'),
        {'bos_token_id': 1, 'eos_token_id': [2, 4, 3], 'pad_token_id': 0})
    self.assertEqual(
        tokenizer.Tokenizer.from_directory(directory).eos_ids, (2, 4, 3))

  def test_one_line_errors(self):
    workdir = worlds.folder()
    worlds.save(workdir, 'pairs', {})
    workdirs.write_record(workdir / 'pairs', {'result': {}, 'seconds': 1.})
    workdirs.check_config(workdir, {}, ())
    old = worlds.folder()
    shutil.copytree(workdir, old, dirs_exist_ok=True)
    files.write_json(old / 'config.json', {})

    def launch(*flags):
      done = subprocess.run(
          [sys.executable, '-m', 'rlhf_jax', 'export', *flags],
          cwd=worlds.ROOT,
          env=worlds.environment(), capture_output=True, text=True)
      self.assertEqual(done.stderr.count('\n'), 1)
      return done.returncode, done.stderr

    out = worlds.folder() / 'out'
    for flags, code, message in (
        ((f'--workdir={workdir}', '--stage=none'), 4,
         rf'CHECKPOINT: {workdir}/none is no complete stage; name one'),
        ((f'--workdir={workdir}', '--stage=pairs'), 4,
         rf'CHECKPOINT: {workdir}/pairs holds no trained model; name a'),
        ((f'--workdir={old}', '--stage=pairs'), 2,
         rf'CONFIG: {old} was made by an older version of .* new workdir'),
        ((f'--workdir={workdir}',), 2, 'CONFIG: .*--stage')):
      returned, log = launch(*flags, f'--directory={out}')
      self.assertRegex(log, rf'\Arlhf_jax: {message}')
      self.assertEqual(returned, code)
    self.assertFalse(out.exists())


if __name__ == '__main__':
  absltest.main()
