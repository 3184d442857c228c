"""The evaluation around the Inception network, with a network of a few random features in its place."""

import pathlib

import jax
import numpy as np
import pytest

from jaxar import partition
from jaxar.config import ConfigError
from jaxar.interop import inception_weights
from jaxar.metrics import fid, frechet, inception
from jaxar.metrics.inception_score import inception_score, splits_of_size, update

WIDTHS = inception.Features(4, 3, 5)


@pytest.fixture
def net(monkeypatch):
    """Features that a batch's images alone determine: a fixed random projection of their pixels."""
    projections = [np.random.default_rng(i).normal(size=(12, width)) / 128 for i, width in enumerate(WIDTHS)]

    def extract(net, images):
        pixels = images.reshape(len(images), -1).astype(np.float64) - 128
        return inception.Features(*((pixels @ p).astype(np.float32) for p in projections))

    monkeypatch.setattr(inception, "extract", extract)
    for module in (inception, fid):
        monkeypatch.setattr(module, "POOL_DIM", WIDTHS.pool)
        monkeypatch.setattr(module, "SPATIAL_DIM", WIDTHS.spatial)
    return inception.Extractor(None, None, batch_size=7, sha256="weights")


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 2, 2, 3)).astype(np.uint8)


@pytest.fixture
def reference(tmp_path, net):
    """Writes a file of arrays and reads it as a reference."""

    def read(wanted="gfid", **arrays):
        np.savez(tmp_path / "reference.npz", **arrays)
        return fid.read(tmp_path / "reference.npz", net, wanted)

    return read


def gaussians(images, net):
    measured = fid.measure([images], net, neighbours=False)
    return frechet.compute(measured.pool), frechet.compute(measured.spatial)


