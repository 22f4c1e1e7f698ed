"""A corpus that the grammar of the small world writes."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from rlhf_jax import streams
from rlhf_jax.data import coders
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import options as options_lib
from rlhf_jax.data import reviews


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """How much is written, and in which world.

  Attributes:
    num_demonstrations: reviews for SFT.
    num_pair_prompts: prompts for preference pairs.
    num_eval_prompts: prompts for evaluation.
    max_response_length: tokens, EOS included.
    max_prompt_length: tokens, BOS included.
    world: arguments of `reviews.Reviews`, as pairs.
  """

  num_demonstrations: int
  num_pair_prompts: int
  num_eval_prompts: int
  max_response_length: int
  max_prompt_length: int = reviews.PROMPT_LENGTH
  world: tuple[tuple[str, Any], ...] = ()


def from_reviews(*, seed: int, **fields: Any) -> corpus_lib.Corpus:
  """Writes the corpus of one seed from the grammar.

  Args:
    seed: of the study; the vocabulary and the rule do not depend on it.
    **fields: of `Options`, and arguments of `reviews.Reviews`.

  Raises:
    TypeError, ValueError: a field is unknown, missing or out of range.
  """
  options = options_lib.bind(Options, fields, others='world')
  world = reviews.Reviews(**dict(options.world))

  def write(count, part):
    texts = list(zip(*world.write(
        count, streams.number(seed, 'reviews', part))))
    return texts, coders.encode(world.tokenizer, options, texts)

  _, demonstrations = write(options.num_demonstrations, 'demonstrations')
  _, pairs = write(options.num_pair_prompts, 'pairs')
  held_out_texts, held_out = write(options.num_eval_prompts, 'evaluation')
  return corpus_lib.Corpus(
      tokenizer=world.tokenizer,
      demonstrations=corpus_lib.single(demonstrations),
      pair_prompts=corpus_lib.as_prompts(pairs),
      eval_prompts=corpus_lib.as_prompts(held_out),
      eval_demonstrations=corpus_lib.single(held_out),
      max_response_length=options.max_response_length,
      world=world,
      eval_splits=tuple(reviews.split_of(
          [prompt for prompt, _ in held_out_texts])),
      summary={
          'demonstrations': options.num_demonstrations,
          'vocabulary': world.tokenizer.vocab_size,
          'unfinished_demonstrations': (demonstrations.truncated_responses
                                        / options.num_demonstrations),
      })


def check(node: Mapping[str, Any]):
  """Raises at once what `from_reviews` would raise later.

  Args:
    node: {name, **fields}, see `load`.

  Raises:
    TypeError, ValueError: a field is unknown, missing or out of range.
  """
  options = options_lib.bind(Options, node, others='world')
  reviews.Reviews(**dict(options.world))
