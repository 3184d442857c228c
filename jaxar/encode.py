"""Encodes a dataset ahead of time: python -m jaxar.encode --workdir=TOKENIZER --out=CACHE [--data.KEY=VALUE ...]

The data is that of the tokenizer's training unless --data.KEY=VALUE changes it. Train on the result with
--config.data.cache=CACHE. An interrupted command goes on where it stopped; every finished cache is verified by decoding
some of its entries.
"""

import functools
import pathlib
import typing
from typing import Any

import jax

from jaxar import backend, cli, run, weights
from jaxar.config import ConfigError
from jaxar.data import datasets, encoding
from jaxar.data.base import Variants
from jaxar.tokenizers.base import Tokenizer, Tokens
from jaxar.typing import Array, Variables


def command(argv: list[str]) -> None:
    parser = cli.Parser(__doc__, prog="python -m jaxar.encode")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="a tokenizer's training, or a run that has one")
    parser.add_argument("--out", required=True, metavar="CACHE", help="folder to write")
    parser.add_argument("--splits", default="train,test", help="comma-separated (default train,test)")
    parser.add_argument(
        "--variants",
        choices=typing.get_args(Variants),
        help="what is stored per image; default: flip where training mirrors images (data.flip), else image",
    )
    parser.add_argument("--text_folder", metavar="DIR", help="precomputed text features to store with the examples")
    parser.add_argument("--batch_size", type=cli.integer(1), default=64)
    parser.add_argument("--verify_only", action="store_true", help="check an existing cache")
    parser.add_argument("--step", type=int, help="checkpoint; default: best by metric if one was kept, else newest")
    parser.add_argument("--ema", help="which average of the weights, or raw; default: the run's eval.ema")
    parser.add_json()
    args, changes = parser.parse_known(argv, ["--data."])
    backend.initialize()
    opened = run.load(args.workdir, step=args.step, ema=args.ema, role="--workdir")
    if "tokenizer" not in opened.variables:
        raise ConfigError(f"--workdir={args.workdir!r} has no tokenizer; name the workdir of a tokenizer's training")
    values = {
        **opened.config["data"],
        **{k.removeprefix("--data."): cli.literal(v) for k, v in cli.split_options(changes)},
    }
    config = datasets.configure(values)
    tokenizer, variables = opened.task.tokenizer, opened.variables["tokenizer"]
    name = weights.digest(variables)
    encode = functools.partial(_encode, tokenizer, variables)
    decode = functools.partial(_decode, tokenizer, variables)
    reports: dict[str, Any] = {}
    for split in args.splits.split(","):
        folder = pathlib.Path(args.out) / split
        if not args.verify_only:
            encoding.encode_split(
                folder,
                config,
                split,
                encode,
                tokens=tokenizer.spec,
                tokenizer=name,
                variants=args.variants,
                text_folder=pathlib.Path(args.text_folder) if args.text_folder else None,
                batch_size=args.batch_size,
            )
        reports[split] = encoding.verify(folder, config, encode, decode, tokenizer=name)
    lines = [
        f"{args.out}/{split}: {r['num_examples']} examples in {r['files']} files; {r['checked']} decoded at "
        f"{r['psnr']:.1f} dB (afresh {r['psnr_fresh']:.1f} dB)"
        for split, r in reports.items()
    ]
    cli.emit({"out": args.out, "tokenizer": name, "splits": reports}, "\n".join(lines), args.json)


@functools.partial(jax.jit, static_argnums=0)
def _encode(tokenizer: Tokenizer, variables: Variables, images: Array) -> dict[str, Array]:
    """Ids, or latents as their mean."""
    tokens = tokenizer.encode(variables, images, None)
    return {"ids": tokens.ids} if tokens.ids is not None else {"mean": tokens.latents}


@functools.partial(jax.jit, static_argnums=0)
def _decode(tokenizer: Tokenizer, variables: Variables, tokens: dict[str, Array]) -> Array:
    return tokenizer.decode(variables, Tokens(**tokens))


if __name__ == "__main__":
    cli.main(command)
