"""Compact weights come back bit for bit, are really smaller, and files that lie about their sizes are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hasten.models import adapter_for, codebook_store, half_store, sparse_store
from hasten.models.bit_packing import as_integers, pack_bits, packed_bytes, unpack_bits
from hasten.models.compact_store import load_compact, packed, save_compact, unpacked
from hasten.models.inspect import OWN_WEIGHTS
from hasten.models.load import load_checkpoint
from hasten.models.reshape import COMPACT, MARK, open_model, save_model
from hasten.models.surgery import keep_neurons
from hasten.records import InputError, ModelRef
from hasten.tasks import get_task

Parts = dict[str, torch.Tensor]
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def identical(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Down to the sign of zero and the payload of NaN."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(as_integers(a), as_integers(b))


@given(bits=st.integers(1, 8), count=st.integers(0, 70), seed=st.integers(0, 9))
def test_codes_survive_packing(bits: int, count: int, seed: int) -> None:
    codes = torch.from_numpy(np.random.default_rng(seed).integers(0, 2**bits, count).astype(np.uint8))
    stream = pack_bits(codes, bits=bits)
    assert len(stream) == packed_bytes(count, bits=bits) == -(-count * bits // 8)
    number = int.from_bytes(stream.numpy().tobytes(), "little")
    assert [(number >> (k * bits)) % 2**bits for k in range(count)] == codes.tolist()
    assert torch.equal(unpack_bits(stream, bits=bits, count=count), codes)


def test_codes_survive_packing_across_chunks() -> None:
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, 8, (1 << 20) + 13).astype(np.uint8))
    assert torch.equal(unpack_bits(pack_bits(codes, bits=3), bits=3, count=len(codes)), codes)


@settings(deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 19), share=st.floats(0, 1), dtype=st.sampled_from(DTYPES))
def test_sparse_matrices_come_back(rows: int, columns: int, share: float, dtype: torch.dtype) -> None:
    rng = np.random.default_rng([rows, columns])
    weight = torch.from_numpy(rng.normal(size=(rows, columns)) * (rng.random((rows, columns)) < share)).to(dtype)
    weight[0, 0] = float("nan")
    weight[-1, -1] = -0.0
    parts = sparse_store.pack(weight)
    zeros = int((as_integers(weight) == 0).sum())
    assert (parts is None) == (weight.numel() - zeros > 0.7 * weight.numel())
    if parts is not None:
        assert identical(sparse_store.unpack(parts), weight)
        assert len(parts["values"]) == weight.numel() - zeros


@settings(deadline=None)
@given(
    rows=st.integers(8, 24), values=st.integers(1, 40), odd=st.integers(0, 9), dtype=st.sampled_from(DTYPES)
)  # fmt: skip
def test_matrices_of_few_values_come_back(rows: int, values: int, odd: int, dtype: torch.dtype) -> None:
    rng = np.random.default_rng([rows, values, odd])
    weight = torch.from_numpy(rng.choice(rng.normal(size=values), (rows, 60))).to(dtype)
    weight.view(-1)[torch.from_numpy(rng.choice(rows * 60, odd, replace=False))] = torch.randn(odd).to(dtype)
    weight[0, :2] = torch.tensor([-0.0, float("nan")])
    parts = codebook_store.pack(weight)
    if values <= 8:
        assert parts is not None
    if parts is not None:
        assert identical(codebook_store.unpack(parts), weight)
        stored = sum(part.numel() * part.element_size() for name, part in parts.items() if name != "layout")
        assert stored <= 0.7 * weight.numel() * weight.element_size()


@settings(deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 19), kind=st.sampled_from([torch.bfloat16, torch.float16]))
def test_matrices_that_fit_into_sixteen_bits_come_back(rows: int, columns: int, kind: torch.dtype) -> None:
    rng = np.random.default_rng([rows, columns])
    weight = torch.from_numpy(rng.normal(size=(rows, columns))).to(kind).float()
    weight[0, 0] = -0.0
    parts = half_store.pack(weight)
    assert parts is not None
    assert parts["half"].element_size() == 2
    assert identical(half_store.unpack(parts), weight)
    weight[-1, -1] = 1.0 + 2**-20  # more digits than either has
    assert half_store.pack(weight) is None


def half_parts() -> Parts:
    found = half_store.pack(torch.randn(6, 7, generator=torch.Generator().manual_seed(0)).bfloat16().float())
    assert found is not None
    return found


def test_ordinary_matrices_and_vectors_lie_as_they_are(tmp_path: Path) -> None:
    weights = {
        "full": torch.randn(32, 32), "vector": torch.zeros(64), "counts": torch.zeros(8, 8, dtype=torch.int64),
        "empty": torch.zeros(0, 4),
    }  # fmt: skip
    assert packed(weights).keys() == weights.keys()
    save_compact(weights, tmp_path / "w.safetensors")
    assert load_file(tmp_path / "w.safetensors").keys() == weights.keys()
    assert all(identical(found, weights[name]) for name, found in load_compact(tmp_path / "w.safetensors").items())


def sparse_parts() -> Parts:
    weight = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    found = sparse_store.pack(weight.masked_fill(weight < 0.3, 0.0))
    assert found is not None
    return found


def codebook_parts() -> Parts:
    weight = torch.randint(0, 4, (18, 11), generator=torch.Generator().manual_seed(0)).float()
    weight[3, 3:5] = torch.tensor([0.25, 0.125])  # two more values, too rare for codes of three bits to pay
    found = codebook_store.pack(weight)
    assert found is not None
    assert len(found["places"]) == 2
    return found


LIES: list[tuple[str, Callable[[], Parts], dict[str, Any]]] = [
    ("sparse", sparse_parts, {"layout": torch.tensor([6, 9])}),
    ("sparse", sparse_parts, {"layout": torch.tensor([2**40, 2**20])}),
    ("sparse", sparse_parts, {"layout": torch.tensor([-6, -7])}),
    ("sparse", sparse_parts, {"layout": torch.tensor([6.0, 7.0])}),
    ("sparse", sparse_parts, {"layout": torch.tensor([42])}),
    ("sparse", sparse_parts, {"mask": torch.full((6,), 255, dtype=torch.uint8)}),
    ("sparse", sparse_parts, {"mask": torch.zeros(6)}),
    ("sparse", sparse_parts, {"values": torch.randn(3)}),
    ("sparse", sparse_parts, {"values": None}),
    ("half", half_parts, {"half": torch.randn(6, 7)}),
    ("half", half_parts, {"half": torch.zeros(6, 7, dtype=torch.int16)}),
    ("codebook", codebook_parts, {"layout": torch.tensor([18, 11, 9])}),
    ("codebook", codebook_parts, {"layout": torch.tensor([18, 11, 0])}),
    ("codebook", codebook_parts, {"layout": torch.tensor([18, 12, 2])}),
    ("codebook", codebook_parts, {"book": torch.randn(1)}),
    ("codebook", codebook_parts, {"places": torch.tensor([5, 4000], dtype=torch.int32)}),
    ("codebook", codebook_parts, {"places": torch.tensor([-1, 4], dtype=torch.int32)}),
    ("codebook", codebook_parts, {"places": torch.tensor([4, 4], dtype=torch.int32)}),
    ("codebook", codebook_parts, {"exceptions": torch.randn(200)}),
    ("codebook", codebook_parts, {"exceptions": torch.randn(2).half()}),
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: f"{lie[0]}-{next(iter(lie[2]))}")
def test_parts_that_do_not_agree_are_refused(lie: tuple[str, Callable[[], Parts], dict[str, Any]]) -> None:
    kind, make, changes = lie
    whole = {f"hasten.{kind}.{part}:w": tensor for part, tensor in make().items()}
    assert set(unpacked(whole, where="a file")) == {"w"}
    parts = {part: tensor for part, tensor in {**make(), **changes}.items() if tensor is not None}
    if changes.get("places") is not None:
        parts["exceptions"] = torch.randn(len(parts["places"]))
    with pytest.raises(InputError, match=r"a file cannot be put together: w"):
        unpacked({f"hasten.{kind}.{part}:w": tensor for part, tensor in parts.items()}, where="a file")


def test_unknown_and_doubled_tensors_are_refused(tmp_path: Path) -> None:
    parts = {f"hasten.sparse.{part}:w": tensor for part, tensor in sparse_parts().items()}
    with pytest.raises(InputError, match="twice"):
        unpacked({**parts, "w": torch.ones(6, 7)}, where="a file")
    with pytest.raises(InputError, match="no known format"):
        unpacked({"hasten.magic.mask:w": torch.ones(3)}, where="a file")
    (tmp_path / "w.safetensors").write_bytes(b"not a file of weights")
    with pytest.raises(InputError):
        load_compact(tmp_path / "w.safetensors")


# --------------------------------------------------------------------------- whole models


def loaded(folder: Path) -> Any:
    return load_checkpoint(ModelRef(str(folder)), task=get_task("text-classification")).model


def logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([[4, 10, 11, 12, 5, 1], [4, 20, 21, 5, 1, 1]])
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=ids, attention_mask=(ids != 1).long()).logits
    return found


def matrices(model: Any) -> list[torch.Tensor]:
    return [p for name, p in model.named_parameters() if p.ndim == 2 and "layer." in name]


def thinned(model: Any) -> None:
    with torch.no_grad():
        for weight in matrices(model):
            weight.masked_fill_(weight.abs() < weight.abs().median(), 0.0)


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_a_sparse_model_is_smaller_on_disk_and_the_same(family: str, checkpoint: Any, tmp_path: Path) -> None:
    model = loaded(checkpoint(family))
    save_model(model, tmp_path / "dense")
    thinned(model)
    save_model(model, tmp_path / "sparse")
    saved = bytes_of(tmp_path / "dense") - bytes_of(tmp_path / "sparse")
    count = sum(weight.numel() for weight in matrices(model))
    # Half of 4 bytes less one bit a weight, less the names of the parts.
    assert count * 1.5 < saved < count * 1.875
    again = open_model(type(model), tmp_path / "sparse", attention="sdpa", dtype=torch.float32)
    assert getattr(again.config, COMPACT)
    assert torch.equal(logits(again), logits(model))


def test_a_reshaped_sparse_model_survives_and_loses_its_mark_when_dense(checkpoint: Any, tmp_path: Path) -> None:
    model = loaded(checkpoint("bert"))
    keep_neurons(adapter_for("bert").ffn(adapter_for("bert").layers(model)[1]), range(24))  # type: ignore[union-attr]
    thinned(model)
    save_model(model, tmp_path / "sparse")
    again = open_model(type(model), tmp_path / "sparse", attention="sdpa", dtype=torch.float32)
    assert getattr(again.config, COMPACT)
    assert getattr(again.config, MARK)
    assert torch.equal(logits(again), logits(model))
    with torch.no_grad():
        for weight in matrices(again):
            weight.normal_()
    save_model(again, tmp_path / "dense")
    dense = open_model(type(model), tmp_path / "dense", attention="sdpa", dtype=torch.float32)
    assert not hasattr(dense.config, COMPACT)
    assert torch.equal(logits(dense), logits(again))


def test_bf16_stays_compact(checkpoint: Any, tmp_path: Path) -> None:
    model = loaded(checkpoint("bert")).to(torch.bfloat16)
    thinned(model)
    save_model(model, tmp_path)
    assert any(name.startswith("hasten.sparse.mask:") for name in load_file(tmp_path / OWN_WEIGHTS))
    again = open_model(type(model), tmp_path, attention="sdpa", dtype=torch.bfloat16)
    assert torch.equal(logits(again), logits(model))


def test_a_compact_folder_with_a_part_gone_is_refused(checkpoint: Any, tmp_path: Path) -> None:
    model = loaded(checkpoint("bert"))
    thinned(model)
    save_model(model, tmp_path)
    stored = load_file(tmp_path / OWN_WEIGHTS)
    gone = next(name for name in stored if name.startswith("hasten.sparse.values:"))
    save_file({name: tensor for name, tensor in stored.items() if name != gone}, tmp_path / OWN_WEIGHTS)
    with pytest.raises(InputError, match="has no values"):
        open_model(type(model), tmp_path, attention="sdpa", dtype=torch.float32)
