"""Signals reach a process that has opened and closed OpenVINO models in any order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openvino")

# In a process of its own: what goes wrong here is a segmentation fault.
PROGRAM = """
import gc, os, signal, sys, time
import numpy as np
import openvino
from openvino import opset13
from pathlib import Path
from hasten.runtimes.openvino_compile import compiled_apart

given = opset13.parameter([-1, 2], openvino.Type.f32)
graph = openvino.Model([opset13.multiply(given, opset13.constant(np.full((1, 2), 2.0, np.float32)))], [given], "graph")
path = Path(sys.argv[1]) / "graph.xml"
openvino.save_model(graph, path)
first, second = compiled_apart(path, {}), compiled_apart(path, {})
assert second(np.ones((1, 2), np.float32))[0].tolist() == [[2.0, 2.0]]
del first; gc.collect()
del second; gc.collect()

def heard(*_):
    os._exit(0)

signal.signal(signal.SIGALRM, heard)
signal.setitimer(signal.ITIMER_REAL, 0.05)
time.sleep(5)
os._exit(3)
"""


def test_a_signal_is_heard_after_models_were_closed_in_the_order_they_were_opened(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    assert subprocess.run(command, check=False, capture_output=True, timeout=120).returncode == 0
