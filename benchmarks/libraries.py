"""Rows whose peers are transformers and TRL, on the same weights and rows."""

import dataclasses
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
from rlhf_jax.models import gguf_file
from rlhf_jax.models import transformer
from rlhf_jax.ops import packing
from rlhf_jax.rewards import models as reward_models

PAD, EOS, FIRST = 0, 2, 3  # and the first token of a text
RATE = 1e-5


def llama(quick: bool, *, width: int = 256, layers: int = 8,
          vocabulary: int = 8192) -> transformer.Config:
  """A LLaMA of 8M parameters, or of a hundredth of them."""
  if quick:
    width, layers, vocabulary = 32, 2, 512
  return transformer.make_config(
      'llama', vocab_size=vocabulary, hidden_size=width, num_layers=layers,
      num_heads=4, num_kv_heads=4, intermediate_size=8 * width // 3,
      tie_embeddings=True)


@functools.cache
def params_of(config):
  return jax.jit(functools.partial(transformer.init, config))(
      jax.random.key(0))


@functools.cache
def smollm2():
  """SmolLM2-135M-Instruct in float32: its config and parameters."""
  config, params = gguf_file.load(gguf_file.smollm2_path())
  return config, jax.tree.map(jnp.asarray, params)


def load(config, params, *, reward: bool = False):
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


def tokens_of(config, *shape):
  return np.random.default_rng(0).integers(
      FIRST, config.vocab_size, shape).astype(np.int32)


def generate(quick: bool, *, batch: int = 1, samples: int = 1,
             ragged: bool = False, pretrained: bool = False) -> measure.Case:
  """Sampling at temperature 1.

  Args:
    quick: tiny shapes.
    batch: prompts.
    samples: responses to each.
    ragged: whether one token in 32 ends a response; else none does.
    pretrained: whether the model is SmolLM2, also if quick.
  """
  import torch
  width, config = 8 if quick else 64, llama(quick)
  config, params = smollm2() if pretrained else (config, params_of(config))
  model = load(config, params).eval()
  rows = tokens_of(config, batch, width)
  ends = tuple(range(FIRST, FIRST + config.vocab_size // 32)) if ragged else (
      EOS,)
  prompts = torch.tensor(rows.astype(np.int64)), np.full(
      batch, width, np.int32)

  def ours():
    out = sampling.sample(
        config, params, jnp.asarray(rows), prompts[1], jax.random.key(0),
        num_samples=samples, min_new_tokens=0 if ragged else width,
        max_new_tokens=width, eos_id=ends, pad_id=PAD)
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
      note=f'transformers; {"SmolLM2, " if pretrained else ""}'
           f'{size / 1e6:.3g}M parameters, {batch} x {samples} '
           f'x ({width} + {width}) tokens'
           + (', one token in 32 ends a row' if ragged else ''))


def step(forward, objective, params, data, annotate=lambda x, _: x,
          amount=None):
  """A function that trains one step of ours, of `amount` tokens."""
  tx = train.optimizer(learning_rate=RATE, num_steps=1000)
  inner = train.make_train_step(forward, objective, tx)
  step = jax.jit(lambda state, data, frozen: inner(
      state, annotate(data, frozen)), donate_argnums=0)
  # A copy, since the state is donated.
  state = [train.place_state(
      jax.tree.map(jnp.copy, params), tx, jax.random.key(0))]
  data = jax.tree.map(jnp.asarray, data)
  amount = amount or data.tokens.size

  def run():
    state[0], metrics = step(state[0], data, params)
    jax.block_until_ready((state[0], metrics))
    return amount

  return run


def trainer(name, model, columns, settings, words=('<pad>', 'a', '<eos>'),
            **kwargs):
  """One of TRL's, without its loop, its logs and its collation of texts.

  Args:
    name: of the trainer, without 'Trainer'.
    model: to be trained.
    columns: {column: [N texts or lists of ids]}.
    settings: of its config.
    words: of its tokenizer, in the order of their ids.
    **kwargs: of the trainer.
  """
  import datasets
  import tokenizers
  import transformers
  import trl
  datasets.disable_progress_bars()
  words = tokenizers.Tokenizer(tokenizers.models.WordLevel(
      {word: i for i, word in enumerate(words)}, unk_token='a'))
  words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer = transformers.PreTrainedTokenizerFast(
      tokenizer_object=words, pad_token='<pad>', eos_token='<eos>',
      unk_token='a')
  with tempfile.TemporaryDirectory() as directory:
    return getattr(trl, f'{name}Trainer')(
        model, args=getattr(trl, f'{name}Config')(
            output_dir=directory, learning_rate=RATE, max_steps=1000,
            bf16=False, use_cpu=True, gradient_checkpointing=False,
            report_to='none', disable_tqdm=True, **settings),
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=tokenizer, **kwargs)


def update(teacher, optimizer, batch):
  """Loss, gradient, clip and AdamW of a trainer of TRL's."""
  import torch
  loss = teacher.compute_loss(teacher.model, dict(batch))
  loss.backward()
  torch.nn.utils.clip_grad_norm_(teacher.model.parameters(), 1.0)
  optimizer.step()
  optimizer.zero_grad()


