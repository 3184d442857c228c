"""docs/methods.md says what the code says, and everything that it names exists."""

import json
import pathlib
import re
import shutil

import pytest

from jaxar import list as listing
from jaxar import lookup
from jaxar.config import ConfigError
from tests.conformance import cases

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "methods.md"
OTHERS = (
    "fid_math",
    "inception_fid",
    "torch_checkpoint",
    "torch_legacy",
)  # fixtures that belong to no method or tokenizer


@pytest.fixture(scope="module")
def found():
    return listing.catalogue(ROOT)


def test_the_page_is_up_to_date(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    listing.command(["--markdown"])
    printed = capsys.readouterr().out
    assert PAGE.read_text() == printed, "run: python -m jaxar.list --markdown > docs/methods.md"


def test_every_method_and_tokenizer_has_a_row_with_source_configuration_and_tests(found):
    for kind, package in (("methods", "jaxar.methods"), ("tokenizers", "jaxar.tokenizers")):
        assert [entry.name for entry in found[kind]] == list(lookup.names(package))
        for entry in found[kind]:
            assert entry.summary and re.search(r"\b(19|20)\d\d\b", entry.reference), entry.name
            assert entry.configs or entry.name in cases.CLOSED_FORM, entry.name
            assert f"tests/{kind}/{entry.name}_test.py" in entry.tests


def test_every_file_that_a_row_names_exists(found):
    for entry in [*found["methods"], *found["tokenizers"]]:
        for file in (entry.file, *entry.configs, *entry.tests, *entry.golden):
            assert (ROOT / file).is_file(), (entry.name, file)
    linked = re.findall(r"\]\(\.\./([^)]*)\)", PAGE.read_text())
    assert linked and all((ROOT / file).is_file() for file in linked)


def test_every_golden_fixture_is_claimed_once_and_read_by_a_test(found):
    claimed = [pathlib.Path(g).stem for entries in found.values() for entry in entries for g in entry.golden]
    fixtures = {file.stem for file in (ROOT / "tests" / "golden").glob("*.json")}
    assert sorted(claimed) == sorted(fixtures - set(OTHERS))
    described = [json.loads((ROOT / f"tests/golden/{name}.json").read_text()) for name in claimed]
    assert all("commit" in meta["source"] for meta in described)
    # tests/interop/check_test.py recomputes every fixture of a known family.
    assert {meta["family"] for meta in described} <= set(lookup.names("jaxar.interop.families"))


def test_a_method_that_is_added_changes_the_page(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copytree(ROOT / "jaxar" / "methods", tmp_path / "jaxar" / "methods")
    shutil.copytree(ROOT / "jaxar" / "tokenizers", tmp_path / "jaxar" / "tokenizers")
    (tmp_path / "tests").mkdir()
    text = '"""A method of its own.\n\nReference: Nobody, Nothing, 2024, Eq. 1.\n"""\n'
    (tmp_path / "jaxar" / "methods" / "added.py").write_text(text)
    known = lookup.names
    monkeypatch.setattr(lookup, "names", lambda p: (*known(p), "added") if p == "jaxar.methods" else known(p))
    page = listing.markdown(listing.catalogue(tmp_path))
    assert "[added](../jaxar/methods/added.py)<br>A method of its own. | own tests |" in page
    assert "| Nobody, Nothing, 2024, Eq. 1. |" in page and "A method of its own" not in PAGE.read_text()


def test_the_page_tells_what_the_leaderboard_measured(tmp_path):
    spread = {"fd_digits": {"mean": 3.456}}
    rows = [
        {"method": "mar", "metrics": spread, "network_calls": 16},
        {"method": "mar_flow", "metrics": spread, "network_calls": 1},
        {"method": "maskgit", "error": "no"},
    ]
    for folder in ("jaxar", "configs", "tests"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "docs").mkdir()
    (tmp_path / listing.LEADERBOARD).write_text(json.dumps({"suite": "digits", "rows": rows}))
    page = listing.markdown(listing.catalogue(tmp_path))
    measured = {line.split("<br>")[0]: line.split(" | ")[3] for line in page.splitlines() if line.startswith("| [ma")}
    assert measured["| [mar](../jaxar/methods/mar.py)"] == "mar: 3.46, 16 calls<br>mar_flow: 3.46, 1 call"
    assert measured["| [maskgit](../jaxar/methods/maskgit.py)"] == ""
    assert page.count("On digits") == 2  # the head of the page, and of the methods' table
    (tmp_path / listing.LEADERBOARD).unlink()
    assert listing.markdown(listing.catalogue(tmp_path)).count("On digits") == 1


def test_elsewhere_the_page_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="run it in a checkout"):
        listing.command(["--markdown"])
