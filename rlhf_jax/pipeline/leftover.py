"""What A-LOL leaves out of a log: responses without a positive advantage.

Baheti et al. 2024, https://arxiv.org/abs/2305.14718, sections 2.2 and 4.1.
"""

import numpy as np

from rlhf_jax.evaluation import texts as texts_lib
from rlhf_jax.pipeline import artifacts
from rlhf_jax.storage import files

LOWEST = 20  # responses that are shown


def report(world: artifacts.World, values: np.ndarray
           ) -> dict[str, float | None]:
  """Writes `lowest.jsonl`, shows one line, and says what is left out.

  Args:
    world: of the stage; its log is read.
    values: f32[N] of the prompts of the training examples.

  Returns:
    'filtered_share' of all training responses and filtered_<group>; None of a
    group without a response.
  """
  context, groups = world.context, world.log.groups
  arrays = world.log.training()
  present = arrays['mask'].any(axis=-1)
  advantages = arrays['scores'] - values[:, None]
  files.write_jsonl(context.directory / 'lowest.jsonl',
                    _lowest(world, arrays, values, advantages))
  shares = filtered(advantages, present, arrays['group'], groups)
  each = ', '.join(f'{name} {shares[f"filtered_{name}"]:.1%}'
                   for name in groups
                   if shares[f'filtered_{name}'] is not None)
  context.show(
      f'{shares["filtered_share"]:.1%} of {int(present.sum())} logged '
      f'responses have no positive advantage ({each}); the lowest are in '
      f'{context.directory / "lowest.jsonl"}')
  return shares


def filtered(advantages: np.ndarray, present: np.ndarray, group: np.ndarray,
             groups: list[str]) -> dict[str, float | None]:
  """Share of the responses without a positive advantage, and by group.

  Args:
    advantages: f32[N, K].
    present: bool[N, K], where there is a response.
    group: i32[N, K], index into `groups`.
    groups: their names.
  """
  share = lambda at: float(np.mean(advantages[at] <= 0)) if at.any() else None
  return {'filtered_share': share(present)} | {
      f'filtered_{name}': share(present & (group == i))
      for i, name in enumerate(groups)}


def _lowest(world, arrays, values, advantages) -> list[dict]:
  """The responses of least advantage, in order, with their texts."""
  present = arrays['mask'].any(axis=-1)
  ranked = np.argsort(np.where(present, advantages, np.inf), axis=None,
                      kind='stable')[:min(LOWEST, int(present.sum()))]
  at = np.unravel_index(ranked, present.shape)
  prompts, responses = texts_lib.decode(
      world.corpus.tokenizer, arrays['tokens'][at], arrays['mask'][at])
  return [{'prompt': prompt, 'response': response,
           'group': world.log.groups[arrays['group'][i, k]],
           'score': arrays['scores'][i, k], 'value': values[i],
           'advantage': advantages[i, k]}
          for prompt, response, i, k in zip(prompts, responses, *at)]
