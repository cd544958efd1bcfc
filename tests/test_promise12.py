"""Download from a local server that fails in all the usual ways, layout, check of volumes."""

import hashlib
import shutil
import stat
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

import prepare_data
from src import promise12
from src.cli import run
from src.errors import DataError
from src.promise12 import check, data_file, download, fetch, format_table, lay_out, report


def make_volume(path, seed=0, size=(6, 5, 4), values=None):
    """An image, or a mask where the name says so, in the format of its suffix; returns the path."""
    is_mask = "_segmentation" in path.name
    if values is None:
        values = np.random.default_rng(seed).integers(0, 900, size[::-1]).astype(np.int16)
        if is_mask:
            values = np.zeros(size[::-1], np.uint8)
            values[1:3, 1:4, 2:4] = 1  # 12 voxels
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.5, 0.5, 4.0))
    image.SetOrigin((-10.0, 20.0, 30.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def make_pairs(folder, names, suffix=".mhd", seed=0):
    for number, name in enumerate(names):
        make_volume(folder / f"{name}{suffix}", seed=seed + number)
        make_volume(folder / f"{name}_segmentation{suffix}")
    return folder


def zip_of(folder, path, prefix=""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"{prefix}{file.name}")
    return path


def tree(folder):
    """Relative path -> content of each file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Download ---------------------------------------------------------------------------------------


class Server(BaseHTTPRequestHandler):
    """Serves `server.files`; `server.faults` says what goes wrong, one entry a request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.requests.append((self.path, asked, self.headers.get("If-Range")))
        fault = server.faults.pop(0) if server.faults else None
        if isinstance(fault, Exception):
            self.close_connection = True
            return
        content = server.files.get(self.path.partition("?")[0])
        if isinstance(fault, int) or content is None:
            self.answer(fault or 404, b"sorry", {})
            return
        headers = {"ETag": server.etag} if server.etag else {}
        first = int(asked[len("bytes=") : -1]) if asked else 0
        if not asked or not server.ranges or self.headers.get("If-Range") != server.etag:
            self.answer(200, content, headers, fault)
        elif first >= len(content):
            self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        else:
            start = first + server.shift
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.answer(206, content[start:], headers, fault)

    def answer(self, code, body, headers, cut=None):
        """`cut` is a string such as 'cut 100': the connection ends after so many bytes."""
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: int(cut.split()[1])] if cut else body)
        if cut:
            self.close_connection = True

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.files, server.requests, server.faults = {}, [], []
    server.etag, server.ranges, server.shift = '"v1"', True, 0
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def payload(server):
    content = np.random.default_rng(5).bytes(100_000)
    server.files["/data.bin"] = content
    return content


