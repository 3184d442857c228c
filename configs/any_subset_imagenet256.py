"""Any-subset autoregression (88M parameters, the size of XLNet-base) on ImageNet 256x256: 256 tokens of 1024 codes.

    python -m jaxar.train --config=configs/any_subset_imagenet256.py --workdir=out/any_subset_imagenet256 \\
        --config.data.root=IMAGENET

Needs the tokenizer of configs/maskgit_vq_imagenet256.py in out/maskgit_vq_imagenet256. Cost and expected FID: not
measured, and nothing is published for images.
"""

from common import base, check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = base()
    config.data = {"name": "imagenet", "root": "data/imagenet", "crop": "resized", "flip": True}
    config.tokenizer = {"from_": "out/maskgit_vq_imagenet256"}
    config.model = {"num_layers": 12, "width": 768, "num_heads": 12, "dtype": "bfloat16"}
    config.method = {"name": "any_subset"}
    config.optim = {
        "learning_rate": 1e-4,
        "schedule": {"name": "constant", "warmup_steps": 5000},
        "b2": 0.95,
        "weight_decay": 0.05,
        "ema": (0.9999,),
    }
    config.train = {"num_steps": 1_000_000, "batch_size": 256, "checkpoint_every": 5000}
    config.sample = {"draft": 5, "guidance_scale": 1.5}
    config.eval = {"every": 5000, "max_batches": 40, "ema": "0.9999"}
    if arg == "smoke":
        config.data = {"name": "glyphs"}
        config.model.update({"num_layers": 2, "width": 32, "num_heads": 2, "dtype": "float32"})
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
