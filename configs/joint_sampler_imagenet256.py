"""A joint-sampling layer over MaskGIT on ImageNet 256x256: 64 calls of the teacher per image.

    python -m jaxar.train --config=configs/joint_sampler_imagenet256.py --workdir=out/joint_sampler_imagenet256 \\
        --config.data.root=IMAGENET

Needs the teacher of configs/maskgit_imagenet256.py in out/maskgit_imagenet256. Cost and expected FID: not measured, and
nothing is published for images.
"""

from common import base, check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = base()
    config.data = {"name": "imagenet", "root": "data/imagenet", "crop": "resized", "flip": True}
    config.teacher = {"from_": "out/maskgit_imagenet256"}
    config.model = {"num_heads": 16, "dtype": "bfloat16"}
    config.method = {"name": "joint_sampler", "group": 4}
    config.optim = {"learning_rate": 1e-4, "schedule": {"name": "constant", "warmup_steps": 1000}, "ema": (0.9999,)}
    config.train = {"num_steps": 50_000, "batch_size": 256, "checkpoint_every": 5000}
    config.sample = {"guidance_scale": 1.5}
    config.eval = {"every": 5000, "max_batches": 40, "ema": "0.9999"}
    if arg == "smoke":
        config.data = {"name": "glyphs"}
        config.model.update({"num_heads": 2, "dtype": "float32"})
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
