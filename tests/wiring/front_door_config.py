"""A study in which every part can be told from every other.

No number is one that a fault could leave as it is: a temperature that is not
1, another one of the evaluations, noise, a clip that binds, responses with and
without an EOS, members that are standardised and disagree, flipped labels,
several minibatches and epochs, a warm-up that is not over after a rollout, a
value head that says something from the start, and a seed that is not 0.
"""

from rlhf_jax.configs import base

SEED, NUM_MEMBERS, HELD_OUT, PAIRS = 3, 3, 16, 64
TEMPERATURE = .8  # of rollouts


def proxy(kind: str, **aggregate) -> dict:
  return base.proxy(aggregate=dict(kind=kind, **aggregate))


def get_config(size: str = 'smoke'):
  """The config; there is one size."""
  config = base.offline_config(size)
  config.title = 'wiring'
  config.seeds = (SEED,)
  config.sampler.temperature = .9
  config.data.num_pair_prompts = PAIRS
  config.data.world.max_response_length = 10
  del config.conditions.clean
  config.conditions.noisy = dict(
      label_noise=.25, num_members=NUM_MEMBERS, held_out=HELD_OUT,
      head_scale=2.)
  # Enough to end some of its responses.
  config.policy.update(num_steps=60, aggregate='sequence')
  config.policy.optimizer.update(learning_rate=1e-2, warmup_steps=5)
  for node in (config.online, config.offline):
    node.num_steps = 3
    node.optimizer.update(learning_rate=5e-3, clip_norm=.5, weight_decay=.01)
    node.value.scale = 1.
    node.evaluation.every = 3
  _online(config.online)
  config.offline.num_microbatches = 2
  config.offline.optimizer.warmup_steps = 2
  config.log.update(condition='noisy', num_validation=HELD_OUT)
  config.log.components = _components(squash='sigmoid')
  config.log.value.update(num_samples=2, temperature=.7)
  config.logs.pairs = dict()
  config.runs = {name: dict(labels=dict(method=name)) | changes
                 for name, changes in _runs().items()}
  config.figure = dict(kind='table', columns=('proxy', 'gold'))
  return config.lock()


def _online(node):
  node.condition = 'noisy'
  node.reward.update(
      components=proxy('uncertainty_weighted', uncertainty_coef=.3), noise=.5,
      clip=1.2, eos=dict(penalty=.4))
  node.kl.coef = .2
  node.rollout.update(batch_size=8, temperature=TEMPERATURE)
  node.updates.update(num_epochs=2, num_minibatches=2, num_microbatches=2)
  node.optimizer.warmup_steps = 6


def _components(**fields) -> dict:
  """A reward of an ensemble, of the gold model and of texts."""
  return dict(
      proxy=proxy('single', member=1)['proxy'] | dict(weight=.8) | fields,
      gold=dict(kind='gold', weight=.5, squash='sigmoid'),
      words=dict(kind='length', target=6., weight=.7))


def _runs() -> dict:
  return dict(
      ppo=dict(
          algorithm='ppo', rollout=dict(chunk_size=4),
          kl=dict(target=.5, horizon=40),
          arguments=dict(ppo=dict(value_coef=.5, entropy_coef=.02))),
      ppo_separate=dict(
          algorithm='ppo', kl=dict(place='loss'),
          value=dict(trunk='separate', mlp=False),
          reward=dict(components=proxy('worst_case'), scale='running')),
      rloo=dict(
          algorithm='rloo', rollout=dict(batch_size=4, samples=4),
          reward=dict(components=_components())),
      reinforce=dict(
          algorithm='reinforce',
          reward=dict(scale='first', eos=dict(penalty=None, value=-1.))),
      a_lol=dict(algorithm='a_lol', priority='advantage'),
      awr=dict(algorithm='awr_offline', use='all'),
      dpo=dict(algorithm='dpo'))
