"""Weights alone in int8 or int4 for OpenVINO graphs, through NNCF: what a decoder reads from memory at every token.

Takes a converted model, gives it with its constant matrices in integers. int8: one scale an output row, symmetric.
int4: one scale for each ``group`` of inputs, symmetric; tables of tokens and the last product stay in int8, as NNCF
advises, and so do matrices whose width (a pruned one, say) does not divide into groups of 32 or more. The CPU computes
with activations that it rounds to int8 itself, with scales found at run time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

from hasten.models.precision import belongs_to
from hasten.records import MissingDependency


def with_integer_weights(model: Any, *, bits: Literal[8, 4], group: int, keep: Sequence[str]) -> Any:
    """``model`` (changed in place) but for the products that compute the modules ``keep``."""
    try:
        import nncf
    except ImportError as error:
        raise MissingDependency("nncf", extra="openvino") from error
    from hasten.runtimes.onnx_graph import quiet

    nncf.set_log_level(logging.ERROR)
    products = [op.get_friendly_name() for op in model.get_ops() if op.get_type_name() == "MatMul"]
    kept = nncf.IgnoredScope(names=[node for node in products if belongs_to(node, keep)], validate=False)
    with quiet():
        if bits == 8:
            return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=kept)
        return nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT4_SYM,
            group_size=group,
            ignored_scope=kept,
            advanced_parameters=nncf.AdvancedCompressionParameters(
                group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
            ),
        )
