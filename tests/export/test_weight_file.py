"""NAME.vnet: the format as docs/export.md has it, and what is refused.

That the C++ program computes with it what MindSpore computes is in test_infer_310_end_to_end.py.
"""

import os
import struct
import zlib

import numpy as np
import pytest

from src.export.weight_file import run_weights, write_weights
from src.fast_conv3d.network import FastVNet
from src.utils.errors import DataError
from src.vnet import VARIANTS
from tests.helpers import cut
from tests.networks import computed_once, seeded_vnet

GRID = (16, 32, 16)
# The header's numbers by the names in docs/export.md, and the table's.
FIELDS = np.dtype(
    [
        *[("magic", "S8"), ("version", "<u4"), ("header_bytes", "<u4"), ("file_bytes", "<u8")],
        *[("crc", "<u4"), ("arrays", "<u4"), ("grid", "<i4", 3), ("width", "<i4")],
        *[("encoder_depths", "<i4", 5), ("decoder_depths", "<i4", 4), ("activation", "<i4")],
        *[("norm", "<i4"), ("activation_before_sum", "<i4"), ("encoder_bias", "<i4")],
        *[("decoder_bias", "<i4"), ("up_bias", "<i4"), ("head_unit", "<i4"), ("head_side", "<i4")],
        *[("head_bias", "<i4"), ("foreground", "<i4"), ("epsilon", "<f4")],
    ]
)
ENTRY = np.dtype(
    [("offset", "<u8"), ("floats", "<u8"), ("crc", "<u4"), ("layer", "<u2"), ("parameter", "<u2")]
)
ORDER = (
    *("weight", "bias", "gamma", "beta", "moving_mean", "moving_variance"),
    *("first_slopes", "second_slopes"),
)


def header_of(content):
    return np.frombuffer(content, FIELDS, 1)[0]


