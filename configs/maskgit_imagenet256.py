"""MaskGIT (172M parameters) on ImageNet 256x256, 16x16 tokens of a 1024-code VQ.

    python -m jaxar.train --config=configs/maskgit_imagenet256.py --workdir=out/maskgit_imagenet256 \\
        --config.data.root=IMAGENET

Needs the tokenizer of configs/maskgit_vq_imagenet256.py in out/maskgit_vq_imagenet256. Cost: 2M steps of 256 images.
Published FID-50K with eight network calls and without guidance: 6.18 (not reproduced here).
"""

from common import base, check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = base()
    config.data = {"name": "imagenet", "root": "data/imagenet", "crop": "resized", "flip": True}
    config.tokenizer = {"from_": "out/maskgit_vq_imagenet256"}
    config.model = {"num_layers": 24, "width": 768, "num_heads": 16, "dtype": "bfloat16"}
    config.method = {"name": "maskgit", "label_drop": 0.1}
    config.optim = {
        "learning_rate": 1e-4,
        "schedule": {"name": "constant", "warmup_steps": 5000},
        "b1": 0.9,
        "b2": 0.96,
        "weight_decay": 0.045,
        "ema": (0.9999,),
    }
    config.train = {"num_steps": 2_000_000, "batch_size": 256, "checkpoint_every": 5000}
    config.sample = {"num_steps": 8, "choice_temperature": 4.5}
    config.eval = {"every": 5000, "max_batches": 40, "ema": "0.9999"}
    if arg == "smoke":
        config.data = {"name": "glyphs"}
        config.model.update({"num_layers": 2, "width": 32, "num_heads": 2, "dtype": "float32"})
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
