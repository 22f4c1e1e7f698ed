"""What figures call methods, labels and columns, and how they colour them."""

from collections.abc import Iterable, Mapping, Sequence
import re
from typing import Any

import numpy as np

from rlhf_jax.storage import files

# Colour and name of each way to combine reward models. The colours are those
# of Okabe and Ito, told apart by colour-blind readers too.
STYLE = {
    'single': ('#D55E00', 'single model (mean of members)'),
    'mean': ('#0072B2', 'ensemble mean'),
    'worst_case': ('#009E73', 'worst-case (WCO)'),
    'uncertainty_weighted': ('#CC79A7', 'uncertainty-weighted (UWO)'),
}
# Every other method, likewise, in the order in which figures list them: what is
# one method's with another number has a lighter or a darker colour of it.
_OTHERS = {
    'reference': '#BBBBBB', 'NLL': '#7F7F7F',
    'REINFORCE': '#E69F00', 'Vanilla PG': '#56B4E9', 'actor-critic': '#CC79A7',
    'PPO': '#0072B2', 'PPO, adaptive': '#0072B2', 'PPO, no KL': '#66AAD2',
    'PPO, KL penalty': '#66AAD2',
    'RLOO': '#009E73', 'RLOO, k=2': '#66C5AB', 'RLOO, k=4': '#009E73',
    'RAFT': '#D55E00', 'RAFT, k=2': '#E69E66', 'RAFT, k=4': '#D55E00',
    'PRO': '#999933', 'DPO': '#000000', 'DPO, ref. free': '#4D4D4D',
    'wBC': '#DDCC77', 'R-GOLD': '#B59A2D', 'R-LOL': '#7A651A',
    'A-LOL, ref. free': '#E3B5CE', 'A-LOL': '#CC79A7', 'A-LOL, seq': '#9C3F74',
    'A-LOL, KL': '#661F49',
    'ILQL, shift 1': '#66AAD2', 'ILQL, shift 4': '#0072B2',
    'AWR': '#D55E00', 'AWR, lambda .1': '#E69E66', 'AWR, lambda 1': '#D55E00',
    'APA, lambda 1': '#66C5AB', 'APA': '#009E73', 'APA, lambda 0.1': '#009E73',
}
PALETTE = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9',
           '#000000')
SQRT_KL = r'$\sqrt{\mathrm{KL}}$, nats$^{1/2}$'
# What an axis says of a column of an evaluation, with its unit.
AXES = {
    'step': 'rollouts',
    'updates': 'optimizer steps',
    'samples': 'responses drawn',
    'sqrt_kl': SQRT_KL.replace(',', ' (k2),'),
    **{f'kl_k{i}': f'KL (k{i}), nats' for i in (1, 2, 3)},
    'gold': 'gold score, s.d. of SFT samples',
    'proxy': 'proxy score',
    'rule': 'rule, s.d. of SFT samples',
    'ensemble_variance': 'ensemble variance',
    'ensemble_variance_unbiased': 'ensemble variance (ddof 1)',
    'length': 'length, tokens',
    'words': 'length, words',
    'unfinished': 'share of unfinished responses',
    **{f'distinct_{n}': f'distinct-{n}' for n in (1, 2, 3)},
    **{f'diversity_{n}': f'diversity-{n}' for n in (1, 2)},
    'perplexity': 'perplexity per token',
    'reward_variance': 'variance of the proxy score',
    'entropy': 'entropy, nats',
    'epoch': 'epochs',  # these of reward models
    'loss': 'loss on held-out pairs, nats',
    'accuracy': 'accuracy on held-out pairs',
    'win_rate': 'win rate',  # by the judge of the study
}
CHANCE = {'win_rate': 0.5}  # of columns that are shares
# The same of columns that have a name, or number, in them.
_OPEN = {
    r'member_(\d+)': 'member {}',
    r'component_(\w+)': '{} (component)',
    r'gold_split_(.+)': 'gold score of {}, s.d.',
    r'proxy_split_(.+)': 'proxy score of {}',
}
_DERIVED = {
    'peak': 'peak of the gold score, s.d. of SFT samples',
    'peak_step': 'rollouts at the peak',
    'drop': 'gold score, peak less last, s.d.',
    'rollout/score': 'score of rollouts',
    'policy/clip_fraction': 'share of tokens clipped',
}
_LABELS = {
    'kl_coef': 'KL coefficient',
    'uncertainty_coef': r'uncertainty coefficient $\lambda$',
    'num_members': 'ensemble members',
}
_MEMBERS = ' (mean of members)'
# The colour of each method by its name, in order.
METHODS = {name.removesuffix(_MEMBERS): colour
           for colour, name in STYLE.values()} | _OTHERS
_PLACES = {name: i for i, name in enumerate(METHODS)}


