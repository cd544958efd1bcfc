"""Download of the challenge's record from a local server."""

import hashlib

import pytest

from src.promise12 import downloading
from src.promise12.downloading import download
from src.utils.errors import DataError
from tests.volumes import make_pairs, zip_of


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
