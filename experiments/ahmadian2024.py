"""Ahmadian et al. 2024: what the configs of its figures share.

Every method is a row of the algorithm table, against one reward model.
Figures that show one policy describe it by the same run, so that with --reuse
it is trained once. https://arxiv.org/abs/2402.14740
"""

from ml_collections import config_dict

from experiments import replication
from rlhf_jax.configs import base
from rlhf_jax.configs import published

# The text has no batch size, learning rate, number of steps or default KL
# coefficient (its appendix C is absent): .1 is where its figure 5 begins.
PAPER = 'Ahmadian et al. 2024'
KL_COEF = 0.1
RESPONSES = dict(smoke=4, laptop=64, full=256)  # of a rollout
COLUMNS = ('proxy', 'gold', 'rule', 'kl_k1', 'unfinished', 'length')
TITLES = dict(ppo='PPO', vanilla_pg='Vanilla PG', reinforce='REINFORCE',
              rloo='RLOO', raft='RAFT')


def _settings(config: config_dict.ConfigDict, seeds: int = 3):
  """How long, how fast and with which seeds every policy is trained."""
  online = config.online
  if config.size == 'laptop':
    config.seeds = replication.SEEDS[seeds]
    online.num_steps = 80
    online.evaluation.every = 8
    online.optimizer.learning_rate = 2e-3
  elif config.size == 'full':
    published.use(config, policy='EleutherAI/pythia-6.9b',
                  proxy='EleutherAI/pythia-6.9b')
    config.seeds = (1, 2, 3)
    online.num_steps = 1_000
    online.rollout.chunk_size = 32
    online.updates.num_microbatches = 4
    online.optimizer.learning_rate = 1e-6
    online.evaluation.update(every=50, num_prompts=1_000, chunk_size=32)
  config.training.log_every = 1


def online(size: str, title: str, seeds: int = 3) -> config_dict.ConfigDict:
  """A study without runs and figure: one reward model, no label noise.

  Args:
    size: smoke, laptop or full.
    title: of the figure.
    seeds: how many the laptop size has, of `replication.NUMBERS`.
  """
  config = base.online_config(size)
  config.title = f'{PAPER}, {title}'
  config.conditions.clean = dict(num_members=1)
  config.online.kl.coef = KL_COEF
  config.online.reward.clip = None
  _settings(config, seeds)
  return config


def with_pairs(size: str, title: str) -> config_dict.ConfigDict:
  """As `online`, beside runs that learn from the pairs of the reward model.

  These see each pair five times, as the reward model does.
  """
  config = base.offline_config(size)
  config.title = f'{PAPER}, {title}'
  config.logs.pairs = dict(
      source='pairs', components=dict(reward=dict(kind='proxy')))
  config.online.kl.coef = KL_COEF
  config.online.reward.clip = None
  _settings(config)
  offline = config.offline
  if size != 'smoke':
    offline.batch_size = config.proxy.batch_size
    pairs = config.data.num_pair_prompts - config.log.num_validation
    offline.num_steps = config.proxy.num_epochs * pairs // offline.batch_size
    offline.evaluation.update(
        every=offline.num_steps // 10,
        num_prompts=config.online.evaluation.num_prompts)
  if size == 'laptop':
    offline.optimizer.learning_rate = 3e-4
  return config


def add(config: config_dict.ConfigDict, name: str, algorithm: str, *,
        samples: int = 1, prompts: int | None = None, labels: dict,
        **changes):
  """Adds a run.

  PPO makes 4 epochs on a rollout, the others, which are on-policy, 1.

  Args:
    config: of `online`.
    name: of the run.
    algorithm: a key of `TITLES`.
    samples: k, the responses of a prompt.
    prompts: of a rollout; None: as many as make `RESPONSES`.
    labels: of the run.
    **changes: of `config.online`.
  """
  prompts = prompts or RESPONSES[config.size] // samples
  config.runs[name] = dict(
      algorithm=algorithm, labels=labels,
      rollout=dict(batch_size=prompts, samples=samples),
      updates=dict(num_epochs=4 if algorithm == 'ppo' else 1)) | changes


def add_method(config: config_dict.ConfigDict, algorithm: str,
               samples: int = 1, *, prompts: int | None = None):
  """Adds an algorithm as it is, under its title; see `add`."""
  name, title = algorithm, TITLES[algorithm]
  if samples > 1:
    name, title = f'{name}_{samples}', f'{title}, k={samples}'
  if prompts not in (None, RESPONSES[config.size] // samples):
    name = f'{name}_prompts_{prompts}'
  add(config, name, algorithm, samples=samples, prompts=prompts,
      labels=dict(method=title))


def add_all(config: config_dict.ConfigDict):
  """Adds every online method of figure 2 and the tables."""
  for algorithm, samples in (
      ('ppo', 1), ('vanilla_pg', 1), ('reinforce', 1), ('rloo', 2),
      ('rloo', 4), ('raft', 2), ('raft', 4)):
    add_method(config, algorithm, samples)


def add_k_sweep(config: config_dict.ConfigDict):
  """Adds RLOO and RAFT, k = 2 and 4, on as many prompts: figures 3 and 4.

  So k = 4 draws twice as many responses in a rollout as k = 2, which is what
  tells the two figures apart. The title says how many, for elsewhere k = 4 has
  fewer.
  """
  prompts = RESPONSES[config.size] // 2
  config.title += f', {prompts} prompts a rollout'
  for algorithm in ('rloo', 'raft'):
    for samples in (2, 4):
      add_method(config, algorithm, samples, prompts=prompts)
