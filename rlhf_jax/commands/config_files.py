"""Config files and the flags that change their fields; every mistake a line.
"""

import ast
from collections.abc import Mapping
import contextlib
import pathlib
import sys

from absl import flags
from ml_collections import config_dict
from ml_collections import config_flags

from rlhf_jax import errors
from rlhf_jax.commands import arguments
from rlhf_jax.configs import fields


def parse(values: flags.FlagValues, argv: list[str], doc: str) -> dict | None:
  """Reads --config=<file>[:<size>] and --config.<field>=<value>.

  Args:
    values: with the other flags of the command, which are read too.
    argv: name of the command, and flags.
    doc: see `arguments.parse`.

  Returns:
    The config, None without --config.

  Raises:
    ConfigError: a flag, a field or the file is wrong.
    Helped: see `arguments.parse`.
  """
  path = _path(argv)
  # Configs of experiments import what they share, wherever the command is
  # given.
  for parent in path.absolute().parents:
    if (parent / 'experiments').is_dir():
      sys.path.insert(0, str(parent))
      break
  _check_duplicates(path)
  config_flags.DEFINE_config_file(
      'config', None, 'path/to/config.py[:size]', lock_config=True,
      flag_values=values, sys_argv=argv)
  try:
    # The config file itself runs here, and it may raise anything.
    arguments.parse(values, argv, doc)
    config = None if values.config is None else values.config.to_dict()
  except (SystemExit, arguments.Helped):
    raise
  except errors.ConfigError as error:
    if not isinstance(error.__cause__, flags.Error):
      raise
    raise errors.ConfigError(_reason(error.__cause__, argv)) from error
  except Exception as error:
    raise errors.ConfigError(_reason(error, argv)) from error
  if config is not None:
    if 'study' not in config:
      raise errors.ConfigError(
          'config.study is missing; name a module of rlhf_jax.studies')
    fields.check(config)
  return config


def change(config: config_dict.ConfigDict, argv: list[str]
           ) -> config_dict.ConfigDict:
  """A config with the fields that --config.<field>=<value> give, locked.

  Args:
    config: is changed itself, since a copy would forget of which type a field
      is that holds None.
    argv: such arguments alone.

  Raises:
    ConfigError: there is no such field, or it is of another type.
  """
  values = flags.FlagValues()
  argv = ['rlhf-jax', *argv]
  try:
    config_flags.DEFINE_config_dict(
        'config', config.lock(), 'config', flag_values=values, sys_argv=argv)
    values(argv)
    return values.config
  except Exception as error:
    raise errors.ConfigError(_reason(error, argv, config)) from error


def _reason(error: Exception, argv: list[str],
            config: config_dict.ConfigDict | None = None) -> str:
  """What went wrong and in which argument, without a library's noise."""
  while 'Traceback' in str(error) or isinstance(error, OSError):
    cause = error.__cause__ or error.__context__
    if cause is None:
      break
    error = cause
  # The text of a KeyError is a repr of its message.
  text = str(error.args[0]) if isinstance(error, KeyError) else str(error)
  if text[:1] in ('"', "'"):  # that of an AttributeError of one, once more
    with contextlib.suppress(SyntaxError, ValueError):
      text = str(ast.literal_eval(text))
  text = text.replace("module 'config_config'", 'it')
  if isinstance(error, flags.Error):
    return f'{text}; see --help'
  if isinstance(error, KeyError | AttributeError):
    for argument in argv:
      field = argument.partition('=')[0].lstrip('-')
      if any(name == text or f"'{name}'" in text
             for name in field.split('.')[1:]):
        return (f'{field} is no field of the config. '
                f'{_hint(text, field, config)}')
  named = _argument(argv)
  if config is None and not _path(argv).is_file():
    return f'--config={named}: there is no such file; check the path'
  return f'--config={named} cannot be loaded: {type(error).__name__}: {text}'


def _hint(text: str, field: str, config: config_dict.ConfigDict | None) -> str:
  """What else a field may be called: the library says it, or what there is."""
  rest = text.partition('\n')[2]
  if rest or config is None:
    return rest or f'See --print_config for those beside {field!r}.'
  node, place = config, 'config'
  for name in field.split('.')[1:]:
    if name not in node or not isinstance(node[name], config_dict.ConfigDict):
      break
    node, place = node[name], f'{place}.{name}'
  return f'In {place} there are {", ".join(node) or "none"}.'


def _path(argv: list[str]) -> pathlib.Path:
  return pathlib.Path(_argument(argv).partition(':')[0])


def _argument(argv: list[str]) -> str:
  """The value of --config, given as one argument or two."""
  for argument, following in zip(argv, [*argv[1:], '']):
    name, equals, value = argument.lstrip('-').partition('=')
    if argument.startswith('-') and name == 'config':
      return value if equals else following
  return ''


def _check_duplicates(path: pathlib.Path):
  """ConfigError for a name that one dict of a config file gives twice.

  Python would keep the last, so that of two components of one name, or two
  runs, one would be lost without a word.
  """
  try:
    tree = ast.parse(path.read_bytes())
  except (OSError, SyntaxError, ValueError):
    return  # which loading it will say
  for node in ast.walk(tree):
    names = set()
    for key in node.keys if isinstance(node, ast.Dict) else ():
      if not isinstance(key, ast.Constant):
        continue
      if key.value in names:
        raise errors.ConfigError(
            f'{path}:{key.lineno}: {key.value!r} is given twice in one dict; '
            'rename one of them or leave it out')
      names.add(key.value)


def text(config: Mapping) -> str:
  """A config as lines that flags can be made of: config.<field>=<value>."""
  def lines(node, name):
    for field, value in node.items():
      if isinstance(value, Mapping) and value:
        yield from lines(value, f'{name}.{field}')
      else:
        yield f'{name}.{field}={value!r}'
  return '\n'.join(lines(config, 'config'))
