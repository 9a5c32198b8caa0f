"""The layout of `kit/`: the README's tree, floors of imports, sizes, tests that mirror it."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

SOURCES = sorted((ROOT / "kit").rglob("*.py"))
# The contract's name of a module that lives elsewhere, and what only starts the command line.
WITHOUT_TESTS = {"amp", "__main__"}


def list_entries() -> set[str]:
    """What lies in `kit/`, folders with a slash; the marker `py.typed` aside."""
    hidden = {"__pycache__", "py.typed"}
    paths = [path for path in (ROOT / "kit").iterdir() if path.name not in hidden]
    return {path.name + "/" * path.is_dir() for path in paths}


def name_module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_module(path): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


def list_imports(module: str) -> set[str]:
    """The modules of kit that a module imports, inside its functions too."""
    found = set()
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    return (found & set(MODULES)) - {module}


IMPORTS = {module: list_imports(module) for module in MODULES}


def name_entry(module: str) -> str:
    """The entry of `kit/` that a module belongs to."""
    return [*module.split("."), "__init__"][1]


def list_entry_imports() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {name_entry(module): set() for module in MODULES}
    for module, imports in IMPORTS.items():
        graph[name_entry(module)] |= {name_entry(found) for found in imports}
    return {entry: imports - {entry} for entry, imports in graph.items()}


def count_floors(graph: dict[str, set[str]]) -> int:
    """How deep imports go: 1 for one that imports nothing. Fails where they form a circle."""
    below: list[str] = []

    @cache
    def find_floor(name: str) -> int:
        assert name not in below, f"a circle: {' → '.join([*below, name])}"
        below.append(name)
        floor = 1 + max(map(find_floor, graph[name]), default=0)
        below.pop()
        return floor

    return max(map(find_floor, graph))


def test_the_tree_in_the_readme_is_that_of_the_package():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"^```text\nkit/\n(.*?)^```", text, re.M | re.S)[1]
    rows = [re.split(r" {2,}", line.strip(), maxsplit=1) for line in tree.splitlines()]
    rows = [row for row in rows if not row[0].startswith("──")]
    assert sorted(row[0] for row in rows) == sorted(list_entries())
    assert all(len(row) == 2 and row[1] for row in rows)


def test_the_package_has_at_most_27_entries():
    assert len(list_entries()) <= 27


def test_no_files_and_no_folders_import_each_other_in_a_circle():
    count_floors(IMPORTS)
    graph = list_entry_imports()
    graph.pop("__init__")  # not a floor: Python loads it before any module of the package
    assert count_floors({entry: found - {"__init__"} for entry, found in graph.items()}) <= 10


@pytest.mark.parametrize("module", sorted(MODULES))
def test_files_and_functions_are_short(module):
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            given = [argument for argument in given if argument.arg not in ("self", "cls")]
            assert node.end_lineno - node.lineno < 40, f"{node.name} has over 40 lines"
            assert len(given) <= 8, f"{node.name} has over 8 parameters"


def test_every_file_has_the_test_file_of_its_name():
    missing = []
    for path in SOURCES:
        below = path.relative_to(ROOT / "kit")
        test = ROOT / "tests" / below.with_name(f"test_{below.name}")
        if below.stem not in {"__init__", *WITHOUT_TESTS} and not test.exists():
            missing.append(str(test.relative_to(ROOT)))
    assert not missing


def test_every_public_name_is_used_in_another_file():
    folders = ("kit", "tests", "kernels", "benchmarks")
    texts = {path: path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py")}
    words = {path: set(re.findall(r"\w+", text)) for path, text in texts.items()}
    unused = []
    for path in SOURCES:
        for node in MODULES[name_module(path)].body:
            # A class keeps its name where functions return or raise it; decorators use functions.
            plain = isinstance(node, ast.FunctionDef) and not node.decorator_list
            names = [node.name] if plain else []
            if isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            for name in names:
                elsewhere = any(name in found for other, found in words.items() if other != path)
                if not name.startswith("_") and not elsewhere:
                    unused.append(f"{name_module(path)}.{name}")
    assert not unused
