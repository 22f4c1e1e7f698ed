"""Tests for rlhf_jax.http_judge, against a server on loopback."""

import contextlib
import email.utils
import http.server
import io
import json
import os
import pathlib
import socket
import tempfile
import threading
import time
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from rlhf_jax import errors
from rlhf_jax.evaluation import http_judge
from rlhf_jax.evaluation import judging
from rlhf_jax.runner import run as run_lib

KEY = 'canary-0123456789'


def completion(text):
  return json.dumps({'choices': [{'message': {'content': text}}]})


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers with what the test has put in the list, one a request."""

  def do_POST(self):
    length = int(self.headers['Content-Length'])
    body = json.loads(self.rfile.read(length))
    self.server.seen.append((self.path, dict(self.headers), body))
    answer = self.server.answers.pop(0)
    if callable(answer):
      answer(self)
      return
    status, text, *headers = answer
    self.send_response(status)
    for header in headers:
      self.send_header(*header)
    self.end_headers()
    self.wfile.write(text.encode())

  def log_message(self, *unused_args):
    pass


class HttpJudgeTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    cls.endpoint = f'http://127.0.0.1:{cls.server.server_port}/v1/'
    cls.thread = threading.Thread(
        target=cls.server.serve_forever, kwargs={'poll_interval': .01})
    cls.thread.start()

  @classmethod
  def tearDownClass(cls):
    cls.server.shutdown()
    cls.server.server_close()
    cls.thread.join()
    super().tearDownClass()

  def setUp(self):
    super().setUp()
    self.enter_context(mock.patch.dict(os.environ, {'JUDGE_KEY': f'{KEY}\n'}))
    self.waits = []

  def judge(self, *answers, **kwargs):
    self.server.answers, self.server.seen = list(answers), []
    self.waits.clear()
    return http_judge.http_judge(
        self.endpoint, 'small', sleep=self.waits.append, **kwargs)

  def failure(self, kind, judge):
    with self.assertRaises(kind) as caught:
      judge('p', 'x', 'y')
    message = str(caught.exception)
    self.assertNotIn(KEY, message)
    self.assertNotIn('\n', message)
    self.assertIn(f'judge {self.endpoint}chat/completions: ', message)
    return message

  def test_request(self):
    judge = self.judge((200, completion('Long.\nAnswer: B')),
                       (200, completion('tie')), key_variable='JUDGE_KEY')
    self.assertEqual(judge('Why "so"?', 'x\n\u2028', '\U0001f600'), 'B')
    self.assertEqual(judge('p', 'x', 'y', reference='z'), 'tie')
    self.assertEqual(self.waits, [])
    (path, headers, body), (_, _, again) = self.server.seen
    self.assertEqual(path, '/v1/chat/completions')
    self.assertEqual(headers['Authorization'], f'Bearer {KEY}')
    self.assertEqual(headers['Content-Type'], 'application/json')
    system, user = body.pop('messages')
    self.assertEqual(body, {'model': 'small', 'temperature': 0,
                            'max_tokens': 200})
    self.assertEqual(system, {'role': 'system',
                              'content': http_judge.INSTRUCTIONS})
    self.assertEqual(user['role'], 'user')
    self.assertEqual(json.loads(user['content']), {
        'prompt': 'Why "so"?', 'A': 'x\n\u2028', 'B': '\U0001f600'})
    self.assertEqual(json.loads(again['messages'][1]['content']), {
        'prompt': 'p', 'A': 'x', 'B': 'y', 'reference': 'z'})

  @parameterized.parameters(
      f'bad key {KEY}', json.dumps({'error': {'message': f'no {KEY}'}}),
      json.dumps({'error': {'message': KEY}}).replace('-', '\\u002d'),
      completion(KEY).replace('-', '\\u002d'), f'{KEY * 400}')
  def test_no_byte_of_the_key_anywhere(self, text):
    """Whatever a server makes of it, and whether it refuses, fails or lies."""
    for status in (200, 401, 500):
      judge = self.judge(*[(status, text)] * 2, key_variable='JUDGE_KEY',
                         max_retries=1)
      workdir = pathlib.Path(
          self.enter_context(tempfile.TemporaryDirectory()))
      output = io.StringIO()
      stage = run_lib.Stage(
          'ask', lambda context, judge=judge: {'x': judge('p', 'x', 'y')})
      with (contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
            self.assertRaises(errors.UserError) as caught):
        run_lib.run_study([stage], workdir, config={'key': 'JUDGE_KEY'})
      written = [p.read_bytes() for p in workdir.rglob('*') if p.is_file()]
      self.assertGreater(len(written), 3)
      for told in (*written, output.getvalue().encode(),
                   str(caught.exception).encode()):
        self.assertNotIn(KEY.encode(), told)

  def test_no_key(self):
    self.assertEqual(self.judge((200, completion('A')))('p', 'x', 'y'), 'A')
    self.assertNotIn('Authorization', self.server.seen[0][1])

  def test_asks_again_until_it_can_read_the_answer(self):
    date = email.utils.formatdate(time.time() - 60, usegmt=True)
    answers = [
        (429, '{}', ('Retry-After', '0')), (429, '', ('Retry-After', '2.5')),
        (503, 'busy', ('Retry-After', date)), (500, ''),
        (200, 'no JSON'), (200, '{"choices": []}'), (200, '[]'),
        (200, completion(None)), (200, completion('')),
        (200, completion('Both have merits.')),
        (429, '', ('Retry-After', '999999')), (408, ''),
        lambda handler: handler.wfile.write(b'\0\n'),
        lambda handler: None,  # closes the connection
        (200, completion('neither'))]
    judge = self.judge(*answers, max_retries=14)
    self.assertEqual(judge('p', 'x', 'y'), 'neither')
    self.assertLen(self.server.seen, 15)
    # As told, else 1, 2, 4, ... seconds, and never more than 120.
    self.assertEqual(self.waits, [0, 2.5, 0, 8, 16, 32, 64, 120, 120, 120, 120,
                                  120, 120, 120])
    self.assertLen({json.dumps(x[2]) for x in self.server.seen}, 1)

  @parameterized.parameters(
      ((503, '{"error": {"message": "over\\nloaded"}}'),
       'HTTP 503 over loaded, after 3 requests; '),
      ((429, KEY), r'HTTP 429 [key], after 3 requests; '),
      ((200, f'"{KEY}"'), """'"[key]"' is no completion, after 3 requests"""),
      ((200, completion(f'It depends.\n{KEY}')), "'It depends.\\n[key]' does "
       'not end in A, B, tie or neither, after 3 requests; '))
  def test_gives_up(self, answer, message):
    judge = self.judge(*[answer] * 9, max_retries=2, key_variable='JUDGE_KEY')
    self.assertIn(message, self.failure(errors.RewardError, judge))
    self.assertLen(self.server.seen, 3)
    self.assertEqual(self.waits, [1, 2])

  def test_one_deadline_from_connect_to_last_byte(self):
    """However an answer drips in; what it says first counts all the same."""
    release = threading.Event()
    self.addCleanup(release.set)

    def drip(first, rest=b' ' * 100):
      def answer(handler):
        handler.wfile.write(first)
        with contextlib.suppress(OSError):
          for byte in rest:
            handler.wfile.write(bytes([byte]))
            if release.wait(.02):
              return
      return answer

    answers = [
        lambda handler: release.wait(60), drip(b'', b'HTTP/1.0 ' * 20),
        drip(b'HTTP/1.0 200 OK\r\n', b'X: y\r\n' * 30),
        drip(b'HTTP/1.0 200 OK\r\n\r\n'),  # as while a model thinks
        drip(b'HTTP/1.0 200 OK\r\n\r\n' + completion('A').encode()),
        drip(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n',
             b'0' * 100)]
    for answer in answers:
      judge = self.judge(answer, max_retries=0, timeout=.2)
      began = time.monotonic()
      self.assertIn('no answer in 0.2 s, after 1 requests',
                    self.failure(errors.RewardError, judge))
      self.assertLess(time.monotonic() - began, 1)
    busy = drip(b'HTTP/1.0 503 Busy\r\nRetry-After: 7\r\n\r\n')
    judge = self.judge(busy, (200, completion('A')), timeout=.2)
    self.assertEqual(judge('p', 'x', 'y'), 'A')
    self.assertEqual(self.waits, [7])

  def test_a_host_that_is_looked_up_for_ever(self):
    release = threading.Event()
    self.addCleanup(release.set)
    look_up = lambda *unused_args, **unused_kwargs: release.wait(60) and []
    judge = self.judge(max_retries=0, timeout=.1)
    with mock.patch.object(socket, 'getaddrinfo', look_up):
      self.assertIn('no answer in 0.1 s',
                    self.failure(errors.RewardError, judge))

  def test_nobody_there(self):
    with http.server.HTTPServer(('127.0.0.1', 0), Handler) as server:
      port = server.server_port
    judge = http_judge.http_judge(f'http://127.0.0.1:{port}', 'small',
                                  sleep=self.waits.append, max_retries=1)
    with self.assertRaisesRegex(
        errors.RewardError, f'127.0.0.1:{port}/chat/completions: '
        'ConnectionRefusedError.*after 2 requests'):
      judge('p', 'x', 'y')
    self.assertEqual(self.waits, [1])

  def test_too_long_an_answer(self):
    judge = self.judge((200, ' ' * (2**20 + 1)), max_retries=0)
    self.assertIn('more than 1048576 bytes, after 1 requests',
                  self.failure(errors.RewardError, judge))

  @parameterized.parameters(400, 401, 403, 404)
  def test_refused_at_once(self, status):
    judge = self.judge((status, f'{{"error": {{"message": "no {KEY}"}}}}'),
                       key_variable='JUDGE_KEY')
    self.assertIn(
        f'HTTP {status} no [key]; check the endpoint, the model and the key '
        'in JUDGE_KEY', self.failure(errors.ConfigError, judge))
    self.assertLen(self.server.seen, 1)
    self.assertEqual(self.waits, [])

  @parameterized.parameters(301, 302, 307, 308)
  def test_no_redirects(self, status):
    target = self.endpoint.replace('127.0.0.1', 'localhost')
    judge = self.judge((status, '', ('Location', target)),
                       (200, completion('A')), key_variable='JUDGE_KEY')
    self.assertIn(f'HTTP {status}; check the endpoint',
                  self.failure(errors.ConfigError, judge))
    self.assertLen(self.server.seen, 1)

  def test_judges_in_both_orders(self):
    judge = self.judge(*[(200, completion('A'))] * 4)
    answers = judging.ask_twice(judge, 'pq', 'ab', 'cd')
    self.assertEqual(judging.judge_win_rate(*answers)['kept'], 0)
    self.assertEqual(judging.judge_average(*answers), .5)


class ConfigTest(parameterized.TestCase):

  @parameterized.parameters(
      'localhost:8000', 'ftp://host/v1', 'http://', 'file:///etc/passwd', '',
      'http://host:port/', 'http://host/a b', 'http://ho\nst/', 'http://[')
  def test_endpoint(self, endpoint):
    with self.assertRaisesRegex(errors.ConfigError, "give a URL such as"):
      http_judge.http_judge(endpoint, 'small')

  @parameterized.parameters(
      f'http://user:{KEY}@host/v1', f'http://{KEY}@host/v1',
      f'http://host/v1?key={KEY}', f'http://host/v1#{KEY}')
  def test_secret_in_endpoint(self, endpoint):
    with self.assertRaisesRegex(errors.ConfigError, 'bare URL') as caught:
      http_judge.http_judge(endpoint, 'small')
    self.assertNotIn(KEY, str(caught.exception))

  @parameterized.parameters(
      ('sk-0123', None, 'NAME of an environment variable'),
      ('hf_abcdef', None, 'NAME of an environment variable'),
      ('AKIA0123', None, 'NAME of an environment variable'),
      ('', None, 'NAME of an environment variable'),
      ('JUDGE_KEY', None, 'JUDGE_KEY.*is not set'),
      ('JUDGE_KEY', ' \n', 'JUDGE_KEY.*is not set'),
      ('JUDGE_KEY', f'{KEY}\n{KEY}', 'JUDGE_KEY holds a space or a sign'),
      ('JUDGE_KEY', f'{KEY}é', 'JUDGE_KEY holds a space or a sign'))
  def test_key(self, variable, value, message):
    with mock.patch.dict(os.environ, {'JUDGE_KEY': value or ''}):
      with self.assertRaisesRegex(errors.ConfigError, message) as caught:
        http_judge.http_judge(
            'http://localhost/v1', 'small', key_variable=variable)
    for secret in (KEY, '0123', 'abcdef'):
      self.assertNotIn(secret, str(caught.exception))

  def test_key_is_not_kept(self):
    with mock.patch.dict(os.environ, {'JUDGE_KEY': KEY}):
      judge = http_judge.http_judge(
          'http://localhost/v1', 'small', key_variable='JUDGE_KEY')
    self.assertNotIn(KEY, repr([x.cell_contents for x in judge.__closure__]))
    with mock.patch.dict(os.environ, {'JUDGE_KEY': ''}):
      with self.assertRaisesRegex(errors.ConfigError, 'is not set'):
        judge('p', 'x', 'y')

  @parameterized.parameters(
      ('timeout', 0), ('max_tokens', 0), ('max_retries', -1))
  def test_ranges(self, name, value):
    with self.assertRaisesRegex(ValueError, f'^{name} must be .* got {value}'):
      http_judge.http_judge('http://localhost', 'small', **{name: value})


class ParseTest(parameterized.TestCase):

  @parameterized.parameters(
      ('A', 'A'), ('b', 'B'), ('tie', 'tie'), ('Neither.', 'neither'),
      ('equal', 'tie'), ('It is a tie.', 'tie'),
      ('A is good.\n\nAnswer: B', 'B'),
      ('**B**', 'B'), ('[[A]]', 'A'), ('Response A is better.', 'A'),
      ('The better response is B', 'B'), ('final_answer = "A"', 'A'),
      ('{"answer": "tie"}', 'tie'), ('B\n```\n', 'B'),
      ('```json\n{\n  "reason": "B lies",\n  "answer": "A"\n}\n```', 'A'),
      ('{"answer": "A"} no: {"answer" : "neither", "why": "B"}', 'neither'),
      ('', None), ('\n', None), ('C', None), ('A or B', None), ('A, B', None),
      ('Response A is not better', None), ('AB', None), ('A\nI am sure', None),
      ('x' * 300 + ' A', None), ('{"answer": "C"}', None))
  def test_last_line(self, text, choice):
    self.assertEqual(http_judge.parse_choice(text), choice)


if __name__ == '__main__':
  absltest.main()
