"""The proof: a checkpoint gives the same masks in Python and through the real C++ program.

Its part with MindSpore Lite needs the library, which `ascend310_infer/build.sh` downloads on x86-64
Linux.
"""

import os
import platform
import re
import subprocess
import sys
from typing import NamedTuple

import mindspore as ms
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from src.checkpoint import save_weights
from src.commands import run_script
from src.config import config_of_checkpoint, override_config, save_config, vnet_cfg
from src.data_manager import find_cases, read_case
from src.evaluation import load_network
from src.export.lowered_vnet import LoweredVNet
from src.export.mindir import to_version_1
from src.export.weight_file import write_weights
from src.metrics import case_metrics
from src.predictor import foreground_probability, network_inputs, segment_outputs
from src.promise12.phantom import write_phantom
from src.utils.process import change_folder
from src.vnet import VARIANTS, create_vnet
from tests.helpers import ROOT, run_program
from tests.networks import computed_once, seeded_vnet
from tests.rounding import LAYER_ERROR, assert_same_sums, perturb
from tests.volumes import stored_in_order

MAIN = ROOT / "ascend310_infer" / "out" / "main"
TRAINING = (
    *("VolSize=32,32,16", "dstRes=3.5,3.5,4.5", "width=4", "batch_size=2", "cache_dir=off"),
    *("epochs=24", "save_interval=24", "warmup_step=5", "lr=0.01"),
)
FLIP = ("--set", "flip_average=true")  # which the model leaves to its user

HAS_LITE = "LITE_HOME" in os.environ or (sys.platform, platform.machine()) == ("linux", "x86_64")


needs_lite = pytest.mark.skipif(
    not HAS_LITE,
    reason="MindSpore Lite is downloaded for x86-64 Linux only; elsewhere set LITE_HOME",
)


