"""DiT-XL/2 on ImageNet 256x256, 32x32 latents of 4 values: 674.8M parameters, published as 675M.

    python -m jaxar.train --config=configs/dit_imagenet256_xl2.py --workdir=out/dit_imagenet256_xl2 \\
        --config.data.root=IMAGENET

Needs a tokenizer in out/kl_imagenet256_f8. Cost: 7M steps of 256 images. Published FID-50K: 9.62 without guidance, 2.27
with guidance 1.5 and 250 steps (not reproduced here). The published weights, which cannot be downloaded here, become a
workdir by: python -m jaxar.convert --arch=dit_xl2_256 --weights=DiT-XL-2-256x256.pt --tokenizer=VAE --workdir=DIR
(names and numbers checked on small weights of the same code).
"""

from common import base, check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = base()
    config.data = {"name": "imagenet", "root": "data/imagenet", "flip": True}
    config.tokenizer = {"from_": "out/kl_imagenet256_f8"}
    config.model = {"num_layers": 28, "width": 1152, "num_heads": 16, "patch_size": 2, "dtype": "bfloat16"}
    config.method = {"name": "diffusion", "label_drop": 0.1}
    config.optim = {
        "learning_rate": 1e-4,
        "schedule": {"name": "constant"},
        "weight_decay": 0.0,
        "ema": (0.9999,),
    }
    config.train = {"num_steps": 7_000_000, "batch_size": 256, "checkpoint_every": 10_000}
    config.sample = {"respacing": "250", "guidance_scale": 1.5, "guided_channels": 3}
    config.eval = {"every": 10_000, "max_batches": 40, "ema": "0.9999"}
    if arg == "smoke":
        config.data = {"name": "glyphs"}
        config.model = {"num_layers": 2, "width": 32, "num_heads": 2, "patch_size": 2}
        config.sample.respacing = "4"
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
