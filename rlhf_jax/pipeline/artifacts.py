"""What stages leave to each other: models, and the world that they read.

The directory of a stage that trains a model says in `model.json` what it
holds, so that whoever reads it needs no more than its name. A stage is told
`upstream`, the names of the stages that it reads, by role:

  reference  the initial policy, of an SFT stage
  policy     the policy that goes on, or answers; the reference if absent
  trunks     SFT policies that reward models start from, a list; of those of
             which only a part is trained the reference, for its tokens alone
  gold       the gold reward model
  pairs      two responses to each prompt with their gold scores; of a list,
             all pairs in this order
  proxies    an ensemble of reward models
  samples    many responses to each evaluation prompt
  features   what a trunk that nobody trains says of pairs, or of samples
  scores     what an ensemble thinks of these
  log        logged responses with their rewards
  values     what the reference's own responses to each logged prompt are worth

A role that is absent is absent: without a gold model, nothing has a gold
score. What a stage must be given is said by its `NEEDS`, what it may be given
besides by its `READS`.
"""

from collections.abc import Callable, Mapping
import functools
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from rlhf_jax import errors
from rlhf_jax import types
from rlhf_jax.data import coders
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import load as load_lib
from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.models import pretrained
from rlhf_jax.models import transformer
from rlhf_jax.parallel import sharding
from rlhf_jax.pipeline import bases
from rlhf_jax.pipeline import reward_parts
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.rewards import rule as rule_lib
from rlhf_jax.rewards import scale as scale_lib
from rlhf_jax.storage import checkpoint
from rlhf_jax.storage import files

ROLES = ('reference', 'policy', 'trunks', 'gold', 'pairs', 'proxies',
         'samples', 'features', 'scores', 'log', 'values')
Scorer = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (tokens, mask)


class Policy(NamedTuple):
  """A decoder, adapters merged."""

  config: transformer.Config
  params: types.Params


class Log(NamedTuple):
  """What a stage `logged` has left: N examples of K responses."""

  arrays: dict[str, np.ndarray]  # see `stages.logged`
  groups: list[str]
  source: str
  num_training: int  # examples; those for validation come after them

  def training(self) -> dict[str, np.ndarray]:
    """The arrays of the examples that policies learn from."""
    return {name: x[:self.num_training] for name, x in self.arrays.items()}


def write_model(context: Any, kind: str, model: dict,
                coder: tokenizer_lib.Tokenizer, *,
                texts: Mapping[str, Any] | None,
                num_members: int | None = None):
  """Says in `model.json` what the checkpoint of a stage holds.

  Args:
    context: of the stage; `tokenizer.json` is written too.
    kind: 'policy' or 'reward'.
    model: its config node.
    coder: its tokenizer.
    texts: how what it reads is written, of `texts_of`; None: not known.
    num_members: of an ensemble; None: one model without a member axis.
  """
  coder.save(context.directory / 'tokenizer.json')
  files.write_json(context.directory / 'model.json', {
      'kind': kind, 'model': model, 'vocab_size': coder.vocab_size,
      'num_members': num_members, 'texts': texts, 'stop': list(coder.stop),
      'base': bases.digest(model),
      'tokenizer': dict(
          coder.roles, control=list(coder.control), adds_bos=coder.adds_bos,
          chat_template=coder.chat_template,
          eos=[coder.roles['eos'], *coder.ends])})


def texts_of(corpus: corpus_lib.Corpus) -> dict[str, Any]:
  """How the texts of a corpus are written, for whoever uses a model later.

  The name of the prompts' `format` ('' in the small world, whose texts are as
  they are), and the most tokens of prompts and of responses.
  """
  return {'format': corpus.format or '',
          'max_prompt_length': corpus.eval_prompts.tokens.shape[1],
          'max_response_length': corpus.max_response_length}


def read_model(directory: pathlib.Path, kind: str | None = None
               ) -> dict[str, Any]:
  """What `write_model` wrote.

  Raises:
    CheckpointError: the stage holds no model, or one of another kind.
  """
  path = directory / 'model.json'
  if not path.exists():
    raise errors.CheckpointError(
        f'{directory} holds no trained model; name a stage that trains one')
  model = files.read_object(path, 'kind', 'model', 'vocab_size', 'num_members',
                            'texts', 'tokenizer')
  if kind is not None and model['kind'] != kind:
    raise errors.CheckpointError(
        f'{directory} holds a {model["kind"]} model where a {kind} model is '
        'needed; name another stage')
  return model


