"""Training over two hosts, which are network namespaces joined by a cable; it is cut once.

Needs root and iproute2's `ip netns`; in CI as root it fails where they do not work.
"""

import os
import re
import signal
import subprocess
import sys

import pandas as pd
import pytest

from tests.helpers import ROOT, wait_until
from tests.launchers import SETTINGS, RanksCaller, processes, train_command

ADDRESSES = ["10.213.77.1", "10.213.77.2"]
LOST = (
    " since ranks on another host do not respond: see the logs there, or check the network; the end"
)

pytestmark = [pytest.mark.launchers, pytest.mark.two_hosts]


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Hosts:
    """Two network namespaces and the cable between them."""

    def __init__(self):
        self.names = [f"vnet{os.getpid()}{letter}" for letter in "ab"]

    def connect(self):
        first, second = self.names
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", first, "type", "veth", "peer", "cable", "netns", second)
        for name, address in zip(self.names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "lo", "up")
        self.set_cable("up")

    def set_cable(self, state):
        for name in self.names:
            ip("-n", name, "link", "set", "cable", state)

    def start(self, node, folder, *arguments, environment):
        """Starts train_msrun.sh on a host."""
        launcher = ["bash", ROOT / "scripts" / "train_msrun.sh", *arguments]
        several = {"NODES": "2", "NODE_RANK": str(node), "MASTER_ADDR": ADDRESSES[0], "WAIT": "1"}
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[node], *launcher],
            cwd=folder,
            env=environment | several,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def remove(self):
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.fixture(scope="module")
def hosts():
    if os.geteuid() != 0:
        pytest.skip("two hosts need root")
    hosts, lacking = Hosts(), ""
    try:
        hosts.connect()
    except FileNotFoundError:
        lacking = "ip, of the package iproute2"
    except subprocess.CalledProcessError as error:
        lacking = f"network namespaces: {error.stderr.strip()}"
        hosts.remove()
    if lacking:
        complain = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        complain(f"two hosts need {lacking}")
    yield hosts
    hosts.remove()


def outputs(launchers):
    """What the launchers have printed, when all have ended; the time-out only ends a hang."""
    return [launcher.communicate(timeout=200)[0] for launcher in launchers]


# --------------------------------------------------------------------- with stand-ins


@pytest.fixture
def callers(tmp_path):
    callers = []
    for node in range(2):
        folder = tmp_path / f"host{node}"
        folder.mkdir()
        callers.append(RanksCaller(folder))
    yield callers
    for caller in callers:
        for pid in caller.processes():
            os.kill(pid, 9)


def start_both(hosts, callers, **variables):
    return [
        hosts.start(
            node,
            caller.folder,
            *("4", "my data", "train set.csv"),
            environment=caller.environment(**variables),
        )
        for node, caller in enumerate(callers)
    ]


def test_commands(hosts, callers):
    endings = '{"0": [1, 0], "1": [1, 0], "2": [1, 0], "3": [1, 0]}'
    launchers = start_both(hosts, callers, ENDINGS=endings)
    for node, output in enumerate(outputs(launchers)):
        assert launchers[node].returncode == 0, output
        caller = callers[node]
        msrun = caller.call("msrun")["argv"]
        assert msrun[: msrun.index("--log_dir")] == [
            *("--worker_num", "4", "--local_worker_num", "2"),
            *("--master_addr", ADDRESSES[0], "--master_port", "8118", "--node_rank", str(node)),
        ]
        ranks = [2 * node, 2 * node + 1]
        names = {f"{rank}.json" for rank in ranks} | {"msrun.json"}
        names |= {"scheduler.json"} if node == 0 else set()
        assert {path.name for path in caller.records.iterdir()} == names
        for local, rank in enumerate(ranks):
            call = caller.call(rank)
            argv = train_command(caller, "Ascend")
            argv[argv.index("--device_num") + 1] = "4"
            assert call["argv"] == argv[: len(call["argv"])]
            expected = {"RANK_ID": str(rank), "DEVICE_ID": str(local), "MS_NODE_TIMEOUT": "20"}
            assert expected.items() <= call["env"].items()
        log = caller.folder / ["train_msrun.log", "train_msrun_node1.log"][node]
        assert f"last words of rank {ranks[0]}\nall ranks have finished\n" in log.read_text()


