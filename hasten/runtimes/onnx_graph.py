"""From a module to a fused fp32 ONNX graph.

Takes the task's wrapper, writes ``fp32.onnx`` and ``fused.onnx`` into a cache folder
that all recipes of the same module share. Knows nothing of precision.

The graph is traced with the plain attention path: its MatMul-Softmax-MatMul is what
ONNX Runtime's transformer optimizer turns into one Attention operator. The older
tracing exporter is used first because the optimizer recognises its graphs whole (12
layer norms, 6 attentions and the embedding block of a MiniLM, against none of the
attentions after the dynamo exporter) and it takes a fifth of the time; where it
fails, the dynamo exporter gets its turn.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hasten.records import MissingDependency
from hasten.runtimes.runtime import Arrays, is_tokens

OUTPUT = "output"
_OPSET_TRACED, _OPSET_DYNAMO = 17, 18


def fp32_graph(wrapper: Any, *, example: Arrays, cache: Path, fusion: bool) -> Path:
    """Path of the (fused) fp32 graph, exported at most once per ``cache``."""
    plain = cache / "fp32.onnx"
    if not plain.is_file():
        with quiet():
            _export(wrapper, example=example, path=plain)
    if not fusion:
        return plain
    fused = cache / "fused.onnx"
    if not fused.is_file():
        with quiet():
            _fuse(plain, fused, config=wrapper.hf.config, kind="bert" if is_tokens(_first(example)) else "vit")
    return fused


def input_names(path: Path) -> tuple[str, ...]:
    """The graph's inputs in order."""
    import onnx

    return tuple(i.name for i in onnx.load(path, load_external_data=False).graph.input)


def _export(wrapper: Any, *, example: Arrays, path: Path) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401  (the exporters need it)
    except ImportError as error:
        raise MissingDependency("onnx and onnxscript", extra="onnxruntime") from error
    part = path.with_suffix(".part")
    with attention(wrapper.hf, "eager"):
        try:
            _trace(wrapper, example=example, path=part)
        except Exception as error:  # any failure of the tracer means: try the other exporter
            logging.getLogger(__name__).info("the tracing exporter failed (%s); trying dynamo", error)
            _dynamo(wrapper, example=example, path=part)
    onnx.checker.check_model(str(part))
    part.replace(path)


def two_row_example(example: Arrays) -> dict[str, Any]:
    """Two rows of seven tokens with padding: sizes that stand for nothing special when traced. Images keep theirs."""
    import torch

    rows = {}
    for name, array in example.items():
        first = torch.from_numpy(array[:1])
        row = first.repeat(2, 7)[:, :7].clone() if is_tokens(array) else first.repeat(2, *[1] * (array.ndim - 1))
        if name == "attention_mask":
            row[:] = 1
            row[1, 5:] = 0
        rows[name] = row
    return rows


def _trace(wrapper: Any, *, example: Arrays, path: Path) -> None:
    import torch

    inputs, rows, both = two_row_example(example), {0: "batch"}, {0: "batch", 1: "length"}
    torch.onnx.export(
        wrapper,
        tuple(inputs.values()),
        str(path),
        dynamo=False,
        opset_version=_OPSET_TRACED,
        input_names=list(inputs),
        output_names=[OUTPUT],
        dynamic_axes={
            **{name: both if is_tokens(array) else rows for name, array in example.items()},
            OUTPUT: both if wrapper.per_token else rows,
        },
    )


def _dynamo(wrapper: Any, *, example: Arrays, path: Path) -> None:
    import torch

    inputs = two_row_example(example)
    free = torch.export.Dim.DYNAMIC
    program = torch.onnx.export(
        wrapper,
        tuple(inputs.values()),
        dynamo=True,
        opset_version=_OPSET_DYNAMO,
        input_names=list(inputs),
        output_names=[OUTPUT],
        dynamic_shapes=tuple({0: free, 1: free} if is_tokens(array) else {0: free} for array in example.values()),
        verbose=False,
    )
    assert program is not None
    program.save(str(path))


def _first(example: Arrays) -> Any:
    return next(iter(example.values()))


def _fuse(source: Path, target: Path, *, config: Any, kind: str) -> None:
    """Attention, SkipLayerNormalization, BiasGelu and EmbedLayerNormalization in place of their parts.

    ``kind`` is the optimizer's own name for a sort of graph. Heads and width are given: left to guess them, it
    recognises no attention at all.
    """
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    # A family that counts otherwise has its attention left in parts: 0 lets the optimizer look for itself.
    heads, width = (int(getattr(config, name, 0) or 0) for name in ("num_attention_heads", "hidden_size"))
    model = optimizer.optimize_model(
        str(source),
        model_type=kind,
        num_heads=heads,
        hidden_size=width,
        optimization_options=FusionOptions(kind),
        opt_level=0,
    )
    if heads:
        _count_heads(model.model, head_dim=width // heads)
    part = target.with_suffix(".part")
    model.save_model_to_file(str(part))
    part.replace(target)


def _count_heads(model: Any, *, head_dim: int) -> None:
    """Let every fused attention say how many heads it has left: the optimizer writes the config's number into all."""
    import onnx

    widths = {i.name: i.dims[-1] for i in model.graph.initializer}
    for node in [n for n in model.graph.node if n.op_type == "Attention"]:
        own = widths[node.input[1]] // 3  # query, key and value side by side
        kept = [a for a in node.attribute if a.name != "num_heads"]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute("num_heads", own // head_dim)])


@contextlib.contextmanager
def attention(hf: Any, implementation: str) -> Iterator[None]:
    """Switch the attention path for the export, and back."""
    before = hf.config._attn_implementation
    hf.set_attn_implementation(implementation)
    try:
        yield
    finally:
        hf.set_attn_implementation(before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters print pages of warnings about themselves; errors still come as exceptions."""
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
