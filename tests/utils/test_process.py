"""Closed streams, readers that leave, other encodings, users without a home."""

import gc
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from src.checkpoint import save_weights
from src.config import override_config, save_config, vnet_cfg
from src.data_manager import Case, load_training_volumes
from src.export.description import LITE, describe
from src.utils import process
from src.utils.files import hash_file
from src.utils.process import change_folder, free_port, no_garbage_collection
from src.vnet import create_vnet
from tests.helpers import ROOT

LATIN_1 = os.fsdecode(b"Prostat\xe4")
UMLAUT = "Prostatä (1)+50% #2"


def shell(command, folder, **environment):
    """Runs a line of sh in a folder, `$PY` being this Python and `$ROOT` the repository."""
    names = {"PY": sys.executable, "ROOT": str(ROOT), "PYTHONPATH": str(ROOT), **environment}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "PYTHON"))}
    return subprocess.run(
        ["sh", "-c", command], cwd=folder, env=inherited | names, capture_output=True, timeout=120
    )


# Streams ----------------------------------------------------------------------------------------

# Prints more than a pipe holds, leaves a file, and prints again.
WORK = """
import sys
from pathlib import Path
from src.utils.command_line import run
def main():
    print("first", flush=True)
    for _ in range(20000):
        print("0123456789")
    Path("result").write_text("whole")
    print("to stderr", file=sys.stderr)
run(main)
"""


@pytest.mark.parametrize(
    ("redirection", "code", "out", "err"),
    [
        (">&-", 0, b"", b"to stderr\n"),
        (">&- 2>&-", 0, b"", b""),
        ("<&- >&- 2>&-", 0, b"", b""),
        ("2>&-", 0, None, b""),
        ("| head -n 1", 0, b"first\n", b"to stderr\n"),
        ("2>&1 | head -n 1", 0, b"first\n", b""),
        (
            ">/dev/full",
            1,
            b"",
            b"to stderr\nerror: standard output: No space left on device; free some space; "
            b"the work itself is done\n",
        ),
        (">/dev/full 2>&1", 1, b"", b""),
    ],
)
def test_work_is_done_without_readers(tmp_path, redirection, code, out, err):
    (tmp_path / "work.py").write_text(WORK)
    done = shell(f'{{ "$PY" work.py; echo $? >code; }} {redirection}', tmp_path)
    assert (tmp_path / "code").read_text() == f"{code}\n"
    assert (tmp_path / "result").read_text() == "whole"
    assert out is None or done.stdout == out
    assert done.stderr == err


def test_no_output_gets_into_a_file_that_is_opened_later(tmp_path):
    """A closed stream's number would be the next file's."""
    (tmp_path / "work.py").write_text(
        "import os\nfrom src.utils.command_line import run\n"
        "def main():\n"
        "    file = os.open('result', os.O_CREAT | os.O_WRONLY)\n"
        "    os.write(1, b'from a library')\n"
        "    print('from Python', flush=True)\n"
        "    os.write(file, b'whole')\n"
        "run(main)\n"
    )
    shell('"$PY" work.py >&-', tmp_path)
    assert (tmp_path / "result").read_text() == "whole"


@pytest.mark.parametrize(
    ("environment", "at_once"), [({}, False), ({"PYTHONUNBUFFERED": "1"}, True)]
)
def test_unbuffered_output_stays_so(tmp_path, environment, at_once):
    (tmp_path / "work.py").write_text(
        "import os\nfrom src.utils.command_line import run\n"
        "def main():\n"
        "    print('a line')\n"
        "    os._exit(0)\n"
        "run(main)\n"
    )
    assert shell('"$PY" work.py', tmp_path, **environment).stdout == b"a line\n" * at_once


