"""Loading: the right facts from good checkpoints, and a helpful refusal of bad ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import TEXTS

from hasten.models import FAMILIES, adapter_for
from hasten.models.inspect import inspect_checkpoint
from hasten.models.load import load_checkpoint
from hasten.models.surgery import shortened
from hasten.records import InputError, ModelRef
from hasten.tasks import get_task

TASK = "text-classification"
Checkpoints = Callable[[str], Path]


def test_every_family_has_an_adapter() -> None:
    for family in FAMILIES:
        adapter = adapter_for(family)
        assert adapter is not None
        assert adapter.family == family
    assert adapter_for("mamba") is None


@pytest.mark.parametrize("family", TEXTS)
def test_facts_and_anatomy(family: str, checkpoint: Checkpoints) -> None:
    found = load_checkpoint(ModelRef(str(checkpoint(family))), task=get_task(TASK))
    assert (found.family, found.labels) == (family, ("no", "yes", "maybe"))
    assert found.max_length == (64 if "roberta" in family else 66)
    adapter = adapter_for(family)
    assert adapter is not None
    layers = adapter.layers(found.model)
    assert len(layers) == 4
    attention, ffn = adapter.attention(layers[0]), adapter.ffn(layers[0])
    assert attention.heads * attention.head_dim == attention.query.out_features == 32
    assert attention.output.in_features == attention.value.out_features
    assert (ffn.up.in_features, ffn.up.out_features, ffn.down.in_features) == (32, 64, 64)
    assert [type(norm) for norm in adapter.norms(layers[0])] == [torch.nn.LayerNorm] * 2
    assert sum(p.numel() for p in adapter.embeddings(found.model).parameters()) > 0


@pytest.mark.parametrize("family", TEXTS)
def test_shorten_keeps_the_first_layers_and_the_source(family: str, checkpoint: Checkpoints) -> None:
    model = load_checkpoint(ModelRef(str(checkpoint(family))), task=get_task(TASK)).model
    adapter = adapter_for(family)
    assert adapter is not None
    before = {k: v.clone() for k, v in model.state_dict().items()}
    short = shortened(model, adapter, layers=2)
    ids = torch.tensor([[4, 10, 11, 12, 5]])
    with torch.inference_mode():
        states = model.base_model(input_ids=ids, output_hidden_states=True).hidden_states
        got = short.base_model(input_ids=ids).last_hidden_state
    assert torch.allclose(got, states[2], atol=1e-6)
    assert short.config.num_hidden_layers == 2
    assert model.config.num_hidden_layers == 4
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_source_hash_follows_the_weights(checkpoint: Checkpoints, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint("bert"), copy)
    first = inspect_checkpoint(ModelRef(str(copy)), task=get_task(TASK)).source_hash()
    assert first == inspect_checkpoint(ModelRef(str(checkpoint("bert"))), task=get_task(TASK)).source_hash()
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(bytes(weights))
    assert inspect_checkpoint(ModelRef(str(copy)), task=get_task(TASK)).source_hash() != first


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def remove_head(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in weights.items() if not k.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def pickle_weights(folder: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


DAMAGE = {
    "no config.json": lambda f: (f / "config.json").unlink(),
    "JSON": lambda f: (f / "config.json").write_text("{"),
    "model_type": lambda f: (f / "config.json").write_text("{}"),
    "--trust-remote-code": lambda f: edit_config(f, auto_map={"AutoModel": "evil.Model"}),
    "without the head of text-classification": lambda f: edit_config(f, architectures=["BertModel"]),
    "truncated": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:500]),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "--allow-pickle": pickle_weights,
    "missing or of another shape": remove_head,
    "tokenizer": lambda f: [p.unlink() for p in f.glob("*token*")],
}


@pytest.mark.parametrize("message", DAMAGE)
def test_bad_checkpoints_are_named(message: str, checkpoint: Checkpoints, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint("bert"), folder)
    DAMAGE[message](folder)
    with pytest.raises(InputError, match="to do:") as caught:
        load_checkpoint(ModelRef(str(folder)), task=get_task(TASK))
    assert message in str(caught.value)


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at all", "no-such-org/no-such-model"])
def test_no_such_model(source: str) -> None:
    with pytest.raises(InputError):
        inspect_checkpoint(ModelRef(source), task=get_task(TASK))


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="is a file"):
        inspect_checkpoint(ModelRef(str(tmp_path / "model.bin")), task=get_task(TASK))


def test_pickle_loads_only_when_allowed(checkpoint: Checkpoints, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint("bert"), folder)
    pickle_weights(folder)
    allowed = load_checkpoint(ModelRef(str(folder), allow_pickle=True), task=get_task(TASK))
    original = load_checkpoint(ModelRef(str(checkpoint("bert"))), task=get_task(TASK))
    assert torch.equal(allowed.model.classifier.weight, original.model.classifier.weight)


def test_sentence_transformers_pooling(checkpoint: Checkpoints, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint("bert"), folder)
    edit_config(folder, architectures=["BertModel"])
    plain = load_checkpoint(ModelRef(str(folder)), task=get_task("feature-extraction"))
    assert (plain.pooling, plain.normalize, plain.labels) == ("mean", False, ())
    (folder / "modules.json").write_text('[{"type": "Pooling"}, {"type": "sentence_transformers.models.Normalize"}]')
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    found = load_checkpoint(ModelRef(str(folder)), task=get_task("feature-extraction"))
    assert (found.pooling, found.normalize) == ("cls", True)
