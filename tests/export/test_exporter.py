"""Exported files against the checkpoint, and that a bad one never reaches its name.

MindSpore compiles for seconds, so one export of each kind is shared; where a test is about what
happens around it, MindSpore's part is replaced by the very files that it made for that one.
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import onnxruntime
import pytest
from mindspore import nn
from mindspore.train.mind_ir_pb2 import ModelProto

from src.checkpoint import save_weights
from src.ensemble import Member, hash_checkpoint
from src.export import air as air_export
from src.export import exporter as model_export
from src.export.description import config_of_model, model_for_runtime, read_description
from src.export.exporter import export_model, plan_exports
from src.export.lowered_vnet import LoweredVNet
from src.export.mindir import to_version_1
from src.export.weight_file import run_weights
from src.fast_conv3d.build import BuildError
from src.utils.errors import DataError, UsageError
from src.utils.output_folder import MANIFEST, register
from src.utils.process import module_command
from tests.helpers import ROOT, tree, wait_until
from tests.networks import computed_once, seeded_vnet
from tests.rounding import LAYER_ERROR, assert_same_sums

SIDES = (16, 32, 16)
GRID = ("VolSize=16,32,16", "dstRes=2.5,2,2.5")
OUTPUTS = ["vnet.json", "vnet.mindir", "vnet.vnet", "vnet_lite.json", "vnet_lite.mindir"]


# Which files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file_format", "name", "conv2d", "version", "device", "expected"),
    [
        ("MINDIR", "vnet", False, 3, "CPU", "vnet.mindir 3-D 3, vnet.vnet, vnet_lite.mindir 2-D 1"),
        (
            "MINDIR",
            "vnet.mindir",
            False,
            3,
            "GPU",
            "vnet.mindir 3-D 3, vnet.vnet, vnet_lite.mindir 2-D 1",
        ),
        (
            "MINDIR",
            "a/b.v1",
            False,
            3,
            "CPU",
            "a/b.v1.mindir 3-D 3, a/b.v1.vnet, a/b.v1_lite.mindir 2-D 1",
        ),
        ("VNET", "vnet", False, 3, "CPU", "vnet.vnet"),
        ("VNET", "out/vnet.vnet", False, 3, "Ascend", "out/vnet.vnet"),
        ("MINDIR", "vnet", True, 3, "CPU", "vnet.mindir 2-D 3"),
        ("MINDIR", "vnet", False, 1, "CPU", "vnet.mindir 3-D 1"),
        ("MINDIR", "vnet", True, 1, "Ascend", "vnet.mindir 2-D 1"),
        ("ONNX", "vnet", False, 3, "CPU", "vnet.onnx 3-D None"),
        ("ONNX", "out/vnet.onnx", False, 3, "CPU", "out/vnet.onnx 3-D None"),
        ("AIR", "vnet", False, 3, "Ascend", "vnet.air 3-D None"),
        ("AIR", "vnet.air", True, 3, "Ascend", "vnet.air 2-D None"),
        ("ONNX", "old.mindir", False, 3, "CPU", "old.onnx 3-D None"),
    ],
)
def test_the_files_of_a_command_line(file_format, name, conv2d, version, device, expected):
    """A plain MINDIR brings along what the C++ program reads."""
    found = []
    for export in plan_exports(file_format, name, conv2d, version, device):
        facts = export.properties()
        if export.path.suffix == ".vnet":
            assert facts == {"format": "VNET", "format_version": 1}
            found.append(str(export.path))
            continue
        assert facts["format"] == file_format
        found.append(f"{export.path} {facts['operators']} {facts.get('mindir_version')}")
    assert ", ".join(found) == expected


@pytest.mark.parametrize("name", ["vnet_lite", "out/vnet_lite.mindir"])
def test_a_name_of_lite_models_is_refused(name):
    """Its files would be those of an export named vnet."""
    with pytest.raises(UsageError, match="_lite is the ending of models for MindSpore Lite"):
        plan_exports("MINDIR", name, False, 3, "CPU")


@pytest.mark.parametrize("name", ["", "out/", ".", "out/..", ".mindir"])
def test_a_name_without_a_file_is_refused(name):
    with pytest.raises(UsageError, match="expected the name of a file"):
        plan_exports("MINDIR", name, False, 3, "CPU")


@pytest.mark.parametrize(
    ("file_format", "conv2d", "version", "device", "says"),
    [
        ("ONNX", True, 3, "CPU", "--conv2d: not for --file_format ONNX"),
        ("ONNX", False, 1, "CPU", "--mindir_version 1: only for --file_format MINDIR"),
        ("AIR", False, 1, "Ascend", "--mindir_version 1: only for --file_format MINDIR"),
        ("AIR", False, 3, "CPU", "AIR needs an Ascend device, not CPU; use MINDIR"),
        ("AIR", True, 3, "GPU", "AIR needs an Ascend device, not GPU"),
        ("VNET", True, 3, "CPU", "--conv2d: not for --file_format VNET"),
        ("VNET", False, 1, "CPU", "--mindir_version 1: only for --file_format MINDIR"),
    ],
)
def test_what_cannot_be_met_is_refused(file_format, conv2d, version, device, says):
    with pytest.raises(UsageError) as error:
        plan_exports(file_format, "vnet", conv2d, version, device)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("absent", "named"),
    [
        (["onnx"], "needs onnx:"),
        (["onnxruntime"], "needs onnxruntime:"),
        (["onnx", "onnxruntime"], "needs onnx and onnxruntime:"),
    ],
)
def test_missing_packages_are_named_with_the_command(monkeypatch, absent, named):
    def find_spec(name):
        return None if name in absent else real(name)

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(UsageError) as error:
        plan_exports("ONNX", "vnet", False, 3, "CPU")
    assert named in str(error.value)
    assert str(error.value).endswith("pip install -r requirements-onnx.txt")
    assert len(plan_exports("MINDIR", "vnet", False, 3, "CPU")) == 3


def test_the_weight_file_is_for_one_volume_per_call():
    formats = [export.file_format for export in plan_exports("MINDIR", "v", False, 3, "CPU", 2)]
    assert formats == ["MINDIR", "MINDIR"]
    with pytest.raises(UsageError, match="--batch_size 2: not for --file_format VNET"):
        plan_exports("VNET", "v", False, 3, "CPU", 2)


# What is written --------------------------------------------------------------------------------


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def described(path):
    return json.loads(path.with_suffix(".json").read_text())


def entry(path):
    return described(path)["files"][path.name]


def output_of(path, volume):
    """What MindSpore computes with an exported file."""
    return nn.GraphCell(ms.load(str(path)))(ms.Tensor(volume)).asnumpy()


def noise(batch_size=1, sides=SIDES):
    shape = (batch_size, 1, *sides)
    return np.random.default_rng(7).standard_normal(shape, dtype=np.float32)


def member_of(checkpoint, config):
    return Member(Path(checkpoint), config, hash_checkpoint(Path(checkpoint)))


def save(network, path):
    path.parent.mkdir(exist_ok=True)
    save_weights(network, path)
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory, small_config):
    """A checkpoint exported as MINDIR and then as ONNX, and what went on meanwhile.

    Its training ran in mixed precision, which is nothing for an export.
    """
    folder = tmp_path_factory.mktemp("work")
    checkpoint = save(seeded_vnet("zoo", 2), folder / "run" / "best.ckpt")
    config = small_config(*GRID, "threshold=0.4", "precision=mixed")
    recorded = SimpleNamespace(
        **{"folder": folder, "checkpoint": checkpoint, "config": config, "out": folder / "out"},
        **{
            "member": member_of(checkpoint, config),
            "of_mindspore": {},
            "loaded_with": [],
            "compiled": {},
        },
    )
    printed = io.StringIO()

    def recording_load(path, given, target):
        recorded.loaded_with.append(given)
        recorded.network = load_network(path, given, target)
        return recorded.network

    def recording_export(network, *inputs, file_name, file_format):
        export(network, *inputs, file_name=file_name, file_format=file_format)
        recorded.of_mindspore[type(network)] = Path(file_name).read_bytes()

    load_network, export = model_export.load_network, ms.export
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        contextlib.ExitStack() as afterwards,
    ):
        afterwards.callback(os.umask, os.umask(0o027))
        patch.chdir(folder)
        patch.setattr(model_export, "load_network", recording_load)
        patch.setattr(ms, "export", recording_export)
        for file_format in ("MINDIR", "ONNX"):
            exports = plan_exports(file_format, "out/vnet", False, 3, "CPU")
            export_model(member_of("run/best.ckpt", config), "CPU", exports)
            recorded.out = folder / file_format
            shutil.copytree("out", recorded.out)  # one test cannot spoil the next one's
            with register("out", ["vnet.json"]):
                add_another_checkpoints_file(Path("out", "vnet.json"))
        recorded.left = sorted(path.name for path in folder.iterdir())
    recorded.printed = printed.getvalue()
    return recorded


def add_another_checkpoints_file(path):
    """As if a vnet.air of another checkpoint had been there."""
    description = json.loads(path.read_text())
    hashes = {"sha256": "0", "checkpoint_sha256": "0"}
    description["files"]["vnet.air"] = {"format": "AIR", **hashes}
    path.write_text(json.dumps(description))


@pytest.fixture(scope="module")
def expected(work):
    """The output of the network that was loaded, to a volume of this test's own."""
    output = work.network(ms.Tensor(noise())).asnumpy().copy()
    assert output.std() > 0.01, "a flat output would hide a fault"
    return output


