"""The fault matrix: what the tests say of each kind of fault.

`python tests/fault_matrix.py [--out FILE.md] [arguments of pytest]`, or `make
test-faults`, runs the tests that are listed here and prints a table: trials,
failures, seconds and skips, by row. A run of the suite writes the same table
where RLHF_JAX_FAULT_MATRIX names a file, so that nothing is run twice.

A test that makes many trials says how many by `tell`; others are one.
"""

import argparse
import collections
import os
import pathlib
import sys
from typing import NamedTuple

import pytest

TESTS = pathlib.Path(__file__).resolve().parent
OUT, ONLY = 'RLHF_JAX_FAULT_MATRIX', 'RLHF_JAX_FAULTS_ONLY'
TRIALS = 'fault_trials'


class Row(NamedTuple):
  """A kind of fault, and what there is about it.

  Attributes:
    fault: in words.
    tests: beginnings of node ids, below `tests/`.
    lacking: what is not tested of it, and why; or nothing.
  """

  fault: str
  tests: tuple[str, ...]
  lacking: str = ''


ROWS = {
    'F1': Row('SIGKILL in a step', (
        'runner/resume_test.py::ResumeTest::test_killed_five_times',
        'runner/resume_test.py::ResumeTest::test_interrupted_and_killed',
        'runner/resume_test.py::FitTest',
        'pipeline/fit_test.py::ResumeTest',
        'stages/sft_test.py::StageTest::test_resumed',
        'stages/online_policy_test.py::LearningTest::test_killed',
        'stages/offline_policy_test.py::ResumeTest',
        'stages/prompt_value_test.py::ValueTest::test_interrupted',
        'studies/offline_test.py::StudyTest::test_interrupted')),
    'F2': Row('SIGKILL in a save', (
        'storage/checkpoint_test.py::test_sigkill',
        'storage/checkpoint_test.py::test_leftovers',
        'storage/checkpoint_test.py::test_a_step_is_on_disk',
        'storage/files_test.py::test_whole_or_not_at_all',
        'storage/metrics_test.py::test_a_killed_process',
        'models/tensors_test.py::WriteTest::test_killed')),
    'F3': Row('killed in a phase of RL', (
        'stages/online_policy_test.py::LearningTest::test_killed',
        'stages/online_policy_test.py::MaskPolicyTest::test_killed',
        'stages/samples_test.py::SamplesTest::test_an_interrupted',
        'pipeline/fit_test.py::WatchTest::test_nothing_is_evaluated_twice'),
        'SIGKILL within an epoch: the epochs of a rollout are one program, '
        'in which a kill at a random time is that of F1'),
    'F4': Row('SIGTERM, SIGINT, SIGHUP, once and twice', (
        'runner/run_test.py::test_a_signal',
        'runner/run_test.py::test_a_second_signal',
        'runner/run_test.py::test_a_terminal_that_is_closed',
        'runner/run_test.py::test_a_killed_run_is_told',
        'runner/resume_test.py::ResumeTest::test_interrupted_twice',
        'main_test.py::FrontDoorTest::test_ctrl_c')),
    'F5': Row('full disk', (
        'storage/checkpoint_test.py::test_full_disk',
        'storage/checkpoint_test.py::test_short_space',
        'storage/metrics_test.py::test_a_full_disk')),
    'F6': Row('damaged file', (
        'storage/checkpoint_test.py::test_damage',
        'storage/checkpoint_test.py::test_fall_back',
        'storage/checkpoint_test.py::test_all_damaged',
        'storage/files_test.py::test_damaged_arrays',
        'runner/trust_test.py::',
        'runner/workdirs_test.py::test_a_damaged',
        'runner/run_test.py::test_a_damaged',
        'runner/reuse_test.py::test_a_damaged',
        'chaos_test.py::')),
    'F7': Row('other devices than before', (
        'pipeline/fit_test.py::ResumeTest::test_goes_on_over_another_mesh',
        'storage/checkpoint_test.py::test_other_environment',
        'storage/checkpoint_test.py::test_restores_onto')),
    'F8': Row('changed config, data or code', (
        'runner/workdirs_test.py::test_a_changed_config',
        'runner/workdirs_test.py::test_a_safe_change',
        'runner/run_test.py::test_a_refused_config',
        'runner/run_test.py::test_a_safe_change',
        'runner/trust_test.py::test_other_inputs',
        'runner/trust_test.py::test_edited_code',
        'runner/trust_test.py::test_another_config',
        'pipeline/artifacts_test.py::CorpusTest',
        'main_test.py::FrontDoorTest::test_a_changed_config')),
    'F9': Row('loss or gradient that is not finite', (
        'train_test.py::LoopTest', 'train_test.py::StepTest::test_step_that',
        'pipeline/fit_test.py::SkippedTest',
        'train_test.py::StepTest::test_finite_loss',
        'train_test.py::StepTest::test_one_bad',
        'storage/checkpoint_test.py::test_non_finite')),
    'F10': Row('reward that is no number, or all equal', (
        'rewards/finite_test.py::', 'rewards/scale_test.py::',
        'rewards/components_test.py::ValuesTest::test_a_member_without',
        'rewards/components_test.py::TotalTest::test_finite_parts',
        'rewards/components_test.py::FunctionsTest::test_what_is_dropped',
        'rewards/programmatic_test.py::DropTest',
        'sources_test.py::BadRewardTest',
        'stages/online_policy_test.py::FunctionsTest::test_bad_rewards')),
    'F11': Row('reward function that raises, hangs or lies', (
        'rewards/programmatic_test.py::FaultTest',
        'rewards/programmatic_test.py::ConfigTest',
        'stages/online_policy_test.py::FunctionsTest')),
    'F12': Row('empty and overlong texts, no EOS', (
        'data/screening_test.py::LongTest',
        'data/tokenizer_test.py::EncodeRowsTest',
        'data/tokenizer_test.py::EndingTest',
        'data/readers_test.py::AlpacaTest::test_empty_outputs',
        'data/readers_test.py::HhTest::test_empty_response',
        'rewards/models_test.py::ScoreTest::test_empty_response',
        'data/formats_test.py::IdsTest::test_long_prompt')),
    'F13': Row('Unicode', (
        'data/readers_test.py::AlpacaTest::test_text_survives',
        'data/readers_test.py::BadRowsTest::test_reported_then_allowed',
        'data/readers_test.py::FileFaultsTest::test_invalid_utf8',
        'data/tables_test.py::CsvFaultsTest::test_one_bad_record',
        'data/tokenizer_test.py::BpeTest::test_round_trip')),
    'F14': Row('repeated rows, equal pairs, overlap', (
        'data/readers_test.py::AlpacaTest::test_dedup',
        'data/readers_test.py::HhTest::test_bad_row',
        'data/screening_test.py::IdenticalTest',
        'data/kinds_test.py::KindsTest::test_ties',
        'data/corpus_test.py::SplitTest::test_whole_prompts',
        'data/logs_test.py::FileTest::test_held_out_prompts')),
    'F15': Row('malformed rows and files', (
        'data/readers_test.py::BadRowsTest',
        'data/readers_test.py::FileFaultsTest',
        'data/readers_test.py::HhTest::test_bad_row',
        'data/readers_test.py::RealFilesTest',
        'data/tables_test.py::CsvFaultsTest',
        'data/tables_test.py::WholeFilesTest',
        'data/kinds_test.py::KindsTest::test_bad')),
    'F16': Row('config that is wrong', (
        'main_test.py::BadInputTest', 'studies/nodes_test.py::ConfigTest',
        'configs/training_test.py::MistakesTest')),
    'F17': Row('tokens and model that do not fit', (
        'data/tokenizer_test.py::CheckIdsTest',
        'data/tokenizer_test.py::CheckVocabularyTest',
        'data/tokenizer_test.py::FileTest::test_pad_and_bos',
        'data/tokenizer_test.py::FileTest::test_missing_special',
        'data/backends_test.py::DirectoryTest::test_padding_without',
        'models/pretrained_test.py::NodeTest::test_more_tokens',
        'rewards/models_test.py::ChunkTest::test_foreign_tokens',
        'stages/sft_test.py::StageTest::test_a_tokenizer_that_does')),
    'F18': Row('weights that are missing, extra or wrong', (
        'models/convert_test.py::RefusalTest',
        'models/convert_test.py::VariantTest',
        'models/convert_test.py::DtypeTest',
        'models/adapters_test.py::RoundTripTest::test_refused')),
    'F19': Row('pickle in every disguise', (
        'models/directory_test.py::PickleTest',
        'models/convert_test.py::RefusalTest::test_pickles',
        'models/adapters_test.py::RoundTripTest::test_pickle',
        'storage/files_test.py::test_no_pickle')),
    'F20': Row('malformed safetensors and GGUF', (
        'models/tensors_test.py::ReadTest::test_malformed',
        'models/tensors_test.py::ReadTest::test_every_byte',
        'models/tensors_test.py::ReadTest::test_what_the_library',
        'models/gguf_file_test.py::MalformedTest')),
    'F21': Row('paths that lead out, links, devices', (
        'models/directory_test.py::WeightFilesTest',
        'models/directory_test.py::CheckTest',
        'runner/workdirs_test.py::test_a_link',
        'storage/files_test.py::test_nothing_is_written_through',
        'data/tables_test.py::DirectoryTest::test_files_elsewhere',
        'data/readers_test.py::FileFaultsTest::test_pipe')),
    'F22': Row('two processes, one workdir', (
        'runner/run_test.py::test_two_processes',
        'runner/workdirs_test.py::test_a_lock',
        'runner/workdirs_test.py::test_the_lock',
        'runner/workdirs_test.py::test_who_only_looks',
        'parallel/processes_test.py::ProcessesTest::test_second_owner')),
    'F23': Row('one process of two dies', (
        'parallel/processes_test.py::ProcessesTest::test_killed_and_stopped',
        'runner/cluster_test.py::ClusterTest::test_supervise')),
    'F24': Row('mesh that does not fit, other configs', (
        'parallel/meshes_test.py::MeshTest::test_what_does_not_fit',
        'parallel/processes_test.py::ProcessesTest::test_disagreement',
        'runner/cluster_test.py::ClusterTest::test_flags',
        'studies/checks_test.py::FieldsTest::test_a_mesh',
        'studies/checks_test.py::FieldsTest::test_what_is_left')),
    'F25': Row('workdir that cannot be written, or hangs', (
        'storage/patience_test.py::test_a_file_system_that_hangs',
        'runner/workdirs_test.py::test_a_read_only',
        'runner/workdirs_test.py::test_a_file_in_the_way',
        'runner/run_test.py::test_a_file_in_the_way',
        'storage/checkpoint_test.py::test_file_in_the_way',
        'storage/metrics_test.py::test_a_deleted_directory',
        'storage/metrics_test.py::test_an_unusable_path'),
        'no fall-back directory: a save that fails ends the run, and the '
        'steps before it are intact'),
    'F26': Row('clock that jumps, deleted logs, closed stdout', (
        'storage/metrics_test.py::test_a_deleted_file',
        'runner/bars_test.py::test_a_stderr_that_is_gone',
        'runner/run_test.py::test_stdout_may_be_closed',
        'runner/run_test.py::test_a_clock_that_jumps',
        'main_test.py::FrontDoorTest::test_output_that'),
        'a dead endpoint of Weights & Biases, where it is online'),
    'F27': Row('memory', (
        'studies/memory_test.py::MemoryTest::test_here',
        'studies/memory_test.py::MemoryTest::test_refused',
        'models/tensors_test.py::ReadTest::test_no_memory',
        'models/convert_test.py::MemoryTest')),
    'F28': Row('other format or algorithm', (
        'storage/checkpoint_test.py::test_newer_format',
        'storage/checkpoint_test.py::test_older_format',
        'storage/checkpoint_test.py::test_foreign_template',
        'storage/checkpoint_test.py::test_missing_training',
        'runner/workdirs_test.py::test_a_study_of_an_older',
        'runner/run_test.py::test_a_study_of_an_older',
        'runner/reuse_test.py::test_a_study_of_an_older'),
        'no frozen fixture: no version has been released'),
    'C1': Row('what is refused for security', (
        'data/templates_test.py::RefusalTest',
        'data/templates_test.py::RenderTest::test_injections',
        'data/tokenizer_test.py::BpeTest::test_injections',
        'data/readers_test.py::FileFaultsTest::test_decompression',
        'data/tables_test.py::WholeFilesTest::test_decompression',
        'data/tables_test.py::WholeFilesTest::test_parquet_that',
        'data/tables_test.py::DirectoryTest::test_code_is_not_run',
        'data/tables_test.py::DirectoryTest::test_readme_that_would',
        'evaluation/http_judge_test.py::ConfigTest',
        'evaluation/http_judge_test.py::HttpJudgeTest::test_no_redirects',
        'evaluation/http_judge_test.py::HttpJudgeTest::test_no_byte_of',
        'evaluation/http_judge_test.py::HttpJudgeTest::test_too_long',
        'models/directory_test.py::CheckTest::test_code_of_its_own',
        'models/directory_test.py::PickleTest',
        'network_test.py')),
}
_told = 0