@pytest.mark.launchers
@pytest.mark.parametrize(
    ("redirection", "wait"), [(">&- 2>&-", "0"), ("| true", "0"), ("| true", "1")]
)
def test_a_launcher_needs_no_reader(tmp_path, redirection, wait):
    """What it says of an earlier log, before it starts, does not keep it from that."""
    running = """[ ! "$VNET_STATUS_FILE" ] || echo '{"state": "running"}' >"$VNET_STATUS_FILE"\n"""
    begin = "#!/bin/sh\nsleep 0.3\necho evaluating 1 cases\n"
    (tmp_path / "python").write_text(f"{begin}{running}sleep 0.3\necho whole >result\n")
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "data").mkdir()
    for name in ("a.ckpt", "val.csv", "eval.log"):
        (tmp_path / name).touch()
    launcher = 'bash "$ROOT/scripts/eval.sh" 0 a.ckpt data val.csv'
    environment = {"PYTHON": str(tmp_path / "python"), "DEVICE_TARGET": "CPU", "WAIT": wait}
    shell(f"{{ {launcher}; echo $? >code; }} {redirection}", tmp_path, **environment)
    for _ in range(50):
        if (tmp_path / "result").exists():
            break
        time.sleep(0.1)
    assert (tmp_path / "result").read_text() == "whole\n"
    assert (tmp_path / "code").read_text() == "0\n"
    assert (tmp_path / "eval.log").read_text().endswith("evaluating 1 cases\n")
    assert (tmp_path / "eval.log.1").read_text() == ""


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_letters_that_a_terminal_has_not_become_escapes(tmp_path, environment):
    (tmp_path / "work.py").write_text(
        "from src.utils.command_line import run\nfrom src.utils.errors import DataError\n"
        "def main():\n"
        "    print('Prostat\\xe4 \\udce4')\n"
        "    raise DataError('\\xfcber \\udcfc')\n"
        "run(main)\n"
    )
    done = shell('"$PY" work.py', tmp_path, **environment)
    assert done.stdout == b"Prostat\\xe4 \\udce4\n"
    assert (done.returncode, done.stderr) == (1, b"error: \\xfcber \\udcfc\n")


def test_a_name_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "work.py").write_text(
        "from pathlib import Path\nfrom src.utils.command_line import run\n"
        "run(lambda: Path('Prostat\\xe4').write_text(''))\n"
    )
    environment = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = shell('"$PY" work.py', tmp_path, **environment)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: Prostat\\xe4: ") and b"LC_ALL=C.UTF-8" in done.stderr
    assert done.stderr.count(b"\n") == 1


# Names ------------------------------------------------------------------------------------------

POSIX = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="module")
def named(tmp_path_factory, write_case):
    """A folder for each name: a case of that name, and one called b."""
    folder = tmp_path_factory.mktemp("named")
    write_case(folder / "data", "b", suffix=".mha")
    for name, kind in ((UMLAUT, "umlaut"), (LATIN_1, "latin_1")):
        for part, ending in (("img", ""), ("gt", "_segmentation")):
            (folder / kind / part).mkdir(parents=True)
            for target in (name, "b"):
                source = folder / "data" / part / f"b{ending}.mha"
                shutil.copy(source, folder / kind / part / f"{target}{ending}.mha")
    return folder


@pytest.mark.parametrize(
    ("kind", "environment", "good"),
    [
        ("umlaut", {"LC_ALL": "C"}, True),
        ("umlaut", POSIX, False),
        ("latin_1", {"LC_ALL": "C.UTF-8"}, False),
        ("latin_1", POSIX, False),
    ],
)
def test_names_are_taken_or_refused_in_one_line(named, tmp_path, kind, environment, good):
    data = named / kind
    check = shell(f'"$PY" "$ROOT/prepare_data.py" --check "{data}"', tmp_path, **environment)
    split = shell(
        f'"$PY" "$ROOT/create_csv.py" --data_path "{data}" --random 1', tmp_path, **environment
    )
    for done in (check, split):
        assert done.returncode == (0 if good else 1), done.stderr
        assert done.stderr.count(b"\n") == (0 if good else 1)
    if good:
        lines = "".join((tmp_path / f"{part}.csv").read_text("utf-8") for part in ("train", "val"))
        assert sorted(lines.splitlines()) == [f"{UMLAUT}.mha", "b.mha"]
        assert b"2 cases, no problems" in check.stdout
    else:
        assert b"is not UTF-8; rename it" in " ".join(check.stdout.decode().split()).encode()
        assert b"Prostat\\xe4" in split.stderr and b"LC_ALL=C.UTF-8" in split.stderr
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("environment", [{"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"}, POSIX])
def test_a_path_for_a_script_has_no_escapes(tmp_path, environment):
    model = tmp_path / UMLAUT / "vnet.mindir"
    model.parent.mkdir()
    model.write_bytes(b"model")
    facts = {"format": "MINDIR", **LITE, "sha256": hash_file(model), "checkpoint_sha256": "0"}
    description = describe(override_config(vnet_cfg, []), 1, {model.name: facts})
    model.with_suffix(".json").write_text(json.dumps(description))
    done = shell(f'"$PY" -m src.export.description --runtime lite "{model}"', ROOT, **environment)
    assert (done.returncode, done.stdout) == (0, os.fsencode(model) + b"\n"), done.stderr


