"""Multi-scale tokenizer of ImageNet-like images at 512 pixels: the network for 256 pixels with VAR's scales for 512.

Command: python -m jaxar.train --config=configs/multiscale_vq_imagenet512.py --workdir=DIR --config.data.root=IMAGENET
  VAR uses the weights of 256 pixels as they are: --config.init_from.from_=out/multiscale_vq_imagenet256
Cost: as configs/multiscale_vq_imagenet256.py with four times as many pixels; not timed.
Expected: nothing published to compare with.
"""

import multiscale_vq_imagenet256


def get_config(arg: str = ""):
    config = multiscale_vq_imagenet256.get_config(arg)
    if arg != "smoke":
        config.data.image_size = 512
        config.tokenizer.scales = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
        config.train.batch_size = 64
    return config
