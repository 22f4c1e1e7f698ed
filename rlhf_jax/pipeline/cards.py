"""Model cards: what an export says of itself, to people and their programs."""

from typing import Any

_ONE = '''# A reward model, by rlhf_jax

Loads in transformers as `AutoModelForSequenceClassification` with one label.
`reward.json` holds what transformers has no place for: the bias of the head{}.

```python
import json, pathlib, torch, transformers

directory = pathlib.Path('.')  # of this file
told = json.loads((directory / 'reward.json').read_text())
tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
model = transformers.AutoModelForSequenceClassification.from_pretrained(
    directory)
ids = (tokenizer(prompt).input_ids + tokenizer(
    response, add_special_tokens=False).input_ids + [tokenizer.eos_token_id])
score = model(torch.tensor([ids])).logits[0, 0].item() + told['bias']
```
'''
_MANY = '''# An ensemble of {} reward models, by rlhf_jax

Each `member_*` loads in transformers as `AutoModelForSequenceClassification`
with one label. Its `reward.json` holds what transformers has no place for: the
bias of the head{}. The members in the order of `ensemble.json`:

```python
import json, pathlib, torch, transformers

directory, scores = pathlib.Path('.'), []  # of this file
for name in json.loads((directory / 'ensemble.json').read_text())['members']:
  told = json.loads((directory / name / 'reward.json').read_text())
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory / name)
  model = transformers.AutoModelForSequenceClassification.from_pretrained(
      directory / name)
  ids = (tokenizer(prompt).input_ids + tokenizer(
      response, add_special_tokens=False).input_ids + [tokenizer.eos_token_id])
  score = model(torch.tensor([ids])).logits[0, 0].item() + told['bias']
  scores.append((score - told.get('mean', 0)) / told.get('std', 1))
scores = torch.tensor(scores)
mean, worst, spread = scores.mean(), scores.min(), scores.var(correction=0)
uncertainty_weighted = mean - 0.5 * spread
```

`mean`, `worst` and `uncertainty_weighted` are those of Coste et al. 2024, with
the coefficient that the study was given in place of 0.5.
'''
_TEXTS = '''
`prompt` is written in the format `{format}` of `rlhf_jax.data.formats`; \
prompts of more than {max_prompt_length} tokens lose their front, responses \
end after {max_response_length}.
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
  card = _ONE.format(unit) if members == 1 else _MANY.format(members, unit)
  return card + (_TEXTS.format(**texts) if texts else '')


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


def policy(texts: dict[str, Any] | None, *, adapter: bool) -> str:
  """The card of a policy, in Markdown.

  Args:
    texts: of `artifacts.texts_of`.
    adapter: whether it is an adapter alone.
  """
  card = _POLICY.format(*(_ADAPTER if adapter else _WHOLE))
  if not texts:
    return card
  return card + (
      f'\nPrompts are written in the format `{texts["format"]}` of '
      f'`rlhf_jax.data.formats`, in at most {texts["max_prompt_length"]} '
      f'tokens; responses have at most {texts["max_response_length"]}.\n')
