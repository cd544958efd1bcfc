"""Compiles native/ops.cpp at first use, for this machine, and keeps the library in a cache.

    python -m src.fast_conv3d.build          compiles it now and prints the library's path

The cache folder is FAST_CONV3D_CACHE, else fast_conv3d/ in this project's user cache:
    KEY/libfast_conv3d.so  KEY/build.log     moved here together, after the library was loaded once
    KEY/sha256                               of the library; one that was cut is built again
    failed_build.log                         the compiler's output of the last failed build
    lock                                     locked by the process that compiles
"""

import argparse
import hashlib
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from ..utils.command_line import run
from ..utils.errors import DataError
from ..utils.files import Lock, follow_umask, hash_file, sync, temporary_folder, user_cache_folder
from ..utils.stopping import unblocked

log = logging.getLogger(__name__)

SOURCES = Path(__file__).with_name("native")
LIBRARY = "libfast_conv3d.so"
LOG = "build.log"
DIGEST = "sha256"
UNFINISHED = ".building-"
# After which a library is removed. MindSpore opens it again for each new shape, so none may be
# removed that a process still uses.
UNUSED_S = 60 * 86_400.0
COMPILE_SECONDS = 15  # on one core of a server
COMPILERS = ("g++", "c++", "clang++")
FLAGS: tuple[str, ...] = (
    *("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared"),
    *("-pthread", "-fvisibility=hidden", "-Wall", "-Wextra"),
    "-DNDEBUG",  # the kernels' asserts are active in tests/fast_conv3d/test_native.py only
)
CPUINFO = Path("/proc/cpuinfo")
# The fields that identify the instruction set, on x86 and on Arm.
CPU_FIELDS = {"vendor_id", "cpu family", "model", "model name", "flags"}
CPU_FIELDS |= {"CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"}


class BuildError(DataError):
    """The library cannot be built or loaded; the message is one line with reason and remedy."""


@cache
def library_path() -> Path:
    """Returns the path of the library compiled from `native/`; compiles it if it is not cached.

    If several processes need it, one compiles and the others wait. A failure is not cached. Where
    it cannot be built, it is one that another compiler built of the same sources for this
    processor; not if `CXX` names the compiler.

    Returns:
        Absolute path of a shared library for this processor.

    Raises:
        BuildError: no compiler, one that fails, a cache that cannot be written, or no Linux.
    """
    if sys.platform != "linux":
        raise BuildError(
            f"fast_conv3d: builds on Linux only, this is {sys.platform}; use a Linux machine"
        )
    folder, program = cache_folder(), _program_key()
    try:
        library = _build(folder, program)
    except BuildError:
        before = None if os.environ.get("CXX", "").strip() else _built_before(folder, program)
        if before is None:
            raise
        library = before
    with suppress(OSError):  # a read-only cache
        os.utime(library.parent)  # it is used
    return library


def _build(folder: Path, program: str) -> Path:
    """Returns the library of this machine's compiler, which is compiled if it is not cached."""
    compiler, version = find_compiler()
    command = [*compiler, *FLAGS, native_flag()]
    library = folder / f"{program}-{_hash(compiler, version)}" / LIBRARY
    try:
        if not _is_intact(library):
            folder.mkdir(parents=True, exist_ok=True)
            with Lock(folder / "lock") as lock:
                if not lock.acquire(wait=False):
                    log.info("fast_conv3d: waiting for another process that builds it")
                    lock.acquire()
                if not _is_intact(library):
                    _compile(command, library)
                    _remove_unused_libraries(folder)
    except OSError as error:
        raise BuildError(
            f"fast_conv3d: {error.filename or folder}: {error.strerror}; make the cache {folder} a "
            "writable folder with free space, or name another, FAST_CONV3D_CACHE=FOLDER"
        ) from None
    return library


def cache_folder() -> Path:
    """The folder of the compiled libraries: `FAST_CONV3D_CACHE`, else in the user's cache.

    Raises:
        BuildError: the variable is not set and the user has no home folder, or the path has a
            colon, at which MindSpore would cut it.
    """
    chosen = os.environ.get("FAST_CONV3D_CACHE")
    cache = Path(chosen).absolute() if chosen else user_cache_folder()
    if cache is None:
        raise BuildError(
            "fast_conv3d: the user has no home folder; name a cache, FAST_CONV3D_CACHE=FOLDER"
        )
    if ":" in str(cache):
        raise BuildError(
            f"fast_conv3d: the cache {cache} has a colon in its path, which MindSpore cannot open; "
            "name another, FAST_CONV3D_CACHE=FOLDER"
        )
    return cache if chosen else cache / "fast_conv3d"


