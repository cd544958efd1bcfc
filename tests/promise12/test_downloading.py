"""Download from a local server that fails in all the usual ways."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from src.promise12 import download, downloading, fetch
from src.utils.errors import DataError
from tests.volumes import make_pairs, zip_of


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
    with pytest.raises(DataError, match="503.*run the command again"):
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

    monkeypatch.setattr(downloading, "tqdm", full)
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
    with pytest.raises(DataError, match="not a zip file"):
        download(folder, f"{server.url}/record", {"test_data.zip": None}, pause_s=0.0)
    assert sorted(path.name for path in folder.iterdir()) == ["LICENSE.TXT", "training_data.zip"]


def test_licence_that_cannot_be_fetched(server, tmp_path, capsys):
    assert download(tmp_path, f"{server.url}/record", {}) == []
    assert f"licence of the data is at {server.url}/record" in capsys.readouterr().out


def test_the_record():
    assert downloading.RECORD_URL == "https://zenodo.org/records/8026660"
    assert downloading.ARCHIVES_MD5["training_data.zip"] == "f6d23994117c989daf07e5291edd0aea"
