"""The nouns of a study's data: prompts, logged responses, and the corpus.

Every source gives the same thing: demonstrations for SFT, prompts for
preference pairs, prompts held out for evaluation, and what the gold reward
model learns from: a rule, human preferences, or scores of a log.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from rlhf_jax import errors
from rlhf_jax import streams
from rlhf_jax import types
from rlhf_jax.data import long_tail
from rlhf_jax.data import reviews
from rlhf_jax.data import rows as rows_lib
from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.storage import files


@dataclasses.dataclass(frozen=True)
class Prompts:
  """Right-padded prompts."""

  tokens: np.ndarray  # i32[N, P]
  lengths: np.ndarray  # i32[N]


@dataclasses.dataclass(frozen=True)
class Log:
  """N prompts with up to K logged responses each, the best one first."""

  tokens: np.ndarray  # i32[N, K, T]
  mask: np.ndarray  # bool[N, K, T]; false throughout a missing response
  group: np.ndarray  # i32[N, K], index into `groups`; -1: missing
  groups: tuple[str, ...]  # such as 'chosen' and 'rejected'
  scores: dict[str, np.ndarray]  # f32[N, K] each, NaN where there is none
  references: tuple[str, ...] | None = None  # right answer of each prompt


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Everything a study reads; T = prompt length + response length."""

  tokenizer: tokenizer_lib.Tokenizer
  demonstrations: types.Batch  # [N, 1, T]
  pair_prompts: Prompts
  eval_prompts: Prompts
  max_response_length: int
  preferences: types.Batch | None = None  # [N, 2, T], chosen first
  pair_references: tuple[str, ...] | None = None  # answers of pair_prompts
  eval_demonstrations: types.Batch | None = None  # [N, 1, T], of eval_prompts
  eval_references: tuple[str, ...] | None = None  # answers of eval_prompts
  eval_splits: tuple[str, ...] | None = None  # a name for each eval prompt
  world: reviews.Reviews | long_tail.LongTail | None = None  # its rule
  log: Log | None = None  # of training prompts alone
  log_target: str | None = None  # score of the log that gold is fitted to
  format: str | None = None  # of the prompts, see `formats`; None: the world's
  summary: dict = dataclasses.field(default_factory=dict)

  def fingerprint(self) -> str:
    """SHA-256 of all tokens: the same texts, split and encoded alike.

    Without the held-out completions and right answers, which nothing is
    trained on.
    """
    arrays = (self.demonstrations.tokens, self.pair_prompts.tokens,
              self.eval_prompts.tokens)
    if self.preferences is not None:
      arrays += (self.preferences.tokens,)
    if self.log is not None:
      arrays += (self.log.tokens, self.log.mask, self.log.group,
                 *(self.log.scores[name] for name in sorted(self.log.scores)))
    return files.digest([files.array_digest(x) for x in arrays])

  def introduction(self) -> list[str]:
    """What a run says of its texts before it trains; nothing of the world's.
    """
    if self.format is None:
      return []
    return [f'prompts are written in the format {self.format!r}, such as '
            f'{self.example()}', *self.remarks()]

  def remarks(self) -> list[str]:
    """What a user should know of texts that were cut or left out, a line each.
    """
    of = self.summary.get
    lines = [
        (of('cut_prompts'), f'{of("cut_prompts", 0):.1%} of the prompts '
         f'are longer than {self.eval_prompts.tokens.shape[1]} tokens and lose '
         'their front (max_prompt_length, long_prompts)'),
        (of('unfinished_demonstrations'),
         f'{of("unfinished_demonstrations", 0):.1%} of the demonstrations '
         f'are longer than {self.max_response_length} tokens and end without '
         'EOS (max_response_length)'),
        (of('long_prompts'), f'{of("long_prompts")} prompts are left out '
         'because they are too long (long_prompts)'),
        (of('identical_pairs'), f'{of("identical_pairs")} pairs are left '
         'out because both sides are the same tokens (identical_pairs)'),
        (of('dropped_rows'), f'{of("dropped_rows")} bad or empty rows are '
         'left out (max_bad_rows)')]
    return [line for count, line in lines if count]

  def example(self) -> str:
    """The first demonstration as a model sees it, quoted on one line.

    Control tokens are spelled by their names, and line breaks as in Python.
    """
    tokens, mask = self.demonstrations.tokens[0, 0], (
        self.demonstrations.mask[0, 0])
    at = np.flatnonzero(mask)
    # An EOS alone stands for a response that is not there.
    end = at[0] if len(at) == 1 else at[-1] + 1
    return repr(self.tokenizer.spell(tokens[:end]))


def as_prompts(rows: rows_lib.EncodedRows) -> Prompts:
  """The prompts of encoded rows."""
  return Prompts(rows.prompts, rows.prompt_lengths)


def single(rows: rows_lib.EncodedRows) -> types.Batch:
  """Encoded rows as a batch of one sample per prompt, [N, 1, T]."""
  return types.Batch(tokens=rows.tokens[:, None], mask=rows.mask[:, None])


def check_prompts(num_prompts: int, num_eval_prompts: int, source: str):
  """Raises DataError unless a prompt is left when some are held out.

  Args:
    num_prompts: different prompts that there are.
    num_eval_prompts: prompts to be held out.
    source: of the prompts: a path, or the name of a task.
  """
  if num_prompts < num_eval_prompts + 1:
    raise errors.DataError(
        f'{source}: {num_prompts} usable prompts, but {num_eval_prompts} are '
        'to be held out for evaluation; lower config.data.num_eval_prompts or '
        'give more data')


def split_by_prompt(texts: list[tuple], seed: int, num_eval_prompts: int
                    ) -> tuple[list[tuple], list[tuple]]:
  """Training texts, and one text for each held-out prompt.

  By prompt, because a prompt may have several rows.

  Args:
    texts: tuples whose first entry is the prompt.
    seed: of the study, whose stream 'split' orders the texts.
    num_eval_prompts: prompts held out.
  """
  bits = np.random.Philox(streams.number(seed, 'split'))
  by_prompt = {}
  for i in np.random.Generator(bits).permutation(len(texts)):
    by_prompt.setdefault(texts[i][0], []).append(texts[i])
  groups = list(by_prompt.values())
  return ([text for group in groups[num_eval_prompts:] for text in group],
          [group[0] for group in groups[:num_eval_prompts]])


def repeated(num_prompts: int, size: int) -> np.ndarray:
  """Which of some prompts each of `size` pair prompts is, i64[size].

  All are asked equally often. Repeats are neighbours, so that pairs held out
  from the front share at most one prompt with the rest.
  """
  return np.sort(np.resize(np.arange(num_prompts), size))


def freeze(value: Any) -> Any:
  """A config's value that can be hashed: lists and nodes become tuples."""
  if isinstance(value, Mapping):
    return tuple(sorted((k, freeze(v)) for k, v in value.items()))
  if isinstance(value, list | tuple):
    return tuple(freeze(v) for v in value)
  return value
