"""What a release holds, and that it predicts like the checkpoint that it was made of."""

import json
import subprocess
import zipfile

import mindspore as ms
import numpy as np
import pytest

from src.checkpoint import save_weights
from src.checkpoint_file import find_checkpoint, find_checkpoints
from src.config import config_of_checkpoint, load_config, save_config
from src.ensemble import Member, find_members
from src.evaluation import load_network
from src.export.release import release
from src.utils.errors import DataError, UsageError
from src.utils.files import hash_file
from src.utils.output_folder import MANIFEST
from src.vnet import create_vnet
from tests.helpers import names_in, tree


@pytest.fixture
def checkpoint(tmp_path, small_config):
    """A checkpoint of a run with its configuration; its path."""
    config = small_config(
        "threshold=0.4", "dirResult=/home/me/runs", "num_workers=3", "fast_conv3d=on"
    )
    path = tmp_path / "run" / "ckpt" / "best.ckpt"
    path.parent.mkdir(parents=True)
    save_config(config, tmp_path / "run" / "config.json")
    save_weights(create_vnet(config), path)
    return path


def member_of(checkpoint):
    return find_members(checkpoint, [])[0]


def packed(checkpoint, folder):
    release([member_of(checkpoint)], folder)
    return folder


def test_one_that_is_cut_in_the_middle_is_none(checkpoint, tmp_path, monkeypatch):
    """Not new weights with the configuration of the earlier release."""
    folder = packed(checkpoint, tmp_path / "release")

    def die(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("src.export.release.save_weights", die)
    with pytest.raises(KeyboardInterrupt):
        packed(checkpoint, folder)
    with pytest.raises(DataError, match="no checkpoint in this folder"):
        find_checkpoints(folder)


def test_a_release_is_whole_and_tells_nothing_of_the_machine(checkpoint, tmp_path, capsys):
    folder = packed(checkpoint, tmp_path / "release")
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir())
    assert names_in(folder) == [
        MANIFEST,
        "README.md",
        "SHA256SUMS",
        "config.json",
        "metadata.json",
        "vnet.ckpt",
    ]
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True)
    texts = [(folder / name).read_text() for name in ("README.md", "metadata.json", "config.json")]
    assert not any("/home/me" in text or str(tmp_path) in text for text in texts)
    config = load_config(folder / "config.json")
    assert (config.threshold, config.width) == (0.4, 2)
    assert config.fast_conv3d == "auto"
    assert (config.dirResult, config.num_workers, config.cache_dir) == ("results/infer", 0, "auto")
    assert "vnet.ckpt (" in capsys.readouterr().out


def test_only_convolutions_are_halved_and_come_back_as_float32(checkpoint, tmp_path):
    path = packed(checkpoint, tmp_path / "release") / "vnet.ckpt"
    kept, original = (ms.load_checkpoint(str(file)) for file in (path, checkpoint))
    assert kept.keys() == original.keys()
    for name, value in kept.items():
        is_weight = name.endswith(".weight")
        assert value.dtype == (ms.float16 if is_weight else ms.float32)
        np.testing.assert_allclose(
            value.asnumpy(), original[name].asnumpy(), rtol=2**-11 if is_weight else 0, atol=2**-25
        )
    config = config_of_checkpoint(path, [])
    volume = ms.Tensor(np.random.default_rng(0).normal(size=(1, 1, 16, 16, 16)).astype(np.float32))
    half, full = (load_network(file, config, "CPU") for file in (path, checkpoint))
    assert {parameter.dtype for parameter in half.get_parameters()} == {ms.float32}
    np.testing.assert_allclose(half(volume).asnumpy(), full(volume).asnumpy(), atol=2e-3)


def test_a_weight_beyond_float16_is_named_and_nothing_is_written(checkpoint, tmp_path):
    network = create_vnet(config_of_checkpoint(checkpoint, []))
    values = network.in_tr.conv.weight.asnumpy()
    network.in_tr.conv.weight.set_data(ms.Tensor(values * np.float32(1e7)))
    save_weights(network, checkpoint)
    with pytest.raises(DataError, match=r"in_tr\.conv\.weight exceeds float16"):
        packed(checkpoint, tmp_path / "release")
    assert not (tmp_path / "release" / "vnet.ckpt").exists()


