"""What the commands write alike; each file is written whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from src.report.album import Album
from src.report.figures import plot_progress
from src.report.pictures import training_curves_of
from src.report.planes import OverlayCase
from src.report.results import warn_about_case, write_pictures
from src.report.tables import write_metrics
from src.utils.errors import DataError
from tests.report.made import ROWS, box_mask, grey_image, history, on_grid

OVERLAID = {"case": "a", "findings_text": [], "problem": None, "prostate_ml": 30.0}


def write_results(folder):
    """Writes overlays.png and report.html."""
    album = Album()
    album.add(OVERLAID, OverlayCase("a", grey_image(), on_grid(box_mask())))
    write_pictures(folder, [OVERLAID], album, {})


WRITERS = {
    "metrics.csv": lambda path: write_metrics(ROWS, path.parent),
    "metrics.json": lambda path: write_metrics(ROWS, path.parent),
    "progress.png": lambda path: plot_progress(history(3), path),
    "overlays.png": lambda path: write_results(path.parent),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_complete_write_replaces_the_old_file_and_leaves_nothing_else(tmp_path, name):
    (tmp_path / name).write_text("old")
    WRITERS[name](tmp_path / name)
    assert (tmp_path / name).read_bytes() != b"old"
    assert {path.name for path in tmp_path.iterdir()} <= {*WRITERS, "report.html"}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_old_files(tmp_path, monkeypatch, name):
    def write_half(path, content):
        if not (path.stem.startswith(f".{stem}.") and path.suffix == f".{suffix}"):
            return complete(path, content)
        complete(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    stem, suffix = name.split(".")
    for existing in ("metrics.csv", "metrics.json", name):
        (tmp_path / existing).write_text("old")
    complete = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(DataError, match=f"{name}: cannot be written .*No space left"):
        WRITERS[name](tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.csv", "metrics.json", name}
    assert all(path.read_text() == "old" for path in tmp_path.iterdir())


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_that_is_a_file_is_named(tmp_path, name):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    with pytest.raises(DataError, match=r"blocked.*cannot be written"):
        WRITERS[name](blocked / name)
    assert blocked.read_text() == "a file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("name", WRITERS)
def test_an_unwritable_folder_is_named(tmp_path, name):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(DataError, match=r"cannot be written .*Permission denied"):
            WRITERS[name](tmp_path / name)
    finally:
        tmp_path.chmod(0o700)


def test_a_warning_is_a_line_on_standard_error(capsys):
    warn_about_case("Case1", ["Dice below 0.8", "empty prediction"])
    warn_about_case("Case2", [])
    warn_about_case("Case3", ["no such file"], "error")
    said = capsys.readouterr()
    lines = ["warning: Case1: Dice below 0.8; empty prediction", "error: Case3: no such file"]
    assert said.err.splitlines() == lines and said.out == ""


# The training that a checkpoint comes from --------------------------------------------------------


HISTORY = "epoch,step,learning_rate,train_loss,epoch_time_s,val_dice,later\n"


@pytest.mark.parametrize("folder", ["", "ckpt"])
def test_the_training_is_found_from_its_checkpoint(tmp_path, folder):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "history.csv").write_text(
        HISTORY + "1,9,0.01,0.5,1.0,,x\n2,18,0.02,0.25,1.0,0.8,y\n"
    )
    found = training_curves_of(tmp_path / folder / "best.ckpt")
    assert (found.epochs, found.loss, found.best) == (2, 0.25, (2, 0.8))


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        HISTORY.encode(),
        b"epoch,loss\n1,2\n",
        HISTORY.encode() + b"1,9,a,b,c,d,e\n",
        b"\xff\xfe\0",
    ],
)
def test_results_need_no_history(tmp_path, content):
    assert training_curves_of(tmp_path / "best.ckpt") is None  # nor a run
    (tmp_path / "config.json").write_text("{}")
    if content is not None:
        (tmp_path / "history.csv").write_bytes(content)
    assert training_curves_of(tmp_path / "best.ckpt") is None
