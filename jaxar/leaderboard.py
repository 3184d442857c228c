"""Trains every method on one dataset under one budget and compares them.

python -m jaxar.leaderboard --suite=digits --out=DIR [--methods=A,B] [--max_parameters=N] [--max_steps=N] [...]

Run in a checkout. The suite is every configs/NAME_digits.py whose method samples; runs that a configuration builds on
(tokenizers, teachers) are trained first, once. All runs lie in DIR/runs; finished ones are used as they are, and the
same command goes on where it stopped.

The budget: a method with more parameters (of the network that samples; parents are not counted) is refused and not
trained. Longer training is cut to --max_steps, the learning rate's schedule being made for that length, and the table
says so. Time is only known afterwards: what took longer than --max_seconds is marked and ranks behind the others. It is
the time of the steps, without compilation, evaluation and saving. A method that fails is listed with its error and does
not stop the others; the exit code is then 1.

Written: leaderboard.json, leaderboard.md and leaderboard.png (quality against latency). A student's distance is given
as a multiple of its teacher's where that is among the methods, and few-step methods have a second table, by network
calls.
"""

import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from jaxar import backend, cli, contest, evaluate, scoring, suites, workdir
from jaxar.config import ConfigError, unknown
from jaxar.contest import Budget, Measuring, Row
from jaxar.data.base import make_folder
from jaxar.metrics import classifier
from jaxar.metrics import reference as references

FAILED = 1
# Of labels from their points, the nearest first: right of it, then left, higher and lower.
_OFFSETS = sorted(
    ((side, up) for side, up in itertools.product((6, -6), range(-45, 46, 5))), key=lambda o: (abs(o[1] - 3), -o[0])
)
_MARK = 5  # half the size of a mark, in pixels


def compete(suite: suites.Suite, budget: Budget, measuring: Measuring, latency_again: bool = False) -> list[Row]:
    """A row per method, the best first; see `contest.enter`.

    Raises:
      contest.Stopped: SIGTERM ended a training.
    """
    judge = scoring.by_classifier(references.load(suite.dataset))
    rows = []
    for method in suite.methods:
        try:
            rows.append(contest.enter(suite, method, budget, measuring, judge, latency_again))
        except (ConfigError, FloatingPointError) as error:
            rows.append({"method": method, "error": " ".join(str(error).split())})
            print(f"{method}: {rows[-1]['error']}", file=sys.stderr)
    return ranked(rows, budget, suite.dataset)


def ranked(rows: Sequence[Row], budget: Budget, dataset: str) -> list[Row]:
    """By distance, with "note": those within the time first, then those that took longer, then those not measured."""
    noted = [row | {"note": _note(row, budget)} for row in rows]

    def place(row: Row) -> tuple[int, float]:
        if "metrics" not in row:
            return 2 + ("error" in row), 0.0
        return int(row["train_seconds"] > budget.max_seconds), row["metrics"][f"fd_{dataset}"]["mean"]

    return sorted(noted, key=place)


def _note(row: Row, budget: Budget) -> str:
    if "error" in row:
        return f"failed: {row['error']}"
    if "refused" in row:
        return f"refused: {row['refused']}"
    notes = []
    if row["num_steps"] < row["own_num_steps"]:
        notes.append(f"cut from {row['own_num_steps']:,} steps")
    if row["train_seconds"] > budget.max_seconds:
        notes.append("over the time")
    return ", ".join(notes)


def markdown(report: dict[str, Any]) -> str:
    """The table, with the budget above it."""
    dataset, budget = report["suite"], report["budget"]
    small, large = contest.BATCHES
    head = [
        "method",
        f"fd_{dataset} ({len(report['measuring']['seeds'])} seeds)",
        "floor",
        "teacher",
        "class consistency",
        "bits per token",
        "network calls",
        f"ms per image, batch {small}",
        f"ms per image, batch {large}",
        "training, s",
        "parameters",
        "steps",
        "note",
    ]
    measured = distances(report["rows"], dataset)
    lines = [
        f"Budget: {budget['max_parameters']:,} parameters, {budget['max_steps']:,} steps, {budget['max_seconds']:g} s.",
        "",
        _line(head),
        _line(["---"] * len(head)),
        *(_line(_cells(row, dataset, measured)) for row in report["rows"]),
    ]
    return "\n".join([*lines, "", *_few_calls(report["rows"], dataset, measured)])


def distances(rows: Sequence[Row], dataset: str) -> dict[str, float]:
    """Mean distance by method, of those that were measured."""
    return {row["method"]: row["metrics"][f"fd_{dataset}"]["mean"] for row in rows if "metrics" in row}


def _few_calls(rows: Sequence[Row], dataset: str, measured: dict[str, float]) -> list[str]:
    """The lines of a table of distances by number of network calls, and as multiples of the teacher's."""
    found = [row for row in rows if row.get("few_calls")]
    if not found:
        return []

    def cell(row: Row, calls: int) -> str:
        metrics = row["few_calls"].get(str(calls))
        return _relative(metrics[f"fd_{dataset}"]["mean"], measured.get(row["teacher"])) if metrics else ""

    head = ["few-step method", "teacher", *(f"fd_{dataset}, {n} call{'s' * (n > 1)}" for n in contest.CALLS)]
    body = [[row["method"], row["teacher"] or "", *(cell(row, n) for n in contest.CALLS)] for row in found]
    return [*map(_line, (head, ["---"] * len(head), *body)), ""]


def _relative(distance: float, of_teacher: float | None) -> str:
    return f"{distance:.2f}" + (f" ({distance / of_teacher:.2f}x)" if of_teacher else "")


