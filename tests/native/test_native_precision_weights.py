"""What passes leave in matrices lies in the program as it is, where a form can hold it; the rest is rounded once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from encoder_cases import wrapped
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.native.program import Linear as Product
from hasten.native.tensors import Bf16, Floats, Int4, Int5, Int8
from hasten.passes.calibration import Calibration
from hasten.passes.fake_quant import round_weight
from hasten.passes.grid import GridSpec, fitted
from hasten.passes.half import rounded as in_16_bits
from hasten.passes.llm_int8 import in_int8 as with_outliers
from hasten.passes.matrices import encoder_matrices
from hasten.passes.rtn import RtnConfig, quantize_rtn
from hasten.runtimes.native_encoders import lowered
from hasten.runtimes.native_groups import codes_of, searched
from hasten.runtimes.native_weights import (
    in_groups,
    in_int8,
    on_grid,
    rounded,
    side_by_side,
    stored_table,
    values,
)


def matrix(rows: int = 24, columns: int = 200, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def on(spec: GridSpec, weight: torch.Tensor) -> torch.Tensor:
    return fitted(weight, spec).nearest(weight)


HELD = [
    *(GridSpec(bits, None) for bits in (2, 4, 5, 8)),
    *(GridSpec(bits, group) for bits in (2, 3, 4) for group in (32, 64, 128)),
    *(GridSpec(4, group, symmetric=False) for group in (32, 128, None)),
    *(GridSpec(5, group) for group in (32, 64, 128)),
]
NOT_HELD = [GridSpec(8, 64), GridSpec(6, 32), GridSpec(8, None, symmetric=False), GridSpec(6, 64, symmetric=False)]


@pytest.mark.parametrize("spec", HELD, ids=lambda s: s.label)
def test_a_grid_that_a_form_holds_keeps_every_number(spec: GridSpec) -> None:
    weight = on(spec, matrix())
    found = on_grid(weight)
    assert isinstance(found, Int8 if spec.group is None and spec.symmetric else Int5 if spec.bits == 5 else Int4)
    assert np.array_equal(values(found), weight.numpy())
    if isinstance(found, Int4):
        assert found.group == (spec.group or 128)
        assert (found.zeros is None) == spec.symmetric


@pytest.mark.parametrize("spec", NOT_HELD, ids=lambda s: s.label)
def test_a_grid_that_none_holds_is_rounded_as_any_matrix(spec: GridSpec) -> None:
    weight = on(spec, matrix())
    assert on_grid(weight) is None
    found = values(rounded(weight, precision="int8-dynamic", group=32))
    assert np.array_equal(found, values(in_int8(weight)))
    assert np.abs(found - weight.numpy()).max() <= float(weight.abs().max()) / 254 * 1.001


def test_outlier_columns_are_on_no_grid_here() -> None:
    outliers = torch.zeros(200, dtype=torch.bool)
    outliers[[3, 77]] = True
    assert on_grid(with_outliers(matrix(), outliers)) is None
    assert on_grid(matrix()) is None
    assert on_grid(torch.zeros(4, 64)) is None


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9), columns=st.integers(1, 300), group=st.sampled_from([32, 64, 128]), seed=st.integers(0, 99)
)
def test_rounding_is_that_of_training_on_the_grid(rows: int, columns: int, group: int, seed: int) -> None:
    """Int4's steps are rounded to fp16, which moves a weight by no more than 7 halves of a step's last digit, and what
    lies between two codes to either of them."""
    weight = matrix(rows, columns, seed=seed)
    assert np.array_equal(values(in_int8(weight)), round_weight(weight, bits=8).numpy())
    found, wanted = values(in_groups(weight, bits=4, group=group)), round_weight(weight, bits=4, group=group).numpy()
    step = float(weight.abs().max()) / 7
    assert np.abs(found - wanted).max() <= 1.01 * step
    assert np.mean(np.abs(found - wanted) > 8 * step * 2**-11) <= 0.02 + 1 / found.size
    assert np.abs(found - weight.numpy()).max() <= 0.51 * step


def test_what_was_trained_on_the_grid_is_not_moved_again() -> None:
    for bits, group in ((8, None), (4, 32)):
        weight = round_weight(matrix(), bits=bits, group=group)
        found = in_int8(weight) if bits == 8 else in_groups(weight, bits=4, group=32)
        assert np.allclose(values(found), weight.numpy(), rtol=2**-11)


def test_side_by_side_says_what_its_parts_say() -> None:
    weight = matrix()
    forms: list[list[Any]] = [
        [in_int8(weight), in_int8(weight * 3)],
        [in_groups(weight, bits=4, group=32), on_grid(on(GridSpec(4, 128, symmetric=False), weight))],
        [in_groups(weight, bits=4, group=64), searched(weight, bits=4, group=32)],
        [in_groups(weight, bits=5, group=64), searched(weight, bits=5, group=32)],
        [in_groups(weight, bits=4, group=64), in_groups(weight, bits=4, group=128)],
        [rounded(weight, precision="bf16", group=32)] * 2,
        [rounded(weight, precision="fp32", group=32)] * 2,
    ]
    for parts, form in zip(forms, (Int8, Int4, Int4, Int5, Int4, Bf16, Floats), strict=True):
        found = side_by_side(parts)
        assert type(found) is form
        assert np.array_equal(values(found), np.concatenate([values(part) for part in parts]))


def test_forms_that_no_matrix_holds_together() -> None:
    weight = matrix()
    zeros, offsets = on_grid(on(GridSpec(4, 64, symmetric=False), weight)), searched(weight, bits=4, group=32)
    for one in (in_int8(weight), zeros, searched(weight, bits=5, group=32)):
        assert one is not None
        assert side_by_side([one, offsets]) is None


def test_tables_take_the_room_that_their_numbers_need() -> None:
    weight = matrix(66, 32)
    assert isinstance(stored_table(weight, int8=False), Floats)
    short = stored_table(in_16_bits(weight, torch.bfloat16), int8=False)
    assert isinstance(short, Bf16)
    assert np.array_equal(values(short), in_16_bits(weight, torch.bfloat16).numpy())
    assert isinstance(stored_table(on(GridSpec(8), weight), int8=False), Int8)
    assert np.array_equal(values(stored_table(weight, int8=True)), values(in_int8(weight)))


@pytest.mark.parametrize(
    ("config", "precision", "forms"),
    [
        (RtnConfig(bits=4, group=32), "int8-dynamic", [Int8, Int8, Int8, Int4]),  # a row of 32 is one group
        (RtnConfig(bits=4, group=32, symmetric=False), "int8-dynamic", [Int4] * 4),
        (RtnConfig(bits=8, group=None), "int4", [Int8] * 4),
    ],
    ids=lambda x: x.label if isinstance(x, RtnConfig) else "",
)
def test_a_model_on_a_grid_runs_on_it_in_every_integer_precision(
    config: RtnConfig, precision: Any, forms: list[type]
) -> None:
    wrapper = quantize_rtn(wrapped("bert"), config, Calibration(rows=()))
    made = lowered(wrapper, precision=precision, group=32, embeddings=False)
    assert made.notes[1] == "24 of them keep the integers that they came with"
    products = [made.program.tensors[op.weight] for op in made.program.ops if isinstance(op, Product)]
    own = [matrix.linear.weight.detach().numpy() for matrix in encoder_matrices(wrapper, what="a test")]
    for layer in range(4):
        wanted = own[6 * layer :][:6]
        for held, weight, form in zip(
            products[4 * layer :], [np.concatenate(wanted[:3]), *wanted[3:]], forms, strict=False
        ):
            assert type(held) is form
            assert np.array_equal(values(held), weight)


@pytest.mark.parametrize(("bits", "form"), [(4, Int4), (5, Int5)])
def test_offsets_of_a_file_of_few_bits_are_kept(bits: Any, form: type) -> None:
    """As Q4_1 and Q5_1 of GGUF files say them: a step and the smallest weight of 32, both in fp16."""
    draw = np.random.default_rng(3)
    codes = draw.integers(0, 2**bits, (24, 4, 32)).astype(np.float32)
    codes[..., 0], codes[..., 1] = 0, 2**bits - 1
    steps = draw.uniform(0.01, 0.02, (24, 4, 1)).astype(np.float16).astype(np.float32)
    least = draw.uniform(-0.3, -0.1, (24, 4, 1)).astype(np.float16).astype(np.float32)
    weight = torch.from_numpy((codes * steps + least).reshape(24, 128))
    for found in (on_grid(weight), searched(weight, bits=bits, group=32)):
        assert isinstance(found, form)
        assert found.offsets is not None  # type: ignore[attr-defined]
        assert np.array_equal(values(found), weight.numpy())


@pytest.mark.parametrize(("bits", "form"), [(4, Int4), (5, Int5)])
def test_files_of_few_bits_around_zero_are_kept_with_one_middle(bits: int, form: type) -> None:
    """As Q4_0 and Q5_0 of GGUF files: the farthest weight of 32 has the lowest code, so half of the steps are negative
    and zeros have either sign."""
    draw, middle = np.random.default_rng(3), 2 ** (bits - 1)
    codes = draw.integers(-middle, middle, (24, 4, 32)).astype(np.float32)
    codes[..., 0], codes[..., 1] = -middle, 0
    steps = draw.choice([-1, 1], (24, 4, 1)) * draw.uniform(0.01, 0.02, (24, 4, 1))
    weight = torch.from_numpy((codes * steps.astype(np.float16).astype(np.float32)).reshape(24, 128))
    assert (np.signbit(weight.numpy()) & (weight.numpy() == 0)).any()
    found = on_grid(weight)
    assert isinstance(found, form)
    assert found.offsets is None  # type: ignore[attr-defined]
    assert getattr(found, "zeros", None) is None
    assert np.array_equal(values(found), weight.numpy())


def test_steps_of_more_than_16_bits_are_rounded_and_codes_kept() -> None:
    """As in Q4_K: a step is the product of an fp16 and a number of 6 bits, and so is the smallest weight."""
    draw = np.random.default_rng(3)
    codes = draw.integers(0, 16, (24, 8, 32)).astype(np.float32)
    codes[..., 0], codes[..., 1] = 0, 15
    both = draw.uniform(1e-3, 2e-3, 2).astype(np.float16).astype(np.float32)
    steps, least = (own * draw.integers(33, 64, (24, 8, 1)).astype(np.float32) for own in both)
    weight = torch.from_numpy((codes * steps - least).reshape(24, 256).astype(np.float32))
    found = on_grid(weight)
    assert isinstance(found, Int4)
    assert np.array_equal(codes_of(found), codes.reshape(24, 256))
    lost, lost_in_int8 = (np.abs(values(one) - weight.numpy()).max() for one in (found, in_int8(weight)))
    assert lost < 0.2 * lost_in_int8


@pytest.mark.parametrize("bits", [4, 5])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_steps_that_are_searched_lose_less(group: int, bits: Any) -> None:
    """Of rows with outliers, off zero, of zeros and of one number."""
    weight = matrix(40, 300)
    weight[:10, 5] = 20.0
    weight[10:20] += 1.5
    weight[20:22], weight[22:24] = 0.0, -0.3
    plain, found = in_groups(weight, bits=bits, group=group), searched(weight, bits=bits, group=group)
    losses = [np.square(values(one) - weight.numpy()).sum(axis=1) for one in (plain, found)]
    assert (losses[1] <= losses[0] + 1e-6).all()
    assert losses[1].sum() < 0.85 * losses[0].sum()
    assert found.offsets is not None
    assert np.array_equal(values(found)[20:22], np.zeros((2, 300)))


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_grid_is_found_again_by_the_search(symmetric: bool) -> None:
    weight = on(GridSpec(4, 32, symmetric=symmetric), matrix(40, 320))
    found = values(searched(weight, bits=4, group=32))
    assert (
        np.square(found - weight.numpy()).sum()
        < 0.01 * np.square(values(in_groups(weight, bits=4, group=32)) - weight.numpy()).sum() + 1e-6
    )


def test_steps_that_fp16_says_too_coarsely_are_no_grid_here() -> None:
    weight = on(GridSpec(4, 32), matrix()) * 2.0**-16
    assert on_grid(weight) is None
    table = stored_table(weight, int8=False)
    assert np.array_equal(values(table), weight.numpy())


@pytest.mark.parametrize("bits", [4, 5])
def test_a_short_last_group_is_found_again(bits: Any) -> None:
    draw = np.random.default_rng(5)
    codes = draw.integers(0, 2**bits, (24, 44)).astype(np.float32)
    codes[:, [0, 32]], codes[:, [1, 33]] = 0, 2**bits - 1
    weight = torch.from_numpy(codes * np.float32(0.015625) + np.float32(0.5))
    assert np.array_equal(values(searched(weight, bits=bits, group=32)), weight.numpy())


def test_queries_on_a_grid_beside_values_on_none_are_rounded_together() -> None:
    wrapper = quantize_rtn(wrapped("bert"), RtnConfig(bits=4, group=32, symmetric=False), Calibration(rows=()))
    own = [one.linear for one in encoder_matrices(wrapper, what="a test")]
    with torch.no_grad():
        own[2].weight.copy_(matrix(*own[2].weight.shape))
    first = next(
        op for op in lowered(wrapper, precision="int8-dynamic", group=32, embeddings=False).program.ops
        if isinstance(op, Product)
    )  # fmt: skip
    program = lowered(wrapper, precision="int8-dynamic", group=32, embeddings=False).program
    together = torch.cat([one.weight for one in own[:3]])
    assert np.array_equal(values(program.tensors[first.weight]), values(in_int8(together.detach())))
