"""Defaults that configs share; a config file fills in the rest."""

from ml_collections import config_dict

from rlhf_jax.configs import published
from rlhf_jax.configs import small_worlds

SIZES = ('smoke', 'laptop', 'full')
WORLDS = tuple(small_worlds.WORLDS)
# Of data, by the names that `rlhf_jax.data.kinds` has for them.
COLUMNS = ('prompt', 'response', 'reward', 'group', 'prompt_id', 'reference',
           'chosen', 'rejected', 'messages', 'completion', 'label',
           'instruction', 'input', 'output')


def options(argument: str, **choices) -> tuple:
  """Reads what follows the colon of --config: 'size' or 'size,name=value,...'.

  Args:
    argument: such as 'laptop,noise=0'.
    **choices: the values of each option, texts or numbers, its default first;
      a default None is what no value asks for.

  Returns:
    The size, and of each option the value, in the order of `choices`.

  Raises:
    ValueError: there is no such option or value.
  """
  size, *names = argument.split(',')
  text = lambda value: value if isinstance(value, str) else f'{value:g}'
  known = {f'{name}={text(value)}': (name, value)
           for name, values in choices.items()
           for value in values if value is not None}
  choice = {name: values[0] for name, values in choices.items()}
  for option in names:
    if option not in known:
      raise ValueError(f'option {option!r} does not exist; there are '
                       f'{", ".join(known) or "none"}')
    name, value = known[option]
    choice[name] = value
  return size, *choice.values()


def tag(number: float) -> str:
  """A number as part of a name, which may hold no point: 0.01 is '001'."""
  return f'{number:g}'.replace('.', '')


def finish(config: config_dict.ConfigDict, *,
           smoke: tuple[str, ...]) -> config_dict.ConfigDict:
  """Locks a config; of its runs, the size `smoke` keeps those named."""
  if config.size == 'smoke':
    config.runs = {name: config.runs[name].to_dict() for name in smoke}
  return config.lock()


def get_config(size: str) -> config_dict.ConfigDict:
  """An unlocked tree with the fields every study has."""
  if size not in SIZES:
    raise ValueError(f'size {size!r} does not exist; there are '
                     f'{", ".join(SIZES)}')
  config = config_dict.ConfigDict()
  config.size = size
  config.seeds = (0,)
  config.training = dict(save_every=200, log_every=20)
  config.sampler = dict(temperature=1.0, top_k=0, top_p=1.0,
                        min_new_tokens=0)
  # All devices, a part of the rows each; see `rlhf_jax.parallel.sharding`.
  config.mesh = dict(data=-1, fsdp=1, tensor=1, member=1, dcn=1)
  return config


def model(**shape) -> dict:
  """A decoder to make from scratch, unless `path` or `name` loads one."""
  return dict(path=config_dict.placeholder(str),
              name=config_dict.placeholder(str), dtype='float32',
              remat='none', attention=config_dict.placeholder(str)) | shape


def tuning() -> dict:
  """What of a model is trained, and how: all of it, unless told otherwise.

  Low-rank adapters (`lora.rank` > 0) or the last layers, of a model that is
  loaded; with `quantize`, adapters on frozen weights of 4 bits. Of reward
  models `trainable_layers` may be 0, which leaves their heads.
  """
  return dict(dropout=0.0,
              lora=dict(rank=0, alpha=16.0, targets='layers/(q|v)$',
                        dropout=0.0),
              quantize=False, trainable_layers=config_dict.placeholder(int))


def optimizer(learning_rate: float, **kwargs) -> dict:
  """Arguments of `rlhf_jax.train.optimizer`, all of them visible to flags."""
  return dict(learning_rate=learning_rate, warmup_steps=20, schedule='cosine',
              clip_norm=1.0, weight_decay=0.0, decay_all=False, b1=0.9,
              b2=0.999) | kwargs


def world(config: config_dict.ConfigDict, name: str = 'reviews'):
  """Adds the texts and the models that studies of one size have in common.

  Figures then share the stages that train them (`--reuse`). `laptop` is the
  small world from scratch; `smoke` is every branch and no meaning; `full` has
  the shapes of the paper's models, for a node or a slice, and wants real text
  by `data.path` and `data.preferences`. Their weights are given by
  `policy.model.path` and `proxy.model.path` (Hugging Face directories) with
  `data.files.tokenizer`; gold models are learned here from
  `data.preferences`.

  Args:
    config: of `get_config`.
    name: of the small world, one of `WORLDS`.
  """
  _laptop(config)
  config.data.world = dict(small_worlds.WORLDS[name], name=name)
  if name != 'reviews':
    config.gold.kind = 'rule'
  if config.size == 'smoke':
    small_worlds.smoke(config)
  elif config.size == 'full':
    _full(config)


