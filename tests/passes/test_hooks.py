"""Hooks stand while somebody looks and no longer, whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from hasten.passes.hooks import catching, hooked


def standing(maps: nn.ModuleList) -> int:
    return sum(len(own._forward_hooks) + len(own._forward_pre_hooks) for own in maps)


def test_they_go_when_nobody_looks_any_more() -> None:
    maps, caught = nn.ModuleList(nn.Linear(3, 3) for _ in range(2)), dict[int, torch.Tensor]()
    before, after = torch.ones(1, 3, requires_grad=True), torch.zeros(1, 3)
    with hooked(
        hook
        for i, own in enumerate(maps)
        for hook in (
            own.register_forward_pre_hook(catching(caught, 2 * i)),
            own.register_forward_hook(catching(caught, 2 * i + 1)),
        )
    ):
        assert standing(maps) == 4
        maps[0](before)
        maps[1](after)
    assert standing(maps) == 0
    assert [caught[i] is not before and torch.equal(caught[i], before) for i in (0, 1)] == [True, True]
    assert not any(tensor.requires_grad for tensor in caught.values())
    maps[1](before)
    assert torch.equal(caught[2], after)
    assert torch.equal(caught[3], after)


def test_an_error_within_removes_them() -> None:
    maps = nn.ModuleList([nn.Linear(3, 3)])
    with pytest.raises(RuntimeError), hooked(own.register_forward_pre_hook(catching({}, 0)) for own in maps):
        maps[0](torch.ones(1, 4))
    assert standing(maps) == 0


def test_one_that_cannot_be_registered_takes_those_before_it_along() -> None:
    maps = nn.ModuleList([nn.Linear(3, 3)])

    def handles() -> Iterator[RemovableHandle]:
        yield maps[0].register_forward_pre_hook(catching({}, 0))
        raise ValueError("the next one")

    with pytest.raises(ValueError, match="the next one"), hooked(handles()):
        raise AssertionError("nothing runs without all of them")
    assert standing(maps) == 0
