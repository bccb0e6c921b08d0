"""What hasten exports opens elsewhere and says the same; what cannot be said is refused, and nothing is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interchange_models import logits, saved, tiny
from safetensors.torch import load_file

import hasten
from hasten.models.gguf import load_gguf
from hasten.models.load import load_checkpoint
from hasten.models.reshape import prepared, save_model
from hasten.passes.grid import GridSpec, fitted
from hasten.passes.hqq import half_quadratic
from hasten.pipeline.export import Exported, export
from hasten.records import InputError, ModelRef
from hasten.tasks import get_task


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def rounded(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor], family: str = "llama") -> Any:
    """A checkpoint as passes leave it, saved as hasten does; the model in it."""
    model = prepared(tiny(family))
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and "layers" in name:
                module.weight.copy_(change(name, module.weight))
    folder.mkdir()
    saved_words = saved(tiny("gpt2"), folder.with_name("words"))
    save_model(model, folder)
    for path in saved_words.glob("token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return model


def on(spec: GridSpec) -> Callable[[str, torch.Tensor], torch.Tensor]:
    return lambda _, weight: fitted(weight, spec).nearest(weight)


def mixed(name: str, weight: torch.Tensor) -> torch.Tensor:
    """Two schemes, and a matrix on no grid."""
    if name.endswith("q_proj"):
        return weight
    return on(GridSpec(8) if name.endswith("down_proj") else GridSpec(4, 32))(name, weight)


def opened(folder: Path) -> Any:
    return load_checkpoint(ModelRef(str(folder)), task=get_task("language-modeling")).model


GRIDS: dict[str, Callable[[str, torch.Tensor], torch.Tensor]] = {
    "4 bits": on(GridSpec(4, 32)),
    "3 bits": on(GridSpec(3)),
    "8 bits": on(GridSpec(8)),
    "4 bits with zeros": on(GridSpec(4, 32, symmetric=False)),
    "mixed": mixed,
}


@pytest.mark.parametrize("name", GRIDS)
def test_a_compressed_checkpoint_is_the_same_model(name: str, tmp_path: Path) -> None:
    model = rounded(tmp_path / "model", GRIDS[name])
    made = export(tmp_path / "model", to="compressed-tensors", out=tmp_path / "out")
    found = opened(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), model.parameters(), strict=True))
    assert torch.equal(logits(found), logits(model))
    assert any("matrices in" in note for note in made.notes)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight" in stored
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert "lm_head" in config["ignore"]
    if name == "mixed":
        targets = {t for group in config["config_groups"].values() for t in group["targets"]}
        assert "model.layers.0.mlp.down_proj" in targets
        assert "model.layers.0.self_attn.q_proj" in config["ignore"]


def test_packed_codes_are_where_the_format_says(tmp_path: Path) -> None:
    """Element k of a row in bits 4 k to 4 k + 3 of the row's words, eight to a word, counted from -8."""
    model = rounded(tmp_path / "model", GRIDS["4 bits"])
    export(tmp_path / "model", to="compressed-tensors", out=tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    own = "model.layers.0.mlp.up_proj"
    words, scales = stored[f"{own}.weight_packed"].numpy(), stored[f"{own}.weight_scale"].numpy()
    assert words.shape == (48, 4)
    assert scales.shape == (48, 1)
    for row in (0, 17, 47):
        found = [((int(words[row, k // 8]) >> (4 * (k % 8))) & 15) - 8 for k in range(32)]
        expected = model.get_submodule(own).weight[row].detach().numpy()
        assert np.array_equal(np.float32(found) * scales[row], expected)


@pytest.mark.parametrize("name", GRIDS)
def test_transformers_opens_it_with_compressed_tensors(name: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="no compressed-tensors")
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    model = rounded(tmp_path / "model", GRIDS[name])
    export(tmp_path / "model", to="compressed-tensors", out=tmp_path / "out")
    # transformers 5.23 makes no room for packed zero points unless it unpacks at once.
    at_once = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if "zeros" in name else {}
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, **at_once).eval()
    assert torch.allclose(logits(found), logits(model), atol=1e-5)


@pytest.mark.parametrize("name", GRIDS)
def test_compressed_tensors_own_code_unpacks_the_same_weights(name: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="no compressed-tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    model = rounded(tmp_path / "model", GRIDS[name])
    export(tmp_path / "model", to="compressed-tensors", out=tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    compressor = BaseCompressor.get_value_from_registry(config["format"])
    packed = [key.removesuffix(".weight_packed") for key in stored if key.endswith(".weight_packed")]
    assert packed
    for own in packed:
        groups = [g for g in config["config_groups"].values() if own in g["targets"] or g["targets"] == ["Linear"]]
        parts = {key.rpartition(".")[2]: tensor for key, tensor in stored.items() if key.startswith(f"{own}.weight")}
        found = compressor.decompress(parts, QuantizationScheme.model_validate(groups[0]))
        assert torch.equal(found["weight"], model.get_submodule(own).weight), own


REFUSED: dict[str, tuple[str, Any, dict[str, str], str]] = {
    "no grid": ("llama", lambda _, w: w, {"to": "compressed-tensors"}, "(?s)no matrix of this model.*--recipe"),
    "offsets": (
        "llama", lambda _, w: half_quadratic(w, bits=4, group=32, rounds=2), {"to": "compressed-tensors"}, "no matrix",
    ),
    "the other way round": ("gpt2", on(GridSpec(4)), {"to": "compressed-tensors"}, "Conv1D"),
    "precision": ("llama", on(GridSpec(4)), {"to": "hf", "precision": "q4_0"}, "--precision q4_0"),
    "target": ("llama", on(GridSpec(4)), {"to": "onnx"}, "--to onnx"),
    "family": ("mixtral", on(GridSpec(4)), {"to": "gguf"}, "is not written as GGUF"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_leave_nothing(name: str, tmp_path: Path) -> None:
    family, change, options, message = REFUSED[name]
    rounded(tmp_path / "model", change, family)
    (tmp_path / "results").mkdir()
    with pytest.raises(InputError, match=message):
        export(tmp_path / "model", out=tmp_path / "results" / "out", **options)
    assert not list((tmp_path / "results").iterdir())


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_a_plain_folder_is_one_of_transformers(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = rounded(tmp_path / "model", on(GridSpec(4, 32)), family)
    export(tmp_path / "model", to="hf", out=tmp_path / "out")
    found, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"))
    assert torch.allclose(logits(found.eval()), logits(model), atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("the the").input_ids
    assert "hasten" not in (tmp_path / "out" / "config.json").read_text()


def test_halves_are_half_as_large(tmp_path: Path) -> None:
    folder = saved(tiny("llama"), tmp_path / "model")
    made = [export(folder, to="hf", out=tmp_path / kind, precision=kind) for kind in ("f32", "bf16")]
    sizes = [(tmp_path / kind / "model.safetensors").stat().st_size for kind in ("f32", "bf16")]
    assert sizes[1] < 0.6 * sizes[0]
    assert made[1].bytes < made[0].bytes


def test_a_model_that_was_cut_unevenly_has_no_other_form(tmp_path: Path) -> None:
    model = prepared(tiny("llama"))
    mlp = model.model.layers[0].mlp
    for name, size in (("gate_proj", (40, 32)), ("up_proj", (40, 32)), ("down_proj", (32, 40))):
        setattr(mlp, name, torch.nn.Linear(size[1], size[0], bias=False))
    saved(tiny("llama"), tmp_path / "model")
    save_model(model, tmp_path / "model")
    for to in ("gguf", "hf"):
        with pytest.raises(InputError, match="other sizes than its config says"):
            export(tmp_path / "model", to=to, out=tmp_path / "out")


def test_gguf_and_back_from_the_command_line(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="no gguf package")
    model = rounded(tmp_path / "model", on(GridSpec(4, 32)))
    out = tmp_path / "made" / "model.gguf"
    command = [sys.executable, "-c", "from hasten.cli import main; main()", "export", str(tmp_path / "model")]
    command += ["--to", "gguf", "--out", str(out), "--precision", "q4_0", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "libraries talk of themselves"
    said = json.loads(done.stdout)
    assert said["bytes"] == out.stat().st_size
    assert [path.name for path in out.parent.iterdir()] == ["model.gguf"]
    found, _ = load_gguf(out)
    own, read = (m.model.layers[1].mlp.up_proj.weight for m in (model, found))
    assert torch.equal(own, read)  # its grid is one of q4_0
    again = export(out, to="hf", out=tmp_path / "back")  # a GGUF file is a source, too
    assert isinstance(again, Exported)
    assert torch.allclose(logits(opened(tmp_path / "back")), logits(found), atol=1e-5)
    taken = subprocess.run(command, capture_output=True, text=True, check=False)
    assert taken.returncode == 2
    assert "is there already" in taken.stderr


def test_bundles_with_weights_and_without(tmp_path: Path) -> None:
    folder = saved(tiny("llama"), tmp_path / "model")
    bundle = written_bundle(folder, tmp_path / "bundle")
    made = hasten.export(bundle, to="hf", out=tmp_path / "out")
    assert torch.allclose(logits(opened(tmp_path / "out")), logits(opened(folder)), atol=1e-6)
    assert made.path == str(tmp_path / "out")
    bare = written_bundle(folder, tmp_path / "bare", runtime="onnxruntime")
    with pytest.raises(InputError, match="holds what onnxruntime runs"):
        hasten.export(bare, to="hf", out=tmp_path / "more")
    (bundle / "model" / "model.safetensors").write_bytes(b"another")
    with pytest.raises(InputError, match="manifest says"):
        hasten.export(bundle, to="hf", out=tmp_path / "more")


def written_bundle(checkpoint: Path, target: Path, *, runtime: str = "torch") -> Path:
    """The checkpoint as a bundle of language modeling, without the search that usually makes one."""
    from bundles_for_tests import language_bundle

    return language_bundle(checkpoint, target, runtime=runtime)
