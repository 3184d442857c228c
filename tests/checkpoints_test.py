"""What is saved comes back bit for bit, and damage is named, never loaded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar import checkpoints, partition, state
from jaxar.checkpoints import Checkpoints, DamagedCheckpointError, Retention, fingerprints
from jaxar.config import ConfigError
from jaxar.partition import MeshConfig
from tests.toys import SGD, Toy, make

METHOD = Toy()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


def at_step(step):
    """A state that tells its step by its weights."""
    _, fresh = make(METHOD, {**SGD, "name": "adamw", "ema": (0.9,)})
    filled = jax.tree.map(lambda x: (x + step).astype(x.dtype), fresh)
    return filled.replace(step=jnp.asarray(step, jnp.int32))


def abstract(mesh=None):
    plan, _ = make(METHOD, {**SGD, "name": "adamw", "ema": (0.9,)})
    return state.abstract(METHOD, plan.optimizers, mesh or partition.single_device_mesh())


def save(folder, steps, retention=None, metrics=lambda s: {}):
    keeper = Checkpoints(folder, retention or Retention(10))
    for step in steps:
        keeper.save(at_step(step), metrics(step))
    keeper.close()


def restore(folder, mesh=None):
    keeper = Checkpoints(folder)
    try:
        return keeper.restore(abstract(mesh))
    finally:
        keeper.close()


def damage(folder, step, how):
    """Damages the largest array file of a checkpoint (Orbax reads those in `d`, not the ones per process)."""
    files = [p for p in (folder / str(step)).glob("*/d/*") if p.is_file()]
    file = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    how(file, content)


def truncate(file, content):
    file.write_bytes(content[: len(content) // 2])


def remove(file, content):
    file.unlink()


def same(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in leaves)


def test_a_state_comes_back_bit_for_bit_in_another_layout(folder):
    save(folder, [3])
    assert same(restore(folder), at_step(3))
    mesh = partition.make_mesh(MeshConfig(data=4, fsdp=2))
    elsewhere = restore(folder, mesh)
    assert same(elsewhere, at_step(3))
    assert elsewhere.players["generator"].params["w"].sharding.spec == partition.resolve(("embed",))


def test_nothing_saved_is_none_and_saving_a_step_again_changes_nothing(folder):
    assert restore(folder) is None
    keeper = Checkpoints(folder)
    keeper.save(at_step(1), {})
    keeper.save(at_step(1), {})
    keeper.close()
    assert keeper.steps == (1,)


@pytest.mark.parametrize("how", [truncate, remove])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(folder, how, caplog):
    save(folder, [1, 2, 3])
    damage(folder, 3, how)
    keeper = Checkpoints(folder)
    assert same(keeper.restore(abstract()), at_step(2))
    assert f"{folder}/3 is damaged" in caplog.text
    assert [p.name for p in (folder.parent / "damaged").iterdir()] == ["3.0"]  # kept, out of the way
    keeper.save(at_step(3), {})  # and its step can be saved again
    keeper.close()
    assert same(restore(folder), at_step(3))


def test_flipped_bits_are_found_by_fingerprint(folder, caplog, monkeypatch):
    save(folder, [1, 2])
    real = checkpoints._load_verified.__globals__["fingerprints"]
    # Compressed files rarely survive a flipped bit, so the flip is put into what was read.
    calls = []

    def flipped(tree):
        marks = real(tree)
        if not calls:
            name = next(n for n in marks if n.endswith("generator/params/w"))
            marks[name] ^= 1
        calls.append(tree)
        return marks

    monkeypatch.setattr(checkpoints, "fingerprints", flipped)
    assert same(restore(folder), at_step(1))
    assert "player_generator/params/w changed on disk" in caplog.text


def test_when_every_checkpoint_is_damaged_training_stops(folder):
    save(folder, [1, 2])
    for step in (1, 2):
        damage(folder, step, truncate)
    with pytest.raises(DamagedCheckpointError, match=r"all checkpoints .* damaged \(steps \[2, 1\]\)"):
        restore(folder)


def test_an_unfinished_save_is_no_checkpoint(folder):
    save(folder, [1])
    (folder / "2.orbax-checkpoint-tmp").mkdir()
    assert same(restore(folder), at_step(1))


def test_another_model_is_refused_with_both_shapes(folder):
    save(folder, [1])
    target = abstract()
    player = target.players["critic"]
    wide = player.params["w"].update(shape=(5,))
    other = target.replace(players={**target.players, "critic": player.replace(params={"w": wide})})
    with pytest.raises(ConfigError, match=r"player_critic/params/w with shape \(2,\) float32, .* gives \(5,\) float32"):
        checkpoints.load_state(folder, 1, other)
    more = target.replace(players={**target.players, "judge": player})
    with pytest.raises(ConfigError, match="lacks player_judge/aux/stats/seen and 8 more"):
        checkpoints.load_state(folder, 1, more)


def test_single_parts_of_a_player_load(folder):
    save(folder, [4])
    wanted = {"emas": {"0.9": abstract().players["generator"].emas["0.9"]}}
    loaded = checkpoints.load_player(folder, 4, "generator", wanted)
    assert same(loaded, {"emas": {"0.9": at_step(4).players["generator"].emas["0.9"]}})


def test_the_best_checkpoints_stay_beside_the_newest(folder):
    scores = {1: 5.0, 2: 1.0, 3: float("nan"), 4: 3.0, 5: 4.0}
    save(folder, scores, Retention(latest=2, best=1, metric="fd"), lambda s: {"fd": scores[s]})
    assert [c.step for c in checkpoints.list_saved(folder)] == [2, 4, 5]


def test_listing_does_not_go_through_orbax_which_waits_for_other_processes(folder, monkeypatch):
    save(folder, [1, 2], metrics=lambda step: {"score": 2.0 * step})
    monkeypatch.setattr(checkpoints.ocp.training, "Checkpointer", None)
    assert checkpoints.list_saved(folder) == (
        checkpoints.Saved(1, {"score": 2.0}),
        checkpoints.Saved(2, {"score": 4.0}),
    )
    assert checkpoints.list_saved(folder / "missing") == ()


def test_a_tree_round_trips_and_its_damage_is_reported(folder):
    tree = {"params": {"w": jnp.arange(64.0)}}
    checkpoints.save_tree(folder, tree)
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
    assert same(checkpoints.load_tree(folder, target), tree)
    damage(folder, 0, truncate)
    with pytest.raises(DamagedCheckpointError):
        checkpoints.load_tree(folder, target)


def test_fingerprints_see_every_bit_position_and_order():
    base = np.arange(1000, dtype=np.float32)
    marks = set()
    for index in range(0, 1000, 37):
        for bit in range(32):
            changed = base.copy()
            changed.view(np.uint32)[index] ^= np.uint32(1 << bit)
            marks.add(fingerprints({"x": jnp.asarray(changed)})["x"])
    assert len(marks) == 28 * 32 and fingerprints({"x": jnp.asarray(base)})["x"] not in marks
    swapped = base.copy()
    swapped[[3, 900]] = swapped[[900, 3]]
    assert fingerprints({"x": jnp.asarray(swapped)})["x"] not in marks
    for dtype in (jnp.bfloat16, jnp.int8, jnp.bool_):
        assert fingerprints({"x": jnp.ones(5, dtype)}) != fingerprints({"x": jnp.zeros(5, dtype)})


def test_fingerprints_do_not_depend_on_the_layout():
    x = jnp.arange(64.0)
    spread = jax.device_put(x, partition.batch_sharding(partition.make_mesh()))
    assert fingerprints({"x": x}) == fingerprints({"x": spread})


def test_fingerprints_gather_no_sharded_array():
    mesh = partition.make_mesh(MeshConfig(fsdp=2, tensor=4))
    place = jax.NamedSharding(mesh, jax.P(None, "fsdp", "tensor"))
    x = jax.device_put(jnp.arange(256.0).reshape(4, 8, 8), place)
    assert "all-gather" not in checkpoints._fingerprint.lower({"x": x}).compile().as_text()
    assert fingerprints({"x": x}) == fingerprints({"x": x.reshape(-1)})  # positions count row by row


def test_retention_wants_a_metric_for_the_best():
    with pytest.raises(ConfigError, match="train.keep.best=1 and train.keep.metric=None go together"):
        Retention(best=1)
