"""MAR-L on ImageNet 256x256, 16x16 tokens of 16 values: 478.3M parameters, published as 479M.

    python -m jaxar.train --config=configs/mar_imagenet256_l.py --workdir=out/mar_imagenet256_l \\
        --config.data.root=IMAGENET

Needs a tokenizer in out/kl_imagenet256. Published FID-50K: 1.78 with guidance 3.0 and 256 steps, 2.60 without guidance
(not reproduced here). The recipe, and the argument `disa`, are those of configs/mar_imagenet256_b.py.
"""

import mar_imagenet256_b
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = mar_imagenet256_b.get_config(arg)
    config.sample.guidance_scale = 3.0
    if arg != "smoke":
        tower = {"num_layers": 16, "width": 1024, "num_heads": 16}
        config.model.update({"encoder": tower, "decoder": tower, "head": {"num_layers": 8, "width": 1280}})
    return config
