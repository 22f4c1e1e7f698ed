"""Coste et al. 2024: what the configs of its figures share.

Figures that show one policy describe it by the same run and condition, so
that with --reuse it is trained once. https://arxiv.org/abs/2310.02743
"""

from ml_collections import config_dict

from rlhf_jax.configs import base
from rlhf_jax.configs import templates

PAPER = 'Coste et al. 2024'
METHODS = ('single', 'mean', 'worst_case', 'uncertainty_weighted')
ENSEMBLES = METHODS[1:]
KL_COEFS = (0.0, 0.01, 0.1, 0.2)
# Of figures 4 and 5, by world. Without label noise best-of-n hardly falls in
# long_tail (figure 3), and twenty seeds are many.
NOISES = dict(reviews=(0.0, 0.25), long_tail=(0.25,), emphasis=(0.25,))
LONG_TAIL_SEEDS = tuple(range(710, 730))
LIMIT_KL = 150.0  # nats; where the paper's curves end
NUM_SINGLES = dict(smoke=1, laptop=3, full=5)  # members optimised alone
NUM_MEMBERS = (3, 4, 5)  # of ensembles, in figures 11 and 12
PAIRS = dict(quarter=4, half=2, all=1)  # of figures 9, 13 and 14: total / n
WITHOUT_NOISE = {7: 20, 8: 21, 9: 22, 11: 23, 12: 24}  # figures
SIZES = ('small', 'medium', 'large')  # of the reward models of figure 8
COLUMNS = ('gold', 'rule', 'proxy', 'kl_k1', 'kl_k2', 'unfinished', 'length')


def _settings(config: config_dict.ConfigDict):
  """How long, how fast and with which seeds every policy is trained."""
  online = config.online
  if config.size == 'laptop':
    config.seeds = (1, 2, 3)
    online.num_steps = 60
    online.evaluation.every = 5
    online.optimizer.learning_rate = 3e-4
  elif config.size == 'full':  # Table 3
    config.seeds = (1,)
    online.num_steps = 94  # 3,000 optimizer steps, 32 a rollout
    online.rollout.update(batch_size=256, chunk_size=32)
    online.updates.update(num_minibatches=8)
    online.optimizer.update(learning_rate=1e-6, weight_decay=1e-6,
                            decay_all=True)  # as trlX does
    online.evaluation.update(every=4, num_prompts=1_000, chunk_size=32)
  config.training.log_every = 1


def _title(title: str, world: str) -> str:
  where = '' if world == 'reviews' else f', in {world}'
  return f'{PAPER}, {title}{where}'


def online(size: str, title: str, world: str = 'reviews'
           ) -> config_dict.ConfigDict:
  """A study of PPO without runs and figure, in one of `base.WORLDS`."""
  config = base.online_config(size, world)
  config.title = _title(title, world)
  _settings(config)
  if size == 'laptop' and world != 'reviews':
    config.seeds = LONG_TAIL_SEEDS
  return config


def condition(config: config_dict.ConfigDict, noise: float, name: str = '',
              **proxy) -> str:
  """Adds reward models that differ in `proxy` from the usual; their name."""
  name = f'noise_{base.tag(100 * noise)}{name and "_"}{name}'
  config.conditions[name] = dict(label_noise=noise, **proxy)
  return name


def model_condition(config: config_dict.ConfigDict, noise: float, size: str
                    ) -> tuple[str, int]:
  """Reward models 'small', 'medium' (the usual) or 'large' (the policy's).

  Their name, and their width.
  """
  if size == 'medium':
    return condition(config, noise), config.proxy.model.hidden_size
  shape = _shape(config.size, size)
  return condition(config, noise, size, model=dict(
      shape, path=config_dict.placeholder(str))), shape['hidden_size']


def _shape(size: str, name: str) -> dict:
  if name == 'medium':
    return {}
  width, num_layers, num_heads = {
      ('small', False): (16, 1, 2), ('large', False): (64, 2, 2),
      # Pythia 14M and 1.4B, whose trunks have 7M and 1.3B parameters.
      ('small', True): (128, 6, 4), ('large', True): (2048, 24, 16),
  }[name, size == 'full']
  return dict(hidden_size=width, num_layers=num_layers, num_heads=num_heads,
              intermediate_size=width * (4 if size == 'full' else 2))


def pairs_condition(config: config_dict.ConfigDict, noise: float, share: str
                    ) -> tuple[str, int]:
  """Reward models of a share of the pairs; the name, and how many pairs."""
  count, held_out = _split(config, share)
  if share == 'all':
    return condition(config, noise), count
  return condition(config, noise, f'pairs_{count}', held_out=held_out), count


def _split(config, share: str) -> tuple[int, int]:
  """Pairs to train on and to hold out, which takes all the others."""
  total = config.data.num_pair_prompts
  count = (total - config.proxy.held_out) // PAIRS[share]
  return count, total - count


