"""Samples from a workdir: python -m jaxar.sample --workdir=DIR --num=N --out=FILE.npz [options]

Writes ADM's layout (arr_0: uint8 images [n h w c], arr_1: labels [n]) and a labelled grid beside it (FILE.png). Image i
depends on the seed, its number and its condition alone: not on batch size, device count or interruptions. Rerunning an
interrupted command goes on where it stopped.

With --image and --mask a masked method completes a picture: what the mask marks is drawn anew, the rest stays, and
--class_id says what the new part shall be of.

    python -m jaxar.sample --workdir=DIR --num=8 --out=new.npz --image=cat.png --mask=0.25,0.25,0.75,0.75 --class_id=207
"""

import argparse
import dataclasses
import pathlib
import shutil
import zipfile
from typing import Any

import jax
import numpy as np

from jaxar import backend, cli, editing, partition, run, sampling, settings, workdir
from jaxar.config import ConfigError
from jaxar.data import pictures
from jaxar.data.base import make_folder

GRID = 80  # images in the picture


def sample_to_file(
    opened: run.Run, cond: dict[str, np.ndarray], seed: int, out: pathlib.Path, batch_size: int, options: dict[str, Any]
) -> dict[str, Any]:
    """Draws one image per entry of `cond` and writes `out`; finished batches survive an interruption.

    Args:
      cond: conditions with a leading axis of n; "label" is stored beside the images.
      options: changes to the sampling options of the configuration.
    Returns:
      Figures: num, seconds, images_per_s (without compilation), compile_s, network_calls.
    Raises:
      ConfigError: the parts of an interrupted command belong to other options.
    """
    sampler = opened.sampler(batch_size, **options)
    num = len(cond["label"])
    parts = out.with_name(out.name + ".parts")
    _claim(parts, opened, cond, seed, sampler.batch_size, options)
    drawn = 0
    for start in range(0, num, batch_size):
        part, rows = parts / f"{start:09d}.npy", np.arange(start, min(start + batch_size, num))
        if part.exists():
            continue
        # Always a full batch, so that one program serves the last one too.
        padded = np.resize(rows, min(batch_size, num))
        images = sampler(opened.variables, {k: v[padded] for k, v in cond.items()}, padded, seed)[: len(rows)]
        drawn += len(rows)
        if jax.process_index() == 0:
            partial = part.with_suffix(".tmp")
            with partial.open("wb") as file:
                np.save(file, images)
            partial.replace(part)
    if jax.process_index() == 0:
        _combine(parts, cond["label"], out)
    return {
        "num": num,
        "seconds": sampler.run_seconds,
        "images_per_s": drawn / sampler.run_seconds if drawn else None,
        "compile_s": sampler.compile_seconds,
        "network_calls": opened.method.network_calls(settings.build_sampling(opened.config, options)),
    }


def _claim(
    parts: pathlib.Path, opened: run.Run, cond: dict[str, np.ndarray], seed: int, batch: int, options: dict[str, Any]
) -> None:
    """Marks the folder of parts with what they are, and refuses parts of something else."""
    request = {
        "workdir": str(opened.workdir),
        "step": opened.step,
        "ema": opened.ema,
        "seed": seed,
        "batch_size": batch,
        "options": dataclasses.asdict(settings.build_sampling(opened.config, options)),
        "cond": {name: workdir.array_digest(values) for name, values in cond.items()},
    }
    manifest = parts / "request.json"
    if manifest.exists() and workdir.read_json(manifest) != workdir.normalized(request):
        raise ConfigError(
            f"--out: {parts} holds parts of an interrupted command with other options; remove it to start over"
        )
    if jax.process_index() == 0:
        parts.mkdir(parents=True, exist_ok=True)
        workdir.write_json(manifest, request)


def _combine(parts: pathlib.Path, labels: np.ndarray, out: pathlib.Path) -> None:
    """Writes the parts one after the other: large sets of images need not fit into memory."""
    batches = [np.load(part, mmap_mode="r") for part in sorted(parts.glob("*.npy"))]
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), *batches[0].shape[1:])}
    partial = out.with_name(out.name + ".tmp")
    with zipfile.ZipFile(partial, "w") as archive:  # what np.savez writes
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for batch in batches:
                file.write(batch)
        with archive.open("arr_1.npy", "w") as file:
            np.lib.format.write_array(file, labels)
    partial.replace(out)
    shutil.rmtree(parts)


