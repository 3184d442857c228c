"""Evaluates a workdir or a file of samples against a reference.

python -m jaxar.evaluate --workdir=DIR --reference=NAME_OR_NPZ [options]
python -m jaxar.evaluate --workdir=DIR --reference=FILE.npz --inception=WEIGHTS [options]
python -m jaxar.evaluate --samples=FILE.npz --reference=NAME_OR_NPZ [--inception=WEIGHTS]

A generator's workdir is sampled with the labels of the reference's training images, once per seed, and its test split
gives the validation figures (bits per token). A tokenizer's workdir is judged by its reconstructions of the test split.
With --inception the numbers are FID, sFID, inception score, precision and recall as ADM's evaluator computes them, of
50,000 images per seed unless --num says otherwise; python -m jaxar.reference makes references that were not published.
Every figure is stored with its protocol in DIR/evaluations.
"""

import argparse
import hashlib
import json
import pathlib
from typing import Any

import jax

from jaxar import backend, cli, partition, run, scoring, settings, workdir
from jaxar.config import ConfigError, unknown
from jaxar.data import datasets
from jaxar.interop import inception_weights
from jaxar.metrics import classifier, fid
from jaxar.metrics import reference as references
from jaxar.metrics.inception import Extractor

SEEDS = (0, 1, 2)


def command(argv: list[str]) -> None:
    parser = cli.Parser(__doc__, prog="python -m jaxar.evaluate")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--workdir", metavar="DIR")
    what.add_argument("--samples", metavar="FILE.npz")
    add_options(parser)
    parser.add_argument("--ema", help="which average of the weights, or raw; default: the run's eval.ema")
    parser.add_json()
    cli.add_workdir_options(parser, argv)
    args = parser.parse_args(argv)
    backend.initialize()
    result = _evaluate_samples(args) if args.samples else _evaluate_workdir(args)
    cli.emit(result, _text(result), args.json)


def add_options(parser: cli.Parser) -> None:
    """What is compared with what, for the commands that evaluate."""
    parser.add_argument(
        "--reference", required=True, metavar="NAME_OR_NPZ", help="a dataset, or a file of images or statistics"
    )
    network = parser.add_mutually_exclusive_group()
    network.add_argument("--features", metavar="NAME", help="feature network; default: the reference's own")
    network.add_argument("--inception", metavar="WEIGHTS", help="the network of FID, from this file")
    parser.add_argument(
        "--num", type=cli.integer(1), metavar="N", help="samples per seed; default: as the reference's training split"
    )
    parser.add_argument(
        "--seeds", type=seeds, metavar="S,...", help="comma-separated seeds of the samples (default 0,1,2)"
    )
    parser.add_argument("--batch_size", type=cli.integer(1), default=64, help="images drawn at once")
    parser.add_argument("--step", type=int, help="checkpoint; default: best by metric if one was kept, else newest")
    parser.add_argument("--data_dir", help="where datasets are stored")


def judge(args: argparse.Namespace) -> scoring.Judge:
    """What the options of a command compare samples with.

    Raises:
      ConfigError: as `references.load`, `inception_weights.load` and `fid.read`.
    """
    if not args.inception:
        return scoring.by_classifier(references.load(args.reference, args.features, args.data_dir))
    net = inception_weights.load(args.inception, partition.make_mesh(), args.batch_size)
    return scoring.by_inception(_statistics(args, net, "gfid"), net)


def _statistics(args: argparse.Namespace, net: Extractor, kind: fid.Kind) -> fid.Reference:
    if not args.reference.endswith(".npz"):
        raise ConfigError(
            f"--reference={args.reference!r}: --inception needs a file of statistics (.npz); use a published one, or "
            "make one with python -m jaxar.reference"
        )
    return fid.read(pathlib.Path(args.reference), net, kind)


def _evaluate_samples(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "samples": args.samples,
        **scoring.evaluate_file(pathlib.Path(args.samples), judge(args), (args.seeds or SEEDS)[0]),
    }


def _evaluate_workdir(args: argparse.Namespace) -> dict[str, Any]:
    opened = run.load(args.workdir, step=args.step, ema=args.ema, mesh=partition.make_mesh(), role="--workdir")
    identity = {"workdir": args.workdir, "step": opened.step, "ema": opened.ema}
    if opened.options is None:
        for option in ("num", "seeds"):
            if getattr(args, option) is not None:
                raise ConfigError(
                    f"--{option}: {args.workdir!r} holds a tokenizer, which is evaluated on the test split"
                )
        result = _evaluate_tokenizer(args, opened)
    else:
        result = scoring.evaluate_generator(
            opened,
            judge(args),
            num=args.num,
            seeds=args.seeds or SEEDS,
            batch_size=args.batch_size,
            options=cli.given_options(args, type(opened.options)),
        )
        result["validation"] = scoring.validate(opened)
    stored = identity | result
    name = hashlib.sha256(json.dumps([vars(args), identity], default=str, sort_keys=True).encode()).hexdigest()[:8]
    folder = opened.workdir / "evaluations"
    file = folder / f"{pathlib.Path(args.reference).stem}_step{opened.step}_{name}.json"
    if jax.process_index() == 0:
        folder.mkdir(exist_ok=True)
        workdir.write_json(file, stored)
    return stored | {"file": str(file)}


def _evaluate_tokenizer(args: argparse.Namespace, opened: run.Run) -> dict[str, Any]:
    if not args.inception:
        return scoring.evaluate_tokenizer(opened, _feature_network(args), args.batch_size)
    net = inception_weights.load(args.inception, opened.mesh, args.batch_size)
    return scoring.evaluate_tokenizer_fid(opened, _statistics(args, net, "rfid"), net, args.batch_size)


def _feature_network(args: argparse.Namespace) -> classifier.FeatureNet | None:
    """For reconstructions: the network asked for, else that of the reference, where a dataset may have none."""
    if args.features:
        return classifier.load(args.features)
    if args.reference not in datasets.names():
        raise unknown("value of --reference", args.reference, datasets.names())
    return classifier.load(args.reference) if args.reference in classifier.names() else None


def seeds(text: str) -> tuple[int, ...]:
    """The value of --seeds: "0,1,2"."""
    return tuple(cli.integer(0, settings.MAX_SEED)(seed) for seed in text.split(","))


def _text(result: dict[str, Any]) -> str:
    lines = [f"{result.get('workdir') or result['samples']} (n = {result['protocol']['n']})"]
    floor = result.get("floor") or {}
    for name, value in result["metrics"].items():
        beside = f"   floor {_figure(floor[name])}" if name in floor else ""
        lines.append(f"  {name:<20} {_figure(value)}{beside}")
    for name, value in (result.get("validation") or {}).items():
        lines.append(f"  {name:<20} {_figure(value)}")
    if "ms_per_image" in result:
        calls, ms, size = result["network_calls"], result["ms_per_image"], result["batch_size"]
        lines.append(f"  {calls} network calls, {ms:.2f} ms per image at batch {size}")
    return "\n".join([*lines, f"stored in {result['file']}"] if "file" in result else lines)


def _figure(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['mean']:.4g} ({value['min']:.4g} .. {value['max']:.4g})"
    return f"{value:.4g}"


if __name__ == "__main__":
    cli.main(command)
