"""Fixtures of several test files: small synthetic cases, configurations and runs."""

import locale
import pwd
import resource
import signal
from contextlib import contextmanager

import mindspore as ms
import numpy as np
import pytest
import SimpleITK as sitk

import src.api
from src.checkpoint import save_weights
from src.config import override_config, save_config, vnet_cfg
from src.devices.device import start_device
from src.report.album import Album
from src.report.results import OVERLAYS, REPORT
from src.utils.log import log_to_standard_streams
from src.vnet import create_vnet
from tests.helpers import touch
from tests.http_server import running_server
from tests.volumes import image_of

# Whole files go to one process each; those that take longest start first, in this order: else the
# last of them would keep one process busy long after the other.
LONG_FILES = (
    "test_network.py",
    "test_trainer.py",
    "test_native.py",
    "test_distributed_launchers.py",
    "test_infer_310_end_to_end.py",
    "test_gpu_standin.py",
    "test_ascend310_infer.py",
    "test_exporter.py",
    "test_machine.py",
    "test_two_hosts.py",
    "test_ranks.py",
    "test_vnet.py",
    "test_prediction.py",
    "test_launchers.py",
    "test_scripts.py",
    "test_conv3d.py",
    "test_step.py",
    "test_infer_310.py",
    "test_result_files.py",
    "test_earlier_masks.py",
    "test_evaluation.py",
    "test_api.py",
    "test_process.py",
    "test_dicom.py",
    "test_cross_validation.py",
    "test_phantom.py",
    "test_page.py",
    "test_package.py",
    "test_mindir.py",
    "test_onnx_model.py",
    "test_stopping.py",
)

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background; programs inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
log_to_standard_streams()
start_device("CPU")  # MindSpore takes a device only before the first kernel of a process

# A rotation about all three axes; its columns are the image's axes in LPS.
OBLIQUE = np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]]) @ np.array(
    [[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]]
)


def pytest_collection_modifyitems(config, items):
    """Starts with the long files; leaves out what is marked `full` unless -m names it."""
    place = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
    if "full" not in config.option.markexpr:
        full = [item for item in items if item.get_closest_marker("full")]
        items[:] = [item for item in items if not item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=full)


@pytest.fixture(autouse=True)
def same_locale():
    """Restores the process's locale: ITK's DICOM writer sets it to "C", so ASCII for text files."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.fixture(autouse=True)
def no_device_chosen(monkeypatch):
    """A test may choose a device, as a command or a notebook may: each has its own process."""
    monkeypatch.setattr(src.api, "_started", [])


@pytest.fixture(scope="session")
def make_image():
    """Function array (z, y, x) and geometry -> SimpleITK image."""
    return image_of


@pytest.fixture(scope="session")
def oblique():
    """A direction matrix (3, 3) off all axes."""
    return OBLIQUE


@pytest.fixture(scope="session")
def write_case():
    """Function that writes img/NAME and gt/NAME_segmentation: a bright ellipsoid in noise."""

    def write(data_path, name, suffix=".mhd", size_xyz=(26, 24, 12), seed=0, **geometry):
        distance = sum(
            ((index - (side - 1) / 2 - 0.4) / (side * share)) ** 2
            for index, side, share in zip(
                np.ogrid[tuple(slice(side) for side in size_xyz[::-1])],
                size_xyz[::-1],
                (0.35, 0.25, 0.3),
                strict=True,
            )
        )
        mask = distance < 1
        noise = np.random.default_rng(seed).integers(0, 90, mask.shape)
        image = image_of((100 + noise + 500 * mask).astype(np.int16), **geometry)
        reference = image_of(mask.astype(np.uint8), **geometry)
        paths = (
            data_path / "img" / f"{name}{suffix}",
            data_path / "gt" / f"{name}_segmentation{suffix}",
        )
        for volume, path in zip((image, reference), paths, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(volume, str(path))
        return paths

    return write


@pytest.fixture(scope="session")
def write_training(write_case):
    """Function folder, split name -> case numbers: writes data/Case0N.mha and a file per split."""

    def write(folder, **splits):
        for number in sorted({number for numbers in splits.values() for number in numbers}):
            write_case(folder / "data", f"Case0{number}", ".mha", seed=number)
        for split, numbers in splits.items():
            lines = [f"Case0{number}.mha\n" for number in numbers]
            (folder / f"{split}.csv").write_text("".join(lines))
        return folder

    return write


@pytest.fixture
def data(tmp_path, write_case, oblique):
    """Three cases of different formats and geometries."""
    write_case(tmp_path / "data", "Case0", ".mhd")
    write_case(tmp_path / "data", "Case1", ".nii.gz", seed=1, direction=oblique)
    write_case(tmp_path / "data", "Case2", ".nrrd", (30, 22, 10), 2, spacing_mm=(1, 1.1, 3))
    return tmp_path / "data"


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """An untrained run of width 2 with its checkpoint, configuration and history."""
    folder = tmp_path_factory.mktemp("run")
    config = override_config(vnet_cfg, ["width=2", "VolSize=16,16,16", "dstRes=2.5,2.5,2.5"])
    save_config(config, folder / "config.json")
    (folder / "history.csv").write_text(
        "epoch,step,learning_rate,train_loss,epoch_time_s,val_dice,later\n"
        "1,9,0.01,0.5,1.0,,x\n2,18,0.02,0.25,1.0,0.8,y\n"
    )
    (folder / "ckpt").mkdir()
    ms.set_seed(1)
    save_weights(create_vnet(config), folder / "ckpt" / "best.ckpt")
    return folder


@pytest.fixture(scope="session")
def small_config():
    """Function `key=value` texts -> a configuration of a network and grid that run in a second."""

    def config(*overrides):
        small = ("width=2", "VolSize=16,16,16", "dstRes=2.5,2.5,2.5", "batch_size=2")
        return override_config(vnet_cfg, [*small, "cache_dir=off", *overrides])

    return config


@pytest.fixture
def results(tmp_path):
    """A folder for results, which does not exist yet."""
    return tmp_path / "results"


@pytest.fixture
def config(small_config, results):
    """A configuration of a grid that holds the cases of `data`, with results in `results`."""
    return small_config(
        "VolSize=32,32,32", "dstRes=1.25,1.25,1.25", f"dirPredictionImage={results}"
    )


@pytest.fixture
def undrawn(monkeypatch):
    """Empty overlays.png and report.html: drawing takes longest. A prediction leaves neither."""

    def write_empty(folder, *_):
        touch(folder, OVERLAYS, REPORT)

    monkeypatch.setattr("src.evaluation.write_pictures", write_empty)
    monkeypatch.setattr("src.prediction.write_pictures", lambda *_: None)
    monkeypatch.setattr(Album, "add", lambda *_: None)


@pytest.fixture
def server(monkeypatch):
    """A local web server, see tests/http_server.py."""
    monkeypatch.setenv("no_proxy", "*")
    with running_server() as server:
        yield server


@pytest.fixture
def homeless(monkeypatch):
    """A user without a home folder, whom the system does not know."""

    def unknown(uid):
        raise KeyError(uid)

    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.fixture(scope="session")
def full_disk():
    """Function bytes -> context in which no file can grow beyond them, as on a full disk."""

    @contextmanager
    def limit(size_bytes):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
