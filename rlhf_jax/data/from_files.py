"""A corpus of demonstrations and human preferences in files."""

import functools

import numpy as np

from rlhf_jax import errors
from rlhf_jax import types
from rlhf_jax.data import coders
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import formats
from rlhf_jax.data import readers


def from_files(
    *,
    seed: int,
    path: str,
    preferences: str,
    num_pair_prompts: int,
    num_eval_prompts: int,
    max_prompt_length: int,
    max_response_length: int,
    vocab_size: int = 4096,
    tokenizer: str | None = None,
    pad: str | None = None,
    bos: str | None = None,
    eos: str | None = None,
    control: tuple[str, ...] = (),
    format: str = 'alpaca',
    preference_format: str | None = None,
    max_bad_rows: int = 0,
    num_demonstrations: int | None = None,
) -> corpus_lib.Corpus:
  """Reads demonstrations (Alpaca) and human preferences (Anthropic HH).

  Args:
    seed: of the split into training and evaluation prompts.
    path: Alpaca-style .json, .jsonl or .jsonl.gz.
    preferences: Anthropic HH pairs, .jsonl or .jsonl.gz.
    num_pair_prompts: prompts for pairs; training prompts are repeated where
      there are fewer.
    num_eval_prompts: prompts held out from training.
    max_prompt_length: tokens, BOS included; longer ones lose their front.
    max_response_length: tokens, EOS included.
    vocab_size: of the byte-level BPE trained on the texts.
    tokenizer: what to use instead, see `load_tokenizer`.
    pad: its padding token, where it does not say so itself.
    bos: its token for the front of a prompt, likewise.
    eos: its token for the end of a response, likewise.
    control: further control tokens that a format needs.
    format: of demonstrations and prompts, see `formats`.
    preference_format: of preferences, whose prompts are dialogues; None: the
      same if it takes dialogues, or else 'hh'.
    max_bad_rows: bad rows to drop in each file instead of stopping.
    num_demonstrations: at most so many; None: all.

  Raises:
    DataError: a file is missing or malformed, or holds too few prompts.
  """
  rows, pairs = read(path, preferences, max_bad_rows, num_eval_prompts)
  write = formats.get(format)
  texts = [write(r.instruction, r.output, r.input) for r in rows.rows]
  training, held_out = corpus_lib.split_by_prompt(texts, seed, num_eval_prompts)
  training = training[:num_demonstrations]
  pair = formats.get(_preference_format(format, preference_format))
  sides = [[pair(p.prompt, getattr(p, side)) for p in pairs.rows]
           for side in ('chosen', 'rejected')]
  if tokenizer is not None:
    coder = coders.load_tokenizer(tokenizer, pad, bos, eos, control)
  else:
    coder = coders.train_tokenizer(
        [*training, *sides[0], *sides[1]], vocab_size, control)

  def encode(texts):
    return coder.encode_rows(
        [p for p, _ in texts], [r for _, r in texts],
        max_prompt_length=max_prompt_length,
        max_response_length=max_response_length)

  demonstrations = encode(training)
  chosen, rejected = map(encode, sides)
  held_out = encode(held_out)
  prompts = corpus_lib.as_prompts(demonstrations)
  # Repeats of a prompt are neighbours, so that pairs held out from the front
  # share at most one prompt with the rest.
  repeated = np.sort(np.resize(np.arange(len(training)), num_pair_prompts))
  stack = lambda name: np.stack(
      [getattr(chosen, name), getattr(rejected, name)], axis=1)
  share = lambda x: float(x.truncated_responses / len(x.tokens))
  return corpus_lib.Corpus(
      tokenizer=coder,
      demonstrations=corpus_lib.single(demonstrations),
      pair_prompts=corpus_lib.Prompts(prompts.tokens[repeated], prompts.lengths[repeated]),
      eval_prompts=corpus_lib.as_prompts(held_out),
      eval_demonstrations=corpus_lib.single(held_out),
      max_response_length=max_response_length,
      preferences=types.Batch(tokens=stack('tokens'), mask=stack('mask')),
      summary={
          'demonstrations': len(training),
          'preferences': len(pairs.rows),
          'vocabulary': coder.vocab_size,
          'dropped_rows': len(rows.bad) + rows.empty + len(pairs.bad)
                          + pairs.empty,
          'cut_prompts': float(demonstrations.truncated_prompts
                               / len(training)),
          'unfinished_demonstrations': share(demonstrations),
          'unfinished_preferences': (share(chosen) + share(rejected)) / 2,
      })


def _preference_format(format, preference_format):
  return preference_format or (
      format if format in formats.DIALOGUES else 'hh')


def check_formats(config, coder, rows, pairs):
  name = config.get('format') or 'alpaca'
  write = formats.get(name)
  pair = formats.get(_preference_format(name, config.get('preference_format')))
  texts = [write(r.instruction, r.output, r.input) for r in rows.rows]
  texts += [pair(p.prompt, side) for p in pairs.rows
            for side in (p.chosen, p.rejected)]
  coders.check_texts(config, coder, texts)


@functools.lru_cache(maxsize=2)
def read(path: str, preferences: str, max_bad_rows: int,
          num_eval_prompts: int) -> tuple[readers.Read, readers.Read]:
  """Demonstrations and preferences, checked to the last row."""
  rows = readers.read_alpaca(path, max_bad_rows=max_bad_rows)
  pairs = readers.read_hh(preferences, max_bad_rows=max_bad_rows)
  prompts = {(row.instruction, row.input) for row in rows.rows}
  if len(prompts) < num_eval_prompts + 1:
    raise errors.DataError(
        f'{path}: {len(prompts)} usable prompts, but {num_eval_prompts} '
        'are to be held out for evaluation; lower config.data.'
        'num_eval_prompts or give more data')
  return rows, pairs
