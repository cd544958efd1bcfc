"""The `vnet` command, and what every command's --help says."""

import argparse
import re
import runpy
import subprocess
import sys

import pytest

from src import __version__, commands
from src.commands import COMMANDS, command_parser, vnet_parser
from src.utils.command_line import RESEARCH_ONLY
from tests.helpers import ROOT

SCRIPTS = {
    **{name: f"{name}.py" for name in COMMANDS if name != "check"},
    **{"prepare": "prepare_data.py", "split": "create_csv.py", "release": "tools/release.py"},
    "cross_validate": "tools/cross_validate.py",
}
TOOLS = ("create_phantom", "import_monai", "augment_gallery", "training_time")


def run_vnet(monkeypatch, capsys, *arguments):
    """Exit code, standard output and error of `vnet ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["vnet", *arguments])
    try:
        commands.main()
        code = 0
    except SystemExit as ended:
        code = ended.code
    return code, *capsys.readouterr()


def test_help_lists_every_command_with_a_line(monkeypatch, capsys):
    code, out, _ = run_vnet(monkeypatch, capsys, "--help")
    assert code == 0
    for name, summary in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(summary)}$", out, re.MULTILINE)
    assert out.rstrip().endswith(RESEARCH_ONLY)


def test_version(monkeypatch, capsys):
    assert run_vnet(monkeypatch, capsys, "--version") == (0, f"vnet_mindspore {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "did you mean 'train'?"),
        (["create_csv"], "no such command"),
        ([], "the following arguments are required: COMMAND"),
        (["train", "--set", "widht=8"], "did you mean 'width'?"),
        (["train", "--val_split", "val.csv"], "unrecognized arguments: --val_split val.csv"),
        (["eval"], "--ckpt_path"),
    ],
)
def test_wrong_words_exit_with_2(monkeypatch, capsys, arguments, words):
    code, out, err = run_vnet(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "") and words in err.splitlines()[-1]
    assert "COMMAND, arguments" not in err


def test_a_command_does_what_its_script_does(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run_vnet(monkeypatch, capsys, "split", "--out_path", "a", "--random", "1")[0] == 0
    monkeypatch.setattr(sys, "argv", ["create_csv.py", "--out_path", "b", "--random", "1"])
    runpy.run_path(str(ROOT / "create_csv.py"), run_name="__main__")
    for name in ("train.csv", "val.csv"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_usage_names_the_command(monkeypatch, capsys, command):
    code, out, _ = run_vnet(monkeypatch, capsys, command, "--help")
    assert code == 0 and out.startswith(f"usage: vnet {command} ")
    assert out.rstrip().endswith(RESEARCH_ONLY)


@pytest.mark.parametrize("script", [*SCRIPTS.values(), *(f"tools/{tool}.py" for tool in TOOLS)])
def test_usage_names_the_script(monkeypatch, capsys, script):
    monkeypatch.setattr(sys, "argv", [str(ROOT / script), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    out = capsys.readouterr().out
    assert ended.value.code == 0 and out.startswith(f"usage: {script.rpartition('/')[2]} ")
    assert out.rstrip().endswith(RESEARCH_ONLY)


@pytest.fixture(params=[*COMMANDS, "vnet", *TOOLS])
def parser(request, monkeypatch):
    """The parser of a command or of a tool."""
    if request.param in COMMANDS:
        return command_parser(request.param, "program")
    if request.param == "vnet":
        return vnet_parser()
    built = []
    monkeypatch.setattr(
        argparse.ArgumentParser, "parse_args", lambda parser: sys.exit(built.append(parser))
    )
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / f"tools/{request.param}.py"), run_name="__main__")
    return built[0]


def test_every_argument_has_a_line_of_help(parser):
    arguments = [a for a in parser._actions if a.help != argparse.SUPPRESS]
    assert len(arguments) > 1
    for argument in arguments:
        assert argument.help, f"{argument.option_strings or argument.dest} has no help"
        parser._get_formatter()._expand_help(argument)  # a bare % would fail here


def test_no_argument_can_be_abbreviated(parser):
    """The launchers make the paths after whole names absolute, for ranks that work elsewhere."""
    assert not parser.allow_abbrev


def test_help_does_not_import_mindspore():
    code = """
import sys
from src.commands import COMMANDS, command_parser, vnet_parser
vnet_parser().format_help()
for command in COMMANDS:
    command_parser(command, command).format_help()
print("mindspore" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


def test_the_package_runs_as_a_module(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "vnet_mindspore", "split", "--out_path", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "val.csv").is_file()
