"""VAR-d16 (310M parameters; arguments d20, d24, d30) on ImageNet 256x256, ten scales of a 4096-code VQ, 680 tokens.

    python -m jaxar.train --config=configs/next_scale_imagenet256.py --workdir=out/next_scale_imagenet256 \\
        --config.data.root=IMAGENET

Needs a tokenizer in out/multiscale_vq_imagenet256. Cost: 200 epochs (d16), 334 thousand steps of 768 images. The
learning rate is the published 1e-4 per 256 images, 8e-5 from d24 on; epochs and batches of the larger models are those
of d16 here.

Official weights: VAR's var_d16.pth, var_d20.pth, var_d24.pth and var_d30.pth with vae_ch160v4096z32.pth. To judge them:

    python -m jaxar.convert --arch=var_d16 --weights=var_d16.pth --tokenizer=vae_ch160v4096z32.pth --workdir=DIR
    python -m jaxar.evaluate --workdir=DIR --reference=REFERENCE.npz --inception=WEIGHTS --num=50000

Published FID-50K with guidance 1.5 in VAR's spelling, which is guidance_scale=2.5 here, top-k 900 and top-p 0.96: 3.55,
2.95, 2.33 and 1.97 (not repeated here; that the network, tokenizer and sampler agree is checked at small sizes).
"""

from common import base, check_argument
from ml_collections import ConfigDict

STEPS_PER_EPOCH = 1_281_167 // 768


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke", "d20", "d24", "d30")
    depth = int(arg[1:]) if arg.startswith("d") else 16
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
        "num_layers": depth,
        "width": 64 * depth,
        "num_heads": depth,
        "gate_init": 1e-3 if depth < 24 else 1e-5,
        "drop_path": 0.1 * depth / 24,
        "dtype": "bfloat16",
    }
    config.method = {"name": "next_scale", "label_drop": 0.1}
    config.optim = {
        "learning_rate": 3e-4 if depth < 24 else 2.4e-4,
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
