"""Prepares and inspects datasets.

python -m jaxar.data prepare NAME [--KEY=VALUE ...] [--json]
python -m jaxar.data inspect NAME [--out=FILE.png] [--split=test] [--KEY=VALUE ...] [--json]

KEY is a key of the dataset's `data` section: image_size, data_dir, root, ... `python -m jaxar.list datasets` names the
datasets.
"""

import dataclasses
import pathlib
from typing import Any

from jaxar import cli
from jaxar.data import commands, datasets

_SHOWN_CLASSES = 20


def command(argv: list[str]) -> None:
    parser = cli.Parser(__doc__, prog="python -m jaxar.data")
    parser.add_argument("action", choices=["prepare", "inspect"])
    parser.add_argument("name", help="a dataset")
    parser.add_argument(
        "--out", type=pathlib.Path, help="inspect: write a grid of pictures with labels to this PNG file"
    )
    parser.add_argument("--split", choices=datasets.SPLITS, default="train", help="inspect: what the grid shows")
    parser.add_json()
    args, rest = parser.parse_known(argv, known=["--"])
    options = {name.removeprefix("--"): cli.literal(value) for name, value in cli.split_options(rest)}
    config = datasets.configure({"name": args.name, **options})
    if args.action == "prepare":
        result = commands.prepare(config)
    else:
        result = commands.inspect(config, args.out, args.split)
    cli.emit(result, _text(result), args.json)


def _text(result: dict[str, Any]) -> str:
    lines = []
    for name, value in result.items():
        if name == "class_names" and len(value) > _SHOWN_CLASSES:
            value = [*value[:_SHOWN_CLASSES], "..."]
        if dataclasses.is_dataclass(value):
            value = dataclasses.asdict(value)
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        if isinstance(value, (list, tuple)):
            value = (" x " if name == "image_shape" else ", ").join(map(str, value))
        if value not in (None, ""):
            lines.append(f"{name.replace('_', ' ') + ':':<14}{value}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.main(command)
