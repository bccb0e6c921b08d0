"""Teachers of other families and with other limits: what fits is learnt from, the rest is refused in a sentence."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import image_config, save_image_settings, save_tokenizer, tiny_config

from hasten.models.load import load_checkpoint
from hasten.passes.calibration import Calibration
from hasten.passes.distillation import DistillConfig, distill, output_loss
from hasten.passes.teachers import same_language, seen_by, teachers_for
from hasten.records import InputError, ModelRef, Rejected
from hasten.tasks import get_task

TASK = "text-classification"
Checkpoints = Callable[[str], Path]


def wrapper(folder: Path, task: str = TASK) -> Any:
    return get_task(task).wrap(load_checkpoint(ModelRef(str(folder)), task=get_task(task))).eval()


def rows(count: int = 32, *, typed: bool = True) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    made = []
    for length in rng.integers(3, 14, size=count):
        row = {"input_ids": rng.integers(4, 60, size=(1, length)), "attention_mask": np.ones((1, length), np.int64)}
        made.append({**row, "token_type_ids": np.zeros((1, length), np.int64)} if typed else row)
    return made


def given_for(folder: Path, **more: Any) -> Calibration:
    """A calibration whose original is the checkpoint in ``folder``."""
    found = load_checkpoint(ModelRef(str(folder)), task=get_task(TASK))
    original = get_task(TASK).wrap(found).eval()
    return Calibration(rows(), original=original, tokenizer_json=found.tokenizer_json, **more)


def saved(folder: Path, config: Any, *, spread: float = 1.0) -> Path:
    """A classifier of this config with the tokenizer of all; ``spread`` multiplies the last matrix."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        [parameter for parameter in model.parameters() if parameter.ndim == 2][-1].mul_(spread)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def distance(student: Any, teacher: Any, some: list[dict[str, Any]]) -> float:
    with torch.inference_mode():
        batches = [batch for batch, _ in Calibration(some).batches(batch=8)]
        return sum(
            float(output_loss(student(**b), teacher(**seen_by(teacher, b)), says="logits", temperature=1.0))
            for b in batches
        )


WAYS = {
    "hidden": DistillConfig(epochs=8, batch=8, lr=2e-3),
    "relations": DistillConfig(epochs=8, batch=8, lr=2e-3, hidden=0.0, relations=1.0),
    "logits": DistillConfig(epochs=8, batch=8, lr=2e-3, hidden=0.0),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["distilbert", "electra", "roberta"])
def test_a_teacher_of_another_family_is_learnt_from(
    family: str, way: str, checkpoint: Checkpoints, tmp_path: Path
) -> None:
    folder = saved(tmp_path / family, tiny_config(family), spread=30.0)
    given = given_for(checkpoint("bert"))
    student, teacher = copy.deepcopy(given.original), wrapper(folder)
    before = distance(student, teacher, rows())
    distill(student, replace(WAYS[way], teachers=(str(folder),)), given)
    assert distance(student, teacher, rows()) < 0.8 * before


def test_a_wider_teacher_and_the_original_together(checkpoint: Checkpoints, tmp_path: Path) -> None:
    config = tiny_config("electra")
    config.hidden_size, config.num_hidden_layers = 48, 6
    folder = saved(tmp_path / "wide", config)
    given = given_for(checkpoint("bert"))
    student = copy.deepcopy(given.original)
    before = copy.deepcopy(student.state_dict())
    teachers = (str(folder), str(checkpoint("bert")))
    distill(student, DistillConfig(epochs=1, batch=8, relations=1.0, teachers=teachers), given)
    assert all(torch.isfinite(weight).all() for weight in student.state_dict().values())
    assert any(not torch.equal(weight, before[name]) for name, weight in student.state_dict().items())


def test_a_student_without_token_types_has_a_teacher_with_them(checkpoint: Checkpoints) -> None:
    given = replace(given_for(checkpoint("distilbert")), rows=rows(typed=False))
    student = copy.deepcopy(given.original)
    distill(student, DistillConfig(epochs=1, batch=8, teachers=(str(checkpoint("bert")),)), given)
    assert all(torch.isfinite(weight).all() for weight in student.state_dict().values())


