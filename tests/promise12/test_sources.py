"""Folders and zips that are damaged, hostile, or packed with what Python does not know."""

import shutil
import stat
import zipfile

import pytest

from src.promise12 import sources
from src.promise12.placing import lay_out
from src.promise12.sources import data_file_name
from src.utils.errors import DataError
from tests.helpers import tree
from tests.volumes import make_pairs, make_volume, zip_of


def zip_with(path, name, mode=None):
    entry = zipfile.ZipInfo(name)
    entry.filename = name  # ZipInfo would tidy it
    if mode is not None:
        entry.create_system, entry.external_attr = 3, mode << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Case00.mha", b"anything")
        archive.writestr(entry, b"/etc")
    return path


@pytest.mark.parametrize(
    "name, mode",
    [
        ("../Case01.mha", None),
        ("a/../../Case01.mha", None),
        ("/elsewhere/Case01.mha", None),
        ("..\\Case01.mha", None),
        ("C:\\Case01.mha", None),
        ("C:Case01.mha", None),
        ("\\\\host\\share\\Case01.mha", None),
        ("notes/../../x.txt", None),
        ("link", stat.S_IFLNK | 0o777),
    ],
)
def test_entries_that_would_leave_the_folder(tmp_path, name, mode):
    archive = zip_with(tmp_path / "training_data.zip", name, mode)
    with pytest.raises(DataError, match="training_data.zip: entry .* would leave"):
        lay_out([archive], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["training_data.zip"]


def test_backslashes_and_mac_files_in_a_zip(tmp_path):
    image = make_volume(tmp_path / "volumes/Case00.mha").read_bytes()
    with zipfile.ZipFile(tmp_path / "old.zip", "w") as archive:
        for name, content in [
            ("test_data\\Case00.mha", image),
            ("__MACOSX/._Case00.mha", b"x"),
            ("__MACOSX/Case09.mha", b"x"),
            ("training_data/.Case08.mha", b"x"),
        ]:
            entry = zipfile.ZipInfo()
            entry.filename = name
            archive.writestr(entry, content)
    lay_out([tmp_path / "old.zip"], tmp_path / "out")
    assert tree(tmp_path / "out") == {"TestData/img/Case00.mha": image}


@pytest.mark.parametrize("damage", ["truncated", "bit", "encrypted", "text"])
def test_damaged_archives(tmp_path, damage):
    folder = make_pairs(tmp_path / "volumes", ["Case00"])
    archive = zip_of(folder, tmp_path / "training_data.zip")
    content = bytearray(archive.read_bytes())
    if damage == "truncated":
        content = content[:-100]
    elif damage == "bit":
        content[content.index(b"Case00.raw") + 60] ^= 1
    elif damage == "encrypted":
        for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
            start = -1
            while (start := content.find(signature, start + 1)) >= 0:
                content[start + offset] |= 1
    else:
        content = b"<html>"
    archive.write_bytes(content)
    with pytest.raises(DataError, match="training_data.zip.*fetch the archive again"):
        lay_out([archive], tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def deflate64_zip(folder, path):
    """A zip whose entries are marked as method 9.

    Deflate64 differs from Deflate in the codes of 258-byte matches and of distances above 32 KiB
    only; level 0 makes neither.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=0) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        start = -1
        while (start := content.find(signature, start + 1)) >= 0:
            content[start + offset : start + offset + 2] = b"\x09\x00"
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive, pytest.raises(NotImplementedError):
        archive.read(archive.namelist()[0])
    return path


@pytest.mark.parametrize("tool", sources.UNPACKERS)
def test_deflate64(tmp_path, monkeypatch, tool):
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    folder = make_pairs(tmp_path / "volumes", ["Case00"])
    archive = deflate64_zip(folder, tmp_path / "TrainingData_Part1.zip")
    monkeypatch.setattr(sources, "UNPACKERS", {tool: sources.UNPACKERS[tool]})
    lay_out([archive], tmp_path / "out")
    assert sorted(tree(tmp_path / "out").values()) == sorted(tree(folder).values())


def test_deflate64_without_a_tool(tmp_path, monkeypatch):
    archive = deflate64_zip(make_pairs(tmp_path / "volumes", ["Case00"]), tmp_path / "a.zip")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="method 9; 9 is Deflate64.*apt install 7zip"):
        lay_out([archive], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "script, message",
    [
        ("#!/bin/sh\necho data error >&2\nexit 2\n", "7zz cannot unpack .*data error"),
        ("#!/bin/sh\necho other content\n", "7zz cannot unpack .*size or CRC differs"),
        ("#!/bin/sh\nprintf '%0SIZEd' 0\n", "7zz cannot unpack .*size or CRC differs"),
    ],
)
def test_deflate64_with_a_tool_that_fails(tmp_path, monkeypatch, script, message):
    volume = make_volume(tmp_path / "volumes/Case00.mha")
    archive = deflate64_zip(volume.parent, tmp_path / "a.zip")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/7zz").write_text(script.replace("SIZE", str(volume.stat().st_size)))
    (tmp_path / "bin/7zz").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(DataError, match=message):
        lay_out([archive], tmp_path / "out")


def test_entry_names_that_a_tool_would_take_as_options(tmp_path, monkeypatch):
    entry = zipfile.ZipInfo("-oelsewhere.mhd")
    entry.compress_type = 9
    monkeypatch.setattr(sources, "UNPACKERS", {"sh": ()})
    with pytest.raises(DataError, match="cannot be passed to sh"):
        sources._read_with_program(tmp_path / "a.zip", entry)


@pytest.mark.parametrize(
    "prepare, message",
    [
        (lambda path: None, "no such file or folder"),
        (lambda path: path.mkdir(), "holds no volume"),
        (lambda path: path.write_text("text"), "cannot be opened as a zip file"),
        (lambda path: zipfile.ZipFile(path, "w").close(), "holds no volume"),
    ],
)
def test_sources_that_hold_nothing(tmp_path, prepare, message):
    prepare(tmp_path / "source")
    with pytest.raises(DataError, match=f"source: {message}"):
        lay_out([tmp_path / "source"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_of_zip_files_gets_a_hint(tmp_path):
    zip_of(make_pairs(tmp_path / "volumes", ["Case00"]), tmp_path / "training_data.zip")
    shutil.rmtree(tmp_path / "volumes")
    with pytest.raises(DataError, match=r"say --source .*/\*.zip"):
        lay_out([tmp_path], tmp_path / "out")


@pytest.mark.parametrize(
    "header, expected",
    [
        (b"NDims = 3\nElementDataFile = Case00.raw\n", "Case00.raw"),
        (b"NDims = 3\r\nElementDataFile=a b.zraw\r\n", "a b.zraw"),
        (b"ElementDataFile = LOCAL\n\x00\x01", None),
        (b"NDims = 3\n", None),
    ],
)
def test_data_file(header, expected):
    assert data_file_name(header) == expected
