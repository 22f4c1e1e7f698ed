"""Bars: plain lines, seldom, to a stderr that may be gone."""

import io
import os
import re
import sys
import time

import pytest

from rlhf_jax.runner import bars


def test_lines(monkeypatch):
  monkeypatch.setattr(sys, 'stderr', io.StringIO())
  with bars.Bar(1000, 4, 'sft') as bar:
    for _ in range(996):
      bar.update()
  text = sys.stderr.getvalue()
  assert '\r' not in text
  first, last = text.splitlines()
  assert re.fullmatch(r'sft:   0% 4/1000 \[0:00:00<\?, \?it/s\]', first)
  assert re.fullmatch(r'sft: 100% 1000/1000 \[0:00:00<0:00:00, .*it/s\]', last)


def test_lines_are_repeated_after_the_interval(monkeypatch):
  monkeypatch.setattr(sys, 'stderr', io.StringIO())
  monkeypatch.setattr(bars, '_INTERVAL', 0.0)
  with bars.Bar(3) as bar:
    for _ in range(3):
      bar.update()
  assert len(sys.stderr.getvalue().splitlines()) == 5


def test_the_first_turn_is_no_ground(monkeypatch):
  """It compiles: 60 seconds, then 2 for each."""
  now = [100.0]
  monkeypatch.setattr(time, 'monotonic', lambda: now[0])
  bar = bars.Bar(10, 4, 'sft', tell=lambda bar: None)
  left = [bar.seconds_left()]
  for seconds in (60, 2, 2):
    now[0] += seconds
    bar.update()
    left.append(bar.seconds_left())
  assert left == [None, None, 8, 6]
  assert bar.line() == 'sft:  70% 7/10 [0:01:04<0:00:06, 2.00s/it]'
  bar.update(3)
  assert bar.seconds_left() == 0


@pytest.mark.parametrize('stream', [None, 'closed', 'pipe'])
def test_a_stderr_that_is_gone(monkeypatch, stream, capsys):
  if stream == 'closed':
    stream = io.StringIO()
    stream.close()
  elif stream == 'pipe':
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, 'w', buffering=1)
  monkeypatch.setattr(sys, 'stderr', stream)
  with bars.Bar(2) as bar:
    bar.update(2)
  monkeypatch.undo()
  assert not capsys.readouterr().out
  if stream is not None and not stream.closed:
    with pytest.raises(BrokenPipeError):
      stream.close()
