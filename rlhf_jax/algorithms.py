"""The algorithms, one row each: data, annotators, objective.

A row holds what makes an algorithm what it is. A number in it is the paper's,
or stands for one that the paper leaves open; `Algorithm.replace` changes it.
The table of docs/guide/algorithms.md is printed from here.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from flax.core import FrozenDict

from rlhf_jax import objectives

Node = Mapping[str, Any]  # {'name': ..., **kwargs}


def node(fields: Node) -> FrozenDict:
  """A node that can be shared and hashed: lists in it become tuples."""
  def frozen(value):
    if isinstance(value, Mapping):
      return FrozenDict({k: frozen(v) for k, v in value.items()})
    return tuple(map(frozen, value)) if isinstance(
        value, list | tuple) else value
  return frozen(fields)


@dataclasses.dataclass(frozen=True)
class Algorithm:
  """How one algorithm is put together; see `ALGORITHMS`.

  Attributes:
    title: as the papers call it.
    source: what a batch is made of: 'demonstrations', 'preferences' (chosen
      first), 'rankings' (best first), 'choices', 'targets', 'prompts' (the
      policy samples), 'logged' (responses with scores) or 'unpaired' (liked
      or disliked, beside those to other prompts).
    samples: K, the responses of a prompt: so many, or at least so many.
    annotators: what fills the batch, in order.
    objective: the loss and its arguments; None where nothing is trained.
    unit: what a loss is counted by.
    more: whether K may be more than `samples`.
  """

  title: str
  source: str
  samples: int
  annotators: tuple[Node, ...]
  objective: Node | None
  unit: str
  more: bool = False

  def takes(self, samples: int) -> bool:
    """Whether a prompt may have so many responses."""
    return samples == self.samples or (self.more and samples > self.samples)

  def adapt(self, arguments: Mapping[str, Node]) -> 'Algorithm':
    """A copy with a run's own arguments, as `replace` takes them.

    {'drop': True} takes an annotator out, as `without` does.

    Raises:
      ValueError: a node is unknown, or its arguments are not given by name.
    """
    for name, changes in arguments.items():
      if not isinstance(changes, Mapping):
        raise ValueError(f'arguments.{name} is {changes!r}; give arguments by '
                         'name.')
      if 'drop' in changes and (changes['drop'] is not True
                                or len(changes) > 1):
        raise ValueError(f'arguments.{name} is {dict(changes)}; a node that is '
                         "dropped has {'drop': True} and nothing else.")
    dropped = [name for name, changes in arguments.items()
               if 'drop' in changes]
    changed = {k: v for k, v in arguments.items() if k not in dropped}
    return self.replace(**changed).without(*dropped)

  def replace(self, **changes: Node) -> 'Algorithm':
    """A copy whose nodes have these arguments too, {name: {argument: value}}.

    Raises:
      ValueError: if the row has no node of that name, or it would be renamed.
    """
    nodes = [*self.annotators, *([self.objective] if self.objective else [])]
    for name, arguments in changes.items():
      if name not in (names := [old['name'] for old in nodes]):
        raise ValueError(f'{self.title} has no node {name!r}; it has '
                         f'{", ".join(names)}.')
      if 'name' in arguments:
        raise ValueError(f'a node keeps its name, got {arguments}.')
    nodes = [node({**old, **changes.get(old['name'], {})}) for old in nodes]
    count = len(self.annotators)
    return dataclasses.replace(
        self, annotators=tuple(nodes[:count]),
        objective=nodes[count] if self.objective else None)

  def without(self, *names: str) -> 'Algorithm':
    """A copy without these annotators.

    Raises:
      ValueError: if the row has no annotator of that name.
    """
    present = [old['name'] for old in self.annotators]
    for name in names:
      if name not in present:
        raise ValueError(f'{self.title} has no annotator {name!r}; it has '
                         f'{", ".join(present)}.')
    return dataclasses.replace(self, annotators=tuple(
        old for old in self.annotators if old['name'] not in names))

  def bind(self) -> Callable[..., Any]:
    """The objective with its arguments, (PolicyOutput, Batch) -> LossOutput.

    Raises:
      ValueError: if the algorithm trains nothing.
    """
    if self.objective is None:
      raise ValueError(f'{self.title} has no objective: it trains nothing.')
    return objectives.get(**self.objective)


def _node(name: str, **kwargs) -> Node:
  return node({'name': name, **kwargs})


SCORES, REFERENCE = _node('scores'), _node('ref_logprobs')
KL_SCORES = _node('kl_scores', kl_coef=.1)  # Ahmadian et al. 2024, 5.2.2
GROUP = _node('group_normalize')
CRITIC = (SCORES, REFERENCE, _node('old_values'))
# Zhu et al. 2023: no KL in the reward; their code whitens the advantages, and
# standardises logged scores over the data set.
WHITENED = (_node('old_values'), _node('kl_rewards', kl_coef=0.),
            _node('gae'), _node('whiten'))
LOGGED = _node('standardize_scores')
LEFTOVER = (REFERENCE, _node('prompt_values'), _node('prompt_advantages'),
            _node('keep_positive'))


def _token_level(gae_lambda: float) -> tuple[Node, ...]:
  return (*CRITIC, _node('kl_rewards', kl_coef=.1),
          _node('gae', gae_lambda=gae_lambda))


def _leftover(variant: str, **kwargs) -> Node:
  return _node('alol', variant=variant, **kwargs)


ALGORITHMS = {
    'sft': Algorithm(
        'SFT', 'demonstrations', 1, (), _node('sft'), 'token'),
    'reward_model': Algorithm(
        'reward model, ensemble', 'preferences', 2, (),
        _node('bradley_terry'), 'pair'),
    'step_rewards': Algorithm(
        'step rewards of Christiano et al.', 'preferences', 2, (),
        _node('bradley_terry', per_step=True), 'pair'),
    'choice': Algorithm(
        'reward model of Ziegler et al.', 'choices', 4, (),
        _node('ranking', kind='choice'), 'prompt'),
    'plackett_luce': Algorithm(
        'K-wise reward model', 'rankings', 2, (), _node('ranking'),
        'prompt', more=True),
    'preference_lm': Algorithm(
        'reward model of Askell et al.', 'preferences', 2, (),
        _node('preference_lm'), 'pair'),
    'gold_model': Algorithm(
        'gold model on a rule', 'targets', 1, (),
        _node('value_regression'), 'sequence'),
    'best_of_n': Algorithm(
        'best-of-n', 'prompts', 1, (SCORES,), None, '-', more=True),
    'raft': Algorithm(
        'RAFT', 'prompts', 1, (SCORES, REFERENCE, KL_SCORES,
                                 _node('keep_best')),
        _node('sft', aggregate='sequence'), 'sequence', more=True),
    'ppo': Algorithm(
        'PPO', 'prompts', 1, (*_token_level(.95), _node('whiten')),
        _node('ppo'), 'token'),
    'ppo_kl_penalty': Algorithm(
        'PPO, KL-penalty form', 'prompts', 1,
        (*_token_level(.95), _node('whiten')),
        _node('ppo', clip_ratio=None, kl_penalty_coef=1.), 'token'),
    # Ramamurthy et al. 2023: the paper takes .9 and 20 in most tasks.
    'nlpo': Algorithm(
        'NLPO', 'prompts', 1,
        (_node('nucleus', top_p=.9, every=20), *_token_level(.95),
         _node('whiten')), _node('ppo'), 'token'),
    'vanilla_pg': Algorithm(
        'Vanilla PG', 'prompts', 1, _token_level(1.),
        _node('ppo', ratio='none', value_clip=None), 'token'),
    'actor_critic': Algorithm(
        'actor-critic', 'prompts', 1, _token_level(0.),
        _node('ppo', ratio='none', value_clip=None), 'token'),
    'reinforce': Algorithm(
        'REINFORCE', 'prompts', 1,
        (SCORES, REFERENCE, KL_SCORES, _node('moving_average')),
        _node('reinforce'), 'sequence'),
    'rloo': Algorithm(
        'RLOO', 'prompts', 2,
        (SCORES, REFERENCE, KL_SCORES, _node('leave_one_out')),
        _node('reinforce'), 'sequence', more=True),
    'grpo': Algorithm(
        'GRPO', 'prompts', 1, (SCORES, REFERENCE, GROUP),
        _node('reinforce', ratio='token', clip_ratio=.2,
              aggregate='sequence_mean', kl_coef=.04), 'sequence', more=True),
    'dr_grpo': Algorithm(
        'Dr. GRPO', 'prompts', 1,
        (SCORES, _node('group_normalize', scale=False)),
        _node('reinforce', ratio='token', clip_ratio=.2,
              aggregate='constant', constant_length=3000), 'sequence',
        more=True),
    'dapo': Algorithm(
        'DAPO', 'prompts', 1, (SCORES, GROUP),
        _node('reinforce', ratio='token', clip_ratio=(.2, .28),
              aggregate='token'), 'token', more=True),
    'gspo': Algorithm(
        'GSPO', 'prompts', 1, (SCORES, GROUP),
        _node('reinforce', ratio='sequence_mean', clip_ratio=(3e-4, 4e-4)),
        'sequence', more=True),
    'online_dpo': Algorithm(
        'online DPO', 'prompts', 2, (SCORES, REFERENCE, _node('best_first')),
        _node('dpo', beta=.1), 'pair'),
    'apa': Algorithm(
        'APA', 'prompts', 1, (SCORES, REFERENCE, *WHITENED),
        _node('apa', beta=.1), 'token'),
    'apa_offline': Algorithm(
        'APA, offline', 'logged', 1, (LOGGED, REFERENCE, *WHITENED),
        _node('apa', beta=1.), 'token'),
    'awr': Algorithm(
        'AWR', 'prompts', 1, (SCORES, *WHITENED), _node('awr', beta=1.),
        'token'),
    'awr_offline': Algorithm(
        'AWR, offline', 'logged', 1, (LOGGED, *WHITENED),
        _node('awr', beta=1.), 'token'),
    'dpo': Algorithm(
        'DPO', 'preferences', 2, (REFERENCE,), _node('dpo', beta=.1),
        'pair'),
    'dpo_reference_free': Algorithm(
        'DPO, reference-free', 'preferences', 2, (),
        _node('dpo', beta=.1, reference_free=True), 'pair'),
    'dpo_robust': Algorithm(
        'DPO, robust', 'preferences', 2, (REFERENCE,),
        _node('dpo', beta=.1, label_smoothing=.1, robust=True), 'pair'),
    'ipo': Algorithm(
        'IPO', 'preferences', 2, (REFERENCE,),
        _node('dpo', kind='ipo', tau=.1), 'pair'),
    'simpo': Algorithm(
        'SimPO', 'preferences', 2, (), _node('simpo', beta=2., margin=1.),
        'pair'),
    # The paper takes .1 to .25, by model.
    'orpo': Algorithm(
        'ORPO', 'preferences', 2, (), _node('orpo', odds_coef=.1), 'pair'),
    'kto': Algorithm(
        'KTO', 'unpaired', 1, (REFERENCE, _node('reference_point')),
        _node('kto', beta=.1), 'sequence'),
    'pro': Algorithm(
        'PRO', 'rankings', 2, (SCORES,), _node('pro'), 'prompt', more=True),
    'ilql': Algorithm(
        'ILQL', 'logged', 1, (LOGGED, _node('kl_rewards', kl_coef=0.)),
        _node('ilql'), 'token'),
    'a_lol': Algorithm(
        'A-LOL', 'logged', 1, LEFTOVER, _leftover('a_lol'), 'sequence'),
    'a_lol_ref_free': Algorithm(
        'A-LOL, reference-free', 'logged', 1, LEFTOVER[1:],
        _leftover('ref_free'), 'sequence'),
    'a_lol_sequence': Algorithm(
        'A-LOL, sequence', 'logged', 1, LEFTOVER, _leftover('sequence'),
        'sequence'),
    'a_lol_kl': Algorithm(
        'A-LOL, KL', 'logged', 1, LEFTOVER,
        _leftover('kl', kl_coef=.05), 'sequence'),
    'r_lol': Algorithm(
        'R-LOL', 'logged', 1, (REFERENCE,), _leftover('r_lol'),
        'sequence'),
    'gold': Algorithm(
        'R-GOLD', 'logged', 1, (), _leftover('gold'), 'sequence'),
    'wbc': Algorithm(
        'wBC', 'logged', 1, (), _leftover('wbc'), 'sequence'),
}


def _text(node: Node) -> str:
  arguments = ', '.join(f'{k}={v!r}' for k, v in node.items() if k != 'name')
  return f'`{node["name"]}({arguments})`' if arguments else f'`{node["name"]}`'


def table() -> str:
  """`ALGORITHMS` as a Markdown table, the one of docs/guide/algorithms.md."""
  lines = ['| key | algorithm | data | K | annotators | objective | unit |',
           '|---|---|---|---|---|---|---|']
  for key, row in ALGORITHMS.items():
    steps = ', '.join(_text(node) for node in row.annotators) or '-'
    loss = _text(row.objective) if row.objective else 'none: `ops.best_of_n`'
    count = str(row.samples)
    if row.more:
      count = 'k' if row.samples == 1 else f'k >= {count}'
    lines.append(f'| `{key}` | {row.title} | {row.source} | {count} | '
                 f'{steps} | {loss} | {row.unit} |')
  return '\n'.join(lines)
