"""KL autoencoder of 8x8 digits: 16 tokens of 4 continuous values.

Command: python -m jaxar.train --config=configs/kl_digits.py --workdir=out/kl_digits
Cost: 2 minutes on 2 slow CPU cores.
Expected: 29.6 dB on the test images. Drawn latents have standard deviation 0.98, so the scale stays 1.
"""

from common import base, check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = base()
    config.data = {"name": "digits"}
    config.tokenizer = {
        "name": "kl",
        "latent_channels": 4,
        "latent_scale": 1.0,
        "kl_weight": 1e-3,
        "stack": {
            "channels": 16,
            "multipliers": (1, 2),
            "num_res_blocks": 1,
            "groups": 8,
            "level_attention": False,
            "mid_attention": False,
        },
    }
    config.method = {"name": "autoencoder"}
    config.optim = {
        "learning_rate": 3e-3,
        "schedule": {"name": "cosine", "warmup_steps": 50},
        "b2": 0.99,
        "weight_decay": 0.0,
    }
    config.train = {"num_steps": 1000, "batch_size": 64}
    config.eval = {"every": 1000, "sample_every": 1000}
    if arg == "smoke":
        config.tokenizer.stack.channels = 8
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval.update({"every": 2, "sample_every": 2, "max_batches": 1})
    return config
