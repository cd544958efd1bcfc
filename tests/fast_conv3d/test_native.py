"""test_native.cpp, compiled with sanitizers and for processors other than this one."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from src.fast_conv3d import build

TEST = Path(__file__).with_suffix(".cpp")
FLAGS = ("-std=c++17", "-O1", "-pthread", "-Wall", "-Wextra", "-Werror", f"-I{build.SOURCES}")
# Half the time to compile: arrays on the stack are checked by their bounds, not by their addresses.
ADDRESS = ("-fsanitize=address,bounds", "--param=asan-stack=0", "-fno-sanitize-recover=all")
# All of UBSan doubles the time, and its checks for null and object size would do so again.
BOTH = ("-fsanitize=address,undefined", "-fno-sanitize=null,object-size")
BOTH += ("-fno-sanitize-recover=all",)
ARM_COMPILER, ARM_EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
X86_64 = platform.machine() == "x86_64"


def output_of(command, **environment):
    """All that a command says; it has to succeed."""
    result = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
    )
    assert result.returncode == 0, f"{command}: exit code {result.returncode}\n{result.stdout}"
    return result.stdout


def compile_and_run(folder, compiler, flags, emulator=(), threads=(), **environment):
    """Runs the checks with each number of threads; without any, with those of the program."""
    program = folder / "test_native"
    output_of([*compiler, *FLAGS, *flags, str(TEST), "-o", str(program)])
    output = output_of([*emulator, str(program), *threads], **environment)
    assert output.startswith("0 of ")
    assert int(output.split()[2]) > 1000


@pytest.fixture
def compiler():
    return build.find_compiler()[0]


@pytest.mark.parametrize("sanitizers", [ADDRESS, pytest.param(BOTH, marks=pytest.mark.full)])
def test_with_address_and_undefined_behaviour_sanitizers(tmp_path, compiler, sanitizers):
    # What is allocated is full of NaN. Leaks can't be told inside containers that forbid ptrace.
    options = "max_malloc_fill_size=4000000000:malloc_fill_byte=255:detect_leaks=0"
    if "clang" in Path(compiler[0]).name:  # which has no such parameter
        sanitizers = [flag for flag in sanitizers if not flag.startswith("--param")]
    flags = (*sanitizers, build.native_flag())
    compile_and_run(tmp_path, compiler, flags, threads=("3",), ASAN_OPTIONS=options)


@pytest.mark.skipif(not X86_64, reason="for x86-64")
@pytest.mark.parametrize("flags", [("-mavx2", "-mfma", "-mno-avx512f"), ()], ids=["avx2", "sse2"])
def test_other_instruction_sets(tmp_path, compiler, flags):
    features = build.CPUINFO.read_text().split()
    if flags and "avx2" not in features:
        pytest.skip("this processor has no AVX2")
    if flags and "avx512f" not in features:
        pytest.skip("these are this processor's own, which the test above compiles")
    if not flags and all(map(shutil.which, (ARM_COMPILER, ARM_EMULATOR))):
        pytest.skip("the test below compiles the same branch of vector.h")
    # All numbers of threads with one of the two: they do not depend on the instructions.
    compile_and_run(tmp_path, compiler, flags, threads=() if flags else ("3",))


def test_aarch64(tmp_path):
    for program in (ARM_COMPILER, ARM_EMULATOR):
        if shutil.which(program) is None:
            pytest.skip(f"no {program}: apt-get install g++-aarch64-linux-gnu qemu-user")
    # With a single thread count: emulated code is ten times as slow.
    flags = ["-static", "-DEMULATED"]
    compile_and_run(tmp_path, [ARM_COMPILER], flags, emulator=[ARM_EMULATOR], threads=["3"])
