"""Which parents a configuration names; copying them is tested with whole runs in runs_test."""

import pytest

from jaxar import parents


@pytest.mark.parametrize("holder", ["teacher", "child"])
def test_a_teachers_tokenizer_is_inherited_even_after_the_teacher_is_gone(tmp_path, holder):
    teacher, child = tmp_path / "teacher", tmp_path / "child"
    config = {"teacher": {"from_": str(teacher)}}
    assert set(parents.sections(config, child)) == {"teacher"}
    (tmp_path / holder / "parents" / "tokenizer").mkdir(parents=True)
    named = parents.sections(config, child)
    assert named["tokenizer"].from_ == named["teacher"].from_ == str(teacher)
    own = parents.sections({**config, "tokenizer": {"from_": "mine"}}, child)
    assert own["tokenizer"].from_ == "mine"
