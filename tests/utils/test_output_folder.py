"""Whose file is it: ours as we wrote it may go, everybody else's stays."""

import hashlib
import json
import subprocess
import sys
import threading

import pytest

from src.utils.errors import DataError
from src.utils.output_folder import (
    LOCK,
    MANIFEST,
    RUNNING,
    acquire,
    announce,
    check,
    list_outputs,
    lock,
    register,
    remove,
    rewriting,
)
from tests.helpers import ROOT, tree


def write(folder, names):
    for name in names:
        (folder / name).write_text(name)


def write_ours(folder, names):
    with register(folder, names):
        write(folder, names)


def registered(folder):
    return json.loads((folder / MANIFEST).read_text())


# Asking -----------------------------------------------------------------------------------------


def test_a_check_writes_nothing(tmp_path, capsys):
    assert check(tmp_path / "a" / "b", ["m.csv"]) == []
    assert list(tmp_path.iterdir()) == []
    write_ours(tmp_path, ["c.mhd", "a.mhd"])
    before = tree(tmp_path)
    assert check(str(tmp_path), ["a.mhd", "b.mhd", "c.mhd", "d.mhd"]) == ["a.mhd", "c.mhd"]
    assert tree(tmp_path) == before
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_check_names_the_foreign_file(tmp_path, kind):
    write_ours(tmp_path, ["a.mhd"])
    foreign = tmp_path / "m.csv"
    foreign.mkdir() if kind == "folder" else foreign.touch()
    with pytest.raises(DataError) as error:
        check(tmp_path, ["a.mhd", "m.csv"])
    assert str(error.value).startswith(f"{foreign}: there already, and not written by this program")
    assert list_outputs(tmp_path) == {"a.mhd"}
    assert check(tmp_path, ["a.mhd", "other.csv"]) == ["a.mhd"]


def test_a_link_to_a_place_that_is_not_mounted_is_theirs(tmp_path):
    (tmp_path / "a.csv").symlink_to(tmp_path / "absent" / "a.csv")
    with pytest.raises(DataError, match="a.csv: there already, and not written by this program"):
        check(tmp_path, ["a.csv"])


def test_a_new_folder_is_made_and_remembers_its_names(tmp_path, capsys):
    folder = tmp_path / "a" / "b"
    with register(folder, ["m.csv", "x.mhd"]):
        assert [path.name for path in folder.iterdir()] == [MANIFEST]
        assert registered(folder) == {"m.csv": None, "x.mhd": None}
        write(folder, ["m.csv", "x.mhd"])
    assert registered(folder) == {
        name: hashlib.sha256(name.encode()).hexdigest() for name in ("m.csv", "x.mhd")
    }
    assert capsys.readouterr().out == ""


