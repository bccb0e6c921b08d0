"""The import order of the house: a room may import only rooms above it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hasten"
ORDER = [
    "errors", "records", "atomic", "ledger", "models", "tasks", "passes", "native", "runtimes", "measure", "plan",
    "bundle", "pipeline", "engine", "serve", "report", "cli",
]  # fmt: skip
RANK = {room: number for number, room in enumerate(ORDER)}
# The pipeline is the offline loop and hands its verdict to the report, which knows only records and the ledger.
ALLOWED_DOWNWARD = {("pipeline", "report")}
# A bundle checks the host it is opened on, through the one file of `measure` that describes it.
FORBIDDEN = {
    "measure": {"runtimes", "passes", "models"},
    "serve": {"passes", "measure", "plan"},
    "report": {"runtimes", "passes", "models", "tasks", "bundle", "pipeline"},
}
# Definitions without logic, which are easier to find in one place.
LONGER = {"records.py": 400}
HEAVY = {
    "torch", "transformers", "onnx", "onnxruntime", "openvino", "nncf", "pandas", "sklearn", "scipy", "plotly",
    "datasets", "executorch",
}  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module] if node.module != "hasten" else [f"hasten.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("hasten.") and not n.split(".")[1].startswith("_")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_only_rooms_above(path: Path) -> None:
    room = room_of(path)
    if room in {"__init__", "__main__"}:  # the doors: everything lies above them
        return
    assert room in RANK, f"{room} is not in the house's list of rooms"
    for other in imported_rooms(path) - {room}:
        assert other in RANK, f"{path.name} imports unknown room {other}"
        assert (room, other) in ALLOWED_DOWNWARD or RANK[other] < RANK[room], f"{room} imports {other}"
        assert other not in FORBIDDEN.get(room, set()), f"{room} must not import {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_files_stay_small_and_documented(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{path} has no module docstring"
    limit = LONGER.get(path.relative_to(PACKAGE).as_posix(), 300)
    assert text.count("\n") <= limit, f"{path} has more than {limit} lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{path.name}:{node.name} has {length} lines"


@pytest.mark.parametrize(
    "module",
    [
        "hasten",
        "hasten.cli",
        "hasten.runtimes",
        "hasten.tasks",
        "hasten.plan",
        "hasten.plan.sizing.answer",
        "hasten.bundle",
        "hasten.measure",
    ],
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
