"""Rows whose peers are transformers and TRL, on the same weights and rows."""

import functools
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from rlhf_jax import algorithms
from rlhf_jax import objectives
from rlhf_jax import policy
from rlhf_jax import sampling
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.annotators import from_models
from rlhf_jax.models import convert
from rlhf_jax.models import transformer
from rlhf_jax.rewards import models as reward_models

PAD, EOS, FIRST = 0, 2, 3  # and the first token of a text
_RATE = 1e-5


def _config(quick: bool) -> transformer.Config:
  """A LLaMA of 8M parameters, or of a hundredth of them."""
  width, layers, vocabulary = (32, 2, 512) if quick else (256, 8, 8192)
  return transformer.make_config(
      'llama', vocab_size=vocabulary, hidden_size=width, num_layers=layers,
      num_heads=4, num_kv_heads=4, intermediate_size=8 * width // 3,
      tie_embeddings=True)


@functools.cache
def _params(config):
  return jax.jit(functools.partial(transformer.init, config))(
      jax.random.key(0))


def _load(config, params, *, reward: bool = False):
  """The model of transformers with the same float32 weights."""
  import torch
  import transformers
  transformers.utils.logging.disable_progress_bar()
  kind = (transformers.AutoModelForSequenceClassification if reward
          else transformers.AutoModelForCausalLM)
  save = convert.save_reward if reward else convert.save
  with tempfile.TemporaryDirectory() as directory:
    save(directory, config, params, extra={'pad_token_id': PAD})
    return kind.from_pretrained(directory, dtype=torch.float32)


def _tokens(config, *shape):
  return np.random.default_rng(0).integers(
      FIRST, config.vocab_size, shape).astype(np.int32)


