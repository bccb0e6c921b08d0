"""The answer made readable: verdict.json, a terminal table, one self-contained page."""

from __future__ import annotations