def steps(name, model, columns, examples, amount=None, **kwargs):
  """A function that trains one step of TRL's on B examples: dicts of ids."""
  teacher = trainer(name, model, columns, dict(
      per_device_train_batch_size=len(examples), max_length=None), **kwargs)
  optimizer = teacher.create_optimizer()
  batch = teacher.data_collator(examples)
  model.train()

  def run():
    update(teacher, optimizer, batch)
    return amount or batch['input_ids'].numel()

  return run


def rows_and_width(quick: bool) -> tuple[int, int]:
  return (2, 16) if quick else (8, 128)


def _case(ours, peer, params, quick, *, passes=3, rows=1):
  """A step against TRL's, at two operations a parameter, token and pass.

  Args:
    ours: of `step`.
    peer: of `steps`.
    params: that a token goes through.
    quick: see `rows_and_width`.
    passes: forward, and twice as much backward; 4 with a reference.
    rows: 2 of pairs.
  """
  size = sum(x.size for x in jax.tree.leaves(params))
  count, width = rows_and_width(quick)
  return measure.Case(
      ours=ours, peer=peer, unit='tokens/s', flops=2 * passes * size,
      note=f'TRL; {size / 1e6:.2g}M parameters, {count} x {rows} x {width} '
           'tokens')


def sft(quick: bool, ragged: bool = False) -> measure.Case:
  """A step of supervised fine-tuning, all tokens in the loss.

  Args:
    quick: see `rows_and_width`.
    ragged: rows from an eighth of the width on, four times as many; ours are
      packed, the peer's are filled up (its own packing lets rows see each
      other where there is no flash attention). Tokens are then those of rows.
  """
  config = llama(quick)
  count, width = rows_and_width(quick)
  least, count = (width // 8, 4 * count) if ragged else (width, count)
  rows = tokens_of(config, count, width)
  lengths = np.linspace(least, width, count).astype(int)
  mask = np.arange(width) < lengths[:, None]
  mask[:, 0] = False  # no state is before it
  data = types.Batch(tokens=rows[:, None], mask=mask[:, None])
  if ragged:
    data = packing.pack(data, packing.size_of(data))
  amount = int(lengths.sum())
  ours = step(
      functools.partial(policy.forward, config), objectives.get('sft'),
      params_of(config), data, amount=amount)
  ids = [row[:n].tolist() for row, n in zip(rows, lengths, strict=True)]
  columns = {'input_ids': ids, 'labels': ids}
  peer = steps('SFT', load(config, params_of(config)), columns,
               [dict(zip(columns, x)) for x in zip(*columns.values())],
               amount=amount)
  case = _case(ours, peer, params_of(config), quick)
  return case if not ragged else dataclasses.replace(
      case, note=f'{case.note.partition(",")[0]}, {count} rows of '
      f'{least} to {width} tokens, ours packed into '
      f'{data.packed.tokens.shape[1]}')


def pairs(config, quick):
  """Batch [B, 2, T], whose second half is the response."""
  count, width = rows_and_width(quick)
  rows = tokens_of(config, count, 2, width)
  rows[:, 1, :width // 2] = rows[:, 0, :width // 2]
  mask = np.broadcast_to(np.arange(width) >= width // 2, rows.shape)
  texts = {'prompt': ['a'] * count, 'chosen': ['a'] * count,
           'rejected': ['a a'] * count}
  return types.Batch(tokens=rows, mask=mask), texts


def dpo(quick: bool) -> measure.Case:
  """A step of DPO, with the log-probabilities of its reference."""
  config = llama(quick)
  params = params_of(config)
  data, texts = pairs(config, quick)
  ours = step(
      functools.partial(policy.forward, config),
      algorithms.ALGORITHMS['dpo'].bind(), params, data,
      lambda batch, frozen: from_models.ref_logprobs(batch, config, frozen))
  half = data.tokens.shape[-1] // 2
  peer = steps(
      'DPO', load(config, params), texts,
      [{'prompt_ids': one[0, :half].tolist(),
        'chosen_ids': one[0, half:].tolist(),
        'rejected_ids': one[1, half:].tolist()} for one in data.tokens],
      ref_model=load(config, params).eval())
  return _case(ours, peer, params, quick, passes=4, rows=2)


def reward_model(quick: bool) -> measure.Case:
  """A step of a reward model on pairs."""
  config = llama(quick)
  params = reward_models.init(
      config, jax.random.key(1), trunk=params_of(config))
  data, texts = pairs(config, quick)
  ours = step(functools.partial(reward_models.forward, config),
               objectives.get('bradley_terry'), params, data)
  peer = steps(
      'Reward', load(config, params, reward=True), texts,
      [dict(zip(('chosen_ids', 'rejected_ids'), one.tolist()))
       for one in data.tokens])
  products = {k: v for k, v in params['trunk'].items() if k != 'embed'}
  return _case(ours, peer, products, quick, rows=2)
