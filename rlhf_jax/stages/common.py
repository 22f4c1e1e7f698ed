"""What stages share: training that resumes, and what others have trained."""

from collections.abc import Callable, Sequence
import contextlib
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np

from rlhf_jax import checkpoint
from rlhf_jax import errors
from rlhf_jax import files
from rlhf_jax import metrics
from rlhf_jax import rewards
from rlhf_jax import sampling
from rlhf_jax import sharding
from rlhf_jax import sources
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.models import pretrained
from rlhf_jax.models import transformer


class _Log:
  """The metrics of a training; of policies also updates and evaluations."""

  def __init__(self, directory: pathlib.Path, evaluate: Callable | None):
    self._directory = directory
    self._evaluate = evaluate
    self._stack = contextlib.ExitStack()
    self._writers = {}
    self._open('metrics')
    if evaluate is not None:
      self._open('evaluation')
      if (directory / 'updates.jsonl').exists():  # of a training that goes on
        self._open('updates')

  def __enter__(self) -> '_Log':
    return self

  def __exit__(self, *unused_exc):
    self._stack.close()

  def _open(self, name: str) -> metrics.MetricsWriter:
    if name not in self._writers:
      self._writers[name] = self._stack.enter_context(
          metrics.MetricsWriter(self._directory / f'{name}.jsonl'))
    return self._writers[name]

  def truncate(self, step: int, evaluated: int | None = None):
    """Drops what comes after a step, or after an evaluated one."""
    for name, writer in self._writers.items():
      late = name == 'evaluation' and evaluated is not None
      writer.truncate(evaluated if late else step)

  def step(self, step: int, current: train.Metrics) -> dict[str, float]:
    """Writes and returns the means of a step's metrics, over its updates."""
    current = {k: np.asarray(v) for k, v in current.items()}
    means = {k: float(v.mean()) for k, v in current.items()}
    self._writers['metrics'].write(step, means)
    each = {k: v for k, v in current.items() if v.ndim}
    # A step on logged responses is one update, and its metrics are scalars.
    if self._evaluate is not None and each:
      for update in range(len(each['train/loss'])):
        self._open('updates').write(
            step, {'update': update} | {k: v[update] for k, v in each.items()})
    return means

  def check(self, steps: Sequence[int]):
    """Raises CheckpointError unless these steps have been evaluated."""
    writer = self._writers['evaluation']
    found = {json.loads(line)['step']
             for line in writer.path.read_text().splitlines()}
    missing = [step for step in steps if step not in found]
    if missing:
      raise errors.CheckpointError(
          f'{writer.path} lacks step {missing[0]}; delete '
          f'{writer.path.parent} to train again')

  def evaluation(self, step: int, state: types.TrainState):
    if self._evaluate is not None:
      self._writers['evaluation'].write(step, self._evaluate(step, state))


