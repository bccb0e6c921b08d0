"""From a module to an ExecuTorch program whose products XNNPACK computes.

Takes the task's wrapper, gives the program's bytes and the facts that stand beside it. Lengths are free up to a bound:
the model's positions, or what the calibration rows need where the model has more.

Operators that XNNPACK does not know (norms, embeddings, everything over integers) stay with ExecuTorch's own kernels;
how many, is part of the facts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hasten.models.precision import kept_fp32
from hasten.records import Rejected
from hasten.runtimes.executorch_attention import register_one_row
from hasten.runtimes.executorch_quantize import Counts, quantized
from hasten.runtimes.onnx_graph import attention, quiet, two_row_example
from hasten.runtimes.runtime import Arrays, is_tokens

if TYPE_CHECKING:
    from hasten.runtimes.executorch import ExecuTorchConfig

# What every program has room for, if the model has positions for it.
_TOKENS = 512
# What tracing may take for granted: a length of 1 or 2 would ask it for a graph of its own wherever tokens are shifted.
# Programs check only upper bounds, and what holds for four tokens holds for one (tests/runtimes/test_contract.py).
_SHORTEST = 4
_NAMED = 4


@dataclass(frozen=True, slots=True)
class Shares:
    """Who computes the operators: ``delegated`` of them XNNPACK, in ``parts``; ExecuTorch's own kernels the
    ``others``, by name."""

    parts: int
    delegated: int
    others: Mapping[str, int]

    def sentence(self) -> str:
        """For people, with the commonest of the others."""
        rest = sum(self.others.values())
        common = sorted(self.others.items(), key=lambda item: (-item[1], item[0]))[:_NAMED]
        named = ", ".join(f"{count} {name}" for name, count in common)
        share = self.delegated / max(1, self.delegated + rest)
        parts = f"in {self.parts} part{'s' * (self.parts != 1)}"
        head = f"XNNPACK computes {self.delegated} of {self.delegated + rest} operators ({share:.0%}) {parts}"
        return f"{head}, ExecuTorch's own kernels {rest}: {named}" if rest else head


def lowered(wrapper: Any, config: ExecuTorchConfig, *, calibration: Sequence[Arrays]) -> tuple[bytes, dict[str, Any]]:
    """The program, and its facts as plain data. Raises Rejected, and whatever the exporter raises."""
    example, keep = calibration[0], kept_fp32(wrapper.hf)
    tokens = longest(wrapper.hf.config, calibration) if is_tokens(next(iter(example.values()))) else None
    bits, group = config.grid or (None, None)
    with quantized(wrapper.hf, bits=bits, group=group, keep=keep) as counts, quiet():
        edge = delegated(_traced(wrapper, example=example, rows=config.rows, tokens=tokens))
        shares = shares_of(edge)
        program = bytes(edge.to_executorch().buffer)
    facts = {
        "inputs": [
            {"name": name, "dtype": str(a.dtype), "shape": [config.rows, *([tokens] if is_tokens(a) else a.shape[1:])]}
            for name, a in example.items()
        ],
        "rows": config.rows,
        "tokens": tokens,
        "precision": config.precision,
        "matrices": {"int4": counts.int4, "int8": counts.int8, "fp32": counts.fp32},
        "operators": {"xnnpack": shares.delegated, "parts": shares.parts, "others": dict(shares.others)},
        "notes": [shares.sentence(), *_said(counts, bits)],
    }
    return program, facts


def longest(config: Any, calibration: Sequence[Arrays]) -> int:
    """Tokens of a request: 512, or the power of two that holds every calibration row, within the positions."""
    most: int = max(array.shape[1] for feed in calibration for array in feed.values() if is_tokens(array))
    wanted = max(_TOKENS, int(2 ** math.ceil(math.log2(most))))
    positions = getattr(config, "max_position_embeddings", None)
    return wanted if positions is None else min(wanted, int(positions))


def shares_of(edge: Any) -> Shares:
    """Count the operators on both sides; picking one of several results is not one.

    Raises Rejected when a quantized product was left outside, where it is computed in fp32, and slowly.
    """
    from executorch.devtools.backend_debug import get_delegation_info

    info = get_delegation_info(edge.exported_program().graph_module)
    counts = {name: found for name, found in info.delegation_by_operator.items() if not name.startswith("getitem")}
    others = {_plain(name): found.non_delegated for name, found in counts.items() if found.non_delegated}
    left = [name for name in others if "quantize" in name or "qparams" in name]
    if left:
        raise Rejected("export", f"XNNPACK does not take the quantized products ({', '.join(left)} stay outside)")
    return Shares(info.num_delegated_subgraphs, sum(found.delegated for found in counts.values()), others)


def delegated(traced: Any) -> Any:
    """A traced program (torch's ``ExportedProgram``) with what XNNPACK can compute in its hands."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.utils.configs import get_transform_passes, get_xnnpack_edge_compile_config
    from executorch.exir import to_edge_transform_and_lower

    return to_edge_transform_and_lower(
        traced,
        transform_passes=[*get_transform_passes(), _infer_sizes],
        partitioner=[XnnpackPartitioner()],
        compile_config=get_xnnpack_edge_compile_config(),
    )


def _infer_sizes(graph_module: Any) -> Any:
    """Let a reshape to one free size infer it: spelled out, XNNPACK does not take it."""
    from executorch.exir.dialects._ops import ops
    from torch.fx.passes.infra.pass_base import PassResult

    reshapes = graph_module.graph.find_nodes(op="call_function", target=ops.edge.aten.view_copy.default)
    for node in reshapes:
        free = [size for size in node.args[1] if not isinstance(size, int)]
        if len(free) == 1 and -1 not in node.args[1]:
            node.args = (node.args[0], [size if isinstance(size, int) else -1 for size in node.args[1]])
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    return PassResult(graph_module, bool(reshapes))


def _traced(wrapper: Any, *, example: Arrays, rows: int, tokens: int | None) -> Any:
    import torch

    free = {0: torch.export.Dim("rows", min=1, max=rows)} if rows > 1 else {}
    lengths = {1: torch.export.Dim("tokens", min=_SHORTEST, max=tokens)} if tokens else {}
    inputs = {name: tensor[:rows] for name, tensor in two_row_example(example).items()}
    path = register_one_row() if rows == 1 else "eager"
    with attention(wrapper.hf, path), torch.no_grad():
        return torch.export.export(
            wrapper,
            tuple(inputs.values()),
            dynamic_shapes=tuple({**free, **(lengths if is_tokens(a) else {})} for a in example.values()),
            strict=False,
        )


def _plain(name: str) -> str:
    """``aten_native_layer_norm_default`` -> ``native_layer_norm``."""
    return name.removeprefix("aten_").removesuffix("_default")


def _said(counts: Counts, bits: int | None) -> list[str]:
    """Which matrices have other bits than the recipe says."""
    if bits == 4 and counts.int8:
        return [f"{counts.int8} of {counts.int4 + counts.int8} matrices are int8: no whole groups, or the text head"]
    return []