def table_of(content):
    return np.frombuffer(content, ENTRY, header_of(content)["arrays"], FIELDS.itemsize)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Variant -> path of the weight file of a seeded network of width 3."""
    folder = tmp_path_factory.mktemp("files")
    paths = {variant: folder / f"{variant}.vnet" for variant in VARIANTS}
    for variant, path in paths.items():
        write_weights(seeded_vnet(variant, 3), GRID, path)
    return paths


@pytest.fixture(scope="module")
def whole(files):
    return files["instance"].read_bytes()


# What is in it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_header_has_the_options_of_the_network(files, variant):
    header, options = header_of(files[variant].read_bytes()), VARIANTS[variant]
    assert (header["magic"], header["version"]) == (b"VNETCPU\n", 1)
    assert tuple(header["grid"]) == GRID and header["width"] == 3
    assert header["activation"] == {"elu": 1, "prelu": 2}[options.activation]
    assert header["norm"] == {None: 0, "batch": 1, "instance": 2}[options.norm]
    assert header["epsilon"] == np.float32(1e-5 if options.norm else 0)
    for name, option in {
        **dict.fromkeys(("encoder_depths", "decoder_depths", "activation_before_sum"), None),
        **dict.fromkeys(("encoder_bias", "decoder_bias", "up_bias", "head_bias"), None),
        **{"head_unit": None, "head_side": "head_kernel_size", "foreground": "foreground_channel"},
    }.items():
        np.testing.assert_array_equal(header[name], getattr(options, option or name), name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_table_says_where_each_parameter_is(files, variant):
    """Each of the network's parameters is there once; layers and their arrays are in order."""
    content = files[variant].read_bytes()
    header, table = header_of(content), table_of(content)
    found = {}
    end = header["header_bytes"]
    for entry in table:
        assert entry["offset"] == end and end % 64 == 0
        array = np.frombuffer(content, "<f4", entry["floats"], entry["offset"])
        assert entry["crc"] == zlib.crc32(array.tobytes())
        end += -(-array.nbytes // 64) * 64
        found[tuple(entry)[3:]] = array
    assert end == header["file_bytes"] == len(content)
    assert list(found) == sorted(found)
    network = seeded_vnet(variant, 3)
    parameters = {p.name: p.asnumpy().ravel().tobytes() for p in network.get_parameters()}
    assert sorted(a.tobytes() for a in found.values()) == sorted(parameters.values())

    last = max(layer for layer, _ in found)
    depths = (*VARIANTS[variant].encoder_depths[1:], *VARIANTS[variant].decoder_depths)
    assert last + 1 == 1 + sum(depths) + 8 + VARIANTS[variant].head_unit + 1
    names = {"in_tr.conv.weight": 0, "down_tr32.down_conv.weight": 1, "out_tr.conv2.weight": last}
    names["up_tr256.up_conv.weight"] = 1 + 4 + sum(depths[:4])
    for name, layer in names.items():
        assert found[layer, 0].tobytes() == parameters[name]
    if variant == "paper":
        slopes = {(0, 7): "in_tr.relu.w", (1, 6): "down_tr32.relu1.w"}
        slopes[last - 1, 7] = "up_tr32.relu2.w"
    else:
        norm = {"instance": "bn"}.get(variant, "bn.bn2d")
        slopes = {(0, 2): f"in_tr.{norm}.gamma", (1, 3): f"down_tr32.{norm}.beta"}
    for key, name in slopes.items():
        assert found[key].tobytes() == parameters[name], ORDER[key[1]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_file_computes_what_the_network_computes(files, variant):
    volume = np.random.default_rng(5).normal(size=(1, 1, *GRID)).astype(np.float32)
    expected = computed_once(FastVNet(seeded_vnet(variant, 3)).set_train(False), volume)
    found = run_weights(files[variant], volume)
    assert expected.std() > 0.01
    np.testing.assert_array_equal(found, expected)


def test_a_volume_of_another_grid_is_refused(files):
    with pytest.raises(DataError, match=r"zoo.vnet: is for volumes of \(16, 32, 16\), not \(32,"):
        run_weights(files["zoo"], np.zeros((1, 1, 32, 32, 16), np.float32))


# What is refused --------------------------------------------------------------------------------


def sealed(content):
    """With the right checksum of header and table."""
    content = bytearray(content)
    crc = FIELDS.fields["crc"][1]
    struct.pack_into("<I", content, crc, 0)
    end = struct.unpack_from("<I", content, FIELDS.fields["header_bytes"][1])[0]
    struct.pack_into("<I", content, crc, zlib.crc32(content[:end]))
    return bytes(content)


def with_field(name, value, index=0):
    """A function that changes a number of the header; the checksum stays right."""

    def change(content):
        changed = np.frombuffer(content, FIELDS, 1).copy()
        if FIELDS[name].shape:
            changed[name][0, index] = value
        else:
            changed[name] = value
        return sealed(changed.tobytes() + content[FIELDS.itemsize :])

    return change


def with_entry(name, value):
    """A function that changes a number of the table's second entry; the checksum stays right."""

    def change(content):
        table = table_of(content).copy()
        table[1][name] = value
        end = FIELDS.itemsize + table.nbytes
        return sealed(content[: FIELDS.itemsize] + table.tobytes() + content[end:])

    return change


def flipped(position):
    def change(content):
        content = bytearray(content)
        content[position] ^= 16
        return bytes(content)

    return change


NETWORK = "found a network that this program can't compute"
FAULTS = {
    "empty": (lambda content: b"", "cannot be read (it is empty)"),
    "other": (lambda content: b"PK" + content[2:], "found no weight file of a V-Net"),
    "short": (lambda content: b"no", "found no weight file of a V-Net"),
    "magic alone": (lambda content: content[:8], "found 8 bytes, expected 128"),
    "header alone": (lambda content: content[:128], "found 128 bytes, expected "),
    "half": (lambda content: content[: len(content) // 2], "bytes, expected "),
    "cut": (cut(1), "bytes, expected "),
    "longer": (lambda content: content + b"\0", "bytes, expected "),
    "newer": (with_field("version", 2), "found format version 2, expected 1"),
    "header": (flipped(45), "found a damaged header"),
    "table": (flipped(140), "found a damaged header"),
    "weights": (flipped(-64 * 100), "found damaged weights"),
    "header too long": (with_field("header_bytes", 0), "found a header of 0 bytes"),
    "arrays": (with_field("arrays", 3), "found arrays that are not those of its network"),
    "offset": (with_entry("offset", 1 << 62), "found arrays that are not those"),
    "floats": (with_entry("floats", 1 << 62), "found arrays that are not those"),
    "parameter": (with_entry("parameter", 9), "found arrays that are not those"),
    "other width": (with_field("width", 4), "found arrays that are not those of its network"),
    "width 0": (with_field("width", 0), f"{NETWORK} (the width)"),
    "width -1": (with_field("width", -1), f"{NETWORK} (the width)"),
    "width": (with_field("width", 1 << 30), f"{NETWORK} (the width)"),
    "input": (with_field("encoder_depths", 2), f"{NETWORK} (the depth of the input stage)"),
    "depth": (with_field("encoder_depths", 0, 3), f"{NETWORK} (a stage's depth)"),
    "depths": (with_field("decoder_depths", 1 << 30, 1), f"{NETWORK} (a stage's depth)"),
    "activation": (with_field("activation", 0), f"{NETWORK} (the activation)"),
    "norm": (with_field("norm", 3), f"{NETWORK} (the norm)"),
    "kernel": (with_field("head_side", 2), f"{NETWORK} (the head's kernel)"),
    "foreground": (with_field("foreground", 2), f"{NETWORK} (the foreground's channel)"),
    "flag": (with_field("up_bias", -1), "found -1 for a yes or no"),
    "epsilon": (with_field("epsilon", np.nan), f"{NETWORK} (epsilon)"),
    "grid": (with_field("grid", 24, 1), "found a grid of 16 x 24 x 16, expected multiples of 16"),
    "no grid": (with_field("grid", 0), "found a grid of 0 x 32 x 16"),
    "large": (with_field("grid", 1 << 30), "found a grid of 1073741824 x 32 x 16"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_unusable_file_is_refused(tmp_path, whole, fault):
    change, says = FAULTS[fault]
    path = tmp_path / "a b.vnet"
    path.write_bytes(change(whole))
    with pytest.raises(DataError) as error:
        run_weights(path, np.zeros((1, 1, *GRID), np.float32))
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert says in message and "export.py" in message


def test_instance_norm_needs_two_voxels_at_the_lowest_level(tmp_path, whole):
    path = tmp_path / "small.vnet"
    path.write_bytes(with_field("grid", 16, 1)(whole))
    with pytest.raises(DataError, match="found a grid of 16 x 16 x 16"):
        run_weights(path, np.zeros((1, 1, 16, 16, 16), np.float32))


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.vnet")
    (tmp_path / "folder.vnet").mkdir()
    reasons = {"pipe": "no regular file", "folder": "no regular file", "no": "No such file"}
    for name, reason in reasons.items():
        path = tmp_path / f"{name}.vnet"
        with pytest.raises(DataError) as error:
            run_weights(path, np.zeros((1, 1, *GRID), np.float32))
        assert str(error.value).startswith(f"{path}: cannot be read (") and reason in str(error)