def tell(count: int):
  """Of a test that has made more trials than one."""
  global _told
  _told += count


def rows_of(nodeid: str) -> list[str]:
  """The rows that a test belongs to."""
  name = nodeid.removeprefix('tests/')
  return [key for key, row in ROWS.items() if name.startswith(row.tests)]


class Recorder:
  """A plugin of pytest; of several processes, each has one."""

  def __init__(self):
    self._sums = collections.defaultdict(collections.Counter)
    self._reasons = collections.defaultdict(set)

  def pytest_collection_modifyitems(self, config, items):
    """Leaves only what is listed, where no more is asked for."""
    if ONLY in os.environ:
      kept = [item for item in items if rows_of(item.nodeid)]
      config.hook.pytest_deselected(
          items=[item for item in items if item not in kept])
      items[:] = kept

  def pytest_runtest_setup(self):
    global _told
    _told = 0

  @pytest.hookimpl(tryfirst=True)
  def pytest_runtest_makereport(self, item, call):
    """What it has told goes from process to process with its report."""
    if call.when == 'call':
      item.user_properties.append((TRIALS, _told))

  def pytest_runtest_logreport(self, report):
    for key in rows_of(report.nodeid):
      sums = self._sums[key]
      sums['seconds'] += report.duration
      if report.skipped:
        sums['skips'] += 1
        reason = report.longrepr
        self._reasons[key].add(str(
            reason[2] if isinstance(reason, tuple) else reason
        ).removeprefix('Skipped: '))
      elif report.when == 'call':
        told = dict(report.user_properties).get(TRIALS, 0)
        sums['trials'] += max(told, 1)
      sums['failures'] += report.failed

  def table(self) -> str:
    """Markdown."""
    lines = ['| row | fault | trials | failures | skips | seconds | remarks |',
             '|---|---|---|---|---|---|---|']
    for key, row in ROWS.items():
      sums = self._sums[key]
      remarks = [*sorted(self._reasons[key])]
      if row.lacking:
        remarks.append(f'not tested: {row.lacking}')
      lines.append(
          f'| {key} | {row.fault} | {sums["trials"]} | {sums["failures"]} | '
          f'{sums["skips"]} | {sums["seconds"]:.1f} | {"; ".join(remarks)} |')
    return '\n'.join(lines) + '\n'

  def pytest_terminal_summary(self, terminalreporter):
    if OUT in os.environ:
      pathlib.Path(os.environ[OUT]).write_text(self.table())
      terminalreporter.section('fault matrix')
      terminalreporter.write(self.table())


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--out', default=os.devnull, help='a Markdown file')
  known, others = parser.parse_known_args(argv)
  os.environ |= {OUT: known.out, ONLY: '1'}
  names = {test.partition('::')[0] for row in ROWS.values()
           for test in row.tests}
  return pytest.main(
      ['-q', *others, *(str(TESTS / name) for name in sorted(names))])


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