def test_an_earlier_release_is_replaced_and_other_files_are_not(checkpoint, tmp_path, capsys):
    packed(checkpoint, tmp_path / "release")
    packed(checkpoint, tmp_path / "release")
    assert "replacing 5 file(s) of an earlier run" in capsys.readouterr().out
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("mine")
    with pytest.raises(DataError, match="not written by this program"):
        packed(checkpoint, tmp_path / "mine")
    assert (tmp_path / "mine" / "config.json").read_text() == "mine"
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["config.json"]


def test_a_checkpoint_without_configuration_is_refused(checkpoint, tmp_path):
    alone = tmp_path / "elsewhere" / "deeper" / "vnet.ckpt"
    alone.parent.mkdir(parents=True)
    config = config_of_checkpoint(checkpoint, [])
    save_weights(create_vnet(config), alone)
    with pytest.raises(DataError, match=r"no config\.json"):
        release([Member(alone, config, hash_file(alone))], tmp_path / "release")
    assert not (tmp_path / "release").exists()


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["vnet.ckpt", "config.json", "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_release_is_refused(checkpoint, tmp_path, name, damage):
    folder = packed(checkpoint, tmp_path / "release")
    assert find_checkpoint(folder) == find_checkpoint(folder / "vnet.ckpt") == folder / "vnet.ckpt"
    if damage == "flipped":
        flip_a_byte(folder / name)
    else:
        (folder / name).unlink()
    if (name, damage) == ("SHA256SUMS", "missing"):
        assert find_checkpoint(folder) == folder / "vnet.ckpt"  # nothing to compare with
        return
    with pytest.raises(DataError) as error:
        find_checkpoint(folder)
    expected = (
        "no checkpoint in this folder" if not (folder / "vnet.ckpt").exists() else "SHA256SUMS"
    )
    assert expected in str(error.value)


def test_a_release_changed_on_purpose_is_taken_with_new_sums(checkpoint, tmp_path):
    folder = packed(checkpoint, tmp_path / "release")
    save_config(load_config(folder / "config.json") | {"threshold": 0.3}, folder / "config.json")
    with pytest.raises(DataError, match="sha256sum vnet.ckpt config.json > SHA256SUMS"):
        find_checkpoint(folder)
    subprocess.run(
        "sha256sum vnet.ckpt config.json > SHA256SUMS", shell=True, cwd=folder, check=True
    )
    assert find_checkpoint(folder) == folder / "vnet.ckpt"


@pytest.fixture
def members(checkpoint, tmp_path, small_config):
    """Two networks of one grid."""
    other = tmp_path / "second" / "best.ckpt"
    other.parent.mkdir()
    config = small_config("threshold=0.4", "seed=2")
    save_config(config, other.parent / "config.json")
    ms.set_seed(2)
    save_weights(create_vnet(config), other)
    return find_members([checkpoint, other], [])


def test_a_release_of_several_networks(members, tmp_path):
    folder = tmp_path / "release"
    release(members, folder)
    found = find_checkpoints(folder)
    assert found == [folder / f"network{number}" / "vnet.ckpt" for number in range(2)]
    for path, (original, *_) in zip(found, members, strict=True):
        kept, before = (ms.load_checkpoint(str(file)) for file in (path, original))
        name = "in_tr.conv.weight"
        np.testing.assert_allclose(
            kept[name].asnumpy(), before[name].asnumpy(), rtol=2**-11, atol=2**-25
        )
    assert [member.config.seed for member in find_members(folder, [])] == [1, 2]
    flip_a_byte(folder / "network1" / "config.json")
    with pytest.raises(DataError, match=r"network1/config\.json: differs from SHA256SUMS"):
        find_checkpoints(folder)


def test_an_ensemble_is_packed_whole_and_each_network_alone(
    members, checkpoint, tmp_path, monkeypatch
):
    folder = packed(checkpoint, tmp_path / "release")
    release(members, folder)
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True)
    names = ["README.md", "ensemble.json", "metadata.json"]
    for number in range(2):
        names += [f"network{number}/{n}" for n in ("SHA256SUMS", "config.json", "vnet.ckpt")]
    listed = {line.split()[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert listed == set(names) == set(tree(folder)) - {"SHA256SUMS", MANIFEST}
    hashes = json.loads((folder / "ensemble.json").read_text())["checkpoints"]
    for number in range(2):
        path = find_checkpoint(folder / f"network{number}")
        assert hashes[f"network{number}/vnet.ckpt"] == hash_file(path)
    networks = json.loads((folder / "metadata.json").read_text())["networks"]
    originals = [hash_file(member.checkpoint) for member in members]
    assert [network["packed_from_sha256"] for network in networks] == originals
    release(members, folder, zipped=True)
    archive = tmp_path / "release.zip"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for path, unpacked in zip(find_checkpoints(folder), find_checkpoints(archive), strict=True):
        assert path != unpacked and hash_file(path) == hash_file(unpacked)
    packed(checkpoint, folder)  # leaves nothing of the ensemble
    assert set(tree(folder)) == {
        *("README.md", "metadata.json", "vnet.ckpt", "config.json", "SHA256SUMS", MANIFEST)
    }


def test_a_release_is_not_packed_into_itself(members, tmp_path):
    """The files to pack would be removed first."""
    folder = tmp_path / "release"
    release(members, folder)
    before = tree(folder)
    for target in (folder, folder / "network0"):
        with pytest.raises(DataError, match="would be replaced by the release of itself"):
            release([member_of(folder / "network0")], target)
    assert tree(folder) == before


def test_the_zip_of_a_folder_without_a_name_of_its_own(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    release([member_of(checkpoint)], "..", zipped=True)
    with zipfile.ZipFile(tmp_path / "here.zip") as archive:
        assert all(name.startswith("here/") for name in archive.namelist())


def test_networks_that_differ_in_their_grid_are_no_ensemble(checkpoint, tmp_path):
    member = member_of(checkpoint)
    coarser = member.config | {"dstRes": [1.0, 1.0, 1.0]}
    members = [member, member._replace(config=coarser)]
    with pytest.raises(DataError, match="only networks that agree"):
        release(members, tmp_path / "release")
    assert not (tmp_path / "release").exists()


@pytest.mark.parametrize(("setting", "refused"), [("fold=7", True), ("threshold=0.3", False)])
def test_a_release_says_how_its_network_was_trained(checkpoint, tmp_path, setting, refused):
    members = find_members(checkpoint, [setting, "num_workers=2"])
    if refused:
        with pytest.raises(UsageError, match=r"fold=7: .*best\.ckpt was trained with \d+, which"):
            release(members, tmp_path / "release")
        assert not (tmp_path / "release").exists()
    else:
        release(members, tmp_path / "release")
        assert load_config(tmp_path / "release" / "config.json").threshold == 0.3


def test_a_zip_is_the_same_each_time_and_replaces_only_ours(checkpoint, tmp_path, capsys):
    members = [member_of(checkpoint)]
    folder, archive = tmp_path / "release", tmp_path / "release.zip"
    digests = set()
    for _ in range(2):
        release(members, folder, zipped=True)
        digests.add(hash_file(archive))
    (digest,) = digests
    assert f"#sha256={digest}" in capsys.readouterr().out
    with zipfile.ZipFile(archive) as file:
        content = {name.removeprefix("release/"): file.read(name) for name in file.namelist()}
    assert content == {k: v for k, v in tree(folder).items() if k != MANIFEST}
    archive.write_bytes(b"mine")
    with pytest.raises(DataError, match="not written by this program"):
        release(members, tmp_path / "release", zipped=True)
    assert archive.read_bytes() == b"mine"