def test_our_files_may_be_replaced_with_a_notice(tmp_path, capsys):
    write_ours(tmp_path, ["a.mhd", "b.mhd"])
    announce(tmp_path, ["b.mhd", "c.mhd"])
    assert f"{tmp_path}: replacing 1 file(s) of an earlier run\n" == capsys.readouterr().out
    write_ours(tmp_path, ["c.mhd"])
    announce(tmp_path, ["a.mhd", "b.mhd", "c.mhd", "d.mhd"])
    assert "replacing 3 file(s)" in capsys.readouterr().out
    announce(tmp_path, ["d.mhd"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("change", ["edited", "cut", "unreadable"])
def test_our_files_stay_once_they_were_edited(tmp_path, change):
    """A corrected mask, a table with remarks, a model card that was filled in."""
    write_ours(tmp_path, ["a.mhd", "volumes.csv"])
    if change == "unreadable":
        (tmp_path / "a.mhd").unlink()
        (tmp_path / "a.mhd").mkdir()
    else:
        (tmp_path / "a.mhd").write_text("a.mhd, by hand" if change == "edited" else "a")
    before = tree(tmp_path)
    for attempt in (
        lambda: check(tmp_path, ["volumes.csv", "a.mhd"]),
        lambda: announce(tmp_path, ["a.mhd"]),
        lambda: register(tmp_path, ["b.mhd", "a.mhd"]).__enter__(),
        lambda: remove(tmp_path, {"volumes.csv", "a.mhd"}),
    ):
        with pytest.raises(DataError) as error:
            attempt()
        assert str(error.value) == (
            f"{tmp_path / 'a.mhd'}: edited or damaged since this program wrote it; move it away, "
            "or choose another folder"
        )
    assert tree(tmp_path) == before and list_outputs(tmp_path) == {"a.mhd", "volumes.csv"}
    (tmp_path / "a.mhd").rename(tmp_path / "mine.mhd")
    write_ours(tmp_path, ["a.mhd", "volumes.csv"])


def test_what_was_written_while_others_write_is_ours(tmp_path):
    """Two write a table in turn, each from its own `register`."""
    table = tmp_path / "volumes.csv"
    with register(tmp_path, [table.name], shared=True):
        with (
            register(tmp_path, [table.name], shared=True),
            lock(tmp_path),
            rewriting(tmp_path, [table.name]),
        ):
            table.write_text("second")
        check(tmp_path, [table.name])
        with lock(tmp_path), rewriting(tmp_path, [table.name]):
            table.write_text("first")
        check(tmp_path, [table.name])
        table.write_text("by hand")
        with (
            lock(tmp_path),
            pytest.raises(DataError, match="edited or damaged"),
            rewriting(tmp_path, [table.name]),
        ):
            pytest.fail("let in")
    with pytest.raises(DataError, match="edited or damaged"):
        check(tmp_path, [table.name])
    assert table.read_text() == "by hand"


def test_the_last_of_two_that_write_a_file_has_written_it(tmp_path):
    """Two exports, say, with one description."""
    with register(tmp_path, ["vnet.json"]):
        with register(tmp_path, ["vnet.json"]):
            (tmp_path / "vnet.json").write_text("of the second")
        (tmp_path / "vnet.json").write_text("of the first")
    check(tmp_path, ["vnet.json"])


def test_an_end_on_a_full_disk_is_told_as_what_it_is(tmp_path, monkeypatch):
    def full(*_, **__):
        raise DataError("no space left")

    with pytest.raises(KeyboardInterrupt), register(tmp_path, ["a.mhd"]):
        monkeypatch.setattr("src.utils.output_folder.write_json", full)
        write(tmp_path, ["a.mhd"])
        raise KeyboardInterrupt


def test_foreign_files_are_refused_and_nothing_changes(tmp_path, capsys):
    write_ours(tmp_path, ["a.mhd"])
    write(tmp_path, ["metrics.csv", "notes.txt"])
    before = tree(tmp_path)
    with pytest.raises(DataError) as error, register(tmp_path, ["a.mhd", "metrics.csv"]):
        pytest.fail("let in")
    assert str(error.value).startswith(f"{tmp_path / 'metrics.csv'}: ")
    assert "move it away" in str(error.value)
    assert tree(tmp_path) == before
    assert capsys.readouterr().out == ""
    check(tmp_path, ["a.mhd", "other.csv"])  # foreign files of other names do not matter


def test_a_list_of_an_earlier_version_has_no_hashes(tmp_path):
    write(tmp_path, ["a.mhd", "b.mhd"])
    (tmp_path / MANIFEST).write_text('["a.mhd"]')
    assert check(tmp_path, ["a.mhd"]) == ["a.mhd"]
    with pytest.raises(DataError, match="b.mhd: there already"):
        check(tmp_path, ["b.mhd"])
    write_ours(tmp_path, ["a.mhd"])
    (tmp_path / "a.mhd").write_text("by hand")
    with pytest.raises(DataError, match="a.mhd: edited or damaged"):
        check(tmp_path, ["a.mhd"])
    assert check(tmp_path, ["a.mhd"], may_be_edited=["a.mhd"]) == ["a.mhd"]


@pytest.mark.parametrize("content", ["", "{", "5", "[[1]]", "null", "\x00\x01"])
def test_with_a_damaged_manifest_no_file_counts_as_ours(tmp_path, content):
    write_ours(tmp_path, ["a.mhd"])
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(DataError, match="a.mhd: there already"):
        check(tmp_path, ["a.mhd"])
    write_ours(tmp_path, ["b.mhd"])
    assert "b.mhd" in registered(tmp_path)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_is_named(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError) as error, register(tmp_path / place, ["a.mhd"]):
        pytest.fail("let in")
    assert str(error.value).startswith(f"{tmp_path / place}: cannot be written")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_the_manifest_as_it_was(tmp_path, full_disk):
    write_ours(tmp_path, ["a.mhd"])
    before = (tmp_path / MANIFEST).read_bytes()
    with full_disk(100), pytest.raises(DataError, match="cannot be written"):
        register(tmp_path, [f"Case{number:02d}_test.mhd" for number in range(50)]).__enter__()
    assert {path.name for path in tmp_path.iterdir()} == {MANIFEST, "a.mhd"}
    assert (tmp_path / MANIFEST).read_bytes() == before


# Writing ----------------------------------------------------------------------------------------


def test_a_name_counts_once_its_file_is_there(tmp_path):
    with register(tmp_path, ["a.mhd", "b.mhd"]):
        assert list_outputs(tmp_path) == set()
        write(tmp_path, ["a.mhd"])
        assert list_outputs(tmp_path) == {"a.mhd"}
    write(tmp_path, ["b.mhd"])  # somebody else's
    assert list_outputs(tmp_path) == {"a.mhd"}
    with pytest.raises(DataError, match="b.mhd: there already"):
        check(tmp_path, ["b.mhd"])


def test_what_fails_is_not_claimed(tmp_path):
    with pytest.raises(KeyboardInterrupt), register(tmp_path, ["a.mhd", "b.mhd"]):
        write(tmp_path, ["a.mhd"])
        raise KeyboardInterrupt
    assert list(registered(tmp_path)) == ["a.mhd"]


def test_names_of_a_killed_process_are_forgotten_before_the_next_writes(tmp_path):
    """Then a file of that name is somebody else's."""
    script = (
        "import os, sys; from src.utils.output_folder import acquire, register\n"
        "with acquire(sys.argv[1]), register(sys.argv[1], ['a.mhd']): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, check=False)
    assert list(registered(tmp_path)) == ["a.mhd"]
    assert (tmp_path / RUNNING).exists()
    (tmp_path / ".writing-abc").mkdir()
    write(tmp_path / ".writing-abc", ["a.mhd"])
    with acquire(tmp_path):
        assert not (tmp_path / MANIFEST).exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writes", [True, False])
def test_a_file_that_a_killed_process_was_writing_is_ours(tmp_path, writes):
    """With its old or its new content."""
    write_ours(tmp_path, ["volumes.csv"])
    script = (
        "import os, sys; from pathlib import Path\n"
        "from src.utils.output_folder import lock, register, rewriting\n"
        "folder, names = Path(sys.argv[1]), ['volumes.csv']\n"
        "with register(folder, names), lock(folder), rewriting(folder, names):\n"
        "    if sys.argv[2] == 'True': (folder / 'volumes.csv').write_text('new')\n"
        "    os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(writes)]
    subprocess.run(command, cwd=ROOT, check=False)
    assert (tmp_path / "volumes.csv").read_text() == ("new" if writes else "volumes.csv")
    assert check(tmp_path, ["volumes.csv"]) == ["volumes.csv"]


# Several at once --------------------------------------------------------------------------------


def test_no_name_is_lost_where_several_write(tmp_path):
    """Each claims its names one by one; without a lock most would be lost."""

    def claims(number):
        for k in range(20):
            name = f"{number}-{k}"
            with register(tmp_path, [name]):
                write(tmp_path, [name])

    threads = [threading.Thread(target=claims, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list_outputs(tmp_path) == {f"{number}-{k}" for number in range(4) for k in range(20)}
    assert not (tmp_path / LOCK).exists()


def test_a_name_of_two_processes_is_not_forgotten_with_the_first(tmp_path):
    with register(tmp_path, ["a.mhd", "report.html"]):
        with register(tmp_path, ["b.mhd", "report.html"]):  # which writes no report
            write(tmp_path, ["b.mhd"])
        write(tmp_path, ["a.mhd", "report.html"])
    assert list_outputs(tmp_path) == {"a.mhd", "b.mhd", "report.html"}


def test_who_wants_to_be_alone_is_or_is_refused(tmp_path):
    folder = tmp_path / "a" / "b"
    for first, second in ((None, None), (None, ["x"]), (["x"], None)):
        with acquire(folder, first) as alone:
            assert alone
            with pytest.raises(DataError) as error, acquire(folder, second):
                pytest.fail("let in")
            assert str(error.value) == (
                f"{folder}: another evaluation or prediction is writing there; wait for it or "
                "choose another folder"
            )
    assert list(tmp_path.iterdir()) == []  # nothing was written: no folder is left


def test_different_cases_are_written_together(tmp_path):
    with acquire(tmp_path, ["a", "b"]) as alone:
        assert alone
        with acquire(tmp_path, ["c"]) as alone:
            assert not alone
            for cases in (["d", "b"], ["c"]):
                with pytest.raises(DataError, match=f"is writing its {cases[-1]} there"):
                    acquire(tmp_path, cases).__enter__()
        with acquire(tmp_path, ["d"]) as alone:
            assert not alone
    with acquire(tmp_path, ["b"]) as alone:
        assert alone
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_waited_for(tmp_path):
    order = []

    def wait():
        with lock(tmp_path):
            order.append("second")

    with lock(tmp_path):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


# Removing ---------------------------------------------------------------------------------------


def test_what_is_removed_is_forgotten(tmp_path, capsys):
    names = ["a.mhd", "b.mhd", "c.mhd"]
    write_ours(tmp_path, names)
    write(tmp_path, ["notes.txt"])
    remove(str(tmp_path), {"a.mhd", "b.mhd"})
    assert capsys.readouterr().out == f"{tmp_path}: removing 2 file(s) of an earlier run\n"
    assert set(tree(tmp_path)) == {MANIFEST, "c.mhd", "notes.txt"}
    assert list_outputs(tmp_path) == {"c.mhd"}
    write(tmp_path, ["a.mhd"])  # somebody else's, of a name that was ours
    with pytest.raises(DataError, match="a.mhd: there already"):
        check(tmp_path, names)


def test_nothing_to_remove_is_no_news(tmp_path, capsys):
    write_ours(tmp_path, ["a.mhd"])
    remove(tmp_path, set())
    assert capsys.readouterr().out == ""
    assert set(tree(tmp_path)) == {MANIFEST, "a.mhd"}
    assert list_outputs(tmp_path) == {"a.mhd"}
