"""Zipped releases and their addresses: used once they are proven, else refused in one line."""

import hashlib
import os
import re
import subprocess
import sys
import zipfile

import pytest

from src import released_model
from src.checkpoint_file import find_checkpoint
from src.config import save_config, vnet_cfg
from src.utils.errors import DataError, UsageError
from src.utils.files import LOCK_FILE
from tests.helpers import ROOT, flip_middle, tree
from tests.volumes import zip_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vnet_mindspore" / "models"


@pytest.fixture
def release(tmp_path):
    """A released folder whose weights nobody loads here."""
    folder = tmp_path / "vnet_prostate"
    folder.mkdir()
    (folder / "vnet.ckpt").write_bytes(os.urandom(50_000))
    save_config(vnet_cfg, folder / "config.json")
    (folder / "README.md").write_text("a card\n")
    write_sums(folder)
    return folder


def write_sums(folder, *further):
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.iterdir())
        if path.name != "SHA256SUMS"
    ]
    (folder / "SHA256SUMS").write_text("".join([*lines, *further]))


@pytest.mark.parametrize("prefix", ["", "vnet_prostate/", "a/b/"])
def test_a_zip_is_used_like_its_folder_and_unpacked_once(release, tmp_path, cache, prefix, capsys):
    archive = zip_of(release, tmp_path / "model.ZIP", prefix)
    for _ in range(2):
        found = find_checkpoint(archive)
        assert tree(found.parent) == tree(release)
        assert found.parent == cache / hashlib.sha256(archive.read_bytes()).hexdigest()
    assert capsys.readouterr().out.count("unpacked to") == 1


def test_other_files_of_a_zip_are_not_unpacked(release, tmp_path):
    archive = zip_of(release, tmp_path / "model.zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("__MACOSX/._vnet.ckpt", "x")
        file.writestr("../outside.txt", "x")
    assert tree(find_checkpoint(archive).parent) == tree(release)
    assert not list(tmp_path.glob("**/outside.txt"))


@pytest.mark.parametrize(
    ("name", "change"), [("vnet.ckpt", flip_middle), ("SHA256SUMS", lambda _: b"")]
)
def test_a_damaged_copy_is_unpacked_again(release, tmp_path, name, change):
    archive = zip_of(release, tmp_path / "model.zip")
    copy = find_checkpoint(archive).with_name(name)
    copy.write_bytes(change(copy.read_bytes()))
    assert tree(find_checkpoint(archive).parent) == tree(release)


def test_processes_that_unpack_at_once_do_not_disturb_one_another(release, tmp_path):
    archive = zip_of(release, tmp_path / "model.zip")
    words = f"find_checkpoint({str(archive)!r}).stat().st_size"
    code = f"from src.checkpoint_file import find_checkpoint; print({words})"
    command = [sys.executable, "-c", code]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    printed = [process.communicate(timeout=120)[0] for process in processes]
    assert printed == ["50000\n"] * 4


OUTSIDE = "0" * 64 + "  "


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "SHA256SUMS").unlink(), "the zip of one release with its SHA256SUMS"),
        (lambda f: (f / "config.json").write_text("{}"), "config.json differs from its SHA256SUMS"),
        (lambda f: (f / "vnet.ckpt").unlink(), "vnet.ckpt is missing, but listed"),
        (lambda f: write_sums(f, OUTSIDE + "../evil"), "names '../evil', outside"),
        (lambda f: write_sums(f, OUTSIDE + "/etc/evil"), "names '/etc/evil', outside"),
        (lambda f: write_sums(f, OUTSIDE + "..\\evil"), "outside of the release"),
        (
            lambda f: write_sums(f, OUTSIDE + "a" * 300),
            "names 'aaaaa.*', a name of more than 255 b",
        ),
        (lambda f: write_sums(f, OUTSIDE + "ä/" * 100), "a name of more than 255 bytes"),
        (lambda f: write_sums(f, OUTSIDE + "vnet.ckpt/b"), "'vnet.ckpt', once as a file, once as"),
        (lambda f: write_sums(f, OUTSIDE + "a/b/c\n", OUTSIDE + "a"), "'a', once as a file, once"),
        (lambda f: write_sums(f, OUTSIDE + "a/"), "names 'a/', expected 'a'"),
        (lambda f: (f / "SHA256SUMS").write_text("#" * 100_001), "larger than 100000 bytes"),
        (lambda f: (f / "SHA256SUMS").write_text(""), "lists neither vnet.ckpt nor ensemble.json"),
    ],
)
def test_zips_that_are_refused_leave_nothing(release, tmp_path, cache, change, words):
    change(release)
    archive = zip_of(release, tmp_path / "model.zip")
    with pytest.raises(DataError) as error:
        find_checkpoint(archive)
    assert re.search(words, str(error.value)) and str(archive) in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in cache.iterdir()] == [LOCK_FILE]


