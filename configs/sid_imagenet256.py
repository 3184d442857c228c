"""One-step student of SiT-XL/2 on ImageNet 256x256 by score identity distillation.

    python -m jaxar.train --config=configs/sid_imagenet256.py --workdir=out/sid_imagenet256 \\
        --config.data.root=IMAGENET

Needs its teacher in out/sit_imagenet256_xl2. The settings are those published for ImageNet 64x64, with an EDM teacher:
500M to 1000M samples, FID 1.52 in one step (not reproduced here).
"""

from common import base, check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = base()
    config.data = {"name": "imagenet", "root": "data/imagenet", "flip": True}
    config.teacher = {"from_": "out/sit_imagenet256_xl2"}
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
    config.train = {"num_steps": 120_000, "batch_size": 8192, "accumulate": 16, "checkpoint_every": 5_000}
    config.eval = {"every": 5_000, "max_batches": 40, "ema": "0.999"}
    if arg == "smoke":
        config.data = {"name": "glyphs"}
        config.train.update({"num_steps": 2, "batch_size": 8, "accumulate": 1})
        config.eval = {}
    return config
