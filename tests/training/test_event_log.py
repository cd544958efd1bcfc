"""Events for TensorBoard: read back from the files' bytes, as TensorBoard would show them."""

import ast
import sys
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from src.devices.ranks import Ranks
from src.report.figures import PREDICTION_COLOUR, REFERENCE_COLOUR
from src.report.planes import OverlayCase
from src.training import epoch_end, event_log
from src.training.event_log import OVERLAYS, EventLog
from src.training.progress import Progress
from src.training.trainer import train
from src.utils.errors import DataError, UsageError
from tests.event_files import read_events, shown
from tests.helpers import names_in
from tests.networks import dense_cells

SCALARS = ("train_loss", "val_dice", "learning_rate", "epoch_time_s")
NO_CASES = SimpleNamespace(overlays=[])


@pytest.fixture
def tensorboardx():
    return pytest.importorskip("tensorboardX")  # among the packages of scripts/run_tests.sh


def cases_to_draw(make_image, count):
    """Cases whose two masks overlap."""
    image, masks = np.zeros((12, 40, 40)), np.zeros((2, 12, 40, 40), np.uint8)
    image[:, ::2] = 100
    masks[0, 3:9, 8:24, 8:24] = masks[1, 3:9, 16:32, 16:32] = 1
    images = [make_image(array) for array in (image, *masks)]
    return [OverlayCase(f"Case{number}", *images) for number in range(count)]


@pytest.fixture
def train_epochs(tmp_path, small_config, monkeypatch, make_image):
    """Function that ends epochs of a run of four as a training does, after some are restored."""
    monkeypatch.setattr(epoch_end, "plot_progress", lambda *_: None)
    config = small_config("epochs=4", "save_interval=2", "val_interval=2")
    (tmp_path / "ckpt").mkdir()
    cases = cases_to_draw(make_image, OVERLAYS)

    def train(restored, epochs, loss):
        events = EventLog(tmp_path, SimpleNamespace(overlays=cases))
        ended = epoch_end.EpochEnd(
            *(config, dense_cells(), Progress(epoch=restored), np.linspace(0.1, 0.5, 12)),
            *(lambda network: loss / 2, tmp_path, Ranks(), events),
        )
        for epoch in epochs:
            ended.run(epoch_end.EpochSteps(epoch, [loss / epoch], 0, 2.0 * epoch, 0.0))

    return train


def test_a_resumed_run_shows_its_history_and_overlays_once(tensorboardx, tmp_path, train_epochs):
    """It died after the third epoch, whose checkpoint was not due: that one is shown as it was the
    second time.
    """
    train_epochs(0, (1, 2, 3), loss=0.5)
    train_epochs(2, (3, 4), loss=0.75)
    first, second = sorted((tmp_path / "tensorboard").iterdir())
    assert [event.step for event in read_events(first)] == [0, 1, 1, 2, 3]
    assert [event.step for event in read_events(second)] == [0, 3, 3, 4]
    tags, history = shown(tmp_path / "tensorboard"), pd.read_csv(tmp_path / "history.csv")
    scalars = {f"history/{name}" for name in SCALARS}
    pictures = {f"overlays/Case{number}" for number in range(3)}
    assert tags.keys() == scalars | pictures
    for name in SCALARS:
        expected = history.set_index("epoch")[name].dropna()
        assert tags[f"history/{name}"] == pytest.approx(expected.to_dict(), rel=1e-6)
    assert tags["history/train_loss"][3] == 0.25
    for tag in pictures:
        assert tags[tag].keys() == {2, 4}
        for image in tags[tag].values():
            pixels = imread(BytesIO(image.encoded_image_string))
            assert pixels.shape == (image.height, image.width, image.colorspace)


def row(epoch, dice=np.nan):
    numbers = {"learning_rate": 0.5 / epoch, "train_loss": 1 / epoch, "epoch_time_s": 2.0 * epoch}
    return {"epoch": epoch, "step": 3 * epoch, "val_dice": dice, **numbers}


def test_a_run_that_gets_events_later_has_those_of_all_epochs(tensorboardx, tmp_path):
    """Three starts in one second have a file each."""
    for trained in ([row(1, 0.25), row(2)], [row(1, 0.25), row(2), row(3)], [row(1, 0.25)]):
        log = EventLog(tmp_path, NO_CASES)
        log.open(trained)
        log.add(row(len(trained) + 1, 0.5))
    assert len(names_in(tmp_path / "tensorboard")) == 3
    tags = shown(tmp_path / "tensorboard")
    assert tags["history/epoch_time_s"] == {1: 2, 2: 4}
    assert tags["history/val_dice"] == {1: 0.25, 2: 0.5}


def test_pictures_have_both_outlines_and_come_with_a_validation(tensorboardx, tmp_path, make_image):
    log = EventLog(tmp_path, SimpleNamespace(overlays=cases_to_draw(make_image, 1)))
    log.open([])
    log.add(row(1))
    log.add(row(2, 0.5))
    ((step, picture),) = shown(tmp_path / "tensorboard")["overlays/Case0"].items()
    pixels = imread(BytesIO(picture.encoded_image_string))[..., :3]
    assert step == 2
    for colour in (REFERENCE_COLOUR, PREDICTION_COLOUR):
        assert (np.abs(pixels - to_rgb(colour)).max(axis=-1) < 0.02).sum() > 500


def test_what_cannot_be_written_is_one_line(tensorboardx, tmp_path, full_disk):
    log = EventLog(tmp_path, NO_CASES)
    log.open([])
    with full_disk(50), pytest.raises(DataError) as error:
        log.add(row(1))
    assert str(error.value) == (
        f"{tmp_path}/tensorboard: no events can be written (File too large); or train with "
        "--set tensorboard=false"
    )
    (tmp_path / "tensorboard").rename(tmp_path / "other")
    (tmp_path / "tensorboard").touch()
    with pytest.raises(DataError, match="File exists; check which of these names are folders"):
        EventLog(tmp_path, NO_CASES).open([])


def test_a_start_that_fails_leaves_no_file_that_hides_the_history(
    tensorboardx, tmp_path, full_disk
):
    log = EventLog(tmp_path, NO_CASES)
    with full_disk(50), pytest.raises(DataError):
        log.open([row(1), row(2)])
    assert not list((tmp_path / "tensorboard").iterdir())


def test_the_missing_package_is_named_before_a_file_is_read(tmp_path, small_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        train(small_config("tensorboard=true"), "CPU", tmp_path / "none", tmp_path / "none.csv")
    assert str(error.value) == (
        "tensorboard=True needs tensorboardX: pip install -r requirements-tensorboard.txt"
    )
    assert names_in(tmp_path) == []
    with pytest.raises(DataError, match=r"none\.csv"):
        train(small_config(), "CPU", tmp_path / "none", tmp_path / "none.csv")


def test_the_package_is_imported_only_where_events_are_written():
    statements = ast.parse(Path(event_log.__file__).read_text("utf-8")).body
    modules = [one.module for one in statements if isinstance(one, ast.ImportFrom)]
    modules += [
        alias.name for one in statements if isinstance(one, ast.Import) for alias in one.names
    ]
    assert "struct" in modules and not any("tensorboardX" in (name or "") for name in modules)
