"""The loaded model that lies under what a stage has trained of it.

A checkpoint holds the trained part alone. On another base it would run, and
say something else, so a stage keeps a digest of the base that it had.
"""

from collections.abc import Mapping
import pathlib
from typing import Any

from rlhf_jax import errors
from rlhf_jax.models import pretrained


def digest(node: Mapping[str, Any]) -> str | None:
  """SHA-256 of the base of a model node; None where all is trained."""
  return pretrained.fingerprint(node) if pretrained.is_partial(node) else None


def check(directory: pathlib.Path, model: Mapping[str, Any]):
  """Refuses a base that is not the one a stage has trained on.

  Args:
    directory: of the stage.
    model: of `artifacts.read_model`; an earlier commit kept no digest.

  Raises:
    CheckpointError: the base has changed.
    ConfigError: it is no longer there.
  """
  expected, node = model.get('base'), model['model']
  if expected is None:
    return
  if digest(node) != expected:
    raise errors.CheckpointError(
        f'{directory} holds a part of a model, trained on a rest that has '
        f'changed: {pretrained.source(node)}; restore what was there, or train '
        'again in another --workdir')
