"""Candidates on disk: what builds them, and which are there already.

Takes recipes, gives :class:`Built`. Owns the process that holds the checkpoint; when a build takes that process down,
the next build gets a fresh one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hasten.measure.worker import Worker
from hasten.pipeline.jobs import PREFLIGHT_LAYERS, Arrays, Built
from hasten.pipeline.material import PROGRESS_FILE, Material
from hasten.pipeline.prepare import Prepared
from hasten.pipeline.request import Request
from hasten.pipeline.workspace import PASSES, Workspace
from hasten.records import Figures, Recipe, Rejected

_EXPORT_TIMEOUT_S = 1800.0
# A training that was begun gets so much, whatever the clock says: less would teach nothing.
_LEAST_S = 20.0
Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Reference:
    """The original model at one depth: its files, and its outputs on the parity batches and on selection."""

    built: Built
    parity: list[np.ndarray[Any, Any]]
    selection: np.ndarray[Any, Any] | None
    figures: Figures


class Builds:
    """``full`` maps a recipe's id to its files. ``tell`` hears what a long pass is doing; ``left_s`` says how many
    seconds a training may still take."""

    def __init__(self, request: Request, space: Workspace, builder: Worker, start: Callable[[], Worker]) -> None:
        self.request, self.space, self._start = request, space, start
        self._builder: Worker | None = builder
        self.full: dict[str, Built] = {}
        self.tell: Told | None = None
        self.left_s: Callable[[], float] = _unhurried

    @property
    def pass_cache(self) -> Path:
        return self.space.work / PASSES

    def short(self, recipe: Recipe, prepared: Prepared, *, parity: list[Arrays] | None = None) -> Built:
        """The candidate on a two-layer copy."""
        return self._build(recipe, prepared, stage="short", layers=PREFLIGHT_LAYERS, parity=parity)

    def rehearsed(self, recipe: Recipe, prepared: Prepared, material: Material, parity: list[Arrays]) -> Built:
        """The whole candidate with its structure but without training: as fast as it will be, and not yet as good."""
        return self._build(recipe, prepared, stage="rehearsed", material=material, parity=parity, rehearse=True)

    def whole(
        self, recipe: Recipe, prepared: Prepared, material: Material | None = None, parity: list[Arrays] | None = None
    ) -> Built:
        """The candidate as it is meant; built once a process."""
        if recipe.id not in self.full:
            self.full[recipe.id] = self._build(recipe, prepared, stage="full", material=material, parity=parity)
        return self.full[recipe.id]

    def close(self) -> None:
        if self._builder is not None:
            self._builder.close()
        self._builder = None

    def _build(self, recipe: Recipe, prepared: Prepared, *, stage: str, **options: Any) -> Built:
        if self._builder is None:
            self._builder = self._start()
        trains = bool(recipe.passes)
        try:
            built: Built = self._builder.call(
                "hasten.pipeline.jobs:build_artifact",
                # A training watches the clock itself, and knows when it makes no progress.
                timeout_s=None if trains else _EXPORT_TIMEOUT_S, on_wait=self._hear if trains else None,
                ref=self.request.model, task=self.request.task, recipe=recipe.to_dict(),
                calibration=prepared.calibration_feeds(), folder=self.space.folder(stage, recipe.id),
                cache=self.space.work / "cache", pass_cache=self.pass_cache,
                seconds=max(_LEAST_S, self.left_s()), **options,
            )  # fmt: skip
        except Rejected as error:
            if error.stage in ("crash", "memory", "timeout"):  # the process is gone or not to be trusted
                self.close()
            raise
        return built

    def _hear(self) -> None:
        """Pass on what the training that writes now last said of itself."""
        said = max(self.pass_cache.glob(f"*/state/{PROGRESS_FILE}"), key=_written_ns, default=None)
        if said is None or self.tell is None:
            return
        try:
            facts = json.loads(said.read_text())
        except (OSError, ValueError):  # the training has ended in between, and its state is gone
            return
        score = "" if facts["score"] is None else f", best {facts['score']:.2f}"
        self.tell(f"{facts['what']}: step {facts['done']} of {facts['total']}{score}")


def _written_ns(path: Path) -> int:
    """When the file was last written; long ago, if it is gone by now."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _unhurried() -> float:
    return math.inf
