"""Whose file is it: ours may go, everybody else's stays."""

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
    check,
    claim,
    list_outputs,
    lock,
    register,
    remove,
)
from tests.helpers import ROOT, tree


def write(folder, names):
    for name in names:
        (folder / name).write_text(name)


# Asking -----------------------------------------------------------------------------------------


def test_a_check_writes_nothing(tmp_path, capsys):
    assert check(tmp_path / "a" / "b", ["m.csv"]) == []
    assert list(tmp_path.iterdir()) == []
    claim(tmp_path, ["a.mhd", "b.mhd", "c.mhd"])
    write(tmp_path, ["c.mhd", "a.mhd"])
    before = tree(tmp_path)
    assert check(str(tmp_path), ["a.mhd", "b.mhd", "c.mhd", "d.mhd"]) == ["a.mhd", "c.mhd"]
    assert tree(tmp_path) == before
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_check_names_the_foreign_file(tmp_path, kind):
    claim(tmp_path, ["a.mhd"])
    write(tmp_path, ["a.mhd"])
    foreign = tmp_path / "m.csv"
    foreign.mkdir() if kind == "folder" else foreign.touch()
    with pytest.raises(DataError) as error:
        check(tmp_path, ["a.mhd", "m.csv"])
    assert str(error.value).startswith(f"{foreign}: there already, and not written by this program")
    assert list_outputs(tmp_path) == {"a.mhd"}
    assert check(tmp_path, ["a.mhd", "other.csv"]) == ["a.mhd"]


# Claiming ---------------------------------------------------------------------------------------


def test_a_link_to_a_place_that_is_not_mounted_is_theirs(tmp_path):
    (tmp_path / "a.csv").symlink_to(tmp_path / "absent" / "a.csv")
    with pytest.raises(DataError, match="a.csv: there already, and not written by this program"):
        check(tmp_path, ["a.csv"])


def test_a_new_folder_is_made_and_remembers_its_names(tmp_path, capsys):
    folder = tmp_path / "a" / "b"
    claim(folder, ["m.csv", "x.mhd"])
    assert [path.name for path in folder.iterdir()] == [MANIFEST]
    assert json.loads((folder / MANIFEST).read_text()) == ["m.csv", "x.mhd"]
    assert capsys.readouterr().out == ""


def test_our_files_may_be_replaced_with_a_notice(tmp_path, capsys):
    claim(tmp_path, ["a.mhd", "b.mhd"])
    write(tmp_path, ["a.mhd", "b.mhd"])
    claim(tmp_path, ["b.mhd", "c.mhd"])
    assert f"{tmp_path}: replacing 1 file(s) of an earlier run\n" == capsys.readouterr().out
    assert (tmp_path / "a.mhd").read_text() == "a.mhd"
    write(tmp_path, ["c.mhd"])
    claim(tmp_path, ["a.mhd", "b.mhd", "c.mhd"])  # names of every earlier claim are known
    assert "replacing 3 file(s)" in capsys.readouterr().out


def test_names_that_were_never_written_are_no_news(tmp_path, capsys):
    claim(tmp_path, ["a.mhd"])
    claim(tmp_path, ["a.mhd"])
    assert capsys.readouterr().out == ""


def test_foreign_files_are_refused_and_nothing_changes(tmp_path, capsys):
    claim(tmp_path, ["a.mhd"])
    write(tmp_path, ["a.mhd", "metrics.csv", "notes.txt"])
    before = tree(tmp_path)
    with pytest.raises(DataError) as error:
        claim(tmp_path, ["a.mhd", "metrics.csv"])
    assert str(error.value).startswith(f"{tmp_path / 'metrics.csv'}: ")
    assert "move it away" in str(error.value)
    assert tree(tmp_path) == before
    assert capsys.readouterr().out == ""
    claim(tmp_path, ["a.mhd", "other.csv"])  # foreign files of other names do not matter