def num_members(size: str) -> tuple[int, ...]:
  """How many members the ensembles of figures 11 and 12 have."""
  return (2,) if size == 'smoke' else NUM_MEMBERS


def members_condition(config: config_dict.ConfigDict, noise: float,
                      num_members: int) -> str:
  """Ensembles of so many members, the first of those of the usual one."""
  if num_members == config.proxy.num_members:
    return condition(config, noise)
  return condition(config, noise, f'members_{num_members}',
                   num_members=num_members)


def item(number: int, noise: float) -> str:
  """Which figure of the paper it is, at which share of flipped labels."""
  where = (f'{100 * noise:g} % label noise' if noise else
           f'as figure {WITHOUT_NOISE[number]}, no label noise')
  return f'figure {number} ({where})'


def small_kl_coef(method: str, noise: float) -> float:
  """The KL coefficients of figure 4, best for the final performance."""
  return 0.1 if method == 'mean' and noise else 0.01


def add(config: config_dict.ConfigDict, method: str, condition: str, *,
        kl_coef: float, uncertainty_coef: float = 0.1,
        num_steps: int | None = None, **labels):
  """Adds a run, or one for each single model, which reports average.

  Args:
    config: of `online`.
    method: one of `METHODS`.
    condition: name of its reward models.
    kl_coef: of the penalty in the reward.
    uncertainty_coef: lambda of 'uncertainty_weighted'.
    num_steps: rollouts, if other than usual; not read at the size 'smoke'.
    **labels: of the run, beside method, member, label_noise, kl_coef and
      uncertainty_coef.
  """
  noise = config.conditions[condition].label_noise
  run = dict(condition=condition, kl=dict(coef=kl_coef))
  if num_steps is not None and config.size != 'smoke':
    run['num_steps'] = num_steps
  where = f'{condition}_kl_{base.tag(kl_coef)}'
  labels = dict(method=method, label_noise=noise, kl_coef=kl_coef) | labels
  if method == 'single':
    for member in range(NUM_SINGLES[config.size]):
      config.runs[f'single_{member}_{where}'] = run | dict(
          reward=dict(components=base.proxy(
              aggregate=dict(kind='single', member=member))),
          labels=labels | dict(member=member))
    return
  aggregate = dict(kind=method)
  if method == 'uncertainty_weighted':
    aggregate['uncertainty_coef'] = uncertainty_coef
    labels['uncertainty_coef'] = uncertainty_coef
    if uncertainty_coef != 0.1:
      where += f'_coef_{base.tag(uncertainty_coef)}'
  config.runs[f'{method}_{where}'] = run | dict(
      reward=dict(components=base.proxy(aggregate=aggregate)), labels=labels)


def curves(**fields) -> dict:
  """Gold and proxy score over sqrt(KL), as in figure 4."""
  return dict(kind='curves', x='sqrt_kl', y=('gold', 'proxy'),
              line=('method',), limit_kl=LIMIT_KL, columns=COLUMNS) | fields


def final(x: str, **fields) -> dict:
  """Final gold score over a label, as in figure 7, and less single models."""
  return dict(kind='final', x=x, y=('gold', 'gold_above'), line=('method',),
              columns=COLUMNS, baseline=dict(method='single')) | fields


def methods(uncertainty_coefs: tuple[float, ...] = (0.5,)) -> dict:
  """Ensembles for best-of-n; the first coefficient has the plain name."""
  weighted = {
      'uncertainty_weighted' + (f'_{base.tag(coef)}' if i else ''):
      dict(kind='uncertainty_weighted', uncertainty_coef=coef)
      for i, coef in enumerate(uncertainty_coefs)}
  return dict(mean=dict(kind='mean'), worst_case=dict(kind='worst_case'),
              **weighted)


def best_of_n(size: str, title: str, *, noise: tuple[float, ...],
              methods: dict, model: str = 'medium', pairs: str = 'all',
              num_members: int | None = None, world: str = 'reviews'
              ) -> config_dict.ConfigDict:
  """A study of best-of-n, unlocked, against one kind of reward models.

  Args:
    size: of the config.
    title: of the figure.
    noise: a panel for each share of flipped labels.
    methods: names to arguments of `ops.ensembles.aggregate`.
    model: one of `SIZES`.
    pairs: one of `PAIRS`.
    num_members: of the ensemble, if other than usual.
    world: one of `base.WORLDS`.
  """
  config = templates.best_of_n(size, world)
  config.title = _title(title, world)
  config.label_noise = noise
  config.proxy.model.update(_shape(size, model))
  config.proxy.held_out = _split(config, pairs)[1]
  if num_members is not None:
    config.proxy.num_members = num_members
  config.best_of_n.methods = methods
  if size != 'smoke':
    config.seeds = (1, 2, 3)
  return config
