"""Masked diffusion (172M parameters) on ImageNet 256x256: MaskGIT's tokens and network, sampled through 64 times.

    python -m jaxar.train --config=configs/mdm_imagenet256.py --workdir=out/mdm_imagenet256 \\
        --config.data.root=IMAGENET

Needs the tokenizer of configs/maskgit_vq_imagenet256.py in out/maskgit_vq_imagenet256. Cost and expected FID: not
measured, and nothing is published for these tokens; the schedule of training is MaskGIT's.
"""

import maskgit_imagenet256
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = maskgit_imagenet256.get_config(arg)
    config.method = {"name": "mdm"}
    config.sample = {"num_steps": 64, "guidance_scale": 1.5}
    return config