def read_tokenizer(directory: pathlib.Path) -> tokenizer_lib.Tokenizer:
  """The tokenizer of the model that a stage has trained, with its stops."""
  return coders.of_model(directory, read_model(directory))


def restore_policy(directory: pathlib.Path) -> Policy:
  """The decoder that a stage has trained, adapters merged."""
  model = read_model(directory, 'policy')
  node, vocab_size = model['model'], model['vocab_size']
  if pretrained.source(node) is not None:
    return Policy(pretrained.config(node, vocab_size),
                  pretrained.finish(restore_parts(directory)))
  config = pretrained.config(node, vocab_size)
  return Policy(config, checkpoint.restore_params(
      directory / 'checkpoints', sharding.abstract(
          transformer.abstract(config))))


def restore_parts(directory: pathlib.Path, *,
                  base: types.Params | None = None) -> pretrained.Model:
  """The same in its two parts, the one trained by the stage apart.

  Args:
    directory: of the stage.
    base: what lies under the trained part, where it is loaded already.
  """
  model = read_model(directory, 'policy')
  node, vocab_size = model['model'], model['vocab_size']
  if pretrained.source(node) is None:
    return pretrained.Model(*restore_policy(directory), base=None)
  if base is None:
    bases.check(directory, model)
  parts = pretrained.abstract(node, vocab_size)
  if base is None and parts.base is not None:
    base = transformer.frozen(parts.config, pretrained.init(
        node, vocab_size, jax.random.key(0)).base)
  return parts._replace(base=base, trainable=checkpoint.restore_params(
      directory / 'checkpoints', sharding.abstract(parts.trainable)))


def restore_rewards(directory: pathlib.Path, *, with_base: bool = True
                    ) -> reward_models.RewardModels:
  """The reward models of a stage, see `reward_parts.restore`."""
  model = read_model(directory, 'reward')
  if with_base:
    bases.check(directory, model)
  return reward_parts.restore(
      directory, model['model'], model['vocab_size'], model['num_members'],
      with_base=with_base)


