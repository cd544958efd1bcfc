"""HCCL's rank tables: what is read, what is refused, what scripts/create_hccl.py writes."""

import copy
import json
import socket
import subprocess
import sys

import pytest

from src.devices.rank_table import (
    parse_device_ids,
    read_addresses,
    read_rank_table,
    visible_devices,
)
from src.utils.errors import DataError, UsageError
from tests.helpers import ROOT

# Written by hand after HCCL's documentation, not by this project.
TABLE = {
    "version": "1.0",
    "server_count": "1",
    "server_list": [
        {
            "server_id": "10.0.0.1",
            "device": [
                {"device_id": "6", "device_ip": "192.168.101.101", "rank_id": "1"},
                {"device_id": "4", "device_ip": "192.168.100.101", "rank_id": "0"},
                {"device_id": "5", "device_ip": "192.168.102.101", "rank_id": "2"},
            ],
            "host_nic_ip": "reserve",
        }
    ],
    "status": "completed",
}
MISSING = object()


def changed(*path_and_value):
    """The table with one value changed, or removed."""
    *path, key, value = path_and_value
    table = copy.deepcopy(TABLE)
    owner = table
    for step in path:
        owner = owner[step]
    if value is MISSING:
        del owner[key]
    else:
        owner[key] = value
    return table


def device(number, key, value):
    return changed("server_list", 0, "device", number, key, value)


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "table.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_device_ids_in_the_order_of_the_ranks(write):
    assert read_rank_table(write(TABLE), 3) == ["4", "6", "5"]


@pytest.mark.parametrize(
    "table",
    [
        changed("version", "1.2"),
        changed("group_name", "further fields are HCCL's affair"),
        changed("server_list", 0, "host_nic_ip", MISSING),
        device(0, "device_ip", "fd00::1"),
    ],
)
def test_what_else_is_read(write, table):
    assert read_rank_table(write(table), 3) == ["4", "6", "5"]


@pytest.mark.parametrize(
    ("table", "finding"),
    [
        ("", "is not JSON (Expecting value"),
        ('{"version": "1.0",', "is not JSON (Expecting property name"),
        ([TABLE], "holds a list, expected a JSON object"),
        (changed("status", MISSING), "the table has no status, expected a text"),
        (changed("status", "initializing"), "status is 'initializing', expected 'completed'"),
        (changed("version", MISSING), "the table has no version, expected a text"),
        (changed("version", 1.0), "version of the table is 1.0, expected a text"),
        (changed("version", "0.1"), "version is '0.1', expected '1.0' or '1.2'"),
        (changed("server_count", MISSING), "the table has no server_count, expected a text"),
        (changed("server_count", 1), "server_count of the table is 1, expected a text"),
        (changed("server_count", "2"), "server_count is '2', expected '1', as server_list has"),
        (changed("server_list", MISSING), "the table has no server_list, expected a list"),
        (changed("server_list", []), "server_list of the table is [], expected a list"),
        (changed("server_list", {}), "server_list of the table is {}, expected a list"),
        (changed("server_list", 0, "host"), "the server is 'host', expected a JSON object"),
        (changed("server_list", 0, "server_id", MISSING), "the server has no server_id, expected"),
        (changed("server_list", 0, "device", MISSING), "the server has no device, expected a list"),
        (changed("server_list", 0, "device", []), "device of the server is [], expected a list"),
        (changed("server_list", 0, "device", 1, None), "device entry 1 is None, expected a JSON"),
        (device(2, "rank_id", MISSING), "device entry 2 has no rank_id, expected a text"),
        (device(2, "device_id", MISSING), "device entry 2 has no device_id, expected a text"),
        (device(2, "device_ip", MISSING), "device entry 2 has no device_ip, expected a text"),
        (device(2, "device_ip", ""), "device_ip of device entry 2 is '', expected a text"),
        (device(2, "rank_id", 2), "rank_id of device entry 2 is 2, expected a text"),
        (device(2, "device_id", 5), "device_id of device entry 2 is 5, expected a text"),
        (device(2, "rank_id", "02"), "rank_id of device entry 2 is '02', expected a number such"),
        (device(2, "rank_id", "-1"), "rank_id of device entry 2 is '-1', expected a number such"),
        (device(2, "device_id", "0x5"), "device_id of device entry 2 is '0x5', expected a number"),
        (device(2, "device_id", "٥"), "device_id of device entry 2 is '٥', expected a number"),
        (device(2, "device_ip", "10.0.0"), "device_ip of device entry 2 is '10.0.0', expected an"),
        (device(2, "rank_id", "0"), "2 devices have rank_id '0', expected each to have its own"),
        (device(2, "device_id", "4"), "2 devices have device_id '4', expected each to have its"),
        (device(2, "device_ip", "192.168.100.101"), "2 devices have device_ip '192.168.100.101'"),
        (device(2, "rank_id", "3"), "no device has rank_id '2', expected ranks 0 to 2"),
        (device(1, "rank_id", "7"), "no device has rank_id '0', expected ranks 0 to 2"),
    ],
)
def test_faults(write, table, finding):
    path = write(table)
    with pytest.raises(DataError) as error:
        read_rank_table(path, 3)
    message = str(error.value)
    assert message.startswith(f"{path}: {finding}")
    assert message.endswith("; scripts/create_hccl.py writes such a table")
    assert "\n" not in message