def test_what_is_no_zip_too_large_or_two_releases(release, tmp_path, monkeypatch):
    archive = zip_of(release, tmp_path / "model.zip", "one/")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("two/SHA256SUMS", "")
    with pytest.raises(DataError, match="found several of them"):
        find_checkpoint(archive)
    monkeypatch.setattr(released_model, "LARGEST_BYTES", 50_000)
    with pytest.raises(DataError, match="more than a release may have"):
        find_checkpoint(zip_of(release, tmp_path / "large.zip"))
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(DataError, match="text.zip: a damaged or encrypted zip"):
        find_checkpoint(tmp_path / "text.zip")
    with pytest.raises(DataError, match="no such checkpoint"):
        find_checkpoint(tmp_path / "absent.zip")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_zip_is_no_full_disk(release, tmp_path, cache, method):
    """Its decompressors raise exceptions of their own, OSError among them."""
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.write(release / "config.json", "SHA256SUMS")
        first = archive.getinfo("SHA256SUMS").compress_size
    content = bytearray(path.read_bytes())
    content[40 : 40 + first] = bytes(255 - byte for byte in content[40 : 40 + first])
    path.write_bytes(content)
    with pytest.raises(DataError, match="model.zip: a damaged or encrypted zip .*; get it again"):
        find_checkpoint(path)
    assert [path.name for path in cache.iterdir()] == [LOCK_FILE]


@pytest.mark.usefixtures("homeless")
def test_without_a_cache_folder(release, tmp_path):
    with pytest.raises(DataError, match="unpack the model and name its folder"):
        find_checkpoint(zip_of(release, tmp_path / "model.zip"))


# Addresses ---------------------------------------------------------------------------------------


@pytest.fixture
def published(release, server, tmp_path):
    """The address of the zipped release, and its digest."""
    content = zip_of(release, tmp_path / "model.zip").read_bytes()
    server.files["/model.zip"] = content
    return f"{server.url}/model.zip", hashlib.sha256(content).hexdigest()


DATE = "Sat, 28 Nov 2026 10:00:00 GMT"


@pytest.mark.parametrize("etag", ['"v1"', 'W/"v1"', None])
@pytest.mark.parametrize("date", [DATE, None])
def test_a_zip_that_is_as_it_was_is_not_downloaded_again(
    release, published, server, capsys, etag, date
):
    server.etag, server.date = etag, date
    for _ in range(2):
        assert tree(find_checkpoint(published[0]).parent) == tree(release)
    is_again = "again: it may have changed" in capsys.readouterr().out
    assert is_again == (etag is date is None)


def test_an_address_is_downloaded_once(release, published, server):
    url, digest = published
    for address in (url, f"{url}#sha256={digest}", f"{url}#sha256={digest.upper()}"):
        for _ in range(2):
            assert tree(find_checkpoint(address).parent) == tree(release)
    assert len(server.requests) == 4  # one for each way to write it, and whether it has changed


@pytest.mark.parametrize(
    ("validators", "later"),
    [
        (('"v1"', None), ('"v2"', None)),
        (('"v1"', DATE), ('"v2"', DATE)),
        ((None, DATE), (None, DATE.replace("10:", "11:"))),
        ((None, DATE), (None, DATE.replace("10:", "09:"))),  # an older one put back
        (('W/"v1"', DATE), ('W/"v2"', DATE.replace("10:", "09:"))),
        (('W/"v1"', DATE), ('W/"v2"', DATE)),
        ((None, None), (None, None)),
        (('"v1"', None), (None, None)),
    ],
)
def test_another_zip_at_the_same_address_is_not_missed(
    release, published, server, tmp_path, cache, capsys, validators, later
):
    url, digest = published
    server.etag, server.date = validators
    first = find_checkpoint(url).read_bytes()
    (release / "vnet.ckpt").write_bytes(os.urandom(50_000))
    write_sums(release)
    server.files["/model.zip"] = zip_of(release, tmp_path / "later.zip").read_bytes()
    server.etag, server.date = later
    found = find_checkpoint(url)
    assert found.read_bytes() == (release / "vnet.ckpt").read_bytes() != first
    assert f"downloading {url} again" in capsys.readouterr().out
    assert len(list(cache.glob("*.zip"))) == 1 and not list(cache.glob("new-*"))
    with pytest.raises(DataError, match="SHA256 .* expected"):
        find_checkpoint(f"{url}#sha256={digest}")


