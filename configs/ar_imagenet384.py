"""LlamaGen-L (343M parameters; arguments xl, xxl, 3b) on ImageNet 384x384, 24x24 tokens of a 16384-code VQ.

    python -m jaxar.train --config=configs/ar_imagenet384.py --workdir=out/ar_imagenet384 --config.data.root=IMAGENET

Needs a tokenizer in out/vq_imagenet384. The recipe is that of configs/ar_imagenet256.py. Official weights: LlamaGen's
c2i_L_384.pt, c2i_XL_384.pt, c2i_XXL_384.pt and c2i_3B_384.pt with vq_ds16_c2i.pt. To judge them:

    python -m jaxar.convert --arch=llamagen_l_384 --weights=c2i_L_384.pt --tokenizer=vq_ds16_c2i.pt --workdir=DIR
    python -m jaxar.sample --workdir=DIR --num=50000 --out=samples.npz

Published FID-50K of samples that were shrunk to 256 pixels: 3.07, 2.62, 2.34 and 2.18 (not repeated here).
"""

import ar_imagenet256
from common import check_argument
from ml_collections import ConfigDict

GUIDANCE = {"l": 2.0, "xl": 1.75, "xxl": 1.75, "3b": 1.65}


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke", "xl", "xxl", "3b")
    config = ar_imagenet256.get_config("smoke" if arg == "smoke" else "")
    config.tokenizer = {"from_": "out/vq_imagenet384"}
    if arg != "smoke":
        config.data.image_size = 384
        config.model.update(ar_imagenet256.size(arg or "l"))
        config.sample.guidance_scale = GUIDANCE[arg or "l"]
    return config
