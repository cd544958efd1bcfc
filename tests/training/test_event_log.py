"""Events for TensorBoard: read back from the files' bytes, as TensorBoard would show them."""

import ast
import struct
import sys
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from src.report.figures import PREDICTION_COLOUR, REFERENCE_COLOUR
from src.report.planes import OverlayCase
from src.training import event_log
from src.training.event_log import EventLog
from src.training.run_folder import configure_run
from src.training.trainer import train
from src.utils.errors import DataError, UsageError
from tests.helpers import names_in

SCALARS = ("train_loss", "val_dice", "learning_rate", "epoch_time_s")
NO_CASES = SimpleNamespace(overlays=[])


@pytest.fixture
def tensorboardx():
    return pytest.importorskip("tensorboardX")  # among the packages of scripts/run_tests.sh


def masked_crc32c(content):
    """The checksum of TFRecord files: CRC-32C, bit by bit, rotated and offset."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_events(path):
    """The events of a file, whose records are length, its checksum, payload, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    content, start = path.read_bytes(), 0
    while start < len(content):
        length, length_crc = struct.unpack_from("<QI", content, start)
        payload = content[start + 12 : start + 12 + length]
        (crc,) = struct.unpack_from("<I", content, start + 12 + length)
        assert length_crc == masked_crc32c(content[start : start + 8])
        if length < 1000:  # bit by bit it takes its time
            assert crc == masked_crc32c(payload)
        yield Event.FromString(payload)
        start += 16 + length


def shown(folder):
    """{tag: {step: value}} of the files in the order of their names.

    A start of a session drops what there is from its step on; no step of a tag may come twice.
    """
    tags = {}
    for path in sorted(folder.iterdir()):
        for event in read_events(path):
            if event.session_log.status == event.session_log.START:
                for values in tags.values():
                    for step in [step for step in values if step >= event.step]:
                        del values[step]
            for value in event.summary.value:
                values = tags.setdefault(value.tag, {})
                assert event.step not in values
                content = value.image if value.HasField("image") else value.simple_value
                values[event.step] = content
    return tags


class DieAfter(ms.Callback):
    """The process "dies" when epoch 3 has ended, whose checkpoint is not due."""

    def on_train_epoch_end(self, run_context):
        if run_context.original_args().cur_epoch_num == 3:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def resumed_run(write_training, small_config, tmp_path_factory):
    """A run of four epochs that died in the third and was resumed: folder, printed lines."""
    pytest.importorskip("tensorboardX")
    folder = write_training(tmp_path_factory.mktemp("events"), train=[0, 1], val=[3, 4, 5, 6])
    config = small_config("epochs=4", "save_interval=2", "val_interval=2", "tensorboard=true")
    data = (folder / "data", folder / "train.csv", folder / "val.csv")
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(words)))
        with pytest.raises(KeyboardInterrupt):
            train(config, "CPU", *data, callbacks=[DieAfter()])
        config, run_folder = configure_run(True, "CPU", [])
        train(config, "CPU", *data, run_folder)
        return run_folder.absolute(), printed


def test_the_events_of_a_run_are_its_history_and_overlays(resumed_run):
    """The third epoch, which was trained twice, is shown once: as it was the second time."""
    folder, printed = resumed_run
    first, second = sorted((folder / "tensorboard").iterdir())
    assert [event.step for event in read_events(first)] == [0, 1, 1, 2, 3]
    assert [event.step for event in read_events(second)] == [0, 3, 3, 4]
    tags, history = shown(folder / "tensorboard"), pd.read_csv(folder / "history.csv")
    names = ("Case03", "Case04", "Case05")
    scalars, pictures = (
        {f"history/{name}" for name in SCALARS},
        {f"overlays/{name}" for name in names},
    )
    assert tags.keys() == scalars | pictures
    for name in SCALARS:
        expected = history.set_index("epoch")[name].dropna()
        assert tags[f"history/{name}"] == pytest.approx(expected.to_dict(), rel=1e-6)
    for tag in pictures:
        assert tags[tag].keys() == {2, 4}
        for image in tags[tag].values():
            pixels = imread(BytesIO(image.encoded_image_string))
            assert pixels.shape == (image.height, image.width, image.colorspace)
    (line,) = {line for line in printed if "TensorBoard" in line}
    assert line == f"TensorBoard: tensorboard --logdir results/infer/{folder.name}/tensorboard"


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
    image, masks = np.zeros((12, 40, 40)), np.zeros((2, 12, 40, 40), np.uint8)
    image[:, ::2] = 100
    masks[0, 3:9, 8:24, 8:24] = masks[1, 3:9, 16:32, 16:32] = 1
    case = OverlayCase("Case1", *map(make_image, (image, masks[0], masks[1])))
    log = EventLog(tmp_path, SimpleNamespace(overlays=[case]))
    log.open([])
    log.add(row(1))
    log.add(row(2, 0.5))
    ((step, picture),) = shown(tmp_path / "tensorboard")["overlays/Case1"].items()
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