def bash(folder, script, *arguments, **variables):
    """Runs a script to its end on the CPU, in a folder; returns what it printed."""
    environment = {**os.environ, "DEVICE_TARGET": "CPU", "WAIT": "1", "PYTHON": sys.executable}
    environment |= variables
    ended = subprocess.run(
        ["bash", ROOT / script, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with phantoms, a split, a checkpoint trained on them, and its evaluation."""
    folder = tmp_path_factory.mktemp("trained")
    write_phantom(folder / "data", cases=6, seed=1)
    # As dcm2niix stores an axial stack, and a left-handed sagittal order.
    for name, order in (("00", ((0, 1, 2), (1, -1, 1))), ("05", ((1, 2, 0), (-1, 1, 1)))):
        for path in (f"img/Case{name}.mhd", f"gt/Case{name}_segmentation.mhd"):
            volume = sitk.ReadImage(str(folder / "data" / path))
            sitk.WriteImage(stored_in_order(volume, *order), str(folder / "data" / path))
    (folder / "train.csv").write_text("".join(f"Case0{number}.mhd\n" for number in range(4)))
    (folder / "val.csv").write_text("Case04.mhd\nCase05.mhd\n")
    settings = [word for setting in TRAINING for word in ("--set", setting)]
    bash(folder, "scripts/train_standalone.sh", 0, "data", "train.csv", *settings)
    (checkpoint,) = folder.glob("results/infer/*/ckpt/last.ckpt")
    bash(folder, "scripts/eval.sh", 0, checkpoint, "data", "val.csv", *FLIP)
    return folder, checkpoint


@pytest.fixture(scope="module")
def exported(trained):
    """The folder of `trained`, with the models of the checkpoint."""
    folder, checkpoint = trained
    with change_folder(folder):
        run_program("export", "--ckpt_file", checkpoint)
    return folder


class Computed(NamedTuple):
    """A case, and what the network computes in Python for it and its mirror image."""

    case_id: str
    image: sitk.Image
    reference: sitk.Image
    outputs: list[np.ndarray]
    spread: float  # how far at most those of a network with perturbed weights are from them


@pytest.fixture(scope="module")
def computed(trained):
    """The configuration with `FLIP`, and a `Computed` of each case of the split."""
    folder, checkpoint = trained
    config = config_of_checkpoint(checkpoint, list(FLIP[1:]))
    network, perturbed = (load_network(checkpoint, config, "CPU") for _ in range(2))
    perturb(perturbed)
    cases = []
    for case in find_cases(folder / "data", ["Case04", "Case05"]):
        image, reference = read_case(case, config)
        volumes = network_inputs(image, config)
        outputs = [foreground_probability(network, volume) for volume in volumes]
        moved = [foreground_probability(perturbed, volume) for volume in volumes]
        spread = np.abs(np.subtract(moved, outputs)).max()
        cases.append(Computed(case.case_id, image, reference, outputs, spread))
    return config, cases


@pytest.fixture(scope="module")
def native(exported):
    """What the whole script prints, which works in the folder `native`."""
    folder = exported / "native"
    folder.mkdir()
    words = ["../vnet.mindir", "../data", "../val.csv", 0, *FLIP]
    return bash(folder, "scripts/run_infer_310.sh", *words, RUNTIME="native")


@pytest.fixture
def lite(exported, native, undrawn, monkeypatch, capsys):
    """The same of MindSpore Lite, in the folder `lite`: its program on the script's volumes."""
    folder = exported / "lite"
    folder.mkdir()
    bash(folder, "ascend310_infer/build.sh", "--runtime", "lite")
    model = ["--mindir_path", "../vnet_lite.mindir"]
    volumes = ["--dataset_path", "../native/results/bin_data", "--output_path", "result_Files"]
    command = [MAIN, *model, *volumes, "--device_type=CPU", "--runtime=lite"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    monkeypatch.chdir(folder)
    cases = ["--data_path", "../data", "--split_file_path", "../val.csv", *FLIP]
    words = ["--result_path", "result_Files", *model, *cases]
    monkeypatch.setattr(sys, "argv", ["postprocess.py", *words])
    run_script("postprocess")
    return capsys.readouterr().out


@pytest.mark.parametrize("runtime", ["native", pytest.param("lite", marks=needs_lite)])
def test_the_310_path_ends_in_the_masks_of_eval(exported, computed, runtime, request):
    printed, results = request.getfixturevalue(runtime), exported / runtime
    python, cpp = exported / "results" / "prediction", results / "results" / "prediction"
    tables = [pd.read_csv(path / "metrics.csv", index_col="case") for path in (python, cpp)]
    for table, text in zip(tables, ((exported / "eval.log").read_text(), printed), strict=True):
        for name, column in (("avg_dice", "dice"), ("avg_Hausdorff_distance", "hausdorff_mm")):
            (mean,) = re.findall(f"^{name}: +(\\S+)", text, re.MULTILINE)
            assert float(mean) == pytest.approx(table[column].mean(), abs=1e-6)
    # Two cases, each with its mirror image.
    time = (results / "time_Result" / "test_perform_static.txt").read_text()
    assert time.startswith("NN inference cost average time: ") and time.endswith("_count 4\n")

    config, cases = computed
    for case_id, image, reference, expected, spread in cases:
        for output, name in zip(expected, ("", "_mirrored"), strict=True):
            found = np.fromfile(results / f"result_Files/{case_id}{name}_0.bin", "<f4")
            assert output.max() > 0.5
            assert np.abs(found.reshape(output.shape) - output).max() < spread < 0.01
            if runtime == "native":  # the same kernels
                np.testing.assert_allclose(found, output.ravel(), rtol=0, atol=1e-5)
        masks = []
        for path, table in zip((python, cpp), tables, strict=True):
            mask = sitk.ReadImage(str(path / f"{case_id}_test.mhd"))
            metrics = case_metrics(reference, mask)
            row = table.loc[case_id]
            assert {key: row[key] for key in metrics} == pytest.approx(metrics, abs=1e-6)
            masks.append(sitk.GetArrayFromImage(mask) > 0)
        assert masks[0].any()
        probability = sitk.GetArrayFromImage(segment_outputs(expected, image, config)[1])
        crossed = probability[masks[0] != masks[1]]  # either way, where it lies at the threshold
        np.testing.assert_allclose(crossed, config.threshold, rtol=0, atol=spread)


@pytest.mark.full
def test_the_310_path_moves_the_grid_to_the_gland_as_eval_does(tmp_path, write_case):
    """With weights that call bright voxels foreground: the input, through the uppermost skip."""
    config = override_config(vnet_cfg, [*TRAINING[:2], "variant=paper", "width=2", "recentre=true"])
    network = create_vnet(config)
    for parameter in network.get_parameters():
        value = np.full(parameter.shape, 0.25 * parameter.name.endswith("relu2.w"), np.float32)
        if parameter.name == "out_tr.conv2.weight":
            value[1, 2:] = 5
        elif parameter.name == "out_tr.conv2.bias":
            value[1] = -8  # half of the probability where the input is 0.8
        parameter.set_data(ms.Tensor(value))
    checkpoint = tmp_path / "run" / "ckpt" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    save_config(config, tmp_path / "run" / "config.json")
    save_weights(network, checkpoint)
    for name, off_mm in (("Case0", 5), ("Case1", 30)):
        paths = write_case(tmp_path / "data", name, size_xyz=(60, 30, 30), spacing_mm=(2, 2, 2))
        for path in paths:
            shifted = sitk.CyclicShift(sitk.ReadImage(str(path)), [off_mm // 2, 0, 0])
            sitk.WriteImage(shifted, str(path))
    (tmp_path / "val.csv").write_text("Case0.mhd\nCase1.mhd\n")
    export = [ROOT / "export.py", "--ckpt_file", checkpoint, "--device_target", "CPU"]
    subprocess.run([sys.executable, *export], cwd=tmp_path, check=True, capture_output=True)
    bash(tmp_path, "scripts/eval.sh", 0, checkpoint, "data", "val.csv")
    by_eval = pd.read_csv(tmp_path / "results" / "prediction" / "metrics.csv", index_col="case")
    further = ("--set", "dirPredictionImage=by_program")
    bash(tmp_path, "scripts/run_infer_310.sh", "vnet.mindir", "data", "val.csv", 0, *further)
    by_program = pd.read_csv(tmp_path / "by_program" / "metrics.csv", index_col="case")
    outputs = {path.name for path in (tmp_path / "result_Files").glob("*_0.bin")}
    assert outputs >= {"Case0_0.bin", "Case1_0.bin"}
    (moved,) = outputs - {"Case0_0.bin", "Case1_0.bin"}
    assert moved.startswith("Case1_about_")
    time = (tmp_path / "time_Result" / "test_perform_static.txt").read_text()
    assert time.endswith("_count 2\n")  # of the first run, of all cases
    assert by_eval["dice"].min() > 0.9
    pd.testing.assert_frame_equal(by_eval, by_program, atol=1e-3)


@pytest.mark.parametrize(
    ("variant", "width", "sides", "with_lite"),
    [
        ("zoo", 16, (16, 16, 16), True),  # channels == X == Y == Z at the first level
        ("paper", 8, (16, 32, 32), True),  # channels == Y == Z at the second
        ("monai", 2, (32, 16, 48), False),
        ("instance", 4, (32, 48, 32), False),
        *(
            pytest.param(variant, 16, (128, 128, 64), True, marks=pytest.mark.full)
            for variant in VARIANTS
        ),
    ],
)
def test_the_program_computes_what_mindspore_computes(variant, width, sides, with_lite, tmp_path):
    """With either runtime. Lite confuses channels and sides that are equal."""
    with_lite = with_lite and HAS_LITE
    bash(tmp_path, "ascend310_infer/build.sh", "--runtime", "lite" if with_lite else "native")
    shape = (1, 1, *sides)
    network = seeded_vnet(variant, width)
    volume = np.random.default_rng(width).normal(size=shape).astype(np.float32)
    expected = computed_once(network, volume)
    models = {"native": tmp_path / "vnet.vnet"}
    write_weights(network, sides, models["native"])
    if with_lite:
        lowered = LoweredVNet(network, shape).set_train(False)
        source = tmp_path / "3.mindir"
        ms.export(lowered, ms.Tensor(volume), file_name=str(source), file_format="MINDIR")
        models["lite"] = tmp_path / "1.mindir"
        to_version_1(source, models["lite"])
    (tmp_path / "in").mkdir()
    volume.tofile(tmp_path / "in" / "Case00.bin")
    for runtime, model in models.items():
        command = [MAIN, f"--mindir_path={model}", "--dataset_path=in", f"--output_path={runtime}"]
        command += ["--device_type=CPU", f"--runtime={runtime}"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        found = np.fromfile(tmp_path / runtime / "Case00_0.bin", "<f4").reshape(expected.shape)
        # The convolutions of both transform.
        assert_same_sums(found, expected, seeded_vnet(variant, width), volume, LAYER_ERROR)