def command(argv: list[str]) -> None:
    parser = cli.Parser(__doc__, prog="python -m jaxar.sample")
    parser.add_argument("--workdir", required=True, metavar="DIR")
    parser.add_argument("--num", type=cli.integer(1), required=True, metavar="N", help="number of images")
    parser.add_argument("--out", required=True, metavar="FILE.npz")
    parser.add_argument("--seed", type=cli.integer(0, settings.MAX_SEED), default=0)
    parser.add_argument("--class_id", type=int, metavar="C", help="one class; default: all classes in turn")
    parser.add_argument("--caption", action="append", help="for a text-conditional model; may be given several times")
    parser.add_argument("--image", metavar="FILE", help="picture to complete; needs --mask")
    parser.add_argument(
        "--mask",
        metavar="MASK",
        help="what is drawn anew: a file (white), top,left,bottom,right in shares of the side, or outside:BOX",
    )
    parser.add_argument("--batch_size", type=cli.integer(1), default=64, help="images drawn at once")
    parser.add_argument("--step", type=int, help="checkpoint; default: best by metric if one was kept, else newest")
    parser.add_argument("--ema", help="which average of the weights, or raw; default: the run's eval.ema")
    parser.add_json()
    cli.add_workdir_options(parser, argv)
    args = parser.parse_args(argv)
    out = pathlib.Path(args.out)
    if out.suffix != ".npz":
        raise ConfigError(f"--out={args.out!r} must end in .npz")
    backend.initialize()
    opened = run.load(args.workdir, step=args.step, ema=args.ema, mesh=partition.make_mesh(), role="--workdir")
    cls = settings.sampling_class(opened.config)
    if cls is None:
        raise ConfigError(f"--workdir={args.workdir!r} holds a tokenizer, which does not sample; use jaxar.evaluate")
    if args.caption and opened.task.text is None:
        raise ConfigError(f"--caption={args.caption[0]!r}: this model is conditioned on classes; use --class_id")
    if args.class_id is not None and opened.task.text is not None:
        raise ConfigError(f"--class_id={args.class_id}: this model is conditioned on text; use --caption")
    options = cli.given_options(args, cls)
    labels = _labels(args, opened)
    cond = sampling.conditions(opened.task, labels, args.caption or opened.captions)
    if (args.image is None) != (args.mask is None):
        raise ConfigError("--image and --mask belong together; give both to complete a picture, or neither")
    if args.image:
        cond |= editing.request(args.image, args.mask, opened.method, opened.task, args.num)
    make_folder(out.parent, "--out")
    figures = sample_to_file(opened, cond, args.seed, out, min(args.batch_size, args.num), options)
    if jax.process_index() == 0:
        grid = out.with_suffix(".png")
        with np.load(out) as saved:
            titles = [opened.class_names[label] for label in labels[:GRID]]
            pictures.grid(saved["arr_0"][:GRID], titles).save(grid)
        result = {
            "out": str(out),
            "grid": str(grid),
            "step": opened.step,
            "ema": opened.ema,
            "seed": args.seed,
            **figures,
        }
        rate = f"{figures['images_per_s']:.1f} images/s" if figures["images_per_s"] else "all parts were there"
        cli.emit(
            result,
            f"{args.num} images in {out} ({rate}, compiled in {figures['compile_s']:.1f} s); grid: {grid}",
            args.json,
        )


def _labels(args: argparse.Namespace, opened: run.Run) -> np.ndarray:
    classes = opened.task.num_classes
    if args.class_id is None:
        return sampling.balanced_labels(args.num, classes)
    if not 0 <= args.class_id < classes:
        raise ConfigError(
            f"--class_id={args.class_id} must be in 0..{classes - 1} ({', '.join(opened.class_names[:10])} ...)"
        )
    return np.full(args.num, args.class_id, np.int32)


if __name__ == "__main__":
    cli.main(command)
