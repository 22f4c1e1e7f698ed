"""Best-of-n curves of single proxies and of ensembles, for one condition.

Coste et al. 2024, section 5.1 and equations 1, 3-5, 7-8. The gold score is
re-sorted with every method's own proxy score (the released code keeps the
order of the first member), and members are standardised on held-out responses
before they are combined, unless told otherwise.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlhf_jax.ops import best_of_n
from rlhf_jax.ops import ensembles
from rlhf_jax.pipeline import picks
from rlhf_jax.storage import files

NEEDS, READS = ('scores', 'proxies'), ()


def run(context, *, upstream: Mapping[str, Any],
        methods: Mapping[str, Mapping[str, Any]], standardize: bool) -> dict:
  """Writes `curves.npz`: `<what>__<method>` f32[B, len(ns)], and `ns`.

  Args:
    context: of the stage.
    upstream: stages by role, see `artifacts`.
    methods: name to the arguments of `ops.ensembles.aggregate`.
    standardize: members to mean 0 and deviation 1 on held-out responses
      before they are combined; False combines raw scores, as the released
      code does.
  """
  scores = picks.load(context, upstream, standardize)
  members = scores.pop('members')
  singles = {f'single_{m}': dict(kind='single', member=m)
             for m in range(len(members))}
  methods = singles | {k: dict(v) for k, v in methods.items()}
  aggregated = {name: np.asarray(ensembles.aggregate(members, **kwargs))
                for name, kwargs in methods.items()}
  centred = lambda x: (x - x.mean()) / x.std()
  watched = {  # what is followed as the proxy is optimised
      'gold': centred(scores['gold']), 'unfinished': scores['unfinished'],
      'length': scores['length']}
  if 'rule' in scores:
    watched['rule'] = centred(scores['rule'])
  ns, curves = picks.grid(scores['gold'].shape[1]), {}
  for name, proxy in aggregated.items():
    proxy = centred(proxy)
    of_proxy = best_of_n.curves(proxy, {**watched, 'proxy': proxy}, ns)
    curves |= {f'{what}__{name}': x for what, x in of_proxy.items()}
  files.save_arrays(
      context.directory / 'curves.npz', ns=np.array(ns), **curves)
  return {'methods': list(methods)}
