"""The Python interface gives what the commands give, for any image, from any folder."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mindspore as ms
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

import src as vnet_mindspore
from src.checkpoint import save_weights
from src.commands import run_script
from src.config import save_config
from src.data_manager import find_cases
from src.ensemble import Member
from src.export.release import release
from src.fast_conv3d.build import cache_folder
from src.images.reading import read_volume
from src.utils.errors import DataError, UsageError
from src.utils.files import hash_file
from src.vnet import create_vnet
from tests.dicom_study import write_series
from tests.helpers import ROOT, tree
from tests.volumes import geometry_error, stored_in_order


@pytest.fixture(scope="module")
def config(small_config):
    return small_config("VolSize=32,32,16", "dstRes=1.25,1.25,2.5", "threshold=0.45")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, config):
    """A run with the random weights of a fresh network, whose masks are large and ragged.

    With other seeds the probability may exceed 0.99 somewhere, or the threshold nowhere.
    """
    folder = tmp_path_factory.mktemp("runs") / "vnet.promise12.20260101_000000"
    (folder / "ckpt").mkdir(parents=True)
    save_config(config, folder / "config.json")
    ms.set_seed(1)
    save_weights(create_vnet(config), folder / "ckpt" / "best.ckpt")
    return folder


@pytest.fixture(scope="module")
def model(run_folder):
    return vnet_mindspore.load(run_folder, "CPU")


@pytest.fixture(scope="module")
def images(tmp_path_factory, write_case, oblique):
    """{name: path} of images in several voxel types, orientations and formats."""
    folder = tmp_path_factory.mktemp("images")
    source = sitk.ReadImage(str(write_case(folder / "first", "Case0", direction=oblique)[0]))
    turned = stored_in_order(source, (2, 0, 1), (1, -1, -1))
    paths = {
        "int16": (source, ".mhd"),
        "turned": (turned, ".nrrd"),
        "uint8": (sitk.Cast(sitk.RescaleIntensity(source, 0, 255), sitk.sitkUInt8), ".mha"),
        "uint32": (sitk.Cast(source, sitk.sitkUInt32), ".mha"),
        "float32": (sitk.Cast(source, sitk.sitkFloat32) * 0.37, ".nii.gz"),
        "float64": (sitk.Cast(turned, sitk.sitkFloat64) * 1e-3 + 0.1, ".mha"),
    }
    for name, (image, suffix) in paths.items():
        paths[name] = folder / f"{name}{suffix}"
        sitk.WriteImage(image, str(paths[name]))
    return paths | {"dicom": write_series(folder / "dicom", sitk.GetArrayFromImage(source))}


def call(monkeypatch, command, *arguments):
    monkeypatch.setattr(sys, "argv", [f"{command}.py", *map(str, arguments)])
    run_script(command)


def voxels(image):
    return sitk.GetArrayFromImage(image)


# Segmentation ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def predicted(images, run_folder, tmp_path_factory):
    """Folder of what predict.py makes of `images`."""
    folder = tmp_path_factory.mktemp("predicted")
    with pytest.MonkeyPatch.context() as patch:
        call(
            patch,
            "predict",
            *("--device_target", "CPU", "--ckpt_path", run_folder / "ckpt" / "best.ckpt"),
            *("--output_path", folder, "--save_probability", "--input", *images.values()),
        )
    return folder


@pytest.mark.parametrize(
    "name", ["int16", "turned", "uint8", "uint32", "float32", "float64", "dicom"]
)
def test_masks_and_probabilities_are_those_of_predict(model, images, predicted, name):
    path = images[name]
    suffix = ".nii.gz" if name == "dicom" else "".join(path.suffixes)
    expected = read_volume(predicted / f"{name}_test{suffix}")
    probability = read_volume(predicted / f"{name}_probability{suffix}")
    assert 0.02 < voxels(expected).mean() < 0.98
    given = read_volume(path)
    for image in (given, path, str(path)):
        mask = model.segment(image)
        assert mask.GetPixelID() == sitk.sitkUInt8
        np.testing.assert_array_equal(voxels(mask), voxels(expected))
        assert geometry_error(mask, given) == 0
        found = model.probability(image)
        assert found.GetPixelID() == sitk.sitkFloat32
        np.testing.assert_array_equal(voxels(found), voxels(probability))
        assert geometry_error(found, given) == 0


def test_an_image_stays_as_it_is(model, images):
    image = sitk.ReadImage(str(images["turned"]))
    before = voxels(image), image.GetPixelID(), image.GetDirection()
    model.segment(image)
    np.testing.assert_array_equal(voxels(image), before[0])
    assert (image.GetPixelID(), image.GetDirection()) == before[1:]


def noise(*shape, dtype=np.float32):
    return np.random.default_rng(1).normal(100, 20, shape).astype(dtype)


def with_one(value, dtype=np.float32):
    array = noise(8, 9, 10, dtype=dtype)
    array[3, 4, 5] = value
    return array


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (sitk.GetImageFromArray(noise(9, 10)), ["(10, 9)", "3-D scalar"]),
        (sitk.GetImageFromArray(noise(2, 8, 9, 10), isVector=False), ["(10, 9, 8, 2)"]),
        (sitk.GetImageFromArray(noise(8, 9, 10, 3), isVector=True), ["3 component(s)"]),
        (sitk.GetImageFromArray(noise(8, 9, 10, dtype=np.complex64)), ["complex"]),
        (sitk.GetImageFromArray(with_one(np.nan)), ["1 voxels are NaN or infinite"]),
        (sitk.GetImageFromArray(with_one(np.inf)), ["1 voxels are NaN or infinite"]),
        (sitk.GetImageFromArray(with_one(1e300, np.float64)), ["NaN or infinite"]),
        (sitk.GetImageFromArray(noise(1, 9, 10)), ["one slice"]),
        (sitk.GetImageFromArray(np.full((8, 9, 10), 7.0)), ["every voxel is 7"]),
        (sitk.GetImageFromArray((noise(8, 9, 10) > 100).astype(np.uint8)), ["label map"]),
        (sitk.Image(10, 9, 8, sitk.sitkLabelUInt8), ["label of 8-bit", "3-D scalar"]),
    ],
)
def test_images_that_cannot_be_segmented(model, image, words):
    with pytest.raises(DataError) as error:
        model.segment(image)
    assert all(word in str(error.value) for word in ["the image: ", *words])


def test_an_image_without_contrast_on_the_network_grid_is_named(model, make_image, tmp_path):
    array = np.zeros((90, 12, 90), np.float32)
    array[0] = np.random.default_rng(0).uniform(50, 90, (12, 90))
    path = tmp_path / "Case0.nrrd"
    sitk.WriteImage(make_image(array), str(path))
    for image, name in (
        (path, str(path)),
        (str(path), str(path)),
        (read_volume(path), "the image"),
    ):
        with pytest.raises(DataError) as error:
            model.segment(image)
        assert str(error.value).startswith(f"{name}: no contrast within 40 x 40 x 40 mm")


def test_a_path_with_nothing_there(model, tmp_path):
    with pytest.raises(DataError, match=r"scan\.nii\.gz: no such file"):
        model.segment(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (None, ["image", "NoneType", "SimpleITK image or a path"]),
        (noise(8, 9, 10), ["image", "ndarray", "SimpleITK image or a path"]),
        (b"scan.mha", ["image", "bytes"]),
        ("", ["image", "empty"]),
    ],
)
def test_what_is_no_image(model, image, words):
    with pytest.raises(UsageError) as error:
        model.segment(image)
    assert all(word in str(error.value) for word in words)


def test_a_series_goes_with_a_path(model, images):
    with pytest.raises(UsageError, match="series='T2': goes with a path"):
        model.segment(sitk.ReadImage(str(images["int16"])), series="T2")


def test_threads_take_turns(model, images):
    expected = voxels(model.probability(images["int16"]))
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(model.probability, [images["int16"]] * 6))
    for probability in found:
        np.testing.assert_array_equal(voxels(probability), expected)


# Models ------------------------------------------------------------------------------------------


def test_a_checkpoint_a_run_and_a_release_are_loaded(run_folder, model, images, tmp_path):
    checkpoint = run_folder / "ckpt" / "best.ckpt"
    assert (model.checkpoint, model.device_target) == (checkpoint, "CPU")
    expected = voxels(model.segment(images["int16"]))
    release([Member(checkpoint, model.config, hash_file(checkpoint))], tmp_path / "released")
    for path in (checkpoint, str(run_folder), run_folder / "ckpt", tmp_path / "released"):
        other = vnet_mindspore.load(path, "CPU")
        assert other.config.VolSize == [32, 32, 16]
        if path not in (checkpoint, tmp_path / "released"):
            assert other.checkpoint == checkpoint
            continue
        found = voxels(other.segment(images["int16"]))
        # A release holds float16 weights.
        assert (found != expected).mean() < (1e-9 if path == checkpoint else 0.02)


def test_overrides(run_folder, model, images):
    """As values by their keys, or as words of a command line."""
    overrides = {"threshold": 0.55, "flip_average": True, "dstRes": [1.5, 1.5, 3]}
    changed = vnet_mindspore.load(run_folder, "CPU", overrides=overrides)
    assert (changed.config.threshold, changed.config.flip_average) == (0.55, True)
    assert changed.config.dstRes == [1.5, 1.5, 3.0]
    assert model.config.threshold == 0.45
    probability = voxels(changed.probability(images["int16"]))
    mask = voxels(changed.segment(images["int16"]))
    assert mask.any() and (probability[mask == 1] > 0.55).all()
    numpy = {**overrides, "threshold": np.float32(0.55), "dstRes": np.array([1.5, 1.5, 3])}
    assert vnet_mindspore.load(run_folder, "CPU", overrides=numpy).config == changed.config
    words = ["threshold=0.55", "flip_average=true", "dstRes=1.5,1.5,3"]
    assert vnet_mindspore.load(run_folder, "CPU", overrides=words).config == changed.config


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"treshold": 0.4}, ["treshold", "threshold"]),
        ({"threshold": 2}, ["threshold", "2"]),
        ({"width": 8}, ["width", "config.json"]),
        ({"epochs": 7}, ["epochs=7", "config.json has epochs=", "leave it out"]),
        ({"dirPredictionImage": None}, ["dirPredictionImage is None", "expected text"]),
        ({5: 1}, ["5", "name of a configuration key"]),
        ({"cache_dir": False}, ["cache_dir is False", "expected text"]),
        ({"cache_dir": ["a", "b"]}, ["cache_dir is ['a', 'b']", "expected text"]),
        (None, ["overrides=None", "'threshold': 0.4"]),
        ("threshold=0.4", ["overrides='threshold=0.4'", "['threshold=0.4']"]),
        ([0.4], ["overrides=[0.4]"]),
    ],
)
def test_wrong_overrides(run_folder, overrides, words):
    with pytest.raises(UsageError) as error:
        vnet_mindspore.load(run_folder, "CPU", overrides=overrides)
    assert all(word in str(error.value) for word in words)


def test_a_path_without_a_checkpoint(tmp_path):
    for path in (tmp_path / "none.ckpt", tmp_path):
        with pytest.raises(DataError, match=str(path)):
            vnet_mindspore.load(path, "CPU")


@pytest.mark.parametrize("path", [None, 5, b"run", {"run"}, ""])
def test_what_is_no_path(model, path):
    calls = {
        "path": lambda: vnet_mindspore.load(path, "CPU"),
        "model": lambda: vnet_mindspore.evaluate(path, "data", "val.csv"),
        "data_path": lambda: vnet_mindspore.evaluate(model, path, "val.csv"),
        "split": lambda: vnet_mindspore.evaluate(model, "data", path),
        "train_split": lambda: vnet_mindspore.train("data", path),
    }
    for name, call_it in calls.items():
        with pytest.raises(UsageError, match=f"^{name} is (of type|empty).*expected .*a path"):
            call_it()


@pytest.mark.parametrize("target", ["cpu", "TPU", None])
def test_a_device_of_another_name(run_folder, target):
    with pytest.raises(UsageError, match=f"{target}.*auto, Ascend, GPU, CPU"):
        vnet_mindspore.load(run_folder, target)


@pytest.mark.parametrize(
    "options", [{"overrides": {"threshold": 0.4}}, {"device_target": "CPU"}, {"device_id": 1}]
)
def test_options_of_a_loaded_model_are_not_left_out_silently(model, options):
    with pytest.raises(UsageError, match=f"{next(iter(options))}=.*give it to load"):
        vnet_mindspore.evaluate(model, "data", "val.csv", **options)


def test_a_process_has_one_device(run_folder):
    assert vnet_mindspore.load(run_folder).device_target == "CPU"  # auto, on this machine
    for target, number in (("GPU", 0), ("Ascend", 1)):
        with pytest.raises(UsageError, match=f"{target} {number}.*CPU"):
            vnet_mindspore.load(run_folder, target, number)
    assert vnet_mindspore.load(run_folder, "CPU", 1).device_target == "CPU"  # there is only one


# Evaluation and training -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_case):
    """Folder with data/ of four cases, train.csv and val.csv."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(4):
        write_case(folder / "data", f"Case0{number}", seed=number)
    (folder / "train.csv").write_text("Case00.mhd\nCase01.mhd\n")
    (folder / "val.csv").write_text("Case02.mhd\nCase03.mhd\n")
    return folder


