"""The command line of prepare_data.py."""

import subprocess
import sys
from pathlib import Path

import pytest
from promise12.volumes import make_pairs, make_volume, tree

import prepare_data
from src.cli import run


def test_command_line(tmp_path):
    source = make_pairs(tmp_path / "volumes", ["Case00"])
    script = Path(__file__).parents[1] / "prepare_data.py"
    done = subprocess.run(
        [sys.executable, script, "--source", source, "--out_path", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "TrainData/Case00" in done.stdout and "1 cases, all well" in done.stdout
    assert (tmp_path / "out/TrainData/img/Case00.raw").exists()


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        ("--source volumes", 2, "--out_path is needed"),
        ("--download", 2, "--out_path is needed"),
        ("--out_path new", 2, "--source --check --export_nnunet is required"),
        ("--download --source volumes --out_path new", 2, "not allowed with"),
        ("--check none", 1, "none: no volumes in img/"),
        ("--check bad", 1, "error: 1 of 1 cases have problems; the table tells what to do"),
        ("--source none --out_path new", 1, "none: no such file or folder"),
        ("--source volumes --out_path volumes/Case00.raw", 1, "exists"),
    ],
)
def test_command_line_errors(tmp_path, monkeypatch, capsys, arguments, code, message):
    make_pairs(tmp_path / "volumes", ["Case00"])
    make_volume(tmp_path / "bad/img/Case00.mhd")
    before = tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", *arguments.split()])
    with pytest.raises(SystemExit) as stopped:
        run(prepare_data.main)
    assert stopped.value.code == code
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert tree(tmp_path) == before
