"""What a plan says of memory is what states take; what is too much, refused."""

import functools
import re
import subprocess
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import worlds

from rlhf_jax import errors
from rlhf_jax import train
from rlhf_jax.models import heads
from rlhf_jax.models import pretrained
from rlhf_jax.models import transformer
from rlhf_jax.parallel import meshes
from rlhf_jax.parallel import sharding
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.runner import run as run_lib
from rlhf_jax.stages import gold
from rlhf_jax.stages import logged
from rlhf_jax.stages import offline_policy
from rlhf_jax.stages import online_policy
from rlhf_jax.stages import pairs
from rlhf_jax.stages import prompt_value
from rlhf_jax.stages import proxies
from rlhf_jax.stages import samples
from rlhf_jax.stages import scores
from rlhf_jax.stages import sft
from rlhf_jax.studies import estimates
from rlhf_jax.studies import footprints
from rlhf_jax.studies import memory
from rlhf_jax.studies import plan
from rlhf_jax.studies import programs

FIGURE_4 = f'{worlds.COSTE}/fig4_ppo.py'
TABLE_2 = f'{worlds.BAHETI}/table2_methods.py'
MESHES = (dict(fsdp=4), dict(fsdp=2, tensor=2), dict(member=2, fsdp=2))


def uses_of(axes, figure=FIGURE_4, **changes):
  config = worlds.get_config(figure, 'smoke') | changes
  config['mesh'] |= axes
  stages = plan.plan(config)
  by_name = {use.stage: use for use in memory.uses(config, stages, 8)}
  return config, by_name


def placed_rewards(node, members):
  """Bytes of frozen reward models on a device of the mesh in use."""
  shape = pretrained.config(node, worlds.corpus().tokenizer.vocab_size)
  params = reward_models.init_members(
      shape, jax.random.split(jax.random.key(0), members))
  return sharding.device_bytes(sharding.shard_params(
      transformer.frozen(shape, params), members=members))


