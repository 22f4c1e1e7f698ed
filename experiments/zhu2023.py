"""Zhu et al. 2023: what the configs of its figures share.

PPO, AWR and APA against one reward model, set as in the released code or as
in the text. Figures that show one policy describe it by the same run, so that
with --reuse it is trained once. https://arxiv.org/abs/2306.02231
"""

from ml_collections import config_dict

from experiments import replication
from rlhf_jax.configs import base
from rlhf_jax.configs import published

PAPER = 'Zhu et al. 2023'
SETTINGS = ('code', 'text')  # an option of every figure
COLUMNS = ('proxy', 'gold', 'rule', 'kl_k1', 'unfinished', 'length')


def _settings(config: config_dict.ConfigDict, settings: str, seeds: int):
  """How long, how fast and with which seeds every policy is trained."""
  online = config.online
  # The code updates twice on a minibatch before it goes on to the next.
  online.updates.update(num_epochs=1 if settings == 'code' else 2,
                        repeats=2 if settings == 'code' else 1,
                        num_minibatches=2 if config.size == 'smoke' else 8)
  if config.size == 'laptop':
    config.seeds = replication.SEEDS[seeds]
    online.num_steps = 40
    # APA leaps over the KL that methods are compared at within five rollouts.
    online.evaluation.every = 1 if seeds == 10 else 5
    online.optimizer.learning_rate = 3e-4
  elif config.size == 'full':  # that of 125M parameters
    published.use(config, policy='EleutherAI/pythia-1b',
                  proxy='EleutherAI/gpt-j-6b')
    config.seeds = (0, 100, 1000)
    online.num_steps = 1_250  # 20,000 optimizer steps, 16 a rollout
    online.optimizer.update(learning_rate=8e-6, schedule='constant',
                            weight_decay=1e-6, decay_all=True)  # as trlX
    online.evaluation.update(every=50, num_prompts=280)
  config.training.log_every = 1


def online(size: str, title: str, settings: str, seeds: int = 3
           ) -> config_dict.ConfigDict:
  """A study without runs and figure: one reward model, no label noise.

  Args:
    size: smoke, laptop or full.
    title: of the figure.
    settings: of `SETTINGS`.
    seeds: how many the laptop size has, of `replication.NUMBERS`.
  """
  config = base.online_config(size)
  config.title = f'{PAPER}, {title} (settings of the {settings})'
  config.conditions.clean = dict(num_members=1)
  _settings(config, settings, seeds)
  return config


def set_policy(config: config_dict.ConfigDict, policy: str):
  """Makes the policy of a study 'small' or 'large', as in figure 4."""
  if config.size == 'full':
    published.use(config, policy={'small': 'EleutherAI/pythia-1b',
                                  'large': 'EleutherAI/gpt-j-6b'}[policy])
  elif config.size == 'laptop':
    width, num_layers, num_heads = {
        'small': (32, 1, 2), 'large': (128, 4, 4)}[policy]
    config.policy.model.update(
        hidden_size=width, num_layers=num_layers, num_heads=num_heads,
        intermediate_size=2 * width)


def add_ppo(config: config_dict.ConfigDict, settings: str, *,
            adaptive: bool = True, **labels):
  """Adds PPO with the adaptive KL controller of Ziegler et al., or no KL."""
  kl = dict(coef=0.05, target=6.0, horizon=10_000) if adaptive else dict(
      coef=0.0)
  run = dict(algorithm='ppo', kl=kl, labels=labels)
  if settings == 'text':
    run['value'] = dict(trunk='separate')
  else:
    run['reward'] = dict(scale='running')
  config.runs['ppo' if adaptive else 'ppo_without_kl'] = run


def add_regression(config: config_dict.ConfigDict, settings: str,
                   algorithm: str, *, beta: float, **labels):
  """Adds 'apa' or 'awr', whose value network is its own.

  Args:
    config: of `online`.
    settings: one of `SETTINGS`; the code whitens advantages, and divides
      scores by their running deviation before it clips them at 100.
    algorithm: 'apa' or 'awr'.
    beta: lambda of the paper.
    **labels: of the run.
  """
  run = dict(
      algorithm=algorithm, labels=labels, value=dict(trunk='separate'),
      arguments={algorithm: dict(beta=beta)})
  if settings == 'text':
    run['arguments']['whiten'] = dict(drop=True)
  else:
    run['reward'] = dict(scale='running', clip=100.0)
    if config.size == 'full':
      run['optimizer'] = dict(learning_rate=1e-6)
  config.runs[f'{algorithm}_{base.tag(beta)}'] = run


def offline(size: str, title: str) -> config_dict.ConfigDict:
  """A study of logged pairs, both responses of each, without runs and figure.

  Rewards are the raw scores of a reward model, standardised by the rows of
  the algorithms over the log (appendix D.3).
  """
  config = base.offline_config(size)
  config.title = f'{PAPER}, {title}'
  config.logs.pairs = dict(
      source='pairs', components=dict(reward=dict(kind='proxy')))
  config.offline.update(use='all')
  if size == 'laptop':
    config.seeds = (1, 2, 3)
    config.data.num_pair_prompts = 10_000
    config.offline.optimizer.learning_rate = 3e-4
    config.offline.evaluation.every = 25
    # In a fiftieth of the steps, targets that move fifty times as fast.
    config.offline.q.rate = 0.05
  elif size == 'full':
    config.seeds = (0, 100, 1000)
    config.offline.update(num_steps=20_000, batch_size=8)
    config.offline.optimizer.learning_rate = 1e-6
    config.offline.evaluation.update(every=500, num_prompts=280)
  config.training.log_every = 10
  return config
