"""Raster autoregression over the tokens of 8x8 digits: LlamaGen's network with 0.49M parameters.

    python -m jaxar.train --config=configs/ar_digits.py --workdir=out/ar_digits

Needs the tokenizer of configs/vq_digits.py in out/vq_digits.
Cost: about seven minutes on one CPU core, from tokens encoded ahead of time.
Expected: fd_digits 1.7 (floor 0.86), class consistency 97 %.
"""

from common import base, check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = base()
    config.data = {"name": "digits"}
    config.tokenizer = {"from_": "out/vq_digits"}
    config.model = {"num_layers": 4, "width": 96, "num_heads": 3, "hidden_multiple": 32}
    config.method = {"name": "ar"}
    config.optim = {
        "learning_rate": 2e-3,
        "schedule": {"name": "cosine", "warmup_steps": 100},
        "ema": (0.995,),
    }
    config.train = {"num_steps": 2000, "batch_size": 64, "checkpoint_every": 1000}
    config.sample = {"guidance_scale": 1.5, "temperature": 0.9}
    config.eval = {"every": 200, "sample_every": 2000, "reference": "digits", "ema": "0.995"}
    if arg == "smoke":
        config.model.update({"num_layers": 2, "width": 32, "num_heads": 2})
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
