"""Exit codes and the one line of an error, from each kind of failure to the entry points."""

import subprocess
import sys

import pytest

from src.commands import run_script
from src.utils.command_line import run
from src.utils.errors import DataError, UsageError
from tests.helpers import ROOT


@pytest.mark.parametrize(
    "error, code, line",
    [
        (
            UsageError("batch_size is 0, expected at least 1"),
            2,
            "batch_size is 0, expected at least 1",
        ),
        (DataError("a.mhd: truncated\n  by 3 bytes\n"), 1, "a.mhd: truncated by 3 bytes"),
        (
            OSError(28, "No space left", "x.csv"),
            1,
            "x.csv: No space left; free some space",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(143), 143, "terminated"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(capsys, error, code, line):
    def main():
        print("work goes on")
        raise error

    with pytest.raises(SystemExit) as exit_:
        run(main)
    assert exit_.value.code == code
    printed = capsys.readouterr()
    assert printed.err == f"error: {line}\n"
    assert printed.out == "work goes on\n"


def test_success_returns(capsys):
    assert run(lambda: print("done")) is None
    assert capsys.readouterr() == ("done\n", "")


def test_a_programming_error_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


EVAL = ["--device_target", "CPU", "--ckpt_path", "a.ckpt"]
PREDICT = [*EVAL, "--input", "scan.mhd"]


@pytest.mark.parametrize(
    "entry, arguments, code, words",
    [
        ("eval", [], 2, "--ckpt_path"),
        ("eval", [*EVAL, "--device_target", "TPU"], 2, "TPU"),
        ("eval", [*EVAL, "--set", "treshold=0.4"], 2, "did you mean 'threshold'?"),
        ("eval", [*EVAL, "--set", "VolSize=64,64,30"], 2, "multiples of 16"),
        ("eval", [*EVAL, "--eval_split_file_path", "no.csv"], 1, "no.csv: no such split"),
        ("eval", [*EVAL, "--data_path", "nowhere"], 1, "nowhere/img: no such folder"),
        ("eval", [*EVAL, "--data_path", "data"], 1, "a.ckpt: not a complete MindSpore checkpoint"),
        ("predict", EVAL, 2, "--input"),
        ("predict", [*PREDICT, "--set", "lr"], 2, "--set lr: expected key=value"),
        ("predict", PREDICT, 1, "a.ckpt: not a complete MindSpore checkpoint"),
        ("predict", [*PREDICT, "--ckpt_path", "b.ckpt"], 1, "b.ckpt: no such checkpoint"),
    ],
)
def test_entry_points(tmp_path, monkeypatch, capsys, write_case, entry, arguments, code, words):
    write_case(tmp_path / "data", "Case03")
    (tmp_path / "split").mkdir()
    (tmp_path / "split" / "val.csv").write_text("Case03.mhd\n")
    (tmp_path / "a.ckpt").write_text("cut")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["entry.py", *arguments])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as exit_:
        run_script(entry)
    assert exit_.value.code == code
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_package_is_named_with_its_remedy(capsys):
    def main():
        import no_such_package_at_all  # noqa: F401

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 1
    line = capsys.readouterr().err.strip()
    assert "no module no_such_package_at_all" in line
    assert "requirements.txt" in line


@pytest.mark.parametrize("script", sorted(path.name for path in ROOT.glob("*.py")))
def test_a_python_without_the_packages(script):
    command = [sys.executable, "-S", str(ROOT / script)]  # -S: without its site-packages
    process = subprocess.run(command, capture_output=True, text=True)
    assert (process.returncode, process.stderr.count("\n")) == (1, 1)
    assert process.stderr.startswith(f"error: {sys.executable} has no module ")


@pytest.mark.parametrize(
    ("cut", "code"), [("raise KeyboardInterrupt", 130), ("raise SystemExit(143)", 143)]
)
def test_an_interrupt_while_mindspore_is_imported_is_one_line(tmp_path, cut, code):
    """Its libraries end a process with a core dump if their import was cut."""
    (tmp_path / "mindspore").mkdir()
    (tmp_path / "mindspore" / "__init__.py").write_text(f"import mindspore.library\n{cut}\n")
    text = "import atexit, os; atexit.register(os.abort)"
    (tmp_path / "mindspore" / "library.py").write_text(text)
    program = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
        "from src.utils.command_line import run\n"
        "run(lambda: __import__('mindspore'))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == code
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1


MINDSPORES = """
----------------------------------------------------
- Memory not enough:
----------------------------------------------------
Device(id:0) memory isn't enough and alloc failed
----------------------------------------------------
- C++ Call Stack: (For framework developers)
----------------------------------------------------
mindspore/ccsrc/x.cc:1
"""


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "out of memory; a smaller batch_size"),
        (
            MemoryError("Unable to allocate 7.11 PiB for an array"),
            "error: Unable to allocate 7.11 PiB",
        ),
        (RuntimeError("Memory not enough: alloc failed\nlong trace"), "Memory not enough: alloc"),
        (RuntimeError(MINDSPORES), "error: Device(id:0) memory isn't enough and alloc failed; a"),
        (RuntimeError("CUDA error\nout of memory"), "error: out of memory; a smaller batch_size"),
        (OSError(28, "No space left on device", "x.mhd"), "x.mhd: No space left on device; free"),
    ],
)
def test_the_machines_faults_are_one_line(error, says, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        run(main)
    captured = capsys.readouterr().err
    assert ended.value.code == 1
    assert says in captured and captured.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        "an illegal memory access was encountered",
        "Launch kernel failed\n- C++ Call Stack:\nmindspore/gpu_memory_manager.cc:83 Malloc, alloc",
    ],
)
def test_other_faults_keep_their_traceback(words):
    def main():
        raise RuntimeError(words)

    with pytest.raises(RuntimeError, match="illegal|Launch"):
        run(main)


def test_a_fault_of_the_program_keeps_its_traceback():
    def main():
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        run(main)
