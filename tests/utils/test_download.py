"""Download from a local server that fails in all the usual ways."""

import hashlib
import ssl
import urllib.error
import urllib.request
from unittest import mock

import numpy as np
import pytest

from src.utils import download
from src.utils.download import fetch, is_allowed
from src.utils.errors import DataError


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


@pytest.mark.parametrize(
    ("place", "name"), [("data.bin", "data.bin"), ("a/data.bin?x=b/c", "data.bin"), ("", None)]
)
def test_the_progress_shows_the_name_in_the_address(
    server, payload, tmp_path, monkeypatch, place, name
):
    server.files |= dict.fromkeys(("/a/data.bin", "/"), payload)
    shown = mock.Mock(wraps=download.tqdm)
    monkeypatch.setattr(download, "tqdm", shown)
    fetch(f"{server.url}/{place}", tmp_path / "new-123.zip.bin")
    assert shown.call_args.kwargs["desc"] == (name or f"{server.url}/")


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


def test_a_certificate_that_is_not_trusted_is_not_tried_again(tmp_path, monkeypatch):
    requests = []

    def refuse(self, request, *arguments, **named):
        requests.append(request.full_url)
        error = ssl.SSLCertVerificationError(1, "certificate verify failed")
        error.verify_message = "self-signed certificate"
        raise urllib.error.URLError(error)

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", refuse)
    with pytest.raises(
        DataError, match=r"certificate \(self-signed.*set SSL_CERT_FILE=FILE\.pem to"
    ):
        fetch("https://localhost/model.zip", tmp_path / "model.zip")
    assert len(requests) == 1
    assert not list(tmp_path.iterdir())


def test_full_disk_is_not_taken_for_a_lost_connection(server, payload, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "tqdm", full)
    with pytest.raises(
        DataError, match=r"data\.bin\.part: cannot be written \(No space left.*make room"
    ):
        fetched(server, tmp_path)
    assert len(server.requests) == 1


def test_existing_files(server, payload, tmp_path):
    (tmp_path / "data.bin").write_bytes(b"mine")
    assert fetched(server, tmp_path) == b"mine"
    with pytest.raises(DataError, match="MD5 .*expected.*move it away"):
        fetched(server, tmp_path, md5="0" * 32)
    assert (tmp_path / "data.bin").read_bytes() == b"mine"
    assert not server.requests


def test_another_sha256_is_refused_and_the_right_one_in_any_case_taken(server, payload, tmp_path):
    digest = hashlib.sha256(payload).hexdigest()
    with pytest.raises(DataError, match=f"SHA256 {digest}, expected 0{{64}}"):
        fetched(server, tmp_path, sha256="0" * 64)
    assert fetched(server, tmp_path, sha256=digest.upper()) == payload


def test_a_file_beyond_the_limit_is_not_kept(server, payload, tmp_path):
    assert fetched(server, tmp_path, largest_bytes=100_000) == payload
    (tmp_path / "data.bin").unlink()
    with pytest.raises(DataError, match="more than 9.9999e-05 GB, which is refused"):
        fetched(server, tmp_path, largest_bytes=99_999)
    assert not (tmp_path / "data.bin.part").exists() and len(server.requests) == 2


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://example.org/a.zip", True),
        ("http://example.org/a.zip", False),
        ("http://localhost:80/a.zip", True),
        ("http://127.0.0.1/a.zip", True),
        ("http://[::1]/a.zip", True),
        ("http://127.0.0.1.example.org/a.zip", False),
        ("http://localhost@example.org/a.zip", False),
        ("ftp://localhost/a.zip", False),
        ("file:///etc/passwd", False),
        ("https://[/a.zip", False),
        ("https:///a.zip", False),
        ("https://example.org:8443/a%20b.zip", True),
        ("https://example.org:port/a.zip", False),
        ("https://example.org/a b.zip", False),
        ("https://example.org/前列腺.zip", False),
    ],
)
def test_addresses(url, allowed):
    assert is_allowed(url) == allowed


def test_a_redirection_leads_only_to_safe_addresses(server, payload, tmp_path):
    server.redirects["/moved.bin"] = f"{server.url}/data.bin"
    server.redirects["/worse.bin"] = "http://example.org/data.bin"
    assert fetch(f"{server.url}/moved.bin", tmp_path / "a", pause_s=0.0).read_bytes() == payload
    with pytest.raises(
        DataError, match=r"sends to http://example\.org/data\.bin, expected an https"
    ):
        fetch(f"{server.url}/worse.bin", tmp_path / "b", pause_s=0.0)
