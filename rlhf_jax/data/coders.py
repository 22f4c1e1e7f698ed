"""The tokenizer of a corpus, loaded or trained on its texts, and its rows."""

from collections.abc import Iterable, Mapping, Sequence
import itertools
import pathlib
from typing import Any

from rlhf_jax import errors
from rlhf_jax.data import formats
from rlhf_jax.data import options as options_lib
from rlhf_jax.data import rows as rows_lib
from rlhf_jax.data import templates
from rlhf_jax.data import tokenizer as tokenizer_lib

Texts = tuple[formats.Text, formats.Text]  # prompt and response


def check_texts(options: options_lib.Texts,
                coder: tokenizer_lib.Tokenizer | None, texts: Sequence[Texts]):
  """ValueError or ConfigError if prompts and responses cannot be encoded.

  Args:
    options: of the corpus.
    coder: its tokenizer; None: one that is to be trained on the texts.
    texts: in their format; the first and the last are tried.
  """
  if coder is None and any(map(_is_deferred, texts)):
    raise errors.ConfigError(
        "format 'chat_template' is that of a model; give one that has a "
        'template, or data.files.tokenizer (or data.logged.tokenizer)')
  if coder is not None:
    for prompt, response in rendered(
        coder, [texts[0], texts[-1]], options.allow_checkpoint_template):
      coder.encode_rows([prompt], [response], max_prompt_length=1,
                        max_response_length=1)
    return
  specials = {part for text in (*texts[0], *texts[-1])
              if not isinstance(text, str) for part in text
              if isinstance(part, formats.Special) and part != formats.END}
  specials |= {formats.Special(name) for name in options.control}
  least = 259 + len(specials)
  if options.vocab_size < least:
    raise ValueError(f'vocab_size must be >= {least} (256 bytes, the special '
                     f'tokens), got {options.vocab_size}')


def _is_deferred(text: tuple) -> bool:
  return isinstance(text[0], formats.Turns)


def rendered(coder: tokenizer_lib.Tokenizer, rows: Sequence[Texts],
             allowed: bool) -> Sequence[Texts]:
  """Rows whose conversations the coder's own chat template has written.

  Args:
    coder: with the template.
    rows: prompts and responses; those without `formats.Turns` stay as they are.
    allowed: whether a program that came with a model may run.

  Raises:
    ConfigError: it may not, there is none, or it fails; see `templates`.
  """
  if not any(map(_is_deferred, rows)):
    return rows
  if coder.chat_template is None:
    raise errors.ConfigError(
        "format 'chat_template' asks for the template of the tokenizer, which "
        'has none; name another format')
  options = dict(
      control=coder.control, bos=coder.roles['bos'], eos=coder.roles['eos'],
      allow_checkpoint_template=allowed)
  message = lambda role, content: {'role': role, 'content': content}
  before = [[message(*turn) for turn in prompt.turns] for prompt, _ in rows]
  answered = [i for i, (_, response) in enumerate(rows) if response.strip()]
  alone = [i for i, (_, response) in enumerate(rows) if not response.strip()]
  out = [*rows]
  for i, row in zip(answered, templates.rows(
      coder.chat_template, [[*before[i], message('assistant', rows[i][1])]
                            for i in answered], **options)):
    out[i] = row
  for i, prompt in zip(alone, templates.render(
      coder.chat_template, [before[i] for i in alone], **options)):
    out[i] = prompt, ''
  return out


def train_tokenizer(rows: Iterable[Texts], vocab_size: int,
                    control: Sequence[str]) -> tokenizer_lib.Tokenizer:
  """A BPE of the texts, with the control tokens that their format needs."""
  texts, names = [], dict.fromkeys(control)
  for text in itertools.chain.from_iterable(rows):
    for part in (text,) if isinstance(text, str) else text:
      if isinstance(part, str):
        texts.append(part)
      elif part != formats.END:
        names[part.name] = None
  return tokenizer_lib.Tokenizer.train_bpe(
      texts, vocab_size=vocab_size, control=tuple(names))


def of_model(directory: pathlib.Path, model: Mapping[str, Any]
             ) -> tokenizer_lib.Tokenizer:
  """The tokenizer of a trained model, with its stops.

  Args:
    directory: that holds tokenizer.json.
    model: what model.json beside it says.

  Raises:
    DataError: the file is missing or malformed.
    ConfigError: it lacks a token that the model names.
  """
  coder = tokenizer_lib.Tokenizer.from_file(
      directory / 'tokenizer.json', **model['tokenizer'])
  return coder.ending_at(model['stop']) if model['stop'] else coder


def load_tokenizer(
    path: str, pad: str | None = None, bos: str | None = None,
    eos: str | None = None, control: Sequence[str] = (),
) -> tokenizer_lib.Tokenizer:
  """A tokenizer from a Hugging Face directory or from a file.

  Args:
    path: a directory, tokenizer.json, .gguf, or llama2.c's tokenizer .bin.
    pad: name of its padding token; None: what it says itself, or ours.
    bos: name of its BOS, likewise.
    eos: name of its EOS, likewise.
    control: further control tokens.

  Raises:
    ConfigError: a token is not in it.
    CheckpointError: the directory is refused.
    DataError: the file is missing or malformed.
  """
  names = {k: v for k, v in dict(pad=pad, bos=bos, eos=eos).items()
           if v is not None} | {'control': tuple(control)}
  make = tokenizer_lib.Tokenizer
  if pathlib.Path(path).is_dir():
    return make.from_directory(path, **names)
  if path.endswith('.gguf'):
    return make.from_gguf(path, **names)
  if path.endswith('.bin'):
    return make.from_llama2c(path, **names)
  return make.from_file(path, **names)


def named_tokenizer(node: Mapping[str, Any]) -> tokenizer_lib.Tokenizer | None:
  """The tokenizer that a corpus node names, by `load_tokenizer`; None: none."""
  if not node.get('tokenizer'):
    return None
  return load_tokenizer(node['tokenizer'], **{
      name: node[name] for name in ('pad', 'bos', 'eos', 'control')
      if node.get(name)})


def own_tokenizer(options: options_lib.Texts, rows: Iterable[Texts]
                  ) -> tokenizer_lib.Tokenizer:
  """The tokenizer that the options name, or else one trained on the rows."""
  return named_tokenizer(vars(options)) or train_tokenizer(
      rows, options.vocab_size, options.control)


def encode(coder: tokenizer_lib.Tokenizer, options: Any, rows: Iterable[Texts]
           ) -> rows_lib.EncodedRows:
  """Prompts and responses as rows of tokens.

  Args:
    coder: the tokenizer.
    options: with max_prompt_length and max_response_length.
    rows: N of them.
  """
  rows = [*rows]
  if any(map(_is_deferred, rows)):  # the small world has no such option
    rows = rendered(coder, rows, options.allow_checkpoint_template)
  prompts, responses = zip(*rows)
  return coder.encode_rows(
      prompts, responses, max_prompt_length=options.max_prompt_length,
      max_response_length=options.max_response_length)
