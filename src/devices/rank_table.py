"""HCCL's rank table, which assigns the Ascend devices of a server to ranks.

    {"version": "1.0", "server_count": "1", "status": "completed", "server_list": [
        {"server_id": "10.0.0.1", "device": [
            {"device_id": "0", "device_ip": "192.168.100.101", "rank_id": "0"}, ...]}]}

All values are strings, numbers too. `python -m src.devices.rank_table FILE DEVICE_NUM` checks a
table and prints the result of `visible_devices` for scripts/train_distribute.sh.
"""

import ipaddress
import json
import re
import socket
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..utils.command_line import run
from ..utils.errors import DataError, UsageError
from ..utils.files import write_files

VERSIONS = ("1.0", "1.2")  # 1.2 adds super nodes, which join servers
HCCN_CONF = "/etc/hccn.conf"  # network of the devices, written by Ascend's hccn_tool


def read_rank_table(path: str | Path, device_num: int) -> list[str]:
    """Reads the rank table of one server and checks it.

    Args:
        path: the table.
        device_num: the expected number of devices.

    Returns:
        The device ids, in the order of the ranks.

    Raises:
        DataError: the table cannot be read, is invalid, or has another number of devices; the
            message names the first fault.
    """
    expect = _Expectations(path)
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its path") from None
    except ValueError as error:
        expect(False, f"is not JSON ({error})", "a rank table")
    servers = _servers(table, expect)
    if len(servers) > 1:
        raise DataError(
            f"{path}: has {len(servers)} servers, expected 1; {_several_hosts_remedy(servers)}"
        )
    devices = _devices_of_ranks(servers[0]["device"], expect)
    if len(devices) != device_num:
        raise DataError(
            f"{path}: has {len(devices)} device(s), expected DEVICE_NUM {device_num}; "
            "give a table and a number that agree"
        )
    for rank in map(str, range(device_num)):
        expect(rank in devices, f"no device has rank_id {rank!r}", f"ranks 0 to {device_num - 1}")
    return [devices[str(rank)] for rank in range(device_num)]


class _Expectations(NamedTuple):
    """Raises a DataError that names the table for what is not as expected in it."""

    path: str | Path

    def __call__(self, condition, found, expected):
        if not condition:
            remedy = "scripts/create_hccl.py writes such a table"
            raise DataError(f"{self.path}: {found}, expected {expected}; {remedy}")

    def entry(self, owner, key, where, kind):
        """Returns a value that must be there, of this type and not empty."""
        value = owner.get(key)
        name = {str: "a text", list: "a list"}[kind]
        self(key in owner, f"{where} has no {key}", name)
        self(isinstance(value, kind) and value, f"{key} of {where} is {value!r}", name)
        return value


def _servers(table: Any, expect: _Expectations) -> list[dict]:
    """Returns the servers of a table, each with its "server_id" and its "device" list."""
    expect(isinstance(table, dict), f"holds a {type(table).__name__}", "a JSON object")
    old = "group_list" in table or "chip_info" in table
    chip = f", for chip {table.get('chip_info', '?')}"
    expect(not old, f"is of HCCL's first form{chip}", "one with server_list")
    status = expect.entry(table, "status", "the table", str)
    expect(status == "completed", f"status is {status!r}", "'completed'")
    version = expect.entry(table, "version", "the table", str)
    expect(version in VERSIONS, f"version is {version!r}", " or ".join(map(repr, VERSIONS)))
    servers = expect.entry(table, "server_list", "the table", list)
    count = expect.entry(table, "server_count", "the table", str)
    listed = str(len(servers))
    expect(count == listed, f"server_count is {count!r}", f"{listed!r}, as server_list has them")
    for server in servers:
        expect(isinstance(server, dict), f"the server is {server!r}", "a JSON object")
        expect.entry(server, "server_id", "the server", str)
        expect.entry(server, "device", "the server", list)
    return servers


def _devices_of_ranks(entries: list, expect: _Expectations) -> dict[str, str]:
    """Returns the device id of each rank id of a server's "device" list."""
    columns: dict[str, list[str]] = {"rank_id": [], "device_id": [], "device_ip": []}
    for number, device in enumerate(entries):
        where = f"device entry {number}"
        expect(isinstance(device, dict), f"{where} is {device!r}", "a JSON object")
        for key, column in columns.items():
            column.append(expect.entry(device, key, where, str))
            number_or_ip = is_address if key == "device_ip" else _is_number
            expected = "an IP address" if key == "device_ip" else "a number such as '0'"
            expect(number_or_ip(column[-1]), f"{key} of {where} is {column[-1]!r}", expected)
    for key, column in columns.items():
        value, times = Counter(column).most_common(1)[0]
        expect(times == 1, f"{times} devices have {key} {value!r}", "each to have its own")
    return dict(zip(columns["rank_id"], columns["device_id"], strict=True))


def _several_hosts_remedy(servers):
    """Returns the commands that train on several servers: msrun needs no rank table."""
    counts = {len(server["device"]) for server in servers}
    if len(counts) > 1:
        return f"with {min(counts)} to {max(counts)} devices; msrun needs the same number on each"
    ranks = len(servers) * counts.pop()
    master = servers[0]["server_id"]
    commands = [
        f"on {server['server_id']} NODES={len(servers)} NODE_RANK={node} MASTER_ADDR={master} "
        f"bash scripts/train_msrun.sh {ranks} DATA_PATH TRAIN_SPLIT_FILE_PATH"
        for node, server in enumerate(servers)
    ]
    return f"on several hosts start {', and '.join(commands)}"


