"""The C++ library in its cache, with stand-ins for compilers that count how often they compile."""

import ctypes
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.fast_conv3d import build
from tests.helpers import ROOT

UNFINISHED = f"{build.UNFINISHED}*"

# Tells its version; to "compile" is to copy some library, after what BEHAVE has it do.
FAKE_COMPILER = """#!/bin/sh
PATH=/usr/bin:/bin
case "$*" in *--version) echo "fake $VERSION"; exit "${VERSION_EXIT:-0}" ;; esac
echo "$0 $*" >>"$CALLS"
while [ "$1" != -o ]; do shift; done
eval "$BEHAVE"
cp "$SOME_LIBRARY" "$2"
"""

TINY_SOURCE = """#include "value.h"
extern "C" __attribute__((visibility("default"))) int value() { return kValue; }
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A fake g++, alone on PATH, an empty cache and sources of its own."""
    return Fake(tmp_path, monkeypatch)


class Fake:
    def __init__(self, folder, monkeypatch):
        self.cache = folder / "my cache"
        self.calls_file = folder / "calls"
        self.bin = folder / "bin"
        self.compiler = self.add_compiler("g++")
        self.sources = folder / "native"
        self.sources.mkdir()
        (self.sources / "ops.cpp").write_text(TINY_SOURCE)
        (self.sources / "value.h").write_text("constexpr int kValue = 5;\n")
        maps = Path("/proc/self/maps").read_text().split()
        self.environment = {
            "PATH": str(self.bin),
            "CALLS": str(self.calls_file),
            "FAST_CONV3D_CACHE": str(self.cache),
            "SOME_LIBRARY": next(word for word in maps if "/libm.so" in word or "/libm-" in word),
        }
        for name in ("CXX", "BEHAVE", "VERSION", "VERSION_EXIT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(build, "SOURCES", self.sources)
        self.set = monkeypatch.setenv

    def add_compiler(self, name, text=FAKE_COMPILER):
        compiler = self.bin / name
        compiler.parent.mkdir(exist_ok=True)
        compiler.write_text(text)
        compiler.chmod(0o755)
        return compiler

    def library(self):
        """The path as a new process would get it."""
        build.library_path.cache_clear()
        return build.library_path()

    def compiled(self):
        """Calls of the compiler, without those for its version."""
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []

    def start(self, **options):
        """`python -m src.fast_conv3d.build`, on the real sources, in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "src.fast_conv3d.build"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )

    def wait_for_compilations(self, count):
        deadline = time.monotonic() + 20
        while len(self.compiled()) < count:
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.02)

    def contents(self):
        return sorted(path.name for path in self.cache.iterdir())


@pytest.fixture(autouse=True)
def forget_the_library():
    """No test's library may be taken for that of the project."""
    yield
    build.library_path.cache_clear()


def without_root_rights():
    """In a child of root: gives up writing where permissions forbid it."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        if os.geteuid() == 0 and libc.prctl(24, capability, 0, 0, 0) != 0:  # PR_CAPBSET_DROP
            os._exit(99)


def test_it_compiles_once_and_then_finds_the_library(fake, capsys):
    library = fake.library()
    assert library.is_absolute()
    assert library.parents[1] == fake.cache
    assert library.read_bytes() == Path(fake.environment["SOME_LIBRARY"]).read_bytes()
    printed = capsys.readouterr()
    assert printed.out.startswith("fast_conv3d: compiling its C++ code (once, about ")
    assert printed.out.count("\n") == 1
    assert build.library_path() == fake.library() == library
    assert capsys.readouterr() == ("", "")
    (call,) = fake.compiled()
    assert call.startswith(f"{fake.compiler} -std=c++17 -O3 ")
    assert call.endswith(f" {fake.sources / 'ops.cpp'}")
    assert " -march=native " in call or " -mcpu=native " in call
    assert "c++17" in library.with_name("build.log").read_text()
    assert fake.contents() == sorted([library.parent.name, "lock"])


def test_others_may_use_what_one_user_built(fake):
    folder = fake.library().parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_it_is_remembered_within_the_process(fake):
    library = fake.library()
    shutil.rmtree(fake.cache)
    assert build.library_path() == library
    assert fake.library() == library  # made anew
    assert len(fake.compiled()) == 2


def test_whatever_shapes_the_library_is_in_its_key(fake, tmp_path, monkeypatch):
    def change_cpu(name):
        cpuinfo = tmp_path / name
        cpuinfo.write_text(f"processor : 0\nmodel name : {name}\ncpu MHz : {time.monotonic()}\n")
        monkeypatch.setattr(build, "CPUINFO", cpuinfo)

    changes = [
        lambda: None,
        lambda: (fake.sources / "ops.cpp").write_text("// changed"),
        lambda: (fake.sources / "value.h").write_text("// changed"),
        lambda: (fake.sources / "new.h").write_text(""),
        lambda: fake.set("VERSION", "14.2"),
        lambda: fake.set("CXX", str(fake.add_compiler("other"))),
        lambda: fake.set("CXX", f"{fake.bin / 'other'} -g"),
        lambda: monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DX")),
        lambda: change_cpu("Xeon"),
        lambda: change_cpu("EPYC"),
        lambda: monkeypatch.setattr(build.platform, "machine", lambda: "aarch64"),
    ]
    libraries = []
    for number, change in enumerate(changes, 1):
        change()
        libraries.append(fake.library())
        assert fake.library() == libraries[-1]
        assert len(fake.compiled()) == number, f"change {number}"
    assert len(set(libraries)) == len(changes)
    assert " -mcpu=native " in fake.compiled()[-1]
    change_cpu("EPYC")  # at another clock rate
    assert fake.library() == libraries[-1]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("flags\t\t: fpu avx2", "flags\t\t: fpu avx2 avx512f"),
        ("CPU part\t: 0xd01", "CPU part\t: 0xd02"),
        ("CPU implementer\t: 0x48", "CPU implementer\t: 0x41"),
        ("Features\t: fp asimd", "Features\t: fp asimd sve"),
    ],
)
def test_processors_differ_by_instruction_set(fake, tmp_path, monkeypatch, before, after):
    monkeypatch.setattr(build, "CPUINFO", tmp_path / "cpuinfo")
    keys = []
    for line in (before, f"{before}\n\nprocessor\t: 1\n{before}\nbogomips\t: 7", after):
        build.CPUINFO.write_text(f"processor\t: 0\n{line}\n")
        keys.append(fake.library().parent.name)
    assert keys[0] == keys[1] != keys[2]


def test_which_compiler(fake):
    broken = "#!/bin/sh\nexit 1\n"
    fake.compiler.write_text(broken)  # such as a shim without a compiler behind it
    fake.add_compiler("c++", broken)
    fake.add_compiler("clang++")
    fake.library()
    assert fake.compiled()[-1].startswith(f"{fake.bin / 'clang++'} -std=c++17")
    fake.set("CXX", f"'{fake.add_compiler('my g++')}' -m64")
    fake.library()
    assert fake.compiled()[-1].startswith(f"{fake.bin / 'my g++'} -m64 -std=c++17")


@pytest.mark.parametrize(
    ("chosen", "reason", "remedy"),
    [
        ("", "no C++ compiler (g++, c++, clang++) on PATH", "apt-get install g++"),
        (" ", "no C++ compiler (g++, c++, clang++) on PATH", "apt-get install g++"),
        ("no_such_g++ -O1", "CXX 'no_such_g++ -O1' cannot be run", "or unset it"),
        ("g++ '", "CXX 'g++ '' is not a command", "correct it"),
    ],
)
def test_no_compiler(fake, chosen, reason, remedy):
    fake.compiler.unlink()
    fake.set("CXX", chosen)
    with pytest.raises(build.BuildError) as error:
        fake.library()
    assert str(error.value).startswith(f"fast_conv3d: {reason}")
    assert remedy in str(error.value)
    assert not fake.cache.exists()


@pytest.mark.parametrize(
    ("behaviour", "finding"),
    [
        (
            "echo In file included; echo 'a.h:3: error: no such thing'; echo b: error: c; exit 1",
            "fails (a.h:3: error: no such thing)",
        ),
        ("echo it is all wrong >&2; exit 4", "fails (it is all wrong)"),
        ("exit 4", "fails (exit code 4)"),
        ("kill -9 $$", "fails (exit code -9)"),
        ("exit 0", "built a library that cannot be loaded (OSError: "),
        ("echo text >$2; exit 0", "built a library that cannot be loaded (OSError: "),
    ],
)
def test_a_compiler_that_fails(fake, behaviour, finding):
    fake.set("BEHAVE", behaviour)
    with pytest.raises(build.BuildError) as error:
        fake.library()
    message, log = str(error.value), fake.cache / "failed_build.log"
    assert message.startswith(f"fast_conv3d: {fake.compiler} {finding}")
    remedy = f"if {fake.cache} is mounted noexec, name " if "loaded" in finding else "try another c"
    assert f"see {log}; {remedy}" in message
    assert "try another compiler (GCC" in message
    assert "\n" not in message
    assert str(fake.sources / "ops.cpp") in log.read_text()
    assert fake.contents() == ["failed_build.log", "lock"]
    fake.set("BEHAVE", "")
    assert fake.library().is_file()
    assert "failed_build.log" not in fake.contents()


def test_several_processes_at_once_compile_once(fake):
    fake.set("BEHAVE", "sleep 1")
    first = fake.start()
    fake.wait_for_compilations(1)
    others = [fake.start() for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in (first, *others)]
    assert [errors for _, errors in outputs] == [""] * 4
    assert len(fake.compiled()) == 1
    lines = [output.splitlines() for output, _ in outputs]
    assert len({path for *_, path in lines}) == 1
    assert Path(lines[0][-1]).is_file()
    assert lines[0][0].startswith("fast_conv3d: compiling")
    for *log, _ in lines[1:]:
        assert log in ([], ["fast_conv3d: waiting for another process that builds it"])
    assert any(len(log) == 2 for log in lines[1:])


def test_who_waited_compiles_when_the_first_fails(fake):
    fake.set("BEHAVE", "sleep 1; exit 1")
    first = fake.start()
    fake.wait_for_compilations(1)
    fake.set("BEHAVE", "")
    second = fake.start()
    assert first.communicate(timeout=30)[1].count("\n") == 1
    assert first.returncode == 1
    assert second.communicate(timeout=30)[1] == ""
    assert len(fake.compiled()) == 2


def test_a_killed_compilation_counts_for_nothing(fake):
    fake.set("BEHAVE", "echo half >$2; sleep 30")
    process = fake.start()
    fake.wait_for_compilations(1)
    while not list(fake.cache.glob(f"{UNFINISHED}/*")):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)  # its compiler goes on
    process.wait()
    assert not list(fake.cache.glob(f"*/{build.LOG}"))
    fake.set("BEHAVE", "")
    try:
        output, errors = fake.start().communicate(timeout=30)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert errors == ""
    library = Path(output.splitlines()[-1])
    assert library.read_bytes() == Path(fake.environment["SOME_LIBRARY"]).read_bytes()
    (leftover,) = fake.cache.glob(UNFINISHED)  # for a day: another process may be writing there
    assert fake.contents() == sorted([library.parent.name, "lock", leftover.name])


@pytest.mark.parametrize("size", [None, 0, 4096])
def test_a_library_that_is_gone_or_cut_is_made_anew(fake, size):
    library = fake.library()
    whole = library.read_bytes()
    library.unlink()
    if size is not None:
        library.write_bytes(whole[:size])
    assert fake.library() == library
    assert library.read_bytes() == whole
    assert len(fake.compiled()) == 2


def test_one_that_another_process_has_built_meanwhile_stays(fake, monkeypatch):
    """As on a file system without locks."""
    library = fake.library()
    number = library.stat().st_ino
    intact = iter([False, False, True])
    monkeypatch.setattr(build, "_is_intact", lambda _: next(intact))
    assert fake.library() == library
    assert len(fake.compiled()) == 2
    assert library.stat().st_ino == number


def test_without_a_compiler_what_another_machine_built_serves(fake, tmp_path, monkeypatch):
    library = fake.library()
    os.utime(library.parent, (1e9, 1e9))
    fake.compiler.unlink()
    assert fake.library() == library
    assert library.parent.stat().st_mtime > 1e9  # it is used
    fake.add_compiler("g++")
    fake.set("VERSION", "older")
    fake.set("BEHAVE", "exit 1")  # one that cannot compile this
    assert fake.library() == library
    fake.set("CXX", "no_such_g++")
    with pytest.raises(build.BuildError, match="CXX 'no_such_g[+][+]' cannot be run"):
        fake.library()
    fake.set("CXX", "")
    fake.set("BEHAVE", "")
    fake.compiler.unlink()
    for digest in (b"\xff", hashlib.sha256(b"other").hexdigest().encode()):
        library.with_name("sha256").write_bytes(digest)
        library.write_bytes(b"other")  # cut, or whole but of another machine: does not load
        with pytest.raises(build.BuildError, match="no C[+][+] compiler"):
            fake.library()
    fake.add_compiler("g++")
    fake.set("VERSION", "new")
    fake.library()
    fake.compiler.unlink()
    (fake.sources / "value.h").write_text("// changed")
    with pytest.raises(build.BuildError, match="no C[+][+] compiler"):
        fake.library()


def test_a_processor_that_cannot_be_told(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "CPUINFO", tmp_path / "no_proc")
    with pytest.raises(build.BuildError, match="no_proc: cannot be read [(]No such file"):
        fake.library()


def test_a_read_only_cache(fake):
    full = fake.start().communicate(timeout=30)[0].splitlines()[-1]
    folders = [fake.cache, Path(full).parent]
    for folder in folders:
        folder.chmod(0o555)
    try:
        with_library = fake.start(preexec_fn=without_root_rights)
        assert with_library.communicate(timeout=30) == (f"{full}\n", "")
        fake.set("VERSION", "another")
        with_another_compiler = fake.start(preexec_fn=without_root_rights)
        assert with_another_compiler.communicate(timeout=30) == (f"{full}\n", "")
        fake.set("CXX", str(fake.compiler))  # who names a compiler wants its library
        without = fake.start(preexec_fn=without_root_rights)
        output, errors = without.communicate(timeout=30)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert without.returncode == 1
    assert output == ""
    assert errors.startswith(f"error: fast_conv3d: {fake.cache}/")
    assert "Permission denied; " in errors
    assert "FAST_CONV3D_CACHE=FOLDER" in errors
    assert errors.count("\n") == 1


def test_a_cache_that_someone_else_built(fake, monkeypatch):
    def refuse(path):
        raise PermissionError(1, "Operation not permitted", str(path))

    library = fake.library()
    monkeypatch.setattr(build.os, "utime", refuse)
    assert fake.library() == library


def test_a_cache_that_cannot_be_a_folder(fake):
    fake.cache.write_text("mine")
    with pytest.raises(build.BuildError, match="name another, FAST_CONV3D_CACHE=FOLDER"):
        fake.library()
    assert fake.cache.read_text() == "mine"


def test_a_full_disk(fake, full_disk):
    fake.set("BEHAVE", "echo 'ld: error: no space left'; exit 1")
    with full_disk(10), pytest.raises(build.BuildError, match="space"):
        fake.library()
    assert not list(fake.cache.glob(f"*/{build.LIBRARY}")) + list(fake.cache.glob(UNFINISHED))


def test_what_nobody_used_for_two_months_is_removed(fake):
    foreign = fake.cache / "photos"
    foreign.mkdir(parents=True)
    libraries = []
    for number, days in enumerate((61, 61, 59)):
        fake.set("VERSION", str(number))
        libraries.append(fake.library())
        used = time.time() - days * 86_400
        for path in (libraries[-1], libraries[-1].parent, foreign):
            os.utime(path, (used, used))
    fake.set("VERSION", "0")
    fake.library()  # used again
    fake.set("VERSION", "new")
    newest = fake.library()
    left = sorted(fake.cache.glob(f"*/{build.LIBRARY}"))
    assert left == sorted([libraries[0], libraries[2], newest])
    assert not libraries[1].parent.exists()
    assert foreign.is_dir()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"FAST_CONV3D_CACHE": "/a/b"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/vnet_mindspore/fast_conv3d"),
        ({"HOME": "/d"}, "/d/.cache/vnet_mindspore/fast_conv3d"),
    ],
)
def test_where_the_cache_lies(monkeypatch, variables, expected):
    for name in ("FAST_CONV3D_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert build.cache_folder() == Path(expected)


def test_a_user_without_a_home(homeless, monkeypatch):
    monkeypatch.delenv("FAST_CONV3D_CACHE", raising=False)
    with pytest.raises(build.BuildError, match="no home folder; name a cache"):
        build.cache_folder()


def test_a_path_that_mindspore_would_cut(monkeypatch):
    monkeypatch.setenv("FAST_CONV3D_CACHE", "/a:b/c")
    with pytest.raises(build.BuildError, match="the cache /a:b/c has a colon in its path"):
        build.cache_folder()


def test_another_operating_system(fake, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(build.BuildError, match="Linux only, this is darwin"):
        fake.library()


def test_the_command(fake):
    assert fake.start().communicate(timeout=30)[0].splitlines()[-1].endswith(build.LIBRARY)
    fake.set("CXX", "no_such_g++")
    process = fake.start()
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (1, "")
    assert errors.startswith("error: fast_conv3d: CXX 'no_such_g++' cannot be run")
    assert errors.count("\n") == 1


# ------------------------------------------------------------------- with the machine's compiler


@pytest.fixture
def real():
    """Where no compiler is there is nothing to test."""
    named = os.environ.get("CXX") or any(map(shutil.which, build.COMPILERS))
    if not named:
        pytest.skip("no C++ compiler on this machine")


def test_a_small_source_for_real(real, tmp_path, monkeypatch):
    monkeypatch.setenv("FAST_CONV3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    (tmp_path / "ops.cpp").write_text(TINY_SOURCE)
    (tmp_path / "value.h").write_text("constexpr int kValue = 5;\n")
    assert ctypes.CDLL(str(build.library_path())).value() == 5
    build.library_path.cache_clear()
    (tmp_path / "value.h").write_text("constexpr int kValue = 6;\n")
    assert ctypes.CDLL(str(build.library_path())).value() == 6
    build.library_path.cache_clear()
    (tmp_path / "value.h").write_text("constexpr int kOther = 6;\n")
    with pytest.raises(build.BuildError, match=r"fails \(.*ops.cpp:2:.*kValue"):
        build.library_path()
    build.library_path.cache_clear()
    (tmp_path / "value.h").write_text("int missing();\nstatic const int kValue = missing();\n")
    with pytest.raises(build.BuildError, match="cannot be loaded .*undefined symbol"):
        build.library_path()


def test_the_project_builds_without_a_warning(real):
    """The cache holds what this compiler said of these sources and flags: they are its key."""
    library = build.library_path()
    ctypes.CDLL(str(library))
    assert "warning" not in library.with_name(build.LOG).read_text()
