"""Faults that the tests must notice: python tests/mutants.py [text ...]

Each is a small change, most of them to `ops/` or `objectives/`: a sign, a
detach, a mask, an off-by-one, a sum for a mean, an order. In a copy of the
repository the change is made and the tests of that module are run; where they
do not notice, the laws and the enumerations. A mutant that no test notices has
survived, and the exit code is 1; it is 2 if the tests fail without any.
Arguments select the mutants whose path or text contains one of them.
`mutants_test.py` checks the list itself.
"""

import concurrent.futures
import multiprocessing
import os
import pathlib
import shutil
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
COPIED = ('rlhf_jax', 'tests', 'experiments', 'setup.cfg')
# Imported once, in the process that all others are forked from.
PRELOADED = ['chex', 'flax', 'hypothesis', 'jax', 'optax', 'pytest', 'scipy']
# path under rlhf_jax: [(old, new)]; old occurs once in the file.
MUTANTS = {
    'annotate.py': [
        ('return batch.replace(mask=batch.mask & (found > 0)[.'
         '.., None])',
         'return batch.replace(mask=batch.mask & (found >= 0)['
         '..., None])'),
        ('given - values[:, None]',
         'given + values[:, None]'),
        ('jnp.where(batch.mask.any(axis=-1), given, -jnp.inf),'
         ' axis=1)',
         'given, axis=1)'),
        ('prompt = jnp.cumsum(mask, axis=-1) == 0',
         'prompt = ~mask'),
        ('old_values=jax.lax.stop_gradient(out.values)',
         'old_values=out.values'),
        ('ref_logprobs=jax.lax.stop_gradient(out.logprobs)',
         'ref_logprobs=out.logprobs'),
        ('moments.update(moments.init(), given, present)',
         'moments.update(moments.init(), given)'),
        ('for step in steps:',
         'for step in steps[::-1]:'),
        ('batch.mask.any(axis=-1) & ~finished',
         '~finished'),
        ('found = batch.scores + found',
         'found = batch.scores'),
        ('batch, state = step(batch, state, frozen)',
         'batch, _ = step(batch, state, frozen)'),
        ('params, batch, value_config=value_config)',
         'params, batch)'),
    ],
    'columns.py': [
        ('values[splits == split])',
         'values)'),
        ("{'sqrt_kl': math.sqrt(row['kl_k2'])}",
         "{'sqrt_kl': math.sqrt(abs(row['kl_k1']))}"),
    ],
    'components.py': [
        ('(x < low) | (x > high)',
         '(x > high)'),
        ("return sum(node['weight'] * np.asarray(",
         'return sum(np.asarray('),
        ("/ node.get('scale', 1.0)",
         "* node.get('scale', 1.0)"),
        ("if not node['weight']:\n    return 0.0, 0.0",
         'if False:\n    return 0.0, 0.0'),
        ("low, high = sorted((node['weight'] * low, node['weig"
         "ht'] * high))",
         "low, high = node['weight'] * low, node['weight'] * h"
         'igh'),
        ("if kind == 'vader':\n    return (raw + 1) / 2",
         "if kind == 'vader':\n    return raw"),
        ('  if missing.size:\n',
         '  if missing.size > 1:\n'),
    ],
    'data/corpus.py': [
        ('    if self.preferences is not None:\n      held +=',
         '    if self.eval_demonstrations is not None:\n      h'
         'eld += (self.eval_demonstrations.tokens,)\n    if sel'
         'f.preferences is not None:\n      held +='),
        ('held += (self.log.tokens, self.log.mask, self.log.gr'
         'oup,',
         'held += (self.log.tokens, self.log.mask,'),
        ("if not any(part.startswith('.') for part in name.par"
         'ts)})',
         'if name.name})'),
        ('      eval_demonstrations=single(held_out),\n      ma'
         'x_response_length=max_response_length,\n      prefere'
         'nces',
         '      eval_demonstrations=single(demonstrations),\n  '
         '    max_response_length=max_response_length,\n      p'
         'references'),
    ],
    'data/fields.py': [
        ('if isinstance(found, bool) or not',
         'if not'),
        ('if not low <= got <= high:',
         'if got < low:'),
    ],
    'data/hub.py': [
        ('glob.escape(str(path.absolute()))',
         'str(path.absolute())'),
        ('if not file.is_relative_to(root):',
         'if not file.is_absolute():'),
        ("if '://' in json.dumps",
         "if 'ftp://' in json.dumps"),
        ('if split is None and len(names) == 1:',
         'if split is None and names:'),
    ],
    'data/log_kinds.py': [
        ('if votes - accepted > 0',
         'if votes > 0'),
        ("if 'hallucination' in judged:",
         "if 'partial' in judged:"),
        ("'edited', scores=(('faithful', 1.),)",
         "'edited', scores=scores"),
        ('key=lambda x: -x[2]',
         'key=lambda x: x[2]'),
        ('_FINAL.split(lines[-1] if lines else text)',
         "_FINAL.split(lines[-1] if lines else '')"),
        ('(?<!\\S)(?:####',
         '(?:####'),
    ],
    'data/logged.py': [
        ('if row.response.strip()]',
         ']'),
        ('(number, row and row.example)',
         '(0, row and row.example)'),
        ('-scores.get(name, 0)',
         'scores.get(name, 0)'),
        ('skipped=len(every) - len(present)',
         'skipped=len(every) - len(filled)'),
    ],
    'data/logs.py': [
        ('return [rows[:max_samples] for rows in found.values('
         ')]',
         'return [rows[-max_samples:] for rows in found.values'
         '()]'),
        ('tokens = np.where((group < 0)[..., None], alone, tok'
         'ens)',
         'tokens = np.where((group < 0)[..., None], tokens[:, '
         ':1], tokens)'),
        ('row.input, history=row.history)',
         'row.input, history=())'),
        ('return row.prompt, row.input, row.history',
         'return row.prompt, row.response'),
        ('answers if all(answers) else None',
         'answers'),
    ],
    'data/reviews.py': [
        ('return found[-1]',
         'return found[0]'),
    ],
    'data/tables.py': [
        ('line = reader.line_num + 1',
         'line = reader.line_num'),
        ('quoting=csv.QUOTE_NONE',
         'quoting=csv.QUOTE_MINIMAL'),
        ('has_header = set(columns) <= set(record)',
         'has_header = bool(columns)'),
        ('for number in range(line, reader.line_num + 1):',
         'for number in range(line, reader.line_num):'),
    ],
    'data/task_reviews.py': [
        ('middle = statistics.median(opinions)',
         'middle = statistics.fmean(opinions) + 1'),
        ('texts = [_moved(*row) for row in zip(texts, prompts,'
         ' asked)]',
         'texts = list(texts)'),
        ('order = sorted(range(2), key=lambda k: -liked[k])',
         'order = [0, 1]'),
    ],
    'data/task_rules.py': [
        ('and words[-2] not in reviews.MODIFIERS',
         'and True'),
        ("known = {*rest.partition(' .')[0].split()}",
         'known = {*rest.split()}'),
        ('return len(said & known) / len(said) if said else 0.'
         '0',
         'return len(said & known) / len(said) if said else 1.'
         '0'),
    ],
    'data/tasks.py': [
        ('while fails and tail in valid:',
         'while fails:\n      fails = False'),
        ('other = {slot: pair[1] for',
         'other = {slot: pair[0] for'),
        ('logit = (3 if tail in valid else -3)',
         'logit = (3 if tail not in valid else -3)'),
    ],
    'data/tokenizer.py': [
        ('each.encode_special_tokens = True',
         'each.encode_special_tokens = False'),
        ('if add_bos and head[:1] != [self.bos_id]:',
         'if add_bos:'),
        ('x.special or _CONTROL.fullmatch(x.content)',
         'x.special'),
        ('front = ids[:min(keep, length)]',
         'front = ids[:min(1, length)]'),
        ('tokenizer.vocab_size > model_vocab_size',
         'tokenizer.vocab_size >= model_vocab_size'),
    ],
    'http_judge.py': [
        ("text.replace(key, '[key]')",
         'text'),
        ('wait = 2.0**attempt if wait is None else wait',
         'wait = 2.0**attempt if not wait else wait'),
        ('build_opener(_NoRedirects)',
         'build_opener()'),
        ('range(max_retries + 1)',
         'range(max_retries)'),
    ],
    'models/directory.py': [
        ('object_pairs_hook=_unique, ',
         ''),
        ('  if pickles and not any(',
         '  if pickles and any('),
        ('  if key in _CODE_KEYS and value:',
         "  if key == 'auto_map' and value:"),
    ],
    'models/heads.py': [
        ('jax.nn.sigmoid(scalar(',
         '(scalar('),
        ('hidden = jnp.where(mask[..., None], hidden, 0)',
         'hidden = hidden'),
        ('      mask=mask[:, None, None])',
         '      )'),
        ('scale *= hidden_size ** -0.5',
         'scale *= hidden_size ** -1'),
    ],
    'models/lora.py': [
        ('lambda w, d: w + config.adapter_scale * d',
         'lambda w, d: w + d'),
        ("lambda x: x[:cut], params['layers'])",
         "lambda x: x[-cut:], params['layers'])"),
        ("_BELOW = ('embed', 'positions')",
         "_BELOW = ('embed',)"),
    ],
    'models/quantize.py': [
        ('jnp.maximum(largest, least)',
         'largest'),
        ('matrix.T.astype(jnp.float32).ravel()',
         'matrix.astype(jnp.float32).ravel()'),
        ('offset = absmax.mean()',
         'offset = 0 * absmax.mean()'),
        ('GROUP = 256',
         'GROUP = 64'),
    ],
    'models/tensors.py': [
        ('    if spec.start != end:',
         '    if spec.start < end:'),
        ('  if end != size:',
         '  if end > size:'),
        ('type(n) is int',
         'isinstance(n, int)'),
        ('access=mmap.ACCESS_READ',
         'access=mmap.ACCESS_COPY'),
    ],
    'models/transformer.py': [
        ("stack['depth'] = jnp.arange(start, start + length)",
         "stack['depth'] = jnp.arange(length)"),
        ('config.windows[start:start + length]',
         'config.windows[:length]'),
        ('held[:, None] < window',
         'held[:, None] <= window'),
        ('q / (depth + 1)',
         'q / jnp.maximum(depth, 1)'),
        ('keep + (1 - keep) / scaling.factor',
         'keep + (1 - keep) * scaling.factor'),
    ],
    'monitor.py': [
        ('self._logprobs(params, chosen, 1.0)',
         'self._logprobs(params, chosen, temperature)'),
        ('return (members - mean) / np.where(std == 0, 1, std)',
         'return members'),
        ('prompts.lengths[at], at)',
         'prompts.lengths[at], at % 3)'),
        ('np.concatenate(x)[:rows]',
         'np.concatenate(x)[-rows:]'),
        ('if k not in _HEADS}',
         '}'),
        ('proxy += self.weight * np.asarray(',
         'proxy += np.asarray('),
        ('columns.divergence(logprobs, reference, batch',
         'columns.divergence(reference, logprobs, batch'),
        ('value_shift=self.value_shift, **self.sampler)',
         '**self.sampler)'),
        ('if chosen is not None and self.value_shift is None:',
         'if chosen is not None:'),
        ('references=self._answers).values',
         'references=self._references).values'),
    ],
    'objectives/alol.py': [
        ('  kept = jnp.maximum(advantages, 0)\n',
         '  kept = advantages\n'),
        ('loss + kl_coef * log_ratio.sum(axis=-1)',
         'loss - kl_coef * log_ratio.sum(axis=-1)'),
        ('  return logprobs - jax.lax.stop_gradient(reference)',
         '  return jax.lax.stop_gradient(reference) - logprobs'),
        ('loss = -kept * masked.masked_sum(weight * logprobs, '
         'mask, axis=-1)',
         'loss = kept * jnp.prod(jnp.where(mask, -weight * log'
         'probs, 1), axis=-1)'),
        ('(advantages > 0).astype',
         '(advantages >= 0).astype'),
        ('  weight, metrics = _importance(log_ratio.sum(axis=-'
         '1), clip_ratio)',
         '  weight, metrics = _importance(log_ratio.sum(axis=-'
         '1), 0.9)'),
        ('loss = -scores * masked.masked_sum(weight * logprobs'
         ', mask, axis=-1)',
         'loss = -scores * masked.masked_mean(weight * logprob'
         's, mask, axis=-1)'),
        ('floor: float = 0.1',
         'floor: float = 0.2'),
    ],
    'objectives/apa.py': [
        ('advantages / beta',
         'advantages * beta'),
        ('log_ratio - advantages / beta',
         'log_ratio + advantages / beta'),
        ('loss=(log_ratio - advantages / beta)**2',
         'loss=0.5 * (log_ratio - advantages / beta)**2'),
        ('ref, advantages = jax.lax.stop_gradient(fixed)',
         'ref, advantages = fixed'),
        ('log_ratio = current - ref',
         'log_ratio = ref - current'),
        ('value_clip=None',
         'value_clip=0.2'),
        ('value_coef=value_coef, value_clip',
         'value_coef=1.0, value_clip'),
        ('value_coef: float = 1.0',
         'value_coef: float = 0.5'),
    ],
    'objectives/awr.py': [
        ('loss=-weight * current',
         'loss=weight * current'),
        ('jax.lax.stop_gradient(advantages) / beta',
         'jax.lax.stop_gradient(advantages) * beta'),
        ('jax.lax.stop_gradient(advantages) / beta',
         '-jax.lax.stop_gradient(advantages) / beta'),
        ('jnp.exp(jnp.minimum(exponent, largest))',
         'jnp.exp(jnp.clip(exponent, -largest, largest))'),
        ('largest = min(largest, math.log(max_weight))',
         'largest = math.log(max_weight)'),
        ('exponent > largest',
         'exponent < largest'),
        ('value_clip=None',
         'value_clip=0.2'),
        ("'policy/weight': weight",
         "'policy/weight': exponent"),
    ],
    'objectives/bradley_terry.py': [
        ('gap = first - second',
         'gap = second - first'),
        ('(1 - target) * nn.softplus(margin + gap)',
         '(1 - target) * nn.softplus(gap - margin)'),
        ('(first**2 + second**2)',
         '(first**2 - second**2)'),
        ('margin, target = jax.lax.stop_gradient((margin, targ'
         'et))',
         'margin, target = margin, target'),
        ('masked.masked_sum(step_rewards, mask, axis=-1)',
         '(step_rewards * mask).sum(axis=-1)'),
        ('loss.replace(weight=mask.any(axis=(-2, -1)).astype(j'
         'np.float32))',
         'loss'),
        ('present & present.all(axis=-1, keepdims=True)',
         'present'),
        ("kwargs['target'] = targets[:, 0]",
         "kwargs['target'] = targets[:, 1]"),
    ],
    'objectives/dpo.py': [
        ('loss = -(1 - label_smoothing) * nn.log_sigmoid(margi'
         'n)',
         'loss = -(1 - label_smoothing) * nn.log_sigmoid(-marg'
         'in)'),
        ('loss = -(1 - label_smoothing) * nn.log_sigmoid(margi'
         'n)',
         'loss = -(1 - label_smoothing) * jnp.log(nn.sigmoid(m'
         'argin))'),
        ('(loss - flipped) / (1 - 2 * label_smoothing)',
         '(loss - flipped) / (1 - label_smoothing)'),
        ('  if robust:',
         '  if robust or label_smoothing:'),
        ('jax.lax.stop_gradient(ref_logprobs).astype',
         'ref_logprobs.astype'),
        ('(margin > 0)',
         '(margin >= 0)'),
        ('masked.masked_mean if length_normalize else masked.m'
         'asked_sum',
         'masked.masked_sum if length_normalize else masked.ma'
         'sked_mean'),
        ('tau * log_ratios, mask',
         'log_ratios, mask'),
    ],
    'objectives/ilql.py': [
        ('jnp.pad(values[..., 1:], [(0, 0), (0, 0), (0, 1)])',
         'jnp.roll(values, -1, axis=-1)'),
        ('rewards + discount * later',
         'discount * rewards + later'),
        ('jax.lax.stop_gradient(smallest) - values',
         'smallest - values'),
        ('jax.lax.stop_gradient(ratios.ratio(beta * gap))',
         'ratios.ratio(beta * gap)'),
        ('-sum(q_logprobs)',
         '-q_logprobs[0]'),
        ('  terms = {name: jnp.where(mask, x, 0) for name, x i'
         'n terms.items()}\n',
         ''),
        ('  if not 0 < expectile < 1:',
         '  if not 0 <= expectile <= 1:'),
        ('beta: float = 0.0',
         'beta: float = 1.0'),
    ],
    'objectives/ppo.py': [
        ('loss = -surrogate',
         'loss = surrogate'),
        ('log_ratio = current - jax.lax.stop_gradient(old)',
         'log_ratio = current - old'),
        ("if ratio == 'token' or penalized:",
         "if ratio == 'token':"),
        ('clip_ratio: ratios.ClipRatio = 0.2',
         'clip_ratio: ratios.ClipRatio = 0.1'),
        ('jnp.clip(current, old - value_clip',
         'jnp.clip(current, returns - value_clip'),
        ('(clipped > loss)',
         '(clipped < loss)'),
        ("'value/loss': value.loss",
         "'value/loss': value_coef * value.loss"),
        ('if value_coef == 0:',
         'if value_coef == 1:'),
        ('loss=total.loss + penalty, metrics',
         'loss=total.loss - penalty, metrics'),
    ],
    'objectives/preference_lm.py': [
        ('preference.loss + lm_coef * nll',
         'preference.loss - lm_coef * nll'),
        ('+ lm_coef * nll',
         '+ nll'),
        ("{'token': 'sequence_mean', 'sequence': 'sequence'}",
         "{'token': 'sequence', 'sequence': 'sequence_mean'}"),
        ('lm_coef: float = 1.0',
         'lm_coef: float = 0.5'),
        ('mask.any(axis=-1).all(axis=-1)',
         'mask[:, 0].any(axis=-1)'),
        ('jnp.where(valid[:, None], scores, 0)',
         'jax.lax.stop_gradient(jnp.where(valid[:, None], scor'
         'es, 0))'),
        ('weight=valid.astype(jnp.float32)',
         'weight=preference.weight'),
        ('chex.assert_shape([logprobs, mask], (scores.shape[0]'
         ', 2, None))',
         'pass'),
    ],
    'objectives/pro.py': [
        ('gaps = scores[:, :, None] - scores[:, None, :]',
         'gaps = scores[:, None, :] - scores[:, :, None]'),
        ('  largest = jnp.where(pairs.any(axis=-1), largest, 0'
         ')',
         '  largest = largest'),
        ('means[:, None, :] * gaps)',
         'means[:, None, :] * largest[:, :, None])'),
        ('  return jnp.sum(total - own, axis=-1)',
         '  return jnp.mean(total - own, axis=-1)'),
        ('others**2',
         'others'),
        ('  valid = present[:, 0] & (others > 0)',
         '  valid = others > 0'),
        ('pairs = below & present[:, :, None] & present[:, Non'
         'e, :]',
         'pairs = below & present[:, None, :]'),
        ('sft_coef: float = 0.05',
         'sft_coef: float = 0.1'),
    ],
    'objectives/ranking.py': [
        ('jnp.where(mask, scores, 0).astype(jnp.float32), mask',
         'scores.astype(jnp.float32), mask'),
        ('jnp.triu(jnp.ones(both.shape, bool), 1)',
         'jnp.tril(jnp.ones(both.shape, bool), -1)'),
        ('mask & (jnp.cumsum(mask, axis=-1) == 1)',
         'jnp.arange(mask.shape[1])[None] + 0 * mask == 0'),
        ('jnp.where(meets, gaps, -jnp.inf)',
         'jnp.where(meets, gaps, 0)'),
        ('masked.masked_mean(nn.softplus(gaps), pairs, (1, 2))',
         'masked.masked_sum(nn.softplus(gaps), pairs, (1, 2))'),
        ('jnp.where(mask | chosen, gaps, -jnp.inf)',
         'jnp.where(mask, gaps, -jnp.inf)'),
        ('((mask.sum(axis=-1) > 1) & ~absent)',
         '(mask.sum(axis=-1) > 1)'),
        ('mask = batch.mask.any(axis=-1)',
         'mask = batch.mask.all(axis=-1)'),
    ],
    'objectives/reinforce.py': [
        ('terms, metrics = per_token * current, {}',
         'terms, metrics = -per_token * current, {}'),
        ('_reduce(penalty, mask, ratio) - terms',
         '-terms'),
        ('_reduce(log_ratio, mask, ratio), advantages',
         "_reduce(log_ratio, mask, 'sequence'), advantages"),
        ('constant_length or mask.shape[-1]',
         'constant_length or mask.shape[-2]'),
        ("kl_kind: str = 'k3'",
         "kl_kind: str = 'k1'"),
        ("if ratio in ('sequence', 'sequence_mean') and",
         "if ratio == 'sequence' and"),
    ],
    'objectives/sft.py': [
        ('loss = -jnp.where(mask, logprobs, 0)',
         'loss = jnp.where(mask, logprobs, 0)'),
        ('loss = -reduce(logprobs, mask, axis=-1)',
         'loss = reduce(logprobs, mask, axis=-1)'),
        ('loss = -reduce(logprobs, mask, axis=-1)',
         'loss = -reduce(jax.lax.stop_gradient(logprobs), mask'
         ', axis=-1)'),
        ("masked.masked_sum if aggregate == 'sequence' else ma"
         'sked.masked_mean',
         "masked.masked_sum if aggregate != 'token' else maske"
         'd.masked_mean'),
        ('return types.LossOutput(loss, mask.astype(jnp.float3'
         '2), {})',
         'return types.LossOutput(loss, jnp.ones(mask.shape), '
         '{})'),
        ('mask.any(axis=-1).astype(jnp.float32)',
         'jnp.ones(loss.shape)'),
        ("aggregate: str = 'token'",
         "aggregate: str = 'sequence'"),
        ('if out.logprobs is None:',
         'if False:'),
    ],
    'objectives/value_regression.py': [
        ('loss=error**2',
         'loss=jnp.abs(error)'),
        ('jax.lax.stop_gradient(targets).astype(jnp.float32)',
         'targets.astype(jnp.float32)'),
        ('values.astype(jnp.float32) - targets',
         '(values - targets.astype(values.dtype)).astype(jnp.f'
         'loat32)'),
        ('jnp.abs(error)},',
         'error},'),
        ('batch.mask.any(axis=-1)',
         'batch.mask.any(axis=-1) | True'),
        ('return loss.replace(weight=valid.astype(jnp.float32)'
         ')',
         'return loss'),
        ('loss=error**2',
         'loss=0.5 * error**2'),
        ('weight=valid.astype',
         'weight=jnp.ones_like(valid).astype'),
    ],
    'ops/advantages.py': [
        ('delta = reward + discount * next_value - value',
         'delta = reward + next_value - value'),
        ('jnp.where(valid, value, next_value))',
         'value)'),
        ('return jax.lax.stop_gradient(x.astype(jnp.float32))',
         'return jax.lax.stop_gradient(x)'),
        ('jnp.sqrt(variance) + epsilon',
         'jnp.sqrt(variance + epsilon)'),
        ('share = scores.size / total',
         'share = 1 / total'),
        ('if ema_decay is not None and not 0 <= ema_decay < 1:',
         'if ema_decay is not None and not 0 <= ema_decay <= 1'
         ':'),
        ('jnp.where(masked.is_last(mask), _detach(scores)[...,'
         ' None], 0)',
         'jnp.where(mask, _detach(scores)[..., None], 0)'),
        ('chex.assert_type([scores, mask], [float, bool])',
         'chex.assert_type(mask, bool)'),
    ],
    'ops/best_of_n.py': [
        ('return jnp.log(n) - (n - 1) / n',
         'return jnp.log(n) - (n - 1)'),
        ('jnp.where(j > n, (n - 1) / (j - 1), 1)',
         'jnp.where(j > n, n / j, 1)'),
        ('return n / count * jnp.exp',
         'return (n - 1) / count * jnp.exp'),
        ('proxy, gold = jax.lax.sort(pair, num_keys=1)',
         'proxy, gold = (jnp.sort(x) for x in pair)'),
        ('proxy, gold = jax.lax.sort(pair, num_keys=1)',
         'proxy, gold = jax.lax.sort(pair, num_keys=2)'),
        ('proxy[1:] != proxy[:-1]',
         'proxy[1:] < proxy[:-1]'),
        ('if not 1 <= n <= count:',
         'if not 1 <= n:'),
        ('jnp.argmax(scores, axis=1)',
         'scores.shape[1] - 1 - jnp.argmax(scores[:, ::-1], ax'
         'is=1)'),
    ],
    'ops/ensembles.py': [
        ('return scores.min(axis=0)',
         'return scores.min(axis=-1)'),
        ('return scores.min(axis=0)',
         'return scores.max(axis=0)'),
        ('scores.mean(axis=0) - uncertainty_coef * variance',
         'scores.mean(axis=0) - (uncertainty_coef or 1.0) * va'
         'riance'),
        ('scores.mean(axis=0) - uncertainty_coef * variance',
         'scores.mean(axis=0) + uncertainty_coef * variance'),
        ('return jnp.var(scores, axis=0, ddof=ddof)',
         'return jnp.var(scores, axis=0, ddof=0)'),
        ('variance(scores, ddof=ddof)\n',
         'variance(scores)\n'),
        ('jax.lax.stop_gradient(member_scores.astype(jnp.float'
         '32))',
         'member_scores.astype(jnp.float32)'),
        ('return scores[member]',
         'return scores[0]'),
    ],
    'ops/kl.py': [
        ('d = logprobs.astype(jnp.float32) - ref_logprobs.asty'
         'pe(jnp.float32)',
         'd = ref_logprobs.astype(jnp.float32) - logprobs.asty'
         'pe(jnp.float32)'),
        ('(1 + error * (num_samples / horizon))',
         '(1 - error * (num_samples / horizon))'),
        ('observed_kl < target / 1.5, kl_coef / 2',
         'observed_kl < target / 1.5, 2 * kl_coef'),
        ('2 * kl_coef, kl_coef))',
         '1.5 * kl_coef, kl_coef))'),
        ('  d = jnp.maximum(d, -LARGEST)\n',
         ''),
        ('return jnp.expm1(-d) + d',
         'return jnp.expm1(d) - d'),
        ('return jnp.expm1(-d) + d',
         'return jnp.expm1(-d) - d'),
        ('return 0.5 * d**2',
         'return d**2'),
        ('gap = estimate(logprobs, jax.lax.stop_gradient(ref),'
         ' kind=kind)',
         'gap = estimate(logprobs, ref, kind=kind)'),
        ('return jax.lax.stop_gradient(kl_coef) * gap',
         'return kl_coef * gap'),
    ],
    'ops/labels.py': [
        ('gap = scores[:, 0] - scores[:, 1]',
         'gap = scores[:, 1] - scores[:, 0]'),
        ('(jnp.sign(gap) + 1) / 2',
         '(gap > 0).astype(jnp.float32)'),
        ('scores = jax.lax.stop_gradient(scores.astype(jnp.flo'
         'at32))',
         'scores = scores.astype(jnp.float32)'),
        ('bernoulli(key, probability)',
         'bernoulli(key, probability, (1,))'),
        ('first + 0.5 * ties',
         'first + ties'),
        ('jax.random.normal(key, scores.shape, jnp.float32)',
         'jax.random.normal(key, scores.shape[:-1] + (1,), jnp'
         '.float32)'),
        ('round(rate * size)',
         'int(rate * size)'),
        ('jnp.where(upvotes > 0, score, -1.0)',
         'jnp.where(upvotes >= 0, score, -1.0)'),
    ],
    'ops/logprobs.py': [
        ('weight * jnp.where(weight > 0, gap, 0), axis=-1)',
         'weight * gap, axis=-1)'),
        ('jnp.maximum(peak, scaled.max(axis=-1)))',
         'scaled.max(axis=-1))'),
        ('zeros, zeros, zeros + jnp.nan)',
         'zeros, zeros, zeros)'),
        ('  @functools.partial(jax.checkpoint, prevent_cse=Fal'
         'se)  # inside a scan\n',
         ''),
        ('least = -(-count // chunk_size)',
         'least = count // chunk_size'),
        ('_at(logprobs, targets), entropy, _at(logits, targets'
         '))',
         '_at(logprobs, targets), entropy, _at(logits / temper'
         'ature, targets))'),
        ('logits[..., :-1, :], tokens[..., 1:], temperature))',
         'logits[..., 1:, :], tokens[..., 1:], temperature))'),
        ('                   preferred_element_type=jnp.float3'
         '2)',
         '                    )'),
    ],
    'ops/masked.py': [
        ('return jnp.where(mask, x, 0).astype(dtype)',
         'return (x * mask).astype(dtype)'),
        ('count = jnp.sum(mask, axis=axis)',
         'count = jnp.sum(jnp.ones_like(mask), axis=axis)'),
        ('jnp.maximum(mask.sum() - ddof, 1)',
         'jnp.maximum(mask.sum(), 1)'),
        ('jax.lax.rsqrt(variance + 1e-8)',
         'jax.lax.rsqrt(variance)'),
        ('return jnp.where(mask, scaled if shift_mean else sca'
         'led + mean, 0)',
         'return scaled if shift_mean else scaled + mean'),
        ('remaining = jnp.cumsum(mask[..., ::-1], axis=-1)[...'
         ', ::-1]',
         'remaining = jnp.cumsum(mask, axis=-1)'),
        ('return [jnp.where(mask, x, 0).astype(jnp.float32)',
         'return [(x * mask).astype(jnp.float32)'),
        ('    if x is None:\n',
         '    if False:\n'),
    ],
    'ops/moments.py': [
        ('between = shift**2 * moments.count * share',
         'between = shift**2 * share'),
        ('masked.masked_sum((distance - shift)**2, mask)',
         'masked.masked_sum(distance**2, mask)'),
        ('Moments(count, center + shift * share',
         'Moments(count, center + shift'),
        ('share = added / jnp.maximum(count, 1)',
         'share = added / count'),
        ('added = jnp.sum(mask, dtype=jnp.float32)',
         'added = jnp.float32(mask.size)'),
        ('jnp.maximum(moments.count - ddof, 1)',
         'jnp.maximum(moments.count, 1)'),
        ('jnp.where(std == 0, 1, std)',
         'std'),
        ('  chex.assert_rank([mean, std], {0, x.ndim})\n',
         ''),
    ],
    'ops/nucleus.py': [
        ('if not 0 < top_p <= 1:',
         'if not 0 <= top_p <= 1:'),
        ('jax.lax.stop_gradient(logits).astype(jnp.float32)',
         'jax.lax.stop_gradient(logits)'),
        ('jnp.cumsum(probs, axis=-1) - probs < top_p',
         'jnp.cumsum(probs, axis=-1) < top_p'),
        ('descending=True',
         'descending=False'),
        ('return possible & (logits >= border)',
         'return logits >= border'),
        ('jnp.where(allowed | padding, logits, -jnp.inf)',
         'jnp.where(allowed, logits, -jnp.inf)'),
        ('padding = ~allowed.any(axis=-1, keepdims=True)',
         'padding = ~allowed.all(axis=-1, keepdims=True)'),
        ('chex.assert_type([logits, allowed], [float, bool])',
         'pass'),
    ],
    'ops/priorities.py': [
        ('jnp.maximum(jnp.asarray(advantages, jnp.float32), 0)',
         'jnp.asarray(advantages, jnp.float32)'),
        ('jnp.maximum(jnp.asarray(advantages, jnp.float32), 0)',
         'jnp.abs(jnp.asarray(advantages, jnp.float32))'),
        ('  total = kept.sum()',
         '  total = kept.max()'),
        ('  total = kept.sum()',
         '  total = jnp.float32(kept.size)'),
        ('np.any(np.asarray(advantages) > 0)',
         'np.any(np.asarray(advantages) >= 0)'),
        ('jnp.where(total > 0, kept / jnp.where(total > 0, tot'
         'al, 1), 0)',
         'kept / total'),
        ('  kept = jax.lax.stop_gradient(\n',
         '  kept = (\n'),
        ('  chex.assert_rank(advantages, 1)\n',
         ''),
    ],
    'ops/q_learning.py': [
        ('optax.incremental_update(online, targets, rate)',
         'optax.incremental_update(targets, online, rate)'),
        ('optax.periodic_update(moved, targets, step, every)',
         'optax.periodic_update(moved, targets, step + 1, ever'
         'y)'),
        ('  if not 0 < rate <= 1:',
         '  if not 0 <= rate <= 1:'),
        ('  chex.assert_trees_all_equal_shapes_and_dtypes(targ'
         'ets, online)\n',
         ''),
        ('  if every < 1:',
         '  if every < 0:'),
        ('jnp.min(jnp.stack(target_q_values), axis=0)',
         'jnp.mean(jnp.stack(target_q_values), axis=0)'),
        ('jax.nn.log_softmax(logits.astype(jnp.float32)) + bet'
         'a',
         'logits.astype(jnp.float32) + beta'),
        ('+ beta * advantage',
         '- beta * advantage'),
    ],
    'ops/ratios.py': [
        ('jnp.clip(log_ratio, -LARGEST, LARGEST)',
         'log_ratio'),
        ('return 1 - low, 1 + high',
         'return 1 + high, 1 - low'),
        ("return 0.0, float('inf')",
         'return 0.8, 1.2'),
        ('not all(x > 0 for x in pair)',
         'any(x < 0 for x in pair)'),
        ('isinstance(clip_ratio, tuple | list)',
         'isinstance(clip_ratio, tuple)'),
        ('return jnp.minimum(plain, clipped), {',
         'return clipped, {'),
        ('return jnp.minimum(plain, clipped), {',
         'return jnp.maximum(plain, clipped), {'),
        ('chex.assert_equal_shape([log_ratio, advantages])',
         'pass'),
    ],
    'ops/readability.py': [
        ('- silent, 1)',
         '- silent, 0)'),
        ("sentences = len(re.findall('[a-z][^.!?]*', text))",
         "sentences = len(re.findall('[.!?]', text)) or 1"),
    ],
    'ops/texts.py': [
        ('return [text.split() for text in texts]',
         "return [text.split(' ') for text in texts]"),
        ('total = len(ngrams) if per_ngram else sum(map(len, w'
         'ords))',
         'total = sum(map(len, words)) if per_ngram else len(n'
         'grams)'),
        ('total if total else 0.0',
         "total if total else float('nan')"),
        ('lengths = [len(words) for words in _words(texts)]',
         'lengths = [len(words) for words in _words(texts) if '
         'words]'),
        ('self._counts = text.CountVectorizer()',
         'self._counts = text.CountVectorizer(binary=True)'),
        ('different < self._min_words, different / 10',
         'different <= self._min_words, different / 10'),
        ('min_words: int = 5',
         'min_words: int = 10'),
        ('if isinstance(texts, str):',
         'if False:'),
    ],
    'panels.py': [
        ('at = sorted(value for',
         'at = list(value for'),
        ('mean + np.nan_to_num(error), color=colour',
         'mean, color=colour'),
        ('axes[0, 0].set_ylim(len(at) - 0.5, -0.5)',
         'axes[0, 0].set_ylim(-0.5, len(at) - 0.5)'),
        ('right.set_ylim(min(low), max(high))',
         'right.set_ylim(min(low), None)'),
        ('other in pairs if panel in where}',
         'other in pairs}'),
    ],
    'policy.py': [
        ("params['value_head'], states[:, :-1]",
         "params['value_head'], states[:, 1:]"),
        ('heads.q_value(head, hidden[:, :-1], rows[:, 1:])',
         'heads.q_value(head, hidden[:, :-1], rows[:, :-1])'),
        ('jax.lax.stop_gradient(logprobs_lib.align(',
         '(logprobs_lib.align('),
        ("bias=params.get('unembed_bias'), ",
         ''),
        ("value_config or config, params['value_trunk']",
         'value_config or config, params'),
    ],
    'programmatic.py': [
        ('found[name] += values',
         'found[name][:0] = values'),
        ('os.killpg(self._process.pid, signal.SIGKILL)',
         'os.kill(self._process.pid, signal.SIGKILL)'),
        ('{start + answer["row"]}',
         '{answer["row"]}'),
        ('self._weights[name] * values',
         'values'),
    ],
    'programmatic_worker.py': [
        ('if not abs(values[-1]) <= LARGEST:',
         'if abs(values[-1]) > LARGEST:'),
        ('    os.killpg(0, signal.SIGKILL)',
         '    pass'),
        ('if len(result) != count:',
         'if len(result) < count:'),
    ],
    'recipes.py': [
        ('if k not in _PACE}',
         '}'),
        ("'inputs': inputs, 'version'",
         "'version'"),
        ('  if source.suffix not in _COPIED:',
         '  if source:'),
        ("name for name in below if not name.startswith('.')",
         'below'),
        (" and not _holds_path(record['result'])",
         ''),
        ('onerror=_fail, ',
         ''),
    ],
    'running.py': [
        ('jax.random.fold_in(state.key, NOISE), given.shape)',
         'jax.random.fold_in(state.key, NOISE), (len(given), 1'
         '))'),
        ('moments.normalize(given, 0., moments.std(found))',
         'moments.normalize(given, found.mean, moments.std(fou'
         'nd))'),
        ('kl_coef=old + (new - old) * counted.mean())',
         'kl_coef=new)'),
        (' & jnp.isfinite(values)',
         ''),
    ],
    'sampling.py': [
        ("logits, tuple(map(q_values, params['target_q_heads']"
         ')),',
         "logits, tuple(map(q_values, params['target_q_heads']"
         '[:1])),'),
        ('    hidden = transformer.finish(config, params, hidd'
         'en)\n    logits = transformer.project(params, hidden)'
         '\n',
         '    logits = transformer.project(\n        params, tr'
         'ansformer.finish(config, params, hidden))\n'),
        ('    if value_shift is not None:\n      logits = _shif'
         't(params, hidden, logits, value_shift)\n    scaled = '
         'logits / (temperature or 1.0)\n',
         '    scaled = logits / (temperature or 1.0)\n    if va'
         'lue_shift is not None:\n      scaled = _shift(params,'
         ' hidden, scaled, value_shift)\n'),
    ],
    'sources.py': [
        ('metrics=running.metrics(found.replace(mask=batch.mas'
         'k))',
         'metrics=running.metrics(found)'),
        ('rows = np.arange(start, start + chunk_size, dtype',
         'rows = np.arange(0, chunk_size, dtype'),
        ('params = {**(frozen.base or {}), **state.params}',
         'params = state.params'),
        ('uniform * mass[-1]',
         'uniform'),
        ('_uniforms(seed, step * batch_size, batch_size)',
         '_uniforms(seed, step, batch_size)'),
        ('[skipped:]',
         '[:count]'),
    ],
    'stages/best_of_n_policy.py': [
        ("known['length'] - finished",
         "known['length']"),
        ('writer.truncate(-1)',
         'writer.truncate(9)'),
        ('proxy = weight * np.asarray(',
         'proxy = np.asarray('),
    ],
    'stages/common.py': [
        ('if self._evaluate is not None and each:',
         'if self._evaluate is not None:'),
    ],
    'stages/gold.py': [
        ('present = log.mask.any(axis=-1) & np.isfinite(scores'
         ')',
         'present = log.mask.any(axis=-1)'),
        ('rows(order[:cut]),',
         'rows(order[:cut + 1]),'),
        ('np.searchsorted(count, held_out) + 1',
         'np.searchsorted(count, held_out)'),
        ('if len(np.unique(known)) < 2:',
         'if not len(known):'),
    ],
    'stages/logged.py': [
        ('labels_lib.flip(key, best[clean:], rate=label_noise)'
         '])',
         'labels_lib.flip(key, best, rate=label_noise)[clean:]'
         '])'),
        ('jax.random.fold_in(jax.random.key(seed), 2), 3)[0]',
         'jax.random.fold_in(jax.random.key(seed), 2), 3)[1]'),
        ('rewards.total(scored.raw)',
         'rewards.total(scored.values)'),
        ('np.nonzero(present)[0]',
         'np.nonzero(present)[1]'),
        ('k=1)',
         'k=0)'),
    ],
    'stages/offline_data.py': [
        ('present &= present.cumsum(axis=1) == 1',
         'present &= np.arange(present.shape[1]) == 0'),
        ('sides.any(axis=-1).all(axis=1)',
         'sides.any(axis=-1).any(axis=1)'),
        ("sided = row.source == 'preferences' and",
         'sided ='),
        ("scores = 'raw_scores' if row.source == 'rankings' el"
         "se 'scores'",
         "scores = 'scores'"),
        ('at = np.flatnonzero(present.all(axis=1))',
         'at = np.flatnonzero(present.any(axis=1))'),
        ('left = found.mask.any(axis=(1, 2))',
         'left = np.ones(len(found.mask), bool)'),
        ("    present &= log['group'] == groups.index(use)",
         "    present &= log['group'] != groups.index(use)"),
    ],
    'stages/offline_policy.py': [
        ("len(log['tokens']) - result['num_validation']",
         "len(log['tokens'])"),
        ('np.maximum(weights, 0)',
         'np.ones_like(weights)'),
        ('math.ceil(num_steps * kept)',
         'max(math.ceil(num_steps * kept), 1)'),
        ("targets, params['q_heads'], step, rate",
         'targets, targets, step, rate'),
        ("value_shift=q['shift'] if targets else None",
         'value_shift=0.0 if targets else None'),
    ],
    'stages/policy.py': [
        ('nodes.insert(at + 1, {',
         'nodes.insert(len(nodes), {'),
        ('[dict(node) for node in row.annotators\n            i'
         "f node['name'] not in ('scores', 'ref_logprobs')]",
         '[dict(node) for node in row.annotators\n            i'
         "f node['name'] != 'scores']"),
        ('    common.save_policy(context, num_steps, state.par'
         'ams)',
         '    common.save_policy(context, num_steps, reference'
         ')'),
        ('pools.callback(functions.close)',
         'pass'),
    ],
    'stages/policy_distributions.py': [
        ("used = slice(len(arrays['group']) - result['num_vali"
         "dation'])",
         "used = slice(len(arrays['group']))"),
    ],
    'stages/policy_figure.py': [
        ("figure['paired_by'] = figure.get('panel', ())",
         "figure['paired_by'] = ()"),
        ("shown = [name for name in names if name != 'member']",
         'shown = names'),
        ("limit is None or source == 'evaluation'",
         'True'),
        ('_require(all(cell(one) != cell(other) for other in r'
         'est)\n             and',
         '_require('),
    ],
    'stages/policy_parts.py': [
        ('jnp.copy, heads.trunk(reference))',
         'jnp.asarray, heads.trunk(reference))'),
        ('if step == num_steps:',
         'if step:'),
        ('lambda x: x[0], reward',
         'lambda x: x[1], reward'),
    ],
    'stages/policy_report.py': [
        ('of_members=line not in mixed',
         'of_members=line in mixed'),
        ("'win_rate_se': row['win_rate_sd']",
         "'win_rate_se': row['win_rate_se']"),
        ('for panel in (all_panels if everywhere(group)\n      '
         "                       else (place['panel'],))",
         "for panel in (place['panel'],)"),
    ],
    'stages/policy_results.py': [
        ("found['drop'] = path['gold'][top] - path['gold'][-1]"
         ', np.nan',
         "found['drop'] = path['gold'][top] - path['gold'][0],"
         ' np.nan'),
        ("np.mean([seed['sqrt_kl'][:length] for seed in seeds]"
         ', axis=0)**2',
         "np.max([seed['sqrt_kl'][:length] for seed in seeds],"
         ' axis=0)**2'),
        ('and matches(p.labels, wanted) and matches(p.labels, '
         'cell)]',
         'and matches(p.labels, wanted)]'),
        ('mine[c] - theirs[c]',
         'theirs[c] - mine[c]'),
    ],
    'stages/prompt_value.py': [
        ('advantages[at] <= 0',
         'advantages[at] < 0'),
        ('lambda x: x[~apart], rows',
         'lambda x: x, rows'),
        ('[None] < lengths[:, None]',
         '[None] <= lengths[:, None]'),
        ('np.where(real, tokens, pad_id)',
         'tokens'),
        ('np.repeat(references, num_samples)',
         'np.tile(references, num_samples)'),
    ],
    'stages/rewarding.py': [
        ('if corpus.world is not None:',
         'if corpus.world is None:'),
        ('(score(*rows) - mean) / std',
         'score(*rows) / std'),
        ('np.where(std == 0, 1, std)).mean(axis=0)',
         'np.where(std == 0, 1, std)).min(axis=0)'),
        ('unit[0] + unit[1] * score(*rows)',
         "unit[0] + unit[1] * models['gold'](*rows)"),
    ],
    'stages/win_rates.py': [
        ('if question not in self._known:',
         'if True:'),
        ("found[against, policy['seed']])",
         "found[against, policies[0]['seed']])"),
        ('files.digest([self._judge, *query])',
         'files.digest([*query])'),
        ('divmod(next(calls), len(rows))',
         'divmod(next(calls), 2 * len(rows))'),
    ],
    'studies/iterated.py': [
        ('pairs=list(pairs)',
         'pairs=pairs[-1:]'),
        ("current if collect == 'current' else None",
         'current'),
        ('start=current',
         'start=None'),
    ],
    'studies/offline.py': [
        ('if checks.needs_values(name, runs):',
         'if True:'),
        ("'label_noise': conditions[condition]['label_noise']",
         "'label_noise': 0.0"),
        ("'components': log['components'], 'sampler'",
         "'components': config['log']['components'], 'sampler'"),
        ("return of_models(log['condition']) if asked else {}",
         "return of_models(log['condition'])"),
    ],
    'studies/offline_checks.py': [
        ("or run['condition'] == log['condition'], f'{where}",
         "or run['condition'] in conditions, f'{where}"),
        ("      _of_components(f'logs.{name}', prompt_value.ch"
         'eck, log)',
         '      pass'),
        ("require(run['use'] in known,",
         "require(run['use'],"),
    ],
    'studies/online.py': [
        ("('kl.coef', kl['coef']), ",
         ''),
        ('if condition not in known:',
         'if name not in known:'),
        ("if not _is_best_of_n(runs[one['run']])",
         "if runs[one['run']]"),
    ],
    'train.py': [
        ('grads, metrics = jax.tree.map(lambda x: x / weight, '
         '(grads, sums))',
         'grads, metrics = grads, jax.tree.map(lambda x: x / w'
         'eight, sums)'),
        ('keep, update_targets(targets, params, state.step + 1'
         '), targets)',
         'lambda a, b: a, update_targets(targets, params, stat'
         'e.step + 1),\n          targets)'),
        ('update_targets(targets, params, state.step + 1)',
         'update_targets(targets, state.params, state.step + 1'
         ')'),
        ('jnp.where(out.weight > 0, x * out.weight, 0)',
         'x * out.weight'),
        ('return jnp.repeat(order, repeats, axis=0)',
         'return jnp.tile(order, (repeats, 1))'),
        ("metrics['policy/approx_kl'][-num_minibatches * repea"
         'ts:]',
         "metrics['policy/approx_kl']"),
        ('batch = rollout.batch.replace(member_scores=None)',
         'batch = rollout.batch'),
        ('    state = state.replace(statistics=rollout.statist'
         'ics)\n',
         '    state = state.replace(statistics=state.statistic'
         's or {})\n'),
    ],
    'workdirs.py': [
        ("        and {'result', 'seconds'} <= record.keys()",
         '        '),
        ("open(workdir / 'lock', 'a+')",
         "open(workdir / 'lock', 'w+')"),
        ('  if changed:\n    files',
         '  if not changed:\n    files'),
    ],
}