def _laptop(config):
  none = lambda: config_dict.placeholder(str)  # one shared would be one field
  # What reward models learn from: 'samples' that the gold model labels, or
  # ('judge') whoever `feedback` names, or the 'preferences' of the data.
  config.pairs, config.feedback = 'samples', dict()
  config.data = dict(
      num_demonstrations=20_000,
      num_pair_prompts=3_512,
      num_eval_prompts=128,
      stop=(),  # strings that end a response, as EOS does
      path=none(),  # file of demonstrations, or of prompts: real data
      preferences=none(),  # file of pairs
      files=dict(max_prompt_length=64, max_response_length=48,
                 vocab_size=4096, max_bad_rows=0, long_prompts='cut',
                 identical_pairs='drop', format='alpaca', control=(),
                 allow_checkpoint_template=False, kind=none(), split=none(),
                 columns={name: none() for name in COLUMNS},
                 preference_kind=none(), preference_format=none(),
                 tokenizer=none(),
                 **{token: none() for token in ('pad', 'bos', 'eos')}),
      logged=dict(kind=none(), path=none(), split=none(), task=none(),
                  # What the file calls them, where it calls them otherwise.
                  columns={name: none() for name in COLUMNS},
                  num_rows=config_dict.placeholder(int),
                  noise=config_dict.placeholder(float),
                  max_prompt_length=64, max_response_length=48,
                  max_samples=2, target=none(),
                  demonstrations=config_dict.placeholder(tuple),
                  vocab_size=4096, max_bad_rows=0, long_prompts='cut',
                  identical_pairs='drop', format=none(), control=(),
                  allow_checkpoint_template=False,
                  tokenizer=none(),
                  **{token: none() for token in ('pad', 'bos', 'eos')}),
  )
  config.policy = dict(
      model=model(family='llama', hidden_size=64, num_layers=2,
                  num_heads=2, intermediate_size=128) | tuning(),
      num_steps=600, batch_size=64, num_microbatches=1, packing=False,
      aggregate='token', optimizer=optimizer(3e-3))
  config.proxy = dict(
      model=model(family='llama', hidden_size=32, num_layers=1,
                  num_heads=2, intermediate_size=64) | tuning(),
      trunk='shared',
      path=none(),  # of reward models that are trained already
      sft=dict(num_steps=400, batch_size=64, num_microbatches=1,
               packing=False, aggregate='token', optimizer=optimizer(3e-3)),
      num_members=5, num_epochs=5, batch_size=32, held_out=512,
      num_pairs=config_dict.placeholder(int), head_scale=1.0,
      num_microbatches=1, packing=False, validate=False,
      optimizer=optimizer(3e-4))
  config.gold = dict(
      kind='model',  # or 'rule': the true reward of a small world itself
      model=model(family='llama', hidden_size=96, num_layers=2,
                  num_heads=3, intermediate_size=192) | tuning(),
      num_steps=1000, batch_size=128, num_microbatches=1, packing=False,
      held_out=512, optimizer=optimizer(2e-3))


def _full(config):
  config.data.update(num_pair_prompts=46_000, num_eval_prompts=1_000,
                     num_demonstrations=10_000)
  config.data.files.update(max_prompt_length=520, max_response_length=256,
                           vocab_size=published.VOCABULARY)
  published.use(config, policy='EleutherAI/pythia-1.4b',
                proxy='EleutherAI/pythia-70m', gold='huggyllama/llama-7b')
  # Parameters in parts over all devices, rows too; see experiments/launch.
  config.mesh.update(data=1, fsdp=-1)
  for node in (config.policy, config.proxy.sft):
    node.update(num_steps=1_000, batch_size=32, packing=True,
                optimizer=optimizer(3e-4))
  config.gold.update(num_steps=5_000, num_microbatches=4, packing=True,
                     optimizer=optimizer(3e-4))
  config.proxy.update(packing=True, optimizer=optimizer(
      1e-5, warmup_steps=50, clip_norm=2.0))
  config.sampler.update(top_p=0.9)


def samples(size: str) -> dict:
  """How many responses best-of-n chooses from, and how they are drawn."""
  return {'smoke': dict(num_samples=32, samples_per_call=16, shard_prompts=2),
          'laptop': dict(num_samples=2048, samples_per_call=512,
                         shard_prompts=4),
          'full': dict(num_samples=12_500, samples_per_call=100,
                       shard_prompts=1)}[size]


def online_config(size: str, name: str = 'reviews'
                  ) -> config_dict.ConfigDict:
  """A study `online` without conditions, runs and figure.

  Args:
    size: of the config.
    name: of the small world, see `world`.
  """
  config = get_config(size)
  world(config, name)
  config.study = 'online'
  config.force_eos = False
  config.conditions = dict()
  config.runs = dict()
  config.online = online()
  config.pool = pool()
  config.best_of_n = samples(size)  # of runs with algorithm='best_of_n'
  config.judge = dict(
      against=config_dict.placeholder(str),  # 'reference', or a run
      num_prompts=config_dict.placeholder(int), show_reference=False,
      judge=dict(kind='gold', margin=0.0))
  if size == 'smoke':
    config.online.update(num_steps=2)
    config.online.rollout.update(batch_size=4)
    config.online.evaluation.update(every=1, num_prompts=4, texts=1)
    config.training.update(log_every=1)
  return config


