"""What a user asks for in a few words, and what sizes fill in."""

import dataclasses

REWARD = 'reward'  # an algorithm: reward models, from pairs
RUN, CONDITION = 'policy', 'rewards'  # names in the workdir
# Components that need no further argument, by their kind.
COMPONENTS = ('vader', 'readability', 'exact_match')
# By size: steps, batch (fresh models, loaded ones), most held-out prompts,
# tokens of prompts and of responses.
SIZES = {
    'smoke': dict(steps=2, batch=(4, 2), held_out=4, prompt=96, response=16),
    'laptop': dict(steps=200, batch=(32, 8), held_out=64, prompt=128,
                   response=64),
    'full': dict(steps=1000, batch=(64, 64), held_out=256, prompt=512,
                 response=256)}
# Rules of thumb, for whoever names none: of fresh models, of loaded ones, of
# adapters on them.
_RATES = {'fresh': 1e-3, 'loaded': 1e-5, 'lora': 2e-4}
FIGURE = dict(kind='curves', line=('method',))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """What is trained, on what; see the flags of `commands.train`.

  None is what the size, the model and the data say.
  """

  algorithm: str  # a row of the table that trains a policy, or `REWARD`
  data: str  # file or directory
  model: str = 'scratch'  # 'scratch', 'smollm2', a directory or a file
  reward: str | None = None
  objective: str | None = None  # a user's own, in place of the row's
  reward_range: tuple[float, float] | None = None  # of a function
  on_bad_reward: str = 'error'  # of a function, or 'drop'
  preferences: str | None = None  # for reward models of an online run
  size: str = 'laptop'
  seed: int = 0
  steps: int | None = None
  sft_steps: int | None = None
  batch_size: int | None = None
  learning_rate: float | None = None
  samples: int | None = None  # responses to each prompt
  members: int | None = None  # reward models of an ensemble
  aggregate: str = 'mean'
  kl_coef: float | None = None
  lora: int = 0  # rank
  kind: str | None = None
  columns: tuple[tuple[str, str], ...] = ()
  split: str | None = None
  format: str | None = None
  allow_checkpoint_template: bool = False
  max_prompt_length: int | None = None
  max_response_length: int | None = None
  eval_prompts: int | None = None
  max_bad_rows: int = 0  # malformed rows that may be left out

  @property
  def is_fresh(self) -> bool:
    """Whether the model starts from nothing."""
    return self.model == 'scratch'


def usual_rate(task: Task) -> float:
  """The learning rate of a model like that of a task, by rule of thumb."""
  kind = 'fresh' if task.is_fresh else 'lora' if task.lora else 'loaded'
  return _RATES[kind]


def rate(task: Task) -> float:
  """The learning rate of a task itself; stages before it have the usual one."""
  return (usual_rate(task) if task.learning_rate is None
          else task.learning_rate)
