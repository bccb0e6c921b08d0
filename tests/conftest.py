"""Tiny random checkpoints of every family, and where real material lies when it is there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import save_classifier

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, whole runs of the pipeline before all: they meet nothing but each other, and
    the many short files then keep both processes busy to the end (--dist loadfile)."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, "pipeline" not in item.path.parts))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``checkpoint(family)``: a saved classifier, made once a session; do not write into it."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = save_classifier(tmp_path_factory.mktemp(family) / "model", family)
        return made[family]

    return make


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real models and data beside the checkout; absent on most machines."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no folder 'shared' with real models and data beside the checkout")
    return folder
