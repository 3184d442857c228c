"""SiT-XL/2 on ImageNet 256x256, 32x32 latents of 4 values: 674.8M parameters, published as 675M.

    python -m jaxar.train --config=configs/sit_imagenet256_xl2.py --workdir=out/sit_imagenet256_xl2 \\
        --config.data.root=IMAGENET

Needs a tokenizer in out/kl_imagenet256_f8. Cost: 7M steps of 256 images. Published FID-50K with 250 steps of the
stochastic sampler: 8.3 without guidance, 2.06 with guidance 1.5 (not reproduced here). The published weights, which
cannot be downloaded here, become a workdir by:
python -m jaxar.convert --arch=sit_xl2_256 --weights=SiT-XL-2-256x256.pt --tokenizer=VAE --workdir=DIR
(names and numbers checked on small weights of the same code).
"""

import dit_imagenet256_xl2
from common import check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = dit_imagenet256_xl2.get_config(arg)
    config.method = {"name": "flow_matching", "label_drop": 0.1, "learn_sigma": True}
    config.sample = {
        "solver": "sde",
        "num_steps": 4 if arg == "smoke" else 250,
        "guidance_scale": 1.5,
        "guided_channels": 3,
    }
    return config
