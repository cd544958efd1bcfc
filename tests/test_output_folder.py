"""Whose file is it: ours may go, everybody else's stays."""

import json

import pytest

from src.errors import DataError
from src.output_folder import MANIFEST, claim


def write(folder, names):
    for name in names:
        (folder / name).write_text(name)


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
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(DataError) as error:
        claim(tmp_path, ["a.mhd", "metrics.csv"])
    assert str(error.value).startswith(f"{tmp_path / 'metrics.csv'}: ")
    assert "move it away" in str(error.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
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
