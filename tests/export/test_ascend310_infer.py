"""ascend310_infer: what build.sh builds, run on tiny models on the CPU.

`main` has this project's kernels; `main_lite`, in which it continues for `--runtime lite`, has
MindSpore Lite. What both do alike is tested on the first.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

from src.config import override_config, vnet_cfg
from src.data_manager import Case
from src.export.description import CONFIGURATION
from src.export.infer_310 import Attempt, write_attempts
from src.export.mindir import to_version_1
from src.export.weight_file import run_weights, write_weights
from tests.helpers import ROOT, tree, write_executable
from tests.networks import seeded_vnet

SOURCES = ROOT / "ascend310_infer"
GRID = (16, 32, 16)
SHAPE = (2, 3, 4, 5)  # of the models for MindSpore Lite
SHIFT = np.linspace(-1, 1, 120, dtype=np.float32).reshape(SHAPE)
SANITIZER = 99  # exit code of a sanitizer that finds a fault
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": f"exitcode={SANITIZER}",
    "UBSAN_OPTIONS": f"exitcode={SANITIZER}",
}

LITE = ("--device_type=CPU", "--runtime=lite")
DESCRIPTION = f'{{"VolSize": {list(GRID)}, "dstRes": 1}}'  # of a model
RECORD = '{\n  "image_sha256": "0"\n}'  # beside a volume and its result

run = partial(subprocess.run, capture_output=True, text=True, stdin=subprocess.DEVNULL)


# ------------------------------------------------------------------------------------------- builds


def copy_of_sources(folder):
    """ascend310_infer in a repository of its own, without what a build leaves in it."""
    copy = folder / "a repository" / "ascend310_infer"
    left_out = shutil.ignore_patterns("build", "lite", "out")
    shutil.copytree(SOURCES, copy, ignore=left_out)
    (copy.parent / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "common.sh", copy.parent / "scripts")
    native = Path("src", "fast_conv3d", "native")
    shutil.copytree(ROOT / native, copy.parent / native)
    return copy


def build(sources, *arguments, before=(), **environment):
    inherited = {key: value for key, value in os.environ.items() if key != "LITE_HOME"}
    command = [*before, "bash", str(sources / "build.sh"), *arguments]
    return run(command, env=inherited | environment)


def built(sources, *arguments, **environment):
    result = build(sources, *arguments, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return sources / "out" / "main"


@pytest.fixture(scope="module")
def lite():
    """The variables of a build: LITE_HOME, that of the tests or what build.sh downloads, if any."""
    if "LITE_HOME" in os.environ:
        return {"LITE_HOME": os.environ["LITE_HOME"]}
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return {}
    if not (SOURCES / "lite").exists():
        built(SOURCES, "--runtime", "lite")
    return {"LITE_HOME": str(SOURCES / "lite")}


@pytest.fixture(scope="module")
def lite_home(lite):
    if not lite:
        pytest.skip("set LITE_HOME to an unpacked MindSpore Lite")
    return lite["LITE_HOME"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The repository's own; a copy for another compiler, where there is one."""
    if shutil.which("clang++"):
        return copy_of_sources(tmp_path_factory.mktemp("plain"))
    return SOURCES


@pytest.fixture(scope="module")
def plain(sources, lite):
    compiler = "c++" if sources == SOURCES else "clang++"
    return built(sources, CXX=compiler, **lite)


@pytest.fixture(scope="module")
def official(lite, tmp_path_factory):
    """The same variables, of the official package: its libraries lie in several folders."""
    if not lite:
        return {}
    home = tmp_path_factory.mktemp("official") / "lite home"
    runtime, converter = home / "runtime", home / "tools"
    folders = {"libdnnl": runtime / "third_party/dnnl"}
    folders["libmindspore_glog"] = runtime / "third_party/glog"
    for name in ("mindspore_converter", "mslite_converter_plugin", "opencv"):
        folders[f"lib{name}"] = converter / "converter" / "lib"
    for library in Path(lite["LITE_HOME"]).rglob("lib*.so*"):
        place = next((at for name, at in folders.items() if library.name.startswith(name)), None)
        place = place or runtime / "lib"
        place.mkdir(parents=True, exist_ok=True)
        (place / library.name).symlink_to(library.resolve())
    assert all(folder.is_dir() for folder in folders.values())
    headers = next(Path(lite["LITE_HOME"]).rglob("include/api/model.h")).parents[1]
    (runtime / "include").symlink_to(headers)
    return {"LITE_HOME": str(home)}


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory, official):
    """With asserts, and with MindSpore Lite as its official package has it."""
    arguments = ("-DVNET_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS=-O1")
    return built(copy_of_sources(tmp_path_factory.mktemp("sanitized")), *arguments, **official)


@pytest.fixture(scope="module")
def sanitizer_options(sanitized):
    flags = run([sanitized, "--help"], env=os.environ | {"ASAN_OPTIONS": "help=1"})
    assert "AddressSanitizer" in flags.stderr  # it is sanitized
    result = run([sanitized, "--help"], env=os.environ | SANITIZER_OPTIONS)
    if "LeakSanitizer has encountered a fatal error" in result.stdout:  # no ptrace in a container
        return SANITIZER_OPTIONS | {"ASAN_OPTIONS": f"exitcode={SANITIZER}:detect_leaks=0"}
    return SANITIZER_OPTIONS


