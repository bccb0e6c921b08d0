"""Fewer coordinates for a decoder's hidden states, after a rotation that puts what matters into those that stay.

Takes a wrapper and the share of the width to keep, gives the wrapper with a smaller hidden size: every matrix gets
thinner on the side of the states, the word tables too. Heads and neurons stay as many as they are. No training; a
forward pass a row and one decomposition. With ``keep`` 1 the model is only rotated and says what it said.

Source: Ashkboos et al. 2024, "SliceGPT". Norms' factors go into the matrices behind them, a LayerNorm's mean and shift
too, and then a rotation of the states changes nothing; the axes are the principal ones of the normalized states. The
paper takes other axes in front of every sublayer and multiplies the residual by the matrix between them. Here one
rotation serves all sublayers, from the mean of their second moments: no matrix is added to the residual, what comes out
is a plain checkpoint of the family, and somewhat more is lost at the same width.

Legend: B rows, L tokens, H hidden size, K new hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hasten.models import KINDS, adapter_for
from hasten.models.adapter import Adapter
from hasten.models.rotation import mean_free, rotate, stream_of
from hasten.passes.calibration import Batch, Calibration, Progress, real
from hasten.passes.family import adapter_of
from hasten.passes.hooks import hooked
from hasten.passes.settings import as_declared
from hasten.passes.units import batches_of, share
from hasten.records import InputError, Rejected


@dataclass(frozen=True, slots=True)
class SliceConfig:
    """Keep the share ``keep`` of the hidden size, a multiple of ``round_to`` and of what the family's config asks for
    (its heads, or their width). 1 rotates and removes nothing."""

    kind: ClassVar[str] = "slice"
    keep: float = 0.75
    round_to: int = 8
    rows: int = 256

    def __post_init__(self) -> None:
        as_declared(self)
        if not 0 < self.keep <= 1 or self.round_to < 1 or self.rows < 1:
            raise InputError(
                f"keep={self.keep}, round_to={self.round_to}, rows={self.rows}",
                expected="keep above 0 and up to 1, a multiple and a number of rows of at least 1",
                remedy="correct the recipe",
            )

    @property
    def label(self) -> str:
        return f"sliced to {share(self.keep)} of the width"


@torch.no_grad()
def slice_states(model: Any, config: SliceConfig, calibration: Calibration) -> Any:
    """The wrapper with thinner states.

    Raises Rejected for a family that is built otherwise (it names those that are not), factorised layers, a model that
    gives out its states, and when there is nothing to remove.
    """
    adapter = _adapter(model)
    stream = stream_of(model.hf, adapter, kind=config.kind)
    hidden = int(model.hf.config.hidden_size)
    head_dim = adapter.attention(adapter.layers(model.hf)[0]).head_dim
    width = width_of(model.hf.config, config, head_dim=head_dim)
    norms = [norm for norm, _ in stream.norms]
    moment = state_moment(model, norms, batches_of(calibration, rows=config.rows), centred=stream.centred)
    basis = principal(moment, width - int(stream.centred), centred=stream.centred)
    kept = float(((basis.T @ moment) * basis.T).sum() / moment.trace())
    rotate(model.hf, adapter, stream, basis, head_dim=head_dim)
    said = f"slice: {width} of {hidden} coordinates hold {100 * kept:.1f}% of what the normalized states are made of"
    calibration.listen(Progress(said, 1, 1, note=True))
    return model


def sliceable(adapter: Adapter) -> bool:
    """One stack of a decoder whose every reader stands behind a norm, and whose width may change."""
    free = adapter.rigid is None and adapter.norm_first and not adapter.sandwiched
    return free and KINDS[adapter.family] == "decoder"


def _adapter(model: Any) -> Adapter:
    adapter = adapter_of(model, what="slicing")
    if not sliceable(adapter):
        decoders = [family for family, kind in KINDS.items() if kind == "decoder"]
        able = [f for f in decoders if (found := adapter_for(f)) is not None and sliceable(found)]
        why = adapter.rigid or "its norms do not stand alone in front of everything that reads the states"
        raise Rejected(
            "family", f"slicing cannot handle the family {adapter.family} ({why}); it can handle {', '.join(able)}"
        )
    return adapter


def width_of(model_config: Any, config: SliceConfig, *, head_dim: int) -> int:
    """K. Raises Rejected where less than all of H rounds to all of it."""
    hidden = int(model_config.hidden_size)
    if config.keep == 1:
        return hidden
    free = getattr(model_config, "head_dim", None) is not None
    multiple = math.lcm(int(model_config.num_attention_heads) if free else head_dim, config.round_to)
    width = max(1, round(config.keep * hidden / multiple)) * multiple
    if width >= hidden:
        raise Rejected(
            config.kind, f"{share(config.keep)} of {hidden} coordinates in multiples of {multiple} leaves nothing to "
            "remove",
        )  # fmt: skip
    return width


def state_moment(model: Any, norms: Sequence[nn.Module], batches: Sequence[Batch], *, centred: bool) -> Tensor:
    """Sum of x^T x [H, H] in float64 over real tokens and all of ``norms``, of their inputs x as they normalize them:
    every token counts the same at every norm, however large it is there."""
    current: list[Batch] = [{}]
    sums: list[Tensor] = []

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        states = inputs[0][real(current[0], inputs[0])].double()
        states = states - states.mean(dim=-1, keepdim=True) if centred else states
        states = states / states.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-30)
        found = states.T @ states
        sums[:] = [sums[0] + found] if sums else [found]

    with hooked(norm.register_forward_pre_hook(hook) for norm in norms):
        for batch in batches:
            current[0] = batch
            model(**batch)
    if not bool(torch.isfinite(sums[0]).all()):
        raise Rejected("slice", "the states are not numbers; the model overflows on the calibration rows")
    return sums[0]


def principal(moment: Tensor, count: int, *, centred: bool) -> Tensor:
    """The ``count`` orthonormal directions [H, count] that hold most of ``moment`` [H, H]; of ``centred`` states none
    of them leads out of the states whose mean is zero."""
    within = mean_free(len(moment)) if centred else torch.eye(len(moment), dtype=moment.dtype)
    vectors = torch.linalg.eigh(within @ moment @ within.T).eigenvectors.flip(1)
    found: Tensor = within.T @ vectors[:, :count]
    return found
