"""Distillation: the student comes nearer to its teacher, and misfits are refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hasten.models.load import load_checkpoint
from hasten.passes.calibration import Calibration
from hasten.passes.distillation import DistillConfig, depth_map, distill, output_loss
from hasten.passes.layers import LayersConfig, drop_layers
from hasten.passes.progressive import ProgressiveConfig, distill_progressively
from hasten.passes.targets import Targets
from hasten.records import InputError, ModelRef, Rejected
from hasten.tasks import get_task

TASK = "text-classification"
Checkpoints = Callable[[str], Path]


def wrapper(folder: Path) -> Any:
    found = get_task(TASK).wrap(load_checkpoint(ModelRef(str(folder)), task=get_task(TASK))).eval()
    with torch.no_grad():  # logits that differ from row to row
        found.hf.classifier.weight.mul_(30)
    return found


def rows(count: int = 64) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    made = []
    for length in rng.integers(3, 14, size=count):
        ids = rng.integers(4, 60, size=(1, length))
        made.append({"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)})
    return made


def error(student: Any, teacher: Any) -> float:
    with torch.inference_mode():
        batches = [b for b, _ in Calibration(rows()).batches(batch=8)]
        return sum(float(output_loss(student(**b), teacher(**b), says="logits", temperature=1.0)) for b in batches)


@pytest.mark.parametrize("config", [DistillConfig(), DistillConfig(hidden=0), DistillConfig(relations=1.0)])
def test_the_student_comes_nearer(config: DistillConfig, checkpoint: Checkpoints) -> None:
    teacher = wrapper(checkpoint("bert"))
    given = Calibration(rows(), original=teacher)
    student = drop_layers(copy.deepcopy(teacher), LayersConfig(count=2), given)
    before = error(student, teacher)
    distill(student, replace(config, epochs=20, batch=8, lr=1e-3), given)
    assert error(student, teacher) < 0.6 * before
    assert all(p.requires_grad for p in student.parameters())


def test_extra_rows_are_learnt_from_too(checkpoint: Checkpoints) -> None:
    teacher = wrapper(checkpoint("bert"))
    seen: list[int] = []
    given = Calibration(rows(16), original=teacher, extra=rows(48), listen=lambda p: seen.append(p.total))
    student = drop_layers(copy.deepcopy(teacher), LayersConfig(count=2), given)
    distill(student, DistillConfig(epochs=1, batch=8), given)
    assert seen[-1] == 8


def test_several_teachers_are_averaged(checkpoint: Checkpoints) -> None:
    one = wrapper(checkpoint("bert"))
    two = copy.deepcopy(one)
    with torch.no_grad():
        two.hf.classifier.bias.add_(torch.tensor([3.0, 0.0, 0.0]))
    some = rows(4)
    outputs, states = Targets([one, two], some, (2, 4)).of([1, 3])
    alone, _ = Targets([one], some, (2, 4)).of([1, 3])
    assert torch.allclose(outputs - alone, torch.tensor([1.5, 0.0, 0.0]).expand(2, 3), atol=1e-5)
    assert states.shape == (2, 2, max(some[i]["input_ids"].shape[1] for i in (1, 3)), 32)


def test_targets_are_the_same_when_asked_again(checkpoint: Checkpoints) -> None:
    targets = Targets([wrapper(checkpoint("bert"))], rows(8), (4,))
    first, again = targets.of([5, 2, 7]), targets.of([5, 2, 7])
    assert torch.equal(first[0], again[0])
    assert torch.allclose(first[1], again[1])


def test_a_teacher_that_does_not_fit_is_named(checkpoint: Checkpoints, tmp_path: Path) -> None:
    from tiny_models import save_classifier

    other = save_classifier(tmp_path / "other")
    config = (other / "config.json").read_text().replace('"maybe"', '"perhaps"')
    (other / "config.json").write_text(config)
    teacher = wrapper(checkpoint("bert"))
    loaded = load_checkpoint(ModelRef(str(other)), task=get_task(TASK))
    given = Calibration(rows(), original=teacher, tokenizer_json=loaded.tokenizer_json)
    with pytest.raises(Rejected, match="labels"):
        distill(copy.deepcopy(teacher), DistillConfig(teachers=(str(other),)), given)
    swapped = loaded.tokenizer_json.replace('"w7"', '"w-"').replace('"w8"', '"w7"').replace('"w-"', '"w8"')
    with pytest.raises(Rejected, match="another tokenizer"):
        distill(copy.deepcopy(teacher), DistillConfig(teachers=(str(other),)), replace(given, tokenizer_json=swapped))
    with pytest.raises(Rejected, match="needs a teacher"):
        distill(copy.deepcopy(teacher), DistillConfig(), Calibration(rows()))


def test_settings() -> None:
    assert depth_map(3, 6) == (2, 4, 6)
    assert depth_map(4, 6) == (2, 3, 4, 6)
    for wrong in ({"logits": 0.0, "hidden": 0.0}, {"hidden": -1.0}, {"temperature": 0.0}, {"epochs": 0.0}):
        with pytest.raises(InputError):
            DistillConfig(**wrong)  # type: ignore[arg-type]


def test_progressive_goes_through_assistants_and_resumes_them(checkpoint: Checkpoints, tmp_path: Path) -> None:
    teacher = wrapper(checkpoint("bert"))
    heard: list[str] = []
    given = Calibration(rows(), original=teacher, state=tmp_path, listen=lambda p: heard.append(p.what))
    config = ProgressiveConfig(assistants=(3, 2), epochs=24, batch=8, lr=1e-3)
    student = drop_layers(copy.deepcopy(teacher), LayersConfig(count=1), given)
    with torch.no_grad():  # something to unlearn
        student.hf.classifier.bias.add_(torch.tensor([1.0, 0.0, -1.0]))
    before = error(student, teacher)
    made = distill_progressively(copy.deepcopy(student), config, given)
    assert error(made, teacher) < 0.9 * before
    whole = len(heard)
    again = distill_progressively(copy.deepcopy(student), config, given)
    assert len(heard) - whole == whole // 3, "both assistants came from disk"
    assert error(again, teacher) == pytest.approx(error(made, teacher))


def test_assistants_must_lie_between(checkpoint: Checkpoints) -> None:
    teacher = wrapper(checkpoint("bert"))
    given = Calibration(rows(), original=teacher)
    student = drop_layers(copy.deepcopy(teacher), LayersConfig(count=2), given)
    for wrong in ((4,), (3, 1)):
        with pytest.raises(Rejected, match="not between 4 and 2"):
            distill_progressively(student, ProgressiveConfig(assistants=wrong), given)
    for wrong in ((), (2, 3), (0,)):
        with pytest.raises(InputError, match="that fall"):
            ProgressiveConfig(assistants=wrong)
