"""VQ tokenizer of ImageNet at 384 pixels: the network for 256 pixels, which gives 576 tokens.

Command: python -m jaxar.train --config=configs/vq_imagenet384.py --workdir=DIR --config.data.root=IMAGENET
  LlamaGen uses the weights of 256 pixels as they are: --config.init_from.from_=out/vq_imagenet256
Cost: as configs/vq_imagenet256.py with 2.25 times as many pixels; not timed.
Expected: rFID 0.94 on the validation images (published; not repeated here).
"""

import vq_imagenet256


def get_config(arg: str = ""):
    config = vq_imagenet256.get_config(arg)
    if arg != "smoke":
        config.data.image_size = 384
    return config
