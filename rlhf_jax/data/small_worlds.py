"""Small worlds: corpora that a grammar writes, and a rule that judges them.

  reviews    reviews of a thing; the best ones say what all prompts like
  long_tail  the prompt sets side and length; emphasis misleads a reward model
  emphasis   the same, and the prompt sets how much of it there is
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

from rlhf_jax import streams
from rlhf_jax.data import coders
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import long_tail
from rlhf_jax.data import options as options_lib
from rlhf_jax.data import reviews


class _World(NamedTuple):
  """A grammar, and what its prompts are like."""

  make: Callable[..., reviews.Reviews | long_tail.LongTail]
  prompt_length: int  # tokens, BOS included
  split_of: Callable[[Sequence[str]], list[str]]
  evaluation: Mapping[str, Any]  # of `write`, for prompts held out


_LONG_TAIL = _World(long_tail.LongTail, long_tail.PROMPT_LENGTH,
                    long_tail.split_of, {'held_out': True})
_WORLDS = {
    'reviews': _World(reviews.Reviews, reviews.PROMPT_LENGTH,
                      reviews.split_of, {}),
    'long_tail': _LONG_TAIL, 'emphasis': _LONG_TAIL,
}
NAMES = tuple(_WORLDS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """How much is written, and in which world.

  Attributes:
    num_demonstrations: reviews for SFT.
    num_pair_prompts: prompts for preference pairs.
    num_eval_prompts: prompts for evaluation.
    max_response_length: tokens, EOS included.
    max_prompt_length: tokens, BOS included.
    world: arguments of the grammar, as pairs.
  """

  num_demonstrations: int
  num_pair_prompts: int
  num_eval_prompts: int
  max_response_length: int
  max_prompt_length: int
  world: tuple[tuple[str, Any], ...] = ()


def _read(name: str, fields: Mapping[str, Any]) -> Options:
  usual = {'max_prompt_length': _WORLDS[name].prompt_length}
  return options_lib.bind(Options, usual | {
      field: x for field, x in fields.items() if x is not None},
      others='world')


def write(name: str, *, seed: int, **fields: Any) -> corpus_lib.Corpus:
  """Writes the corpus of one seed from a grammar.

  Args:
    name: one of `NAMES`.
    seed: of the study; the vocabulary and the rule do not depend on it.
    **fields: of `Options`, and arguments of the grammar.

  Raises:
    TypeError, ValueError: a field is unknown, missing or out of range.
  """
  options, of_name = _read(name, fields), _WORLDS[name]
  world = of_name.make(**dict(options.world))

  def texts_of(count, part, **how):
    texts = list(zip(*world.write(
        count, streams.number(seed, name, part), **how)))
    return texts, coders.encode(world.tokenizer, options, texts)

  _, demonstrations = texts_of(options.num_demonstrations, 'demonstrations')
  _, pairs = texts_of(options.num_pair_prompts, 'pairs')
  held_out_texts, held_out = texts_of(
      options.num_eval_prompts, 'evaluation', **of_name.evaluation)
  return corpus_lib.Corpus(
      tokenizer=world.tokenizer,
      demonstrations=corpus_lib.single(demonstrations),
      pair_prompts=corpus_lib.as_prompts(pairs),
      eval_prompts=corpus_lib.as_prompts(held_out),
      eval_demonstrations=corpus_lib.single(held_out),
      max_response_length=options.max_response_length,
      world=world,
      eval_splits=tuple(of_name.split_of(
          [prompt for prompt, _ in held_out_texts])),
      summary={
          'demonstrations': options.num_demonstrations,
          'vocabulary': world.tokenizer.vocab_size,
          'unfinished_demonstrations': (demonstrations.truncated_responses
                                        / options.num_demonstrations),
      })


def check(name: str, node: Mapping[str, Any]):
  """Raises at once what `write` would raise later.

  Args:
    name: one of `NAMES`.
    node: {name, **fields}, see `load`.

  Raises:
    TypeError, ValueError: a field is unknown, missing or out of range.
  """
  _WORLDS[name].make(**dict(_read(name, node).world))
