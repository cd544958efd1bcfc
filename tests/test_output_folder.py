"""Whose file is it: ours may go, everybody else's stays."""

import json

import pytest

from src.errors import DataError
from src.output_folder import MANIFEST, check, claim, outputs_in, remove


def write(folder, names):
    for name in names:
        (folder / name).write_text(name)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Asking -----------------------------------------------------------------------------------------


def test_a_check_writes_nothing(tmp_path, capsys):
    assert check(tmp_path / "a" / "b", ["m.csv"]) == []
    assert list(tmp_path.iterdir()) == []
    claim(tmp_path, ["a.mhd", "b.mhd", "c.mhd"])
    write(tmp_path, ["c.mhd", "a.mhd"])
    before = contents(tmp_path)
    assert check(str(tmp_path), ["a.mhd", "b.mhd", "c.mhd", "d.mhd"]) == ["a.mhd", "c.mhd"]
    assert contents(tmp_path) == before
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
    assert outputs_in(tmp_path) == {"a.mhd"}
    assert check(tmp_path, ["a.mhd", "other.csv"]) == ["a.mhd"]


# Claiming ---------------------------------------------------------------------------------------


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
    before = contents(tmp_path)
    with pytest.raises(DataError) as error:
        claim(tmp_path, ["a.mhd", "metrics.csv"])
    assert str(error.value).startswith(f"{tmp_path / 'metrics.csv'}: ")
    assert "move it away" in str(error.value)
    assert contents(tmp_path) == before
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
    assert str(error.value).startswith(f"{tmp_path / place / MANIFEST}: cannot be written")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_the_manifest_as_it_was(tmp_path, full_disk):
    claim(tmp_path, ["a.mhd"])
    before = (tmp_path / MANIFEST).read_bytes()
    with full_disk(100), pytest.raises(DataError, match="cannot be written"):
        claim(tmp_path, [f"Case{number:02d}_test.mhd" for number in range(50)])
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]
    assert (tmp_path / MANIFEST).read_bytes() == before


# Removing ---------------------------------------------------------------------------------------


def test_what_is_removed_is_forgotten(tmp_path, capsys):
    names = ["a.mhd", "b.mhd", "c.mhd"]
    claim(tmp_path, names)
    write(tmp_path, [*names, "notes.txt"])
    remove(str(tmp_path), {"a.mhd", "b.mhd"})
    assert capsys.readouterr().out == f"{tmp_path}: removing 2 file(s) of an earlier run\n"
    assert set(contents(tmp_path)) == {MANIFEST, "c.mhd", "notes.txt"}
    assert outputs_in(tmp_path) == {"c.mhd"}
    write(tmp_path, ["a.mhd"])  # somebody else's, of a name that was ours
    with pytest.raises(DataError, match="a.mhd: there already"):
        claim(tmp_path, names)
    assert (tmp_path / "a.mhd").read_text() == "a.mhd"


def test_nothing_to_remove_is_no_news(tmp_path, capsys):
    claim(tmp_path, ["a.mhd"])
    write(tmp_path, ["a.mhd"])
    remove(tmp_path, set())
    assert capsys.readouterr().out == ""
    assert set(contents(tmp_path)) == {MANIFEST, "a.mhd"}
    assert outputs_in(tmp_path) == {"a.mhd"}