# Home -------------------------------------------------------------------------------------------


def test_without_a_home_cases_are_prepared_anew(
    homeless, tmp_path, write_case, small_config, capsys
):
    image, mask = write_case(tmp_path, "a", suffix=".mha")
    before = sorted(tmp_path.rglob("*"))
    (volume,) = load_training_volumes([Case("a", image, mask)], small_config("cache_dir=auto"))
    assert volume.intensity.shape == (16, 16, 16)
    assert sorted(tmp_path.rglob("*")) == before
    assert capsys.readouterr() == ("", "")


def test_a_free_port_can_be_listened_on():
    ports = {free_port() for _ in range(3)}
    for port in ports:
        with socket.create_server(("127.0.0.1", port)):
            assert free_port() not in (0, port)


def test_the_current_folder_changes_back(tmp_path):
    before = Path.cwd()
    with pytest.raises(ValueError, match="inside"), change_folder(tmp_path):
        assert Path.cwd() == tmp_path.resolve()
        raise ValueError("inside")
    assert Path.cwd() == before


@pytest.mark.parametrize("was_enabled", [True, False])
def test_garbage_collection_is_as_it_was_before(monkeypatch, was_enabled):
    calls = []
    monkeypatch.setattr(gc, "isenabled", lambda: was_enabled)
    for name in ("disable", "freeze", "enable"):
        monkeypatch.setattr(gc, name, lambda name=name: calls.append(name))
    with no_garbage_collection():
        assert calls == ["disable"]
    assert calls == ["disable", "freeze"] + ["enable"] * was_enabled


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu.max": "9900000 100000\n"}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        (
            {
                "cpu.max": "max 100000\n",
                "cpu/cpu.cfs_quota_us": "300000\n",
                "cpu/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu.max": "unknown\n"}, 8),
        ({}, 8),
    ],
)
def test_a_containers_quota_bounds_the_cores(tmp_path, monkeypatch, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(process, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert process.core_count() == cores


# Prints the number of threads that NumPy has started.
THREADS = """
import os
from src.utils.command_line import run
def main():
    import numpy
    print(len(os.listdir("/proc/self/task")) - 1)
run(main)
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="takes two cores")
@pytest.mark.parametrize(("setting", "started"), [("-u OPENBLAS_NUM_THREADS", 0), ("-u X", 1)])
def test_numpy_starts_no_threads_unless_asked(tmp_path, setting, started):
    command = f'env -u OMP_NUM_THREADS {setting} "$PY" -c "$WORK"'
    result = shell(command, tmp_path, WORK=THREADS, OPENBLAS_NUM_THREADS="2")
    assert int(result.stdout) == started


STRANGER = "setpriv --reuid 54321 --regid 54321 --clear-groups"
HOMELESS = "env -u HOME -u XDG_CACHE_HOME -u XDG_CONFIG_HOME -u MPLCONFIGDIR"


@pytest.fixture
def open_folder():
    """One that every user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="takes root")
def test_a_user_whom_nobody_knows_predicts(open_folder, write_case):
    """Without a home, into a pipe that is closed; nothing is said but what matters."""
    if shell(f'{STRANGER} "$PY" "$ROOT/create_csv.py" --help', open_folder).returncode:
        pytest.skip("the repository is not for everybody to read")
    folder = open_folder / "rün (a)+b%c"
    write_case(folder / "data", UMLAUT, suffix=".mha")
    small = ["VolSize=16,16,16", "dstRes=4,4,4", "width=2", "fast_conv3d=off"]
    config = override_config(vnet_cfg, small)
    save_config(config, folder / "run" / "config.json")
    save_weights(create_vnet(config), folder / "run" / "best.ckpt")
    for path in folder.rglob("*"):
        path.chmod(0o755)
    predict = (
        f'{HOMELESS} {STRANGER} "$PY" "$ROOT/predict.py" --device_target CPU '
        "--ckpt_path run/best.ckpt --input data/img --output_path masks | true"
    )
    (folder / "masks").mkdir()
    assert b"error: masks: cannot be written (Permission denied" in shell(predict, folder).stderr
    (folder / "masks").chmod(0o777)
    said = shell(predict, folder).stderr.splitlines()
    assert [line for line in said if not line.startswith(b"warning: ")] == []  # of its findings
    written = {path.name for path in (folder / "masks").iterdir()}
    assert {f"{UMLAUT}_test.mha", "volumes.csv", "overlays.png", "report.html"} <= written
