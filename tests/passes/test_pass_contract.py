"""The contract of every pass: right shapes, the same result under a seed, and a model that survives its folder."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pass_settings import SETTINGS
from tiny_models import IMAGES, SIDE, TEXTS
from unit_cases import again, decoder, said, texts_for

from hasten.models.load import load_checkpoint
from hasten.models.reshape import open_model, save_model
from hasten.passes import PASSES, configs, run_pass
from hasten.passes.calibration import Calibration
from hasten.records import Config, ModelRef, config_from_dict, config_to_dict
from hasten.tasks import get_task

TASKS = ("text-classification", "feature-extraction")
Checkpoints = Callable[[str], Path]
CASES = [(kind, number) for kind, found in SETTINGS.items() for number in range(len(found))]


def task_of(family: str) -> str:
    return "image-classification" if family in IMAGES else TASKS[0]


def wrapper(folder: Path, task: str) -> Any:
    return get_task(task).wrap(load_checkpoint(ModelRef(str(folder)), task=get_task(task))).eval()


def calibration(model: Any, family: str, *, labels: bool, original: Any = None, **more: Any) -> Calibration:
    """Sixteen random rows; labels, where wanted, are what the model says, so that there is something to keep."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for length in rng.integers(3, 14, size=16):
        if family in IMAGES:
            rows.append({"pixel_values": rng.normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)})
            continue
        row = {"input_ids": rng.integers(4, 60, size=(1, length)), "attention_mask": np.ones((1, length), np.int64)}
        if family in ("bert", "electra"):
            row["token_type_ids"] = np.zeros((1, length), np.int64)
        rows.append(row)
    plain = Calibration(rows)
    with torch.inference_mode():
        said = np.concatenate([model(**batch).argmax(dim=1).numpy() for batch, _ in plain.batches(batch=4)])
    return Calibration(rows, targets=said if labels else None, original=original, seed=3, **more)


def outputs(model: Any, given: Calibration) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model(**batch) for batch, _ in given.batches(batch=4)])


def applied(config: Config, folder: Path, family: str, task: str) -> tuple[Any, Calibration]:
    model, original = wrapper(folder, task), wrapper(folder, task)
    given = calibration(model, family, labels=task != TASKS[1], original=original)
    return run_pass(model, config, given), given


def test_every_pass_has_settings_to_be_tested_with() -> None:
    assert set(SETTINGS) == set(PASSES) == set(configs())


def test_every_pass_can_be_called_by_its_name() -> None:
    import hasten.passes

    configs()  # every module is imported now: none of them may stand in the place of its function
    for entry in PASSES.values():
        assert inspect.isfunction(getattr(hasten.passes, entry.function)), entry.function
        assert inspect.isclass(getattr(hasten.passes, entry.config)), entry.config


# What changes shapes meets every family; the rest meets BERT, DistilBERT and ViT: the others are these by other names.
THREE = ("bert", "distilbert", "vit")
STRUCTURE = [kind for kind, entry in PASSES.items() if entry.step == "structure"]
# What changes the structure of decoders alone meets them below.
DECODING = ("slice", "gqa")
# Their attention takes no earlier keys.
UNFIT = {("prefix", "distilbert"), ("prefix", "vit")}
ALL = (*TEXTS, *IMAGES)
MEETINGS = [
    (case, family) for case in CASES for family in (ALL if case[0] in STRUCTURE and case[1] == 0 else THREE)
    if (case[1] == 0 or family == "bert") and (case[0], family) not in UNFIT and case[0] not in DECODING
]  # fmt: skip


@pytest.mark.parametrize(("case", "family"), MEETINGS, ids=lambda x: x if isinstance(x, str) else f"{x[0]}{x[1]}")
def test_shapes_seed_and_folder(case: tuple[str, int], family: str, checkpoint: Checkpoints, tmp_path: Path) -> None:
    config = SETTINGS[case[0]][case[1]]
    folder, task = checkpoint(family), task_of(family)
    made, given = applied(config, folder, family, task)
    found = outputs(made, given)
    assert found.shape == (16, 3)
    assert torch.isfinite(found).all()
    again, _ = applied(config, folder, family, task)
    assert torch.equal(outputs(again, given), found)
    save_model(made.hf, tmp_path)
    opened = open_model(type(made.hf), tmp_path, attention=made.hf.config._attn_implementation, dtype=torch.float32)
    assert torch.allclose(
        outputs(get_task(task).wrap_model(opened, pooling=None, normalize=False), given), found, atol=1e-5
    )
    if PASSES[config.kind].step == "structure":
        whole = wrapper(folder, task)
        assert sum(p.numel() for p in made.parameters()) < sum(p.numel() for p in whole.parameters())


# GPT-2 has a key for every query.
DECODERS = [
    (case, family) for case in CASES if case[0] in STRUCTURE for family in ("llama", "gpt2")
    if (case[0], family) != ("gqa", "gpt2") and (case[1] == 0 or case[0] in DECODING)
]  # fmt: skip


@pytest.mark.parametrize(("case", "family"), DECODERS, ids=lambda x: x if isinstance(x, str) else f"{x[0]}{x[1]}")
def test_decoders_shapes_seed_and_folder(case: tuple[str, int], family: str, tmp_path: Path) -> None:
    config, given = SETTINGS[case[0]][case[1]], texts_for(count=16)
    made, twin = (run_pass(decoder(family), config, given) for _ in range(2))
    found = said(made, given)
    assert torch.isfinite(found).all()
    assert torch.equal(said(twin, given), found)
    assert torch.allclose(said(again(made, tmp_path), given), found, atol=1e-5)
    assert sum(p.numel() for p in made.parameters()) < sum(p.numel() for p in decoder(family).parameters())


# A user's stored vectors have a size, which narrowing would change.
@pytest.mark.parametrize(
    "case", [c for c in CASES if c[0] not in ("narrow", *DECODING)], ids=lambda case: f"{case[0]}{case[1]}"
)
def test_embeddings_without_labels(case: tuple[str, int], checkpoint: Checkpoints) -> None:
    made, given = applied(SETTINGS[case[0]][case[1]], checkpoint("bert"), "bert", TASKS[1])
    found = outputs(made, given)
    assert found.shape == (16, 32)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}{case[1]}")
def test_config_is_data(case: tuple[str, int]) -> None:
    config = SETTINGS[case[0]][case[1]]
    assert config_from_dict(config_to_dict(config), configs()) == config
    assert 0 < len(config.label) <= 40