def test_without_an_adapter_its_outputs_alone(checkpoint: Checkpoints, tmp_path: Path) -> None:
    from transformers import ErnieConfig

    plain = tiny_config("bert").to_dict()
    names = ("vocab_size", "max_position_embeddings", "pad_token_id", "id2label", "label2id")
    sizes = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size")
    folder = saved(tmp_path / "ernie", ErnieConfig(**{name: plain[name] for name in (*names, *sizes)}), spread=30.0)
    given = given_for(checkpoint("bert"))
    teacher = wrapper(folder)
    student = copy.deepcopy(given.original)
    before = distance(student, teacher, rows())
    distill(student, replace(WAYS["logits"], teachers=(str(folder),)), given)
    assert distance(student, teacher, rows()) < 0.8 * before
    for way in ("hidden", "relations"):
        with pytest.raises(Rejected, match=r"family ernie cannot be looked at.*hidden=0 and relations=0"):
            distill(student, replace(WAYS[way], teachers=(str(folder),)), given)


def test_another_length_limit_is_no_other_tokenizer(checkpoint: Checkpoints, tmp_path: Path) -> None:
    given = given_for(checkpoint("bert"))
    shutil.copytree(checkpoint("bert"), tmp_path / "shorter")
    path = tmp_path / "shorter" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 32}))
    theirs = load_checkpoint(ModelRef(str(tmp_path / "shorter")), task=get_task(TASK)).tokenizer_json
    assert theirs != given.tokenizer_json
    assert len(teachers_for((str(tmp_path / "shorter"),), given)) == 1


def test_what_another_tokenizer_is(checkpoint: Checkpoints) -> None:
    own = load_checkpoint(ModelRef(str(checkpoint("bert"))), task=get_task(TASK)).tokenizer_json
    data = json.loads(own)
    assert same_language(own, json.dumps({**data, "truncation": None, "padding": None}))
    assert not same_language(own, json.dumps({**data, "normalizer": {"type": "Lowercase"}}))
    assert not same_language(own, json.dumps({**data, "pre_tokenizer": {"type": "WhitespaceSplit"}}))
    assert not same_language(own, json.dumps({**data, "post_processor": None}))
    vocabulary = data["model"]["vocab"]
    swapped = {**vocabulary, "w7": vocabulary["w8"], "w8": vocabulary["w7"]}
    assert not same_language(own, json.dumps({**data, "model": {**data["model"], "vocab": swapped}}))
    assert same_language("", "")
    assert not same_language(own, "")


def test_sizes_that_do_not_fit_are_named(checkpoint: Checkpoints, tmp_path: Path) -> None:
    given = given_for(checkpoint("bert"))
    config = tiny_config("bert")
    config.max_position_embeddings = 8
    short = saved(tmp_path / "short", config)
    with pytest.raises(Rejected, match="8 positions, and there are rows of 13 tokens"):
        teachers_for((str(short),), given)
    config = tiny_config("electra")
    config.hidden_size = 48
    wide = saved(tmp_path / "wide", config)
    task = "feature-extraction"
    vectors = replace(given, original=wrapper(checkpoint("bert"), task))
    with pytest.raises(Rejected, match="says 48 numbers a row, and the original 32 numbers"):
        teachers_for((str(wide),), vectors)
    with pytest.raises(InputError, match="no such path"):
        teachers_for(("./no-such-folder",), given)


def test_images_of_another_size_are_refused(checkpoint: Checkpoints, tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    other = tmp_path / "other"
    names = tiny_config("vit")
    config = image_config("vit", id2label=names.id2label, label2id=names.label2id, image_size=32)
    AutoModelForImageClassification.from_config(config).save_pretrained(other)
    save_image_settings(other, size={"height": 32, "width": 32})
    pixels = [{"pixel_values": np.zeros((1, 3, 16, 16), np.float32)}] * 16
    given = Calibration(pixels, original=wrapper(checkpoint("vit"), "image-classification"), tokenizer_json="")
    with pytest.raises(Rejected, match="images of 32 x 32, the student of 16 x 16"):
        teachers_for((str(other),), given)
    assert len(teachers_for((str(checkpoint("deit")),), given)) == 1


def test_a_name_where_a_list_belongs() -> None:
    with pytest.raises(InputError, match=r"teachers='folder' for the pass distill\n  expected: a list"):
        DistillConfig(teachers="folder")  # type: ignore[arg-type]
