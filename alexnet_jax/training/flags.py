"""The command line of a training run: --config=FILE, --config.key=value, --workdir=DIR."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from alexnet_jax.training.config import Config, ConfigError, default_config, from_dict, keys, nearest_key

USAGE = """\
usage: {program} [--config=FILE[:ARGUMENT]] [--config.KEY=VALUE ...] [--workdir=DIR]

Trains a network. Without flags: a small AlexNet on scikit-learn's digits, on any
machine. The same command again resumes the run in its workdir; a finished run says so.

  --config=FILE       a Python file with get_config(), such as those in configs/
  --config.KEY=VALUE  changes one key, see below
  --workdir=DIR       where the run is written (default: runs/<name of the config>)

Exit codes: 0 finished; 1 it can't go on (diverged, out of memory, disk full); 2 the command line,
configuration, data or workdir can't be used; 75 another process of the run was lost; 130 stopped by
SIGINT; 143 stopped by SIGTERM. After 75 and 143 a batch system should start the same command again, in
every process: it resumes. (134: JAX itself ended a process because it could not reach another.)

Keys, with their values in the default run:
"""


@dataclasses.dataclass(frozen=True)
class Command:
    """What the command line asks for."""

    config: Config
    workdir: pathlib.Path


def help_text(program: str) -> str:
    """Usage, and every key with type, default, unit, allowed values and meaning."""
    lines = [USAGE.format(program=program)]
    for key in keys():
        unit = f" {key.unit}" if key.unit else ""
        allowed = f" ({key.allowed})" if key.allowed else ""
        lines.append(f"  --config.{key.name}={key.default!r}")
        lines.append(f"      {key.kind_in_words()}{', in' if unit else ''}{unit}: {key.meaning}{allowed}")
    lines.append("\nA key whose default is None takes a value of its type; text needs no quotes.")
    return "\n".join(lines) + "\n"


def parse(arguments: Sequence[str]) -> Command:
    """The run that a command line (without the program's name) asks for.

    Raises:
      ConfigError: an unknown flag or key, a file that can't be used, a value that is not allowed.
    """
    for argument in arguments:
        _check_flag(argument)
    arguments, cleared = _without_none(arguments)
    argv = ["train", *arguments]
    values = flags.FlagValues()
    path = _config_path(arguments)
    help_string = "the run's configuration"
    try:
        if path is None:
            config_flags.DEFINE_config_dict("config", default_config(), help_string, values, sys_argv=argv)
        else:
            config_flags.DEFINE_config_file("config", None, help_string, values, sys_argv=argv)
        flags.DEFINE_string("workdir", None, "where the run is written", flag_values=values)
        rest = values(argv)[1:]
        found: Any = values["config"].value
        if rest:
            raise ConfigError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
        if not isinstance(found, config_dict.ConfigDict):
            raise ConfigError(f"--config={path}: get_config() must return a ConfigDict, got {type(found).__name__}")
    except ConfigError:
        raise
    except flags.Error as error:
        raise ConfigError(_explained(_one_line(error))) from None
    except Exception as error:  # whatever a config file raises
        where = f"--config={path}: " if path else ""
        missing = re.search(r'Key "(\w+)" does not exist|instead of "(\w+)"', str(error))
        if missing:
            key = missing[1] or missing[2]
            raise ConfigError(f"{where}there is no key {key!r}; {nearest_key(key)}") from None
        raise ConfigError(f"{where}{type(error).__name__}: {_one_line(error)}") from None
    name = pathlib.Path(path.partition(":")[0]).stem if path else "default"
    chosen = found.to_dict()
    for key in cleared:
        *sections, last = key.split(".")
        functools.reduce(dict.__getitem__, sections, chosen)[last] = None
    return Command(from_dict(chosen), pathlib.Path(values["workdir"].value or f"runs/{name}"))


def _one_line(error: Exception) -> str:
    text = str(error)
    if "Traceback (most recent call last)" in text:  # absl puts a config file's traceback into its message
        text = text.strip().splitlines()[-1]
    return " ".join(text.split()).removeprefix(f"{ConfigError.__module__}.{ConfigError.__name__}: ")


def _explained(message: str) -> str:
    """absl's message for a value that it can't read, with what the key takes."""
    found = re.match(r"flag --config\.([\w.]+)=(.*?): ", message)
    key = next((key for key in keys() if found and key.name == found[1]), None)
    return f"config.{key.name}={found[2]}: must be {key.allowed_in_words()}" if found and key else message


def _without_none(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that ml_collections parses, and the optional keys that are set to None, which it can't."""
    optional = {f"--config.{key.name}": key.name for key in keys() if key.optional}
    rest: list[str] = []
    cleared: list[str] = []
    for argument in arguments:
        if argument == "None" and rest and rest[-1] in optional:
            argument = f"{rest.pop()}=None"
        flag, _, value = argument.partition("=")
        if flag in optional:  # the last one wins
            cleared = [key for key in cleared if key != optional[flag]]
            if value == "None":
                cleared.append(optional[flag])
                continue
        rest.append(argument)
    return rest, cleared


def _check_flag(argument: str) -> None:
    """Refuses a flag or key that does not exist, with the nearest that does."""
    if not re.match(r"-+[a-zA-Z]", argument):  # a value, such as -1
        return
    name = argument.lstrip("-").partition("=")[0]
    if name in ("config", "workdir"):
        return
    if name.startswith("config."):
        key = name.removeprefix("config.")
        if key not in {known.name for known in keys()}:
            raise ConfigError(f"there is no --config.{key}; {nearest_key(key)}")
        return
    known = ["config", "workdir", *(f"config.{key.name}" for key in keys())]
    short = {key.name.split(".")[-1]: f"config.{key.name}" for key in keys()}
    near = short.get(name.split(".")[-1]) or next(iter(difflib.get_close_matches(name, known, 1)), None)
    raise ConfigError(f"there is no flag --{name}; " + (f"did you mean --{near}?" if near else "see --help"))


def _config_path(arguments: Sequence[str]) -> str | None:
    """The value of --config, checked to be a file."""
    path = None
    for index, argument in enumerate(arguments):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            path = value if equals else next(iter(arguments[index + 1 :]), "")
    if path is None:
        return None
    file = pathlib.Path(path.partition(":")[0])
    if not file.is_file():
        folder = file.parent if path and file.parent.is_dir() else pathlib.Path("configs")
        others = sorted(str(other) for other in folder.glob("*.py"))
        near = difflib.get_close_matches(str(file), others, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(others) or 'none'}"
        raise ConfigError(f"--config={path}: there is no such file; {hint}")
    return path
