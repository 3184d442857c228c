"""Opened runs and files of samples, scored: what `jaxar.evaluate`, `jaxar.sweep` and `jaxar.leaderboard` share."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from jaxar import partition, run, sampling, settings
from jaxar.config import ConfigError, parse
from jaxar.data import datasets, loader
from jaxar.data.base import DataConfig
from jaxar.evaluation import Validation
from jaxar.metrics import classifier, fid, protocol
from jaxar.metrics import reference as references
from jaxar.metrics.inception import Extractor
from jaxar.tokenizers.base import Encoder


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """What samples are compared with.

    Attributes:
      name: the dataset or the file.
      sha256: of reference and feature network together.
      num_images: how many samples are drawn unless a number is asked for; None where nothing says so.
      train: the dataset whose training labels the samples get; None for a file.
      score: (batches of uint8 images, labels or None, seed) -> "metrics", "floor", "protocol".
    """

    name: str
    sha256: str
    num_images: int | None
    train: DataConfig | None
    score: Callable[[Iterable[np.ndarray], np.ndarray | None, int], dict[str, Any]]


def by_classifier(reference: references.Reference) -> Judge:
    """Compares features of a committed classifier."""

    def score(batches: Iterable[np.ndarray], labels: np.ndarray | None, seed: int) -> dict[str, Any]:
        return protocol.evaluate_samples(np.concatenate(list(batches)), labels, reference, seed)

    name = f"{reference.sha256}{reference.net.sha256}"
    return Judge(reference.name, name, reference.num_images, reference.train, score)


def by_inception(reference: fid.Reference, net: Extractor) -> Judge:
    """FID and what belongs to it, of images in batches of any size; labels do not matter."""

    def score(batches: Iterable[np.ndarray], labels: np.ndarray | None, seed: int) -> dict[str, Any]:
        return fid.evaluate(batches, reference, net, seed)

    return Judge(reference.name, f"{reference.sha256}{net.sha256}", fid.NUM_SAMPLES, None, score)


def evaluate_generator(
    opened: run.Run,
    judge: Judge,
    *,
    num: int | None,
    seeds: tuple[int, ...],
    batch_size: int,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Samples a method and scores the images.

    Args:
      num: images per seed; default: as many as the reference's training images, with their labels, or 50,000 for FID.
      seeds: one set of samples each.
      options: changes to the sampling options.
    Returns:
      The summary of `protocol.summarize`, with "sampling", "network_calls" and timings.
    """
    labels = sample_labels(opened, judge, num)
    sampler = opened.sampler(batch_size, **options)
    cond = sampling.conditions(opened.task, labels, opened.captions)
    results = []
    for seed in seeds:
        batches = sampler.batches(opened.variables, cond, np.arange(len(labels)), seed)
        results.append(judge.score((images for _, images in batches), labels, seed))
    chosen = settings.build_sampling(opened.config, options)
    return {
        **protocol.summarize(results),
        "sampling": dataclasses.asdict(chosen),
        "network_calls": opened.method.network_calls(chosen),
        "ms_per_image": 1000 * sampler.run_seconds / (len(labels) * len(seeds)),
        "batch_size": batch_size,
    }


def evaluate_tokenizer(opened: run.Run, net: classifier.FeatureNet | None, batch_size: int) -> dict[str, Any]:
    """Scores the reconstructions of the test split: psnr, ssim, rfd if there is a network, and validation figures."""
    images, again = (np.concatenate(part) for part in zip(*_reconstructions(opened, batch_size)))
    return {**protocol.evaluate_reconstruction(images, again, net), "validation": validate(opened)}


def evaluate_tokenizer_fid(
    opened: run.Run, reference: fid.Reference, net: Extractor, batch_size: int
) -> dict[str, Any]:
    """Scores the reconstructions of the test split, which may be larger than memory: psnr, ssim, rfid, rsfid."""
    fidelities = []

    def reconstructed() -> Iterator[np.ndarray]:
        for images, again in _reconstructions(opened, batch_size):
            fidelities.append(protocol.fidelity(images, again))
            yield again

    result = fid.evaluate(reconstructed(), reference, net, seed=None)
    means = {name: float(np.concatenate([f[name] for f in fidelities]).mean()) for name in fidelities[0]}
    return {**result, "metrics": means | result["metrics"], "validation": validate(opened)}


def _reconstructions(opened: run.Run, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of test images and of what the tokenizer makes of them."""
    config = dataclasses.replace(datasets.configure(opened.config["data"]), cache=None)  # a cache holds tokens
    count = len(datasets.open_split(config, "test"))
    for start in range(0, count, batch_size):
        images = references.read_split(config, "test", range(start, min(start + batch_size, count))).images
        yield images, opened.reconstruct(loader.to_float(images))


def validate(opened: run.Run) -> dict[str, float]:
    """The method's validation figures on the test split of its data."""
    config = datasets.configure(opened.config["data"])
    frozen = "tokenizer" in opened.variables and "tokenizer" not in opened.method.players()
    prepare = Encoder(opened.task.tokenizer) if frozen and config.cache is None else None
    size = parse(settings.EvalConfig, opened.config.get("eval") or {}, "eval").batch_size
    ways = partition.batch_ways(opened.mesh)
    size = -(-size // ways) * ways  # the mesh of the training may have been another
    batches = loader.eval_batches(config, "test", batch_size=size, mesh=opened.mesh)
    return Validation(opened.method, prepare)(opened.variables, batches)


def sample_labels(opened: run.Run, judge: Judge, num: int | None) -> np.ndarray:
    """The training labels, repeated or cut to `num`; balanced ones where the reference has no training images.

    Raises:
      ConfigError: neither `num` nor the reference says how many.
    """
    if judge.train is None:
        count = num or judge.num_images
        if count is None:
            raise ConfigError(f"--num is missing: {judge.name} does not say how many images it was made from")
        return sampling.balanced_labels(count, opened.task.num_classes)
    labels = references.read_split(judge.train, "train").labels.astype(np.int32)
    return labels if num is None else np.resize(labels, num)


def evaluate_file(path: pathlib.Path, judge: Judge, seed: int) -> dict[str, Any]:
    """Scores the samples in an .npz file (arr_0: uint8 images, arr_1: labels, optional).

    Raises:
      ConfigError: unreadable, or without arr_0.
    """
    arrays = references.read_npz(path, "--samples")
    if "arr_0" not in arrays:
        raise ConfigError(
            f"--samples={str(path)!r} has keys {', '.join(arrays) or 'none'}; it needs arr_0 (uint8 images)"
        )
    return judge.score([arrays["arr_0"]], arrays.get("arr_1"), seed)