@pytest.fixture
def infer(request, tmp_path):
    """Function of the program's arguments; it runs in tmp_path, as `sanitized` by itself."""
    build = getattr(request, "param", "sanitized")
    program, environment = request.getfixturevalue(build), dict(os.environ)
    if build == "sanitized":
        environment |= request.getfixturevalue("sanitizer_options")

    def infer(*arguments, **settings):
        result = run([program, *arguments], cwd=tmp_path, env=environment, **settings)
        assert result.returncode != SANITIZER, result.stdout
        return result

    return infer


# ------------------------------------------------------------------------------- models and volumes


class Network(nn.Cell):
    def __init__(self):
        super().__init__()
        self.shift, self.elu = ms.Tensor(SHIFT), nn.ELU()

    def construct(self, x):
        return ops.add(self.elu(ops.add(x, self.shift)), x)


class TwoOutputs(Network):
    def construct(self, x):
        return ops.add(x, self.shift), self.elu(x)


class Sum(nn.Cell):
    def construct(self, x, y):
        return ops.add(x, y)


class Twice(nn.Cell):
    def construct(self, x):
        return ops.add(x, x)


def output_of(x):
    shifted = x.astype(np.float64) + SHIFT
    return np.where(shifted > 0, shifted, np.expm1(shifted)) + x


@pytest.fixture(scope="module")
def models(tmp_path_factory, lite_home):
    """Folder with the models for MindSpore Lite."""
    folder = tmp_path_factory.mktemp("models")
    zeros = ms.ops.zeros(SHAPE, ms.float32)
    for name, network, inputs in (
        ("network", Network(), [zeros]),
        ("two_inputs", Sum(), [zeros, zeros]),
        ("two_outputs", TwoOutputs(), [zeros]),
        ("integers", Twice(), [ms.ops.zeros(SHAPE, ms.int32)]),
    ):
        exported = folder / f"{name}_3.mindir"
        ms.export(network, *inputs, file_name=str(exported), file_format="MINDIR")
        to_version_1(exported, folder / f"{name}.mindir")
    whole = (folder / "network.mindir").read_bytes()
    (folder / "truncated.mindir").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mindir").touch()
    (folder / "text.mindir").write_text("no model\n" * 100)
    return folder


def sealed(content):
    """A weight file with the right checksum of its header and table, where that is possible."""
    end = min(int.from_bytes(content[12:16], "little"), len(content))
    content[24:28] = bytes(4)
    content[24:28] = zlib.crc32(content[:end]).to_bytes(4, "little")
    return content


