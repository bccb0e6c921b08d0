"""OpenVINO models that write text: keys and values are the model's own state, and stay in its request.

Takes the task's wrapper, gives ``model`` (and ``encoder``): inputs of the past become variables, which a request
starts empty, with as many rows as the prompt has. What a decoder reads of its encoder stays an input: it is set once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hasten.runtimes.decoder_parts import Part, parts_of, present
from hasten.runtimes.onnx_graph import attention, quiet
from hasten.runtimes.openvino_files import save_whole
from hasten.runtimes.runtime import Arrays

ROWS = "beam_idx"


def generative_sources(wrapper: Any, *, example: Arrays, cache: Path) -> list[tuple[str, Path]]:
    """Name and path of every converted graph, made once per ``cache``. Raises Rejected, and what the converter does."""
    # The fused attention where the family allows it: OpenVINO then keeps the state inside of its own operator.
    fused = "sdpa" if getattr(type(wrapper.hf), "_supports_sdpa", True) else "eager"
    return [(part.name, _converted(part, cache=cache, attending=fused)) for part in parts_of(wrapper, example)]


def _converted(part: Part, *, cache: Path, attending: str) -> Path:
    import openvino

    path = cache / f"generative-{part.name}.xml"
    if path.is_file():
        return path
    with quiet(), attention(part.module.hf, attending):
        model = openvino.convert_model(part.module, example_input=tuple(part.inputs.values()))
    for port, (name, value) in zip(model.inputs, part.inputs.items(), strict=True):
        free = part.axes.get(name, {})
        shape = [-1 if axis in free else size for axis, size in enumerate(value.shape)]
        port.get_node().set_partial_shape(openvino.PartialShape(shape))
        port.set_names({name})
    for port, name in zip(model.outputs, part.outputs, strict=True):
        port.set_names({name})
    model.validate_nodes_and_infer_types()
    past = [name for name in part.inputs if name.startswith("past.")]
    if past:
        _keep_state(model, past)
    save_whole(model, path)
    return path


def _keep_state(model: Any, past: Sequence[str]) -> None:
    """Turn the inputs ``past`` and the outputs of the same names into variables.

    The rows of every variable are picked by the input ``beam_idx`` before they are used: the CPU's fused attention
    is looked for behind such a choice.
    """
    from openvino import Type, opset13
    from openvino._offline_transformations import apply_make_stateful_transformation

    rows = opset13.parameter([-1], Type.i32, name=ROWS)
    rows.output(0).set_names({ROWS})
    first = opset13.constant(0, Type.i64)
    for name in past:
        port = model.input(name)
        readers = list(port.get_target_inputs())
        picked = opset13.gather(port, rows, first)
        for reader in readers:
            reader.replace_source_output(picked.output(0))
    model.add_parameters([rows])
    apply_make_stateful_transformation(model, {name: present(name) for name in past})
    _start_empty(model)
    model.validate_nodes_and_infer_types()


def _start_empty(model: Any) -> None:
    """Let every variable start as zeros [B, heads, 0, size]: B is known only from the ids."""
    from openvino import Type, opset13

    shape = opset13.shape_of(model.input("input_ids"), output_type="i64")
    batch = opset13.gather(shape, opset13.constant([0], Type.i64), opset13.constant(0, Type.i64))
    for node in [op for op in model.get_ops() if op.get_type_name() == "ReadValue"]:
        _, heads, _, size = node.get_output_partial_shape(0)
        rest = opset13.constant([heads.get_length(), 0, size.get_length()], Type.i64)
        zero = opset13.constant(0.0, node.get_output_element_type(0))
        node.set_arguments([opset13.broadcast(zero, opset13.concat([batch, rest], 0)).output(0)])
