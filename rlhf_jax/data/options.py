"""Config nodes of corpora as dataclasses: each field once, with its default."""

from collections.abc import Mapping
import dataclasses
from typing import Any, TypeVar

from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import screening

OF_ALL = ('name', 'stop')  # fields of every node, which `load` reads
_Options = TypeVar('_Options')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
  """What all corpora of texts in files have in common.

  Attributes:
    num_pair_prompts: prompts for pairs; training prompts are repeated where
      there are fewer.
    num_eval_prompts: prompts held out from training.
    max_prompt_length: tokens, BOS included; longer ones lose their front.
    max_response_length: tokens, EOS included.
    vocab_size: of the byte-level BPE trained on the texts.
    tokenizer: what to use instead, see `coders.load_tokenizer`.
    pad: its padding token, where it does not say so itself.
    bos: its token for the front of a prompt, likewise.
    eos: its token for the end of a response, likewise.
    control: further control tokens that a format needs.
    max_bad_rows: bad rows to drop in each file instead of stopping.
    allow_checkpoint_template: whether format 'chat_template' may run the
      program that came with the tokenizer.
    long_prompts: see `screening`.
    identical_pairs: likewise.
  """

  num_pair_prompts: int
  num_eval_prompts: int
  max_prompt_length: int
  max_response_length: int
  vocab_size: int = 4096
  tokenizer: str | None = None
  pad: str | None = None
  bos: str | None = None
  eos: str | None = None
  control: tuple[str, ...] = ()
  max_bad_rows: int = 0
  allow_checkpoint_template: bool = False
  long_prompts: str = 'cut'
  identical_pairs: str = 'drop'

  def __post_init__(self):
    screening.check(self)


def bind(cls: type[_Options], node: Mapping[str, Any],
         others: str | None = None) -> _Options:
  """The fields of a config node as an options dataclass that can be hashed.

  Args:
    cls: the dataclass.
    node: {name, **fields}; `OF_ALL` are left out, and a field that is None is
      as good as absent.
    others: field of `cls` that takes, as sorted pairs, whatever is no field
      of it. None: there may be nothing else.

  Raises:
    TypeError: names a field that is unknown or missing.
  """
  node = {name: corpus_lib.freeze(value) for name, value in node.items()
          if value is not None and name not in OF_ALL}
  fields = {field.name: field for field in dataclasses.fields(cls)
            if field.name != others}
  rest = {name: value for name, value in node.items() if name not in fields}
  if rest and others is None:
    raise TypeError(f'{", ".join(rest)} is no field; there are '
                    f'{", ".join(sorted(fields))}')
  absent = [name for name, field in fields.items()
            if name not in node and field.default is dataclasses.MISSING]
  if absent:
    raise TypeError(f'{", ".join(absent)} must be given')
  if others is not None:
    fields[others], node[others] = None, corpus_lib.freeze(rest)
  return cls(**{name: node[name] for name in fields if name in node})
