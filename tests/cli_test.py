"""Arguments, overrides and one-line errors; the commands' own behaviour is tested beside them."""

import json

import pytest

from jaxar import cli
from jaxar.config import ConfigError


@pytest.fixture
def config_file(tmp_path):
    file = tmp_path / "example.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(arg='full'):\n"
        "    return ConfigDict({'model': {'width': 8, 'names': (1, 2)}, 'train': {}, 'arg': arg})\n"
    )
    return file


def test_overrides_are_literals_and_reach_nested_sections(config_file):
    overrides = ["--config.model.width=16", "--config.model.names=(3,)", "--config.train.keep.best", "2"]
    values = cli.load_config(f"{config_file}:small", [*overrides, "--config.model.dtype=bfloat16"])
    assert values["model"] == {"width": 16, "names": (3,), "dtype": "bfloat16"}
    assert values["train"] == {"keep": {"best": 2}} and values["arg"] == "small"


@pytest.mark.parametrize(
    "text, value",
    [
        ("3", 3),
        ("1e-4", 1e-4),
        ("true", True),
        ("None", None),
        ("(1, 2)", (1, 2)),
        ("cosine", "cosine"),
        ("a b", "a b"),
    ],
)
def test_literals(text, value):
    assert cli.literal(text) == value and type(cli.literal(text)) is type(value)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["--config.modle.width=3"], "unknown section '--config.modle'.*did you mean '--config.model'"),
        (["--config.model=3"], "model is a section; set one of names, width"),
        (["--config.model.width.deep=3"], "model.width is a value, not a section"),
        (["--config.model.width"], "write --config.model.width=VALUE"),
    ],
)
def test_wrong_overrides_say_what_is_there(config_file, overrides, message):
    with pytest.raises(ConfigError, match=message):
        cli.load_config(str(config_file), overrides)


def test_a_missing_configuration_file_lists_its_neighbours(config_file):
    with pytest.raises(
        ConfigError, match=r"unknown configuration file .*exmple.py'; known: .*example.py; did you mean"
    ):
        cli.load_config(str(config_file.with_name("exmple.py")))
    config_file.write_text("x = 1\n")
    with pytest.raises(ConfigError, match="has no function get_config"):
        cli.load_config(str(config_file))


def parser():
    result = cli.Parser("An example.")
    result.add_argument("--workdir", required=True)
    result.add_json()
    return result


def run(command, argv, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(command, argv)
    out, err = capsys.readouterr()
    return stop.value.code, out, err


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "the following arguments are required: --workdir"),
        (["--workdir=x", "--jsn"], "option --jsn is unknown or lacks its value"),
        (["--workdir=x", "--workdr=y"], "did you mean '--workdir'"),
        (["--workdir=x", "--work=y"], "unknown option '--work'"),
        (["--workdir=x", "y"], "unexpected argument 'y'"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(argv, message, capsys):
    code, out, err = run(lambda a: parser().parse_args(a) and None, argv, capsys)
    assert code == 2 and out == "" and err.count("\n") == 1 and err.startswith("error: ") and message in err


def test_help_exits_0_and_exit_codes_pass_through(capsys):
    code, out, _ = run(lambda a: parser().parse_args(a) and None, ["--help"], capsys)
    assert code == 0 and "An example." in out
    assert run(lambda a: 75, [], capsys)[0] == 75
    assert run(lambda a: None, [], capsys)[0] == 0


def test_json_is_one_object_on_stdout(capsys):
    def command(argv):
        cli.emit({"step": 3, "path": parser}, "three", as_json="--json" in argv)

    assert run(command, [], capsys)[1] == "three\n"
    assert json.loads(run(command, ["--json"], capsys)[1])["step"] == 3


def test_errors_of_the_program_itself_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.main(lambda argv: 1 // 0, [])
