"""Multi-scale tokenizer of ImageNet-like images at 256 pixels, VAR's sizes: 680 tokens of 4,096 codes, 109M parameters.

Command: python -m jaxar.train --config=configs/multiscale_vq_imagenet256.py --workdir=DIR --config.data.root=IMAGENET
  A perceptual loss needs weights that you have:
  --config.method.perceptual.weight=1.0 --config.method.perceptual.weights=LPIPS_VGG16.safetensors
Cost: 40 epochs of ImageNet; not timed.
Expected: nothing published to compare with: VAR's tokenizer was trained on OpenImages by a recipe that was not
  released; losses and optimizer here are LlamaGen's.
"""

import vq_imagenet256


def get_config(arg: str = ""):
    config = vq_imagenet256.get_config(arg)
    config.tokenizer.name = "multiscale_vq"
    if arg == "smoke":
        del config.tokenizer["latent_channels"]
        config.tokenizer.quantizer.name = "vq"
        config.tokenizer.scales = (1, 2, 4, 8)
    return config