class MemoryTest(parameterized.TestCase):

  @parameterized.parameters(*MESHES)
  def test_bytes(self, **axes):
    """Of states that are really placed on eight devices."""
    config, uses = uses_of(axes)
    vocab_size = worlds.corpus().tokenizer.vocab_size
    policy, proxy = config['policy'], config['proxy']
    shape = pretrained.config(proxy['model'], vocab_size)
    members = proxy['num_members']
    tx = train.optimizer(learning_rate=1., num_steps=1)
    with worlds.devices(8, **axes):
      made = pretrained.init(policy['model'], vocab_size, jax.random.key(0))
      frozen = sharding.device_bytes(sharding.shard_params(
          transformer.frozen(made.config, made.trainable)))
      state = train.place_state(made.trainable, tx, jax.random.key(0))
      keys = jax.random.split(jax.random.key(0), members)
      ensemble = train.place_state(
          reward_models.init_members(shape, keys), tx, keys, members=members)
      judges = placed_rewards(config['gold']['model'], 1) + placed_rewards(
          proxy['model'], members)
    trained = next(name for name in uses if name.endswith('/proxies'))
    for name, kept in (('seed_0/sft', state), (trained, ensemble)):
      use = uses[name]
      self.assertEqual(use.trained, sharding.device_bytes(kept.params), name)
      self.assertEqual(use.trained + use.optimizer,
                       sharding.device_bytes(kept), name)
    run = next(use for name, use in uses.items() if 'policies' in name)
    self.assertGreater(run.trained, uses['seed_0/sft'].trained)  # a value head
    self.assertEqual(run.frozen, frozen + judges)

  @parameterized.parameters(*MESHES)
  def test_bytes_offline(self, **axes):
    """Likewise of a head on prompts, and of a policy that samples nothing."""
    runs = worlds.get_config(TABLE_2, 'smoke')['runs']
    config, uses = uses_of(axes, TABLE_2, runs=runs | {
        'dpo': runs['pro'] | {'algorithm': 'dpo', 'labels': {'method': 'DPO'}}})
    vocab_size = worlds.corpus().tokenizer.vocab_size
    members = config['conditions']['clean']['num_members']
    tx = train.optimizer(learning_rate=1., num_steps=1)
    with worlds.devices(8, **axes):
      made = pretrained.init(
          config['policy']['model'], vocab_size, jax.random.key(0))
      reference = sharding.device_bytes(sharding.shard_params(
          transformer.frozen(made.config, made.trainable)))
      policy = train.place_state(made.trainable, tx, jax.random.key(0))
      head = train.place_state({'head': heads.init_prompt_value(
          jax.random.key(0), made.config.hidden_size,
          num_heads=config['log']['value']['num_heads'])}, tx,
                               jax.random.key(0))
      ensemble = placed_rewards(config['proxy']['model'], members)
      judge = placed_rewards(config['gold']['model'], 1)
    for name, state, frozen in (
        ('logs/pairs/logged', None, ensemble),
        ('logs/pairs/prompt_value', head, reference + ensemble),
        ('policies/dpo', policy, reference + ensemble + judge)):
      use = uses[f'seed_0/{name}']
      self.assertEqual(use.frozen, frozen, name)
      self.assertEqual(use.trained, sharding.device_bytes(
          state and state.params), name)
      self.assertEqual(
          use.trained + use.optimizer, sharding.device_bytes(state), name)

  def test_programs_are_called_with_what_the_plan_counts(self):
    """By a compiler: bytes of states, of frozen models and of their rows."""
    axes = dict(fsdp=2, tensor=2)
    uses = uses_of(axes)[1]
    proxies, run, pairs = (next(name for name in uses if part in name)
                           for part in ('proxies', 'policies', 'pairs'))
    with worlds.devices(8, **axes):
      for name in ('seed_0/sft', proxies, run, pairs):
        use, program = uses[name], uses[name].program()
        self.assertEqual(
            {x.sharding.mesh.size for x in jax.tree.leaves(program.arguments)
             if x.sharding is not None}, {8}, name)
        figures = programs.figures(programs.lower(program, 'cpu').compile())
        held = sharding.device_bytes(program.arguments)
        self.assertBetween(figures.held, .95 * held, held, name)
        self.assertGreater(figures.flops, 0)
        self.assertIn('all-reduce', figures.collectives, name)  # by 'tensor'
        state = sharding.device_bytes(program.arguments[0])
        if name == run:  # a value head, which the step of SFT has not
          self.assertBetween(state / (use.trained + use.optimizer), .9, 1)
        elif name == pairs:  # beside the policy, the gold model
          self.assertBetween(state, .1 * use.frozen, .9 * use.frozen)
        else:
          self.assertEqual(state, use.trained + use.optimizer, name)

  def test_scales(self):
    """Where everything is split, eight devices hold an eighth each."""
    config, one = uses_of({})
    eight = uses_of(dict(fsdp=8))[1]
    for name, use in one.items():
      self.assertLess(eight[name].trained, use.trained / 7 + 1, name)
    # Rows are split either way; tables in parts are gathered to be read.
    vocab_size = worlds.corpus().tokenizer.vocab_size
    shape = pretrained.config(config['policy']['model'], vocab_size)
    tables = (1 if shape.tie_embeddings else 2) * vocab_size * shape.hidden_size
    self.assertEqual(
        eight['seed_0/sft'].activations - one['seed_0/sft'].activations,
        tables * (4 + 4))

  def test_refused(self):
    _, uses = uses_of({})
    uses = list(uses.values())
    memory.check(uses, memory.Machine('huge', 8, 1.))
    memory.check(uses, memory.Machine('unknown', 8, None))
    worst = max(uses, key=lambda use: use.peak)
    most = worst.peak / footprints.GIB
    memory.check(uses, memory.Machine('wide', 8, 1.1 * most))
    with self.assertRaisesRegex(errors.TopologyError, worst.stage):
      memory.check(uses, memory.Machine('narrow', 8, 1.05 * most))
    with self.assertRaisesRegex(
        errors.TopologyError, f'stage {worst.stage} needs .* a device and tiny '
        'has 1e-06, of which 92% are usable; split more'):
      memory.check(uses, memory.Machine('tiny', 8, 1e-6))

  @parameterized.parameters(
      ('v5e:4x4', 16, 16), ('v5p:2x2x2', 8, 95), ('h100x8', 8, 80))
  def test_machines(self, name, count, gib):
    machine = memory.machine(name)
    self.assertEqual(machine, memory.Machine(name, count, gib))
    self.assertEqual(machine.is_slice, ':' in name)

  @parameterized.parameters(
      ('h100:2x4', 'GPUs come in numbers; write h100x8$'),
      ('v5ex8', 'TPUs come in slices; write the sides of one, such as v5e:4x4'),
      ('tpu7xx4', 'TPUs come in slices'))
  def test_notation_of_the_other_kind(self, name, how):
    with self.assertRaisesRegex(
        errors.TopologyError, f'--plan={name}: no such machine; {how}'):
      memory.machine(name)

  def test_here(self):
    """What the runtime may take is printed as it is, and all of it counts."""
    device = mock.Mock()
    device.memory_stats.return_value = {'bytes_limit': 3 * footprints.GIB}
    with mock.patch.object(jax, 'local_devices', return_value=[device]):
      here = memory.machine('here')
    self.assertIn('devices of 3 GiB', memory.page([], here))
    self.assertFalse(here.is_slice)
    use = lambda gib: [footprints.Use('x', frozen=int(gib * footprints.GIB))]
    memory.check(use(2.99), here)
    with self.assertRaisesRegex(errors.TopologyError, 'has 3, of which 100%'):
      memory.check(use(3.01), here)

  @parameterized.parameters('v5e', 'h100:x', 'abacus:4', 'v99:2x2')
  def test_unknown_machines(self, name):
    with self.assertRaisesRegex(errors.TopologyError, 'no such machine; give'):
      memory.machine(name)

  def test_step_counts_every_term(self):
    """A step on twice the rows takes twice as much; remat takes less."""
    config, uses = uses_of({})
    sft = uses['seed_0/sft']
    config['policy']['batch_size'] *= 2
    twice = uses_of({}, policy=config['policy'])[1]['seed_0/sft']
    self.assertEqual(twice.activations, 2 * sft.activations)
    config['policy']['model']['remat'] = 'full'
    config['policy']['model']['num_layers'] = 4
    full = uses_of({}, policy=config['policy'])[1]['seed_0/sft']
    config['policy']['model']['remat'] = 'none'
    none = uses_of({}, policy=config['policy'])[1]['seed_0/sft']
    self.assertLess(full.activations, none.activations)

  def test_peak(self):
    use = footprints.Use('x', trained=2, optimizer=4, frozen=8, sampler=16,
                         activations=13)
    self.assertEqual(use.peak, 2 + 4 + 8 + 16)
    self.assertEqual(footprints.Use('x', trained=2, activations=13).peak, 17)

  def test_launch(self):
    """The tables in experiments/launch are what the commands print."""
    page = (worlds.ROOT / 'experiments/launch/README.md').read_text()
    shown = re.findall(r'```\n\$ [^`]*--plan=(\S+) [^`]*--config=(\S+):full\n'
                       r'([^`]*)```', page)
    self.assertLen(shown, 3)
    for machine, config, printed in shown:
      config = worlds.get_config(config, 'full')
      machine = memory.machine(machine)
      uses = memory.uses(config, plan.plan(config), machine.count)
      memory.check(uses, machine)
      self.assertEqual(printed, memory.page(uses, machine) + '\n')

  def test_front_door(self):
    """Nothing is run or written, and what does not fit is exit 8."""
    ask = lambda *flags: subprocess.run(
        [*worlds.command(f'{FIGURE_4}:smoke', 'unused', *flags)[:-1 - len(
            flags)], *flags], cwd=worlds.ROOT, env=worlds.environment(),
        capture_output=True, text=True, timeout=300)
    done = ask('--plan=v5e:2x4')
    self.assertEqual(done.returncode, 0, done.stderr)
    first, *lines = done.stdout.splitlines()
    self.assertEqual(first, 'v5e:2x4: 8 devices of 16 GiB')
    self.assertStartsWith(lines[1], 'seed_0/sft')
    done = ask('--plan=v5e:2x4', '--config.mesh.fsdp=16')
    self.assertEqual(done.returncode, 8)
    self.assertRegex(done.stderr, 'TOPOLOGY: mesh .* but there are 8 devices')


