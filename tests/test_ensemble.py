"""Several networks as one: their mean, what is refused, and what results say about it."""

import json
import shutil
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import SimpleITK as sitk

import src.api as api
from src.checkpoint import save_weights
from src.checkpoint_file import find_checkpoints, write_ensemble
from src.config import save_config
from src.ensemble import OUTPUT_KEYS, Ensemble, LoadedMember, find_members
from src.evaluation import load_members
from src.export.description import config_of_model, ensemble_models, read_description
from src.export.exporter import export_checkpoints
from src.export.weight_file import run_weights
from src.images.reading import read_image
from src.predictor import segment
from src.utils.errors import DataError, UsageError
from src.utils.files import hash_file
from src.vnet import create_vnet
from tests.helpers import run_program
from tests.networks import seed_weights


def write_run(folder, config, scale=1.0):
    """Writes a run whose weights are those of its name, times `scale`; returns the checkpoint."""
    network = seed_weights(create_vnet(config))
    for parameter in network.trainable_params():
        parameter.set_data(parameter * scale)
    (folder / "ckpt").mkdir(parents=True)
    save_config(config, folder / "config.json")
    save_weights(network, folder / "ckpt" / "best.ckpt")
    return folder / "ckpt" / "best.ckpt"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small_config):
    """Three runs, the last of another variant and width."""
    folder = tmp_path_factory.mktemp("runs")
    configs = [small_config(), small_config(), small_config("variant=paper", "width=4")]
    return [
        write_run(folder / f"run{number}", config, 1 + number / 10).parents[1]
        for number, config in enumerate(configs)
    ]


@pytest.fixture
def copies(runs, tmp_path):
    """Copies of the first two runs, to be changed."""
    return [shutil.copytree(run, tmp_path / run.name) for run in runs[:2]]


@pytest.fixture(scope="module")
def networks(runs):
    """The networks of the runs by themselves."""
    return [load_members(find_members(run, []), "CPU") for run in runs]


def volume():
    values = np.random.default_rng(3).normal(size=(1, 1, 16, 16, 16))
    return ms.Tensor(values.astype(np.float32))


def test_the_probability_is_the_mean_of_the_networks(runs, networks):
    alone = [network(volume()).asnumpy() for network in networks]
    assert min(np.abs(a - b).max() for a in alone for b in alone if a is not b) > 0.01
    ensemble = load_members(find_members(runs, []), "CPU")
    for _ in range(2):  # the weights of one must not stay for another
        found = ensemble(volume()).asnumpy()
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, np.mean(alone, axis=0, dtype=np.float64), atol=2e-7)
    cells = [member.cell for member in ensemble.members]
    assert cells[0] is cells[1] is not cells[2]  # one of each architecture is compiled


def test_one_network_is_no_ensemble(runs):
    found = load_members(find_members([runs[0]], []), "CPU")
    assert isinstance(found, ms.nn.Cell) and not found.training


@pytest.mark.parametrize("count", [1, 2])
def test_a_checkpoint_that_a_training_replaces_meanwhile_is_refused(runs, copies, count):
    """Its hash in the results would not be that of the weights that made them."""
    members = find_members(copies[:count], [])
    shutil.copy(runs[1 if count == 1 else 0] / "ckpt" / "best.ckpt", members[-1].checkpoint)
    with pytest.raises(DataError, match=f"{members[-1].checkpoint}: replaced while it was read"):
        load_members(members, "CPU")


def test_results_tell_of_the_weights_that_were_loaded(runs, copies, data, tmp_path):
    model = api.load(copies[0], "CPU")
    digest = hash_file(model.checkpoint)
    shutil.copy(runs[1] / "ckpt" / "best.ckpt", model.checkpoint)
    (tmp_path / "val.csv").write_text("Case0.mhd\n")
    api.evaluate(model, data, tmp_path / "val.csv", tmp_path / "results")
    origin = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert origin["checkpoint_sha256"] == digest != hash_file(model.checkpoint)


def test_masks_and_probabilities_of_an_image(runs, networks, data, tmp_path, small_config):
    """predict.py and the Python interface, with flip averaging, against single predictions."""
    path = data / "img" / "Case1.nii.gz"
    image, config = read_image(path), small_config("flip_average=true", "threshold=0.45")
    singles = [segment(network, image, config)[1] for network in networks[:2]]
    expected = np.mean([sitk.GetArrayFromImage(one) for one in singles], axis=0)
    overrides = {"flip_average": True, "threshold": 0.45}
    model = api.load(runs[:2], "CPU", overrides=overrides)
    assert model.checkpoints == tuple(run / "ckpt" / "best.ckpt" for run in runs[:2])
    mask, probability = model.segment(path), model.probability(path)
    found = sitk.GetArrayFromImage(probability)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    words = ["--input", path, "--output_path", tmp_path / "masks", "--save_probability"]
    words += ["--no_report", "--set", "flip_average=true", "--set", "threshold=0.45"]
    run_program("predict", "--ckpt_path", *runs[:2], *words)
    for kind, image in (("test", mask), ("probability", probability)):
        written = sitk.ReadImage(str(tmp_path / "masks" / f"Case1_{kind}.nii.gz"))
        np.testing.assert_array_equal(*map(sitk.GetArrayFromImage, (written, image)))
    table = json.loads((tmp_path / "masks" / "volumes.json").read_text())
    assert table["checkpoints"] == model.origin["checkpoints"]


