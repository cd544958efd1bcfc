"""The diagnosis of a missing CUDA; with MindSpore's own loader in test_gpu_standin.py."""

import platform

import pytest

from src.devices import cuda

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="only the x86-64 wheel has the GPU plug-in"
)


def write_nvcc(home, answer):
    nvcc = home / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f"#!/bin/sh\n{answer}\n")
    nvcc.chmod(0o755)
    return nvcc


def test_no_variable(monkeypatch, tmp_path):
    nvcc = write_nvcc(tmp_path, "exit 1")
    monkeypatch.setenv("PATH", str(nvcc.parent))
    wanted = "; MindSpore needs CUDA 11.1, 11.6, 11.8 with cuDNN 8"
    for value in (None, ""):
        monkeypatch.setenv("CUDA_HOME", value) if value else monkeypatch.delenv("CUDA_HOME", False)
        said = cuda.diagnose()
        assert said.startswith("CUDA_HOME is not set") and said.endswith(wanted)
        assert f"nvcc on PATH is in {tmp_path}" in said
    nvcc.unlink()
    said = cuda.diagnose()
    assert said.startswith("CUDA_HOME is not set") and said.endswith(wanted)
    assert "nvcc" not in said


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert cuda.diagnose().startswith(f"CUDA_HOME is {tmp_path}, which has no bin/nvcc; Min")


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        ("echo 'Cuda compilation tools, release 10.2, V10.2.89'", "10.2"),
        ("echo 'Cuda compilation tools, release 12.4, V12.4.131'", "12.4"),
        ("echo 'Cuda compilation tools, release 13.0, V13.0.48'", "13.0"),
        ("echo hello", "an unknown version"),
        ("exit 1", "an unknown version"),
    ],
)
def test_another_version(monkeypatch, tmp_path, answer, version):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    nvcc = write_nvcc(tmp_path, answer)
    assert cuda.diagnose().startswith(f"{nvcc} is of CUDA {version}; MindSpore needs CUDA 1")


@pytest.mark.parametrize(
    ("version", "plugin"), [("11.1", "11.1"), ("11.6", "11.6"), ("11.8", "11.6")]
)
@pytest.mark.parametrize("lacks", ["libcudnn.so.8: cannot open shared object file", None])
def test_libraries(monkeypatch, tmp_path, version, plugin, lacks):
    loaded = []

    def loader_error(path):
        loaded.append(path.name)
        return lacks

    monkeypatch.setattr(cuda, "loader_error", loader_error)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    write_nvcc(tmp_path, f"echo 'Cuda compilation tools, release {version}, V1'")
    said = cuda.diagnose()
    assert loaded == [f"libmindspore_gpu.so.{plugin}"]
    if lacks:
        assert said.startswith(
            f"CUDA {version} in {tmp_path}, but {lacks}; MindSpore needs CUDA 11"
        )
        assert said.endswith("LD_LIBRARY_PATH with the folders of both")
    else:
        assert (
            said.startswith(f"CUDA {version} in {tmp_path} is complete")
            and "driver" in said
            and "nvidia-smi" in said
        )


def test_a_library_that_cannot_be_loaded(tmp_path):
    assert "cannot open shared object file" in cuda.loader_error(tmp_path / "libnone.so")
    assert cuda.loader_error("libc.so.6") is None


def test_a_mindspore_without_the_plug_in(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda.ms, "__file__", str(tmp_path / "__init__.py"))
    assert cuda.diagnose().startswith("this MindSpore has no GPU plug-in (in ")
