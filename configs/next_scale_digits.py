"""Next-scale autoregression over the token maps of 8x8 digits: VAR's network with 0.72M parameters.

    python -m jaxar.train --config=configs/next_scale_digits.py --workdir=out/next_scale_digits

Needs the tokenizer of configs/multiscale_vq_digits.py in out/multiscale_vq_digits.
Cost: about five minutes on one CPU core, from tokens encoded ahead of time.
Expected: fd_digits 2.3 (floor 0.86), class consistency 99 %.
"""

from common import base, check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = base()
    config.data = {"name": "digits"}
    config.tokenizer = {"from_": "out/multiscale_vq_digits"}
    config.model = {"num_layers": 4, "width": 96, "num_heads": 3, "dropout": 0.0}
    config.method = {"name": "next_scale"}
    config.optim = {
        "learning_rate": 2e-3,
        "schedule": {"name": "cosine", "warmup_steps": 100},
        "clip_norm": 2.0,
        "ema": (0.995,),
    }
    config.train = {"num_steps": 800, "batch_size": 64, "checkpoint_every": 400}
    config.sample = {"guidance_scale": 1.5, "temperature": 0.8}
    config.eval = {"every": 200, "sample_every": 800, "reference": "digits", "ema": "0.995"}
    if arg == "smoke":
        config.model.update({"num_layers": 2, "width": 32, "num_heads": 2})
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
