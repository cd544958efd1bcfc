"""The command line of prepare_data.py."""

import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from src.commands import run_script
from tests.helpers import ROOT, tree
from tests.volumes import make_pairs, make_volume


def test_command_line(tmp_path):
    source = make_pairs(tmp_path / "volumes", ["Case00"])
    script = ROOT / "prepare_data.py"
    done = subprocess.run(
        [sys.executable, script, "--source", source, "--out_path", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "TrainData/Case00" in done.stdout and "1 cases, no problems" in done.stdout
    assert (tmp_path / "out/TrainData/img/Case00.raw").exists()


def test_a_peers_data_set_there_and_back(tmp_path, monkeypatch, capsys):
    """Zones of img/ and gt/ go to nnU-Net's layout and come back as 0 and 1."""
    zones = np.zeros((4, 5, 6), np.uint8)
    zones[1:3, 1:4, 2:4], zones[1] = 1, 2
    make_volume(tmp_path / "data/img/a.nrrd")
    make_volume(tmp_path / "data/gt/a_segmentation.nrrd", values=zones)
    monkeypatch.chdir(tmp_path)
    for arguments in (
        "--check data --labels 1,2",
        "--export_nnunet raw/Dataset001_P --data_path data --labels 1,2",
        "--source raw/Dataset001_P --out_path back",
    ):
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", *arguments.split()])
        run_script("prepare")
    printed = capsys.readouterr().out
    assert "raw/Dataset001_P: taken for nnU-Net: 1 image(s), 1 mask(s)" in printed
    assert printed.count("1 cases, no problems") == 2
    back = sitk.ReadImage("back/TrainData/gt/a_segmentation.nii.gz")
    assert np.array_equal(sitk.GetArrayFromImage(back), zones > 0)


@pytest.mark.parametrize(
    ("value", "folders"), [(255, ("img/", "gt/")), (2, ("img/", "gt/")), (255, ("", ""))]
)
def test_masks_of_another_value_are_merged_and_then_checked_as_such(
    tmp_path, monkeypatch, capsys, value, folders
):
    gland = np.zeros((4, 5, 6), np.uint8)
    gland[1:3, 1:4, 2:4] = value
    make_volume(tmp_path / f"data/{folders[0]}a.nrrd")
    make_volume(tmp_path / f"data/{folders[1]}a_segmentation.nrrd", values=gland)
    monkeypatch.chdir(tmp_path)
    arguments = f"--source data --labels {value} --out_path out"
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", *arguments.split()])
    run_script("prepare")
    assert "1 cases, no problems" in capsys.readouterr().out
    placed = sitk.ReadImage("out/TrainData/gt/a_segmentation.nrrd")
    assert np.array_equal(sitk.GetArrayFromImage(placed), gland > 0)


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        ("--source volumes", 2, "--out_path is needed"),
        ("--download", 2, "--out_path is needed"),
        ("--out_path new", 2, "--source --check --export_nnunet is required"),
        ("--download --source volumes --out_path new", 2, "not allowed with"),
        ("--check none", 1, "none: no volumes in img/"),
        ("--check bad", 1, "error: 1 of 1 cases have problems"),
        ("--source none --out_path new", 1, "none: no such file or folder"),
        ("--source volumes --out_path volumes/Case00.raw", 1, "exists"),
        (
            "--source volumes --out_path new --labels 1,x",
            2,
            "error: --labels=1,x: expected a list of wh",
        ),
        ("--source volumes --out_path new --labels 0,1", 2, "error: --labels is [0, 1], expected"),
        ("--check bad --labels 1,1", 2, "error: --labels is [1, 1], expected"),
        ("--check bad --channel -3", 2, "error: --channel is -3, expected at least -1"),
        ("--source volumes --out_path new --image_pattern *.mhd", 2, "no {case} in it"),
        ("--source volumes --out_path new --mask_pattern m/{case}", 1, "matches none of 2 volumes"),
        ("--source volumes --out_path new --series 5", 1, "volumes: holds no DICOM image"),
        ("--source volumes --out_path new --data_path bad", 2, "--data_path: --source does not"),
        ("--check bad --out_path new", 2, "--out_path: --check does not take it"),
        ("--check bad --series 5", 2, "--series: --check does not take it"),
        (
            "--export_nnunet Dataset500_P --mask_pattern m/{case} --data_path bad",
            2,
            "--mask_pattern",
        ),
        ("--export_nnunet Dataset500_P", 2, "--data_path is needed"),
        ("--export_nnunet prostate --data_path bad", 2, "DatasetNNN_NAME"),
        ("--export_nnunet Dataset500_P --data_path bad", 1, "1 image(s) and 0 mask(s)"),
    ],
)
def test_command_line_errors(tmp_path, monkeypatch, capsys, arguments, code, message):
    make_pairs(tmp_path / "volumes", ["Case00"])
    make_volume(tmp_path / "bad/img/Case00.mhd")
    before = tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", *arguments.split()])
    with pytest.raises(SystemExit) as stopped:
        run_script("prepare")
    assert stopped.value.code == code
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert tree(tmp_path) == before