def test_an_evaluation_names_all_networks(runs, data, tmp_path):
    (tmp_path / "val.csv").write_text("Case0.mhd\n")
    words = ["--data_path", data, "--eval_split_file_path", tmp_path / "val.csv"]
    words += ["--set", f"dirPredictionImage={tmp_path / 'results'}", "--ckpt_path"]
    run_program("eval", *words, runs[0], runs[1])
    origin = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert "checkpoint" not in origin and len(origin["checkpoints"]) == 2
    page = (tmp_path / "results" / "report.html").read_text("utf-8")
    for path, digest in origin["checkpoints"].items():
        assert len(digest) == 64 and f"<td>{path} (SHA-256 {digest})</td>" in page


@pytest.mark.parametrize(
    "item",
    [
        *("VolSize=32,16,16", "dstRes=2,2.5,2.5", "normDir=true", "intensity=equalize"),
        *("channel=1", "labels=2", "plane=sagittal", "threshold=0.4", "flip_average=true"),
        "recentre=true",
    ],
)
def test_networks_that_differ_in_the_input_or_threshold_are_refused(
    item, runs, tmp_path, small_config
):
    other = write_run(tmp_path / "other", small_config(item), 1.5)
    key, _, text = item.partition("=")
    with pytest.raises(DataError) as error:
        find_members([runs[0], other], [])
    first, second = find_members(runs[0], [])[0], find_members(other, [])[0]
    for part in (first.checkpoint, second.checkpoint, second.config[key], first.config[key]):
        assert str(part) in str(error.value)
    assert f"{key}={second.config[key]}" in str(error.value)
    if key in OUTPUT_KEYS:
        assert f"--set {key}=VALUE" in str(error.value)
        find_members([runs[0], other], [f"{key}={text}"])


def test_the_same_network_twice_is_refused(runs, tmp_path):
    with pytest.raises(DataError, match=r"run0/ckpt/best\.ckpt: named twice"):
        find_members([runs[0], runs[1], runs[0] / "ckpt" / "best.ckpt"], [])
    shutil.copytree(runs[0], tmp_path / "copy")
    with pytest.raises(DataError, match=r"copy/ckpt/best\.ckpt: the same network as .*run0"):
        api.load([runs[0], tmp_path / "copy"], "CPU")
    with pytest.raises(UsageError, match="at least one"):
        api.load([])


def test_a_network_that_yields_nan_is_named():
    members = [
        LoadedMember(Path(f"{x}.ckpt"), lambda batch, x=x: batch * x, []) for x in (1.0, np.nan)
    ]
    with pytest.raises(DataError, match=r"nan\.ckpt: .*NaN"):
        Ensemble(members)(volume())


def test_a_folder_of_networks(runs, copies, tmp_path, capsys):
    files = [run / "ckpt" / "best.ckpt" for run in copies]
    write_ensemble(tmp_path, files)
    assert find_checkpoints(tmp_path) == files
    assert "the mean of the 2 networks" in capsys.readouterr().out
    assert find_checkpoints([tmp_path, runs[2]]) == [*files, runs[2] / "ckpt" / "best.ckpt"]
    shutil.copyfile(files[0], files[1])
    with pytest.raises(DataError, match=r"run1/ckpt/best\.ckpt: differs from .*ensemble\.json"):
        find_checkpoints(tmp_path)
    files[1].unlink()
    with pytest.raises(DataError, match=r"run1/ckpt/best\.ckpt: missing"):
        find_checkpoints(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"checkpoints": ["a.ckpt"]}', "{}", '{"checkpoints": {}}']
)
def test_a_damaged_list_of_networks_is_refused(text, tmp_path):
    (tmp_path / "ensemble.json").write_text(text)
    with pytest.raises(DataError, match=r"ensemble\.json: not a list"):
        find_checkpoints(tmp_path)


# Exports -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    """The weight files of the first two runs."""
    folder = tmp_path_factory.mktemp("exported")
    words = ["--file_format", "VNET", "--file_name", folder / "gland.vnet"]
    run_program("export", "--ckpt_file", *runs[:2], *words)
    return folder


def test_each_network_becomes_a_model_whose_description_names_all(runs, networks, exported):
    models = [exported / f"gland_{number}.vnet" for number in range(2)]
    for model in models:
        assert ensemble_models(model) == models
        description, file = read_description(model)
        assert description["ensemble"][model.stem] == file["checkpoint_sha256"]
        assert "mean of what gland_0 and gland_1 give" in " ".join(description["postprocessing"])
        assert config_of_model(model, []).width == 2
    outputs = [run_weights(model, volume().asnumpy()) for model in models]
    for output, network in zip(outputs, networks[:2], strict=True):
        np.testing.assert_allclose(output, network(volume()).asnumpy(), atol=1e-4)


def test_a_foreign_file_stops_an_export_before_the_first_model(runs, tmp_path):
    (tmp_path / "gland_1.json").write_text("mine")
    with pytest.raises(DataError, match=r"gland_1\.json: there already, and not written by this"):
        export_checkpoints(runs[:2], [], "VNET", str(tmp_path / "gland"), device_target="CPU")
    assert [path.name for path in tmp_path.iterdir()] == ["gland_1.json"]


def test_models_of_different_ensembles_are_not_averaged(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "copy")
    path = folder / "gland_1.json"
    description = json.loads(path.read_text())
    description["ensemble"]["gland_0"] = "0" * 64
    path.write_text(json.dumps(description))
    with pytest.raises(DataError, match=r"gland_1\.vnet: of another ensemble than gland_0\.vnet"):
        ensemble_models(folder / "gland_0.vnet")
    (folder / "gland_1.vnet").unlink()
    with pytest.raises(DataError, match=r"gland_1\.vnet: no such model"):
        ensemble_models(folder / "gland_0.vnet")
    path = folder / "gland_0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ensemble": ["gland_0"]}))
    with pytest.raises(DataError, match=r"gland_0\.json: not a valid model description"):
        ensemble_models(folder / "gland_0.vnet")