@pytest.mark.parametrize(
    "validators", [('"v1"', None), (None, DATE), ('W/"v1"', None), (None, None)]
)
@pytest.mark.parametrize("fault", [503, ConnectionError()])
def test_a_server_that_is_away_leaves_the_copy_with_a_note(
    release, published, server, capsys, validators, fault
):
    url, _ = published
    server.etag, server.date = validators
    find_checkpoint(url)
    server.faults = [fault] * 5
    assert tree(find_checkpoint(url).parent) == tree(release)
    assert f"note: {url}: " in (said := capsys.readouterr().out) and "using the copy" in said
    assert len(server.requests) == 2
    server.faults = []
    del server.files["/model.zip"]  # withdrawn
    with pytest.raises(DataError, match="answers 404"):
        find_checkpoint(url)


def test_a_zip_that_was_kept_without_a_validator_is_used_where_the_server_is_away(
    release, published, server, cache, capsys
):
    url, _ = published
    find_checkpoint(url)
    for path in cache.glob("*.etag"):
        path.unlink()
    server.faults = [503] * 5
    assert tree(find_checkpoint(url).parent) == tree(release)
    assert "using the copy" in capsys.readouterr().out


@pytest.mark.parametrize("fragment", ["", "#sha256="])
def test_a_zip_that_finds_the_disk_full_is_kept(
    release, published, server, cache, full_disk, monkeypatch, fragment
):
    url, digest = published
    address = url + fragment + (digest if fragment else "")
    whole = released_model._unpack

    def unpack(*arguments):
        with full_disk(1000):
            whole(*arguments)

    with monkeypatch.context() as patch, pytest.raises(DataError, match="models: cannot be wr"):
        patch.setattr(released_model, "_unpack", unpack)
        find_checkpoint(address)
    assert len(list(cache.glob("*.zip"))) == 1
    assert tree(find_checkpoint(address).parent) == tree(release)
    assert len(server.requests) == (1 if fragment else 2)  # the second: whether it has changed


def test_a_later_zip_with_a_fault_leaves_the_copy(release, published, server, tmp_path, cache):
    url, _ = published
    first = find_checkpoint(url).read_bytes()
    (release / "config.json").write_text("{}")  # not that of SHA256SUMS
    server.files["/model.zip"] = zip_of(release, tmp_path / "later.zip").read_bytes()
    server.etag = '"v2"'
    for _ in range(2):
        with pytest.raises(DataError, match="config.json differs from its SHA256SUMS"):
            find_checkpoint(url)
    assert len(list(cache.glob("*.zip*"))) == 2  # the copy and its ETag
    server.faults = [503]
    assert find_checkpoint(url).read_bytes() == first


def test_a_later_zip_that_is_cut_goes_on_and_the_copy_stays(
    release, published, server, monkeypatch, capsys
):
    monkeypatch.setattr("time.sleep", lambda _: None)
    url, _ = published
    first = find_checkpoint(url).read_bytes()
    server.etag, server.faults = '"v2"', [None, "cut 20000", *[503] * 5]
    with pytest.raises(DataError, match="503.*run the command again"):
        find_checkpoint(url)
    assert "\nmodel.zip: cut at 20000 of" in capsys.readouterr().out
    server.faults = [503]
    assert find_checkpoint(url).read_bytes() == first
    assert find_checkpoint(url).read_bytes() == first
    assert server.requests[-1][1] == "bytes=20000-"


def test_a_download_that_was_cut_goes_on(release, published, server, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    url, digest = published
    server.faults = ["cut 20000", *[503] * 5]
    with pytest.raises(DataError, match="503.*run the command again"):
        find_checkpoint(f"{url}#sha256={digest}")
    assert tree(find_checkpoint(f"{url}#sha256={digest}").parent) == tree(release)
    assert server.requests[-1][1] == "bytes=20000-"


def test_another_digest_than_the_address_says(published, server, cache):
    with pytest.raises(DataError, match="SHA256 .* expected 0{64}"):
        find_checkpoint(f"{published[0]}#sha256={'0' * 64}")
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_a_damaged_download_is_fetched_again(release, published, server, cache):
    address = f"{published[0]}#sha256={published[1]}"
    find_checkpoint(address)
    (kept,) = cache.glob("*.zip")
    kept.write_bytes(b"damaged")
    assert tree(find_checkpoint(address).parent) == tree(release)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://example.org/model.zip", "expected an https address"),
        ("ftp://example.org/model.zip", "expected an https address"),
        ("file:///model.zip", "expected an https address"),
        ("https://example.org/my model.zip", "spaces .* as %XX"),
        ("https://example.org/model.zip#md5=1", "expected #sha256="),
        ("https://example.org/model.zip#sha256=12", "64 hexadecimal digits"),
    ],
)
def test_addresses_that_are_refused(address, words):
    with pytest.raises(UsageError, match=words):
        find_checkpoint(address)


def test_an_address_of_nothing(server):
    with pytest.raises(DataError, match="answers 404.*download the model and name its file"):
        find_checkpoint(f"{server.url}/absent.zip")