def test_an_evaluation_is_that_of_eval(model, run_folder, data, tmp_path, monkeypatch):
    table = vnet_mindspore.evaluate(
        model, data / "data", data / "val.csv", output_path=tmp_path / "own"
    )
    monkeypatch.chdir(tmp_path)
    call(
        monkeypatch,
        "eval",
        *("--device_target", "CPU", "--ckpt_path", run_folder, "--data_path", data / "data"),
        *("--eval_split_file_path", data / "val.csv"),
    )
    written, ours = tree(tmp_path / "results" / "prediction"), tree(tmp_path / "own")
    assert written.keys() == ours.keys()
    same = [name for name in written if Path(name).suffix in (".csv", ".mhd", ".zraw", ".png")]
    assert len(same) == 6 and all(written[name] == ours[name] for name in same)
    csv = pd.read_csv(tmp_path / "own" / "metrics.csv")
    assert list(table.columns) == list(csv.columns)
    assert list(table["case"]) == ["Case02", "Case03"]
    np.testing.assert_allclose(table["dice"], csv["dice"], atol=1e-6)
    assert (tmp_path / "own" / "report.html").is_file()
    assert model.config.dirPredictionImage == "results/prediction"  # as before


def test_an_evaluation_of_a_path(run_folder, data, tmp_path):
    table = vnet_mindspore.evaluate(
        run_folder,
        data / "data",
        data / "val.csv",
        tmp_path / "own",
        device_target="CPU",
        overrides={"threshold": 0.99},
    )
    assert table["empty"].all() and (table["dice"] == 0).all()


