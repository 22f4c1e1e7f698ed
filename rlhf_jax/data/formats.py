r"""Prompt formats: rows of text to (prompt_text, response_text).

Every format is called as `format(prompt, response='', input='')`. Prompt and
response are tokenized apart, so a format also decides which side owns the
white space between them:

  alpaca  neither: as in Stanford's training code, the answer follows the
          colon of '### Response:' at once
  hh      the response: it starts with exactly one space, as after the other
          '\n\nAssistant:' turns, and loses all other white space at its ends
"""

from collections.abc import Callable

from rlhf_jax import errors

Format = Callable[..., tuple[str, str]]

# github.com/tatsu-lab/stanford_alpaca, train.py, PROMPT_DICT.
_ALPACA = (
    'Below is an instruction that describes a task. Write a response that '
    'appropriately completes the request.\n\n'
    '### Instruction:\n{instruction}\n\n### Response:'
)
_ALPACA_INPUT = (
    'Below is an instruction that describes a task, paired with an input '
    'that provides further context. Write a response that appropriately '
    'completes the request.\n\n'
    '### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:'
)


def alpaca(
    prompt: str, response: str = '', input: str = ''
) -> tuple[str, str]:
  """The Stanford Alpaca prompt, with or without an input."""
  template = _ALPACA_INPUT if input else _ALPACA
  return template.format(instruction=prompt, input=input), response


def hh(prompt: str, response: str = '', input: str = '') -> tuple[str, str]:
  r"""An HH dialogue as it is, and ' ' + the stripped response.

  Args:
    prompt: a dialogue that ends with '\n\nAssistant:'.
    response: the next turn; blank becomes '', with no space.
    input: must be '', there is no place for it.

  Returns:
    (prompt_text, response_text).

  Raises:
    ValueError: if an input is given.
  """
  if input:
    raise ValueError(f"format 'hh' has no place for the input {input!r}")
  response = response.strip()
  return prompt, f' {response}' if response else ''


_FORMATS = {'alpaca': alpaca, 'hh': hh}


def get(name: str) -> Format:
  """Returns the format of that name.

  Args:
    name: 'alpaca' or 'hh'.

  Returns:
    A function (prompt, response='', input='') -> (prompt_text,
    response_text).

  Raises:
    ConfigError: unknown name; the message lists those there are.
  """
  if name not in _FORMATS:
    known = ', '.join(sorted(_FORMATS))
    raise errors.ConfigError(
        f'unknown prompt format {name!r}; available: {known}'
    )
  return _FORMATS[name]
