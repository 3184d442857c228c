"""One-step student of SiT-XL/2 on ImageNet 256x256 by score identity distillation.

    python -m jaxar.train --config=configs/sid_imagenet256.py --workdir=out/sid_imagenet256 \\
        --config.data.root=IMAGENET

Needs its teacher in out/sit_imagenet256_xl2. The settings are those published for ImageNet 64x64, with an EDM teacher:
500M to 1000M samples, FID 1.52 in one step (not reproduced here).
"""

import dmd2_imagenet256
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = dmd2_imagenet256.get_config(arg)
    config.method = {"name": "sid", "guidance_scale": 1.5}
    config.optim = {
        "learning_rate": 4e-6,
        "schedule": {"name": "constant"},
        "b1": 0.0,
        "b2": 0.999,
        "weight_decay": 0.0,
        "clip_norm": None,
        "ema": (0.999,),
    }
    if arg != "smoke":
        config.train.update({"num_steps": 120_000, "batch_size": 8192, "accumulate": 16})
    return config
