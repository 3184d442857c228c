"""scikit-learn's digits as a TFDS builder, with a stratified split."""

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

VERSION = "1.0.0"
TEST_SIZE = 360
_DESCRIPTION = "1,797 scans of handwritten digits, 8 x 8 grey values; shuffled and split by class."


def split_indices(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Indices of the splits, each in random order, with the classes in equal shares.

    The scans come sorted by writer, so the tail alone would be a test set of other writers.
    """
    shuffled = np.random.RandomState(0).permutation(len(labels))  # the one generator whose stream numpy has frozen
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    in_test = np.zeros(len(labels), bool)
    in_test[by_class[np.linspace(0, len(labels), TEST_SIZE, endpoint=False).astype(int)]] = True
    return {"train": shuffled[~in_test[shuffled]], "test": shuffled[in_test[shuffled]]}


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes array_record files; needs no tensorflow."""

    VERSION = tfds.core.Version(VERSION)
    code_path = (
        None  # looking for a checksum file beside the code needs importlib_resources, which TFDS does not require
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(names=[str(d) for d in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)
        parts = split_indices(digits.target)
        return {
            split: self._generate_examples(images[part], digits.target[part]) for split, part in sorted(parts.items())
        }

    def _generate_examples(self, images, labels):
        for index, (image, label) in enumerate(zip(images, labels)):
            # An ndarray would be encoded by tensorflow; a picture is not.
            yield index, {"image": Image.fromarray(image), "label": int(label)}
