"""What a user may ask of ``hasten size``, and what they are told when it cannot be understood."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hasten.plan.sizing.config_json import shape_of_config, shape_of_folder
from hasten.plan.sizing.hardware import find_device, read_devices
from hasten.plan.sizing.prices import find_price, read_prices
from hasten.plan.sizing.shapes import find_model, read_models
from hasten.plan.sizing.spec import make_request, read_count, read_spec
from hasten.records import InputError


@pytest.mark.parametrize(
    ("text", "value"), [("7B", 7e9), ("350M", 350e6), ("15T", 15e12), ("1e9", 1e9), (3, 3.0), ("2.5k", 2500)]
)
def test_counts(text: Any, value: float) -> None:
    assert read_count(text, "params") == value


@pytest.mark.parametrize("text", ["", "x", "7 billion", "-3", "1.2.3", "0", "nan", True])
def test_what_is_no_count(text: Any) -> None:
    with pytest.raises(InputError, match="params is"):
        read_count(text, "params")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "chatt"}, "did you mean chat"),
        ({"task": "chat", "slo": "ttft<=1parsec"}, "unknown unit"),
        ({"task": "chat", "slo": "ttft_ms>=5"}, "better lower"),
        ({"task": "chat", "slo": "tfft_ms<=5"}, "did you mean ttft_ms"),
        ({"task": "chat", "quality": "mmlu<=60"}, "better higher"),
        ({"task": "chat", "quality": "mmlu>=160"}, "0 to 100"),
        ({"task": "text-classification", "slo": "ttft_ms<=5"}, "bound latency_ms"),
        ({"task": "chat", "requests_per_s": -1.0}, "requests_per_s is -1"),
        ({"task": "chat", "headroom": 1.0}, "headroom is 1"),
        ({"task": "chat", "precisions": "int3"}, "unknown precision 'int3'"),
        ({"task": "chat", "devices": (0,)}, "numbers from 1 to 64"),
        ({"task": "chat", "input_tokens": "many"}, "input_tokens"),
        ({"task": "chat", "setting": "moon"}, "setting"),
        ({"task": "chat", "colour": 1}, "unknown option 'colour'"),
        ({"task": "chat", "tokens_trained": "15 trillion"}, "tokens_trained is"),
        ({"task": "chat", "quality": 60}, "quality is 60"),
        ({"task": 5}, "task is 5"),
        ({"task": "chat", "hardware": ""}, "hardware is empty"),
        ({"task": "chat", "acceptance": 0.9}, "without a draft"),
        ({"task": "chat", "bounds": ()}, "unknown option 'bounds'"),
        ({"task": "chat", "bits_cost": {"int3": 1.0}}, "unknown precision 'int3'"),
        ({"task": "chat", "bits_cost": {"bf16": -float("inf")}}, "points from 0 to 100"),
        ({"task": "chat", "requests_per_s": True}, "requests_per_s is True"),
        ({"task": "chat", "models": [""]}, "models is empty"),
    ],
)
def test_what_is_not_understood_is_said(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        make_request(**options)
    assert said in str(caught.value)


def test_a_request_in_plain_units() -> None:
    found = make_request(
        task="chat", slo="ttft<=0.5s, tpot_ms<=40, memory<=20GB", prefer="usd<=2000", quality="mmlu>=60",
        hardware="h200, l4", params="7B,1.5B", tokens_trained="15T",
    )  # fmt: skip
    assert [(b.metric, b.value) for b in found.bounds] == [
        ("ttft_ms", 500.0),
        ("tpot_ms", 40.0),
        ("memory_bytes", 20e9),
    ]
    assert found.parameters == (7e9, 1.5e9)
    assert found.context == 640
    assert found.share == 0.95


def test_a_specification_file(tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text('task = "chat"\nrequests-per-s = 20\nslo = "ttft_ms<=500"\nhardware = ["h200"]\nprivacy = true\n')
    found = make_request(**read_spec(path))
    assert found.requests_per_s == 20
    assert found.privacy
    path.write_text("request_per_s = 20\n")
    with pytest.raises(InputError, match="did you mean requests_per_s"):
        read_spec(path)
    path.write_text("input-tokens = 20\ninput_tokens = 30\n")
    with pytest.raises(InputError, match="is there twice"):
        read_spec(path)
    path.write_text("task = \n")
    with pytest.raises(InputError, match="TOML"):
        read_spec(path)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    devices, models, prices = read_devices(), read_models(), read_prices()
    for call, near in (
        (lambda: find_device("h2000", devices), "h200"), (lambda: find_model("llama-3.1-8", models), "llama-3.1-8b"),
        (lambda: find_price("gpt-4o-min", prices), "gpt-4o-mini"),
    ):  # fmt: skip
        with pytest.raises(InputError, match="did you mean") as caught:
            call()
        assert near in str(caught.value)
    assert find_model("meta-llama/Llama-3.1-8B", models).name == "llama-3.1-8b"
    assert find_device(" H200 ", devices).name == "h200"


def test_every_figure_of_the_catalogues_says_its_source() -> None:
    for device in read_devices().values():
        figures = [
            device.memory_bytes,
            device.bandwidth_bytes_s,
            device.watts,
            device.usd_per_h,
            *device.ops_per_s.values(),
        ]
        for figure in figures:
            assert figure.value > 0
            assert len(figure.source) > 10, device.name
            assert figure.kind in ("published", "assumed"), device.name
            assert figure.kind == "assumed" or figure.source.startswith("http"), device.name
        assert "fp32" in device.ops_per_s
    for shape in read_models().values():
        assert shape.source, shape.name
        assert all(q.source and q.setting for q in shape.quality.values()), shape.name


def test_own_hardware_joins_and_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    figure = '{ value = 1e9, kind = "assumed", source = "mine" }'
    lines = [f"{name} = {figure}" for name in ("memory_bytes", "bandwidth_bytes_s", "watts", "usd_per_h")]
    entry = ["[Mine]", 'title = "My box"', 'kind = "cpu"', *lines, "[Mine.ops_per_s]", f"fp32 = {figure}"]
    text = "\n".join(entry)
    path.write_text(text)
    assert read_devices(path)["mine"].title == "My box"
    faults = {
        text.replace("watts", "wats"): "watts",
        text.replace("fp32", "fp16"): "needs fp32",
        text.replace("[Mine.ops", f"usable_share = {figure}\n[Mine.ops"): "usable_share",
        text.replace("bandwidth_bytes_s = { value = 1e9", "bandwidth_bytes_s = { value = 0"): "above zero",
        "mine = 3": "is no table",
    }
    for fault, said in faults.items():
        path.write_text(fault)
        with pytest.raises(InputError, match="mine") as caught:
            read_devices(path)
        assert said in str(caught.value)


def test_a_models_counts_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    text = '[tiny]\ntitle = "Tiny"\nkind = "decoder"\nlayers = 2\nhidden = 64\nheads = 4\nffn = 128\nvocab = 100\n'
    path.write_text(text)
    assert read_models(path)["tiny"].layers == 2
    for fault in ("heads = 0", "heads = 4\nexperts_used = 2", "heads = 4\nkv_heads = -1"):
        path.write_text(text.replace("heads = 4", fault))
        with pytest.raises(InputError, match="tiny"):
            read_models(path)


CONFIGS = {
    "llama": ({"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
               "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "hidden_act": "silu",
               "tie_word_embeddings": False, "max_position_embeddings": 131072}, 8.03e9),
    "gpt2": ({"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257,
              "n_positions": 1024}, 124e6),
    "bert": ({"model_type": "bert", "num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12,
              "intermediate_size": 3072, "vocab_size": 30522}, 110e6),
    "distilbert": ({"model_type": "distilbert", "n_layers": 6, "dim": 768, "n_heads": 12, "hidden_dim": 3072,
                    "vocab_size": 30522}, 66e6),
    "t5": ({"model_type": "t5", "num_layers": 6, "num_decoder_layers": 6, "d_model": 512, "num_heads": 8, "d_ff": 2048,
            "d_kv": 64, "vocab_size": 32128, "is_encoder_decoder": True, "feed_forward_proj": "relu"}, 60.5e6),
    "mixtral": ({"model_type": "mixtral", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
                 "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000, "hidden_act": "silu",
                 "num_local_experts": 8, "num_experts_per_tok": 2}, 46.7e9),
    "gemma2": ({"model_type": "gemma2", "num_hidden_layers": 26, "hidden_size": 2304, "num_attention_heads": 8,
                "num_key_value_heads": 4, "head_dim": 256, "intermediate_size": 9216, "vocab_size": 256000,
                "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 4096}, 2.61e9),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_out_of_config_json(name: str) -> None:
    config, parameters = CONFIGS[name]
    shape = shape_of_config(config, name=name)
    assert shape.total == pytest.approx(parameters, rel=0.03)


def test_a_config_that_says_too_little_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    with pytest.raises(InputError, match="says nothing of layers, heads, vocab, ffn"):
        shape_of_folder(tmp_path)
    with pytest.raises(InputError, match=r"config\.json"):
        shape_of_folder(tmp_path / "nowhere")
    for value in (float("nan"), 10**400, -1, True):
        with pytest.raises(InputError, match="layers is"):
            shape_of_config({**CONFIGS["llama"][0], "num_hidden_layers": value}, name="odd")
    some = shape_of_config({**CONFIGS["llama"][0], "num_experts_per_tok": 2}, name="odd")
    assert some.experts_used == 0
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"config\.json"):
        shape_of_folder(tmp_path)


def test_windows_are_read_as_they_are_used() -> None:
    base = CONFIGS["llama"][0]
    unused = shape_of_config({**base, "sliding_window": 4096, "use_sliding_window": False}, name="a")
    assert unused.window == 0
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    mixed = shape_of_config({**base, "sliding_window": 512, "layer_types": kinds * 5}, name="b")
    assert (mixed.window, mixed.full_every) == (512, 6)