def test_a_plain_mindir_comes_with_the_models_of_the_program(work):
    assert sorted(tree(work.folder / "MINDIR")) == sorted([MANIFEST, *OUTPUTS])
    assert work.left == ["MINDIR", "ONNX", "out", "run"]


def test_each_may_be_read_by_whom_the_user_lets_read(work):
    """MindSpore's own files may be read by their owner alone, and written by nobody."""
    for path in (work.folder / "ONNX").iterdir():
        assert path.stat().st_mode & 0o777 == 0o640, path


def test_each_computes_what_the_checkpoint_computes(work, expected):
    found, of_lite_model = (
        output_of(work.folder / "MINDIR" / f"{name}.mindir", noise())
        for name in ("vnet", "vnet_lite")
    )
    assert found.shape == (1, *SIDES) and found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    assert_same_sums(of_lite_model, expected, seeded_vnet("zoo", 2), noise())
    of_weights = run_weights(work.folder / "MINDIR" / "vnet.vnet", noise())
    assert_same_sums(of_weights, expected, seeded_vnet("zoo", 2), noise(), LAYER_ERROR)


def test_the_onnx_beside_it_computes_the_same(work, expected):
    path = work.folder / "ONNX" / "vnet.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = entry(path)["input_name"], entry(path)["output_name"]
    (found,) = session.run([names[1]], {names[0]: noise()})
    assert_same_sums(found, expected, seeded_vnet("zoo", 2), noise())