def _cells(row: Row, dataset: str, measured: dict[str, float]) -> list[str]:
    parameters, steps = (f"{row[name]:,}" if name in row else "" for name in ("parameters", "num_steps"))
    if "metrics" not in row:
        return [row["method"], *[""] * 9, parameters, steps, row["note"]]
    distance, consistency = row["metrics"][f"fd_{dataset}"], row["metrics"]["class_consistency"]
    bits, teacher = row["validation"].get("bits_per_token"), row["teacher"]
    share = f", {distance['mean'] / measured[teacher]:.2f}x" if teacher in measured else ""
    return [
        row["method"],
        f"{distance['mean']:.2f} ({distance['min']:.2f} to {distance['max']:.2f})",
        f"{row['floor'][f'fd_{dataset}']['mean']:.2f}",
        f"{teacher}{share}" if teacher else "",
        f"{consistency['mean']:.1%}",
        "" if bits is None else f"{bits:.2f}",
        str(row["network_calls"]),
        *(f"{row['latency_ms'][str(size)]:.2f}" for size in contest.BATCHES),
        f"{row['train_seconds']:.0f}",
        parameters,
        steps,
        row["note"],
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def draw(rows: Sequence[Row], dataset: str, path: pathlib.Path) -> None:
    """Distance against milliseconds per image at the large batch; bars span the seeds, open marks took too long."""
    measured, labels = [row for row in rows if "metrics" in row], []
    figure, axis = plt.subplots(figsize=(11, 7), layout="constrained")
    for row in measured:
        x, y = row["latency_ms"][str(contest.BATCHES[-1])], row["metrics"][f"fd_{dataset}"]
        bars = [[y["mean"] - y["min"]], [y["max"] - y["mean"]]]
        filled = "none" if "over the time" in row["note"] else "full"
        color = axis.errorbar(x, y["mean"], bars, marker="o", fillstyle=filled, capsize=3)[0].get_color()
        label = axis.annotate(row["method"], (x, y["mean"]), (0, 0), textcoords="offset points", fontsize=8)
        label.set_color(color)  # it may lie nearer to another mark
        labels.append(label)
    if measured:
        floor = measured[0]["floor"][f"fd_{dataset}"]["mean"]
        axis.axhline(floor, color="grey", linestyle="--", label="floor: real training images")
        axis.legend()
        axis.set(xscale="log", yscale="log")
        axis.margins(x=0.1)  # for labels
    axis.set(xlabel=f"ms per image, batch {contest.BATCHES[-1]}", ylabel=f"fd_{dataset}, lower is better")
    _place(labels)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _place(labels: list[Annotation]) -> None:
    """Moves each label to where it covers no mark and no label before it, if there is such a place nearby."""
    if not labels:
        return
    labels[0].figure.draw_without_rendering()  # the layout is known after it
    marks = [label.axes.transData.transform(label.xy) for label in labels]
    taken = [Bbox.from_extents(x - _MARK, y - _MARK, x + _MARK, y + _MARK) for x, y in marks]
    for label in labels:
        for side, up in (*_OFFSETS, _OFFSETS[0]):  # the nearest, where none is free
            label.set(position=(side, up), horizontalalignment="left" if side > 0 else "right")
            box = label.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def command(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    if args.suite not in classifier.names():
        raise unknown("value of --suite", args.suite, classifier.names())
    out = pathlib.Path(args.out)
    methods = tuple(args.methods.split(",")) if args.methods else ()
    suite = suites.find(pathlib.Path("configs"), out / "runs", args.suite, args.arg, methods)
    budget = Budget(args.max_parameters, args.max_steps, args.max_seconds)
    measuring = Measuring(args.num, args.seeds)
    make_folder(out, "--out")
    backend.initialize()
    try:
        rows = compete(suite, budget, measuring, args.latency_again)
    except contest.Stopped:
        return cli.PREEMPTED
    report = {
        "suite": args.suite,
        "argument": args.arg,
        "budget": dataclasses.asdict(budget),
        "measuring": dataclasses.asdict(measuring),
        "rows": rows,
    }
    workdir.write_json(out / "leaderboard.json", report)
    (out / "leaderboard.md").write_text(markdown(report))
    draw(rows, args.suite, out / "leaderboard.png")
    cli.emit(report | {"out": str(out)}, f"{markdown(report)}\n{out}/leaderboard.json, .md, .png", args.json)
    return FAILED if any("error" in row for row in rows) else 0


def _parser() -> cli.Parser:
    parser = cli.Parser(__doc__, prog="python -m jaxar.leaderboard")
    parser.add_argument("--suite", required=True, metavar="NAME", help=f"one of {', '.join(classifier.names())}")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--methods", metavar="A,B", help="names of configurations without the suite's; default: all")
    parser.add_argument("--arg", default="", help="argument of the configurations; 'smoke' tries them untrained")
    parser.add_argument(
        "--max_parameters", type=cli.integer(1), default=1_000_000, metavar="N", help="default 1,000,000"
    )
    parser.add_argument("--max_steps", type=cli.integer(1), default=3000, metavar="N", help="default 3,000")
    parser.add_argument("--max_seconds", type=cli.integer(1), default=1800, metavar="N", help="default 1,800")
    parser.add_argument(
        "--num", type=cli.integer(1), metavar="N", help="samples per seed; default: as for jaxar.evaluate"
    )
    parser.add_argument(
        "--latency_again",
        action="store_true",
        help="time all methods one after the other, also those that were measured before: for figures side by side",
    )
    parser.add_argument("--seeds", type=evaluate.seeds, default="0,1,2", help="of the samples (default 0,1,2)")
    parser.add_json()
    return parser


if __name__ == "__main__":
    cli.main(command)