def visible_devices(device_ids: Sequence[str]) -> tuple[str, str]:
    """Returns the device numbers for CANN, which counts the visible devices in ascending order.

    Returns:
        ASCEND_RT_VISIBLE_DEVICES, and the index of each rank's device among these.
    """
    visible = sorted(device_ids, key=int)
    return ",".join(visible), ",".join(str(visible.index(device)) for device in device_ids)


def parse_device_ids(text: str) -> list[str]:
    """Parses device ids in the zoo's form `[FIRST,END)` or a list such as `0,2,5`.

    Raises:
        UsageError: another form, no device, or a device twice.
    """
    text = text.replace(" ", "")
    if bounds := re.fullmatch(r"\[(\d+),(\d+)\)", text):
        ids = [str(number) for number in range(int(bounds[1]), int(bounds[2]))]
    elif re.fullmatch(r"\d+(,\d+)+", text):
        ids = [str(int(number)) for number in text.split(",")]
    else:
        ids = []
    if not ids:
        raise UsageError(
            f"--device_num '{text}': expected '[0,8)' for the devices 0 to 7, or a list as 0,2,5"
        )
    value, times = Counter(ids).most_common(1)[0]
    if times > 1:
        raise UsageError(f"--device_num '{text}': device {value} is listed {times} times")
    return ids


def read_addresses(path: str | Path = HCCN_CONF) -> dict[str, str]:
    """Reads the IP address of each device id from lines such as `address_0=10.1.0.1`.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a text"
        raise DataError(
            f"{path}: cannot be read ({reason}); give the addresses with --device_ip"
        ) from None
    found = (re.fullmatch(r"\s*address_(\d+)\s*=\s*(\S+)\s*", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def parse_addresses(text: str, device_ids: Sequence[str]) -> dict[str, str]:
    """Parses the IP addresses of devices, in their order and separated by commas.

    Raises:
        UsageError: another number of addresses than of devices.
    """
    given = text.split(",")
    if len(given) != len(device_ids):
        raise UsageError(f"--device_ip: {len(given)} address(es) for {len(device_ids)} device(s)")
    return dict(zip(device_ids, given, strict=True))


def server_address() -> str:
    """Returns the IP address to which this machine's host name resolves.

    Raises:
        DataError: it has none.
    """
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError as error:
        raise DataError(
            f"host name {socket.gethostname()}: has no address ({error.strerror}); "
            "give it with --server_ip"
        ) from None


def create_rank_table(
    device_ids: Sequence[str], addresses: Mapping[str, str], server_id: str, source: str
) -> dict:
    """Returns the rank table of one server; ranks follow the given order of devices.

    Args:
        device_ids: the devices to train on.
        addresses: device id -> IP.
        server_id: IP of the server.
        source: origin of the addresses, for messages.

    Raises:
        DataError: an address is missing, invalid, or belongs to two devices.
        UsageError: `server_id` is no IP address.
    """
    if not is_address(server_id):
        raise UsageError(f"--server_ip '{server_id}': expected an IP address")
    for device_id in device_ids:
        address = addresses.get(device_id)
        if address is None:
            raise DataError(
                f"{source}: no address for device {device_id}, expected one; set it with "
                "hccn_tool, or give all of them with --device_ip"
            )
        if not is_address(address):
            raise DataError(f"{source}: device {device_id} has {address!r}, expected an IP address")
    address, times = Counter(addresses[device_id] for device_id in device_ids).most_common(1)[0]
    if times > 1:
        raise DataError(f"{source}: {times} devices have {address}, expected each to have its own")
    devices = [
        {"device_id": device_id, "device_ip": addresses[device_id], "rank_id": str(rank)}
        for rank, device_id in enumerate(device_ids)
    ]
    server = {"server_id": server_id, "device": devices, "host_nic_ip": "reserve"}
    return {
        "version": "1.0",
        "server_count": "1",
        "server_list": [server],
        "status": "completed",
    }


def write_rank_table(table: dict, folder: str | Path) -> Path:
    """Writes a rank table as hccl_8p_01234567_10.0.0.1.json; returns the file.

    Args:
        table: of `create_rank_table`.
        folder: of the file.

    Raises:
        DataError: it cannot be written, or is there with other content.
    """
    (server,) = table["server_list"]
    ids = [device["device_id"] for device in server["device"]]
    path = Path(folder, f"hccl_{len(ids)}p_{''.join(ids)}_{server['server_id']}.json")
    content = json.dumps(table, indent=4).encode() + b"\n"
    if path.exists() and path.read_bytes() != content:
        raise DataError(
            f"{path}: exists with other content and is not replaced; move it away or choose "
            "another --out_path"
        )
    write_files({path: content})
    return path


def _is_number(text):
    return re.fullmatch(r"0|[1-9]\d*", text, re.ASCII) is not None


def is_address(text: str) -> bool:
    """Whether a text is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def main() -> None:
    """Checks the table named on the command line; prints its `visible_devices`."""
    path, device_num = sys.argv[1:]
    print(*visible_devices(read_rank_table(path, int(device_num))))


if __name__ == "__main__":
    run(main)