FACTS = {
    "vnet.mindir": {"format": "MINDIR", "operators": "3-D", "mindir_version": 3},
    "vnet.vnet": {"format": "VNET", "format_version": 1},
    "vnet_lite.mindir": {"format": "MINDIR", "operators": "2-D", "mindir_version": 1},
    "vnet.onnx": {"format": "ONNX", "operators": "3-D"},
}


@pytest.mark.parametrize("name", FACTS)
def test_the_description_fits_its_file(work, name):
    path = work.folder / "ONNX" / name
    description, file = described(path), entry(path)
    assert FACTS[name].items() <= file.items()
    assert ("mindir_version" in file) == (file["format"] == "MINDIR")
    assert file["sha256"] == sha256(path)
    assert file["checkpoint"] == "best.ckpt"
    assert file["checkpoint_sha256"] == sha256(work.checkpoint)
    assert file["mindspore"] == ms.__version__
    assert 0 <= file["largest_difference"] < 1e-4
    assert file.get("input_name") == (None if file["format"] == "VNET" else "volume")
    assert description["input"]["shape"] == [1, 1, *SIDES]
    assert description["output"]["shape"] == [1, *SIDES]
    assert description["configuration"]["threshold"] == 0.4
    assert config_of_model(path, []).dstRes == [2.5, 2, 2.5]


@pytest.mark.parametrize("name", ["vnet.mindir", "vnet_lite.mindir"])
def test_the_version_is_the_files_own(work, name):
    model = ModelProto()
    model.ParseFromString((work.folder / "ONNX" / name).read_bytes())
    assert model.mind_ir_version == entry(work.folder / "ONNX" / name)["mindir_version"]
    assert model.graph.input[0].name.endswith("volume")


