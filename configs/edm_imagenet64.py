"""EDM on the pixels of ImageNet 64x64: the U-Net of ADM's sizes.

    python -m jaxar.train --config=configs/edm_imagenet64.py --workdir=out/edm_imagenet64 \\
        --config.data.root=IMAGENET

Cost: 610,000 steps of 4096 images. Published FID-50K of EDM's network, which has dropout and changes resolution within
residual blocks: 1.36 with the stochastic sampler below, 511 network calls (not reproduced here).
"""

from common import base, check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = base()
    config.data = {"name": "imagenet", "root": "data/imagenet", "image_size": 64}
    config.model = {
        "name": "unet",
        "channels": 192,
        "multipliers": (1, 2, 3, 4),
        "num_blocks": 3,
        "attention": (32, 16, 8),
        "num_heads": 8,
        "dtype": "bfloat16",
    }
    config.method = {"name": "edm", "label_drop": 0.0}
    config.optim = {
        "learning_rate": 1e-4,
        "schedule": {"name": "constant", "warmup_steps": 2_500},
        "b2": 0.999,
        "weight_decay": 0.0,
        "ema": (0.99994,),
    }
    config.train = {"num_steps": 610_000, "batch_size": 4096, "checkpoint_every": 5_000}
    config.sample = {"num_steps": 256, "churn": 40.0, "churn_range": (0.05, 50.0), "churn_noise": 1.003}
    config.eval = {"every": 5_000, "max_batches": 40, "ema": "0.99994"}
    if arg == "smoke":
        config.data = {"name": "digits"}
        config.model.update({"channels": 16, "multipliers": (1, 2), "num_blocks": 1, "attention": (4,), "num_heads": 2})
        config.sample.num_steps = 3
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
