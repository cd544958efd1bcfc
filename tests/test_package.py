"""The package as users install it: what the wheel holds, and its work without the repository."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import yaml

import src
from tests.helpers import ROOT

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "src", "vnet_mindspore")

# As in a notebook.
SEGMENT = """
import SimpleITK as sitk
import vnet_mindspore
from vnet_mindspore.checkpoint import save_weights
from vnet_mindspore.config import override_config, save_config, vnet_cfg
from vnet_mindspore.promise12.phantom import write_phantom
from vnet_mindspore.vnet import create_vnet

write_phantom("data", cases=1, seed=1)
config = override_config(vnet_cfg, ["width=2", "VolSize=32,32,16", "dstRes=3.5,3.5,4.5"])
save_config(config, "run/config.json")
save_weights(create_vnet(config), "run/ckpt/best.ckpt")
model = vnet_mindspore.load("run", "CPU")
sitk.WriteImage(model.segment(sitk.ReadImage("data/img/Case00.mhd")), "mask.mha")
print(vnet_mindspore.__file__)
"""


def run(*words, **options):
    ended = subprocess.run([*map(str, words)], capture_output=True, text=True, **options)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built offline from a copy: a build leaves files beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for path in [*map(ROOT.joinpath, SOURCES), *ROOT.glob("requirements*.txt")]:
        copy = folder / "sources" / path.name
        copy.parent.mkdir(exist_ok=True)
        if path.is_symlink():
            copy.symlink_to(path.readlink())
        elif path.is_dir():
            shutil.copytree(path, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, copy)
    build = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "wheel", *build, "-w", folder, folder / "sources")
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment of its own with the wheel, which finds its dependencies in this one's."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    paths = {"base": folder, "platbase": folder}
    modules = Path(sysconfig.get_path("purelib", "venv", paths))
    (modules / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = ("-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--no-index")
    run(python, *pip, wheel)
    return folder


@pytest.fixture(scope="module")
def elsewhere(installed, tmp_path_factory):
    """Function that runs a program of the environment in a folder outside the repository."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "run" / "ckpt").mkdir(parents=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def call(program, *words):
        return run(installed / "bin" / program, *words, cwd=folder, env=environment)

    call.folder = folder
    return call


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    metadata = f"vnet_mindspore-{src.__version__}.dist-info/"
    found = {name.removeprefix("vnet_mindspore/") for name in names if metadata not in name}
    expected = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert found == expected
    for name in ("licenses/LICENSE", "licenses/NOTICE", "METADATA", "entry_points.txt"):
        assert metadata + name in names


def test_the_metadata(wheel):
    with zipfile.ZipFile(wheel) as file:
        (name,) = [name for name in file.namelist() if name.endswith("/METADATA")]
        head, _, _ = file.read(name).decode().partition("\n\n")
    fields = [tuple(line.split(": ", 1)) for line in head.splitlines()]
    assert ("Name", "vnet-mindspore") in fields
    assert ("Version", src.__version__) in fields
    assert ("License-Expression", "Apache-2.0") in fields
    python = next(value for key, value in fields if key == "Requires-Python")
    assert set(python.split(",")) == {">=3.10", "<3.13"}
    extras = {value for key, value in fields if key == "Provides-Extra"}
    assert extras == {"dicom", "onnx", "tensorboard", "dev"}
    required = {value for key, value in fields if key == "Requires-Dist" and "extra" not in value}
    wanted = (ROOT / "requirements.txt").read_text().splitlines()
    assert {re.split(r"[<>=]", line)[0] for line in required} == {
        re.split(r"[<>=]", line)[0] for line in wanted if line and not line.startswith("#")
    }
    assert "mindspore==2.10.0" in required


def test_the_installed_command(elsewhere):
    text = elsewhere("vnet", "--help")
    for verb in ("prepare", "split", "train", "eval", "predict", "export", "release", "check"):
        assert re.search(rf"^  {verb} ", text, re.MULTILINE)
    assert elsewhere("vnet", "--version") == f"vnet_mindspore {src.__version__}\n"


def test_the_installed_package_segments_alike_in_python_and_by_command(elsewhere, installed):
    location = elsewhere("python", "-c", SEGMENT).splitlines()[-1]
    assert Path(location).is_relative_to(installed)
    words = ("--device_target", "CPU", "--ckpt_path", "run", "--output_path", "masks")
    elsewhere("vnet", "predict", *words, "--input", "data/img/Case00.mhd")
    ours = sitk.ReadImage(str(elsewhere.folder / "mask.mha"))
    theirs = sitk.ReadImage(str(elsewhere.folder / "masks" / "Case00_test.mhd"))
    array = sitk.GetArrayFromImage(ours)
    assert 0 < array.mean() < 1
    np.testing.assert_array_equal(array, sitk.GetArrayFromImage(theirs))
    assert ours.GetDirection() == theirs.GetDirection() and ours.GetOrigin() == theirs.GetOrigin()
    report = (elsewhere.folder / "masks" / "report.html").read_text("utf-8")
    assert "</style>" in report and "</script>" in report  # from files of the package


def test_the_installed_package_has_what_a_check_and_the_compiler_need(elsewhere):
    code = (
        "from vnet_mindspore.acceptance.golden import GOLDEN, seeded\n"
        "from vnet_mindspore.fast_conv3d.build import SOURCES\n"
        "print(sorted(path.name for path in GOLDEN.glob('*.npz')), seeded.volume().shape)\n"
        "print((SOURCES / 'ops.cpp').is_file())\n"
    )
    assert elsewhere("python", "-c", code).splitlines() == [
        "['layers.npz', 'monai.npz', 'zoo.npz'] (2, 1, 48, 32, 32)",
        "True",
    ]


def test_the_dockerfile_copies_what_there_is():
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    paths = [path for line in copied for path in line.split()]
    assert "src" in paths and all(any(ROOT.glob(path)) for path in paths)
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    taken = [line.removeprefix("!") for line in patterns if line.startswith("!")]
    assert "*" in patterns  # all else, such as images and environments, stays out
    assert all(any(fnmatch(path, pattern) for pattern in taken) for path in paths)


def test_the_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == src.__version__ and citation["license"] == "Apache-2.0"
    assert [reference["doi"] for reference in citation["references"]] == [
        "10.1109/3DV.2016.79",
        "10.1016/j.media.2013.12.002",
    ]
    assert f"## {src.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_hooks_before_a_commit_are_the_linters_of_run_tests():
    content = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = content["repos"]
    entries = [hook["entry"].removeprefix(".venv/bin/") for hook in repository["hooks"]]
    script = (ROOT / "scripts" / "run_tests.sh").read_text()
    assert len(entries) == 5 and all(re.search(rf"^{e}", script, re.MULTILINE) for e in entries)
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        if "files" in hook:
            tracked = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/**/*.*")]
            assert any(re.search(hook["files"], path) for path in tracked), hook["id"]


def test_the_workflow_runs_the_tests_on_every_supported_python():
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())
    job = workflow["jobs"]["tests"]
    assert job["strategy"]["matrix"]["python"] == ["3.10", "3.11", "3.12"]
    assert any("bash scripts/run_tests.sh" in step.get("run", "") for step in job["steps"])
