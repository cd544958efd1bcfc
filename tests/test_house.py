"""Rules of the whole source: who imports whom, annotations, views of images."""

import ast

import pytest

from tests.helpers import ROOT

# From the ground up; a folder stands for all its modules.
FLOORS = (
    ("utils", "lr_schedule", "loss", "dropout"),
    ("images", "vnet"),
    ("metrics",),
    ("config", "measurements", "released_model"),
    ("data_manager", "devices", "checkpoint_file"),
    ("ensemble",),
    ("augment", "predictor", "promise12", "checkpoint", "fast_conv3d", "run_record"),
    ("dataset", "earlier_masks", "input_images", "mask_folders", "report"),
    ("evaluation", "result_files"),
    ("prediction", "training", "export"),
    ("api", "acceptance"),
    ("commands",),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
MODULES = sorted((ROOT / "src").rglob("*.py"))


def imported_modules(path):
    """Names, below src, of the modules that a file imports, such as "images.reading"."""
    package = path.relative_to(ROOT / "src").parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            base = [part for part in base if part]
            for alias in node.names:
                if alias.name.startswith("__"):  # the package's own, such as its version
                    continue
                yield ".".join([*base, alias.name] if not node.module else base)


def room(module):
    """The folder or file directly below src."""
    return module.split(".")[0]


def test_every_module_has_a_floor():
    assert {path.relative_to(ROOT / "src").parts[0].removesuffix(".py") for path in MODULES} - {
        "__init__",
        "__main__",
    } == set(FLOOR)


@pytest.mark.parametrize(
    "path", MODULES, ids=lambda path: path.relative_to(ROOT / "src").as_posix()
)
def test_no_import_runs_upwards(path):
    own = room(path.relative_to(ROOT / "src").with_suffix("").as_posix().replace("/", "."))
    if own.startswith("__"):
        return
    upwards = [
        module
        for module in imported_modules(path)
        if room(module) != own and FLOOR[room(module)] >= FLOOR[own]
    ]
    assert not upwards


def test_no_circle():
    graph = {
        path.relative_to(ROOT / "src").with_suffix("").as_posix().replace("/", "."): set(
            imported_modules(path)
        )
        for path in MODULES
    }
    done = set()

    def visit(module, path):
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def public_functions(body):
    """The public functions and methods of a module, without those that MindSpore compiles."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
            if "construct" not in {method.name for method in methods}:
                yield from public_functions(methods)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node


@pytest.mark.parametrize(
    "path", MODULES, ids=lambda path: path.relative_to(ROOT / "src").as_posix()
)
def test_public_functions_are_annotated(path):
    bare = []
    for function in public_functions(ast.parse(path.read_text()).body):
        arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
        types = [a.annotation for a in arguments if a.arg not in ("self", "cls")]
        if None in [*types, function.returns]:
            bare.append(function.name)
    assert not bare


def test_no_view_of_an_image_that_nothing_keeps():
    """SimpleITK's views do not keep their image alive: f(view(g(x))) would read freed memory."""
    found = [
        f"{path}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", "") == "GetArrayViewFromImage"
        and isinstance(node.args[0], ast.Call)
    ]
    assert found == []
