"""What all commands share: arguments, configurations with overrides, output, and one-line errors with exit code 2."""

import argparse
import ast
import dataclasses
import importlib.util
import json
import logging as python_logging
import pathlib
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
from absl import logging
from ml_collections import ConfigDict

from jaxar import settings, workdir
from jaxar.checkpoints import DamagedCheckpointError
from jaxar.config import ConfigError, unknown

USER_ERROR = 2
PREEMPTED = 75  # saved but unfinished (EX_TEMPFAIL): launchers requeue on it
INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and that never guesses abbreviations."""

    def __init__(self, description: str, **kwargs: Any):
        super().__init__(
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **kwargs,
        )

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")

    def add_json(self) -> None:
        self.add_argument("--json", action="store_true", help="print one JSON object on stdout instead of text")

    def parse_args(self, argv: Sequence[str], namespace: Any = None) -> argparse.Namespace:
        return self.parse_known(argv, known=())[0]

    def parse_known(self, argv: Sequence[str], known: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """The namespace, and what is left over: options that start with one of the prefixes in `known`.

        Raises:
          ConfigError: anything else is left over.
        """
        args, rest = self.parse_known_args(argv)
        options = sorted({s for a in self._actions for s in a.option_strings if s.startswith("--")})
        for name, _ in split_options(rest):
            if not any(name.startswith(prefix) for prefix in known):
                raise unknown("option", name, options)
        return args, rest


def main(command: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and exits: 0 done, 2 for a user's mistake (one line on stderr), 75 saved but unfinished.

    Training that cannot go on (all checkpoints damaged, updates that are not finite) is one line too, exit code 1.
    """
    python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)  # Orbax leaves tracebacks of handled errors
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    try:
        code = command(list(sys.argv[1:] if argv is None else argv))
    except ConfigError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = USER_ERROR
    except (DamagedCheckpointError, FloatingPointError) as error:  # their messages say what to do; a traceback does not
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone (`| head`)
        code = 0
    sys.exit(code or 0)


def emit(result: dict[str, Any], text: str, as_json: bool) -> None:
    """The command's result on stdout, once for all processes: `text` for people, one JSON object for programs."""
    if jax.process_index():
        return
    print(json.dumps(result, default=_jsonable) if as_json else text)
    sys.stdout.flush()


def _jsonable(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    if hasattr(value, "item"):
        return value.item()
    return str(value)


def load_config(spec: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Reads `path/to/config.py[:arg]` and applies `--config.key=value` overrides.

    A configuration file is code and is executed. Values are Python literals, anything else is a string. Unknown keys
    are found when sections are parsed, where the known ones are listed.

    Raises:
      ConfigError: missing file, one that cannot be executed, no `get_config`, unknown argument, malformed override.
    """
    path, _, arg = spec.partition(":")
    file = pathlib.Path(path)
    if not file.is_file():
        known = sorted(str(p) for p in pathlib.Path(file.parent).glob("*.py") if p.stem not in ("common", "__init__"))
        raise unknown("configuration file", path, known)
    config = _execute(file, arg)
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    if not isinstance(values, dict):
        raise ConfigError(f"--config={spec}: get_config returned {values!r}; it must return a ConfigDict")
    for key, text in split_options(overrides):
        _override(values, key.removeprefix("--config."), literal(text))
    return values


def _execute(file: pathlib.Path, arg: str) -> Any:
    """What `get_config` of a configuration file returns."""
    if file.suffix != ".py":
        raise ConfigError(f"--config={file} is no Python file; give one such as those in configs/")
    module_spec = importlib.util.spec_from_file_location(f"jaxar_config_{file.stem}", file)
    module = importlib.util.module_from_spec(module_spec)
    sys.path.insert(0, str(file.resolve().parent))  # configurations import their neighbour `common`
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ConfigError(f"--config={file} has no function get_config(arg); see configs/ for examples")
        return module.get_config(arg) if arg else module.get_config()
    except ConfigError:
        raise
    except Exception as error:  # the user's code may raise anything
        where = f"line {_line_in(file, error)}: " if _line_in(file, error) else ""
        raise ConfigError(f"--config={file} fails, {where}{type(error).__name__}: {error}; correct the file") from error
    finally:
        sys.path.pop(0)


def _line_in(file: pathlib.Path, error: Exception) -> int | None:
    """The line of `file` where an error arose, None if it arose elsewhere."""
    if isinstance(error, SyntaxError):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((f.lineno for f in reversed(frames) if pathlib.Path(f.filename) == file), None)


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """For an option that takes an integer of at least `low` and at most `high`."""
    allowed = f"{low}..{high}" if high is not None else f"{low}, {low + 1}, ..."

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{text!r} is not in {allowed}")
        return value

    return convert


def split_options(options: Sequence[str]) -> list[tuple[str, str]]:
    """["--a=1", "--b", "2"] -> [("--a", "1"), ("--b", "2")].

    Raises:
      ConfigError: a value without an option, or an option without a value.
    """
    pairs, rest = [], list(options)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--"):
            raise ConfigError(f"unexpected argument {name!r}; options are written --name=value; see --help")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"option {name} is unknown or lacks its value; write {name}=VALUE, see --help")
            value = rest.pop(0)
        pairs.append((name, value))
    return pairs


def literal(text: str) -> Any:
    """The Python value that `text` spells; text that spells none is itself. true, false, none work in lower case."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    section = values
    for depth, name in enumerate(parents):
        if section.get(name) is None and depth > 0:
            section[name] = {}
        if name not in section:
            raise unknown("section", f"--config.{'.'.join(parents[: depth + 1])}", [f"--config.{k}" for k in section])
        section = section[name]
        if not isinstance(section, dict):
            raise ConfigError(f"--config.{key}={value!r}: {'.'.join(parents[: depth + 1])} is a value, not a section")
    if not parents and last in section and isinstance(section[last], dict):
        raise ConfigError(
            f"--config.{key}={value!r}: {key} is a section; set one of {', '.join(section[last]) or 'its keys'}"
        )
    section[last] = value


def add_fields(parser: argparse.ArgumentParser, cls: type, title: str, convert: Callable[[str], Any] = literal) -> None:
    """An option per field of a frozen dataclass, absent unless given: `--top_k=100`. `convert` makes its value."""
    group = parser.add_argument_group(title)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = getattr(hints[field.name], "__name__", str(hints[field.name]))
        group.add_argument(
            f"--{field.name}", type=convert, default=argparse.SUPPRESS, metavar=kind, help=f"default {field.default!r}"
        )


def add_workdir_options(parser: Parser, argv: Sequence[str], convert: Callable[[str], Any] = literal) -> None:
    """The sampling options of the method in `--workdir`, which are known once the workdir is."""
    early = Parser("", add_help=False)
    early.add_argument("--workdir")
    folder = early.parse_known_args(argv)[0].workdir
    if folder is None:
        return
    cls = settings.sampling_class(workdir.open_config(pathlib.Path(folder), "--workdir"))
    if cls is not None:
        add_fields(parser, cls, "sampling options of this workdir's method (default: its configuration)", convert)


def given_options(args: argparse.Namespace, cls: type) -> dict[str, Any]:
    """The options of `add_fields` that were given."""
    return {f.name: getattr(args, f.name) for f in dataclasses.fields(cls) if hasattr(args, f.name)}