def test_each_runtime_finds_its_model(work):
    folder = work.folder / "ONNX"
    assert model_for_runtime(folder / "vnet.mindir", "lite") == folder / "vnet_lite.mindir"
    assert model_for_runtime(folder / "vnet.mindir", "native") == folder / "vnet.vnet"


def test_formats_of_a_checkpoint_share_a_description(work):
    """And of another checkpoint, whose vnet.air was there, nothing stays in it."""
    first, both = (described(work.folder / name / "vnet.mindir") for name in ("MINDIR", "ONNX"))
    assert sorted(first["files"]) == ["vnet.mindir", "vnet.vnet"]
    assert sorted(both["files"]) == ["vnet.mindir", "vnet.onnx", "vnet.vnet"]
    assert both["files"]["vnet.mindir"] == first["files"]["vnet.mindir"]
    before, after = tree(work.folder / "MINDIR"), tree(work.folder / "ONNX")
    for name in ("vnet.mindir", "vnet.vnet", "vnet_lite.mindir", "vnet_lite.json"):
        assert before[name] == after[name]


def test_it_says_how_far_each_file_is_from_the_checkpoint(work):
    lines = [line for line in work.printed.splitlines() if "differs from" in line]
    assert len(lines) == 4
    for line, name in zip(lines, FACTS, strict=True):
        path = work.folder / "ONNX" / name
        size = f"{path.stat().st_size / 1e6:.1f}"
        difference = f"{entry(path)['largest_difference']:.1e}"
        says = f"out/{name}: {size} MB, differs from run/best.ckpt by {difference}"
        assert line == says


def test_it_is_compared_with_mindspores_own_convolutions_in_float32(work):
    """A fault of faster ones must not pass for one of the export, nor hide it."""
    assert (work.config.fast_conv3d, work.config.precision) == ("auto", "mixed")
    references = [(config.fast_conv3d, config.precision) for config in work.loaded_with]
    assert references == [("off", "float32")] * 2


