"""Policies whose evaluations are written by hand, and a report of them."""

import csv
import json
import pathlib
import tempfile
from unittest import mock

from absl.testing import parameterized

from rlhf_jax.reports import panels
from rlhf_jax.stages import policy_report

# Gold scores at three evaluations, by run and seed; 'single' has two members.
GOLD = {'single_0': [[0, 4, 1], [0, 1, 5]], 'single_1': [[0, 2, 3], [0, 1, 7]],
        'mean': [[0, 3, 5], [0, 4, 7]]}
LABELS = {'single_0': {'method': 'single', 'member': 0},
          'single_1': {'method': 'single', 'member': 1},
          'mean': {'method': 'mean'}}


class Context:
  """What the stage may use of its study."""

  def __init__(self, workdir):
    self.directory = pathlib.Path(workdir, 'report')
    self.directory.mkdir()
    self.directory_of = lambda name: pathlib.Path(workdir, name)
    self.result_of = lambda name: {'accuracy': .5, 'stage_of': name}
    self.seconds_of = lambda name: 2.5
    self.recipe_of = lambda name: f'recipe of {name}'
    self.shown = ''

  def show(self, text):
    self.shown += text


class ReportTestCase(parameterized.TestCase):
  """Three runs of two seeds in a temporary workdir."""

  def setUp(self):
    super().setUp()
    workdir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.context = Context(workdir)
    self.policies = []
    for name, seeds in GOLD.items():
      for seed, gold in enumerate(seeds):
        stage = f'seed_{seed}/policies/{name}'
        self.policies.append({'stage': stage, 'seed': seed, 'run': name,
                              'labels': LABELS[name]})
        self.write(stage, 'evaluation', [
            {'step': 10 * i, 'time': 1., 'gold': float(x), 'gold_se': .1,
             'proxy': i + .5, 'proxy_se': .2, 'rule': None,
             'kl_k1': 60. * i, 'sqrt_kl': 8. * i, 'length': 20.}
            for i, x in enumerate(gold)])
        self.write(stage, 'metrics', [
            {'step': i, 'rollout/score': float(x)} for i, x in enumerate(gold)])
        self.write(stage, 'final', [
            {'prompt': i, 'gold': float(x)} for i, x in enumerate(gold)])

  def write(self, stage, name, rows):
    directory = self.context.directory_of(stage)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f'{name}.jsonl').write_text(
        ''.join(json.dumps(row) + '\n' for row in rows))

  def report(self, policies=None, judged='', **figure):
    """Runs the stage."""
    return policy_report.run(
        self.context, policies=policies or self.policies, judged=judged,
        stages=['seed_0/sft'], title='A title', figure=figure)

  def rows(self, name):
    """Those of a CSV file of the report."""
    with open(self.context.directory / f'{name}.csv', newline='') as stream:
      return list(csv.DictReader(stream))

  def drawn(self, what, policies=None, judged='', **figure):
    """What a function of `panels` is asked to draw."""
    with mock.patch.object(panels, what) as draw:
      self.report(policies, judged, **figure)
    draw.assert_called_once()
    return draw.call_args.kwargs
