"""Every package that the program imports is one that its requirements name."""

import ast
import re
import sys

from tests.helpers import ROOT

PACKAGES = {"gdcm": "python-gdcm", "yaml": "PyYAML"}  # module -> package, where they differ
OPTIONAL = {
    "torch",
    "safetensors",
}  # for files of other programs; src/export/monai_weights.py says so


def required(name):
    lines = (ROOT / name).read_text().splitlines()
    return {re.split(r"[<>=]", line)[0] for line in lines if line and not line.startswith("#")}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module


def test_imports_are_required():
    files = [*ROOT.glob("*.py"), *ROOT.glob("src/**/*.py"), *ROOT.glob("scripts/*.py")]
    own = {path.stem for path in files} | {"src"}
    modules = {name.partition(".")[0] for path in files for name in imported(path)}
    packages = {PACKAGES.get(name, name) for name in modules - own - sys.stdlib_module_names}
    assert packages > {"mindspore", "SimpleITK", "psutil"}
    extras = (f"requirements-{extra}.txt" for extra in ("dicom", "onnx", "tensorboard"))
    known = required("requirements.txt").union(OPTIONAL, *map(required, extras))
    assert packages - known == set()
