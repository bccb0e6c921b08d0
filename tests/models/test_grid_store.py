"""Matrices on grids come back bit for bit in as few bits as they need, and parts that lie are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.models import grid_store
from hasten.models.bit_packing import as_integers
from hasten.models.compact_store import packed, unpacked
from hasten.records import InputError

Parts = dict[str, torch.Tensor]


def identical(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(as_integers(a), as_integers(b))


def on_grid(rows: int, columns: int, *, bits: int, group: int | None, form: str, seed: int = 0) -> torch.Tensor:
    """Random weights, computed here and not by the store; every whole group reaches both ends of its codes."""
    rng = np.random.default_rng([rows, columns, bits, seed])
    size = group or columns
    count = -(-columns // size)
    scales = rng.uniform(1e-3, 2e-2, (rows, count, 1)).astype(np.float16).astype(np.float32)
    most = 2**bits - 1
    codes = rng.integers(0, most, (rows, count, size), endpoint=True).astype(np.float32)
    codes[..., 0] = 0
    codes[..., size // 2] = most
    if form == "symmetric":
        found = np.clip(codes - 2 ** (bits - 1), -(2 ** (bits - 1)) + 1, None) * scales
    elif form == "zeros":
        found = (codes - rng.integers(0, most, (rows, count, 1), endpoint=True)) * scales
    else:
        begin = (-scales * most * rng.uniform(0.3, 0.7, scales.shape)).astype(np.float16)
        found = codes * scales + begin.astype(np.float32)
    return torch.from_numpy(found.reshape(rows, -1)[:, :columns].astype(np.float32) + 0.0)


def pack(weight: torch.Tensor) -> Parts:
    found = grid_store.pack(weight)
    assert found is not None
    return found


def stored_bits(parts: Parts, weight: torch.Tensor) -> float:
    spent = sum(part.numel() * part.element_size() for name, part in parts.items() if name != "layout")
    return 8 * spent / weight.numel()


@settings(deadline=None)
@given(
    rows=st.integers(1, 6), columns=st.integers(1, 140), bits=st.integers(1, 8), seed=st.integers(0, 9),
    group=st.sampled_from([None, 32, 64, 128]), form=st.sampled_from(["symmetric", "zeros", "offsets"]),
)  # fmt: skip
def test_grids_come_back(rows: int, columns: int, bits: int, seed: int, group: int | None, form: str) -> None:
    weight = on_grid(rows, columns, bits=bits, group=group, form=form, seed=seed)
    parts = grid_store.pack(weight)
    if rows * columns >= 200 and bits > 1:
        assert parts is not None
    if parts is not None:
        assert identical(grid_store.unpack(parts), weight)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [None, 32, 64, 128])
@pytest.mark.parametrize(("form", "more"), [("symmetric", 0), ("zeros", None), ("offsets", 16)])
def test_bytes_are_those_of_codes_and_scales(bits: int, group: int | None, form: str, more: int | None) -> None:
    weight = on_grid(40, 384, bits=bits, group=group, form=form)
    parts = pack(weight)
    size = group or 384
    assert parts["layout"].tolist() == [40, 384, bits, size]
    assert parts["scales"].dtype == torch.float16
    assert set(parts) == {"layout", "codes", "scales"} | ({form} if form != "symmetric" else set())
    assert stored_bits(parts, weight) == pytest.approx(bits + (16 + (bits if more is None else more)) / size, abs=1e-2)


def test_a_last_group_that_is_shorter() -> None:
    weight = on_grid(30, 100, bits=4, group=64, form="symmetric")
    assert pack(weight)["layout"].tolist() == [30, 100, 4, 64]
    assert identical(grid_store.unpack(pack(weight)), weight)


def test_columns_beside_the_codes_are_found_and_kept() -> None:
    weight = on_grid(64, 96, bits=8, group=None, form="symmetric")
    away = torch.tensor([0, 17, 18, 40, 95])
    weight[:, away] = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)).half().float()
    parts = pack(weight)
    assert parts["columns"].tolist() == away.tolist()
    assert parts["layout"].tolist() == [64, 96, 8, 96]
    assert identical(grid_store.unpack(parts), weight)
    weight[0, 17] = 0.1  # no fp16 number
    assert grid_store.pack(weight) is None


def test_a_third_of_the_columns_may_lie_beside() -> None:
    weight = on_grid(64, 384, bits=8, group=None, form="symmetric")
    away = torch.from_numpy(np.random.default_rng(0).permutation(384)[:128].copy()).sort().values
    weight[:, away] = random(64, 128).half().float()
    assert pack(weight)["columns"].tolist() == away.tolist()


def test_codes_with_a_factor_in_common_do_not_cost_fp16() -> None:
    weight = on_grid(8, 64, bits=4, group=32, form="symmetric")
    scale = torch.tensor(0.00701).half().float()
    weight[3, 32:] = torch.tensor([0.0, 3.0, -3.0, 6.0]).repeat(8) * scale
    parts = pack(weight)
    assert parts["scales"].dtype == torch.float16
    assert identical(grid_store.unpack(parts), weight)


def test_scales_below_fp16_are_fp32() -> None:
    weight = on_grid(8, 64, bits=4, group=32, form="symmetric") * 2.0**-40
    parts = pack(weight)
    assert parts["scales"].dtype == torch.float32
    assert identical(grid_store.unpack(parts), weight)


def test_rows_of_zeros_and_single_weights_lie_on_every_grid() -> None:
    weight = on_grid(20, 64, bits=4, group=32, form="symmetric")
    weight[::2] = 0.0
    weight[4, 7] = 0.5
    assert identical(grid_store.unpack(pack(weight)), weight)


def test_a_grid_is_seen_past_the_first_rows_of_another() -> None:
    """What fits in a sample need not fit everywhere."""
    weight = on_grid(64, 64, bits=4, group=32, form="symmetric")
    weight[::4] = on_grid(16, 64, bits=4, group=None, form="symmetric")
    assert pack(weight)["layout"].tolist() == [64, 64, 4, 32]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


NO_GRIDS: dict[str, Callable[[], torch.Tensor]] = {
    "ordinary": lambda: random(32, 64),
    "bf16": lambda: random(32, 64).bfloat16().float(),
    "fp16": lambda: random(32, 64).half(),
    "few values": lambda: random(7)[torch.randint(7, (32, 64), generator=torch.Generator().manual_seed(0))],
    "a vector": lambda: on_grid(1, 64, bits=4, group=32, form="symmetric")[0],
    "zeros": lambda: torch.zeros(32, 64),
    "nothing": lambda: torch.zeros(0, 64),
    "hardly anything": lambda: random(64, 64) * (torch.arange(64 * 64).view(64, 64) % 61 == 0),
    "no numbers": lambda: on_grid(32, 64, bits=4, group=32, form="zeros").index_fill(0, torch.tensor([3]), torch.nan),
    "infinite": lambda: on_grid(32, 64, bits=4, group=32, form="zeros").index_fill(0, torch.tensor([3]), torch.inf),
    "signed zeros": lambda: on_grid(32, 64, bits=4, group=32, form="symmetric").index_fill(1, torch.tensor([3]), -0.0),
    "one more digit": lambda: torch.nextafter(on_grid(32, 64, bits=4, group=32, form="zeros"), torch.tensor(9.0)),
    "two columns": lambda: random(64, 1),
}


@pytest.mark.parametrize("name", NO_GRIDS)
def test_other_matrices_are_left_alone(name: str) -> None:
    assert grid_store.pack(NO_GRIDS[name]()) is None


def test_the_same_matrix_always_gives_the_same_parts() -> None:
    weight = on_grid(40, 96, bits=3, group=32, form="offsets")
    first, second = pack(weight), pack(grid_store.unpack(pack(weight)))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


# --------------------------------------------------------------------------- files that lie


def plain() -> Parts:
    return pack(on_grid(6, 70, bits=4, group=32, form="symmetric"))


def with_zeros() -> Parts:
    return pack(on_grid(6, 70, bits=4, group=32, form="zeros"))


def with_offsets() -> Parts:
    return pack(on_grid(6, 70, bits=4, group=32, form="offsets"))


def beside() -> Parts:
    weight = on_grid(20, 48, bits=8, group=None, form="symmetric")
    weight[:, [3, 30]] = random(20, 2).half().float()
    return pack(weight)


LIES: list[tuple[Callable[[], Parts], dict[str, Any]]] = [
    (plain, {"layout": torch.tensor([6, 70, 4])}),
    (plain, {"layout": torch.tensor([6, 70, 9, 32])}),
    (plain, {"layout": torch.tensor([6, 70, 0, 32])}),
    (plain, {"layout": torch.tensor([6, 70, 4, 0])}),
    (plain, {"layout": torch.tensor([6, 70, 4, 71])}),
    (plain, {"layout": torch.tensor([6, 70, 4, 16])}),
    (plain, {"layout": torch.tensor([7, 70, 4, 32])}),
    (plain, {"layout": torch.tensor([6, 70, 5, 32])}),
    (plain, {"layout": torch.tensor([0, 2**50, 4, 1])}),
    (plain, {"layout": torch.tensor([2**30, 2**30, 4, 32])}),
    (plain, {"layout": torch.tensor([-6, -70, 4, 32])}),
    (plain, {"codes": torch.zeros(210)}),
    (plain, {"codes": torch.zeros(209, dtype=torch.uint8)}),
    (plain, {"scales": torch.ones(18, dtype=torch.float64)}),
    (plain, {"scales": torch.ones(17)}),
    (plain, {"scales": torch.ones(6, 3)}),
    (plain, {"scales": torch.full((18,), torch.nan)}),
    (plain, {"scales": torch.full((18,), torch.inf).half()}),
    (plain, {"scales": None}),
    (with_zeros, {"zeros": torch.zeros(8, dtype=torch.uint8)}),
    (with_zeros, {"zeros": torch.zeros(18)}),
    (with_zeros, {"offsets": torch.zeros(18)}),
    (with_offsets, {"offsets": torch.zeros(17)}),
    (with_offsets, {"offsets": torch.full((18,), -torch.inf)}),
    (with_offsets, {"offsets": torch.zeros(18, dtype=torch.uint8)}),
    (beside, {"columns": None}),
    (beside, {"values": None}),
    (beside, {"columns": torch.tensor([3, 30])}),
    (beside, {"columns": torch.tensor([30, 3], dtype=torch.int32)}),
    (beside, {"columns": torch.tensor([3, 3], dtype=torch.int32)}),
    (beside, {"columns": torch.tensor([-1, 3], dtype=torch.int32)}),
    (beside, {"columns": torch.tensor([3, 48], dtype=torch.int32)}),
    (beside, {"columns": torch.tensor([3], dtype=torch.int32)}),
    (beside, {"columns": torch.tensor([], dtype=torch.int32), "values": torch.zeros(20, 0).half()}),
    (beside, {"columns": torch.zeros(1, 2, dtype=torch.int32)}),
    (beside, {"values": torch.zeros(20, 2)}),
    (beside, {"values": torch.zeros(2, 20).half()}),
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: f"{lie[0].__name__}-{next(iter(lie[1]))}")
def test_parts_that_do_not_agree_are_refused(lie: tuple[Callable[[], Parts], dict[str, Any]]) -> None:
    make, changes = lie
    whole = {f"hasten.grid.{part}:w": tensor for part, tensor in make().items()}
    assert set(unpacked(whole, where="a file")) == {"w"}
    parts = {part: tensor for part, tensor in {**make(), **changes}.items() if tensor is not None}
    with pytest.raises(InputError, match=r"a file cannot be put together: w"):
        unpacked({f"hasten.grid.{part}:w": tensor for part, tensor in parts.items()}, where="a file")


def test_a_state_dict_holds_grids_beside_the_rest() -> None:
    weights = {"w": on_grid(32, 64, bits=4, group=32, form="symmetric"), "plain": random(32, 64), "bias": random(32)}
    stored = packed(weights)
    assert set(stored) == {"plain", "bias", *(f"hasten.grid.{part}:w" for part in ("layout", "codes", "scales"))}
    found = unpacked(stored, where="a file")
    assert all(identical(found[name], weights[name]) for name in weights)