class World:
  """What a stage reads of others, each loaded when it is first asked for.

  Attributes:
    context: of the stage.
    upstream: stages by role, those alone that there are.
  """

  def __init__(self, context: Any, data: dict, seed: int,
               upstream: Mapping[str, Any]):
    """Loads nothing yet.

    Args:
      context: of the stage.
      data: config node of the corpus.
      seed: of the study.
      upstream: stages by role; None is as good as absent.
    """
    self.context = context
    self.upstream = {role: x for role, x in upstream.items() if x is not None}
    self._data, self._seed = data, seed
    self._bases = {}

  def directory(self, role: str) -> pathlib.Path:
    """Of the stage that has a role; CheckpointError if it is not complete."""
    return self.context.directory_of(self.upstream[role])

  def result(self, role: str) -> dict:
    """Its result; CheckpointError if it is not complete."""
    return self.context.result_of(self.upstream[role])

  @functools.cached_property
  def corpus(self) -> corpus_lib.Corpus:
    """The corpus that the reference was trained on.

    Raises:
      CheckpointError: it comes out differently now, because a library that
        writes or encodes it has changed.
    """
    corpus = load_lib.load(self._data, self._seed)
    if self.result('reference')['corpus'] != corpus.fingerprint():
      raise errors.CheckpointError(
          'the corpus is not the one that '
          f'{self.upstream["reference"]} was trained on; go back to the '
          'versions of tokenizers, vaderSentiment and numpy it was made with, '
          'or choose another --workdir')
    return corpus

  @functools.cached_property
  def reference(self) -> Policy:
    """The initial policy, frozen; adapters lie beside the base of `start`."""
    return self._frozen('reference')

  @functools.cached_property
  def policy(self) -> Policy:
    """The policy that goes on, or answers: the reference unless told so."""
    if 'policy' not in self.upstream:
      return self.reference
    return self._frozen('policy')

  def unfrozen(self, role: str) -> Policy | reward_models.RewardModels:
    """The reference, adapters merged, or the proxies, to be trained further.

    New arrays at each call, in float32.
    """
    restore = restore_rewards if role == 'proxies' else restore_policy
    return restore(self.directory(role))

  def start(self) -> pretrained.Model:
    """The same in its parts, to be trained: new arrays but for the base."""
    return self._parts('policy' if 'policy' in self.upstream else 'reference')

  def _frozen(self, role: str) -> Policy:
    config, trainable, base = self._parts(role)
    return Policy(config, types.with_base(
        base, transformer.frozen(config, trainable)))

  def _parts(self, role: str) -> pretrained.Model:
    """Of a policy; those of one model share their frozen base."""
    directory = self.directory(role)
    node = files.digest(read_model(directory)['model'])
    parts = restore_parts(directory, base=self._bases.get(node))
    self._bases[node] = parts.base
    return parts

  @property
  def node(self) -> dict[str, Any]:
    """The config node of its model."""
    role = 'policy' if 'policy' in self.upstream else 'reference'
    return read_model(self.directory(role))['model']

  @functools.cached_property
  def proxies(self) -> reward_models.RewardModels | None:
    """The ensemble, with the scale of its members on held-out responses."""
    if 'proxies' not in self.upstream:
      return None
    return restore_rewards(self.directory('proxies')).frozen()

  @functools.cached_property
  def _gold(self) -> reward_models.RewardModels | rule_lib.Rule:
    if 'rule' in self.result('gold'):
      return rule_lib.Rule(self.corpus.world.rule)
    return restore_rewards(self.directory('gold')).frozen()

  @functools.cached_property
  def gold(self) -> reward_models.RewardModels | rule_lib.Rule | None:
    """The gold model or rule, in the unit of the reference's samples.

    In deviations from their mean: of `pairs`, of the first where there are
    several; as it is where there are none.
    """
    if 'gold' not in self.upstream:
      return None
    if 'pairs' not in self.upstream:
      return self._gold
    pairs = self.result('pairs')
    if 'gold_mean' not in pairs:  # a judge has labelled them
      return self._gold
    return self._gold._replace(
        scale=scale_lib.single(pairs['gold_mean'], pairs['gold_std']))

  @functools.cached_property
  def column(self) -> tuple[str, reward_models.RewardModels] | None:
    """The column of the log that the gold model has learned, in its units."""
    learned = self.result('gold') if 'gold' in self.upstream else {}
    if 'target_mean' not in learned:
      return None
    unit = scale_lib.unit(learned['target_mean'], learned['target_std'])
    return self.corpus.log_target, self._gold._replace(scale=unit)

  def gold_scorer(self) -> Scorer | None:
    """(tokens, mask) -> f[N] in the unit of `gold`; None without the unit."""
    if self.gold is None or self.gold.scale is None:
      return None
    return lambda tokens, mask: self.gold.scores(tokens, mask)[0]

  def rule_unit(self) -> tuple[float, float] | None:
    """Mean and deviation of the rule over the reference's samples.

    None without a rule, as everywhere but in the small world, or without
    `pairs`.
    """
    world = self.corpus.world
    if world is None or 'pairs' not in self.upstream:
      return None
    arrays = files.load_arrays(self.directory('pairs') / 'pairs.npz')
    samples = world.rule(arrays['tokens'], arrays['mask'])
    return float(samples.mean()), float(samples.std())

  def rule_scorer(self) -> Scorer | None:
    """(tokens, mask) -> f64[N] of the rule, in `rule_unit`."""
    unit = self.rule_unit()
    if unit is None:
      return None
    return lambda tokens, mask: (self.corpus.world.rule(
        tokens, mask).astype(np.float64) - unit[0]) / unit[1]

  @functools.cached_property
  def log(self) -> Log:
    """The logged responses."""
    result = self.result('log')
    arrays = files.load_arrays(self.directory('log') / 'logged.npz')
    return Log(arrays, result['groups'], result['source'],
               len(arrays['tokens']) - result['num_validation'])

  def values(self) -> np.ndarray:
    """f32[N]: what each logged prompt is worth to the reference."""
    return files.load_arrays(self.directory('values') / 'values.npz')['values']