# Modules whose name is also that of another module, or without a test alone.
TESTS = {'stages/policy.py': 'policy_stage',
         'programmatic_worker.py': 'programmatic',
         'data/hub.py': 'tables', 'data/fields.py': 'logged',
         'data/log_kinds.py': 'logged', 'data/task_reviews.py': 'tasks',
         'stages/logged.py': 'logged_stage', 'columns.py': 'monitor',
         'studies/offline_checks.py': 'offline',
         'ops/readability.py': 'components',
         'stages/policy_distributions.py': 'policy_report'}


def test_of(path):
  """The file in tests/ that is about a module."""
  return f'{TESTS.get(path, pathlib.Path(path).stem)}_test.py'


def every():
  """(path, old, new) of all mutants."""
  return [(path, *pair) for path, pairs in MUTANTS.items() for pair in pairs]


def _selections(path):
  """Arguments of pytest, one run after the other, for a mutant of `path`."""
  yield [f'tests/{test_of(path)}']
  if path.startswith('objectives/'):
    yield ['tests/contract_test.py', '-k', pathlib.Path(path).stem]
  yield ['tests/estimators_test.py']


def noticed(mutant):
  """Whether a test fails once old is new; runs in a process of its own."""
  import pytest
  path, old, new = mutant
  with tempfile.TemporaryDirectory() as directory:
    for name in COPIED:
      copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
      copy(ROOT / name, pathlib.Path(directory, name))
    file = pathlib.Path(directory, 'rlhf_jax', path)
    if old:
      file.write_text(file.read_text().replace(old, new))
    os.chdir(directory)
    sys.path[:] = [directory] + [x for x in sys.path if x != str(ROOT)]
    with open(os.devnull, 'w') as null:
      os.dup2(null.fileno(), 1)
    selections = list(_selections(path))
    for selection in selections if old else selections[:-1]:
      code = pytest.main(['-x', '-q', '-p', 'no:cacheprovider', *selection])
      if code not in (0, 1, 5):  # 5: -k selected nothing
        raise RuntimeError(f'pytest ended with {code} on {mutant}.')
      if code == 1:
        return True
    return False


def main(words):
  chosen = [mutant for mutant in every() if not words or any(
      word in part for word in words for part in mutant)]
  if not chosen:
    print(f'no mutant has {" or ".join(words)} in its path or text')
    return 2
  # Tests that fail by themselves would notice everything.
  controls = [(path, '', '') for path in dict.fromkeys(m[0] for m in chosen)]
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(PRELOADED)
  began, survivors = time.monotonic(), 0
  with concurrent.futures.ProcessPoolExecutor(
      os.cpu_count(), mp_context=context, max_tasks_per_child=1) as pool:
    for (path, *_), found in zip(controls, pool.map(noticed, controls)):
      if found:
        print(f'the tests of {path} fail as it is')
        return 2
    for (path, old, new), found in zip(chosen, pool.map(noticed, chosen)):
      survivors += not found
      print(f'{"killed  " if found else "SURVIVED"} {path}: '
            f'{old.strip()!r} -> {new.strip()!r}', flush=True)
  print(f'{len(chosen) - survivors} of {len(chosen)} mutants killed in '
        f'{time.monotonic() - began:.0f} s')
  return 1 if survivors else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
