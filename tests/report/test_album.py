"""The album: which cases it keeps, and that pictures need no volume twice."""

import errno
import os
import weakref
from pathlib import Path

import pytest

from src.report import page, results
from src.report.album import Album, draw_case
from src.report.painter import Painter
from src.report.planes import OverlayCase
from src.report.results import write_pictures
from src.utils.errors import DataError
from tests.report.made import box_mask, grey_image, on_grid, row_of


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Two pictured cases in the report, one in overlays.png."""
    monkeypatch.setattr(page, "PICTURED_CASES", 2)
    monkeypatch.setattr(results, "OVERLAY_ROWS", 1)


def predicted_row(name, *texts, problem=None):
    return {"case": name, "findings_text": list(texts), "problem": problem, "prostate_ml": 30.0}


def evaluated_row(name, shift):
    return {**row_of(name, box_mask(x=(25 + shift, 50 + shift))), "findings_text": []}


def case_of(name, reference=None):
    return OverlayCase(name, grey_image(), on_grid(box_mask()), reference)


def test_of_an_evaluation_the_lowest_dice_stay():
    album = Album()
    kept = []
    for name, shift in (("a", 2), ("b", 8), ("c", 1), ("d", 4), ("e", 12)):
        album.add(evaluated_row(name, shift), case_of(name, on_grid(box_mask())))
        kept.append("".join(sorted(album.drawings)))
    assert kept == ["a", "ab", "ab", "bd", "be"]


def test_of_a_prediction_those_with_findings_stay():
    album = Album()
    for name, texts in (("a", ()), ("b", ()), ("c", ("small",)), ("d", ()), ("e", ("large",))):
        album.add(predicted_row(name, *texts), case_of(name))
    assert sorted(album.drawings) == ["c", "e"]


@pytest.mark.parametrize("is_evaluation", [True, False])
def test_overlays_are_of_the_worst_case(tmp_path, is_evaluation):
    jobs = []

    class RecordingPainter(Painter):
        def submit(self, *job):
            jobs.append(job)
            return super().submit(*job)

    album, rows = Album(RecordingPainter()), []
    for name, shift, texts in (("a", 2, ()), ("b", 8, ("small",)), ("c", 1, ())):
        row = evaluated_row(name, shift) if is_evaluation else predicted_row(name, *texts)
        album.add(row, case_of(name, on_grid(box_mask()) if is_evaluation else None))
        rows.append(row)
    write_pictures(tmp_path, rows, album, {})
    ((_, shown, count),) = [job for job in jobs if job[0] == "overlays_png"]
    assert [row.title.split()[0] for row in shown] == ["b"] and count == 3


def test_no_volume_is_kept():
    album, images = Album(), []
    for name in "abc":
        case = case_of(name)
        images.append(weakref.ref(case.image))
        album.add(predicted_row(name), case)
        del case
        assert images[-1]() is None


def test_only_what_is_shown_and_not_in_the_album_is_read(tmp_path):
    """One of another process, one whose image is gone; "bad" has no mask, "last" is not shown."""
    album, asked = Album(), []
    rows = [predicted_row("mine", "small"), predicted_row("other", "large"), predicted_row("last")]
    rows.append(predicted_row("bad", problem="truncated"))
    album.add(rows[0], case_of("mine"))

    def read(row):
        asked.append(row["case"])
        return case_of(row["case"])

    write_pictures(tmp_path, rows, album, {}, read)
    assert asked == ["other"]
    report = (tmp_path / "report.html").read_text("utf-8")
    assert report.count("<article") == 2 and report.count('alt="mine, axial slice') == 5
    assert report.count('alt="mine, surface from') == 4

    def gone(row):
        raise DataError(f"{row['case']}: no such file")

    write_pictures(tmp_path, rows, album, {}, gone)
    report = (tmp_path / "report.html").read_text("utf-8")
    assert report.count("<article") == 2 and 'alt="other' not in report
    assert report.count('alt="mine, axial slice') == 5


def test_a_full_disk_leaves_the_old_files(tmp_path, monkeypatch):
    """Both, so that they are of the same masks."""

    def write_half(path, content):
        write_bytes(path, content[: len(content) // 2])
        if path.suffix == ".html":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    paths = [tmp_path / "overlays.png", tmp_path / "report.html"]
    for path in paths:
        path.write_text("old")
    write_bytes = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", write_half)
    album = Album()
    album.add(predicted_row("a"), case_of("a"))
    with pytest.raises(DataError, match=r"report\.html: cannot be written .*No space left"):
        write_pictures(tmp_path, [predicted_row("a")], album, {})
    assert [path.read_text() for path in paths] == ["old", "old"]
    assert sorted(tmp_path.iterdir()) == paths


def test_the_album_changes_no_picture(tmp_path):
    rows = [predicted_row("a", "small"), predicted_row("b")]
    album = Album()
    for row in rows:
        album.add(row, case_of(row["case"]))
    write_pictures(tmp_path / "album", rows, album, {}, pytest.fail)
    write_pictures(tmp_path / "read", rows, Album(), {}, lambda row: case_of(row["case"]))
    pngs = [(tmp_path / way / "overlays.png").read_bytes() for way in ("album", "read")]
    assert pngs[0] == pngs[1]
    assert (
        album.drawings["a"].pictures.result()
        == draw_case(case_of("a"), Painter()).pictures.result()
    )