@pytest.mark.parametrize("device_num", [1, 2, 4, 8])
def test_another_number_of_devices(write, device_num):
    with pytest.raises(DataError, match=rf"has 3 device\(s\), expected DEVICE_NUM {device_num}; "):
        read_rank_table(write(TABLE), device_num)


def test_several_servers_get_the_command_for_each(write):
    table = changed("server_count", "2")
    table["server_list"].append(copy.deepcopy(table["server_list"][0]) | {"server_id": "10.0.0.2"})
    path = write(table)
    with pytest.raises(DataError) as error:
        read_rank_table(path, 6)
    command = "MASTER_ADDR=10.0.0.1 bash scripts/train_msrun.sh 6 DATA_PATH TRAIN_SPLIT_FILE_PATH"
    assert str(error.value) == (
        f"{path}: has 2 servers, expected 1; on several hosts start on 10.0.0.1 NODES=2 "
        f"NODE_RANK=0 {command}, and on 10.0.0.2 NODES=2 NODE_RANK=1 {command}"
    )
    table["server_list"][1]["device"].pop()
    with pytest.raises(
        DataError, match="expected 1; with 2 to 3 devices; msrun needs the same number"
    ):
        read_rank_table(write(table), 5)


def test_a_table_for_another_chip(write):
    table = {"chip_info": "910", "group_list": [], "status": "completed"}
    with pytest.raises(
        DataError, match="is of HCCL's first form, for chip 910, expected one with s"
    ):
        read_rank_table(write(table), 1)


@pytest.mark.parametrize(
    ("devices", "visible", "places"),
    [
        (["0"], "0", "0"),
        (["7"], "7", "0"),
        (["4", "6", "5"], "4,5,6", "0,2,1"),
        (["10", "9", "2"], "2,9,10", "2,1,0"),  # numbers, not texts
    ],
)
def test_cann_counts_visible_devices_in_ascending_order(devices, visible, places):
    assert visible_devices(devices) == (visible, places)


def test_no_such_table(tmp_path):
    with pytest.raises(DataError, match=r"none\.json: cannot be read \(No such file"):
        read_rank_table(tmp_path / "none.json", 1)


@pytest.mark.parametrize(
    ("content", "device_num", "code", "output", "errors"),
    [
        (TABLE, "3", 0, "4,5,6 0,2,1\n", ""),
        (TABLE, "2", 1, "", "error: {path}: has 3 device(s), expected DEVICE_NUM 2; "),
        ("no json", "3", 1, "", "error: {path}: is not JSON (Expecting value"),
    ],
)
def test_as_a_command(write, content, device_num, code, output, errors):
    path = write(content)
    process = subprocess.run(
        [sys.executable, "-m", "src.devices.rank_table", path, device_num],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stdout) == (code, output)
    assert process.stderr.startswith(errors.format(path=path))
    assert process.stderr.count("\n") == code


# -------------------------------------------------------------------------- create_hccl.py


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("[0,8)", "01234567"),
        ("[4, 6)", "45"),
        ("[3,4)", "3"),
        ("0,2,5", "025"),
        ("7,6", "76"),
    ],
)
def test_device_ids(text, ids):
    assert parse_device_ids(text) == list(ids)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("8", "expected '\\[0,8\\)'"),  # a number of devices, or a device?
        ("[0,8]", "expected '\\[0,8\\)'"),
        ("[8,0)", "expected '\\[0,8\\)'"),
        ("0;1", "expected '\\[0,8\\)'"),
        ("", "expected '\\[0,8\\)'"),
        ("0,1,0", "device 0 is listed 2 times"),
        ("1,01", "device 1 is listed 2 times"),
    ],
)
def test_device_ids_that_are_none(text, reason):
    with pytest.raises(UsageError, match=reason):
        parse_device_ids(text)


def test_addresses_of_hccn_conf(tmp_path):
    path = tmp_path / "hccn.conf"
    path.write_text(
        "address_0=192.168.100.101\nnetmask_0=255.255.255.0\n\n# address_9=1.2.3.4\n"
        " address_10 = 192.168.103.101 \nnetdetect_0=192.168.100.1\n"
    )
    assert read_addresses(path) == {"0": "192.168.100.101", "10": "192.168.103.101"}


