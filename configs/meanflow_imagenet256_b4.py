"""MeanFlow-B/4 on ImageNet 256x256, 32x32 latents of 4 values: one call from noise to data.

    python -m jaxar.train --config=configs/meanflow_imagenet256_b4.py --workdir=out/meanflow_imagenet256_b4 \\
        --config.data.root=IMAGENET

Needs a tokenizer in out/kl_imagenet256_f8. Cost: 240 epochs, 1.2M steps of 256 images. Published FID-50K in one step:
11.4 (not reproduced here).
"""

import dit_imagenet256_xl2
from common import check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = dit_imagenet256_xl2.get_config(arg)
    if arg != "smoke":
        # Forward-mode derivatives lose too much in bfloat16.
        config.model = {"num_layers": 12, "width": 768, "num_heads": 12, "patch_size": 4, "dtype": "float32"}
        config.train.num_steps = 1_200_000
    config.method = {"name": "meanflow", "omega": 1.0, "kappa": 0.5}
    config.sample = {"num_steps": 1}
    return config