def test_an_evaluation_is_that_of_all_images_at_once(net, reference):
    real, images = pictures(40), pictures(30, seed=1)
    against = reference(arr_0=real)
    result = fid.evaluate([images[:1], images[1:12], images[12:]], against, net, seed=5)
    whole = inception.extract(net, images)
    pool, spatial = gaussians(real, net)
    expected = {
        "fid": frechet.distance(frechet.fit(whole.pool), pool),
        "sfid": frechet.distance(frechet.fit(whole.spatial), spatial),
        "inception_score": inception_score(whole.logits, splits_of_size(30)).mean(),
    }
    assert {name: result["metrics"][name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert 0 < result["metrics"]["precision"] < 1 and 0 < result["metrics"]["recall"] < 1
    assert fid.evaluate([real], against, net, seed=0)["metrics"]["fid"] < 1e-6


def test_the_record_says_what_a_number_holds_for(net, reference):
    record = fid.evaluate([pictures(30)], reference(arr_0=pictures(40)), net, seed=5)["protocol"]
    assert (record["name"], record["n"], record["seed"]) == ("gfid", 30, 5)
    assert (record["reference"], record["reference_n"], record["neighbours_n"]) == ("reference.npz", 40, 40)
    assert record["features_sha256"] == "weights" and len(record["reference_sha256"]) == 64
    assert record["resize"] == inception.RESIZE and record["dtype"]["statistics"] == "float64"


@pytest.mark.parametrize("keys", [("mu", "sigma"), ("ref_mu", "ref_sigma"), ("mean", "cov")])
def test_statistics_in_every_spelling(net, reference, keys):
    pool, _ = gaussians(pictures(40), net)
    against = reference(**dict(zip(keys, pool)))
    np.testing.assert_array_equal(against.pool.covariance, pool.covariance)
    assert against.spatial is None and against.num_images is None
    assert set(fid.evaluate([pictures(30)], against, net, 0)["metrics"]) == {"fid", "inception_score"}


def test_statistics_count_more_than_the_images_beside_them(net, reference):
    pool, spatial = gaussians(pictures(40), net)
    keys = {"mu": pool.mean, "sigma": pool.covariance, "mu_s": spatial.mean, "sigma_s": spatial.covariance}
    against = reference(arr_0=pictures(9, seed=3), **keys)
    np.testing.assert_array_equal(against.pool.mean, pool.mean)
    np.testing.assert_array_equal(against.spatial.mean, spatial.mean)
    assert against.neighbours.shape == (9, WIDTHS.pool)


def test_what_is_written_is_read(net, tmp_path):
    images, path = pictures(40), tmp_path / "made.npz"
    fid.write(path, fid.measure([images], net, neighbours=False), images[:8], "gfid", net)
    against = fid.read(path, net, "gfid")
    np.testing.assert_array_equal(against.pool.covariance, gaussians(images, net)[0].covariance)
    assert against.num_images == 40 and len(against.neighbours) == 8
    with pytest.raises(ConfigError, match="made.npz has kind='gfid'; needed is 'rfid' .*another number"):
        fid.read(path, net, "rfid")


def test_reconstructions_are_compared_with_validation_images(net, reference):
    against = reference("rfid", arr_0=pictures(40), kind="rfid")
    result = fid.evaluate([pictures(30)], against, net, seed=None)
    assert set(result["metrics"]) == {"rfid", "rsfid", "inception_score"}
    assert result["protocol"]["name"] == "rfid"


WRONG = {
    "the other kind": (dict(kind="rfid"), "has kind='rfid'; needed is 'gfid'"),
    "other weights": (dict(inception_sha256="others"), "has inception_sha256='others', the samples get 'weights'"),
    "another resizing": (dict(resize="bicubic"), "has resize='bicubic', the samples get 'bilinear"),
    "another network": (dict(mu=np.zeros(6), sigma=np.eye(6)), r"mu/sigma of shapes \(6,\) and \(6, 6\)"),
    "another spatial network": (
        dict(mu=np.zeros(4), sigma=np.eye(4), mu_s=np.zeros(6), sigma_s=np.eye(6)),
        r"mu_s/sigma_s of shapes \(6,\)",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_reference_of(what, reference):
    arrays, message = WRONG[what]
    with pytest.raises(ConfigError, match=message):
        reference(arr_0=pictures(8), **arrays)


def test_a_file_without_kind_is_no_reference_for_reconstructions(reference):
    with pytest.raises(ConfigError, match="has no kind, which means 'gfid'; needed is 'rfid'"):
        reference("rfid", arr_0=pictures(8))
    with pytest.raises(ConfigError, match="has keys samples; it needs arr_0"):
        reference(samples=pictures(8))


def test_too_few_images(net, reference):
    with pytest.raises(ConfigError, match="the sample has 3 images; the metrics need at least 4"):
        fid.evaluate([pictures(3)], reference(arr_0=pictures(8)), net, 0)


def test_splits_do_not_depend_on_batches():
    logits = np.random.default_rng(0).normal(0, 3, (23, 5)).astype(np.float32)
    for cuts in ([], [1, 2, 9], [10], [20, 22]):
        splits = ()
        for batch in np.split(logits, cuts):
            splits = update(splits, batch, size=10)
        assert [split.count for split in splits] == [10, 10, 3]
        expected = inception_score(logits, splits_of_size(23, 10))
        np.testing.assert_allclose([split.score for split in splits], expected, rtol=1e-12)


def test_images_are_sharded_over_devices(monkeypatch):
    seen = []

    def network(params, images):
        seen.append((images.shape, len(images.sharding.device_set)))
        flat = images.mean((1, 2, 3))[:, None]
        return inception.Features(flat, flat, flat)

    monkeypatch.setattr(inception, "_network", network)
    mesh = partition.make_mesh()
    net = inception.extractor({}, mesh, batch_size=9, sha256="")
    images = np.arange(18, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    features = inception.extract(net, images)
    assert seen == [((16, 299, 299, 3), jax.device_count())] * 2
    np.testing.assert_allclose(features.pool[:, 0], (np.arange(18) - 128) / 128, rtol=1e-6)


@pytest.mark.parametrize("images", [np.zeros((4, 8, 8, 1), np.uint8), np.zeros((4, 8, 8, 3), np.float32)])
def test_images_of_another_kind(images):
    net = inception.extractor({}, partition.make_mesh(), 8, "")
    with pytest.raises(ConfigError, match="it takes uint8 RGB images"):
        inception.extract(net, images)


def test_missing_and_wrong_weights(tmp_path):
    mesh = partition.single_device_mesh()
    with pytest.raises(
        ConfigError, match=r"weights.pth' is no file; give pt_inception-2015-12-05-6726825d.pth \(https"
    ):
        inception_weights.load(tmp_path / "weights.pth", mesh)
    other = pathlib.Path(__file__).parent.parent / "golden" / "torch_checkpoint.pth"
    with pytest.raises(ConfigError, match=r"missing: .*unknown: .*give pt_inception"):
        inception_weights.load(other, mesh)
