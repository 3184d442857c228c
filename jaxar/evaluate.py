"""Evaluates a workdir or a file of samples against a reference.

python -m jaxar.evaluate --workdir=DIR --reference=NAME_OR_NPZ [options]
python -m jaxar.evaluate --samples=FILE.npz --reference=NAME_OR_NPZ

A generator's workdir is sampled with the labels of the reference's training images, once per seed, and its test split
gives the validation figures (bits per token). A tokenizer's workdir is judged by its reconstructions of the test split.
Every figure is stored with its protocol in DIR/evaluations.
"""

import argparse
import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np

from jaxar import backend, cli, partition, run, sampling, settings, workdir
from jaxar.config import ConfigError, parse, unknown
from jaxar.data import datasets, loader
from jaxar.evaluation import Validation
from jaxar.metrics import classifier, protocol
from jaxar.metrics import reference as references
from jaxar.tokenizers.base import Encoder

SEEDS = (0, 1, 2)


def evaluate_generator(
    opened: run.Run,
    reference: references.Reference,
    *,
    num: int | None,
    seeds: tuple[int, ...],
    batch_size: int,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Samples a method and compares the images with a reference.

    Args:
      num: images per seed; default: as many as the reference's training images, with their labels.
      seeds: one set of samples each.
      options: changes to the sampling options.
    Returns:
      The summary of `protocol.summarize`, with "validation", "sampling", "network_calls" and timings.
    """
    labels = _labels(opened, reference, num)
    sampler = opened.sampler(batch_size, **options)
    cond = sampling.conditions(opened.task, labels, opened.captions)
    results = []
    for seed in seeds:
        images = sampler(opened.variables, cond, np.arange(len(labels)), seed)
        results.append(protocol.evaluate_samples(images, labels, reference, seed))
    chosen = settings.build_sampling(opened.config, options)
    return {
        **protocol.summarize(results),
        "validation": validate(opened),
        "sampling": dataclasses.asdict(chosen),
        "network_calls": opened.method.network_calls(chosen),
        "ms_per_image": 1000 * sampler.run_seconds / (len(labels) * len(seeds)),
        "batch_size": batch_size,
    }


def evaluate_tokenizer(opened: run.Run, net: classifier.FeatureNet | None, batch_size: int) -> dict[str, Any]:
    """Scores the reconstructions of the test split: psnr, ssim, rfd if there is a network, and validation figures."""
    config = datasets.configure(opened.config["data"])
    images = references.read_split(config, "test").images
    again = [
        opened.reconstruct(loader.to_float(part))
        for part in np.split(images, range(batch_size, len(images), batch_size))
    ]
    return {**protocol.evaluate_reconstruction(images, np.concatenate(again), net), "validation": validate(opened)}


def validate(opened: run.Run) -> dict[str, float]:
    """The method's validation figures on the test split of its data."""
    config = datasets.configure(opened.config["data"])
    frozen = "tokenizer" in opened.variables and "tokenizer" not in opened.method.players()
    prepare = Encoder(opened.task.tokenizer) if frozen and config.cache is None else None
    size = parse(settings.EvalConfig, opened.config.get("eval") or {}, "eval").batch_size
    ways = partition.batch_ways(opened.mesh)
    size = -(-size // ways) * ways  # the mesh of the training may have been another
    batches = loader.eval_batches(config, "test", batch_size=size, mesh=opened.mesh)
    return Validation(opened.method, prepare)(opened.variables, batches)


def _labels(opened: run.Run, reference: references.Reference, num: int | None) -> np.ndarray:
    """The training labels, repeated or cut to `num`; balanced ones where the reference has no training images.

    Raises:
      ConfigError: neither `num` nor the reference says how many.
    """
    if reference.train is None:
        count = num or reference.num_images
        if count is None:
            raise ConfigError(f"--num is missing: {reference.name} does not say how many images it was made from")
        return sampling.balanced_labels(count, opened.task.num_classes)
    labels = references.read_split(reference.train, "train").labels.astype(np.int32)
    return labels if num is None else np.resize(labels, num)


def evaluate_file(path: pathlib.Path, reference: references.Reference, seed: int) -> dict[str, Any]:
    """Scores the samples in an .npz file (arr_0: uint8 images, arr_1: labels, optional).

    Raises:
      ConfigError: unreadable, or without arr_0.
    """
    arrays = references.read_npz(path, "--samples")
    if "arr_0" not in arrays:
        raise ConfigError(
            f"--samples={str(path)!r} has keys {', '.join(arrays) or 'none'}; it needs arr_0 (uint8 images)"
        )
    return protocol.evaluate_samples(arrays["arr_0"], arrays.get("arr_1"), reference, seed)


def command(argv: list[str]) -> None:
    parser = cli.Parser(__doc__, prog="python -m jaxar.evaluate")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--workdir", metavar="DIR")
    what.add_argument("--samples", metavar="FILE.npz")
    parser.add_argument(
        "--reference", required=True, metavar="NAME_OR_NPZ", help="a dataset, or a file of images or statistics"
    )
    parser.add_argument("--features", metavar="NAME", help="feature network; default: the reference's own")
    parser.add_argument(
        "--num", type=cli.integer(1), metavar="N", help="samples per seed; default: as the reference's training split"
    )
    parser.add_argument(
        "--seeds", type=_seeds, metavar="S,...", help="comma-separated seeds of the samples (default 0,1,2)"
    )
    parser.add_argument("--batch_size", type=cli.integer(1), default=64, help="images drawn at once")
    parser.add_argument("--step", type=int, help="checkpoint; default: best by metric if one was kept, else newest")
    parser.add_argument("--ema", help="which average of the weights, or raw; default: the run's eval.ema")
    parser.add_argument("--data_dir", help="where datasets are stored")
    parser.add_json()
    cli.add_workdir_options(parser, argv)
    args = parser.parse_args(argv)
    backend.initialize()
    result = _evaluate_samples(args) if args.samples else _evaluate_workdir(args)
    cli.emit(result, _text(result), args.json)


def _evaluate_samples(args: argparse.Namespace) -> dict[str, Any]:
    reference = references.load(args.reference, args.features, args.data_dir)
    return {"samples": args.samples, **evaluate_file(pathlib.Path(args.samples), reference, (args.seeds or SEEDS)[0])}


def _evaluate_workdir(args: argparse.Namespace) -> dict[str, Any]:
    opened = run.load(args.workdir, step=args.step, ema=args.ema, mesh=partition.make_mesh(), role="--workdir")
    identity = {"workdir": args.workdir, "step": opened.step, "ema": opened.ema}
    if opened.options is None:
        for option in ("num", "seeds"):
            if getattr(args, option) is not None:
                raise ConfigError(
                    f"--{option}: {args.workdir!r} holds a tokenizer, which is evaluated on the test split"
                )
        result = evaluate_tokenizer(opened, _feature_network(args), args.batch_size)
    else:
        reference = references.load(args.reference, args.features, args.data_dir)
        result = evaluate_generator(
            opened,
            reference,
            num=args.num,
            seeds=args.seeds or SEEDS,
            batch_size=args.batch_size,
            options=cli.given_options(args, type(opened.options)),
        )
    stored = identity | result
    name = hashlib.sha256(json.dumps([vars(args), identity], default=str, sort_keys=True).encode()).hexdigest()[:8]
    folder = opened.workdir / "evaluations"
    file = folder / f"{pathlib.Path(args.reference).stem}_step{opened.step}_{name}.json"
    if jax.process_index() == 0:
        folder.mkdir(exist_ok=True)
        workdir.write_json(file, stored)
    return stored | {"file": str(file)}


def _feature_network(args: argparse.Namespace) -> classifier.FeatureNet | None:
    """For reconstructions: the network asked for, else that of the reference, where a dataset may have none."""
    if args.features:
        return classifier.load(args.features)
    if args.reference not in datasets.names():
        raise unknown("value of --reference", args.reference, datasets.names())
    return classifier.load(args.reference) if args.reference in classifier.names() else None


def _seeds(text: str) -> tuple[int, ...]:
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