def test_a_training_its_resume_and_its_model(data, tmp_path, monkeypatch):
    """The resume's training is recorded only."""
    settings = {"width": 2, "VolSize": [16, 16, 16], "dstRes": [2.5, 2.5, 2.5], "batch_size": 2}
    settings |= {"cache_dir": "off", "dirResult": str(tmp_path / "runs")}
    words = (data / "data", data / "train.csv", data / "val.csv")
    run = vnet_mindspore.train(*words, device_target="CPU", overrides={**settings, "epochs": 1})
    assert run.parent == tmp_path / "runs" and (run / "ckpt" / "best.ckpt").is_file()
    overrides = {"epochs": 2, "dirResult": str(tmp_path / "runs")}
    with monkeypatch.context() as patch:
        patch.setattr("src.training.trainer.train", lambda *arguments, ranks: arguments)
        config, *passed = vnet_mindspore.train(
            *words, device_target="CPU", resume=True, overrides=overrides
        )
    assert config.epochs == 2 and config.width == 2
    assert passed == ["CPU", *words, run]
    mask = vnet_mindspore.load(run, "CPU").segment(data / "data" / "img" / "Case03.mhd")
    assert mask.GetSize() == find_size(data)
    with pytest.raises(UsageError, match="all 1 epochs are trained"):
        vnet_mindspore.train(*words, device_target="CPU", resume=run)


