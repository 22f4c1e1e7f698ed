"""A corpus that the grammar of the small world writes."""



from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import reviews


def from_reviews(
    *,
    seed: int,
    num_demonstrations: int,
    num_pair_prompts: int,
    num_eval_prompts: int,
    max_response_length: int,
    max_prompt_length: int = reviews.PROMPT_LENGTH,
    **world,
) -> corpus_lib.Corpus:
  """Writes the corpus of one seed from the grammar.

  Args:
    seed: of the texts; the vocabulary and the rule do not depend on it.
    num_demonstrations: reviews for SFT.
    num_pair_prompts: prompts for preference pairs.
    num_eval_prompts: prompts for best-of-n.
    max_response_length: tokens, EOS included.
    max_prompt_length: tokens, BOS included.
    **world: of `reviews.Reviews`.
  """
  world = reviews.Reviews(**world)

  def write(count, part):
    prompts, texts = world.write(count, seed * 10 + part)
    return world.tokenizer.encode_rows(
        prompts, texts, max_prompt_length=max_prompt_length,
        max_response_length=max_response_length), prompts

  demonstrations, _ = write(num_demonstrations, 0)
  held_out, prompts = write(num_eval_prompts, 2)
  return corpus_lib.Corpus(
      tokenizer=world.tokenizer,
      demonstrations=corpus_lib.single(demonstrations),
      pair_prompts=corpus_lib.as_prompts(write(num_pair_prompts, 1)[0]),
      eval_prompts=corpus_lib.as_prompts(held_out),
      eval_demonstrations=corpus_lib.single(held_out),
      max_response_length=max_response_length,
      world=world,
      eval_splits=tuple(reviews.split_of(prompts)),
      summary={
          'demonstrations': num_demonstrations,
          'vocabulary': world.tokenizer.vocab_size,
          'unfinished_demonstrations':
              demonstrations.truncated_responses / num_demonstrations,
      })
