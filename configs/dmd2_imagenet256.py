"""One-step student of SiT-XL/2 on ImageNet 256x256 by distribution matching with a discriminator.

    python -m jaxar.train --config=configs/dmd2_imagenet256.py --workdir=out/dmd2_imagenet256 \\
        --config.data.root=IMAGENET

Needs its teacher in out/sit_imagenet256_xl2. The settings are those published for ImageNet 64x64, with an EDM teacher:
FID 1.51 in one step after 200k steps, 1.28 where the discriminator joins a student that was trained without (not
reproduced here).
"""

from common import base, check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = base()
    config.data = {"name": "imagenet", "root": "data/imagenet", "flip": True}
    config.teacher = {"from_": "out/sit_imagenet256_xl2"}
    config.method = {"name": "dmd2", "guidance_scale": 1.5}
    config.optim = {
        "learning_rate": 2e-6,
        "schedule": {"name": "constant"},
        "b2": 0.999,
        "weight_decay": 0.01,
        "clip_norm": 10.0,
        "ema": (0.999,),
    }
    config.train = {"num_steps": 200_000, "batch_size": 280, "checkpoint_every": 5_000}
    config.eval = {"every": 5_000, "max_batches": 40, "ema": "0.999"}
    if arg == "smoke":
        config.data = {"name": "glyphs"}
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