@pytest.mark.parametrize("content", ["", "{", "5", "[[1]]", "null", "\x00\x01"])
def test_with_a_damaged_manifest_no_file_counts_as_ours(tmp_path, content):
    claim(tmp_path, ["a.mhd"])
    write(tmp_path, ["a.mhd"])
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(DataError, match="a.mhd: there already"):
        claim(tmp_path, ["a.mhd"])
    claim(tmp_path, ["b.mhd"])
    assert "b.mhd" in json.loads((tmp_path / MANIFEST).read_text())


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_is_named(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError) as error:
        claim(tmp_path / place, ["a.mhd"])
    assert str(error.value).startswith(f"{tmp_path / place}: cannot be written")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_the_manifest_as_it_was(tmp_path, full_disk):
    claim(tmp_path, ["a.mhd"])
    before = (tmp_path / MANIFEST).read_bytes()
    with full_disk(100), pytest.raises(DataError, match="cannot be written"):
        claim(tmp_path, [f"Case{number:02d}_test.mhd" for number in range(50)])
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]
    assert (tmp_path / MANIFEST).read_bytes() == before


# Writing ----------------------------------------------------------------------------------------


def test_a_name_counts_once_its_file_is_there(tmp_path):
    with register(tmp_path, ["a.mhd", "b.mhd"]):
        assert list_outputs(tmp_path) == set()
        write(tmp_path, ["a.mhd"])
        assert list_outputs(tmp_path) == {"a.mhd"}
    write(tmp_path, ["b.mhd"])  # somebody else's
    assert list_outputs(tmp_path) == {"a.mhd"}
    for attempt in (claim, register(tmp_path, ["b.mhd"]).__enter__):
        with pytest.raises(DataError, match="b.mhd: there already"):
            attempt(tmp_path, ["b.mhd"]) if attempt is claim else attempt()


def test_what_fails_is_not_claimed(tmp_path):
    with pytest.raises(KeyboardInterrupt), register(tmp_path, ["a.mhd", "b.mhd"]):
        write(tmp_path, ["a.mhd"])
        raise KeyboardInterrupt
    assert json.loads((tmp_path / MANIFEST).read_text()) == ["a.mhd"]


def test_names_of_a_killed_process_are_forgotten_before_the_next_writes(tmp_path):
    """Then a file of that name is somebody else's."""
    script = (
        "import os, sys; from src.utils.output_folder import acquire, register\n"
        "with acquire(sys.argv[1]), register(sys.argv[1], ['a.mhd']): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, check=False)
    assert json.loads((tmp_path / MANIFEST).read_text()) == ["a.mhd"]
    assert (tmp_path / RUNNING).exists()
    (tmp_path / ".writing-abc").mkdir()
    write(tmp_path / ".writing-abc", ["a.mhd"])
    with acquire(tmp_path):
        assert not (tmp_path / MANIFEST).exists()
    assert list(tmp_path.iterdir()) == []


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
    claim(tmp_path, names)
    write(tmp_path, [*names, "notes.txt"])
    remove(str(tmp_path), {"a.mhd", "b.mhd"})
    assert capsys.readouterr().out == f"{tmp_path}: removing 2 file(s) of an earlier run\n"
    assert set(tree(tmp_path)) == {MANIFEST, "c.mhd", "notes.txt"}
    assert list_outputs(tmp_path) == {"c.mhd"}
    write(tmp_path, ["a.mhd"])  # somebody else's, of a name that was ours
    with pytest.raises(DataError, match="a.mhd: there already"):
        claim(tmp_path, names)
    assert (tmp_path / "a.mhd").read_text() == "a.mhd"


def test_nothing_to_remove_is_no_news(tmp_path, capsys):
    claim(tmp_path, ["a.mhd"])
    write(tmp_path, ["a.mhd"])
    remove(tmp_path, set())
    assert capsys.readouterr().out == ""
    assert set(tree(tmp_path)) == {MANIFEST, "a.mhd"}
    assert list_outputs(tmp_path) == {"a.mhd"}
