"""Tests for rlhf_jax.data.load."""

import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

from rlhf_jax import errors
from rlhf_jax.data import load as load_lib

WORLD = dict(name='reviews', num_demonstrations=40, num_pair_prompts=30,
             num_eval_prompts=5, max_response_length=24, num_adjectives=40)
SIZES = dict(num_pair_prompts=30, num_eval_prompts=5, max_prompt_length=60,
             max_response_length=20, vocab_size=300)


class LoadTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()))
    self.path = self.directory / 'alpaca.json'
    self.preferences = self.directory / 'hh.jsonl'
    self.path.write_text(json.dumps([
        dict(instruction=f'count to {i}', output=f'it is {i}')
        for i in range(20)]))
    self.preferences.write_text(''.join(json.dumps(dict(
        chosen=f'\n\nHuman: is {i} odd?\n\nAssistant: yes dear {i}',
        rejected=f'\n\nHuman: is {i} odd?\n\nAssistant: no {i}')) + '\n'
        for i in range(6)))
    self.files = dict(name='files', path=str(self.path),
                      preferences=str(self.preferences), **SIZES)
    self.logged = dict(name='logged', task='gsm8k', num_rows=20, **SIZES)

  def test_kept_and_none_dropped(self):
    first = load_lib.load(WORLD, 0)
    self.assertIs(load_lib.load(WORLD | dict(
        zipf=None, tokenizer=None), 0), first)
    weights = load_lib.load(WORLD | dict(sentences=[.45, .52, .03]), 0)
    self.assertIs(load_lib.load(
        WORLD | dict(sentences=(.45, .52, .03)), 0), weights)
    self.assertIsNot(load_lib.load(WORLD, 1), first)

  def test_stop_strings(self):
    for node in (WORLD, self.files, self.logged):
      node = node | dict(stop=('phone it', ' is'))
      load_lib.check(node)
      corpus, plain = (load_lib.load(x, 0) for x in (node, node | {
          'stop': ()}))
      self.assertEqual(corpus.tokenizer.stop, ('phone it', ' is'))
      self.assertEqual(corpus.tokenizer.stops.shape[1],
                       corpus.tokenizer.vocab_size)
      self.assertIsNone(plain.tokenizer.stops)
      self.assertEqual(corpus.fingerprint(), plain.fingerprint())
    for stop in ('is', ('is', ''), (3,)):
      with self.assertRaisesRegex(errors.ConfigError, 'config.data.stop is'):
        load_lib.check(WORLD | dict(stop=stop))

  def test_every_source(self):
    for node, words in ((WORLD, 'review the'), (self.files, 'Instruction'),
                        (self.logged, 'Question')):
      load_lib.check(node)
      corpus = load_lib.load(node, 0)
      self.assertIn(words, corpus.example())
      self.assertLen(corpus.eval_prompts.tokens, 5)

  def test_the_seed_is_of_the_corpus(self):
    for node in (WORLD, self.files, self.logged):
      first = load_lib.load(node, 0).fingerprint()
      other = load_lib.load(node, 1).fingerprint()
      load_lib._load.cache_clear()
      self.assertEqual(load_lib.load(node, 0).fingerprint(), first)
      self.assertNotEqual(first, other)

  def test_unknown_name(self):
    for call in (lambda node: load_lib.load(node, 0), load_lib.check,
                 load_lib.num_preferences):
      with self.assertRaisesRegex(
          errors.ConfigError, "'x'.*files, logged, reviews"):
        call(dict(name='x'))

  def test_num_preferences(self):
    self.assertEqual(load_lib.num_preferences(self.files), 6)
    self.assertEqual(load_lib.num_preferences(
        self.files | dict(preferences=None)), 0)
    self.assertEqual(load_lib.num_preferences(self.logged), 0)
    node = self.logged | dict(task='hh_scored')
    self.assertEqual(load_lib.num_preferences(node),
                     len(load_lib.load(node, 0).preferences.tokens))
    self.assertEqual(load_lib.num_preferences(WORLD), 0)

  @parameterized.parameters(
      ('files', 'path', 'path'), ('files', 'preferences', 'preferences'),
      ('files', 'tokenizer', 'files.tokenizer'),
      ('logged', 'path', 'logged.path'),
      ('logged', 'tokenizer', 'logged.tokenizer'))
  def test_a_missing_file_is_named(self, kind, field, flag):
    """And the flag that names it."""
    absent = str(self.directory / 'no.json')
    with self.assertRaisesRegex(
        errors.DataError,
        rf'{absent}: no such file; check --config\.data\.{flag}$'):
      load_lib.check(getattr(self, kind) | {field: absent})

  def test_a_directory_is_a_log_but_no_file(self):
    data = self.directory / 'data'
    data.mkdir()
    (data / 'train.jsonl').write_text(''.join(
        json.dumps(dict(prompt=f'p{i}', response='r', reward=i)) + '\n'
        for i in range(9)))
    load_lib.check(dict(name='logged', kind='rows', path=str(data), **SIZES))
    with self.assertRaisesRegex(errors.DataError, 'config.data.path'):
      load_lib.check(self.files | dict(path=str(data)))

  @parameterized.parameters(
      ('reviews', dict(zip=1.), 'zip'),
      ('reviews', dict(max_response_length=0), 'max_response_length of config'),
      ('files', dict(max_prompt_length=0), 'max_prompt_length of config.data'),
      ('files', dict(preference=1), 'config.data: preference is no field'),
      ('files', dict(path=None), 'config.data: path must be given'),
      ('logged', dict(damages=.1), 'config.data: options of gsm8k: .*damages'),
      ('logged', dict(num_rows=0), 'config.data: num_rows must be >= 1, got 0'))
  def test_check_names_the_field(self, name, change, message):
    node = dict(reviews=WORLD, files=self.files, logged=self.logged)[name]
    load_lib.check(node)
    with self.assertRaisesRegex(errors.ConfigError, message):
      load_lib.check(node | change)


class FingerprintsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()))

  def test_follow_the_content(self):
    path, preferences = (self.directory / name for name in 'ab')
    for file in (path, preferences):
      file.write_text('x')
    node = dict(path=str(path), preferences=str(preferences), tokenizer=None)
    before = load_lib.fingerprints(node)
    self.assertEqual(set(before), {'path', 'preferences'})
    path.write_text('x ')
    after = load_lib.fingerprints(node)
    self.assertNotEqual(before['path'], after['path'])
    self.assertEqual(before['preferences'], after['preferences'])
    self.assertEqual(load_lib.fingerprints({'name': 'reviews'}), {})

  def test_of_a_directory(self):
    data = self.directory / 'data'
    (data / 'part').mkdir(parents=True)
    digests = []
    for name, text in (('part/a.jsonl', 'x'), ('part/a.jsonl', 'y'),
                       ('part/.cache', 'z'), ('b.jsonl', 'y')):
      (data / name).write_text(text)
      digests.append(load_lib.fingerprints(
          {'name': 'logged', 'path': str(data)})['path'])
    self.assertNotEqual(digests[0], digests[1])
    self.assertEqual(digests[1], digests[2])  # hidden
    self.assertNotEqual(digests[2], digests[3])


if __name__ == '__main__':
  absltest.main()