class Model(NamedTuple):
    """What the program is given, and the shape and values of its output."""

    arguments: list[str]
    shape: tuple[int, ...]
    output: Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The weight file of a V-Net."""
    path = tmp_path_factory.mktemp("weights") / "vnet.vnet"
    write_weights(seeded_vnet("monai", 2), GRID, path)
    return path


@pytest.fixture
def model(request):
    """Of the native runtime unless the test asks for that of MindSpore Lite."""
    if getattr(request, "param", "native") == "lite":
        path = request.getfixturevalue("models") / "network.mindir"
        return Model([f"--mindir_path={path}", *LITE], SHAPE, output_of)
    path = request.getfixturevalue("weights")
    return Model(
        [f"--mindir_path={path}", "--device_type=CPU"],
        GRID,
        lambda volume: run_weights(path, volume.reshape(1, 1, *GRID))[0],
    )


@pytest.fixture
def volumes(model, tmp_path):
    """Volume name -> array; the files lie where the program looks for them by itself."""
    folder = tmp_path / "results" / "bin_data"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    arrays = {}
    for name in ("Case10", "Case02", "a.b"):
        arrays[name] = random.normal(0, 2, model.shape).astype(np.float32)
        arrays[name].tofile(folder / f"{name}.bin")
    return arrays


def everything_in(folder):
    return sorted(folder.rglob("*"))


def fails(result, code, *words):
    """The result is this exit code and one line on standard error, which has these words."""
    assert result.returncode == code, result.stdout + result.stderr
    assert re.fullmatch(r"error: .+\n", result.stderr)
    for word in words:
        assert word in result.stderr


# --------------------------------------------------------------------------------------- good paths


@pytest.mark.parametrize(
    ("infer", "model"),
    [("plain", "native"), ("sanitized", "native"), ("sanitized", "lite")],
    indirect=True,
)
def test_outputs_and_times(infer, model, volumes, tmp_path):
    inputs = tmp_path / "results" / "bin_data"
    (inputs / "notes.txt").write_text("no volume")
    (inputs / ".hidden.bin").touch()
    (inputs / "folder.bin").mkdir()
    result = infer(*model.arguments)
    assert (result.returncode, result.stderr) == (0, "")

    outputs = tmp_path / "result_Files"
    assert {path.name for path in outputs.iterdir()} == {f"{name}_0.bin" for name in volumes}
    for name, volume in volumes.items():
        output = np.fromfile(outputs / f"{name}_0.bin", np.float32).reshape(model.shape)
        # Compiled without optimization, the kernels round differently.
        np.testing.assert_allclose(output, model.output(volume), rtol=1e-5, atol=1e-4)

    lines = re.findall(r"^(\S+)\.bin: (\d+\.\d) ms, (\S+)$", result.stdout, re.MULTILINE)
    assert [Path(name).name for name, _, _ in lines] == ["Case02", "Case10", "a.b"]
    assert [Path(output).name for *_, output in lines] == [
        *("Case02_0.bin", "Case10_0.bin", "a.b_0.bin")
    ]
    summary = (tmp_path / "time_Result" / "test_perform_static.txt").read_text()
    words = r"NN inference cost average time: (\d+\.\d) ms of infer_count 3\n"
    average = float(re.fullmatch(words, summary)[1])
    assert average == pytest.approx(np.mean([float(time) for _, time, _ in lines]), abs=0.11)
    assert summary in result.stdout
    assert "replacing" not in result.stdout


def test_other_folders_and_an_earlier_result(infer, model, weights, volumes, tmp_path):
    (tmp_path / "results").rename(tmp_path / "other")
    output = tmp_path / "out" / "deep" / "a.b_0.bin"
    output.parent.mkdir(parents=True)
    output.write_text("of an earlier run")
    other = output.with_name("Case99_0.bin")
    other.write_text("of an earlier run, with other cases")
    result = infer(
        *("--mindir_path", weights, "--dataset_path=other/bin_data", "--runtime", "native"),
        *("--output_path", output.parent, "--device_type=CPU", "--device_id=3", "--threads=1"),
        "--precision=fp32",
    )
    assert result.returncode == 0, result.stderr
    assert f"{output.parent}: replacing 1 result(s) of an earlier run\n" in result.stdout
    assert output.stat().st_size == 4 * np.prod(GRID)
    assert other.read_text() == "of an earlier run, with other cases"
    assert not (tmp_path / "result_Files").exists()


@pytest.mark.parametrize("name", ["vnet", "vnet_lite"])
def test_the_results_tell_of_which_model_they_are(infer, weights, volumes, tmp_path, name):
    """Results of another model never stay among new ones."""
    model, outputs = tmp_path / f"{name}.vnet", tmp_path / "result_Files"
    shutil.copy(weights, model)
    arguments = "--mindir_path", model, "--device_type=CPU"
    record = outputs / "model.json"
    assert infer(*arguments).returncode == 0
    assert not record.exists()

    description = tmp_path / "vnet.json"  # shared by both models
    for text in (DESCRIPTION, DESCRIPTION.replace("1}", "2}")):  # another, of the same cases
        description.write_text(text)
        assert infer(*arguments).returncode == 0
        assert record.read_text() == text
    if name != "vnet":
        return  # the rest depends on the description alone

    old, other = outputs / "Case99_0.bin", outputs / "notes.bin"
    other.write_text("mine")
    old_record = old.with_suffix(".json")
    for text, stays in (
        ('"checkpoint_sha256": "a", "files": 1, ', False),
        ('"checkpoint_sha256": "a", "files": 2, ', True),  # the same, exported in a further format
        ('"checkpoint_sha256": "b", "files": 2, ', False),
        ('"checkpoint_sha256": "b", "normDir": true, ', False),
        (None, False),
    ):
        old.write_text("of a case of an earlier run")
        old_record.write_text(RECORD)
        description.write_text(text + DESCRIPTION) if text else description.unlink()
        result = infer(*arguments)
        assert result.returncode == 0 and old.exists() == old_record.exists() == stays
        assert ("result(s) of another model" in result.stdout) == (not stays)
        assert record.exists() == (text is not None) and other.read_text() == "mine"
        assert {f"{name}_0.bin" for name in volumes} < {path.name for path in outputs.iterdir()}


@pytest.mark.parametrize("key", ["dstRes", "normDir", "intensity"])
def test_volumes_of_another_grid_are_refused(infer, weights, tmp_path, write_case, key):
    """They have the size that the model expects, so its results would look like any."""
    image, reference = write_case(tmp_path, "Case0")
    config = override_config(vnet_cfg, [f"VolSize={','.join(map(str, GRID))}"])
    description = {"configuration": {name: config[name] for name in CONFIGURATION}}
    model = shutil.copy(weights, tmp_path)
    # Not formatted as the volumes' records are.
    (tmp_path / "vnet.json").write_text(json.dumps(description, separators=(",", ":")))
    arguments = f"--mindir_path={model}", "--device_type=CPU"
    attempts, folder = [Attempt(Case("Case0", image, reference))], tmp_path / "results" / "bin_data"
    write_attempts(attempts, config, folder)
    assert infer(*arguments).returncode == 0
    record = (tmp_path / "result_Files" / "Case0_0.json").read_text()
    assert record == (folder / "Case0.json").read_text()
    other = {
        "dstRes": "dstRes=2,2,3",
        "normDir": "normDir=true",
        "intensity": "intensity=equalize",
    }
    write_attempts(attempts, override_config(config, [other[key]]), folder)
    fails(infer(*arguments), 1, "Case0.json: a volume of another network grid", "preprocess.py")


@pytest.mark.parametrize(
    ("text", "found"),
    [('{"VolSize" :[32, 16,\n16]}', "VolSize [32,16,16]"), ("{}", "no VolSize")],
)
def test_a_description_of_another_grid_than_the_weights(
    infer, weights, volumes, tmp_path, text, found
):
    model = shutil.copy(weights, tmp_path / "vnet.vnet")
    (tmp_path / "vnet.json").write_text(text)
    before = everything_in(tmp_path)
    result = infer("--mindir_path", model, "--device_type=CPU")
    fails(result, 1, f"vnet.json: found {found}, expected [16,32,16]", "export.py")
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("earlier", [None, "a description of another model"])
def test_files_that_may_be_the_users_own_stay(infer, weights, volumes, tmp_path, earlier):
    """Without a record beside it, nothing says whose a file is, whatever its name."""
    model, outputs = tmp_path / "vnet.vnet", tmp_path / "result_Files"
    shutil.copy(weights, model)
    (tmp_path / "vnet.json").write_text(DESCRIPTION)
    outputs.mkdir()
    (outputs / "backup_0.bin").write_text("mine")
    for name in ("Case02_0", "Case99_0"):  # the first is of a case of this run
        (outputs / f"{name}.bin").write_text("of an earlier run")
        (outputs / f"{name}.json").write_text(RECORD)
    if earlier:
        (outputs / "model.json").write_text(earlier)
    else:  # known to be a result, but not of which model
        (outputs / "backup_0.json").write_text(RECORD)
        (outputs / "Case99_0.bin").unlink()
    before = tree(outputs)
    result = infer("--mindir_path", model, "--device_type=CPU")
    fails(result, 1, f"{Path('result_Files', 'backup_0.bin')}: of unknown origin", "--output_path")
    assert tree(outputs) == before


@pytest.mark.parametrize("text", [None, DESCRIPTION])
@pytest.mark.parametrize(
    ("theirs", "result"), [(DESCRIPTION.replace("1}", "2}"), None), ("mine", "Case02_0.bin")]
)
def test_a_model_json_that_is_the_users_own_stays(
    infer, weights, volumes, tmp_path, text, theirs, result
):
    """A description without results, or no description."""
    model, outputs = shutil.copy(weights, tmp_path / "vnet.vnet"), tmp_path / "result_Files"
    outputs.mkdir()
    (outputs / "model.json").write_text(theirs)
    if text:
        (tmp_path / "vnet.json").write_text(text)
    if result:
        (outputs / result).write_text("of an earlier run")
    before = tree(outputs)
    result = infer("--mindir_path", model, "--device_type=CPU")
    fails(result, 1, "model.json: of unknown origin", "move it away")
    assert tree(outputs) == before


def test_a_record_that_is_the_users_own_stays(infer, model, volumes, tmp_path):
    outputs = tmp_path / "result_Files"
    outputs.mkdir()
    (outputs / "Case02_0.bin").write_text("of an earlier run")
    (outputs / "Case10_0.json").write_text("mine")
    before = tree(outputs)
    fails(infer(*model.arguments), 1, "Case10_0.json: not written by this program", "move it")
    assert tree(outputs) == before


def test_the_record_of_a_volume_goes_with_its_result(infer, model, volumes, tmp_path):
    """Of one that has none, no result keeps that of an earlier volume."""
    inputs, outputs = tmp_path / "results" / "bin_data", tmp_path / "result_Files"
    for name in ("Case02", "a.b"):
        (inputs / f"{name}.json").write_text(RECORD.replace("0", name))
    (inputs / "Case10.json").write_text("mine")
    assert infer(*model.arguments).returncode == 0
    records = {path.name: path.read_text() for path in outputs.glob("*.json")}
    expected = {f"{name}_0.json": RECORD.replace("0", name) for name in ("Case02", "a.b")}
    assert records == expected
    (inputs / "a.b.json").unlink()
    assert infer(*model.arguments).returncode == 0
    assert [path.name for path in outputs.glob("*.json")] == ["Case02_0.json"]


def test_after_an_early_end_no_earlier_results_are_left(infer, model, volumes, tmp_path):
    """Of the same volumes: otherwise they could be taken for those of this run."""
    inputs, outputs = tmp_path / "results" / "bin_data", tmp_path / "result_Files"
    for name in volumes:
        (inputs / f"{name}.json").write_text(RECORD)
    assert infer(*model.arguments).returncode == 0
    (outputs / "Case99_0.bin").write_text("of another case")
    volumes["Case10"].flat[0] = np.nan  # the second
    volumes["Case10"].tofile(inputs / "Case10.bin")
    result = infer(*model.arguments)
    fails(result, 1, "Case10.bin:")
    assert "replacing 3 result(s) of an earlier run" in result.stdout
    left = {path.name for path in outputs.iterdir()}
    assert left == {"Case02_0.bin", "Case02_0.json", "Case99_0.bin"}
    assert everything_in(tmp_path / "time_Result") == []


def test_after_an_early_end_another_model_can_run(infer, weights, volumes, tmp_path):
    """No description is left that no result is of."""
    arguments = ("--mindir_path", shutil.copy(weights, tmp_path / "vnet.vnet"), "--device_type=CPU")
    volume = tmp_path / "results" / "bin_data" / "Case02.bin"  # the first
    for path in volume.parent.iterdir():
        path.with_suffix(".json").write_text(RECORD)
    (tmp_path / "vnet.json").write_text(DESCRIPTION)
    assert infer(*arguments).returncode == 0
    good = volume.read_bytes()
    np.full_like(volumes["Case02"], np.nan).tofile(volume)
    fails(infer(*arguments), 1, "Case02.bin:")
    assert everything_in(tmp_path / "result_Files") == []
    volume.write_bytes(good)
    (tmp_path / "vnet.json").write_text(DESCRIPTION.replace("1}", "2}"))
    assert infer(*arguments).returncode == 0


def test_the_longest_name_and_what_a_killed_run_left(infer, model, volumes, tmp_path):
    inputs, outputs = tmp_path / "results" / "bin_data", tmp_path / "result_Files"
    outputs.mkdir()
    for name in (f".vnet.{os.getpid()}.tmp", ".vnet.tmp", ".vnet.99999999.tmp"):
        (outputs / name).write_text("half of a result")
    longest = "n" * (255 - len("_0.json"))
    (inputs / "Case10.bin").rename(inputs / f"{longest}.bin")
    (inputs / f"{longest}.json").write_text(RECORD)
    result = infer(*model.arguments)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in outputs.iterdir()} == {
        *(f".vnet.{os.getpid()}.tmp", ".vnet.tmp", "Case02_0.bin", "a.b_0.bin"),
        *(f"{longest}_0.bin", f"{longest}_0.json"),
    }


def test_help(infer):
    result = infer("--help")
    assert (result.returncode, result.stderr) == (0, "")
    flags = "mindir_path dataset_path output_path device_type runtime device_id threads precision"
    assert re.findall(r"^  --(\w+)", result.stdout, re.MULTILINE) == flags.split()


# ----------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", ("--mindir_path", "nothing")),
        ("--device_type CPU", ("--mindir_path", "nothing")),
        ("--mindir_path", ("--mindir_path", "no value", "--mindir_path=VALUE")),
        ("--mindir_path=", ("--mindir_path", "no value")),
        ("--mindir_path --threads 1", ("--mindir_path", "no value")),
        ("--mindir m", ("--mindir:", "unknown")),
        ("--mindir_paths m", ("--mindir_paths:", "unknown")),
        ("m", ("m:", "unknown")),
        ("--mindir_path m --device_type GPU", ("--device_type", "'GPU'", "Ascend or CPU")),
        ("--mindir_path m --device_type cpu", ("--device_type", "'cpu'")),
        ("--mindir_path m --device_id -1", ("--device_id", "'-1'", "from 0 to")),
        ("--mindir_path m --device_id x", ("--device_id", "'x'")),
        ("--mindir_path m --threads 0", ("--threads", "'0'", "from 1 to")),
        ("--mindir_path m --threads 2x", ("--threads", "'2x'")),
        ("--mindir_path m --threads 1.5", ("--threads", "'1.5'")),
        ("--mindir_path m --threads 99999999999999999999", ("--threads", "9999")),
        ("--mindir_path m --threads 2", ("--threads", "Ascend", "CPU only")),
        ("--mindir_path m --runtime Lite", ("--runtime", "'Lite'", "native or lite")),
        ("--mindir_path m --runtime native", ("--runtime", "native with --device_type Ascend")),
        ("--mindir_path m --precision int8", ("--precision", "'int8'", "fp32 or fp16")),
        ("--mindir_path m --device_type=CPU --precision fp16", ("--precision", "fp16", "fp32")),
    ],
)
def test_bad_options(infer, tmp_path, arguments, words):
    fails(infer(*arguments.split()), 2, *words)
    assert everything_in(tmp_path) == []


def test_an_error_is_one_line_without_control_characters(infer):
    arguments = "--mindir_path=m", "--device_type=CPU", "--dataset_path=a\n\x1b[2Jb"
    fails(infer(*arguments), 1, "error: a??[2Jb: cannot be read")


@pytest.mark.parametrize(
    ("grid", "threads", "words"),
    [((1024,) * 3, 1, "out of memory"), (GRID, 1024, "cannot start a thread (Resource")],
)
def test_too_little_memory(plain, volumes, tmp_path, grid, threads, words):
    write_weights(seeded_vnet("monai", 2), grid, tmp_path / "m.vnet")
    limit = ["prlimit", "--as=1000000000"]
    arguments = "--mindir_path=m.vnet", "--device_type=CPU", f"--threads={threads}"
    fails(run([*limit, plain, *arguments], cwd=tmp_path), 1, words)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--output_path=results/bin_data"],
        ["--output_path", "./results/../results/bin_data/"],
        ["--output_path=a link"],
        ["--dataset_path=a link", "--output_path=results/bin_data"],
        ["--dataset_path=result_Files"],  # which is the other's default
    ],
)
def test_results_among_the_volumes(infer, model, volumes, tmp_path, arguments):
    """A later run would take them for volumes."""
    (tmp_path / "a link").symlink_to("results/bin_data")
    (tmp_path / "result_Files").mkdir()
    before = everything_in(tmp_path)
    result = infer(*model.arguments, *arguments)
    fails(result, 2, "--output_path:", "--dataset_path", "another")
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("model", ["lite"], indirect=True)
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("missing", ("is no file", "export.py")),
        ("network_3", ("can't be built", "version 1", "NAME_lite.mindir")),
        ("truncated", ("can't be built",)),
        ("empty", ("can't be built",)),
        ("text", ("can't be built",)),
        ("two_inputs", ("inputs: found 2", "one of float32")),
        ("two_outputs", ("outputs: found 2", "one of float32")),
        ("integers", ("inputs: found one of data type 34", "float32")),
    ],
)
def test_bad_models_of_lite(infer, models, volumes, tmp_path, bad, words):
    before = everything_in(tmp_path)
    path = models / f"{bad}.mindir"
    fails(infer("--mindir_path", path, *LITE), 1, str(path), *words)
    assert everything_in(tmp_path) == before


def test_a_weight_file_is_none_for_lite(infer, weights, lite_home, volumes, tmp_path):
    before = everything_in(tmp_path)
    result = infer("--mindir_path", weights, *LITE)
    fails(result, 1, f"{weights}: is a weight file", "NAME_lite.mindir")
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.vnet", ("is no file", "export.py")),
        ("loop.vnet", ("is no file", "export.py")),
        ("a.mindir", ("is a MindIR file", "NAME.vnet", "--runtime lite")),
        ("text.vnet", ("no weight file of a V-Net", "export.py")),
        ("cut.vnet", ("found", "bytes, expected", "export.py")),
    ],
)
def test_bad_models(infer, weights, volumes, tmp_path, name, words):
    whole = weights.read_bytes()
    contents = {"text.vnet": b"no model\n", "cut.vnet": whole[:-64], "a.mindir": whole}
    if name == "loop.vnet":
        (tmp_path / name).symlink_to(name)
    elif name != "missing.vnet":
        (tmp_path / name).write_bytes(contents.get(name, whole))
    before = everything_in(tmp_path)
    result = infer("--mindir_path", name, "--device_type", "CPU")
    fails(result, 1, f"error: {name}:", *words)
    assert everything_in(tmp_path) == before


def no_folder(inputs):
    inputs.rename(inputs.with_name("elsewhere"))


def no_volume(inputs):
    for path in inputs.iterdir():
        path.rename(path.with_suffix(".txt"))


def a_file_for_a_folder(inputs):
    no_folder(inputs)
    inputs.touch()


def too_long(inputs):
    np.zeros(8193, np.float32).tofile(inputs / "a.b.bin")


def empty(inputs):
    (inputs / "a.b.bin").write_bytes(b"")


def dangling_link(inputs):
    (inputs / "z.bin").symlink_to("missing")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_folder, ("results/bin_data:", "No such file")),
        (a_file_for_a_folder, ("results/bin_data:", "Not a directory")),
        (no_volume, ("results/bin_data:", "no .bin file", "preprocess.py")),
        (
            too_long,
            ("a.b.bin:", "32772 bytes", "32768", "float32", "(1, 1, 16, 32, 16)", "preproc"),
        ),
        (empty, ("a.b.bin:", "0 bytes", "32768")),
        (dangling_link, ("z.bin:", "No such file")),
    ],
)
def test_bad_volumes_are_found_before_the_first_inference(
    infer, model, volumes, tmp_path, spoil, words
):
    spoil(tmp_path / "results" / "bin_data")
    before = everything_in(tmp_path)
    fails(infer(*model.arguments), 1, *words)
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize(
    ("model", "bad"), [("native", np.nan), ("lite", np.inf)], indirect=["model"]
)
def test_output_that_is_not_finite(infer, model, volumes, tmp_path, bad):
    volumes["Case10"].flat[83] = bad
    volumes["Case10"].tofile(tmp_path / "results" / "bin_data" / "Case10.bin")
    result = infer(*model.arguments)
    fails(result, 1, "Case10.bin:", "NaN or infinite", "--precision fp32")
    # What was whole before stays.
    assert [path.name for path in (tmp_path / "result_Files").iterdir()] == ["Case02_0.bin"]
    assert everything_in(tmp_path / "time_Result") == []


def folder_is_a_file(folder):
    (folder / "result_Files").touch()
    return "result_Files:"


def output_is_a_folder(folder):
    (folder / "result_Files" / "Case10_0.bin").mkdir(parents=True)
    return "result_Files/Case10_0.bin:"


def record_is_a_loop(folder):
    (folder / "result_Files").mkdir()
    (folder / "result_Files" / "Case10_0.json").symlink_to("Case10_0.json")
    return "result_Files/Case10_0.json:"


def name_is_too_long(folder):
    name = "n" * (256 - len("_0.json"))
    volume = folder / "results" / "bin_data" / "Case10.bin"
    volume.rename(volume.with_stem(name))
    return f"result_Files/{name}_0.json:"


def times_are_a_file(folder):
    (folder / "time_Result").touch()
    return "time_Result:"


def times_file_is_a_folder(folder):
    (folder / "time_Result" / "test_perform_static.txt").mkdir(parents=True)
    return "time_Result/test_perform_static.txt:"


@pytest.mark.parametrize(
    "spoil",
    [
        *(folder_is_a_file, output_is_a_folder, record_is_a_loop, name_is_too_long),
        *(times_are_a_file, times_file_is_a_folder),
    ],
)
def test_unwritable(infer, model, volumes, tmp_path, spoil):
    spoilt = spoil(tmp_path)
    result = infer(*model.arguments)
    fails(result, 1, spoilt, "cannot be written", "space left")
    assert " ms, " not in result.stdout  # before the first inference
    assert not [path for path in everything_in(tmp_path) if path.name.startswith(".")]


def test_full_disk(infer, model, volumes, tmp_path, full_disk):
    (tmp_path / "results" / "bin_data" / "Case02.json").write_text(RECORD)
    with full_disk(100):
        result = infer(
            *model.arguments,
            restore_signals=False,  # SIGXFSZ stays ignored, and writing fails
        )
    fails(result, 1, "result_Files/Case02_0.bin:", "File too large")
    assert everything_in(tmp_path / "result_Files") == []


@pytest.mark.parametrize("model", ["lite"], indirect=True)
def test_ascend_without_its_libraries(infer, models, volumes, tmp_path):
    if shutil.which("npu-smi"):
        pytest.skip("this machine has an Ascend device")
    before = everything_in(tmp_path)
    result = infer("--mindir_path", models / "network.mindir")
    fails(result, 1, "network.mindir:", "driver and CANN", "--device_type CPU")
    assert "libgraph.so" in result.stdout  # Lite's log, which says what is missing
    assert everything_in(tmp_path) == before


# ----------------------------------------------------- what MindSpore Lite is told and may answer

INCLUDES = """
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include "include/api/context.h"
#include "include/api/model.h"
namespace mindspore {
"""
BUILD = """
Status Model::Build(const std::vector<char>&, ModelType, const std::shared_ptr<Context>& context) {
  const auto ascend = context->MutableDeviceInfo().at(0)->Cast<AscendDeviceInfo>();
  std::printf("Ascend %u '%s'\\n", ascend->GetDeviceID(), ascend->GetPrecisionMode().c_str());
  return kLiteError;
}
}
"""
PREDICT = """
Status Model::Predict(const std::vector<MSTensor>&, std::vector<MSTensor>*,
                      const MSKernelCallBack&, const MSKernelCallBack&) {
  if (std::getenv("THROWS") != nullptr) throw std::runtime_error("lost device\\nin line 7");
  if (std::getenv("THROWS_7") != nullptr) throw 7;
  return Status(kLiteMemoryFailed);
}
}
"""


@pytest.fixture(scope="module")
def preloaded(lite_home, tmp_path_factory):
    """Function that compiles a stand-in for functions of Lite -> environment that loads it."""

    def compile(code):
        folder = tmp_path_factory.mktemp("preloaded")
        (folder / "code.cc").write_text(INCLUDES + code)
        headers = next(Path(lite_home).glob("**/include/api/model.h")).parents[2]
        command = ["c++", "-std=c++17", "-shared", "-fPIC", "-isystem", headers, "code.cc"]
        subprocess.run([*command, "-o", "code.so"], cwd=folder, check=True)
        return os.environ | {"LD_PRELOAD": str(folder / "code.so")}

    return compile


@pytest.mark.parametrize("model", ["lite"], indirect=True)
def test_settings_of_an_ascend_device(plain, preloaded, models, volumes, tmp_path):
    environment = preloaded(BUILD)
    program = plain.with_name("main_lite")  # in which main continues
    for arguments, told in (
        ([], "Ascend 0 ''"),
        (["--device_id", "3", "--precision=fp16"], "Ascend 3 'enforce_fp16'"),
        (["--device_type=Ascend", "--precision=fp32"], "Ascend 0 'preferred_fp32'"),
    ):
        command = [program, "--mindir_path", models / "network.mindir", *arguments]
        result = run(command, cwd=tmp_path, env=environment)
        assert told in result.stdout
        fails(result, 1, "can't be built", "driver and CANN")


@pytest.mark.parametrize("model", ["lite"], indirect=True)
def test_inference_that_fails(plain, preloaded, models, volumes, tmp_path):
    environment = preloaded(PREDICT)
    command = [plain.with_name("main_lite"), "--mindir_path", models / "network.mindir", *LITE]
    for variable, words in (
        *(("NOTHING", "Fail to create memory"), ("THROWS", "lost device)")),
        ("THROWS_7", "unknown error)"),
    ):
        result = run(command, cwd=tmp_path, env=environment | {variable: "1"})
        fails(result, 1, "Case02.bin: inference fails", words)
        assert everything_in(tmp_path / "result_Files") == []


@pytest.mark.parametrize("model", ["lite"], indirect=True)
def test_no_memory_for_the_input(plain, preloaded, model, volumes, tmp_path):
    environment = preloaded("void* MSTensor::MutableData() { return nullptr; }\n}\n")
    result = run([plain, *model.arguments], cwd=tmp_path, env=environment)
    fails(result, 1, "MindSpore Lite has no memory for the input")


# ------------------------------------------------------------------------------- the library in C


def compiled_viewer(folder, library, *flags):
    """viewer.c, compiled as a user of the library would."""
    program = folder / "viewer"
    command = ["cc", "-std=c89", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-I{library.parent}"]
    command += [ROOT / "tests" / "export" / "viewer.c", library, *flags, "-o", program]
    result = run([*command, "-lstdc++", "-lm", "-pthread"])
    assert result.returncode == 0, result.stderr
    return program


def test_a_program_in_c(tmp_path, sanitized, sanitizer_options, weights):
    """It computes what Python computes, and survives files that are damaged anywhere."""
    program = compiled_viewer(
        tmp_path, sanitized.with_name("libvnet_cpu.a"), "-fsanitize=address,undefined"
    )
    volume = np.random.default_rng(3).normal(size=(1, 1, *GRID)).astype(np.float32)
    volume.tofile(tmp_path / "volume.bin")
    whole, damaged = weights.read_bytes(), []
    random = np.random.default_rng(4)
    for number in range(200):
        path = tmp_path / f"{number}.vnet"
        content = bytearray(whole)
        if number % 4 == 0:
            content = content[: random.integers(len(content))]
        elif number % 4 == 1:
            content[random.integers(len(content))] ^= 1 << random.integers(8)
        else:  # numbers of the header and the table
            for _ in range(random.integers(1, 4)):
                start = 4 * random.choice([*range(2, 31), *range(32, 100)])  # not epsilon
                content[start : start + 4] = random.bytes(4)
            if number % 4 == 3:
                content = sealed(content)
        path.write_bytes(content)
        if bytes(content) != whole:
            damaged.append(path)
    result = run(
        [program, "volume.bin", "output.bin", weights, *damaged],
        cwd=tmp_path,
        env=os.environ | sanitizer_options,
    )
    assert (result.returncode, result.stderr) == (0, "")
    first, *messages = result.stdout.splitlines()
    assert first == "16 32 16, 3 threads"
    assert len(messages) == len(damaged)
    for message, path in zip(messages, damaged, strict=True):
        assert message.startswith(f"{path}: ") and "export.py" in message
    found = np.fromfile(tmp_path / "output.bin", np.float32).reshape(1, *GRID)
    np.testing.assert_allclose(found, run_weights(weights, volume), rtol=0, atol=1e-4)


# --------------------------------------------------------------------------------------- build.sh


def test_second_build_compiles_nothing(sources, plain, lite):
    programs = [plain, *[plain.with_name("main_lite")] * len(lite)]
    before = [program.stat().st_mtime_ns for program in programs]
    for environment in (lite, {}):
        result = build(sources, **environment)
        assert result.returncode == 0
        assert "Building" not in result.stdout
        assert [program.stat().st_mtime_ns for program in programs] == before


@pytest.mark.parametrize("model", ["native", "lite"], indirect=True)
def test_needs_no_library_path(plain, model, volumes, tmp_path):
    assert run([plain, *model.arguments], cwd=tmp_path, env={}).returncode == 0


def test_the_native_runtime_needs_no_mindspore(plain):
    libraries = run(["ldd", plain]).stdout
    assert "libc.so" in libraries and "mindspore" not in libraries


def test_main_without_lite_says_how_to_build_it(plain, tmp_path):
    alone = shutil.copy(plain, tmp_path / "main")
    for arguments in (["--device_type=CPU", "--runtime=lite"], []):
        result = run([alone, "--mindir_path=m", *arguments], cwd=tmp_path)
        fails(result, 1, f"{tmp_path / 'main_lite'}: cannot be started", "build.sh --runtime lite")


def test_the_program_of_lite_refuses_the_other_runtime(plain, lite_home):
    words = ["--mindir_path=m", "--device_type=CPU", "--runtime=native"]
    fails(run([plain.with_name("main_lite"), *words]), 2, "--runtime", "native", "main")


@pytest.mark.parametrize("model", ["lite"], indirect=True)
def test_official_package(sanitized, sanitizer_options, model, volumes, tmp_path):
    """All of its folders the program must find by itself."""
    result = run([sanitized, *model.arguments], cwd=tmp_path, env=sanitizer_options)
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(list((tmp_path / "result_Files").iterdir())) == len(volumes)


@pytest.mark.parametrize("folders", [(), ("include/api", "lib"), ("runtime/include/api",)])
def test_lite_home_that_is_none(tmp_path, folders):
    home = tmp_path / "lite home"
    for folder in folders:
        (home / folder).mkdir(parents=True)
        if folder.endswith("api"):
            (home / folder / "model.h").touch()
    result = build(copy_of_sources(tmp_path), LITE_HOME=str(home))
    fails(result, 1, f"LITE_HOME '{home}'", "include/api/model.h", "unset it")


def bash_script(path, text):
    return str(write_executable(path, f"#!/bin/bash\n{text}\n"))


def test_no_download_for_another_processor(tmp_path):
    bash_script(
        tmp_path / "bin" / "uname", 'if [[ $1 == -m ]]; then echo arm; else echo "Linux"; fi'
    )
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    result = build(copy_of_sources(tmp_path), "--runtime", "lite", PATH=path)
    fails(result, 1, "x86-64 Linux only", "LITE_HOME")


def test_the_arguments_of_the_build(tmp_path):
    sources = copy_of_sources(tmp_path)
    for flag in ("--help", "-h"):
        result = build(sources, flag)
        assert (result.returncode, result.stderr) == (0, "")
        assert "build.sh [--runtime native|lite]" in result.stdout
    fails(build(sources, "--runtime=GPU"), 2, "--runtime 'GPU' is not native or lite")
    assert not (sources / "build").exists()


@pytest.fixture
def as_anybody():
    """Words before a command that let file permissions hold for it."""
    if os.geteuid() != 0:
        return []
    words = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
    if shutil.which("setpriv") is None or run([*words, "true"]).returncode != 0:
        pytest.skip("root may write anywhere")
    return words


@pytest.mark.parametrize("is_built", [False, True])
@pytest.mark.parametrize("protected", [".", "build"])
def test_a_folder_of_another_user(tmp_path, as_anybody, is_built, protected):
    sources = copy_of_sources(tmp_path)
    if protected == "build":
        (sources / "build").mkdir()
    if is_built:
        bash_script(sources / "out" / "main", "exit 0")
    (sources / protected).chmod(0o555)
    before = everything_in(sources)
    result = build(sources, before=as_anybody)
    (sources / protected).chmod(0o755)
    if is_built:
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout == f"{sources} cannot be written: out/main stays as it is\n"
    else:
        fails(result, 1, f"{sources} cannot be written", "its owner", "take a copy")
        assert result.stdout == ""
    assert everything_in(sources) == before


@pytest.mark.skipif(platform.machine() != "x86_64", reason="nothing is downloaded")
@pytest.mark.parametrize(
    ("pip", "words"),
    [
        ("exit 1", ("could not download", "LITE_HOME")),
        ("", ("is not the MindSpore Lite", "SHA-256")),
        ("kill -KILL $PPID", None),
    ],
)
def test_download_that_fails(tmp_path, pip, words):
    sources = copy_of_sources(tmp_path)
    partial_wheel = 'while [[ $1 != --dest ]]; do shift; done; echo PK >"$2/part.whl"'
    python = bash_script(tmp_path / "bin" / "python", f"{partial_wheel}\n{pip}")
    result = build(sources, "--runtime", "lite", PYTHON=python)
    if words:
        fails(result, 1, *words)
        assert not (sources / "build" / "download").exists()
    assert not (sources / "lite").exists()
    # Nor does a later run take what was left for the library.
    python = bash_script(tmp_path / "bin" / "python", "exit 1")
    result = build(sources, "--runtime", "lite", PYTHON=python)
    fails(result, 1, "could not download")


@pytest.mark.parametrize("missing", ["cmake", "make", "g++"])  # Debian's packages are called so
def test_missing_tools(tmp_path, missing):
    (tmp_path / "bin").mkdir()
    for tool in {"bash", "dirname", "cmake", "make", "g++"} - {missing}:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    result = build(copy_of_sources(tmp_path), PATH=str(tmp_path / "bin"))
    fails(result, 1, f"apt-get install {missing} ")
