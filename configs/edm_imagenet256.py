"""EDM on ImageNet 256x256: DiT-XL/2 over 32x32 latents of 4 values, told the noise of EDM.

    python -m jaxar.train --config=configs/edm_imagenet256.py --workdir=out/edm_imagenet256 \\
        --config.data.root=IMAGENET

Needs a tokenizer in out/kl_imagenet256_f8, whose latents have about unit deviation. Cost: as
configs/dit_imagenet256_xl2.py, 7M steps of 256 images. No published figure has this combination.
"""

import dit_imagenet256_xl2
from common import check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = dit_imagenet256_xl2.get_config(arg)
    config.method = {"name": "edm", "sigma_data": 1.0}
    config.sample = {"num_steps": 3 if arg == "smoke" else 32, "guidance_scale": 1.5}
    return config
