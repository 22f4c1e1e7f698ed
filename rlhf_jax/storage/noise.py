"""What orbax says of a failure: in a hundred lines, and again later."""

from collections.abc import Iterator
import contextlib
import errno
import functools
import logging
import os
import sys

from rlhf_jax import errors

_DISK = tuple(map(os.strerror, (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES,
    errno.EIO, errno.ESTALE)))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Within, it logs nothing; what it has to say, it raises as well."""
  _hush()
  logger, mute = logging.getLogger('absl'), lambda unused_record: False
  logger.addFilter(mute)
  try:
    yield
  finally:
    logger.removeFilter(mute)


@functools.cache
def _hush():
  """Its tasks say it once more, whenever they are collected."""
  logging.getLogger('asyncio').addFilter(
      lambda record: 'orbax' not in record.getMessage())
  show = sys.unraisablehook

  def hook(unraisable):
    if str(unraisable.exc_value) != 'Event loop is closed':
      show(unraisable)

  sys.unraisablehook = hook


def reason(error: Exception) -> str:
  """What the disk said, which tensorstore puts last in a page; or line one."""
  return next((word for word in _DISK if word in str(error)),
              errors.first_line(error))
