"""MaskGIT over the tokens of 8x8 digits: 0.48M parameters, eight network calls per image.

    python -m jaxar.train --config=configs/maskgit_digits.py --workdir=out/maskgit_digits

Needs the tokenizer of configs/vq_digits.py in out/vq_digits.
Cost: about eight minutes on one CPU core that other work shares.
Expected: fd_digits 2.6 (floor 0.86), class consistency 98 %.
"""

from common import base, check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = base()
    config.data = {"name": "digits"}
    config.tokenizer = {"from_": "out/vq_digits"}
    config.model = {"num_layers": 4, "width": 96, "num_heads": 3}
    config.method = {"name": "maskgit"}
    config.optim = {
        "learning_rate": 2e-3,
        "schedule": {"name": "cosine", "warmup_steps": 100},
        "ema": (0.995,),
    }
    config.train = {"num_steps": 3000, "batch_size": 64, "checkpoint_every": 500}
    config.sample = {"num_steps": 8, "temperature": 0.9}
    config.eval = {"every": 500, "sample_every": 3000, "reference": "digits", "ema": "0.995"}
    if arg == "smoke":
        config.model.update({"num_layers": 2, "width": 32, "num_heads": 2})
        config.sample.num_steps = 4
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
