"""Official weights to a workdir and back.

python -m jaxar.convert --arch=NAME --weights=FILE [--tokenizer=FILE] [--refiner=FILE] [--arch_config=JSON]
    --workdir=DIR
python -m jaxar.convert --export=FILE.safetensors [--tokenizer=FILE.safetensors] [--refiner=FILE.safetensors]
    --workdir=DIR

The first makes a workdir that jaxar.sample and jaxar.evaluate use as they are, from .safetensors, .pth or Flax msgpack.
NAME is that of published weights (var_d16) or of a family (var), whose sizes --arch_config gives: the arguments of the
official constructors by network, as a file or as JSON itself; a fixture's .json does too. The data that jaxar.evaluate
needs is ImageNet in data/imagenet unless --data.KEY=VALUE says otherwise.

The second writes weights out of a workdir: of a converted one the official arrays, bit for bit; of one that was trained
here our own names, with the configuration in the file's metadata.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from jaxar import backend, cli, lookup, run, workdir
from jaxar.config import ConfigError, unknown
from jaxar.data import datasets
from jaxar.data.base import make_folder
from jaxar.interop import base, readers, safetensors_file, workdirs

_OPTIONS = ("weights", "tokenizer", "refiner")


def convert(
    arch: str,
    files: dict[str, pathlib.Path],
    folder: pathlib.Path,
    changes: dict[str, Any],
    data: dict[str, Any],
    entry: str | None = None,
) -> dict[str, Any]:
    """Makes a workdir from official files.

    Args:
      arch: name of published weights or of a family.
      files: "weights"; "tokenizer" for a model of tokens; "refiner" for HMAR's mask predictor, which may be left out.
      folder: the workdir.
      changes: constructor arguments by network, over those of published weights.
      data: changes to the data section.
      entry: where in the file of weights they are, None for the usual places.
    Raises:
      ConfigError: unknown names, files that are missing, damaged or do not fit.
    """
    family, published = _architecture(arch)
    networks = base.family(family).NETWORKS
    given = base.as_models(changes, networks)
    models = {name: {**published.get(name, {}), **given.get(name, {})} for name in networks}
    official = base.family(family).describe(models)
    if official.config is None:
        raise ConfigError(
            f"--arch={arch} is a piece of other networks, and no workdir holds it alone; name what samples or encodes"
        )
    absent = {part.model for option, part in official.options.items() if part.optional and option not in files}
    if absent:
        models = {name: described for name, described in models.items() if name not in absent}
        official = base.family(family).describe(models)
    for option in files:
        if option not in official.options:
            raise ConfigError(f"--{option}={str(files[option])!r}: --arch={arch} has no such network; remove it")
    sources = {}
    for option, part in official.options.items():
        if not part.whole:
            raise ConfigError(f"--arch={arch}: the sizes of {part.model!r} are missing; give them in --arch_config")
        if option not in files:
            raise ConfigError(f"--{option} is missing: --arch={arch} needs the weights of {part.model!r}")
        arrays = readers.read(files[option], entry if option == "weights" else None)
        sources[part.model] = workdirs.Source(str(files[option]), arrays)
    section = _data_section(official.task["image"]["size"], data)
    counts = workdirs.write(folder, family, models, sources, section)
    return {"workdir": str(folder), "family": family, "num_values": counts}


def _architecture(name: str) -> tuple[str, base.Models]:
    """Family and constructor arguments of a name that --arch takes."""
    published, families = base.architectures(), lookup.names(base.PACKAGE)
    if name in families:
        return name, {}
    if name not in published:
        raise unknown("value of --arch", name, [*published, *families])
    return published[name]


def _data_section(image_size: int, changes: dict[str, Any]) -> dict[str, Any]:
    default = {"image_size": image_size} | (
        {"name": "imagenet", "root": "data/imagenet"} if "name" not in changes else {}
    )
    section = default | changes
    datasets.configure(section)
    return section


def export(folder: pathlib.Path, targets: dict[str, pathlib.Path], step: int | None, ema: str | None) -> dict[str, Any]:
    """Writes the weights of a workdir.

    Args:
      targets: "weights"; "tokenizer" and "refiner" for the files of networks that go with them.
      step, ema: which weights, as for `run.load`.
    Raises:
      ConfigError: no run, or no such network beside the weights.
    """
    opened = run.load(folder, step=step, ema=ema, role="--workdir")
    if workdirs.is_converted(folder):
        written = {option: (arrays, {}) for option, arrays in workdirs.official_files(opened).items()}
    else:
        players = {"weights": next(iter(opened.method.players())), **{name: name for name in opened.variables}}
        written = {o: workdirs.own_arrays(opened, player) for o, player in players.items() if o in targets}
    for option, path in targets.items():
        if option not in written:
            raise ConfigError(f"--{option}={str(path)!r}: {folder} holds no {option} apart from its weights; remove it")
        make_folder(path.absolute().parent, f"--{option}")
        safetensors_file.write(path, *written[option])
    return {"files": {option: str(path) for option, path in targets.items()}, "step": opened.step, "ema": opened.ema}


def _read_json(text: str) -> dict[str, Any]:
    """The value of --arch_config."""
    path = pathlib.Path(text)
    try:
        value = json.loads(text) if text.lstrip().startswith("{") else workdir.read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--arch_config={text!r} is no JSON file and no JSON ({error})") from error
    if not isinstance(value, dict):
        raise ConfigError(f"--arch_config={text!r} must hold an object: constructor arguments by network")
    return value


def command(argv: list[str]) -> None:
    parser = cli.Parser(__doc__, prog="python -m jaxar.convert")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--arch", metavar="NAME", help="of published weights, or a family")
    what.add_argument("--export", metavar="FILE.safetensors", help="write the weights of the workdir")
    parser.add_argument("--weights", metavar="FILE", help="official weights")
    parser.add_argument("--tokenizer", metavar="FILE", help="the tokenizer's official weights; with --export, its file")
    parser.add_argument("--refiner", metavar="FILE", help="likewise of HMAR's mask predictor")
    parser.add_argument("--arch_config", metavar="JSON", help="official constructor arguments, a file or JSON itself")
    parser.add_argument(
        "--entry", metavar="A/B", help="where in the file of weights they are; default: the usual places"
    )
    parser.add_argument("--workdir", required=True, metavar="DIR")
    parser.add_argument("--step", type=int, help="with --export, which checkpoint; default: as for jaxar.sample")
    parser.add_argument("--ema", help="with --export, which average of the weights, or raw")
    parser.add_json()
    args, changes = parser.parse_known(argv, ["--data."])
    backend.initialize()
    run_command = _export if args.export else _convert
    run_command(args, changes)


def _convert(args: argparse.Namespace, changes: Sequence[str]) -> None:
    files = _paths(args)
    data = {k.removeprefix("--data."): cli.literal(v) for k, v in cli.split_options(changes)}
    arch_config = _read_json(args.arch_config) if args.arch_config else {}
    result = convert(args.arch, files, pathlib.Path(args.workdir), arch_config, data, args.entry)
    counts = ", ".join(f"{count:,} values of {name}" for name, count in result["num_values"].items())
    cli.emit(result, f"{counts} in {args.workdir}", args.json)


def _paths(args: argparse.Namespace) -> dict[str, pathlib.Path]:
    """The files of networks that the options name."""
    return {option: pathlib.Path(getattr(args, option)) for option in _OPTIONS if getattr(args, option)}


def _export(args: argparse.Namespace, changes: Sequence[str]) -> None:
    if args.weights or args.arch_config or args.entry or changes:
        raise ConfigError(
            "--export takes --workdir, --tokenizer, --refiner, --step and --ema only; remove the other options"
        )
    targets = _paths(args) | {"weights": pathlib.Path(args.export)}
    for path in targets.values():
        if path.suffix != ".safetensors":
            raise ConfigError(f"--export writes safetensors; {str(path)!r} must end in .safetensors")
    result = export(pathlib.Path(args.workdir), targets, args.step, args.ema)
    cli.emit(result, f"wrote {', '.join(result['files'].values())} (step {result['step']})", args.json)


if __name__ == "__main__":
    cli.main(command)
