"""VAR-d16 (310M parameters) on ImageNet 256x256, ten scales of a 4096-code residual VQ, 680 tokens.

    python -m jaxar.train --config=configs/next_scale_imagenet256_d16.py --workdir=out/next_scale_imagenet256_d16 \\
        --config.data.root=IMAGENET

Needs a tokenizer in out/multiscale_vq_imagenet256. Cost: 200 epochs, 334 thousand steps of 768 images. Published
FID-50K with guidance 1.5 in VAR's spelling, which is guidance_scale=2.5 here, top-k 900 and top-p 0.96: 3.55 (not
reproduced here). The learning rate is the published 1e-4 per 256 images.
"""

from common import base, check_argument
from ml_collections import ConfigDict

STEPS_PER_EPOCH = 1_281_167 // 768


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = base()
    # The published crop: 256 random pixels of an image whose shorter side is 288.
    config.data = {
        "name": "imagenet",
        "root": "data/imagenet",
        "crop": "random",
        "crop_scale": (8 / 9, 8 / 9),
        "flip": False,
    }
    config.tokenizer = {"from_": "out/multiscale_vq_imagenet256"}
    config.model = {
        "num_layers": 16,
        "width": 1024,
        "num_heads": 16,
        "gate_init": 1e-3,
        "drop_path": 0.1 * 16 / 24,
        "dtype": "bfloat16",
    }
    config.method = {"name": "next_scale", "label_drop": 0.1}
    config.optim = {
        "learning_rate": 3e-4,
        "schedule": {
            "name": "linear",
            "warmup_steps": 4 * STEPS_PER_EPOCH,
            "warmup_init": 0.005,
            "flat": 0.05,
            "end": 0.1,
        },
        "b1": 0.9,
        "b2": 0.95,
        "weight_decay": 0.05,
        "clip_norm": 2.0,
    }
    config.train = {"num_steps": 200 * STEPS_PER_EPOCH, "batch_size": 768, "checkpoint_every": 5000}
    config.sample = {"guidance_scale": 2.5, "top_k": 900, "top_p": 0.96}
    config.eval = {"every": 5000, "max_batches": 40}
    if arg == "smoke":
        config.data = {"name": "glyphs"}
        config.model.update({"num_layers": 2, "width": 32, "num_heads": 2, "dtype": "float32"})
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
