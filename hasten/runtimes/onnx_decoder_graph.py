"""ONNX graphs of models that write text: keys and values are inputs, and outputs again.

Takes the task's wrapper, writes ``model.onnx`` (and ``encoder.onnx``) in the config's precision. The graphs are made
once per cache folder, by the tracing exporter as all others (:mod:`hasten.runtimes.onnx_graph`); they are not fused:
ONNX Runtime's optimizer recognises no attention that has a past in this form.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.models.precision import belongs_to, kept_fp32
from hasten.records import Rejected
from hasten.runtimes.decoder_parts import Part, parts_of
from hasten.runtimes.generation_facts import FACTS, facts_of
from hasten.runtimes.onnx_graph import attention, quiet
from hasten.runtimes.onnx_quantize import quantize_dynamic_graph, quantize_int4_graph
from hasten.runtimes.runtime import Arrays, Exported

if TYPE_CHECKING:
    from hasten.runtimes.onnxruntime import OnnxRuntimeConfig

_OPSET = 17


def export_generative(
    wrapper: Any, config: OnnxRuntimeConfig, *, example: Arrays, folder: Path, cache: Path
) -> Exported:
    """Trace, quantize, save. Raises Rejected, and whatever the exporter does."""
    if config.fusion:
        raise Rejected("export", "the optimizer's fused attention has no place for a cache: fusion=False")
    if config.precision == "int8-static":
        raise Rejected("export", "scales calibrated on prompts do not hold for one token at a time: int8-dynamic")
    sources = [(f"{part.name}.onnx", _source(part, cache)) for part in parts_of(wrapper, example)]
    keep = _kept_in(kept_fp32(wrapper.hf), [source for _, source in sources])
    for (name, source), kept in zip(sources, keep, strict=True):
        if config.precision == "int8-dynamic":
            quantize_dynamic_graph(source, folder / name, config=config, keep=kept)
        elif config.precision == "int4":
            quantize_int4_graph(source, folder / name, config=config, keep=kept)
        else:
            (folder / name).write_bytes(source.read_bytes())
    facts = facts_of(wrapper, example)
    facts.write(folder)
    return Exported(
        files=(FACTS, *(name for name, _ in sources)),
        input_names=facts.input_names,
        instructions=(config.needs,) if config.needs else (),
    )


def _source(part: Part, cache: Path) -> Path:
    import onnx
    import torch

    path = cache / f"generative-{part.name}.onnx"
    if path.is_file():
        return path
    unfinished = path.with_suffix(".part")
    with quiet(), attention(part.module.hf, "eager"):
        torch.onnx.export(
            part.module,
            tuple(part.inputs.values()),
            str(unfinished),
            dynamo=False,
            opset_version=_OPSET,
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            dynamic_axes={name: dict(axes) for name, axes in part.axes.items()},
        )
    onnx.checker.check_model(str(unfinished))
    unfinished.replace(path)
    return path


def _kept_in(keep: Sequence[str], sources: Sequence[Path]) -> list[list[str]]:
    """Which of the modules ``keep`` each graph computes. Raises Rejected when none computes one of them."""
    import onnx

    products = [
        [node.name for node in onnx.load(path, load_external_data=False).graph.node if node.op_type == "MatMul"]
        for path in sources
    ]
    found = [[name for name in keep if any(belongs_to(node, [name]) for node in nodes)] for nodes in products]
    missing = set(keep).difference(*found)
    if missing:
        raise Rejected("export", f"the graph has no product for {', '.join(sorted(missing)[:3])}, which must stay fp32")
    return found
