"""What stages share: training that resumes, and what others have trained."""

import pathlib
from typing import Any

import jax

from rlhf_jax import errors
from rlhf_jax import types
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import load as load_lib
from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.models import pretrained
from rlhf_jax.models import transformer
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.storage import checkpoint
from rlhf_jax.storage import files


def score_scales(context: Any, corpus: corpus_lib.Corpus, pairs: str
                 ) -> tuple[tuple[float, float], tuple[float, float] | None]:
  """The zero and the unit in which policies are compared.

  Args:
    context: of the stage that asks.
    corpus: with the rule.
    pairs: stage whose responses are of the SFT policy.

  Returns:
    (mean, standard deviation) of the gold scores of those responses, and of
    the rule, None where there is none.
  """
  result = context.result_of(pairs)
  gold = result['gold_mean'], result['gold_std']
  if corpus.world is None:
    return gold, None
  arrays = files.load_arrays(context.directory_of(pairs) / 'pairs.npz')
  rule = corpus.world.rule(arrays['tokens'], arrays['mask'])
  return gold, (float(rule.mean()), float(rule.std()))


def load_corpus(context: Any, data: dict, seed: int,
                policy: str) -> corpus_lib.Corpus:
  """The corpus that the policy was trained on.

  Raises:
    CheckpointError: it comes out differently now, because a library that
      writes or encodes it has changed.
  """
  corpus = load_lib.load(data, seed)
  if context.result_of(policy)['corpus'] != corpus.fingerprint():
    raise errors.CheckpointError(
        f'the corpus is not the one that {policy} was trained on; go back to '
        'the versions of tokenizers, vaderSentiment and numpy it was made '
        'with, or choose another --workdir')
  return corpus


def write_model(context: Any, kind: str, model: dict,
                coder: tokenizer_lib.Tokenizer, *,
                num_members: int | None = None):
  """Says in `model.json` what the checkpoint of a stage holds, for `export`.

  Args:
    context: of the stage; `tokenizer.json` is written too.
    kind: 'policy' or 'reward'.
    model: its config node.
    coder: its tokenizer.
    num_members: of an ensemble.
  """
  coder.save(context.directory / 'tokenizer.json')
  files.write_json(context.directory / 'model.json', {
      'kind': kind, 'model': model, 'vocab_size': coder.vocab_size,
      'num_members': num_members, 'tokenizer': dict(
          coder.roles, control=list(coder.control), adds_bos=coder.adds_bos,
          chat_template=coder.chat_template)})


def load_policy(context: Any, stage: str, model: dict, vocab_size: int
                ) -> tuple[transformer.Config, types.Params]:
  """The decoder that an SFT stage has trained, adapters merged."""
  return restore_policy(context.directory_of(stage), model, vocab_size)


def restore_policy(directory: pathlib.Path, model: dict, vocab_size: int
                   ) -> tuple[transformer.Config, types.Params]:
  """As `load_policy`, from the directory of the stage."""
  config = pretrained.config(model, vocab_size)
  if pretrained.source(model) is None:
    return config, checkpoint.restore_params(
        directory / 'checkpoints', jax.eval_shape(
            lambda: transformer.init(config, jax.random.key(0))))
  return config, pretrained.finish(
      restore_trained(directory, model, vocab_size))


def restore_trained(directory: pathlib.Path, model: dict, vocab_size: int
                    ) -> pretrained.Model:
  """A loaded model in its two parts, the one trained by the stage."""
  made = pretrained.init(model, vocab_size, jax.random.key(0))
  return made._replace(trainable=checkpoint.restore_params(
      directory / 'checkpoints', jax.eval_shape(lambda: made.trainable)))


def load_members(context: Any, stage: str, config: transformer.Config,
                 num_members: int | None) -> types.Params:
  """The reward models of a stage, leaves [E, ...].

  Args:
    context: of the stage that asks.
    stage: that has trained them.
    config: shape of the trunk.
    num_members: E; None where the stage holds one model without the axis,
      which is then added.
  """
  return restore_members(context.directory_of(stage), config, num_members)


def save_policy(context: Any, step: int, params: types.Params):
  """Leaves what `load_policy` reads, of a stage that trains more than that.

  Args:
    context: of the stage; `checkpoints` is written, once.
    step: that the parameters are of.
    params: what the stage has trained; value and Q functions are left out.
  """
  if (context.directory / 'checkpoints' / str(step)).exists():
    return
  kept = {k: v for k, v in params.items()
          if k not in ('value_head', 'value_trunk', 'q_heads')}
  with checkpoint.Checkpointer(context.directory / 'checkpoints') as saver:
    saver.save(step, kept)


def restore_members(directory: pathlib.Path, config: transformer.Config,
                    num_members: int | None) -> types.Params:
  """As `load_members`, from the directory of the stage."""
  one = lambda: reward_models.init(config, jax.random.key(0))
  many = lambda: jax.vmap(lambda key: reward_models.init(config, key))(
      jax.random.split(jax.random.key(0), num_members))
  params = checkpoint.restore_params(
      directory / 'checkpoints',
      jax.eval_shape(one if num_members is None else many))
  if num_members is None:
    params = jax.tree.map(lambda x: x[None], params)
  return params
