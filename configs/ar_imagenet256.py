"""LlamaGen-B (111M parameters; argument l) on ImageNet 256x256, 16x16 tokens of a 16384-code VQ.

    python -m jaxar.train --config=configs/ar_imagenet256.py --workdir=out/ar_imagenet256 \\
        --config.data.root=IMAGENET

Needs a tokenizer in out/vq_imagenet256. Cost: 300 epochs, 1.5M steps of 256 images. The published run reads tokens
encoded ahead of time, of ten crops of each image and their mirror images.

Official weights: LlamaGen's c2i_B_256.pt and c2i_L_256.pt with vq_ds16_c2i.pt. To judge them:

    python -m jaxar.convert --arch=llamagen_b_256 --weights=c2i_B_256.pt --tokenizer=vq_ds16_c2i.pt --workdir=DIR
    python -m jaxar.evaluate --workdir=DIR --reference=REFERENCE.npz --inception=WEIGHTS --num=50000

Published FID-50K with guidance 2.0, temperature 1 and no top-k or top-p: 5.46 and 3.80 (not repeated here; that the
network, tokenizer and sampler agree is checked at small sizes).
"""

from common import base, check_argument
from ml_collections import ConfigDict

STEPS_PER_EPOCH = 1_281_167 // 256
SIZES = {"b": (12, 12, 768), "l": (24, 16, 1024), "xl": (36, 20, 1280), "xxl": (48, 24, 1536), "3b": (24, 32, 3200)}


def size(name: str) -> dict[str, int]:
    """The published sizes, as entries of the section `model`."""
    return dict(zip(("num_layers", "num_heads", "width"), SIZES[name]))


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke", "l")
    config = base()
    config.data = {"name": "imagenet", "root": "data/imagenet", "flip": True}
    config.tokenizer = {"from_": "out/vq_imagenet256"}
    config.model = {**size("l" if arg == "l" else "b"), "dropout": 0.1, "dtype": "bfloat16"}
    config.method = {"name": "ar", "label_drop": 0.1}
    config.optim = {
        "learning_rate": 1e-4,
        "schedule": {"name": "constant"},
        "b1": 0.9,
        "b2": 0.95,
        "weight_decay": 0.05,
        "clip_norm": 1.0,
        "ema": (0.9999,),
    }
    config.train = {"num_steps": 300 * STEPS_PER_EPOCH, "batch_size": 256, "checkpoint_every": 5000}
    config.sample = {"guidance_scale": 2.0, "segments": 8}
    config.eval = {"every": 5000, "max_batches": 40, "ema": "0.9999"}
    if arg == "smoke":
        config.data = {"name": "glyphs"}
        config.model.update({"num_layers": 2, "width": 32, "num_heads": 2, "dtype": "float32"})
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