def generate(quick: bool, *, batch: int = 1, samples: int = 1,
             ragged: bool = False) -> measure.Case:
  """Sampling at temperature 1; with `ragged`, one token in 32 is an EOS."""
  import torch
  config = _config(quick)
  params, width = _params(config), 8 if quick else 64
  model = _load(config, params).eval()
  rows = _tokens(config, batch, width)
  ends = tuple(range(FIRST, FIRST + config.vocab_size // 32)) if ragged else (
      EOS,)
  prompts = torch.tensor(rows.astype(np.int64)), np.full(
      batch, width, np.int32)

  def ours():
    out = sampling.sample(
        config, params, jnp.asarray(rows), prompts[1], jax.random.key(0),
        num_samples=samples, max_new_tokens=width, eos_id=ends, pad_id=PAD)
    return int(np.asarray(out.mask).sum())

  def peer():
    with torch.no_grad():
      out = model.generate(
          prompts[0], attention_mask=torch.ones_like(prompts[0]),
          max_new_tokens=width, do_sample=True, temperature=1.0, top_k=0,
          top_p=1.0, num_return_sequences=samples, pad_token_id=PAD,
          eos_token_id=list(ends) if ragged else None)
    new = out[:, width:]
    # Only the model's own tokens count; none of a text is the padding.
    return int((new != PAD).sum()) if ragged else new.numel()

  size = sum(x.size for x in jax.tree.leaves(params))
  return measure.Case(
      ours=ours, peer=peer, unit='tokens/s',
      bytes=4 * size if batch == samples == 1 else 0,
      note=f'transformers.generate; LLaMA of {size / 1e6:.2g}M, '
           f'{batch} x {samples} rows, {width} + {width} tokens'
           + (', one token in 32 ends a row' if ragged else ''))


def _step(forward, objective, params, data, annotate=lambda x, _: x):
  """A function that trains one step of ours."""
  tx = train.optimizer(learning_rate=_RATE, num_steps=1000)
  inner = train.make_train_step(forward, objective, tx)
  step = jax.jit(lambda state, data, frozen: inner(
      state, annotate(data, frozen)), donate_argnums=0)
  # A copy, since the state is donated.
  state = [train.place_state(
      jax.tree.map(jnp.copy, params), tx, jax.random.key(0))]
  data = jax.tree.map(jnp.asarray, data)
  amount = data.tokens.size

  def run():
    state[0], metrics = step(state[0], data, params)
    jax.block_until_ready((state[0], metrics))
    return amount

  return run


def _trl(name, model, columns, examples, **kwargs):
  """A function that trains one step of TRL's: loss, gradient, clip, AdamW.

  Args:
    name: of the trainer, without 'Trainer'.
    model: to be trained.
    columns: {column: [B texts or lists of ids]}, which the trainer is made
      with.
    examples: B dicts of ids, of which its collator makes the batch.
    **kwargs: of the trainer.
  """
  import datasets
  import tokenizers
  import torch
  import transformers
  import trl
  datasets.disable_progress_bars()
  words = {'<pad>': PAD, 'a': 1, '<eos>': EOS}
  tokenizer = transformers.PreTrainedTokenizerFast(
      tokenizer_object=tokenizers.Tokenizer(
          tokenizers.models.WordLevel(words, unk_token='a')),
      pad_token='<pad>', eos_token='<eos>', unk_token='a')
  with tempfile.TemporaryDirectory() as directory:
    trainer = getattr(trl, f'{name}Trainer')(
        model, args=getattr(trl, f'{name}Config')(
            output_dir=directory, per_device_train_batch_size=len(examples),
            learning_rate=_RATE, max_steps=1000, bf16=False, use_cpu=True,
            gradient_checkpointing=False, report_to='none', disable_tqdm=True,
            max_length=None),
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=tokenizer, **kwargs)
  optimizer = trainer.create_optimizer()
  batch = trainer.data_collator(examples)
  model.train()

  def run():
    loss = trainer.compute_loss(model, dict(batch))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return batch['input_ids'].numel()

  return run


def _shape(quick: bool) -> tuple[int, int]:
  return (2, 16) if quick else (8, 128)


def _case(ours, peer, params, quick, *, passes=3, rows=1):
  """A step against TRL's, at two operations a parameter, token and pass.

  Args:
    ours: of `_step`.
    peer: of `_trl`.
    params: that a token goes through.
    quick: see `_shape`.
    passes: forward, and twice as much backward; 4 with a reference.
    rows: 2 of pairs.
  """
  size = sum(x.size for x in jax.tree.leaves(params))
  count, width = _shape(quick)
  return measure.Case(
      ours=ours, peer=peer, unit='tokens/s', flops=2 * passes * size,
      note=f'TRL, from loss to AdamW without its loop; {size / 1e6:.2g}M '
           f'parameters, {count} x {rows} rows of {width} tokens')


def sft(quick: bool) -> measure.Case:
  """A step of supervised fine-tuning, all tokens in the loss."""
  config = _config(quick)
  rows = _tokens(config, *_shape(quick))
  mask = np.ones_like(rows, bool)
  mask[:, 0] = False  # no state is before it
  ours = _step(
      functools.partial(policy.forward, config), objectives.get('sft'),
      _params(config), types.Batch(tokens=rows[:, None], mask=mask[:, None]))
  columns = {'input_ids': rows.tolist(), 'labels': rows.tolist()}
  peer = _trl('SFT', _load(config, _params(config)), columns,
              [dict(zip(columns, x)) for x in zip(*columns.values())])
  return _case(ours, peer, _params(config), quick)


def _pairs(config, quick):
  """Batch [B, 2, T], whose second half is the response."""
  count, width = _shape(quick)
  rows = _tokens(config, count, 2, width)
  rows[:, 1, :width // 2] = rows[:, 0, :width // 2]
  mask = np.broadcast_to(np.arange(width) >= width // 2, rows.shape)
  texts = {'prompt': ['a'] * count, 'chosen': ['a'] * count,
           'rejected': ['a a'] * count}
  return types.Batch(tokens=rows, mask=mask), texts


def dpo(quick: bool) -> measure.Case:
  """A step of DPO, with the log-probabilities of its reference."""
  config = _config(quick)
  params = _params(config)
  data, texts = _pairs(config, quick)
  ours = _step(
      functools.partial(policy.forward, config),
      algorithms.ALGORITHMS['dpo'].bind(), params, data,
      lambda batch, frozen: from_models.ref_logprobs(batch, config, frozen))
  half = data.tokens.shape[-1] // 2
  peer = _trl(
      'DPO', _load(config, params), texts,
      [{'prompt_ids': one[0, :half].tolist(),
        'chosen_ids': one[0, half:].tolist(),
        'rejected_ids': one[1, half:].tolist()} for one in data.tokens],
      ref_model=_load(config, params).eval())
  return _case(ours, peer, params, quick, passes=4, rows=2)


def reward_model(quick: bool) -> measure.Case:
  """A step of a reward model on pairs."""
  config = _config(quick)
  params = reward_models.init(
      config, jax.random.key(1), trunk=_params(config))
  data, texts = _pairs(config, quick)
  ours = _step(functools.partial(reward_models.forward, config),
               objectives.get('bradley_terry'), params, data)
  peer = _trl(
      'Reward', _load(config, params, reward=True), texts,
      [dict(zip(('chosen_ids', 'rejected_ids'), one.tolist()))
       for one in data.tokens])
  products = {k: v for k, v in params['trunk'].items() if k != 'embed'}
  return _case(ours, peer, products, quick, rows=2)
