"""Raster autoregression over the tokens of 32x32 glyphs, conditional on the character: 15M parameters.

    python -m jaxar.train --config=configs/ar_glyphs.py --workdir=out/ar_glyphs

Needs the tokenizer of configs/vq_glyphs.py in out/vq_glyphs.
"""

from common import base, check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = base()
    config.data = {"name": "glyphs"}
    config.tokenizer = {"from_": "out/vq_glyphs"}
    config.model = {"num_layers": 8, "width": 384, "num_heads": 6, "hidden_multiple": 64, "dtype": "bfloat16"}
    config.method = {"name": "ar"}
    config.optim = {
        "learning_rate": 5e-4,
        "schedule": {"name": "cosine", "warmup_steps": 500},
        "ema": (0.999,),
    }
    config.train = {"num_steps": 30_000, "batch_size": 256}
    config.sample = {"guidance_scale": 1.5}
    config.eval = {"every": 2000, "sample_every": 10_000, "ema": "0.999"}
    if arg == "smoke":
        config.model.update({"num_layers": 2, "width": 32, "num_heads": 2, "dtype": "float32"})
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