@pytest.mark.parametrize(
    ("node", "variables", "message"),
    [
        (0, {"MASTER_ADDR": ADDRESSES[1]}, f"MASTER_ADDR '{ADDRESSES[1]}' is not this host's"),
        (1, {"MASTER_ADDR": ADDRESSES[1]}, f"MASTER_ADDR '{ADDRESSES[1]}' is this host, which"),
        (0, {"MASTER_ADDR": "127.0.0.1"}, "MASTER_ADDR '127.0.0.1' is a loopback address"),
    ],
)
def test_addresses_that_cannot_be_meant(hosts, callers, node, variables, message):
    caller = callers[node]
    launcher = ["bash", ROOT / "scripts" / "train_msrun.sh", "2", "my data", "train set.csv"]
    process = subprocess.run(
        ["ip", "netns", "exec", hosts.names[node], *launcher],
        cwd=caller.folder,
        env=caller.environment(NODES=2, NODE_RANK=node, WAIT=1, **variables),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 2
    assert process.stderr.startswith(f"error: {message}") and process.stderr.count("\n") == 1
    assert not list(caller.records.iterdir())


# ------------------------------------------------------------------------- for real


@pytest.mark.parametrize("fault", ["cut", pytest.param("death", marks=pytest.mark.full)])
def test_a_lost_host_ends_both_and_a_resume_goes_on(hosts, tmp_path, write_training, fault):
    """A cut cable or a killed rank: MindSpore's heartbeat ends both; after the latter, RESUME=1
    continues the run.
    """
    write_training(tmp_path, train=(0, 1, 2))
    folders = [tmp_path / "host0", tmp_path / "host1"]
    for folder in folders:
        folder.mkdir()
    environment = os.environ | {"PYTHON": sys.executable, "DEVICE_TARGET": "CPU"}
    environment["TEST_OF"] = str(tmp_path)

    def start(epochs, **variables):
        settings = [word for text in [*SETTINGS, f"epochs={epochs}"] for word in ("--set", text)]
        arguments = ["2", "../data", "../train.csv", *settings]
        both = environment | variables
        return [hosts.start(node, folders[node], *arguments, environment=both) for node in (0, 1)]

    def wait_for_epoch(epoch):
        log = folders[0] / "train_msrun.log"
        wait_until(lambda: log.exists() and f"epoch: {epoch} " in log.read_text(), 200)

    launchers = start(5000, MS_NODE_TIMEOUT="10")  # the test waits for it
    wait_for_epoch(2)
    if fault == "cut":
        hosts.set_cable("down")
    else:
        (rank_1,) = (
            pid for pid, what in processes(tmp_path).items() if what == "train.py RANK_ID=1"
        )
        os.kill(rank_1, signal.SIGKILL)
    first, second = outputs(launchers)
    hosts.set_cable("up")
    assert 0 not in [launcher.returncode for launcher in launchers]
    assert not processes(tmp_path)
    assert LOST in first
    assert (LOST if fault == "cut" else "error: rank 1 was ended by SIGKILL") in second
    (run_folder,) = (folders[0] / "results" / "infer").iterdir()
    if fault == "death":
        total = int(pd.read_csv(run_folder / "history.csv")["epoch"].max()) + 3
        texts = outputs(launchers := start(total, RESUME="1"))
        assert [launcher.returncode for launcher in launchers] == [0, 0], texts
        assert re.search(r"^resuming .* after epoch \d+$", texts[0], re.M)
        epochs = pd.read_csv(run_folder / "history.csv")["epoch"].tolist()
        assert epochs == list(range(1, total + 1))
        assert list((folders[0] / "results" / "infer").iterdir()) == [run_folder]
        assert not processes(tmp_path)
    assert not (folders[1] / "results").exists()
