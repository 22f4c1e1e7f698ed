"""Tests for rlhf_jax.data.from_files."""

import itertools
import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from rlhf_jax import errors
from rlhf_jax.data import from_files
from rlhf_jax.data import load as load_lib
from rlhf_jax.data import logged

SHARED = pathlib.Path(__file__).resolve().parents[3] / 'shared/data'
SIZES = dict(num_pair_prompts=30, num_eval_prompts=5, max_prompt_length=60,
             max_response_length=20)


def _strip(tokens, pad):
  return [tuple(int(t) for t in row if t != pad) for row in tokens]


class FilesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    logged.read_once.cache_clear()
    from_files._kind.cache_clear()
    load_lib._load.cache_clear()
    self.directory = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()))
    self.path = str(self.directory / 'alpaca.json')
    self.preferences = str(self.directory / 'hh.jsonl')
    pathlib.Path(self.path).write_text(json.dumps([
        {'instruction': f'count to {i}', 'input': '', 'output': f'it is {i}'}
        for i in range(20)]))
    pathlib.Path(self.preferences).write_text(''.join(json.dumps({
        'chosen': f'\n\nHuman: is {i} odd?\n\nAssistant: yes dear {i}',
        'rejected': f'\n\nHuman: is {i} odd?\n\nAssistant: no {i}'}) + '\n'
        for i in range(6)))
    self.config = dict(name='files', path=self.path,
                       preferences=self.preferences, **SIZES)

  def test_contents(self):
    out = load_lib.load(self.config, 0)
    decode = lambda row: out.tokenizer.decode(row.tolist())
    self.assertEqual(out.demonstrations.tokens.shape, (15, 1, 80))
    self.assertEqual(out.preferences.tokens.shape, (6, 2, 80))
    self.assertEqual(out.pair_prompts.tokens.shape, (30, 60))
    self.assertEqual(out.eval_prompts.tokens.shape, (5, 60))
    self.assertIsNone(out.world)
    self.assertEqual(out.summary['demonstrations'], 15)
    self.assertEqual(out.summary['preferences'], 6)
    self.assertEqual(out.summary['dropped_rows'], 0)
    for i, (tokens, mask) in enumerate(zip(
        out.preferences.tokens, out.preferences.mask)):
      chosen, rejected = (decode(t[m]) for t, m in zip(tokens, mask))
      self.assertIn(f'yes dear {i}', chosen)
      self.assertIn(f'no {i}', rejected)
      self.assertIn(f'is {i} odd?', decode(tokens[0][~mask[0]]))
    texts = [decode(t[0]) for t in out.demonstrations.tokens]
    for text, mask, tokens in zip(
        texts, out.demonstrations.mask, out.demonstrations.tokens):
      answer = decode(tokens[0][mask[0]])
      number = answer.split()[-1]
      self.assertIn(f'count to {number}', text)

  def test_evaluation_prompts_are_held_out(self):
    out = load_lib.load(self.config, 0)
    pad = out.tokenizer.pad_id
    held_out = set(_strip(out.eval_prompts.tokens, pad))
    trained = set(_strip(np.where(
        out.demonstrations.mask, pad, out.demonstrations.tokens)[:, 0], pad))
    pairs = _strip(out.pair_prompts.tokens, pad)
    self.assertLen(held_out, 5)
    self.assertLen(trained, 15)
    self.assertFalse(held_out & trained)
    self.assertEqual(set(pairs), trained)
    # Repeats are neighbours, so that pairs held out from the front are of
    # other prompts.
    self.assertLen([1 for a, b in itertools.pairwise(pairs) if a != b], 14)
    np.testing.assert_array_equal(
        out.pair_prompts.lengths, [len(p) for p in pairs])

  def test_held_out_completions_are_of_their_prompts(self):
    out = load_lib.load(self.config, 0)
    rows, decode = out.eval_demonstrations, out.tokenizer.decode
    self.assertEqual(rows.tokens.shape, (5, 1, 80))
    for tokens, mask, prompt in zip(
        rows.tokens[:, 0], rows.mask[:, 0], out.eval_prompts.tokens):
      number = decode(tokens[mask]).removeprefix('it is ')
      self.assertIn(f'count to {number}', decode(prompt))
      self.assertEqual(decode(tokens[:mask.argmax()]), decode(prompt))

  def test_rows_of_one_prompt_stay_on_one_side(self):
    pathlib.Path(self.path).write_text(json.dumps([
        {'instruction': f'count to {i % 7}', 'input': '', 'output': f'is {i}'}
        for i in range(21)]))
    out = load_lib.load(self.config, 0)
    pad = out.tokenizer.pad_id
    held_out = _strip(out.eval_prompts.tokens, pad)
    trained = _strip(np.where(
        out.demonstrations.mask, pad, out.demonstrations.tokens)[:, 0], pad)
    self.assertLen(set(held_out), 5)
    self.assertLen(trained, 6)  # two prompts are left, of three rows each
    self.assertLen(set(trained), 2)
    self.assertFalse(set(held_out) & set(trained))

  def test_the_seed_is_of_the_split(self):
    first, again = from_files.from_files(seed=0, **self._arguments()), (
        from_files.from_files(seed=0, **self._arguments()))
    other = from_files.from_files(seed=1, **self._arguments())
    texts = [{c.tokenizer.decode(r.tolist()) for r in c.eval_prompts.tokens}
             for c in (first, again, other)]
    self.assertEqual(texts[0], texts[1])
    self.assertNotEqual(texts[0], texts[2])

  def _arguments(self, **kwargs):
    return {k: v for k, v in self.config.items() if k != 'name'} | kwargs

  def test_fewer_demonstrations(self):
    out = from_files.from_files(
        seed=0, **self._arguments(num_demonstrations=3))
    self.assertEqual(out.demonstrations.tokens.shape[0], 3)
    self.assertEqual(out.eval_prompts.tokens.shape[0], 5)

  @parameterized.parameters((20, False), (19, True))
  def test_too_few_prompts(self, num_eval_prompts, enough):
    config = self.config | dict(num_eval_prompts=num_eval_prompts)
    for check in (load_lib.check, lambda c: load_lib.load(c, 0)):
      if enough:
        check(config)
      else:
        with self.assertRaisesRegex(
            errors.DataError, f'{self.path}: 20 usable.*num_eval_prompts'):
          check(config)

  def test_check(self):
    load_lib.check(self.config)
    with open(self.preferences, 'a') as stream:
      stream.write('{"chosen": 1}\n')
    with self.assertRaisesRegex(errors.DataError, 'hh.jsonl:7: .*string'):
      logged.read_once.cache_clear()
      load_lib.check(self.config)
    load_lib.check(self.config | dict(max_bad_rows=1))
    self.assertEqual(load_lib.load(self.config | dict(
        max_bad_rows=1), 0).summary['dropped_rows'], 1)

  def test_without_preferences(self):
    config = self.config | dict(preferences=None)
    load_lib.check(config)
    out = load_lib.load(config, 0)
    self.assertIsNone(out.preferences)
    self.assertNotIn('preferences', out.summary)
    np.testing.assert_array_equal(out.pair_prompts.lengths.shape, (30,))
    self.assertEqual(out.summary['dropped_rows'], 0)

  def test_format_and_example(self):
    out = load_lib.load(self.config, 0)
    self.assertEqual(out.format, 'alpaca')
    number = out.tokenizer.decode(
        out.demonstrations.tokens[0][out.demonstrations.mask[0]]).split()[-1]
    # The prompt has lost its front; BOS stays.
    self.assertRegex(out.example(), (
        rf"^'<bos>.*Instruction:\\ncount to {number}\\n\\n"
        rf"### Response:it is {number}<eos>'$"))
    out = load_lib.load(self.config | dict(format='open_assistant'), 0)
    self.assertEqual(out.format, 'open_assistant')
    self.assertRegex(out.example(), (
        r"^'<bos><\|prompter\|>count to (\d+)<eos><\|assistant\|>"
        r"it is \1<eos>'$"))

  def test_preferences_in_their_own_format(self):
    prompt = lambda out: out.tokenizer.spell(
        out.preferences.tokens[0, 0]).replace('<pad>', '')
    hh = '\n\nHuman: is 0 odd?\n\nAssistant: yes dear 0<eos>'
    chat = '<|prompter|>is 0 odd?<eos><|assistant|> yes dear 0<eos>'
    for change, want in ((dict(), hh), (dict(format='open_assistant'), chat),
                         (dict(preference_format='open_assistant'), chat)):
      out = load_lib.load(self.config | change, 0)
      self.assertEqual(prompt(out), f'<bos>{want}')

  @parameterized.parameters(
      (dict(vocab_size=258), 'vocab_size must be >= 259'),
      (dict(seed=1), 'seed is no field'),
      (dict(target='reward'), 'target is no field; there are '
       'allow_checkpoint_template, bos, columns, control'),
      (dict(num_pair_prompts=None), 'num_pair_prompts must be given'),
      (dict(format='chatty'), "unknown prompt format 'chatty'"))
  def test_check_names_the_field(self, change, message):
    with self.assertRaisesRegex(errors.ConfigError, message):
      load_lib.check(self.config | change)


class RealFilesTest(absltest.TestCase):

  def test_a_thousand_instructions(self):
    path = SHARED / 'instruction/alpaca_en_demo_999.json'
    preferences = SHARED / 'preference/hh_harmless_base_test.jsonl.gz'
    for file in (path, preferences):
      if not file.exists():
        self.skipTest(f'{file} is not here')
    out = from_files.from_files(
        seed=0, path=str(path), preferences=str(preferences),
        num_pair_prompts=1200, num_eval_prompts=64, max_prompt_length=64,
        max_response_length=48, max_bad_rows=20, vocab_size=1024)
    self.assertEqual(out.eval_prompts.tokens.shape, (64, 64))
    self.assertGreater(len(out.preferences.tokens), 2000)
    self.assertLessEqual(out.tokenizer.vocab_size, 1024)
    self.assertTrue(out.preferences.mask.any(axis=-1).all())
    self.assertTrue(out.demonstrations.mask.any(axis=-1).all())
    np.testing.assert_array_less(
        out.preferences.mask.sum(axis=-1), 49)


if __name__ == '__main__':
  absltest.main()
