"""KL autoencoder of ImageNet at 256 pixels, Stable Diffusion's stride-8 sizes: 1024 tokens of 4 values.

Command: python -m jaxar.train --config=configs/kl_imagenet256_f8.py --workdir=out/kl_imagenet256_f8 \\
      --config.data.root=IMAGENET
Everything else, also the perceptual loss, as in configs/kl_imagenet256.py; 83.7M parameters. The official weights,
which are not shipped, come with those of DiT and SiT: python -m jaxar.convert --arch=dit_xl2_256 --tokenizer=FILE.
"""

import kl_imagenet256
from common import check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = kl_imagenet256.get_config(arg)
    config.tokenizer.update({"latent_channels": 4, "latent_scale": 0.18215})
    if arg != "smoke":
        stack = {"channels": 128, "multipliers": (1, 2, 4, 4), "level_attention": False}
        config.tokenizer.stack = stack
    return config