def of_aggregates(names: Iterable[str]) -> dict[str, tuple[str, str]]:
  """Colour and name of each way to combine reward models, in their order.

  What ends in a number, as `configs.base.tag` writes it, is one of another
  coefficient: 'uncertainty_weighted_01' has a lambda of .1, and is lighter the
  smaller and darker the larger that is. What has a name of its own comes last.

  Args:
    names: of the methods of best-of-n; single members, 'single_0', are none.
  """
  names = {name for name in names if not re.fullmatch(r'single_\d+', name)}
  out = {name: STYLE[name] for name in STYLE if name in names}
  own = iter(PALETTE[:3:-1] * len(names))
  for name in sorted(names - out.keys()):
    kind, _, tag = name.rpartition('_')
    if kind in STYLE and tag.isdecimal():
      colour, label = STYLE[kind]
      number = f'0.{tag[1:]}' if tag[0] == '0' and tag[1:] else tag
      out[name] = (_shade(colour, float(number)),
                   rf'{label}, $\lambda$ {number}')
    else:
      out[name] = next(own), name.replace('_', ' ')
  return out


def _shade(colour: str, number: float) -> str:
  """Lighter below a half, darker above."""
  return _mixed(colour, 1.2 * (number / (1 + number) - 1 / 3))  # of a half: 0


def _mixed(colour: str, share: float) -> str:
  """With so much of black, or with its opposite of white."""
  end = 0 if share > 0 else 255
  parts = [int(colour[i:i + 2], 16) for i in (1, 3, 5)]
  return '#' + ''.join(
      f'{round(part + abs(share) * (end - part)):02X}' for part in parts)


def colour_of(method: Any) -> str | None:
  """The colour of a method by its label; None where it has none."""
  return METHODS.get(name_of({'method': method})) if method else None


def place(method: Any) -> int:
  """Where a figure lists a method by its label; without a place, last."""
  return _PLACES.get(name_of({'method': method}), len(_PLACES))


def label_name(label: str) -> str:
  """What an axis or a legend calls a label of runs."""
  return _LABELS.get(label, label.replace('_', ' '))


def name_of(labels: Mapping[str, Any], *, of_members: bool = False) -> str:
  """A line of a legend, or the title of a panel, from labels of runs.

  Args:
    labels: name to value; None where a run has none.
    of_members: whether it is a mean over the members of an ensemble.
  """
  parts = []
  for label, value in labels.items():
    if label == 'method' and value in STYLE:
      parts.append(STYLE[value][1].removesuffix(_MEMBERS))
    elif isinstance(value, str):
      parts.append(value.replace('_', ' '))
    elif value is not None:
      shown = value if isinstance(value, bool) else f'{value:g}'
      parts.append(f'{label_name(label)} {shown}')
  name = ', '.join(parts) or ', '.join(
      f'no {label_name(label)}' for label in labels)
  return name + _MEMBERS * (of_members and bool(name))


def column_name(column: str) -> str | None:
  """What an axis says of a column; None where no evaluation has it."""
  for pattern, text in _OPEN.items():
    match = re.fullmatch(pattern, column)
    if match and not column.endswith('_se'):
      return text.format(match[1].replace('_', ' '))
  return AXES.get(column)


def axis_name(column: str) -> str:
  """What an axis says of a column of an evaluation or of a summary."""
  base = column.removesuffix('_above')
  name = (column_name(base) or _DERIVED.get(base)
          or base.replace('_', ' '))
  return name if base == column else f'{name},\nabove the baseline'


def _families(names: Iterable[str]) -> dict[str, list[str]]:
  """Method to those names that say more of it: 'NLL' to 'NLL, up'."""
  families = {}
  for name in names:
    parts = name.removesuffix(_MEMBERS).split(', ')
    for i in range(len(parts), 0, -1):
      method = ', '.join(parts[:i])
      if method in METHODS:
        families.setdefault(method, []).append(name)
        break
  return families


def colours(names: Sequence[str]) -> dict[str, Any]:
  """A colour for each; methods look alike in every figure.

  What is one method's with different labels has lighter and darker colours of
  it, in order.
  """
  import matplotlib
  fixed = dict.fromkeys(names)
  for method, alike in _families(names).items():
    shares = np.linspace(-.45, .35, len(alike)) if alike[1:] else [0.]
    fixed |= {name: _mixed(METHODS[method], share)
              for name, share in zip(alike, shares)}
  rest = [name for name in names if fixed[name] is None]
  free = [c for c in PALETTE if c not in fixed.values()]
  if len(rest) > len(free):
    free = matplotlib.colormaps['viridis'](np.linspace(0, 0.9, len(rest)))
  return fixed | dict(zip(rest, free))


def colours_apart(rows: Sequence[files.Row]) -> dict[str, Any] | None:
  """Colours that differ within each panel, where no more can be told apart.

  Args:
    rows: each with its 'panel' and its 'line'.

  Returns:
    The colour of each line; None where few lines need no more than `colours`,
    or a panel has too many.
  """
  lines = list(dict.fromkeys(row['line'] for row in rows))
  if len(lines) <= len(PALETTE):
    return None
  if sum(map(len, _families(lines).values())) == len(lines):
    return colours(lines)
  pairs = dict.fromkeys((row['panel'], row['line']) for row in rows)
  chosen = {}
  for line in lines:
    where = {panel for panel, other in pairs if other == line}
    taken = {chosen.get(other) for panel, other in pairs if panel in where}
    free = [colour for colour in PALETTE if colour not in taken]
    if not free:
      return None
    chosen[line] = free[0]
  return chosen
