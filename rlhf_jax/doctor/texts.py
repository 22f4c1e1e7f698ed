"""Checks of tokens: special ones, templates, endings, lengths, pairs."""

from collections.abc import Iterable

import numpy as np

from rlhf_jax import types
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import load as load_lib
from rlhf_jax.data import screening
from rlhf_jax.doctor import findings
from rlhf_jax.ops import endings


def check(data: dict, seed: int) -> tuple[
    corpus_lib.Corpus, list[findings.Finding]]:
  """Encodes the data as a run would, and looks at all of its rows.

  Args:
    data: of `nodes.data_config`.
    seed: of the study.
  """
  corpus = load_lib.load(data, seed)
  results = list(_special(corpus))
  if load_lib.has_answers(data):
    results.append(_endings(corpus))
  results.append(_lengths(corpus))
  if corpus.preferences is not None:
    results.append(_pairs(corpus.preferences, corpus.summary.get(
        'identical_pairs', 0)))
  return corpus, results


def _special(corpus: corpus_lib.Corpus) -> Iterable[findings.Finding]:
  """Padding and EOS are tokens of their own, and BOS comes once."""
  coder, rows = corpus.tokenizer, corpus.demonstrations
  tokens = rows.tokens[:, 0]
  end = tokens.shape[1] - np.argmax(rows.mask[:, 0, ::-1], axis=1)
  inside = np.arange(tokens.shape[1]) < end[:, None]
  share = float((inside & (tokens == coder.pad_id)).any(axis=1).mean())
  same = coder.pad_id == coder.eos_id
  name = coder.roles['pad']
  yield findings.judge(
      'padding token', f'{name!r} (id {coder.pad_id}), inside {share:.0%} of '
      'the rows' + (', and it is the EOS' if same else ''),
      fail=share > 0 and not same, warn=same, remedy=(
          'rewards exported to transformers want another; name one that no '
          'text has by config.data.files.pad (or data.logged.pad)' if same else
          'text would be taken for padding by other programs; name a token '
          'that no text has by config.data.files.pad (or data.logged.pad)'))
  bos = coder.bos_id
  if bos is not None and bos not in (coder.eos_id, coder.pad_id):
    twice = float(((tokens == bos) & inside).sum(axis=1).max())
    yield findings.judge(
        'BOS', f'{coder.roles["bos"]!r}, at most {twice:.0f} times in a row',
        warn=twice > 1, remedy='the prompt format writes it too; choose a '
        'format without, or a tokenizer that adds none')


def _endings(corpus: corpus_lib.Corpus) -> findings.Finding:
  """Responses end with the EOS, inside the mask, unless they are cut."""
  coder, rows = corpus.tokenizer, corpus.demonstrations
  tokens, mask = rows.tokens[:, 0], rows.mask[:, 0]
  ended = endings.finished(tokens, mask, coder.eos_id)
  whole = mask.sum(axis=1) < corpus.max_response_length  # not cut
  lacking = float((whole & ~ended).mean())
  last = int(np.argmax(whole & ~ended)) if lacking else 0
  shown = coder.spell(tokens[last][mask[last]])[-40:]
  return findings.judge(
      'EOS', f'{1 - lacking:.0%} of the responses that fit end with '
      f'{coder.roles["eos"]!r}, such as {shown!r}', fail=lacking > 0,
      remedy='a policy would never learn to stop: the format or template '
      'drops the EOS; choose another data.files.format, or the EOS by '
      'data.files.eos (or those of data.logged)')


def _lengths(corpus: corpus_lib.Corpus) -> findings.Finding:
  """How many prompts and responses are cut."""
  cut = corpus.summary.get('cut_prompts', 0.0)
  unfinished = corpus.summary.get('unfinished_demonstrations', 0.0)
  return findings.judge(
      'lengths', f'{cut:.1%} of the prompts lose their front, {unfinished:.1%} '
      'of the responses their end', warn=max(cut, unfinished) > .05,
      fail=max(cut, unfinished) > .5, remedy='raise max_prompt_length or '
      'max_response_length, or choose shorter texts')


def _pairs(pairs: types.Batch, left_out: int) -> findings.Finding:
  """Pairs of which both sides are the same tokens teach nothing.

  Those too that have been left out because of it, see `screening`.
  """
  same = left_out + screening.same(pairs.tokens[:, 0], pairs.tokens[:, 1]).sum()
  total = left_out + len(pairs.tokens)
  share = same / total
  return findings.judge(
      'pairs', f'{same} of {total} are equal after truncation',
      warn=share > 0, fail=share > .1, remedy='their difference is cut off; '
      'raise max_response_length')