def find_size(data):
    (case,) = find_cases(data / "data", ["Case03.mhd"])
    return sitk.ReadImage(str(case.image_path)).GetSize()


def test_wrong_words_of_a_training(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = (data / "data", data / "train.csv")
    with pytest.raises(UsageError, match="precise"):
        vnet_mindspore.train(*words, preset="precise", device_target="CPU")
    with pytest.raises(UsageError, match="epoch"):
        vnet_mindspore.train(*words, overrides={"epoch": 3}, device_target="CPU")
    assert not list(tmp_path.iterdir())


# The package -------------------------------------------------------------------------------------


def python(code, folder):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={
            **{"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder)},
            "FAST_CONV3D_CACHE": str(cache_folder()),  # in HOME it would be compiled again
        },
        capture_output=True,
        text=True,
    )


def test_the_import_is_light_and_names_what_there_is(tmp_path):
    code = (
        "import sys, vnet_mindspore as v\n"
        "heavy = {'mindspore', 'numpy', 'pandas', 'SimpleITK'} & set(sys.modules)\n"
        "print(heavy, v.__version__)\n"
        "print(sorted(set(v.__all__) - set(dir(v))))\n"
        "try: v.lode\n"
        "except AttributeError as error: print(error)\n"
    )
    ended = python(code, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [
        f"set() {vnet_mindspore.__version__}",
        "[]",
        "module 'vnet_mindspore' has no attribute 'lode'",
    ]


@pytest.mark.parametrize("page", ["docs/python.md", "docs/zh/python.md"])
def test_the_documentation_names_all_of_it(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert all(name in text for name in [*vnet_mindspore.__all__, "segment", "probability"])


def script_of(page):
    """The last block of Python of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)[-1]


def test_the_script_of_the_documentation_runs_in_another_folder(tmp_path):
    ended = python(script_of("docs/python.md"), tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"^prostate: \d+\.\d ml$", ended.stdout, re.MULTILINE)
    assert re.search(r"^0 +Case02 +0\.\d+ +\d+\.\d+$", ended.stdout, re.MULTILINE)
    image = sitk.ReadImage(str(tmp_path / "data" / "img" / "Case03.mhd"))
    mask = sitk.ReadImage(str(tmp_path / "Case03_mask.nii.gz"))
    assert geometry_error(mask, image) < 1e-4  # NIfTI's header holds float32
    assert set(np.unique(voxels(mask))) == {0, 1}
    assert len(pd.read_csv(tmp_path / "evaluation" / "metrics.csv")) == 2


def test_both_languages_show_one_script():
    def code(page):
        return re.sub("#.*", "", script_of(page))

    assert code("docs/python.md") == code("docs/zh/python.md")
