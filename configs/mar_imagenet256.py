"""MAR-B (208M parameters; arguments l, h) on ImageNet 256x256, 16x16 tokens of 16 values.

    python -m jaxar.train --config=configs/mar_imagenet256.py --workdir=out/mar_imagenet256 --config.data.root=IMAGENET

Needs a tokenizer in out/kl_imagenet256. Cost: 800 epochs, 0.5M steps of 2048 images. The argument `disa` samples MAR-B
in 64 steps, and anneals the head's from 50 to 5.

Official weights: MAR's checkpoint-last.pth of each size with kl16.ckpt. To judge them:

    python -m jaxar.convert --arch=mar_base --weights=checkpoint-last.pth --tokenizer=kl16.ckpt --workdir=DIR
    python -m jaxar.evaluate --workdir=DIR --reference=REFERENCE.npz --inception=WEIGHTS --num=50000

Published FID-50K in 256 steps: 2.31, 1.78 and 1.55 with guidance 2.9, 3.0 and 3.2; 3.48, 2.60 and 2.35 without (not
repeated here; that the network, tokenizer and sampler agree is checked at small sizes).
"""

from common import base, check_argument
from ml_collections import ConfigDict

STEPS_PER_EPOCH = 1_281_167 // 2048
SIZES = {  # the two towers, the head, the published guidance
    "b": ({"num_layers": 12, "width": 768, "num_heads": 12}, {"num_layers": 6, "width": 1024}, 2.9),
    "l": ({"num_layers": 16, "width": 1024, "num_heads": 16}, {"num_layers": 8, "width": 1280}, 3.0),
    "h": ({"num_layers": 20, "width": 1280, "num_heads": 16}, {"num_layers": 12, "width": 1536}, 3.2),
}


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke", "l", "h", "disa")
    config = base()
    config.data = {"name": "imagenet", "root": "data/imagenet", "flip": True}
    config.tokenizer = {"from_": "out/kl_imagenet256"}
    tower, head, guidance = SIZES[arg if arg in SIZES else "b"]
    config.model = {
        "encoder": dict(tower),
        "decoder": dict(tower),
        "head": dict(head),
        "buffer_size": 64,
        "dropout": 0.1,
        "dtype": "bfloat16",
    }
    config.method = {"name": "mar", "min_masked": 0.7, "repeats": 4, "label_drop": 0.1}
    config.optim = {
        "learning_rate": 8e-4,
        "schedule": {"name": "constant", "warmup_steps": 100 * STEPS_PER_EPOCH},
        "b1": 0.9,
        "b2": 0.95,
        "weight_decay": 0.02,
        "clip_norm": 3.0,
        "ema": (0.9999,),
    }
    config.train = {"num_steps": 800 * STEPS_PER_EPOCH, "batch_size": 2048, "checkpoint_every": 5000}
    config.sample = {"num_steps": 256, "head": {"first": 100}, "guidance_scale": guidance, "segments": 8}
    config.eval = {"every": 5000, "max_batches": 40, "ema": "0.9999"}
    if arg == "disa":
        config.sample.update({"num_steps": 64, "head": {"first": 50, "last": 5, "start": 950}})
    if arg == "smoke":
        config.data = {"name": "glyphs"}
        small = {"num_layers": 2, "width": 32, "num_heads": 2}
        config.model.update({"encoder": small, "decoder": small, "head": {"num_layers": 2, "width": 32}})
        config.model.update({"buffer_size": 4, "dtype": "float32"})
        config.sample.update({"num_steps": 4, "head": {"first": 10}})
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
