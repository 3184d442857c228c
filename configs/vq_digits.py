"""VQ tokenizer of 8x8 digits: 16 tokens out of 256 codes.

Command: python -m jaxar.train --config=configs/vq_digits.py --workdir=out/vq_digits
Cost: two minutes on one CPU core.
Expected: 24.6 dB PSNR and rfd_digits 0.66 on the test images.
"""

from common import base, check_argument


def get_config(arg: str = ""):
    check_argument(arg, "smoke")
    config = base()
    config.data = {"name": "digits"}
    config.tokenizer = {
        "name": "vq",
        "vocab_size": 256,
        "code_channels": 16,
        "latent_channels": 32,
        "stack": {
            "channels": 16,
            "multipliers": (1, 2),
            "num_res_blocks": 1,
            "groups": 8,
            "level_attention": False,
            "mid_attention": False,
        },
        "guard": {"decay": 0.98, "revive_below": 0.2},
    }
    config.method = {"name": "autoencoder"}
    config.optim = {
        "learning_rate": 3e-3,
        "schedule": {"name": "cosine", "warmup_steps": 50},
        "b2": 0.99,
        "weight_decay": 0.0,
    }
    config.train = {"num_steps": 1000, "batch_size": 64}
    config.eval = {"every": 200, "sample_every": 1000}
    if arg == "smoke":
        config.tokenizer.stack.channels = 8
        config.tokenizer.vocab_size = 16
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval.update({"every": 2, "sample_every": 2, "max_batches": 1})
    return config
