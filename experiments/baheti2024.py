"""Baheti et al. 2024: what the configs of its figures share.

Every method is a row of the algorithm table, on the same logged responses.
Figures that show one policy describe it by the same run, so that with --reuse
it is trained once. https://arxiv.org/abs/2305.14718
"""

from ml_collections import config_dict

from rlhf_jax.configs import base
from rlhf_jax.configs import published

# Their groups are those of the paper's figure 2.
PREFERENCE, REWARD, ADVANTAGE = 'by preference', 'by reward', 'by advantage'
PAPER = 'Baheti et al. 2024'
NLL = dict(method='NLL')  # in every panel
LABEL_NOISE = 0.25  # share of the pairs of the log whose order is wrong
COLUMNS = ('proxy', 'gold', 'rule', 'kl_k1', 'words',
           'distinct_1', 'distinct_2', 'distinct_3', 'unfinished')
METHODS = {  # run: title, group, algorithm, how responses are drawn
    'nll': ('NLL', '', 'sft', 'none'),
    'pro': ('PRO', PREFERENCE, 'pro', 'none'),
    'dpo_reference_free': (
        'DPO, ref. free', PREFERENCE, 'dpo_reference_free', 'none'),
    'dpo': ('DPO', PREFERENCE, 'dpo', 'none'),
    'wbc': ('wBC', REWARD, 'wbc', 'reward'),
    'r_gold': ('R-GOLD', REWARD, 'gold', 'reward'),
    'r_lol': ('R-LOL', REWARD, 'r_lol', 'reward'),
    'a_lol_ref_free': (
        'A-LOL, ref. free', ADVANTAGE, 'a_lol_ref_free', 'advantage'),
    'a_lol': ('A-LOL', ADVANTAGE, 'a_lol', 'advantage'),
    'a_lol_sequence': (
        'A-LOL, seq', ADVANTAGE, 'a_lol_sequence', 'advantage'),
    'a_lol_kl': ('A-LOL, KL', ADVANTAGE, 'a_lol_kl', 'advantage'),
}
REDDIT = ('fluent', 'safe', 'topic', 'upvote', 'tfidf')  # its rewards
LOGGED = ('nll', 'wbc', 'r_gold', 'r_lol', 'a_lol_ref_free', 'a_lol',
          'a_lol_sequence', 'a_lol_kl')  # need no preferences


def _settings(config: config_dict.ConfigDict):
  """How long, how fast and with which seeds every policy is trained."""
  offline = config.offline
  if config.size == 'laptop':
    config.seeds = (1, 2, 3)
    offline.optimizer.learning_rate = 3e-4
    offline.evaluation.every = 25
    config.training.log_every = 10
  elif config.size == 'full':  # about one epoch of 143,000 examples
    published.use(config, policy='huggyllama/llama-7b',
                  proxy='EleutherAI/pythia-1.4b')
    config.seeds = (1, 2, 3)
    offline.update(num_steps=9_000, batch_size=16, scale_steps=True)
    offline.optimizer.update(learning_rate=2e-4, schedule='constant',
                             clip_norm=0.3)
    offline.evaluation.update(every=900, num_prompts=280)
    config.log.num_validation = config.proxy.held_out = 280


def preferences(size: str, title: str) -> config_dict.ConfigDict:
  """A study of the pairs of the small world, without runs and figure.

  Stands for Anthropic HH: two samples of the SFT policy to each prompt, put
  in order with `LABEL_NOISE`, and a reward model that learns from that order.
  """
  config = base.offline_config(size)
  config.title = f'{PAPER}, {title}'
  if size == 'laptop':
    config.data.num_pair_prompts = 10_000
  config.conditions.clean.label_noise = LABEL_NOISE
  config.logs.pairs = dict(source='pairs')
  _settings(config)
  return config


def task(size: str, title: str, name: str, **logged) -> config_dict.ConfigDict:
  """A study of a logged file that `rlhf_jax.data.tasks` writes.

  Args:
    size: of the study.
    title: of the figure.
    name: of the task, and of its only log.
    **logged: of `data.logged`.
  """
  config = base.offline_config(size)
  config.title = f'{PAPER}, {title}'
  config.data.logged.update(task=name, **logged)
  config.data.logged.num_rows = 1_000 if size == 'smoke' else 40_000
  if size == 'full':  # as many prompts as such a grammar can spare
    config.data.num_eval_prompts = 280
  config.logs[name] = dict(source='corpus')
  config.offline.log = name
  _settings(config)
  return config


def add(config: config_dict.ConfigDict, method: str, name: str = '', *,
        labels: dict | None = None, **changes):
  """Adds one method of `METHODS`.

  Args:
    config: of `preferences` or `task`.
    method: a key of `METHODS`.
    name: of the run, where it is another.
    labels: beside 'method' and 'group'.
    **changes: of `config.offline`.
  """
  title, group, algorithm, priority = METHODS[method]
  made = dict(method=title) | (dict(group=group) if group else {})
  config.runs[name or method] = dict(
      algorithm=algorithm, priority=priority,
      labels=made | (labels or {})) | changes
  if algorithm == 'sft' and 'arguments' not in changes:
    # As the others: a sum over tokens, a mean over responses.
    config.runs[name or method].arguments = dict(
        sft=dict(aggregate='sequence'))


def reddit(size: str, title: str) -> config_dict.ConfigDict:
  """Comments and five rewards: all methods on either half of the data."""
  config = task(size, title, 'reddit', max_prompt_length=9, target='up',
                max_response_length=24, max_samples=1)
  rule = 'rlhf_jax.data.task_rules'
  config.logs.reddit.components = dict(
      fluent=dict(kind='function', function=f'{rule}:fluent', range=(0, 1)),
      safe=dict(kind='vader'),
      topic=dict(kind='function', function=f'{rule}:on_topic', range=(0, 1)),
      upvote=dict(kind='gold', squash='sigmoid'),
      tfidf=dict(kind='tfidf'))
  add_reference(config)
  for half in ('up', 'down'):
    for method in LOGGED:
      add(config, method, f'{method}_{half}', use=half,
          labels=dict(data=f'{half}-voted'))
  return config


def add_reference(config: config_dict.ConfigDict, name: str = 'reference'):
  """Adds the policy that all start from, trained for no step."""
  add(config, 'nll', name, num_steps=0)
  config.runs[name].labels = dict(method='reference')


def add_ppo(config: config_dict.ConfigDict):
  """Adds the online baseline, in 2.67 times the optimizer steps.

  The code's TRL settings: 4 epochs of 4 minibatches, a KL controller that
  aims at 6 nats, scores that are scaled.
  """
  rollouts = max(round(config.offline.num_steps * 2.67 / 16), 1)
  config.runs.ppo = dict(
      algorithm='ppo', condition='clean', num_steps=rollouts,
      labels=dict(method='PPO', group='online'),
      kl=dict(coef=0.2, target=6.0, horizon=10_000),
      updates=dict(num_epochs=4, num_minibatches=4),
      reward=dict(scale='running'),
      rollout=dict(top_p=0.95),
      evaluation=dict(every=max(rollouts // 10, 1)))
  if config.size == 'laptop':
    config.runs.ppo.optimizer = dict(learning_rate=3e-4)
