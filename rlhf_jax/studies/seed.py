"""The stages of one seed, each added when something asks for it.

  sft ---------+--> gold --> pairs --> proxies
  trunk (SFT) -+                          ^
       +----------------------------------+
"""

from collections.abc import Mapping, Sequence
import functools
from types import ModuleType
from typing import Any

from rlhf_jax import errors
from rlhf_jax.models import pretrained
from rlhf_jax.runner import run as run_lib
from rlhf_jax.stages import features as features_stage
from rlhf_jax.stages import feedback
from rlhf_jax.stages import gold as gold_stage
from rlhf_jax.stages import loaded_rewards
from rlhf_jax.stages import pairs as pairs_stage
from rlhf_jax.stages import preferences
from rlhf_jax.stages import proxies as proxies_stage
from rlhf_jax.stages import rule
from rlhf_jax.stages import sft
from rlhf_jax.studies import labels


class Seed:
  """The stages of one seed, in an order in which each finds what it needs.

  Attributes:
    seed: its number.
    name: the first part of every stage's name.
    stages: so far.
    texts: what every stage is told that reads the corpus.
  """

  def __init__(self, config: dict, data: dict, seed: int):
    """Adds nothing yet.

    Args:
      config: of the study.
      data: of `nodes.data_config`.
      seed: its number.
    """
    self.seed, self.name, self.stages = seed, f'seed_{seed}', []
    self.texts = {'seed': seed, 'data': data}
    self._config, self._trunks, self._features = config, [], []
    self._training = {'training': config['training']}

  def add(self, name: str, stage: ModuleType, upstream: Mapping[str, Any],
          **kwargs) -> str:
    """Adds one stage and returns its whole name.

    Args:
      name: below that of the seed.
      stage: module of `stages`.
      upstream: stages by role; those that it does not read are left out, so
        that what it is made from says no more than it reads.
      **kwargs: of its `run`.

    Raises:
      ConfigError: a role that it needs is not there.
    """
    for role in stage.NEEDS:
      if not upstream.get(role):
        raise errors.ConfigError(
            f'stage {name} needs {role!r}, which this study does not make; '
            'name a condition, a log or data that give it')
    roles = {role: upstream[role] for role in (*stage.NEEDS, *stage.READS)
             if upstream.get(role)}
    name = f'{self.name}/{name}'
    self.stages.append(run_lib.Stage(
        name, functools.partial(stage.run, upstream=roles, **kwargs)))
    return name

  @functools.cached_property
  def reference(self) -> str:
    """The stage of the initial policy."""
    return self.add('sft', sft, {}, **self.texts, part='policy',
                    node=self._config['policy'], **self._training)

  @functools.cached_property
  def gold(self) -> str:
    """The stage of the gold model, or of the rule in its place."""
    if self._config['gold']['kind'] == 'rule':
      return self.add('gold', rule, {'reference': self.reference},
                      **self.texts)
    return self.add('gold', gold_stage, {'reference': self.reference},
                    **self.texts, node=self._config['gold'],
                    sampler=self._config['sampler'], **self._training)

  def add_trunks(self, proxy: Mapping[str, Any], prefix: str = ''
                 ) -> list[str]:
    """SFT trunks of reward models: one shared, or one for each member.

    Those that an earlier ensemble of the seed has started from are shared. Of
    reward models that are a part of a loaded one it is the reference, whose
    tokens they read.

    Args:
      proxy: node of the ensemble.
      prefix: of the names of new stages.
    """
    if pretrained.is_partial(proxy['model']):
      return [self.reference]
    parts = ['trunk'] if proxy['trunk'] == 'shared' else [
        f'trunk_{m}' for m in range(proxy['num_members'])]
    made_of = (parts, proxy['model'], proxy['sft'])
    for other, stages in self._trunks:
      if other == made_of:
        return stages
    usual = made_of[1:] == (
        self._config['proxy']['model'], self._config['proxy']['sft'])
    prefix = '' if usual and proxy['trunk'] == 'shared' else prefix
    stages = [self.add(
        f'{prefix}{part}', sft, {}, **self.texts, part=part, node=dict(
            proxy['sft'], model=proxy['model']), **self._training)
              for part in parts]
    self._trunks.append((made_of, stages))
    return stages

  def add_pairs(self, name: str = 'pairs', *, force_eos: bool,
                policy: str | None = None, **part) -> str:
    """Pairs of a policy, the reference if none is named, with gold scores."""
    upstream = {
        'reference': self.reference, 'gold': self.gold, 'policy': policy}
    return self.add(name, pairs_stage, upstream, **self.texts,
                    force_eos=force_eos, sampler=self._config['sampler'],
                    **part)

  def add_feedback(self) -> str:
    """Pairs of samples that a judge labels."""
    return self.add('feedback', feedback, {'reference': self.reference},
                    **self.texts, force_eos=self._config['force_eos'],
                    sampler=self._config['sampler'],
                    judge=self._config['feedback'])

  def add_preferences(self) -> str:
    """The pairs of the data, as its people or a judge have labelled them."""
    return self.add('preferences', preferences, {}, **self.texts)

  def cast(self, conditions: Mapping[str, Mapping], *, reads_gold: bool,
           reads_pairs: bool) -> tuple[dict[str, str], dict[str, str]]:
    """The roles that all runs of a seed share, and its reward models.

    Args:
      conditions: of `nodes.conditions`, those that are used.
      reads_gold: whether there is a gold model.
      reads_pairs: whether there are pairs of samples, which it labels, or the
        judge does.

    Returns:
      Stages by role, and the stage of reward models of each condition.
    """
    roles, labelled = {'reference': self.reference}, None
    if reads_pairs:
      labelled = roles['pairs'] = (
          self.add_feedback() if self._config['pairs'] == 'judge' else
          self.add_pairs(force_eos=self._config['force_eos']))
    if reads_gold:
      roles['gold'] = self.gold
    if labels.learns_from(self._config, conditions, 'preferences'):
      labelled = self.add_preferences()
    return roles, self.add_conditions(conditions, labelled)

  def add_proxies(self, name: str, proxy: Mapping[str, Any], *,
                  pairs: str | Sequence[str], label_noise: float,
                  prefix: str = '') -> str:
    """An ensemble, of a config's `proxy` node."""
    node = {k: v for k, v in proxy.items()
            if k not in ('sft', 'trunk', 'validate', 'label_noise', 'path')}
    stages = [pairs] if isinstance(pairs, str) else pairs
    features = [self.add_features('pairs', stage, proxy) for stage in stages]
    return self.add(
        name, proxies_stage,
        {'pairs': pairs, 'trunks': self.add_trunks(proxy, prefix),
         'features': [x for x in features if x]},
        seed=self.seed, node=node, label_noise=label_noise,
        validate=proxy['validate'], **self._training)

  def add_features(self, role: str, stage: str, proxy: Mapping[str, Any]
                   ) -> str | None:
    """What the trunk of an ensemble says of responses, if it is frozen.

    Args:
      role: of the stage, 'pairs' or 'samples'.
      stage: that holds them.
      proxy: node of the ensemble.
    """
    if not pretrained.is_frozen(proxy['model']):
      return None
    others = [name for of, model, name in self._features if of == stage
              and model == proxy['model']]
    if others:
      return others[0]
    number = sum(of == stage for of, *_ in self._features)
    name = self.add(
        f'{stage.removeprefix(f"{self.name}/")}_features' + (
            f'_{number}' if number else ''), features_stage,
        {'reference': self.reference, role: stage}, model=proxy['model'])
    self._features.append((stage, proxy['model'], name))
    return name

  def add_conditions(self, conditions: Mapping[str, Mapping],
                     pairs: str | None) -> dict[str, str]:
    """The reward models of each condition of `nodes.conditions`.

    Args:
      conditions: those that are used.
      pairs: what they learn from; None where all of them are loaded.
    """
    stages = {}
    for name, node in conditions.items():
      if node['path'] is not None:
        stages[name] = self.add(
            f'{name}/proxies', loaded_rewards, {'reference': self.reference},
            rewards=node['path'])
        continue
      stages[name] = self.add_proxies(
          f'{name}/proxies', node, pairs=pairs, prefix=f'{name}/',
          label_noise=node['label_noise'])
    return stages
