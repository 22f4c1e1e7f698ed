"""Writes tests/goldens/<family>.npz: python tests/peers/make_goldens.py

Each holds a tiny model of transformers, its weights under their names, with
tokens, logits and scores, so that `convert_test` proves the import without
torch. Run it again only to add a family or a flag.
"""

import copy
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers

from rlhf_jax.models import tensors
from rlhf_jax.storage import files

transformers.utils.logging.disable_progress_bar()
GOLDENS = pathlib.Path(__file__).resolve().parents[1] / 'goldens'
ROPE_3 = dict(rope_type='llama3', rope_theta=5e3, factor=4., low_freq_factor=1.,
              high_freq_factor=3., original_max_position_embeddings=16)
_TINY = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2,
             num_attention_heads=4)
_KIN = _TINY | dict(intermediate_size=24, num_key_value_heads=2)
# The flags that differ most from the defaults.
CONFIGS = {
    'gpt2': _TINY | dict(
        n_positions=16, n_inner=24, scale_attn_by_inverse_layer_idx=True),
    'gpt_neo': _TINY | dict(
        max_position_embeddings=16, intermediate_size=24, window_size=4,
        attention_types=[[['global', 'local'], 1]]),
    'gptj': _TINY | dict(  # of 4 dimensions, the order is its own inverse
        n_positions=16, rotary_dim=6, n_inner=24, num_attention_heads=2),
    'gpt_neox': _TINY | dict(
        intermediate_size=24, rope_parameters=dict(
            rope_type='linear', factor=2., rope_theta=5e3,
            partial_rotary_factor=.5)),
    'llama': _KIN | dict(
        attention_bias=True, mlp_bias=True, head_dim=6, rope_parameters=ROPE_3),
    'mistral': _KIN | dict(sliding_window=4),
    'qwen2': _KIN | dict(
        use_sliding_window=True, sliding_window=4, max_window_layers=1),
    'qwen3': _KIN | dict(head_dim=6, tie_word_embeddings=True),
}


def make_config(family, **kwargs):
  """A config of transformers, of special tokens that no row ends with."""
  config = transformers.CONFIG_MAPPING[family](**(dict(
      pad_token_id=0, bos_token_id=1, eos_token_id=2)
      | copy.deepcopy(kwargs)))  # it changes what it is given
  config._attn_implementation = 'eager'
  return config


def randomize(model, seed=0):
  """Weights of everything, so that nothing is 0, 1 or tiny; returns it."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, param in model.named_parameters():
      noise = torch.randn(param.shape, generator=generator)
      if param.ndim == 1:
        start = float('bias' not in name)  # the scale of a norm
        param.copy_(start + .3 * noise)
      else:
        param.copy_(noise * (.7 if 'emb' in name or 'wte' in name else
                             1.3 * min(param.shape) ** -.5))
  return model.eval()


def rows(vocab_size, lengths, width, left, seed=0):
  """Tokens i64[B, width] and mask bool, padded with 0 on one side."""
  rng = np.random.default_rng(seed)
  mask = np.arange(width) < np.array(lengths)[:, None]
  mask = mask[:, ::-1] if left else mask
  return np.where(mask, rng.integers(3, vocab_size, mask.shape), 0), mask


def logits(model, tokens, mask):
  """f32[B, T, V] of a causal model, f32[B] of a classifier."""
  mask = torch.from_numpy(mask.astype(np.int64))
  positions = (mask.cumsum(1) - 1).clamp(min=0)
  with torch.no_grad():
    out = model(input_ids=torch.from_numpy(tokens), attention_mask=mask,
                position_ids=positions).logits
  out = out.float().numpy()
  return out[:, 0] if out.ndim == 2 else out


def classifier(model, seed=7):
  """The reward model on the trunk of a causal model."""
  config = type(model.config).from_dict(model.config.to_dict())
  config.num_labels = 1
  config._attn_implementation = 'eager'
  made = transformers.AutoModelForSequenceClassification.from_config(config)
  trunk = getattr(made, made.base_model_prefix)
  trunk.load_state_dict(getattr(model, model.base_model_prefix).state_dict())
  with torch.no_grad():
    made.score.weight.copy_(torch.randn(
        made.score.weight.shape,
        generator=torch.Generator().manual_seed(seed)))
  return made.eval()


def saved(model):
  """Tensors and config.json, as the model writes them."""
  with tempfile.TemporaryDirectory() as directory:
    model.save_pretrained(directory)
    root = pathlib.Path(directory)
    return (dict(tensors.read(root / 'model.safetensors')),
            (root / 'config.json').read_text())


def main(families):
  GOLDENS.mkdir(exist_ok=True)
  for family in families or CONFIGS:
    config = make_config(family, **CONFIGS[family])
    model = randomize(transformers.AutoModelForCausalLM.from_config(config))
    scorer = classifier(model)
    halves = [rows(40, (12, 9, 5), 12, left) for left in (False, True)]
    tokens, mask = (np.concatenate(x) for x in zip(*halves, strict=True))
    weights, text = saved(model)
    score = saved(scorer)[0]['score.weight']
    path = GOLDENS / f'{family}.npz'
    files.save_arrays(
        path, config=np.array(text), tokens=tokens.astype(np.int32), mask=mask,
        logits=logits(model, tokens, mask),
        scores=logits(scorer, tokens, mask), score=score,
        **{f'weights/{name}': x for name, x in weights.items()})
    print(path, path.stat().st_size)


if __name__ == '__main__':
  main(sys.argv[1:])
