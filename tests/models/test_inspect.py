"""Looking at a checkpoint: refusals say what is wrong, and nothing of the checkpoint's own code runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hasten.models.inspect import inspect_checkpoint, license_of
from hasten.models.load import load_checkpoint
from hasten.records import InputError, ModelRef
from hasten.tasks import get_task

TASK = "text-classification"
SPY = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass Spy: pass\n"


@pytest.fixture
def copy(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A BERT classifier to damage."""
    return Path(shutil.copytree(checkpoint("bert"), tmp_path / "copy"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_light_facts(copy: Path) -> None:
    found = inspect_checkpoint(ModelRef(str(copy)), task=get_task(TASK))
    assert (found.family, found.pickled, found.folder) == ("bert", False, copy)
    assert found.weights == (copy / "model.safetensors",)
    assert found.weights_bytes == (copy / "model.safetensors").stat().st_size


def test_a_family_without_an_adapter_passes(copy: Path) -> None:
    edit(copy / "config.json", model_type="mamba")
    assert inspect_checkpoint(ModelRef(str(copy)), task=get_task(TASK)).family == "mamba"


def test_a_head_of_another_task_is_told_what_it_is_for(copy: Path) -> None:
    edit(copy / "config.json", architectures=["BertForTokenClassification"])
    with pytest.raises(InputError, match="this one is for token-classification"):
        inspect_checkpoint(ModelRef(str(copy)), task=get_task(TASK))


@pytest.mark.parametrize("saved", ["GPT2LMHeadModel", "ViTForImageClassification", "WhisperForConditionalGeneration"])
def test_a_remedy_is_one_that_works(saved: str, copy: Path) -> None:
    """Nothing that the task would refuse in turn."""
    edit(copy / "config.json", architectures=[saved])
    for task in (TASK, "feature-extraction"):
        with pytest.raises(InputError) as caught:
            inspect_checkpoint(ModelRef(str(copy)), task=get_task(task))
        assert "--task feature-extraction takes" not in str(caught.value)


def test_a_gguf_file_that_is_not_there_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("m.gguf", "models/m.gguf"):
        with pytest.raises(InputError, match="no such file"):
            inspect_checkpoint(ModelRef(name), task=get_task("language-modeling"))


def test_a_gguf_file_is_for_tasks_of_text(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"m\.gguf"):
        inspect_checkpoint(ModelRef(str(tmp_path / "m.gguf")), task=get_task("language-modeling"))


def test_a_folder_of_something_else_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it holds nothing"):
        inspect_checkpoint(ModelRef(str(tmp_path)), task=get_task(TASK))
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(InputError, match=r"it holds photo\.jpg"):
        inspect_checkpoint(ModelRef(str(tmp_path)), task=get_task(TASK))


@pytest.mark.parametrize("content", [b"[1]", b'"bert"', b"\xff\xfe{", b'{"model_type": 3}', b""])
def test_configs_that_are_none(copy: Path, content: bytes) -> None:
    (copy / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json"):
        inspect_checkpoint(ModelRef(str(copy)), task=get_task(TASK))


def test_architectures_are_a_list(copy: Path) -> None:
    edit(copy / "config.json", architectures=5)
    with pytest.raises(InputError, match="architectures '5'"):
        inspect_checkpoint(ModelRef(str(copy)), task=get_task(TASK))


@pytest.mark.parametrize("content", [b"{nope", b"[1]", b"\xff"])
def test_settings_of_writing_are_not_passed_over(content: bytes, copy: Path) -> None:
    """transformers would write without them and say nothing."""
    (copy / "generation_config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"generation_config\.json"):
        inspect_checkpoint(ModelRef(str(copy)), task=get_task(TASK))


def test_a_decoder_is_no_encoder(copy: Path) -> None:
    edit(copy / "config.json", architectures=["BertLMHeadModel"])
    with pytest.raises(InputError, match="BertLMHeadModel"):
        inspect_checkpoint(ModelRef(str(copy)), task=get_task("feature-extraction"))


def adapter(folder: Path) -> None:
    facts = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 8}
    (folder / "adapter_config.json").write_text(json.dumps(facts))
    (folder / "adapter_model.safetensors").write_bytes(b"")


def test_an_adapter_is_not_a_model(copy: Path, tmp_path: Path) -> None:
    """Neither alone nor beside the weights it belongs to: what would be loaded is not what stands there."""
    alone = tmp_path / "alone"
    alone.mkdir()
    for folder, where in ((alone, "without the weights"), (copy, "beside a model's own weights")):
        adapter(folder)
        with pytest.raises(InputError, match=f"LORA adapter .* for org/base, {where}") as caught:
            inspect_checkpoint(ModelRef(str(folder)), task=get_task(TASK))
        assert "merge_and_unload" in str(caught.value)
        assert "base model org/base" in str(caught.value)
        with pytest.raises(InputError, match="adapter"):
            load_checkpoint(ModelRef(str(folder)), task=get_task(TASK))


@pytest.mark.parametrize("content", [b"{", b"[1]", b'{"peft_type": null, "base_model_name_or_path": 3}'])
def test_a_strange_adapter_is_one_all_the_same(copy: Path, content: bytes) -> None:
    (copy / "adapter_config.json").write_bytes(content)
    with pytest.raises(InputError, match="adapter"):
        inspect_checkpoint(ModelRef(str(copy)), task=get_task(TASK))


@pytest.mark.parametrize("auto_map", [{"AutoModel": "spy.Spy"}, ["spy.Spy"], "spy.Spy"])
def test_foreign_code_is_refused_unrun(copy: Path, auto_map: object) -> None:
    (copy / "spy.py").write_text(SPY)
    edit(copy / "config.json", auto_map=auto_map)
    with pytest.raises(InputError, match="--trust-remote-code") as caught:
        load_checkpoint(ModelRef(str(copy)), task=get_task(TASK))
    assert "spy.Spy" in str(caught.value)
    assert not (copy / "ran").exists()


def test_a_tokenizers_foreign_code_never_runs(copy: Path) -> None:
    (copy / "spy.py").write_text(SPY)
    edit(copy / "tokenizer_config.json", auto_map={"AutoTokenizer": ["spy.Spy", None]}, tokenizer_class="Spy")
    load_checkpoint(ModelRef(str(copy)), task=get_task(TASK))  # tokenizer.json is data, and enough
    (copy / "tokenizer.json").rename(copy / "vocab.txt")  # now it would have to be converted by the class
    with pytest.raises(InputError, match="no usable tokenizer"):
        load_checkpoint(ModelRef(str(copy)), task=get_task(TASK))
    assert not (copy / "ran").exists()


def test_every_file_that_matters_changes_the_hash(copy: Path) -> None:
    seen = {inspect_checkpoint(ModelRef(str(copy)), task=get_task(TASK)).source_hash()}
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (copy / name).write_text((copy / name).read_text() + "\n")
        seen.add(inspect_checkpoint(ModelRef(str(copy)), task=get_task(TASK)).source_hash())
    assert len(seen) == 4
    for name in ("merges.txt", "source.spm", "spiece.model", "processor_config.json"):
        (copy / name).write_text("{}")
        seen.add(inspect_checkpoint(ModelRef(str(copy)), task=get_task(TASK)).source_hash())
    assert len(seen) == 8
    (copy / "README.md").write_text("words")
    assert inspect_checkpoint(ModelRef(str(copy)), task=get_task(TASK)).source_hash() in seen


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, None),
        ({"README.md": "---\ntags: [x]\nlicense: apache-2.0\n---\n# A model\n"}, "apache-2.0"),
        ({"README.md": "license: mit\n"}, None),
        ({"LICENSE": "\n  MIT License  \n\nCopyright"}, "MIT License"),
        ({"README.md": "---\nlicense: mit\n---\n", "LICENSE.txt": "Other"}, "mit"),
        ({"LICENSE": ""}, None),
    ],
)
def test_licenses(tmp_path: Path, files: dict[str, str], found: str | None) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert license_of(tmp_path) == found


def test_a_hub_id_without_a_network_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def unreachable(*_: object, **__: object) -> str:
        raise OSError("no route to the hub")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(InputError, match="no route to the hub"):
        inspect_checkpoint(ModelRef("some-org/some-model"), task=get_task(TASK))
