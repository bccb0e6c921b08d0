"""A checkpoint and the user's rows on the bench, for whoever calls passes one by one.

Takes what ``hasten optimize`` takes, gives the model as passes want it, the calibration that they may look at, and
scores on rows that they never see. The splits are those of a run with the same seed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from hasten.pipeline.disk import watched_disk
from hasten.pipeline.jobs import CheckpointFacts, describe
from hasten.pipeline.lessons import lesson
from hasten.pipeline.material import Material, calibration_of, material_of, outputs_of, written_by
from hasten.pipeline.pass_progress import PassProgress
from hasten.pipeline.prepare import Prepared, prepare
from hasten.pipeline.progress import Reporter
from hasten.pipeline.request import make_request
from hasten.pipeline.staging import staged
from hasten.records import Columns, InputError, Quality
from hasten.tasks import get_task


@dataclass(frozen=True)
class Workbench:
    """Made by :func:`workbench`. ``facts`` describe the checkpoint, ``prepared`` the rows and their splits; ``hears``
    is told what passes say of themselves."""

    checkpoint: Any
    facts: CheckpointFacts
    prepared: Prepared
    material: Material
    scratch: Path | None
    hears: PassProgress | None = None

    def model(self) -> Any:
        """A fresh copy of the original, in the wrapper that passes take (``model.hf`` is the transformers model): the
        task's, that of a language model where a decoder goes on from prompts, or one that sees an encoder-decoder's
        whole answers."""
        self._clear_screen()
        task = lesson(self.prepared.task)
        return task.wrap(replace(self.checkpoint, model=copy.deepcopy(self.checkpoint.model))).eval()

    def calibration(self) -> Any:
        """What passes may see: :class:`hasten.passes.calibration.Calibration`, with the original as the teacher."""
        given = calibration_of(
            self.material, original=self.model(), task=lesson(self.prepared.task), labels=self.facts.labels,
            state=self.scratch,
        )  # fmt: skip
        return given if self.hears is None else replace(given, listen=partial(_to_both, given.listen, self.hears))

    def score(self, model: Any, part: Literal["selection", "test"] = "test") -> Quality:
        """The task's metrics of ``model`` on rows that no pass sees, in points."""
        self._clear_screen()
        chosen = self.prepared.selection if part == "selection" else self.prepared.test
        task, names, answers = self.prepared.task, self.prepared.input_names, self.prepared.answers
        reference = outputs_of(self.model(), chosen, task=task, input_names=names, answers=answers)
        found = outputs_of(model, chosen, task=task, input_names=names, answers=answers, reference=reference)
        return task.score(  # type: ignore[no-any-return]
            found, self.prepared.rows_of(chosen), self.facts.labels, reference=reference
        )

    def save(self, model: Any, folder: str | Path) -> Path:
        """Weights, config and tokenizer: a folder that hasten opens again. Transformers opens it too where its config
        says every shape and no matrix is stored in parts; else the weights lie in ``hasten.safetensors``, and
        transformers says that it finds none. Raises InputError when the folder holds something, and DiskFull
        when there is no room; whatever it raises, nothing of it stays."""
        from hasten.models.reshape import save_model

        self._clear_screen()
        path = Path(folder)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path} holds something", expected="a new or empty folder", remedy="give another one")
        with watched_disk(path, remedy="free some space, or save to another disk"), staged(path) as staging:
            save_model(model.hf, staging)
            for name, content in self.facts.processor_files.items():
                (staging / name).write_bytes(content)
        return path

    def _clear_screen(self) -> None:
        """The pass that was called last has returned."""
        if self.hears is not None:
            self.hears.close()


def _to_both(first: Callable[[Any], None], second: Callable[[Any], None], progress: Any) -> None:
    first(progress)
    second(progress)


def workbench(
    model: str | Path,
    *,
    task: str,
    data: str | Path | None = None,
    calibration_data: str | None = None,
    selection_data: str | None = None,
    test_data: str | None = None,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    scratch: str | Path | None = None,
    reporter: Reporter | None = None,
    progress: bool = True,
    **options: Any,
) -> Workbench:
    """Load ``model`` and read ``data`` (or three files) as ``hasten.optimize`` does, in this process.

    In ``scratch`` a training keeps its state, so that it goes on after a kill or Ctrl-C. While a pass runs, a bar on
    the terminal says how far it is and about how long it will still take; ``reporter`` hears that instead of it, and
    ``progress=False`` silences both. ``options`` are those of ``hasten.optimize`` that matter here: extra_data,
    max_length, max_rows, new_tokens, chat, prefix, seed, revision, allow_pickle, trust_remote_code. Raises InputError
    for bad input.
    """
    from hasten.models.load import load_checkpoint

    request = make_request(
        model, task=task, data=data, budget="", time="10m", out="unused",
        splits=(calibration_data, selection_data, test_data),
        columns=Columns(text_column, text_pair_column, label_column), **options,
    )  # fmt: skip
    checkpoint = load_checkpoint(request.model, task=get_task(task))
    facts = describe(checkpoint)
    prepared = prepare(request, facts)
    material = material_of(
        prepared, labels=facts.labels, tokenizer_json=facts.tokenizer_json, seed=request.workload.seed,
        write=written_by(checkpoint, prepared),
    )  # fmt: skip
    hears = PassProgress(reporter) if progress else None
    return Workbench(checkpoint, facts, prepared, material, None if scratch is None else Path(scratch), hears)
