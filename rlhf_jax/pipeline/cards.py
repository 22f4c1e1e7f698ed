"""Model cards: what an export says of itself, to people and their programs."""

from typing import Any

from rlhf_jax import errors
from rlhf_jax.data import formats

# As `Tokenizer.encode_rows`; what {} stands for is `_cut`.
_ENCODE = '''
def encode(tokenizer, prompt, response):
  text = lambda x: tokenizer(x, add_special_tokens=False).input_ids
  start, end = tokenizer('').input_ids, [tokenizer.eos_token_id]
  prompt, response = text(prompt), text(response) + end
{}  return start + prompt + response
'''
_ONE = '''# A reward model, by rlhf_jax

Loads in transformers as `AutoModelForSequenceClassification` with one label.
`reward.json` holds what transformers has no place for: the bias of the
head{unit}.

```python
import json, pathlib, torch, transformers
{encode}
directory = pathlib.Path('.')  # of this file
told = json.loads((directory / 'reward.json').read_text())
tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
model = transformers.AutoModelForSequenceClassification.from_pretrained(
    directory)
ids = encode(tokenizer, prompt, response)
score = model(torch.tensor([ids])).logits[0, 0].item() + told['bias']
```
'''
_MANY = '''# An ensemble of {members} reward models, by rlhf_jax

Each `member_*` loads in transformers as `AutoModelForSequenceClassification`
with one label. Its `reward.json` holds what transformers has no place for: the
bias of the head{unit}. The members in the order of `ensemble.json`:

```python
import json, pathlib, torch, transformers
{encode}
directory, scores = pathlib.Path('.'), []  # of this file
for name in json.loads((directory / 'ensemble.json').read_text())['members']:
  told = json.loads((directory / name / 'reward.json').read_text())
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory / name)
  model = transformers.AutoModelForSequenceClassification.from_pretrained(
      directory / name)
  ids = encode(tokenizer, prompt, response)
  score = model(torch.tensor([ids])).logits[0, 0].item() + told['bias']
  scores.append((score - told.get('mean', 0)) / told.get('std', 1))
scores = torch.tensor(scores)
mean, worst, spread = scores.mean(), scores.min(), scores.var(correction=0)
uncertainty_weighted = mean - 0.5 * spread
```

`mean`, `worst` and `uncertainty_weighted` are those of Coste et al. 2024, with
the coefficient that the study was given in place of 0.5.
'''


def reward(members: int, standardized: bool, texts: dict[str, Any] | None
           ) -> str:
  """The card of reward models, in Markdown.

  Args:
    members: E.
    standardized: whether each has a mean and a deviation.
    texts: of `artifacts.texts_of`.
  """
  unit = (', and its mean and standard deviation on held-out responses'
          if standardized else '')
  return (_ONE if members == 1 else _MANY).format(
      members=members, unit=unit, encode=_ENCODE.format(_cut(texts))
      ) + _format(texts)


def _cut(texts: dict[str, Any] | None) -> str:
  """The lines of `_ENCODE` that keep what the models have seen."""
  if not texts:
    return ''
  return (
      f'  prompt = prompt[-max({texts["max_prompt_length"]} - len(start), 1):]'
      f'\n  response = response[:{texts["max_response_length"]}]\n')


def _format(texts: dict[str, Any] | None) -> str:
  """How prompts and responses are written, in words and in an example."""
  if not texts:
    return ''
  lengths = (f'Prompts of more than {texts["max_prompt_length"]} tokens lose '
             f'their front, responses end after {texts["max_response_length"]}'
             '.\n')
  name = texts['format']
  if not name:
    return f'\nTexts are as they are. {lengths}'
  example = ''
  try:
    prompt, response = formats.get(name)('PROMPT', 'RESPONSE')
    example = (f': the prompt PROMPT is\n\n```\n{_spelled(prompt)!r}\n```\n\n'
               f'and the response RESPONSE is `{_spelled(response)!r}`')
  except (TypeError, ValueError, errors.UserError):
    pass  # of a conversation with more parts
  return (f'\nTexts are written in the format `{name}` of '
          f'`rlhf_jax.data.formats`{example}. {lengths}')


def _spelled(text: Any) -> str:
  """A text of a format, control tokens by their names."""
  if isinstance(text, formats.Turns):
    raise ValueError('the template of the model writes it')
  if isinstance(text, str):
    return text
  return ''.join(part if isinstance(part, str) else part.name or '<EOS>'
                 for part in text)


_POLICY = '''# A policy, by rlhf_jax

{}

```python
import transformers

{}
```
'''
_WHOLE = ('Loads in transformers as `AutoModelForCausalLM`.', '''\
tokenizer = transformers.AutoTokenizer.from_pretrained('.')
model = transformers.AutoModelForCausalLM.from_pretrained('.')
tokens = tokenizer(prompt, return_tensors='pt')
print(tokenizer.decode(model.generate(**tokens, do_sample=True)[0]))''')
_ADAPTER = ('An adapter, which `peft` puts on the model it was trained on.',
            '''\
import peft

model = peft.AutoPeftModelForCausalLM.from_pretrained('.')''')


def policy(texts: dict[str, Any] | None, *, adapter: bool,
           has_template: bool) -> str:
  """The card of a policy, in Markdown.

  Args:
    texts: of `artifacts.texts_of`.
    adapter: whether it is an adapter alone.
    has_template: whether its tokenizer came with a chat template.
  """
  card = _POLICY.format(*(_ADAPTER if adapter else _WHOLE)) + _format(texts)
  if has_template and texts and texts['format'] != 'chat_template':
    card += ('The chat template that came with the tokenizer may write another '
             'format: build prompts as above.\n')
  return card
