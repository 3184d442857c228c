"""MaskGIT over the tokens of 32x32 glyphs, conditional on captions, with Meissonic's network: 15.5M parameters.

    python -m jaxar.train --config=configs/maskgit_text_glyphs.py --workdir=out/maskgit_text_glyphs

Needs the tokenizer of configs/vq_glyphs.py in out/vq_glyphs. Three multi-modal blocks over caption and image are
followed by six over the image alone; all of them see the 8x8 map as 4x4 rows. Glyphs are all of one size and never cut,
so there are no micro-conditions; batches that have an entry "micro" are described by `model.multimodal.micro`.
"""

from common import base, check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = base()
    config.data = {"name": "glyphs", "text": {"length": 16, "width": 128}}
    config.tokenizer = {"from_": "out/vq_glyphs"}
    config.model = {
        "num_layers": 9,
        "width": 256,
        "num_heads": 4,
        "multimodal": {"joint_layers": 3, "compress": True},
        "dtype": "bfloat16",
    }
    config.method = {"name": "maskgit", "smoothing": 0.0}
    config.optim = {
        "learning_rate": 5e-4,
        "schedule": {"name": "cosine", "warmup_steps": 500},
        "ema": (0.999,),
    }
    config.train = {"num_steps": 30_000, "batch_size": 256}
    config.sample = {"guidance_scale": 2.0, "num_steps": 12, "choice_temperature": 2.0}
    config.eval = {"every": 2000, "sample_every": 10_000, "ema": "0.999"}
    if arg == "smoke":
        config.model.update({"num_layers": 2, "width": 32, "num_heads": 2, "dtype": "float32"})
        config.model.multimodal.joint_layers = 1
        config.sample.num_steps = 4
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
