"""MAR over the continuous tokens of 8x8 digits: encoder, decoder and diffusion head with 0.9M parameters together.

    python -m jaxar.train --config=configs/mar_digits.py --workdir=out/mar_digits

Needs the tokenizer of configs/kl_digits.py in out/kl_digits. The argument `flow` trains a flow-matching head, `raster`
reveals tokens row by row.

Cost: about 24 minutes on one CPU core that other work shares.
Expected: fd_digits 7.8 in 16 calls (floor 0.86), class consistency 95 %.
"""

from common import base, check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke", "flow", "raster")
    config = base()
    config.data = {"name": "digits"}
    config.tokenizer = {"from_": "out/kl_digits"}
    config.model = {
        "encoder": {"num_layers": 3, "width": 96, "num_heads": 3},
        "decoder": {"num_layers": 3, "width": 96, "num_heads": 3},
        "head": {"num_layers": 3, "width": 96},
        "buffer_size": 4,
    }
    config.method = {"name": "mar"}
    config.optim = {
        "learning_rate": 2e-3,
        "schedule": {"name": "cosine", "warmup_steps": 100},
        "b2": 0.95,
        "ema": (0.995,),
    }
    config.train = {"num_steps": 3000, "batch_size": 64, "checkpoint_every": 500}
    config.sample = {"num_steps": 16, "head": {"first": 50, "start": 950, "temperature": 0.9}, "guidance_scale": 4.0}
    config.eval = {"every": 500, "sample_every": 3000, "reference": "digits", "ema": "0.995"}
    if arg == "flow":
        config.method.head = "flow"
        config.sample.head.update({"first": 25, "start": None})
    if arg == "raster":
        config.method.update({"order": "raster", "min_masked": 0.0})
    if arg == "smoke":
        small = {"num_layers": 2, "width": 32, "num_heads": 2}
        config.model.update({"encoder": small, "decoder": small, "head": {"num_layers": 2, "width": 32}})
        config.sample.update({"num_steps": 4, "head": {"first": 10, "start": 950}, "segments": 2})
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
