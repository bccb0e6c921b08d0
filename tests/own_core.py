"""One core for each test process, so that whole runs can be tested side by side without taking each other's time."""

from __future__ import annotations

import os

from hasten.measure.host import usable_cores


def own_core() -> str:
    """The core of this pytest-xdist worker (gw0, gw1, ...); the first one without workers."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    cores = usable_cores()
    return str(cores[number % len(cores)])
