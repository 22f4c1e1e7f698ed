"""What a plan says of memory is what states take; what is too much, refused."""

import re
import subprocess

from absl.testing import absltest
from absl.testing import parameterized
import jax
import worlds

from rlhf_jax import errors
from rlhf_jax import train
from rlhf_jax.models import pretrained
from rlhf_jax.models import transformer
from rlhf_jax.parallel import sharding
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.studies import footprints
from rlhf_jax.studies import memory
from rlhf_jax.studies import plan
from rlhf_jax.studies import programs

FIGURE_4 = 'experiments/coste2024_reward_model_ensembles/fig4_ppo.py'
MESHES = (dict(fsdp=4), dict(fsdp=2, tensor=2), dict(member=2, fsdp=2))


def uses_of(axes, **changes):
  config = worlds.get_config(FIGURE_4, 'smoke') | changes
  config['mesh'] |= axes
  stages = plan.plan(config)
  by_name = {use.stage: use for use in memory.uses(config, stages, 8)}
  return config, by_name


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
    proxies = next(name for name in uses if name.endswith('/proxies'))
    for name, kept in (('seed_0/sft', state), (proxies, ensemble)):
      use = uses[name]
      self.assertEqual(use.trained, sharding.device_bytes(kept.params), name)
      self.assertEqual(use.trained + use.optimizer,
                       sharding.device_bytes(kept), name)
    run = next(use for name, use in uses.items() if 'policies' in name)
    self.assertGreater(run.trained, uses['seed_0/sft'].trained)  # a value head
    self.assertGreater(run.frozen, frozen)  # the reference, and who judges

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
        'has 1e-06; split more'):
      memory.check(uses, memory.Machine('tiny', 8, 1e-6))

  @parameterized.parameters(
      ('v5e:4x4', 16, 16), ('v5p:2x2x2', 8, 95), ('h100x8', 8, 80))
  def test_machines(self, name, count, gib):
    self.assertEqual(memory.machine(name), memory.Machine(name, count, gib))

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


if __name__ == '__main__':
  absltest.main()