def fit(
    context: Any,
    state: types.TrainState,
    source: sources.Source,
    step_fn: Callable,
    *,
    num_steps: int,
    frozen: types.Frozen | None = None,
    base: types.Params | None = None,
    save_every: int = 200,
    log_every: int = 20,
    tokens_per_step: int = 0,
    evaluate: Callable[[int, types.TrainState], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    folder: str = 'checkpoints',
) -> tuple[types.TrainState, dict[str, float]]:
  """Runs a stage's training from where it was left, over all devices.

  Parameters are replicated and the prompts of a batch are split over a mesh
  of all devices; the step is the same on one. A rollout is left as its source
  has placed it.

  Checkpoints go to `directory/<folder>`, metrics to
  `directory/metrics.jsonl`, in which each logged step occurs once, and those
  of the several updates of a rollout, where a step has them, to
  `directory/updates.jsonl`. After `num_steps` the last checkpoint holds the
  result.

  Args:
    context: of the stage.
    state: at step 0; with a leading member axis for an ensemble.
    source: of batches.
    step_fn: jitted; may donate the state.
    num_steps: where to end.
    frozen: for the source.
    base: frozen parameters beside the trained ones, see `train.train`.
    save_every: steps between checkpoints.
    log_every: steps between lines of metrics.
    tokens_per_step: for the rate that is reported.
    evaluate: (steps taken, state) -> numbers, for a line of
      `directory/evaluation.jsonl`.
    evaluate_every: steps between evaluations; there is one before the first
      step and one after the last.
    folder: of the checkpoints.

  Returns:
    The final state, and the last metrics with 'seconds' and
    'tokens_per_second' of the whole training, interrupted or not.

  Raises:
    Interrupted: after saving, when asked to stop.
    NumericsError: see `train.train`.
    TopologyError: the batch size is no multiple of the number of devices.
  """
  def as_training(state):
    fields = {'opt_state': state.opt_state, 'key': state.key,
              'step': state.step, 'targets': state.targets,
              'statistics': state.statistics or None}
    return {k: v for k, v in fields.items() if v is not None}

  mesh = sharding.make_mesh()
  state, base, frozen = sharding.shard_params(
      (state, base, frozen or types.Frozen()), mesh)
  member_axes = state.step.ndim

  def spread(*args):
    found = source(*args)
    return found if isinstance(found, types.Rollout) else (
        sharding.shard_batch(found, mesh, axis=member_axes))

  last, before = {}, 0.0
  name = context.directory.name
  with (checkpoint.Checkpointer(context.directory / folder) as saver,
        _Log(context.directory, evaluate) as log):
    restored = saver.restore_latest(state.params, as_training(state))
    start = 0
    if restored:
      start, params, training, meta = restored
      last, before = meta['last'], meta['seconds']
      state = types.TrainState(params=params, **training)
      context.log(f'goes on at step {start} of {num_steps}')
    log.truncate(start if restored else -1)
    began = time.monotonic()
    if not restored:
      log.evaluation(0, state)
    elif evaluate is not None:
      log.check(range(0, start, evaluate_every))
      if start == num_steps:  # what else it wrote may have been lost
        log.truncate(start, start - 1)
        log.evaluation(start, state)
    with metrics.progress(num_steps, start, name) as bar:
      for step, new_state, current in train.train(
          state, frozen, spread, step_fn, start=start,
          num_steps=num_steps, base=base):
        state = new_state
        bar.update(1)
        stopping = context.stop.requested()
        if step % log_every == 0 or step == num_steps or stopping:
          last = log.step(step, current)
        if evaluate_every and (
            step % evaluate_every == 0 or step == num_steps):
          log.evaluation(step, state)
        if step % save_every == 0 or step == num_steps or stopping:
          spent = before + time.monotonic() - began
          saver.save(step, state.params, as_training(state),
                     {'last': last, 'seconds': spent})
          if step < num_steps:
            context.stop.check(f'step {step} of {name}')
    seconds = before + time.monotonic() - began
  return state, last | {
      'seconds': seconds,
      'tokens_per_second': tokens_per_step * num_steps / seconds}


def sample_rows(context: Any, corpus: corpus_lib.Corpus,
                config: transformer.Config, params: types.Params,
                key: jax.Array, *, num_prompts: int, num_samples: int,
                chunk_size: int, **sampler) -> tuple[np.ndarray, np.ndarray]:
  """Samples responses to the first pair prompts, and around again.

  Args:
    context: of the stage; asked before every chunk whether to stop.
    corpus: its `pair_prompts` are answered.
    config: shape of the policy.
    params: of the policy.
    key: of the samples.
    num_prompts: B.
    num_samples: K.
    chunk_size: prompts sampled at a time.
    **sampler: of `sampling.sample`.

  Returns:
    tokens i32[B, K, T] and mask bool[B, K, T].
  """
  prompts, parts = corpus.pair_prompts, []
  for start in range(0, num_prompts, chunk_size):
    context.stop.check(f'the start of {context.directory.name}')
    # The last chunk is filled up, so that it runs the same program.
    rows = np.arange(start, start + chunk_size)
    at = rows % len(prompts.tokens)
    batch = sampling.sample(
        config, params, prompts.tokens[at], prompts.lengths[at], key,
        num_samples=num_samples, max_new_tokens=corpus.max_response_length,
        eos_id=corpus.tokenizer.eos_id, pad_id=corpus.tokenizer.pad_id,
        num_tokens=corpus.tokenizer.vocab_size,
        row_ids=rows, **sampler)
    parts.append((np.asarray(batch.tokens), np.asarray(batch.mask)))
  tokens, mask = (np.concatenate(x)[:num_prompts] for x in zip(*parts))
  return tokens, mask


def finished(tokens: np.ndarray, mask: np.ndarray, eos_id: int) -> np.ndarray:
  """bool[...]: whether each response [..., T] ends in an EOS."""
  return (mask & (tokens == eos_id)).any(axis=-1)


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
  corpus = corpus_lib.load(data, seed)
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
  one = lambda: rewards.init(config, jax.random.key(0))
  many = lambda: jax.vmap(lambda key: rewards.init(config, key))(
      jax.random.split(jax.random.key(0), num_members))
  params = checkpoint.restore_params(
      directory / 'checkpoints',
      jax.eval_shape(one if num_members is None else many))
  if num_members is None:
    params = jax.tree.map(lambda x: x[None], params)
  return params
