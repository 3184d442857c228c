"""KL autoencoder of 8x8 digits: 16 tokens of 4 continuous values.

Command: python -m jaxar.train --config=configs/kl_digits.py --workdir=out/kl_digits
Cost: 2 minutes on 2 slow CPU cores.
Expected: 29.6 dB on the test images. Drawn latents have standard deviation 0.98, so the scale stays 1.
"""

import vq_digits
from common import check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = vq_digits.get_config()
    stack = config.tokenizer.stack
    config.tokenizer = {"name": "kl", "latent_channels": 4, "latent_scale": 1.0, "kl_weight": 1e-3, "stack": stack}
    config.eval.every = 1000
    if arg == "smoke":
        config.tokenizer.stack.channels = 8
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval.update({"every": 2, "sample_every": 2, "max_batches": 1})
    return config
