"""A headless Chromium, driven through a pipe: no driver and no package.

`--remote-debugging-pipe` has the browser read DevTools messages from file 3
and write them to file 4, each ended by a zero byte.
"""

import base64
import contextlib
import itertools
import json
import os
import pathlib
import select
import shutil
import subprocess
import tempfile
import time
from typing import Any

_FLAGS = (
    '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic',
    '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync', '--hide-scrollbars',
    '--disable-dev-shm-usage', '--remote-debugging-pipe')
_PATIENCE = 120.0  # seconds for one answer


def path() -> str | None:
  """Where the browser is, if there is one."""
  return shutil.which('chromium') or shutil.which('chromium-browser')


class Browser:
  """One process; `page` opens a file in it."""

  def __init__(self):
    self._stack = contextlib.ExitStack()
    profile = self._stack.enter_context(
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    self._out, self._in = ours_out, ours_in
    for descriptor in (ours_out, ours_in):
      self._stack.callback(os.close, descriptor)
    self._process = subprocess.Popen(
        ['bash', '-c', f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', 'bash',
         path(), *_FLAGS, f'--user-data-dir={profile}', 'about:blank'],
        pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for descriptor in (theirs_in, theirs_out):
      os.close(descriptor)
    self._ids, self._left, self.events = itertools.count(1), b'', []

  def __enter__(self) -> 'Browser':
    return self

  def __exit__(self, *unused):
    self._process.terminate()
    try:
      self._process.wait(10)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._stack.close()

  def _read(self, end: float) -> dict:
    """The next message."""
    while b'\0' not in self._left:
      ready, _, _ = select.select([self._in], [], [], max(0, end - time.time()))
      data = os.read(self._in, 1 << 20) if ready else b''
      if not data:
        raise RuntimeError('the browser does not answer')
      self._left += data
    message, _, self._left = self._left.partition(b'\0')
    return json.loads(message)

  def send(self, method: str, session: str | None = None, **params) -> dict:
    """The result of a DevTools method; what happens meanwhile is an event."""
    number = next(self._ids)
    message = {'id': number, 'method': method, 'params': params}
    if session is not None:
      message['sessionId'] = session
    data = json.dumps(message).encode() + b'\0'
    while data:
      data = data[os.write(self._out, data):]
    end = time.time() + _PATIENCE
    while True:
      answer = self._read(end)
      if answer.get('id') == number:
        if 'error' in answer:
          raise RuntimeError(f'{method}: {answer["error"]}')
        return answer['result']
      self.events.append(answer)

  def page(self, file: pathlib.Path, *, width: int = 1280, height: int = 900,
           dark: bool = False) -> 'Page':
    """Opens a file, and waits until it is loaded."""
    target = self.send('Target.createTarget', url='about:blank')['targetId']
    session = self.send('Target.attachToTarget', targetId=target,
                        flatten=True)['sessionId']
    page = Page(self, session, target)
    for domain in ('Page', 'Runtime', 'Network', 'Log'):
      page.send(f'{domain}.enable')
    page.send('Emulation.setDeviceMetricsOverride', width=width, height=height,
              deviceScaleFactor=1, mobile=width < 600)
    page.media(dark=dark)
    page.send('Page.navigate', url=file.absolute().as_uri())
    end = time.time() + _PATIENCE
    while page.run('document.readyState') != 'complete' or page.run(
        'location.href') == 'about:blank':
      if time.time() > end:
        raise RuntimeError('the page does not load')
      time.sleep(.1)
    return page


class Page:
  """A page that is open."""

  def __init__(self, browser: Browser, session: str, target: str):
    self._browser, self._session, self._target = browser, session, target

  def send(self, method: str, **params) -> dict:
    return self._browser.send(method, self._session, **params)

  def media(self, *, dark: bool = False, kind: str = ''):
    """The medium, and what the user prefers."""
    self.send('Emulation.setEmulatedMedia', media=kind, features=[
        {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}])

  def run(self, script: str) -> Any:
    """The value of an expression, a promise's too."""
    answer = self.send('Runtime.evaluate', expression=script,
                       returnByValue=True, awaitPromise=True)
    if 'exceptionDetails' in answer:
      raise RuntimeError(f'{script}: {answer["exceptionDetails"]}')
    return answer['result'].get('value')

  def picture(self, file: pathlib.Path, *, whole: bool = True):
    """Writes a PNG."""
    data = self.send('Page.captureScreenshot', captureBeyondViewport=whole)
    file.write_bytes(base64.b64decode(data['data']))

  def requests(self) -> list[str]:
    """What it has asked for, but for itself and what stands in it."""
    urls = [event['params']['request']['url'] for event in self._events(
        'Network.requestWillBeSent')]
    return [url for url in urls
            if not url.startswith(('data:', 'blob:', 'file:'))]

  def complaints(self) -> list[str]:
    """What it has said on the console, and exceptions."""
    return [json.dumps(event['params'])[:500] for method in (
        'Runtime.exceptionThrown', 'Runtime.consoleAPICalled',
        'Log.entryAdded') for event in self._events(method)]

  def _events(self, method: str) -> list[dict]:
    self.run('0')  # what is on its way has come
    return [event for event in self._browser.events
            if event.get('sessionId') == self._session
            and event['method'] == method]

  def close(self):
    self._browser.send('Target.closeTarget', targetId=self._target)
