"""Files as users have them, and the commands that read them, in a process."""

import contextlib
import csv
import functools
import io
import json
import pathlib
import sys
from unittest import mock

import worlds

from rlhf_jax import main
from rlhf_jax.data import coders

COLOURS = ('red', 'blue', 'green', 'black', 'white', 'pink')
THINGS = ('car', 'cat', 'sky', 'house', 'book')


def _question(i: int) -> str:
  return f'Name a colour for the {THINGS[i % 5]} number {i}.'


def _answers(i: int) -> tuple[str, str]:
  return f'I like {COLOURS[i % 6]}, thank you.', COLOURS[(i + 1) % 6]


@functools.cache
def folder() -> pathlib.Path:
  """With pairs.jsonl, messages.jsonl, prompts.jsonl, scored.csv, kto.jsonl,
  ranked.jsonl, demonstrations.json and mine.py, a module of rewards."""
  return worlds.once('own_data', _write)


def _write(path: pathlib.Path):
  lines = {'pairs': [], 'messages': [], 'prompts': [], 'kto': [], 'ranked': []}
  for i in range(60):
    asked, (good, bad) = _question(i), _answers(i)
    message = lambda role, text: [{'role': role, 'content': text}]
    lines['pairs'].append(dict(prompt=asked, chosen=good, rejected=bad))
    lines['messages'].append(dict(
        prompt=message('user', asked), chosen=message('assistant', good),
        rejected=message('assistant', bad)))
    lines['prompts'].append(dict(prompt=asked))
    lines['kto'].append(dict(prompt=asked, completion=(good, bad)[i % 2],
                             label=not i % 2))
    lines['ranked'].append(dict(instruction=asked, completions=[
        dict(response=text, overall_score=score)
        for text, score in ((bad, 2), (good, 9))]))
  for name, rows in lines.items():
    (path / f'{name}.jsonl').write_text(''.join(
        json.dumps(row) + '\n' for row in rows))
  (path / 'demonstrations.json').write_text(json.dumps([
      dict(instruction=_question(i), output=_answers(i)[0])
      for i in range(60)]))
  with open(path / 'scored.csv', 'w', newline='') as stream:
    writer = csv.writer(stream)
    writer.writerow(('prompt', 'response', 'reward'))
    writer.writerows((_question(i), _answers(i)[i % 2], (1.5, .25)[i % 2])
                     for i in range(60))
  (path / 'mine.py').write_text(
      'def polite(prompts, responses):\n'
      '  return [len(text) / 100 for text in responses]\n\n\n'
      'def huge(prompts, responses):\n'
      '  return [1e6 + len(text) for text in responses]\n')


def run(*words: str, stdin: str = '') -> tuple[int, str, str]:
  """The exit code of `rlhf-jax <words>`, and what it says on both streams.

  In this process, in which programs stay compiled.
  """
  out, err = io.StringIO(), io.StringIO()
  with (contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
        mock.patch.object(sys, 'stdin', io.StringIO(stdin))):
    code = main.run(['rlhf-jax', *map(str, words)])
  return code, out.getvalue(), err.getvalue()


SHORT = ('--size=smoke', '--max_prompt_length=48', '--max_response_length=12')


def succeed(*words, stdin: str = '') -> str:
  """What a command says that has to succeed."""
  code, out, err = run(*words, stdin=stdin)
  assert code == 0, err
  return out


@functools.cache
def trained() -> pathlib.Path:
  return worlds.once('trained', _train)


@functools.cache
def other_tokenizer() -> pathlib.Path:
  """A directory with a tokenizer of other texts."""
  def write(path):
    coders.train_tokenizer([('a quick brown', 'fox jumps')] * 3, 300, ()
                           ).save_directory(path)
  return worlds.once('other_tokenizer', write)


def _train(path: pathlib.Path):
  """An SFT model, exported; reward models on it; RLOO against them."""
  data = folder()
  succeed('train', '--algorithm=sft', f'--data={data}/demonstrations.json',
          *SHORT, f'--workdir={path}/sft')
  succeed('export', f'--workdir={path}/sft', '--stage=seed_0/policies/policy',
          f'--directory={path}/model')
  model = f'--model={path}/model'
  succeed('train', '--algorithm=reward', f'--data={data}/pairs.jsonl', model,
          *SHORT, '--members=3', f'--workdir={path}/rewards')
  succeed('export', f'--workdir={path}/rewards',
          '--stage=seed_0/rewards/proxies', f'--directory={path}/ensemble')
  succeed('train', '--algorithm=rloo', f'--data={data}/prompts.jsonl', model,
          *SHORT, f'--reward={path}/rewards/seed_0/rewards/proxies',
          '--aggregate=worst_case', f'--workdir={path}/rloo')
