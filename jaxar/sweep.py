"""Evaluates a workdir over averages of its weights and values of sampling options, and writes a table.

python -m jaxar.sweep --workdir=DIR --reference=NAME_OR_NPZ --ema=0.99,0.999 --guidance_scale=1,1.5,2 [options]

Every sampling option takes several values, separated by commas; all combinations are evaluated, each as jaxar.evaluate
would. A combination is stored when it is done, so the same command goes on where it stopped, and one with more values
computes those that are new. The table is sweep.json and sweep.md in DIR/sweeps/REFERENCE, or in --out.
"""

import dataclasses
import hashlib
import itertools
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from jaxar import backend, cli, evaluate, partition, run, scoring, settings, weights, workdir
from jaxar.config import ConfigError
from jaxar.data.base import make_folder


@dataclasses.dataclass(frozen=True)
class Point:
    """One combination: an average of the weights (None: the run's own) and changes to the sampling options."""

    ema: str | None
    options: tuple[tuple[str, Any], ...]


def points(emas: Sequence[str | None], options: dict[str, Sequence[Any]]) -> list[Point]:
    """All combinations; averages change slowest, because weights are read anew for each."""
    combinations = list(itertools.product(*options.values()))
    return [Point(ema, tuple(zip(options, values))) for ema in emas for values in combinations]


def sweep(
    folder: pathlib.Path,
    grid: Sequence[Point],
    judge: scoring.Judge,
    out: pathlib.Path,
    *,
    step: int | None,
    num: int | None,
    seeds: tuple[int, ...],
    batch_size: int,
) -> list[dict[str, Any]]:
    """Evaluates the points of a grid that `out` does not hold yet.

    Args:
      folder: the workdir.
      out: gets a file per point in `rows`; what it holds of other sweeps stays there and is not returned.
      step, num, seeds, batch_size: as for `jaxar.evaluate`.
    Returns:
      A row per point, in order.
    """
    _check(folder, grid)
    rows = []
    for ema, group in itertools.groupby(grid, key=lambda point: point.ema):
        opened = run.load(folder, step=step, ema=ema, mesh=partition.make_mesh(), role="--workdir")
        for point in group:
            file = out / "rows" / f"{_digest(opened, point, judge, num, seeds)}.json"
            if not file.exists():
                print(f"ema {opened.ema or 'raw'}, {_text(dict(point.options))}", file=sys.stderr)
                workdir.write_json(file, _evaluate(opened, point, judge, num, seeds, batch_size))
            rows.append(workdir.read_json(file))
    return rows


def _check(folder: pathlib.Path, grid: Sequence[Point]) -> None:
    """Refuses a wrong value before the first evaluation."""
    config = workdir.open_config(folder, "--workdir")
    method = settings.build_method(config, settings.build_task(workdir.read_json(folder / "task.json")))
    for point in grid:
        settings.build_sampling(config, dict(point.options))
        weights.check_average(config, method, next(iter(method.players())), point.ema, "average")


def _digest(opened: run.Run, point: Point, judge: scoring.Judge, num: int | None, seeds: tuple[int, ...]) -> str:
    """A name for everything that the result depends on."""
    options = dataclasses.asdict(settings.build_sampling(opened.config, dict(point.options)))
    what = [opened.step, opened.ema, options, judge.sha256, num, seeds]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def _evaluate(
    opened: run.Run, point: Point, judge: scoring.Judge, num: int | None, seeds: tuple[int, ...], batch_size: int
) -> dict[str, Any]:
    options = dict(point.options)
    result = scoring.evaluate_generator(opened, judge, num=num, seeds=seeds, batch_size=batch_size, options=options)
    return {"step": opened.step, "ema": opened.ema or "raw", "options": options, **result}


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table; the best value of the first metric, a distance, is bold."""
    metrics = list(rows[0]["metrics"])
    options = list(rows[0]["options"])
    best = min(row["metrics"][metrics[0]]["mean"] for row in rows)
    head = ["ema", *options, *metrics, "network calls", "ms per image"]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in rows:
        values = [row["metrics"][name]["mean"] for name in metrics]
        cells = [f"{value:.4g}" for value in values]
        if values[0] == best:
            cells[0] = f"**{cells[0]}**"
        timing = [row["network_calls"], f"{row['ms_per_image']:.2f}"]
        lines.append(_line([row["ema"], *row["options"].values(), *cells, *timing]))
    return "\n".join([*lines, ""])


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _text(options: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items()) or "options of the configuration"


def command(argv: list[str]) -> None:
    parser = cli.Parser(__doc__, prog="python -m jaxar.sweep")
    parser.add_argument("--workdir", required=True, metavar="DIR")
    evaluate.add_options(parser)
    parser.add_argument("--ema", metavar="A,B", help="averages of the weights, or raw; default: the run's eval.ema")
    parser.add_argument("--out", metavar="DIR", help="default: WORKDIR/sweeps/REFERENCE")
    parser.add_json()
    cli.add_workdir_options(parser, argv, convert=_values)
    args = parser.parse_args(argv)
    folder = pathlib.Path(args.workdir)
    cls = settings.sampling_class(workdir.open_config(folder, "--workdir"))
    if cls is None:
        raise ConfigError(f"--workdir={args.workdir!r} holds a tokenizer, which has no options; use jaxar.evaluate")
    grid = points(args.ema.split(",") if args.ema else [None], cli.given_options(args, cls))
    backend.initialize()
    out = pathlib.Path(args.out) if args.out else folder / "sweeps" / pathlib.Path(args.reference).stem
    judge = evaluate.judge(args)
    make_folder(out / "rows", "--out")
    measuring = {
        "step": args.step,
        "num": args.num,
        "seeds": args.seeds or evaluate.SEEDS,
        "batch_size": args.batch_size,
    }
    rows = sweep(folder, grid, judge, out, **measuring)
    workdir.write_json(out / "sweep.json", rows)
    (out / "sweep.md").write_text(markdown(rows))
    cli.emit({"out": str(out), "rows": rows}, f"{markdown(rows)}\n{out}/sweep.json, sweep.md", args.json)


def _values(text: str) -> tuple[Any, ...]:
    return tuple(cli.literal(value) for value in text.split(","))


if __name__ == "__main__":
    cli.main(command)