def find_compiler() -> tuple[list[str], str]:
    """Returns the command of the first compiler that runs, and its version output.

    Raises:
        BuildError: there is none, or `CXX` names something else.
    """
    chosen = os.environ.get("CXX", "")
    try:
        commands = [shlex.split(chosen)] if chosen.strip() else [[name] for name in COMPILERS]
    except ValueError as error:
        raise BuildError(
            f"fast_conv3d: CXX '{chosen}' is not a command ({error}); correct it"
        ) from None
    for name, *arguments in commands:
        program = shutil.which(name)
        if program is None:
            continue
        with suppress(OSError):
            result = run_compiler([program, *arguments, "--version"])
            if result.returncode == 0:
                return [program, *arguments], result.stdout
    if chosen.strip():
        raise BuildError(
            f"fast_conv3d: CXX '{chosen}' cannot be run; set it to a C++ compiler or unset it"
        )
    raise BuildError(
        f"fast_conv3d: no C++ compiler ({', '.join(COMPILERS)}) on PATH; install one (Debian, "
        "Ubuntu: apt-get install g++) or name one, CXX=/path/to/g++"
    )


def native_flag() -> str:
    """Returns the compiler's flag for the instructions of this processor."""
    return "-mcpu=native" if platform.machine() == "aarch64" else "-march=native"


def _hash(*parts):
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _program_key():
    """The hash of all that the library depends on but the compiler.

    It includes the processor, since different machines may share a home folder.
    """
    try:
        sources = [path for path in sorted(SOURCES.iterdir()) if path.suffix in (".cpp", ".h")]
        texts = [(path.name, path.read_text()) for path in sources]
        lines = CPUINFO.read_text().splitlines()
    except OSError as error:
        raise BuildError(
            f"fast_conv3d: {error.filename}: cannot be read ({error.strerror}); correct its "
            "permissions, or install this program again"
        ) from None
    processor = {line for line in lines if line.partition(":")[0].strip() in CPU_FIELDS}
    return _hash(texts, FLAGS, native_flag(), platform.machine(), sorted(processor))


def _built_before(folder, program):
    """A library of this program that some compiler has built and that loads here, else None."""
    built = filter(_is_intact, folder.glob(f"{program}-*/{LIBRARY}"))
    return next((path for path in built if run_compiler(_loading(path)).returncode == 0), None)


def _loading(library):
    """A command that loads a library, in a process of its own: a broken one may crash it."""
    code = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
    return [sys.executable, "-I", "-c", code, str(library)]


def _is_intact(library):
    """Whether a library is there as it was built: loading one that was cut would crash."""
    try:
        return library.with_name(DIGEST).read_bytes() == hash_file(library).encode()
    except OSError:
        return False


def _compile(command, library):
    """Compiles the library; its folder appears in the cache only when complete."""
    folder = library.parents[1]
    another = "try another compiler (GCC from version 9, Clang), CXX=/path/to/compiler"
    # A unique name: the compiler of a killed process may still be writing.
    with temporary_folder(folder, UNFINISHED) as work:
        log.info(f"fast_conv3d: compiling its C++ code (once, about {COMPILE_SECONDS} s)")
        built = work / LIBRARY
        steps = (
            ("fails", another, [*command, "-o", str(built), str(SOURCES / "ops.cpp")]),
            (
                "built a library that cannot be loaded",
                f"if {folder} is mounted noexec, name another, FAST_CONV3D_CACHE=FOLDER; else "
                f"{another}",
                _loading(built),
            ),
        )
        report = ""
        for failure, remedy, step in steps:
            result = run_compiler(step)
            report += f"{shlex.join(map(str, step))}\n{result.stdout}"
            if result.returncode != 0:
                failed = folder / "failed_build.log"
                failed.write_text(f"{report}exit code {result.returncode}\n", encoding="utf-8")
                raise BuildError(
                    f"fast_conv3d: {command[0]} {failure} ({reason_of_failure(result)}); see "
                    f"{failed}; {remedy}"
                )
        (work / LOG).write_text(report, encoding="utf-8")
        (work / DIGEST).write_text(hash_file(built))
        for path in (*work.iterdir(), work):
            sync(path)
        follow_umask(work, executable=True)  # a cache may be shared with other users
        if not _is_intact(library):  # another process may have built it where locks do nothing
            shutil.rmtree(library.parent, ignore_errors=True)
            work.replace(library.parent)
    (folder / "failed_build.log").unlink(missing_ok=True)


def run_compiler(command: list) -> subprocess.CompletedProcess:
    """Runs a command; stdout of the result holds both of its streams, in English."""
    with unblocked():
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"LC_ALL": "C"},
            encoding="utf-8",
            errors="replace",
        )


def reason_of_failure(result: subprocess.CompletedProcess) -> str:
    """The line of a failed command that best explains the failure."""
    lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line.lower()] or lines
    return errors[0] if errors else f"exit code {result.returncode}"


def _remove_unused_libraries(folder):
    """Removes those of earlier versions, compilers and processors that nobody has used for long."""
    for library in folder.glob(f"*/{LIBRARY}"):
        with suppress(OSError):
            # Who may only read a shared cache leaves no other trace than the time of access.
            used_s = max(library.parent.stat().st_mtime, library.stat().st_atime)
            if used_s < time.time() - UNUSED_S:
                shutil.rmtree(library.parent, ignore_errors=True)


def main() -> None:
    """Builds the library and prints its path."""
    argparse.ArgumentParser(description="Compile fast_conv3d for this machine").parse_args()
    print(library_path())


if __name__ == "__main__":
    run(main)
