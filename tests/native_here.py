"""Marks for what runs the native library: skipped, with the reason, where it was not built."""

from __future__ import annotations

import pytest

from hasten.native import missing

native_only = pytest.mark.skipif(missing() is not None, reason=f"native runtime: {missing()}")
