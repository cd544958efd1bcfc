"""The processes that draw: the same pictures, errors told, nothing left running."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from src.report import painter as module
from src.report.album import draw_case
from src.report.page import MetricGroups
from src.report.painter import Painter
from src.report.planes import OverlayCase
from src.utils.errors import DataError
from tests.helpers import ROOT, wait_until
from tests.report.made import box_mask, grey_image, on_grid

VALUES = MetricGroups("dice", "", {"whole_gland": [0.5, 0.75]})


def process_ids(painter):
    return [child._process.pid for child in painter._children]


def is_running(process_id):
    """Whether there is a process, other than one that has ended and is not waited for."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def painter():
    with Painter(2) as painter:
        yield painter


def test_other_processes_draw_the_same_bytes(painter):
    case = OverlayCase("a", grey_image(), on_grid(box_mask()), on_grid(box_mask(x=(25, 44))))
    ours, theirs = (draw_case(case, by) for by in (Painter(), painter))
    assert theirs.pictures.result() == ours.pictures.result()
    for job in (("overlays_png", [ours.overlay], 1), ("box_plot_picture", VALUES)):
        assert painter.submit(*job).result() == Painter().submit(*job).result()


def test_an_error_of_a_drawing_is_raised_and_the_process_goes_on(painter):
    before = process_ids(painter)
    broken = [painter.submit("overlays_png", ["no row"], 1) for _ in range(4)]
    for future in broken:
        with pytest.raises(AttributeError, match="'str' object has no attribute 'dice'"):
            future.result()
    with pytest.raises(AttributeError, match="has no attribute 'no_such_function'"):
        painter.submit("no_such_function").result()
    assert painter.submit("box_plot_picture", VALUES).result().uri.startswith("data:image/png")
    assert process_ids(painter) == before and all(map(is_running, before))


def test_without_other_processes_this_one_draws(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", sys.executable)

    monkeypatch.setattr(module.subprocess, "Popen", refuse)
    with Painter(2) as alone:
        drawn = alone.submit("box_plot_picture", VALUES).result()
    assert drawn.uri.startswith("data:image/png")


def test_a_process_that_is_killed_is_told():
    with Painter(1) as painter:
        painter.submit("box_plot_picture", VALUES).result()
        os.kill(*process_ids(painter), signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(DataError, match=r"draws the pictures ended \(signal 9\)"):
                painter.submit("box_plot_picture", VALUES).result()


def test_calls_wait_where_too_many_are_waiting(monkeypatch):
    """So that the slices of few cases only are in memory."""
    monkeypatch.setattr(module, "WAITING", 1)
    with Painter(1) as painter:
        process_id = process_ids(painter)[0]
        os.kill(process_id, signal.SIGSTOP)
        submitted = []

        def submit_all():
            for _ in range(4):
                submitted.append(painter.submit("box_plot_picture", VALUES))

        thread = threading.Thread(target=submit_all)
        thread.start()
        wait_until(lambda: len(submitted) == 2)
        thread.join(0.2)
        assert len(submitted) == 2 and thread.is_alive()
        os.kill(process_id, signal.SIGCONT)
        thread.join()
        assert len({future.result() for future in submitted}) == 1


@pytest.mark.parametrize(("end", "code"), [("INT", 130), ("KILL", -9)])
def test_no_process_stays(end, code, tmp_path):
    """Whether Ctrl-C, which all processes of a terminal get, or a kill ends the one that waits."""
    program = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(ROOT)!r})
        from src.report.painter import Painter
        from src.utils.command_line import run
        def main():
            with Painter(2) as painter:
                drawn = [painter.submit("box_plot_picture", {tuple(VALUES)!r}) for _ in range(2)]
                [future.result() for future in drawn]
                ids = [str(child._process.pid) for child in painter._children]
                Path("ids.tmp").write_text(" ".join(ids))
                Path("ids.tmp").rename("ids")
                while True:
                    painter.submit("box_plot_picture", {tuple(VALUES)!r}).result()
        run(main)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until((tmp_path / "ids").exists)
    ids = [int(text) for text in (tmp_path / "ids").read_text().split()]
    if end == "INT":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.kill()
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert said == ("error: interrupted\n" if end == "INT" else "")
    wait_until(lambda: not any(map(is_running, ids)))