def create(folder, *arguments):
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "create_hccl.py", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
    )


CONF = "".join(f"address_{number}=192.168.{100 + number}.101\n" for number in range(8))


@pytest.mark.parametrize(
    ("arguments", "name", "ids"),
    [
        ([], "hccl_8p_01234567_10.0.0.1.json", "01234567"),
        (["--device_num", "[0,2)"], "hccl_2p_01_10.0.0.1.json", "01"),
        (
            ["--device_num", "5,2,7", "--out_path", "a new/folder"],
            "hccl_3p_527_10.0.0.1.json",
            "527",
        ),
    ],
)
def test_a_table_is_written(tmp_path, arguments, name, ids):
    (tmp_path / "hccn.conf").write_text(CONF)
    here = [*arguments, "--hccn_conf", "hccn.conf", "--server_ip", "10.0.0.1"]
    process = create(tmp_path, *here)
    assert process.returncode == 0, process.stderr
    folder = "a new/folder/" if "--out_path" in arguments else ""
    assert process.stdout == f"rank table: {folder}{name}\n"
    path = tmp_path / folder / name
    assert read_rank_table(path, len(ids)) == list(ids)
    table = json.loads(path.read_text())
    expected = [
        {"device_id": device, "device_ip": f"192.168.{100 + int(device)}.101", "rank_id": str(rank)}
        for rank, device in enumerate(ids)
    ]
    assert table["server_list"][0]["device"] == expected
    assert table["server_list"][0]["server_id"] == "10.0.0.1"
    assert create(tmp_path, *here).returncode == 0  # the same once more
    assert [file.name for file in path.parent.glob("*.json")] == [name]


def test_given_addresses(tmp_path):
    given = ["--device_num", "[6,8)", "--device_ip", "10.1.0.6,10.1.0.7"]
    assert create(tmp_path, *given, "--server_ip", "10.0.0.2").returncode == 0
    table = json.loads((tmp_path / "hccl_2p_67_10.0.0.2.json").read_text())
    assert [entry["device_ip"] for entry in table["server_list"][0]["device"]] == [
        "10.1.0.6",
        "10.1.0.7",
    ]


def test_the_servers_own_address(tmp_path):
    process = create(tmp_path, "--device_num", "[0,1)", "--device_ip", "10.1.0.1")
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        assert process.returncode == 1
        assert "has no address" in process.stderr
        assert process.stderr.endswith("give it with --server_ip\n")
    else:
        assert process.stdout == f"rank table: hccl_1p_0_{address}.json\n"


@pytest.mark.parametrize(
    ("conf", "arguments", "code", "finding"),
    [
        (CONF, ["--device_num", "[7,9)"], 1, "hccn.conf: no address for device 8, expected one"),
        ("address_0=\n", ["--device_num", "[0,1)"], 1, "hccn.conf: no address for device 0"),
        (
            "address_0=1.2.3\n",
            ["--device_num", "[0,1)"],
            1,
            "hccn.conf: device 0 has '1.2.3', expected an IP address",
        ),
        (
            "address_0=10.1.0.1\naddress_1=10.1.0.1\n",
            ["--device_num", "[0,2)"],
            1,
            "hccn.conf: 2 devices have 10.1.0.1, expected each to have its own",
        ),
        (None, [], 1, "hccn.conf: cannot be read (No such file or directory); give the addresses"),
        (None, ["--device_ip", "10.1.0.1"], 2, "--device_ip: 1 address(es) for 8 device(s)"),
        (
            None,
            ["--device_num", "[0,2)", "--device_ip", "10.1.0.1,10.1.0.1"],
            1,
            "--device_ip: 2 devices have 10.1.0.1",
        ),
        (CONF, ["--device_num", "[0,9"], 2, "--device_num '[0,9': expected '[0,8)'"),
        (CONF, ["--server_ip", "../x"], 2, "--server_ip '../x': expected an IP address"),
    ],
)
def test_what_cannot_be_written(tmp_path, conf, arguments, code, finding):
    if conf is not None:
        (tmp_path / "hccn.conf").write_text(conf)
    arguments = ["--hccn_conf", "hccn.conf", "--server_ip", "10.0.0.1", *arguments]
    process = create(tmp_path, *arguments)
    assert process.returncode == code
    assert process.stderr.startswith(f"error: {finding}")
    assert process.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*.json"))


def test_another_file_of_that_name_stays(tmp_path):
    path = tmp_path / "hccl_1p_0_10.0.0.1.json"
    path.write_text("theirs")
    arguments = ["--device_num", "[0,1)", "--device_ip", "10.1.0.1", "--server_ip", "10.0.0.1"]
    process = create(tmp_path, *arguments)
    assert process.returncode == 1
    assert process.stderr.startswith(f"error: {path.name}: exists with other content")
    assert path.read_text() == "theirs"