class PlannerTest(absltest.TestCase):
  """Rows of programs, of stages that are told what tests say."""

  SIZES = estimates.Sizes(vocab_size=512, prompt=12, response=20)

  def setUp(self):
    super().setUp()
    self.config = worlds.get_config(TABLE_2, 'laptop')
    self.planner = footprints.Planner(
        meshes.planned({'data': 8}, 8), self.SIZES)
    self.upstream = dict(
        reference='sft', gold='gold', proxies='proxies', log='log')
    for name, stage in (('sft', sft), ('gold', gold), ('proxies', proxies)):
      self.use(name, stage, node=self.config[
          {'sft': 'policy', 'proxies': 'proxy'}.get(name, name)])
    self.log = lambda count: self.use(
        'log', logged, data={'max_samples': count}, node={
            'source': 'corpus', 'components': {}})
    self.log(4)

  def use(self, name, stage, **arguments):
    return self.planner.use(run_lib.Stage(name, functools.partial(
        stage.run, **{'upstream': self.upstream, 'data': {}} | arguments)))

  def samples(self, samples_per_call, num_samples=1_000):
    """Of a stage that draws so many for each device at a time."""
    return self.use('samples', samples, num_samples=num_samples, call={
        'samples_per_call': samples_per_call}).sampler

  def offline(self, components=(), **changes):
    return self.use(
        'policy', offline_policy, run=self.config['offline'] | changes,
        measure={'components': dict(components)})

  def online(self, kind='length', evaluation=(), algorithm='reinforce',
             **rollout):
    run = self.config['online']
    components = {'x': {'kind': kind}}
    return self.use('policy', online_policy, run=run | dict(
        algorithm=algorithm, rollout=run['rollout'] | rollout,
        updates=run['updates'] | {'num_minibatches': 16},
        evaluation=run['evaluation'] | dict(evaluation),
        reward=run['reward'] | {'components': components}),
                    measure={'components': components})

  def test_samples_of_one_prompt_are_on_one_device(self):
    shape = pretrained.config(self.config['policy']['model'], 512)
    row = (2 * shape.num_layers * self.SIZES.length * shape.num_kv_heads
           * shape.head_size + 2 * 512) * 4
    self.assertEqual(self.samples(96) - self.samples(64), 32 * row)
    self.assertEqual(self.samples(64, num_samples=16), self.samples(16))

  def heads(self, **sizes):
    """Reward models that are heads on a model which is loaded."""
    self.planner = footprints.Planner(
        meshes.planned({'data': 8}, 8), self.SIZES._replace(
            vocab_size=worlds.corpus().tokenizer.vocab_size, **sizes))
    return self.config['proxy'] | {'model': worlds.loaded_node(
        trainable_layers=0)}

  def test_features_take_the_place_of_what_is_read(self):
    """Heads are then all there is, and nothing reads a response."""
    node = self.heads()
    alone = self.use('proxies', proxies, node=node)
    scored = self.use('scores', scores)
    self.upstream['features'] = 'features'
    heads_alone = self.use('proxies', proxies, node=node)
    self.assertEqual(heads_alone.frozen, 0)
    self.assertGreater(alone.frozen, 10 * alone.trained)
    self.assertEqual(heads_alone.trained, alone.trained)
    use = self.use('scores', scores)
    self.assertEqual((use.frozen, use.activations, use.program),
                     (alone.trained, 0, None))
    self.assertEqual(scored.frozen, alone.frozen + alone.trained)

  def test_a_trunk_of_all_members_reads_once(self):
    node = self.heads(response=2_000)  # of which few are read at a time
    def scoring(members):
      self.use('proxies', proxies, node=node | {'num_members': members})
      return self.use('scores', scores).activations
    self.assertEqual(scoring(5), scoring(1))
    self.assertGreater(scoring(1), 0)

  def test_prompts_at_a_time(self):
    """256 on eight devices, and 32 on each."""
    self.assertEqual(self.use('pairs', pairs).sampler, self.samples(64))
    head = self.use(
        'head', prompt_value, components={}, node=self.config['log'][
            'value'] | {'num_samples': 3, 'num_heads': 2})
    self.assertEqual(head.sampler, self.samples(96))

  def test_evaluations_and_chunks_are_filled_up(self):
    tiny = dict(num_prompts=1)
    for kwargs, rows in (
        (dict(batch_size=32, samples=4), 16),
        (dict(batch_size=32, samples=4, chunk_size=12), 8),
        (dict(batch_size=32, samples=4, chunk_size=16), 8),
        (dict(batch_size=32, samples=1, evaluation=dict(
            num_prompts=300, chunk_size=130)), 17),
        (dict(batch_size=32, samples=1, evaluation=dict(
            num_prompts=60, chunk_size=130)), 8)):
      use = self.online(**{'evaluation': tiny} | kwargs)
      self.assertEqual(use.sampler, self.samples(rows), kwargs)
    step = lambda count: self.online(
        batch_size=count, evaluation=tiny).activations
    self.assertEqual(step(1032 * 16), step(1025 * 16))
    self.assertGreater(step(1033 * 16), step(1032 * 16))

  def test_a_mask_policy_is_a_copy_beside(self):
    ppo, nlpo = (
        self.online(algorithm=name, batch_size=32, samples=1,
                    evaluation=dict(num_prompts=1)) for name in ('ppo', 'nlpo'))
    decoder = self.use('sft', sft, node=self.config['policy']).trained
    self.assertEqual(nlpo.trained, ppo.trained)
    self.assertEqual(nlpo.optimizer - ppo.optimizer, decoder)
    self.assertEqual(nlpo.sampler, 2 * ppo.sampler)
    rows = 16 * 8 // 8  # filled up to as many minibatches on each device
    self.assertGreaterEqual(nlpo.activations - ppo.activations,
                            9 * 4 * rows * self.SIZES.length * 512)

  def test_responses_of_an_example(self):
    """By what a method compares; of steps that decide."""
    step = lambda algorithm: self.offline(
        algorithm=algorithm, batch_size=4096).activations
    one = step('sft')
    self.assertEqual(step('dpo'), 2 * one)
    self.assertEqual(step('pro'), 4 * one)
    # Beside what a step learns from lies a response to another prompt.
    self.assertEqual(step('kto'), one + 4096 // 8 * self.SIZES.length * 24)
    self.log(3)
    self.assertEqual(step('pro'), 3 * one)

  def test_the_initial_policy_reads_whole_chunks(self):
    """Of what it annotates; else an evaluation is the most that is read."""
    # Logits are the most that there is.
    self.planner = footprints.Planner(
        meshes.planned({'data': 8}, 8), self.SIZES._replace(vocab_size=65_536))
    self.upstream = {'reference': 'sft', 'log': 'log'}
    self.use('sft', sft, node=self.config['policy'], upstream={})
    read = lambda algorithm, prompts=8: self.offline(
        algorithm=algorithm, batch_size=8,
        evaluation=dict(num_prompts=prompts, chunk_size=512)).activations
    logits = self.SIZES.length * 65_536 * 4  # of a row
    batch = 2 * self.SIZES.length * 24
    self.assertEqual(read('dpo'), 64 * logits + batch)
    self.assertLess(read('dpo_reference_free'), 32 * logits)
    self.assertEqual(read('dpo_reference_free', 400), 50 * logits + batch)
    self.assertEqual(read('kto'), read('dpo'))
    whole = self.offline(  # the reference point is of all that a step takes
        algorithm='kto', batch_size=8 * 96, num_microbatches=96,
        evaluation=dict(num_prompts=8, chunk_size=512)).activations
    self.assertEqual(whole, 96 * (logits + batch))

  def test_judges(self):
    """Those that components read; of policies, gold where there is one."""
    frozen = lambda kind=None, **upstream: self.offline(
        {kind: {'kind': kind}} if kind else {}, algorithm='dpo',
        batch_size=8).frozen
    proxied = frozen('proxy') - frozen()
    self.assertGreater(proxied, 0)
    self.assertEqual(frozen('gold'), frozen())
    with_gold = frozen()
    del self.upstream['gold']
    self.assertLess(frozen(), with_gold)
    self.assertEqual(frozen('proxy') - frozen(), proxied)

  def test_rollouts_are_scored_at_once(self):
    """Not in the chunks of an evaluation."""
    self.config['gold']['model']['hidden_size'] *= 8
    self.use('gold', gold, node=self.config['gold'])
    few, many = (self.online(kind, batch_size=2**17)
                 for kind in ('length', 'gold'))
    self.assertEqual(few.frozen, many.frozen)
    self.assertGreater(many.activations, 2 * few.activations)


if __name__ == '__main__':
  absltest.main()
