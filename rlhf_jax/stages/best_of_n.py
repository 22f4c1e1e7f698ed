"""Best-of-n curves of single proxies and of ensembles, for one condition.

Coste et al. 2024, section 5.1 and equations 1, 3-5, 7-8. The gold score is
re-sorted with every method's own proxy score (the released code keeps the
order of the first member), and members are standardised on held-out responses
before they are combined, unless told otherwise.
"""

import jax.numpy as jnp
import numpy as np

from rlhf_jax.data import load as load_lib
from rlhf_jax.models import pretrained
from rlhf_jax.ops import best_of_n
from rlhf_jax.ops import ensembles
from rlhf_jax.pipeline import artifacts
from rlhf_jax.stages import scores
from rlhf_jax.storage import files


def grid(num_samples: int) -> list[int]:
  """1, 2, 4, ... and N itself."""
  powers = [2**i for i in range(num_samples.bit_length())]
  return [n for n in powers if n < num_samples] + [num_samples]


def run(context, *, seed: int, data: dict, samples: str, proxies: str,
        model: dict, num_members: int, methods: dict,
        standardize: bool = True) -> dict:
  """Writes `curves.npz`: `<what>__<method>` f32[B, len(ns)], and `ns`.

  Args:
    context: of the stage.
    seed: of the corpus.
    data: config node of the corpus.
    samples: stage that holds the responses.
    proxies: stage that holds the ensemble.
    model: shape of the proxies' trunk.
    num_members: E.
    methods: name to the arguments of `ops.ensembles.aggregate`.
    standardize: members to mean 0 and deviation 1 on held-out responses
      before they are combined; False combines raw scores, as the released
      code does.
  """
  corpus = load_lib.load(data, seed)
  config = pretrained.config(model, corpus.tokenizer.vocab_size)
  params = artifacts.load_members(context, proxies, config, num_members)
  known = scores.gather(
      context, config, params, samples, corpus.tokenizer.eos_id)
  members = known.pop('members')
  if standardize:
    members = scores.standardized(context, proxies, members)
  singles = {f'single_{m}': dict(kind='single', member=m)
             for m in range(num_members)}
  methods = singles | {k: dict(v) for k, v in methods.items()}
  aggregated = {name: np.asarray(ensembles.aggregate(members, **kwargs))
                for name, kwargs in methods.items()}

  gold = known['gold']
  watched = {  # what is followed as the proxy is optimised
      'gold': (gold - gold.mean()) / gold.std(),
      'unfinished': known['unfinished'],
      'length': known['length'],
  }
  if 'rule' in known:
    rule = known['rule']
    watched['rule'] = (rule - rule.mean()) / rule.std()
  ns = grid(gold.shape[1])
  curves = {}
  for name, proxy in aggregated.items():
    proxy = (proxy - proxy.mean()) / proxy.std()
    for what, values in {**watched, 'proxy': proxy}.items():
      curves[f'{what}__{name}'] = np.asarray(best_of_n.curve(
          jnp.asarray(proxy), jnp.asarray(values, jnp.float32), ns))
  files.save_arrays(
      context.directory / 'curves.npz', ns=np.array(ns), **curves)
  return {'methods': list(methods)}
