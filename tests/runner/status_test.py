"""What a status says of a command that lives, has ended, or was killed."""

import pytest

from rlhf_jax import errors
from rlhf_jax.runner import status
from rlhf_jax.runner import workdirs
from rlhf_jax.storage import files


@pytest.mark.parametrize('error, expected', [
    (None, {'state': 'complete', 'code': 'OK', 'exit_code': 0}),
    (errors.Interrupted('x'), {'state': 'interrupted', 'exit_code': 75}),
    (errors.DataError('bad'), {
        'state': 'failed', 'code': 'DATA', 'exit_code': 3, 'message': 'bad'}),
    (KeyError(), {'state': 'failed', 'code': 'BUG', 'exit_code': 1,
                  'message': 'KeyError'})])
def test_how_a_command_ends(tmp_path, error, expected):
  one = status.Status(tmp_path)
  one.write(stage='sft')
  one.ended(error)
  state = status.read(tmp_path)
  assert state.items() >= expected.items() and state['stage'] == 'sft'
  one.at_once(130)
  assert status.read(tmp_path)['state'] == 'killed'


def test_a_status_is_read_as_it_is(tmp_path):
  assert status.read(tmp_path) == {}
  assert status.killed(tmp_path) is None
  state = {'state': 'running', 'pid': 1}
  files.write_json(tmp_path / 'status.json', state)
  assert status.read(tmp_path)['state'] == 'killed'
  with workdirs.locked(tmp_path):
    assert status.read(tmp_path) == state
    assert status.killed(tmp_path) == 'pid 1, at its start'
  for ended in ('complete', 'failed', 'interrupted'):
    files.write_json(tmp_path / 'status.json', {'state': ended, 'pid': 1})
    assert status.read(tmp_path) == {'state': ended, 'pid': 1}
    assert status.killed(tmp_path) is None
  for damage in ('[]', '{', '3', '[' * 10**5):
    (tmp_path / 'status.json').write_text(damage)
    assert status.killed(tmp_path) is None
    with pytest.raises(errors.CheckpointError, match=r'status\.json'):
      status.read(tmp_path)