def test_two_volumes_per_call(tmp_path, small_config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = save(seeded_vnet("paper", 2), tmp_path / "run" / "best.ckpt")
    exports = plan_exports("MINDIR", "both", True, 1, "CPU")
    member = member_of(checkpoint, small_config("variant=paper"))
    export_model(member, "CPU", exports, batch_size=2)
    path = tmp_path / "both.mindir"
    description = described(path)
    assert description["input"]["shape"] == [2, 1, 16, 16, 16]
    assert description["output"]["shape"] == [2, 16, 16, 16]
    assert description["configuration"]["variant"] == "paper"
    assert model_for_runtime(path, "lite") == path
    with pytest.raises(DataError, match="both.json: the model takes 2 volumes per call"):
        config_of_model(path, [])
    volume = noise(2, (16, 16, 16))
    network = seeded_vnet("paper", 2)
    expected = computed_once(network, volume)
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    assert_same_sums(output_of(path, volume), expected, seeded_vnet("paper", 2), volume)


# What goes wrong --------------------------------------------------------------------------------


@pytest.fixture
def quick(work, tmp_path, monkeypatch):
    """Exports in a second: the files and the network are those that were made for `work`.

    `calls` are those of `ms.export`, `edit` may change what it writes. Like MindSpore's, its files
    are their owner's alone. A model of the same bytes as an earlier one is not compiled again.
    """
    calls, load, compiled = [], ms.load, nn.GraphCell

    def copying(network, *inputs, file_name, file_format):
        # As MindSpore asks of the path.
        assert re.fullmatch(r"[0-9a-zA-Z@_\-.:/]+", file_name)
        calls.append(SimpleNamespace(network=network, inputs=inputs, file_format=file_format))
        Path(file_name).write_bytes(quick.edit(work.of_mindspore[type(network)]))
        Path(file_name).chmod(0o400)

    def loading(path):
        content = Path(path).read_bytes()
        if content not in work.compiled:
            work.compiled[content] = compiled(load(path))
        return work.compiled[content]

    quick = SimpleNamespace(calls=calls, edit=lambda content: content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_export, "load_network", lambda *_: work.network)
    monkeypatch.setattr(ms, "export", copying)
    monkeypatch.setattr(ms, "load", loading)
    monkeypatch.setattr(nn, "GraphCell", lambda model: model)
    return quick


def export_mindir(work, name="out/vnet"):
    export_model(work.member, "CPU", plan_exports("MINDIR", name, False, 3, "CPU"))


def with_another_bias(content, change):
    """A MindIR whose last parameter, the head's bias, is changed for one channel."""
    model = ModelProto()
    model.ParseFromString(content)
    bias = model.graph.parameter[-1]
    values = np.frombuffer(bias.raw_data, np.float32).copy()
    values[0] = change(values[0])
    bias.raw_data = values.tobytes()
    return model.SerializeToString()


def test_the_stand_in_exports_what_mindspore_exported(work, quick, tmp_path):
    export_mindir(work)
    whole = tree(work.folder / "MINDIR")
    assert tree(tmp_path / "out") == whole


@pytest.mark.parametrize(
    ("change", "found", "earlier"),
    [(lambda bias: bias + 0.01, "e-0", True), (lambda bias: np.nan, "nan", False)],
)
def test_a_lite_model_that_computes_something_else_is_not_written(
    work, quick, tmp_path, monkeypatch, change, found, earlier
):
    """Nor is the other file of the pair, which would be sound."""

    def damaging(source, target):
        to_version_1(source, target)
        target.write_bytes(with_another_bias(target.read_bytes(), change))

    if earlier:
        shutil.copytree(work.folder / "ONNX", tmp_path / "out")
        with register(tmp_path / "out", ["vnet.mindir"]):
            (tmp_path / "out" / "vnet.mindir").write_bytes(b"of an earlier checkpoint")
        before = tree(tmp_path / "out")
    monkeypatch.setattr(model_export, "to_version_1", damaging)
    with pytest.raises(DataError) as error:
        export_mindir(work)
    message = str(error.value)
    assert message.startswith("out/vnet_lite.mindir: not written, differs from the checkpoint by ")
    assert found in message and message.endswith("expected 1e-04 at most; report this")
    if earlier:
        assert tree(tmp_path / "out") == before
    else:
        assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_nan_is_told_from_a_faulty_export(work, quick, tmp_path, monkeypatch):
    output = ms.Tensor(np.full((1, *SIDES), np.nan, np.float32))
    monkeypatch.setattr(model_export, "load_network", lambda *_: lambda volume: output)
    with pytest.raises(DataError, match="out/vnet.mindir: not written, .* its weights are NaN$"):
        export_mindir(work)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("precision", "target", "off", "passes"),
    [
        ("float32", "CPU", 9e-5, True),
        ("float32", "CPU", -1.2e-4, False),
        ("float32", "CPU", np.nan, False),
        ("auto", "CPU", 1.2e-4, False),
        ("mixed", "CPU", -9e-5, True),
        ("mixed", "CPU", 1.2e-4, False),
        ("float32", "GPU", -1.9e-2, True),
        ("auto", "GPU", 2.1e-2, False),
        ("float32", "Ascend", 9e-5, True),  # on a CPU, since it has no float32 convolutions
        ("mixed", "Ascend", 1.2e-4, False),
        ("auto", "Ascend", np.nan, False),
    ],
)
def test_one_voxel_too_far_off_is_an_error(
    work, quick, tmp_path, monkeypatch, small_config, precision, target, off, passes
):
    """The device decides: it computes in float32 with its own accuracy."""

    def almost(path, volume):
        output = work.network(ms.Tensor(volume)).asnumpy()
        output[0, 3, 20, 7] += off
        return output

    def stub(network, shape, path):
        path.write_bytes(b"model")

    monkeypatch.setattr(model_export, "export_onnx", stub)
    monkeypatch.setattr(model_export, "run_onnx", almost)
    member = member_of(work.checkpoint, small_config(*GRID, f"precision={precision}"))
    exports = plan_exports("ONNX", "out/vnet", False, 3, target)
    if passes:
        export_model(member, target, exports)
        path = tmp_path / "out" / "vnet.onnx"
        assert path.read_bytes() == b"model"
        assert entry(path)["largest_difference"] == pytest.approx(abs(off), abs=1e-6)
    else:
        limit = "2e-02" if target == "GPU" else "1e-04"
        says = f"vnet.onnx: not written, differs .* expected {limit} at most; report this"
        with pytest.raises(DataError, match=says):
            export_model(member, target, exports)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", OUTPUTS)
