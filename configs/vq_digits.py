"""VQ tokenizer of 8x8 digits: 16 tokens out of 256 codes.

Command: python -m jaxar.train --config=configs/vq_digits.py --workdir=out/vq_digits
Cost: two minutes on one CPU core.
Expected: 24.6 dB PSNR and rfd_digits 0.66 on the test images.

An argument chooses another quantizer with 256 codes: `vq`, `simvq`, `fsq`, `lfq` or `bsq`.
"""

from common import base, check_argument

_CODEBOOK = {"vocab_size": 256, "channels": 16, "guard": {"decay": 0.98, "revive_below": 0.2}}
QUANTIZERS = {
    "vq": _CODEBOOK,
    "simvq": {"vocab_size": 256, "channels": 16},
    "fsq": {"levels": (8, 8, 4)},
    "lfq": {"channels": 8, "group": 8},
    "bsq": {"channels": 8, "group": 8},
}


def get_config(arg: str = ""):
    check_argument(arg, "smoke", *QUANTIZERS)
    config = base()
    config.data = {"name": "digits"}
    config.tokenizer = {
        "name": "vq",
        "quantizer": {"name": arg, **QUANTIZERS[arg]} if arg in QUANTIZERS else {"name": "l2_vq", **_CODEBOOK},
        "latent_channels": 32,
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
    config.eval = {"every": 200, "sample_every": 1000}
    if arg == "smoke":
        config.tokenizer.stack.channels = 8
        config.tokenizer.quantizer.vocab_size = 16
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval.update({"every": 2, "sample_every": 2, "max_batches": 1})
    return config
