"""A learnt sampler of eight steps for masked diffusion on ImageNet 256x256, coefficients and times (LSD+).

    python -m jaxar.train --config=configs/lsd_imagenet256.py --workdir=out/lsd_imagenet256 \\
        --config.data.root=IMAGENET

Needs the teacher of configs/mdm_imagenet256.py in out/mdm_imagenet256. A training step calls the network 264 times: 8
times to draw, 256 times to compare. Cost and expected FID: not measured, and nothing is published for images.
"""

from common import base, check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = base()
    config.data = {"name": "imagenet", "root": "data/imagenet", "crop": "resized", "flip": True}
    config.teacher = {"from_": "out/mdm_imagenet256"}
    config.method = {"name": "lsd", "num_steps": 8, "learn_times": True, "teacher": {"guidance_scale": 1.5}}
    config.optim = {
        "learning_rate": 1e-2,
        "schedule": {"name": "cosine", "warmup_steps": 20},
        "weight_decay": 0.0,
        "ema": (0.99,),
    }
    config.train = {"num_steps": 1000, "batch_size": 64, "checkpoint_every": 250}
    config.eval = {"every": 250, "max_batches": 4, "batch_size": 64, "ema": "0.99"}
    if arg == "smoke":
        config.data = {"name": "glyphs"}
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