def fetched(server, tmp_path, **arguments):
    path = fetch(f"{server.url}/data.bin", tmp_path / "data.bin", pause_s=0.0, **arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["data.bin"]
    return path.read_bytes()


def ranges(server):
    return [asked for _, asked, _ in server.requests]


def test_fetch_in_one_go(server, payload, tmp_path):
    assert fetched(server, tmp_path, md5=hashlib.md5(payload).hexdigest()) == payload
    assert server.requests == [("/data.bin", None, None)]


def test_fetch_goes_on_where_the_connection_was_cut(server, payload, tmp_path, capsys):
    server.faults = ["cut 30000", "cut 20000", 503, ConnectionError()]
    assert fetched(server, tmp_path) == payload
    assert ranges(server) == [None, "bytes=30000-", *["bytes=50000-"] * 3]
    assert {validator for _, _, validator in server.requests[1:]} == {'"v1"'}
    assert "cut at 30000 of 100000 bytes; next attempt" in capsys.readouterr().out


def test_fetch_does_not_give_up_while_something_comes(server, payload, tmp_path):
    server.faults = ["cut 9000"] * 11
    assert fetched(server, tmp_path, attempts=2) == payload
    assert ranges(server)[-1] == "bytes=99000-"


def test_fetch_goes_on_in_a_later_run(server, payload, tmp_path):
    server.faults = ["cut 30000", 503, 503]
    with pytest.raises(DataError, match="503.*run the command again, it goes on"):
        fetch(f"{server.url}/data.bin", tmp_path / "data.bin", attempts=3, pause_s=0.0)
    assert not (tmp_path / "data.bin").exists()
    assert fetched(server, tmp_path) == payload
    assert ranges(server)[-1] == "bytes=30000-"


def test_fetch_whose_last_run_was_killed_before_the_renaming(server, payload, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(payload)
    (tmp_path / "data.bin.part.etag").write_text('"v1"')
    assert fetched(server, tmp_path) == payload
    assert ranges(server) == ["bytes=100000-"]


def test_fetch_drops_a_part_that_is_too_long(server, payload, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(payload + b"more")
    (tmp_path / "data.bin.part.etag").write_text('"v1"')
    assert fetched(server, tmp_path) == payload
    assert ranges(server) == ["bytes=100004-", None]


def test_fetch_from_a_server_without_ranges(server, payload, tmp_path):
    server.ranges = False
    server.faults = ["cut 30000", "cut 60000"]
    assert fetched(server, tmp_path) == payload


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_fetch_starts_anew_without_a_validator(server, payload, tmp_path, etag):
    server.etag = etag
    server.faults = ["cut 30000"]
    assert fetched(server, tmp_path) == payload
    assert ranges(server) == [None, None]


def test_fetch_starts_anew_when_the_file_changed(server, payload, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(b"of another version")
    (tmp_path / "data.bin.part.etag").write_text('"v0"')
    assert fetched(server, tmp_path) == payload


def test_fetch_does_not_join_what_does_not_fit(server, payload, tmp_path):
    server.faults, server.shift = ["cut 30000"], 7
    assert fetched(server, tmp_path) == payload
    assert ranges(server) == [None, "bytes=30000-", None]


def test_fetch_gives_up_on_a_server_that_brings_nothing_new(server, payload, tmp_path):
    server.ranges = False
    server.faults = ["cut 30000"] * 20
    with pytest.raises(DataError, match="cut at 30000 of 100000 bytes"):
        fetched(server, tmp_path, attempts=4)
    assert len(server.requests) == 4


def test_wrong_checksum_leaves_nothing(server, payload, tmp_path):
    with pytest.raises(
        DataError, match=f"MD5 {hashlib.md5(payload).hexdigest()}, expected 0{{32}}"
    ):
        fetched(server, tmp_path, md5="0" * 32)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code, requests", [(404, 1), (403, 1), (500, 3), (429, 3)])
def test_http_errors(server, payload, tmp_path, code, requests):
    server.faults = [code] * 9
    with pytest.raises(DataError, match=f"data.bin: the server answers {code} "):
        fetched(server, tmp_path, attempts=3)
    assert len(server.requests) == requests
    assert not list(tmp_path.iterdir())


def test_no_server(server, tmp_path):
    with pytest.raises(DataError, match="no connection"):
        fetch("http://127.0.0.1:9/data.bin", tmp_path / "data.bin", attempts=2, pause_s=0.0)


def test_full_disk_is_not_taken_for_a_lost_connection(server, payload, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(promise12, "tqdm", full)
    with pytest.raises(OSError, match="No space left"):
        fetched(server, tmp_path)
    assert len(server.requests) == 1


def test_existing_files(server, payload, tmp_path):
    (tmp_path / "data.bin").write_bytes(b"mine")
    assert fetched(server, tmp_path) == b"mine"
    with pytest.raises(DataError, match="MD5 .*expected.*move it away"):
        fetched(server, tmp_path, md5="0" * 32)
    assert (tmp_path / "data.bin").read_bytes() == b"mine"
    assert not server.requests


def test_download_of_a_record(server, tmp_path, capsys):
    make_pairs(tmp_path / "files", ["Case00"])
    archive = zip_of(tmp_path / "files", tmp_path / "a.zip").read_bytes()
    server.files = {
        "/record/files/training_data.zip": archive,
        "/record/files/test_data.zip": b"<html>please log in</html>",
        "/record/files/LICENSE.TXT": b"Cite the paper.\n",
    }
    names = {"training_data.zip": hashlib.md5(archive).hexdigest()}
    folder = tmp_path / "out" / "download"
    for _ in range(2):
        paths = download(folder, f"{server.url}/record", names, pause_s=0.0)
        assert paths == [folder / "training_data.zip"]
        assert paths[0].read_bytes() == archive
        assert "    Cite the paper." in capsys.readouterr().out
    assert [path for path, _, _ in server.requests] == [
        "/record/files/LICENSE.TXT?download=1",
        "/record/files/training_data.zip?download=1",
    ]
    with pytest.raises(DataError, match="no zip file"):
        download(folder, f"{server.url}/record", {"test_data.zip": None}, pause_s=0.0)
    assert sorted(path.name for path in folder.iterdir()) == ["LICENSE.TXT", "training_data.zip"]


def test_licence_that_cannot_be_fetched(server, tmp_path, capsys):
    assert download(tmp_path, f"{server.url}/record", {}) == []
    assert f"stands at {server.url}/record" in capsys.readouterr().out


def test_the_record():
    assert promise12.RECORD_URL == "https://zenodo.org/records/8026660"
    assert promise12.ARCHIVES_MD5["training_data.zip"] == "f6d23994117c989daf07e5291edd0aea"


# Layout -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mhd", ".mha", ".nii.gz", ".nii", ".nrrd"])
def test_flat_folder(tmp_path, suffix):
    source = make_pairs(tmp_path / "volumes", ["Case00", "x 1"], suffix)
    (source / "notes.txt").write_text("not a volume")
    before = tree(source)
    lay_out([source], tmp_path / "out")
    assert tree(source) == before
    expected = {
        f"TrainData/{'gt' if '_segmentation' in name else 'img'}/{name}": content
        for name, content in before.items()
        if name != "notes.txt"
    }
    assert tree(tmp_path / "out") == expected
    assert (check(tmp_path / "out")["problems"] == "").all()


@pytest.mark.parametrize(
    "place, masked, expected",
    [
        ("training_data", True, "TrainData"),
        ("test_data", True, "TestData"),
        ("test_data", False, "TestData"),
        ("livechallenge_test_data", True, "LiveTestData"),
        ("TrainingData_Part2", True, "TrainData"),
        ("promise12/TrainData", False, "TrainData"),
        ("promise12/TestData", False, "TestData"),
        ("LiveTestData", False, "LiveTestData"),
        ("test_data/training_data", True, "TrainData"),
        ("latest", True, "TrainData"),
        ("hospital", True, "TrainData"),
        ("hospital", False, "TestData"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_set_follows_from_the_names(tmp_path, place, masked, expected, zipped):
    volumes = tmp_path / "in" / place
    make_volume(volumes / "Case00.mhd")
    if masked:
        make_volume(volumes / "Case00_segmentation.mhd")
    source = tmp_path / "in" / Path(place).parts[0]
    if zipped:
        source = Path(shutil.make_archive(str(source), "zip", source.parent, source.name))
    lay_out([source], tmp_path / "out")
    names = {"img/Case00.mhd", "img/Case00.raw"}
    names |= {"gt/Case00_segmentation.mhd", "gt/Case00_segmentation.raw"} if masked else set()
    assert set(tree(tmp_path / "out")) == {f"{expected}/{name}" for name in names}


def test_archives_as_the_record_has_them(tmp_path):
    expected = {}
    for number, (name, target) in enumerate(
        [
            ("training_data", "TrainData"),
            ("test_data", "TestData"),
            ("livechallenge_test_data", "LiveTestData"),
        ]
    ):
        folder = make_pairs(tmp_path / name, ["Case00", "Case01"], seed=10 * number)
        zip_of(folder, tmp_path / f"{name}.zip", f"{name}/")
        for file, content in tree(folder).items():
            expected[f"{target}/{'gt' if '_seg' in file else 'img'}/{file}"] = content
    archives = sorted(tmp_path.glob("*.zip"))
    lay_out(archives, tmp_path / "out")
    assert tree(tmp_path / "out") == expected


def test_flat_parts_meet_in_one_set(tmp_path, capsys):
    for part in (1, 2):
        folder = make_pairs(tmp_path / f"part{part}", [f"Case0{part}"])
        zip_of(folder, tmp_path / f"TrainingData_Part{part}.zip")
        lay_out([tmp_path / f"TrainingData_Part{part}.zip"], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out/TrainData/img").iterdir()) == [
        "Case01.mhd",
        "Case01.raw",
        "Case02.mhd",
        "Case02.raw",
    ]
    assert capsys.readouterr().out.count("4 files written, 0 there already") == 2


def test_img_gt_layout_and_the_zoos_test_folder(tmp_path):
    make_volume(tmp_path / "data/TrainData/img/Case00.mhd")
    make_volume(tmp_path / "data/TrainData/gt/Case00_segmentation.mhd")
    make_volume(tmp_path / "data/TestData/Case00.mhd", seed=1)
    lay_out([tmp_path / "data"], tmp_path / "out")
    assert set(tree(tmp_path / "out")) == {
        "TrainData/img/Case00.mhd",
        "TrainData/img/Case00.raw",
        "TrainData/gt/Case00_segmentation.mhd",
        "TrainData/gt/Case00_segmentation.raw",
        "TestData/img/Case00.mhd",
        "TestData/img/Case00.raw",
    }


def test_voxels_follow_the_name_in_their_header(tmp_path):
    header = make_volume(tmp_path / "volumes/Case00.mhd")
    header.with_suffix(".raw").rename(header.with_name("voxels.bin"))
    header.write_text(header.read_text().replace("Case00.raw", "voxels.bin"))
    lay_out([header.parent], tmp_path / "out")
    assert check(tmp_path / "out")["problems"].tolist() == [""]


def test_second_run_keeps_what_is_there(tmp_path, capsys):
    source = make_pairs(tmp_path / "volumes", ["Case00", "Case01"])
    lay_out([source], tmp_path / "out")
    (tmp_path / "out/TrainData/img/Case01.raw").unlink()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}
    lay_out([source, zip_of(source, tmp_path / "volumes.zip")], tmp_path / "out")
    assert "1 files written, 7 there already" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert (tmp_path / "out/TrainData/img/Case01.raw").exists()


def test_other_content_is_never_replaced(tmp_path):
    source = make_pairs(tmp_path / "volumes", ["Case00"])
    lay_out([source], tmp_path / "out")
    before = tree(tmp_path / "out")
    make_pairs(source, ["Case00", "Case01"], seed=8)
    with pytest.raises(DataError, match=r"TrainData/img/Case00.raw: is there already and differs"):
        lay_out([source], tmp_path / "out")
    assert tree(tmp_path / "out") == before


def test_sources_that_contradict_each_other(tmp_path):
    sources = [make_pairs(tmp_path / name, ["Case00"], seed=len(name)) for name in ("a", "bb")]
    with pytest.raises(DataError, match="bb/Case00.raw and a/Case00.raw differ"):
        lay_out(sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("existing", [False, True])
def test_nothing_half_written_stays(tmp_path, monkeypatch, existing):
    source = make_pairs(tmp_path / "volumes", ["Case00", "Case01"])
    out = tmp_path / "out"
    if existing:
        lay_out([make_pairs(tmp_path / "first", ["Case07"])], out)
    before = tree(out) if existing else {}
    write_bytes, written = Path.write_bytes, []

    def full_at_the_third_file(path, content):
        written.append(path)
        write_bytes(path, content[:10] if len(written) == 3 else content)
        if len(written) == 3:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(Path, "write_bytes", full_at_the_third_file)
        lay_out([source], out)
    assert tree(out) == before
    lay_out([source], out)
    assert len(tree(out)) == len(before) + 8


def test_leftovers_of_a_killed_run_are_named(tmp_path, capsys):
    (tmp_path / "out/.unpacking-abc").mkdir(parents=True)
    lay_out([make_pairs(tmp_path / "volumes", ["Case00"])], tmp_path / "out")
    assert ".unpacking-abc: left by a run that was killed" in capsys.readouterr().out


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


@pytest.mark.parametrize("tool", promise12.UNPACKERS)
def test_deflate64(tmp_path, monkeypatch, tool):
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    folder = make_pairs(tmp_path / "volumes", ["Case00"])
    archive = deflate64_zip(folder, tmp_path / "TrainingData_Part1.zip")
    monkeypatch.setattr(promise12, "UNPACKERS", {tool: promise12.UNPACKERS[tool]})
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
    monkeypatch.setattr(promise12, "UNPACKERS", {"sh": ()})
    with pytest.raises(DataError, match="no name that can be given to sh"):
        promise12._read_with_tool(tmp_path / "a.zip", entry)


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


# Check ------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    """Two good cases in img/ and gt/."""
    for number in range(2):
        make_volume(tmp_path / f"data/img/Case0{number}.mhd", seed=number)
        make_volume(tmp_path / f"data/gt/Case0{number}_segmentation.mhd")
    return tmp_path / "data"


def changed_header(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def filled(value, dtype=np.float32):
    values = np.ones((4, 5, 6), dtype)
    values[1, 2, 3] = value
    return values


IMAGE, MASK = "img/Case01", "gt/Case01_segmentation"
FAULTS = {
    "truncated image": (
        lambda d: (d / f"{IMAGE}.raw").write_bytes((d / f"{IMAGE}.raw").read_bytes()[:-20]),
        "Case01.raw.*truncated",
    ),
    "truncated mask": (
        lambda d: (d / f"{MASK}.raw").write_bytes((d / f"{MASK}.raw").read_bytes()[:-20]),
        "Case01_segmentation.raw.*truncated",
    ),
    "voxels missing": (lambda d: (d / f"{IMAGE}.raw").unlink(), "Case01.raw is missing"),
    "corrupt header": (lambda d: (d / f"{IMAGE}.mhd").write_text("hello"), "Case01.mhd.*read"),
    "NaN": (lambda d: make_volume(d / f"{IMAGE}.mhd", values=filled(np.nan)), "Case01.mhd.*NaN"),
    "other size": (
        lambda d: make_volume(d / f"{MASK}.mhd", size=(6, 5, 5)),
        r"Case01_segmentation.mhd: size \(6, 5, 5\) differs",
    ),
    "other spacing": (
        lambda d: changed_header(d / f"{MASK}.mhd", "0.5 0.5 4", "0.5 0.6 4"),
        "Case01_segmentation.mhd: geometry differs",
    ),
    "other origin": (
        lambda d: changed_header(d / f"{MASK}.mhd", "-10 20 30", "-10 20 34"),
        "Case01_segmentation.mhd: geometry differs",
    ),
    "other direction": (
        lambda d: changed_header(d / f"{MASK}.mhd", "1 0 0 0 1 0 0 0 1", "1 0 0 0 -1 0 0 0 -1"),
        "Case01_segmentation.mhd: geometry differs",
    ),
    "labels": (
        lambda d: make_volume(d / f"{MASK}.mhd", values=filled(2, np.uint8)),
        "Case01_segmentation.mhd: labels 1, 2",
    ),
    "empty mask": (
        lambda d: make_volume(d / f"{MASK}.mhd", values=np.zeros((4, 5, 6), np.uint8)),
        "Case01_segmentation.mhd: the mask is empty",
    ),
    "no mask": (lambda d: (d / f"{MASK}.mhd").unlink(), "Case01.mhd: image without a mask"),
    "no image": (
        lambda d: (d / f"{IMAGE}.mhd").unlink(),
        "Case01_segmentation.mhd: mask without an image",
    ),
    "two images": (
        lambda d: make_volume(d / f"{IMAGE}.nrrd"),
        "Case01.mhd and Case01.nrrd are one case by name",
    ),
    "voxels elsewhere, absolute": (
        lambda d: changed_header(d / f"{IMAGE}.mhd", "Case01.raw", f"{d}/{IMAGE}.raw"),
        "Case01.mhd: ElementDataFile .* is not in its folder",
    ),
    "voxels elsewhere, relative": (
        lambda d: changed_header(d / f"{MASK}.mhd", "Case01_s", "../gt/Case01_s"),
        "Case01_segmentation.mhd: ElementDataFile .* is not in its folder",
    ),
    "voxels elsewhere, Windows": (
        lambda d: changed_header(d / f"{IMAGE}.mhd", "Case01.raw", "D:\\x\\Case01.raw"),
        "Case01.mhd: ElementDataFile .* is not in its folder",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_finds(data, fault):
    damage, message = FAULTS[fault]
    damage(data)
    frame = check(data)
    assert frame["case"].tolist() == ["Case00", "Case01"]
    good, bad = frame["problems"]
    assert good == ""
    assert pd.Series([bad]).str.contains(message).all(), bad
    assert len(bad.splitlines()) == 1


def test_check_of_good_cases(data):
    frame = check(data)
    assert frame.columns.tolist() == ["case", "size", "spacing_mm", "prostate_ml", "problems"]
    assert frame["size"].tolist() == ["6x5x4"] * 2
    assert frame["spacing_mm"].tolist() == ["0.5x0.5x4"] * 2
    assert frame["prostate_ml"].tolist() == pytest.approx([12 * 0.5 * 0.5 * 4 / 1000] * 2)
    assert frame["problems"].tolist() == ["", ""]


def test_training_images_need_masks(data):
    shutil.rmtree(data / "gt")
    assert check(data)["problems"].str.contains("image without a mask").tolist() == [True, True]


def test_check_reads_nothing_outside_the_data(data):
    """A header that names a file elsewhere is reported although that file would be readable."""
    shutil.copy(data / f"{IMAGE}.raw", data.parent / "elsewhere.raw")
    changed_header(data / f"{IMAGE}.mhd", "Case01.raw", "../../elsewhere.raw")
    assert "elsewhere.raw is not in its folder" in check(data)["problems"][1]


def test_check_of_several_sets(tmp_path):
    make_volume(tmp_path / "TrainData/img/Case00.mhd")
    make_volume(tmp_path / "TrainData/gt/Case00_segmentation.mhd")
    make_volume(tmp_path / "TestData/img/Case00.mhd")
    make_volume(tmp_path / "LiveTestData/img/Case00.mhd")
    make_volume(tmp_path / "LiveTestData/img/Case01.mhd")
    make_volume(tmp_path / "LiveTestData/gt/Case00_segmentation.mhd")
    frame = check(tmp_path).set_index("case")
    assert frame.index.tolist() == [
        "TrainData/Case00",
        "TestData/Case00",
        "LiveTestData/Case00",
        "LiveTestData/Case01",
    ]
    assert frame["problems"].astype(bool).tolist() == [False, False, False, True]
    assert "image without a mask" in frame["problems"].iloc[-1]


def test_check_of_the_zoos_flat_test_folder(tmp_path):
    make_volume(tmp_path / "TestData/Case00.mhd")
    assert check(tmp_path)["problems"].tolist() == [""]
    make_volume(tmp_path / "TestData/Case01.mhd")
    make_volume(tmp_path / "TestData/Case01_segmentation.mhd")
    problems = check(tmp_path / "TestData")["problems"].tolist()
    assert "image without a mask" in problems[0]
    assert problems[1] == ""


@pytest.mark.parametrize("content", [None, "flat"])
def test_check_of_nothing(tmp_path, content):
    folder = tmp_path / "volumes"
    folder.mkdir()
    if content:
        make_pairs(folder, ["Case00"])
    with pytest.raises(DataError, match="volumes: no volumes in img/.*prepare_data.py --source"):
        check(folder)


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_table_fits_the_terminal(width):
    problem = "Case01_segmentation.mhd: labels 0, 1, 7, expected only 0 and 1 (1 is the prostate)"
    frame = pd.DataFrame(
        [
            ("Case00", "512x512x54", "0.3906x0.3906x3", 45.26, ""),
            ("Case01", "", "", np.nan, problem),
        ],
        columns=["case", "size", "spacing_mm", "prostate_ml", "problems"],
    )
    text = format_table(frame, width)
    longest_word = max(map(len, problem.split()))
    assert max(map(len, text.splitlines())) <= max(width, 4 + longest_word)
    words = " ".join(text.replace("!", " ").split())
    assert "Case00 512x512x54 0.3906x0.3906x3 45.3" in words
    assert f"Case01 ? ? - {problem}" in words


def test_report(data, capsys):
    report(check(data))
    assert capsys.readouterr().out.endswith("2 cases, all well\n")
    (data / f"{MASK}.mhd").unlink()
    with pytest.raises(DataError, match="1 of 2 cases have problems"):
        report(check(data))
    assert "  ! Case01.mhd: image without a mask" in capsys.readouterr().out


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
    assert data_file(header) == expected


# Command line -----------------------------------------------------------------------------------


def test_command_line(tmp_path):
    source = make_pairs(tmp_path / "volumes", ["Case00"])
    script = Path(__file__).parents[1] / "prepare_data.py"
    done = subprocess.run(
        [sys.executable, script, "--source", source, "--out_path", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "TrainData/Case00" in done.stdout and "1 cases, all well" in done.stdout
    assert (tmp_path / "out/TrainData/img/Case00.raw").exists()


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        ("--source volumes", 2, "--out_path is needed"),
        ("--download", 2, "--out_path is needed"),
        ("--out_path new", 2, "--download --source --check is required"),
        ("--download --source volumes --out_path new", 2, "not allowed with"),
        ("--check none", 1, "none: no volumes in img/"),
        ("--check bad", 1, "error: 1 of 1 cases have problems; the table tells what to do"),
        ("--source none --out_path new", 1, "none: no such file or folder"),
        ("--source volumes --out_path volumes/Case00.raw", 1, "exists"),
    ],
)
def test_command_line_errors(tmp_path, monkeypatch, capsys, arguments, code, message):
    make_pairs(tmp_path / "volumes", ["Case00"])
    make_volume(tmp_path / "bad/img/Case00.mhd")
    before = tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", *arguments.split()])
    with pytest.raises(SystemExit) as stopped:
        run(prepare_data.main)
    assert stopped.value.code == code
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert tree(tmp_path) == before