def pool() -> dict:
  """How the processes of reward functions run; see `rewards.programmatic`."""
  return dict(timeout=60.0, num_workers=2, chunk_size=256)


def proxy(**fields) -> dict:
  """The components of a reward that is an ensemble of reward models.

  Args:
    **fields: of the component, see `rlhf_jax.rewards.nodes`.
  """
  return dict(proxy=dict(kind='proxy', weight=1.0, standardize=True,
                         aggregate=dict(kind='mean')) | fields)


def online() -> dict:
  """How a policy is trained unless a run says otherwise: PPO, laptop size.

  Hyper-parameters of Coste et al. 2024 where the size allows them (Table 3):
  4 epochs, clip and value clip .2, lambda .95, rewards within +-10.
  """
  nothing = config_dict.placeholder
  return dict(
      algorithm='ppo',
      condition='clean',
      arguments=dict(),
      objective=nothing(str),  # your own: 'package.module:function'
      reward=dict(
          components=proxy(), noise=0.0, clip=10.0, scale=nothing(str),
          eos=dict(penalty=nothing(float), value=nothing(float))),
      kl=dict(coef=nothing(float), place='reward', target=nothing(float),
              horizon=10_000),
      rollout=dict(batch_size=64, samples=1, temperature=1.0, top_k=0,
                   top_p=1.0, min_new_tokens=0, chunk_size=nothing(int),
                   resample=0),  # rounds beside the first: DAPO's sampling
      updates=dict(num_epochs=4, num_minibatches=1, repeats=1,
                   num_microbatches=1, penalty_target=nothing(float)),
      value=dict(trunk='shared', mlp=True, scale=0.0),
      num_steps=100,
      optimizer=optimizer(1e-3, warmup_steps=0, b2=0.95),
      evaluation=evaluation(every=10))


def evaluation(every: int) -> dict:
  """Every so many steps, on so many prompts; so many texts are kept."""
  return dict(every=every, num_prompts=128, texts=4, chunk_size=256)


def offline_config(size: str) -> config_dict.ConfigDict:
  """A study `offline` without runs and figure: one log, of preference pairs.

  Its reward model learns from the labels of the log; runs that sample (PPO)
  change the node `online`, all others `offline`.
  """
  config = online_config(size)
  config.study = 'offline'
  del config.best_of_n
  config.conditions.clean = dict(num_members=1)
  config.log = log()
  config.logs = dict()
  config.offline = offline()
  if size == 'smoke':
    config.log.num_validation = 32
    config.log.value.update(num_samples=1, num_steps=2, batch_size=8,
                            num_heads=2)
    config.offline.update(num_steps=2, batch_size=8)
    config.offline.evaluation.update(every=1, num_prompts=4, texts=1)
  return config


def log() -> dict:
  """Logged responses and their rewards, unless one of `logs` says otherwise.

  The value head is that of Baheti et al. 2024, of 8 attention heads; it
  learns from samples, not from greedy text. With a reward model of the same
  condition `num_validation` is its `held_out`, so that labels agree.
  """
  return dict(
      source='pairs',  # of the SFT policy; 'corpus': the file of data.logged
      condition='clean',  # whose label noise the pairs have
      num_validation=512,
      components=dict(reward=dict(kind='proxy', squash='sigmoid')),
      value=dict(num_samples=4, temperature=1.0, num_heads=8, batch_size=64,
                 num_steps=300, held_out=0.2,
                 optimizer=optimizer(1e-3, schedule='constant')))


def offline() -> dict:
  """How a policy learns from a log unless a run says otherwise: A-LOL.

  From the better response of each pair, each drawn once in an epoch; set
  priority='advantage' to draw them as Baheti et al. 2024 do.
  ILQL as in trlX, whose linear layers start with deviation .58 / sqrt(inputs).
  """
  nothing = config_dict.placeholder
  return dict(
      algorithm='a_lol',
      log='pairs',
      arguments=dict(),
      objective=nothing(str),  # your own: 'package.module:function'
      use='first',
      filtered=False,
      priority='none',
      batch_size=64, num_microbatches=1, packing=False,
      num_steps=400,
      scale_steps=False,
      optimizer=optimizer(1e-3, warmup_steps=0, schedule='constant'),
      value=dict(trunk='separate', mlp=True, scale=0.0),
      q=dict(mlp=True, scale=0.58, rate=0.001, every=5, shift=4.0, top_k=20),
      evaluation=evaluation(every=40))