def test_other_peoples_files_stop_it_before_anything(work, quick, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(DataError, match=f"out/{name}: there already, and not written by this"):
        export_mindir(work)
    assert quick.calls == []
    assert tree(tmp_path / "out") == {name: b"mine"}


def test_a_file_that_appears_meanwhile_is_not_ours_either(work, quick, tmp_path):
    def appearing(content):
        (tmp_path / "out" / "vnet.json").write_text("mine")
        return content

    quick.edit = appearing
    with pytest.raises(DataError, match="out/vnet.json: there already, and not written by this"):
        export_mindir(work)
    assert tree(tmp_path / "out") == {"vnet.json": b"mine"}


def test_a_checkpoint_that_is_replaced_after_it_was_found(work, quick, tmp_path):
    """Else its models would be described by a hash that the others of an ensemble do not know."""
    member = work.member._replace(sha256="of the earlier one")
    exports = plan_exports("MINDIR", "out/vnet", False, 3, "CPU")
    with pytest.raises(DataError, match="best.ckpt: replaced while it was read"):
        export_model(member, "CPU", exports)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("reason", [DataError("no"), KeyboardInterrupt(), SystemExit(143)])
@pytest.mark.parametrize("there", ["", "a", "a/b"])
def test_of_an_export_that_ends_early_nothing_stays(work, quick, tmp_path, reason, there):
    """Neither the folders that were made for it, nor names that would pass for ours later."""

    def ending(content):
        assert list(tmp_path.glob("a/b/.exporting-*"))
        raise reason

    (tmp_path / there).mkdir(parents=True, exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    quick.edit = ending
    with pytest.raises(type(reason)):
        export_mindir(work, "a/b/vnet")
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "a" / "b").mkdir(parents=True, exist_ok=True)
    (tmp_path / "a" / "b" / "vnet.mindir").write_text("mine")
    with pytest.raises(DataError, match="a/b/vnet.mindir: there already, and not written by this"):
        export_mindir(work, "a/b/vnet")
    assert tree(tmp_path / "a" / "b") == {"vnet.mindir": b"mine"}


def test_term_ends_an_export_without_a_trace(work, tmp_path):
    """Even while MindSpore compiles: it may swallow an exception, or leave a dump of its graph."""
    words = ["--ckpt_file", work.checkpoint, "--device_target", "CPU", "--file_name", "a/b/vnet"]
    settings = [word for item in ("width=2", *GRID) for word in ("--set", item)]
    process = subprocess.Popen(
        [sys.executable, ROOT / "export.py", *words, *settings],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            described = "a/b/.exporting-*/vnet.json"  # the lite model is to come
            wait_until(lambda: process.poll() is not None or list(tmp_path.glob(described)), 300)
            time.sleep(0.6)  # into MindSpore's compilation
            process.terminate()
            printed, _ = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM), printed
    assert "Traceback" not in printed
    assert list(tmp_path.iterdir()) == []


def test_our_own_earlier_files_are_replaced_with_a_notice(work, quick, tmp_path, capsys):
    with register(tmp_path / "out", OUTPUTS):
        for name in (*OUTPUTS, "notes.txt"):
            (tmp_path / "out" / name).write_text("earlier")
    export_mindir(work)
    assert "out: replacing 5 file(s) of an earlier run" in capsys.readouterr().out
    notes = {"notes.txt": b"earlier"}
    assert tree(tmp_path / "out") == tree(work.folder / "MINDIR") | notes


@pytest.mark.parametrize("item", ["variant=paper", "variant=monai", "width=4"])
def test_a_checkpoint_of_another_architecture(work, tmp_path, monkeypatch, small_config, item):
    monkeypatch.chdir(tmp_path)
    exports = plan_exports("MINDIR", "out/vnet", False, 3, "CPU")
    with pytest.raises(DataError, match="best.ckpt: holds a V-Net of variant=zoo, width=2"):
        export_model(member_of(work.checkpoint, small_config(item)), "CPU", exports)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a b/v w", "mödel+(1)/ü", "50%/#1,x", "a'b/c\"d"])
def test_a_model_may_have_any_name(work, quick, tmp_path, name):
    export_mindir(work, name)
    outputs = [f"{Path(name).name}{output.removeprefix('vnet')}" for output in OUTPUTS]
    assert sorted(tree((tmp_path / name).parent)) == sorted([MANIFEST, *outputs])
    assert read_description(tmp_path / f"{name}.mindir")[1]["format"] == "MINDIR"
    assert Path.cwd() == tmp_path


def test_a_path_that_is_not_utf8_is_refused(work, quick, tmp_path):
    folder = os.fsdecode(b"r\xfcn")
    with pytest.raises(DataError, match="not UTF-8; rename it"):
        export_mindir(work, f"{folder}/vnet")
    assert (quick.calls, list(tmp_path.iterdir())) == ([], [])


def test_a_folder_that_cannot_be_made(work, quick, tmp_path):
    (tmp_path / "file").write_text("mine")
    says = r"^file/out: cannot be written \(Not a directory; check which of these names are"
    with pytest.raises(DataError, match=says):
        export_mindir(work, "file/out/vnet")
    assert quick.calls == []
    assert tree(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize("model", ["vnet", "vnet_lite"])
def test_a_full_disk_keeps_the_earlier_files(work, quick, tmp_path, full_disk, model):
    shutil.copytree(work.folder / "ONNX", tmp_path / "out")
    before = tree(tmp_path / "out")
    size_bytes = len(before["vnet.mindir"])  # the lite model is larger
    size_bytes -= model == "vnet"
    with (
        full_disk(size_bytes),
        pytest.raises(DataError, match=r"^out: cannot be written \(File too large\)$"),
    ):
        export_mindir(work)
    assert tree(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize(
    ("file_format", "reason"),
    # MindSpore logs why it writes no ONNX, and goes on as if it had.
    [("MINDIR", "File too large"), ("ONNX", "No such file or directory")],
)
def test_a_disk_that_is_full_when_mindspore_writes(
    work, tmp_path, monkeypatch, full_disk, file_format, reason
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_export, "load_network", lambda *_: work.network)
    exports = plan_exports(file_format, "out/vnet", False, 3, "CPU")
    says = rf"^out: cannot be written \({reason}\)$"
    with full_disk(100_000), pytest.raises(DataError, match=says):
        export_model(work.member, "CPU", exports)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_when_the_description_is_written(
    work, quick, tmp_path, monkeypatch, full_disk
):
    """The message names the user's folder, not a hidden one that is gone by then."""
    monkeypatch.setattr(model_export, "export_onnx", lambda *arguments: arguments[-1].touch())
    monkeypatch.setattr(
        model_export, "run_onnx", lambda _, volume: work.network(ms.Tensor(volume)).asnumpy()
    )
    exports = plan_exports("ONNX", "out/vnet", False, 3, "CPU")
    with full_disk(1000), pytest.raises(DataError) as error:
        export_model(work.member, "CPU", exports)
    assert str(error.value).startswith("out") and ".exporting-" not in str(error.value)
    assert "cannot be written (File too large)" in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def no_compiler(monkeypatch):
    def library():
        raise BuildError("fast_conv3d: no C++ compiler; install one")

    monkeypatch.setattr(model_export.operators, "library", library)


def test_without_a_compiler_a_mindir_comes_without_its_weight_file(
    work, quick, tmp_path, capsys, no_compiler
):
    export_mindir(work)
    assert sorted(tree(tmp_path / "out")) == sorted({MANIFEST, *OUTPUTS} - {"vnet.vnet"})
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "vnet.vnet" in line]
    says = "out/vnet.vnet: not written, since it can't be checked here (fast_conv3d: no C++"
    assert line.startswith(says)
    with pytest.raises(BuildError):
        exports = plan_exports("VNET", "new/vnet", False, 3, "CPU")
        export_model(work.member, "CPU", exports)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_weight_file_alone(work, quick, tmp_path):
    exports = plan_exports("VNET", "out/vnet", False, 3, "CPU")
    export_model(work.member, "CPU", exports)
    assert quick.calls == []
    written, whole = tree(tmp_path / "out"), tree(work.folder / "MINDIR")
    assert sorted(written) == sorted([MANIFEST, "vnet.json", "vnet.vnet"])
    assert written["vnet.vnet"] == whole["vnet.vnet"]
    assert (
        model_for_runtime(tmp_path / "out" / "vnet.vnet", "native")
        == tmp_path / "out" / "vnet.vnet"
    )


def test_a_weight_file_that_computes_something_else_is_not_written(
    work, quick, tmp_path, monkeypatch
):
    write = model_export.write_weights

    def damaging(network, sides, path):
        network.out_tr.conv2.weight *= 1.01
        write(network, sides, path)

    monkeypatch.setattr(model_export, "write_weights", damaging)
    with pytest.raises(DataError, match="^out/vnet.vnet: not written, differs from the checkpoint"):
        export_mindir(work)
    assert list(tmp_path.iterdir()) == []


# AIR, which only an Ascend device writes --------------------------------------------------------


@pytest.fixture
def on_an_ascend(quick, monkeypatch):
    """Writes the AIR as the process on an Ascend would, here; keeps what it was asked for."""

    def written(command, input, **_):
        assert command == module_command("src.export.air", ends_with_parent=True)
        asked.append(json.loads(input))
        monkeypatch.setattr(sys, "stdin", io.StringIO(input))
        air_export.main()
        return SimpleNamespace(returncode=0)

    asked = []
    levels = []
    monkeypatch.setattr(air_export.subprocess, "run", written)
    monkeypatch.setattr(air_export, "start_device", lambda *device: asked.append(device))
    monkeypatch.setattr(ms, "set_context", lambda jit_config: levels.append(jit_config))
    yield asked
    assert levels in ([], [{"jit_level": "O2"}])


@pytest.mark.parametrize("conv2d", [False, True])
def test_for_air_the_mindir_of_the_same_graph_is_compared(
    work, quick, on_an_ascend, tmp_path, monkeypatch, conv2d
):
    loaded = []

    def spying(path):
        loaded.append(Path(path).read_bytes())
        return load(path)

    load = ms.load
    monkeypatch.setattr(ms, "load", spying)
    exports = plan_exports("AIR", "out/vnet", conv2d, 3, "Ascend")
    export_model(work.member, "Ascend", exports, device_id=3)
    assert on_an_ascend[1] == ("Ascend", 3)
    assert [call.file_format for call in quick.calls] == ["MINDIR", "AIR"]
    of_mindir, of_air = quick.calls
    for mine, other in zip(
        of_mindir.network.get_parameters(), of_air.network.get_parameters(), strict=True
    ):
        np.testing.assert_array_equal(mine.asnumpy(), other.asnumpy())
    assert isinstance(of_air.network, LoweredVNet) == conv2d
    assert not of_air.network.training
    for call in quick.calls:
        assert [tensor.shape for tensor in call.inputs] == [(1, 1, *SIDES)]
    assert loaded == [work.of_mindspore[type(of_air.network)]]
    assert sorted(tree(tmp_path / "out")) == sorted([MANIFEST, "vnet.air", "vnet.json"])
    file = entry(tmp_path / "out" / "vnet.air")
    assert (file["format"], file["operators"]) == ("AIR", "2-D" if conv2d else "3-D")
    assert "mindir_version" not in file
    assert file["sha256"] == sha256(tmp_path / "out" / "vnet.air")
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1, "MindSpore's own may be read by nobody but its owner"


def test_an_air_whose_graph_computes_something_else_is_not_written(
    work, quick, on_an_ascend, tmp_path
):
    quick.edit = lambda content: with_another_bias(content, lambda bias: bias + 1)
    exports = plan_exports("AIR", "out/vnet", False, 3, "Ascend")
    with pytest.raises(DataError, match="vnet.air: not written, differs"):
        export_model(work.member, "Ascend", exports)
    assert list(tmp_path.iterdir()) == [] and on_an_ascend == []


def test_an_air_without_an_ascend_says_what_is_missing(work, quick, tmp_path):
    exports = plan_exports("AIR", "out/vnet", False, 3, "Ascend")
    with pytest.raises(DataError, match="^AIR not written: device Ascend is not available to M"):
        export_model(work.member, "Ascend", exports)
    assert list(tmp_path.iterdir()) == []
