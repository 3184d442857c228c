"""HMAR-d16 on ImageNet 256x256, VAR's ten scales of 680 tokens; its next-scale network has 310M parameters.

    python -m jaxar.train --config=configs/hmar_imagenet256.py --workdir=out/hmar_imagenet256 \\
        --config.data.root=IMAGENET

The arguments d20, d24 and d30 make the other published sizes. The next-scale network of depth d has the size of VAR's;
the eight layers and the head of the masked prediction come on top. Needs a tokenizer in out/multiscale_vq_imagenet256.
Cost: 200 epochs of next-scale prediction and 100 of masked prediction, 500 thousand steps of 768 images. Samples use
the published guidance 1.7 in VAR's spelling, which is guidance_scale=2.7 here, top-k 1000, top-p 0.99 and four mask
passes. Official weights become a workdir for jaxar.evaluate (not tried: nothing can be downloaded here) by

    python -m jaxar.convert --arch=hmar_d16 --weights=NSP.pth --refiner=MP.pth --tokenizer=VAE.pth --workdir=DIR
"""

from common import base, check_argument
from ml_collections import ConfigDict

STEPS_PER_EPOCH = 1_281_167 // 768
NEXT_SCALE, REFINE = 200 * STEPS_PER_EPOCH, 100 * STEPS_PER_EPOCH  # steps of the two stages
DEPTHS = ("d20", "d24", "d30")


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke", *DEPTHS)
    depth = int(arg[1:]) if arg in DEPTHS else 16
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
        "gate_init": 1e-3,
        "drop_path": 0.1 * depth / 24,
        "dtype": "bfloat16",
    }
    config.method = {"name": "hmar", "label_drop": 0.1, "refiner_layers": 8, "refine_start": NEXT_SCALE}
    rate = 8e-5 if depth >= 24 else 1e-4  # per 256 images
    # Each network anneals by the end of its own stage.
    config.optim = {
        "learning_rate": 3 * rate,
        "schedule": {
            "name": "infinite",
            "warmup_steps": 4 * STEPS_PER_EPOCH,
            "warmup_init": 0.005,
            "anneal_start": NEXT_SCALE // 2,
            "anneal_steps": NEXT_SCALE // 2,
            "end": 0.1,
        },
        "b1": 0.9,
        "b2": 0.95,
        "weight_decay": 0.05,
        "clip_norm": 2.0,
        "players": {"refiner": {"schedule": {"anneal_start": NEXT_SCALE + REFINE // 2, "anneal_steps": REFINE // 2}}},
    }
    config.train = {"num_steps": NEXT_SCALE + REFINE, "batch_size": 768, "checkpoint_every": 5000}
    config.sample = {
        "guidance_scale": 2.7,
        "top_k": 1000,
        "top_p": 0.99,
        "mask_schedule": ((1,), (1, 3), (1, 1, 2, 5)),
    }
    config.eval = {"every": 5000, "max_batches": 40}
    if arg == "smoke":
        config.data = {"name": "glyphs"}
        config.model.update({"num_layers": 2, "width": 32, "num_heads": 2, "dtype": "float32"})
        config.method.update({"refiner_layers": 1, "refine_start": 1})
        config.sample.mask_schedule = ((1,), (1, 3))
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
