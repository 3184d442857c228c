"""Makes the statistics that jaxar.evaluate --inception compares with.

python -m jaxar.reference --inception=WEIGHTS --split=train|test --out=FILE.npz --data.name=NAME [--data.KEY=VALUE ...]

The training split gives a reference for samples (kind gfid), the test split one for reconstructions (kind rfid); the
kind is stored and neither is taken for the other. The file has ADM's keys: mu, sigma, mu_s, sigma_s; one for samples
also holds some of the images, as arr_0, for precision and recall.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxar import backend, cli, partition
from jaxar.config import ConfigError
from jaxar.data import datasets
from jaxar.data.base import DataConfig, make_folder
from jaxar.interop import inception_weights
from jaxar.metrics import fid, protocol
from jaxar.metrics import reference as references
from jaxar.metrics.inception import Extractor

KINDS: dict[str, fid.Kind] = {"train": "gfid", "test": "rfid"}


def make(config: DataConfig, split: str, net: Extractor, num_images: int, out: pathlib.Path) -> dict[str, Any]:
    """Measures a split, as the data gives it after the central crop, and writes the reference.

    Args:
      num_images: how many randomly chosen training images the file gets; fewer if there are fewer.
    Returns:
      "n", "kind" and "images", their number.
    """
    count = len(datasets.open_split(config, split))
    statistics = fid.measure(_batches(config, split, count, net.batch_size), net, neighbours=False)
    kind, images = KINDS[split], None
    if kind == "gfid":
        chosen = np.sort(np.random.default_rng(0).permutation(count)[:num_images])
        images = references.read_split(config, split, chosen).images
    fid.write(out, statistics, images, kind, net)
    return {"n": count, "kind": kind, "images": 0 if images is None else len(images)}


def _batches(config: DataConfig, split: str, count: int, size: int) -> Iterator[np.ndarray]:
    for start in range(0, count, size):
        yield references.read_split(config, split, range(start, min(start + size, count))).images


def command(argv: list[str]) -> None:
    parser = cli.Parser(__doc__, prog="python -m jaxar.reference")
    parser.add_argument("--inception", required=True, metavar="WEIGHTS", help="the network of FID, from this file")
    parser.add_argument("--split", required=True, choices=sorted(KINDS))
    parser.add_argument("--out", required=True, metavar="FILE.npz")
    parser.add_argument(
        "--images",
        type=cli.integer(protocol.NEIGHBOURS + 1),
        default=10_000,
        metavar="N",
        help="in the file, default 10,000",
    )
    parser.add_argument("--batch_size", type=cli.integer(1), default=64, help="images measured at once")
    parser.add_json()
    args, data = parser.parse_known(argv, ["--data."])
    out = pathlib.Path(args.out)
    if out.suffix != ".npz":
        raise ConfigError(f"--out={args.out!r} must end in .npz")
    config = datasets.configure({k.removeprefix("--data."): cli.literal(v) for k, v in cli.split_options(data)})
    backend.initialize()
    datasets.info(config)  # prepares the data, or says what is missing
    net = inception_weights.load(args.inception, partition.make_mesh(), args.batch_size)
    make_folder(out.parent, "--out")
    result = {"out": str(out), **make(config, args.split, net, args.images, out), "inception_sha256": net.sha256}
    text = f"{out}: {result['kind']} statistics of {result['n']} images, {result['images']} of them inside"
    cli.emit(result, text, args.json)


if __name__ == "__main__":
    cli.main(command)
