"""The choice: what holds comes first in the order that was asked for, what does not says why and by how much."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from hasten.plan.sizing import judge as judging
from hasten.plan.sizing.answer import answer
from hasten.plan.sizing.figures import Figure
from hasten.plan.sizing.hardware import read_devices
from hasten.plan.sizing.judge import Assessment, judge
from hasten.plan.sizing.load import replica_of
from hasten.plan.sizing.options import Option, Ruling, options_of
from hasten.plan.sizing.prices import read_prices
from hasten.plan.sizing.recommend import Recommendation, ranked_among, recommend
from hasten.plan.sizing.shapes import read_models
from hasten.plan.sizing.spec import SizingRequest, make_request
from hasten.records import InputError

MODELS, DEVICES, PRICES = read_models(), read_devices(), read_prices()
CHAT: dict[str, Any] = {
    "task": "chat", "requests_per_s": 20.0, "input_tokens": 800, "output_tokens": 200,
    "slo": "ttft_ms<=500, tpot_ms<=40", "quality": "mmlu>=60", "hardware": "h200,l4,cpu-vnni-16,phone",
}  # fmt: skip


def asked(**changes: Any) -> SizingRequest:
    return make_request(**{**CHAT, **changes})


@cache
def found(**changes: Any) -> Recommendation:
    return recommend(asked(**changes), models=MODELS, devices=DEVICES)


def option(model: str, device: str, precision: str = "bf16", devices: int = 1) -> Option:
    return Option(MODELS[model], DEVICES[device], precision, devices)


def test_what_is_recommended_holds_every_bound() -> None:
    result = found()
    assert result.best is not None
    costs = [a.usd_per_month for a in result.ranked]
    assert costs == sorted(costs)
    for assessed in result.ranked:
        assert assessed.figures["ttft_ms"].value <= 500
        assert assessed.figures["tpot_ms"].value <= 40
        assert assessed.quality["mmlu"].value >= 60
        assert assessed.memory.total <= assessed.option.device.usable_bytes * assessed.option.devices
        assert assessed.replicas * assessed.capacity_per_s.value * 0.7 >= 20 * (1 - 1e-6)  # 30 % headroom


def test_nothing_better_was_passed_over() -> None:
    """Stopping early must not change the answer: judge every option to its end and compare."""
    request = asked(hardware="l4,h200", models="qwen2.5-1.5b,qwen2.5-3b,llama-3-8b", precisions="bf16,int4")
    assert orders(request, rows=3) == orders_of_all(request)[:3]


@pytest.mark.parametrize("prefer", ["", "tpot_ms<=15, mmlu>=55", "usd_per_month<=600"])
@pytest.mark.parametrize("setting", ["cloud", "edge", "enterprise"])
def test_nor_where_edge_and_cloud_are_mixed_and_wishes_come_first(setting: str, prefer: str) -> None:
    request = asked(
        hardware="l4,jetson-agx-orin", models="llama-3.2-1b,llama-3.2-3b", quality="", setting=setting, prefer=prefer,
        slo="tpot_ms<=200", requests_per_s=0.5, precisions="bf16,int4", devices=(1, 2),
    )  # fmt: skip
    expected = orders_of_all(request)
    assert len(expected) == 4
    for rows in (1, 3, 9):
        assert orders(request, rows=rows) == expected[:rows]


def orders(request: SizingRequest, *, rows: int) -> list[tuple[float, ...]]:
    options = options_of(request, models=MODELS, devices=DEVICES)
    return [order_of(a, request) for a in ranked_among(options, request, rows=rows).ranked]


def orders_of_all(request: SizingRequest) -> list[tuple[float, ...]]:
    """Of every option, judged to its end: the best of each model on each device, two of a model at most."""
    options = options_of(request, models=MODELS, devices=DEVICES)
    every = [a for o in options if isinstance(a := judge(o, request), Assessment)]
    kept: dict[tuple[str, str], tuple[float, ...]] = {}
    for assessed in sorted(every, key=lambda a: order_of(a, request)):
        model, device = assessed.option.shape.name, assessed.option.device.name
        if [name for name, _ in kept].count(model) < 2:
            kept.setdefault((model, device), order_of(assessed, request))
    return list(kept.values())


def order_of(assessed: Assessment, request: SizingRequest) -> tuple[float, ...]:
    """Wishes that do not come true, and what the setting is about."""
    measures: dict[str, Sequence[float]] = {
        "cloud": (assessed.usd_per_month,), "enterprise": (assessed.machines, assessed.usd_per_month),
        "edge": (assessed.figures["latency_ms"].value,),
    }  # fmt: skip
    return (len(assessed.missed), *measures[request.setting])


def test_queues_are_solved_for_few_options(monkeypatch: pytest.MonkeyPatch) -> None:
    solved = []
    true = judging._replicas

    def counted(option: Option, *others: Any) -> Any:
        solved.append(option.label)
        return true(option, *others)

    monkeypatch.setattr(judging, "_replicas", counted)
    result = recommend(asked(quality="", prefer="mmlu>=75"), models=MODELS, devices=DEVICES)
    assert result.best is not None
    assert len(solved) == len(set(solved)) < result.considered / 10


def test_a_phone_cannot_hold_what_it_cannot_hold() -> None:
    ruling = judge(option("llama-3.1-70b", "phone"), asked(quality=""))
    assert isinstance(ruling, Ruling)
    assert ruling.bound == "memory"
    assert ruling.miss > 1
    assert "GB are needed" in ruling.reason
    assert ruling.remedy


def test_without_a_network_only_what_is_there_answers() -> None:
    cloud = judge(option("llama-3.2-1b", "l4"), asked(quality="", offline=True))
    assert isinstance(cloud, Ruling)
    assert cloud.bound == "offline"
    house = judge(option("llama-3.2-1b", "l4"), asked(quality="", offline=True, setting="enterprise"))
    assert isinstance(house, Assessment)
    edge = judge(option("llama-3.2-1b", "jetson-agx-orin"), asked(quality="", offline=True, slo="tpot_ms<=200"))
    assert isinstance(edge, Assessment)


def test_an_impossible_bound_says_the_physical_one() -> None:
    request = asked(slo="tpot_ms<=1", quality="", hardware="h200", models="llama-3.1-70b")
    result = recommend(request, models=MODELS, devices=DEVICES)
    assert result.best is None
    texts = " ".join(r.reason for r in result.ruled_out)
    assert "even at its peak the hardware takes" in texts
    alone = replica_of(option("llama-3.1-70b", "h200", devices=2), request).at_the_peaks().bare_ms()["tpot_ms"]
    assert alone == pytest.approx(1e3 * 2 * 69.5e9 / (2 * 4.8e12), rel=0.05)


def test_no_score_is_no_pass() -> None:
    ruling = judge(option("smollm2-135m", "l4"), asked())
    assert isinstance(ruling, Ruling)
    assert "no mmlu" in ruling.reason
    low = judge(option("qwen2.5-0.5b", "l4"), asked())
    assert isinstance(low, Ruling)
    assert low.bound == "mmlu"


def test_a_size_is_scored_by_the_law() -> None:
    result = found(params="8B", tokens_trained="15T", hardware="h200", quality="mmlu>=55")
    assert result.best is not None
    score = result.best.quality["mmlu"]
    assert score.kind == "predicted"
    assert 60 < score.value < 70
    assert recommend(asked(params="8B", hardware="h200"), models=MODELS, devices=DEVICES).best is None


def test_what_cannot_do_the_task_is_refused() -> None:
    with pytest.raises(InputError, match="an encoder"):
        found(models="bert-base-uncased")
    with pytest.raises(InputError, match="as a draft"):
        found(models="llama-3.2-1b", draft="llama-3.2-1b")
    with pytest.raises(InputError, match="no option"):
        found(models="llama-3-8b", hardware="l4", devices=(3,))
    t4 = judge(option("llama-3.2-1b", "t4", "fp8"), asked(quality=""))
    assert isinstance(t4, Ruling)
    assert t4.reason == "t4 has no fp8"


def test_the_way_to_the_user_counts() -> None:
    near, far = (judge(option("llama-3-8b", "h200"), asked(network_ms=ms)) for ms in (0.0, 100.0))
    assert isinstance(near, Assessment)
    assert isinstance(far, Assessment)
    assert far.figures["ttft_ms"].value - near.figures["ttft_ms"].value == pytest.approx(100.0, abs=8.0)
    assert far.figures["tpot_ms"].value == pytest.approx(near.figures["tpot_ms"].value, rel=0.05)


def test_lengths_that_vary_make_the_slow_ones_slower() -> None:
    alike, varied = (judge(option("llama-3-8b", "h200"), asked(length_scv=scv)) for scv in (0.0, 1.0))
    assert isinstance(alike, Assessment)
    assert isinstance(varied, Assessment)
    assert varied.figures["latency_ms"].value > 1.8 * alike.figures["latency_ms"].value


def test_few_places_make_a_queue_and_no_cliff() -> None:
    """Where only a handful of sequences fit, some wait; a replica still does most of what it could."""
    request = asked(quality="", slo="", input_tokens=20_000, output_tokens=200, requests_per_s=0.01)
    replica = replica_of(option("qwen2.5-7b", "l4"), request)
    assert 1 <= replica.most <= 8
    assert replica.most_per_s > 0.5 * replica.ceiling_per_s


def test_few_bits_cost_points_and_say_so() -> None:
    request = asked()
    full, few = (judge(option("llama-3-8b", "h200", p), request) for p in ("bf16", "int4"))
    assert isinstance(full, Assessment)
    assert isinstance(few, Assessment)
    assert full.quality["mmlu"].kind == "published"
    assert few.quality["mmlu"].value < full.quality["mmlu"].value
    assert "assumed" in few.quality["mmlu"].source


def test_more_load_needs_more_machines_and_tighter_bounds_bear_less() -> None:
    counts = [judge(option("llama-3-8b", "l4", "int4"), asked(requests_per_s=r)) for r in (5.0, 20.0, 80.0)]
    assert all(isinstance(a, Assessment) for a in counts)
    machines = [a.machines for a in counts if isinstance(a, Assessment)]
    assert machines == sorted(machines)
    assert machines[0] < machines[-1]
    rates = [
        replica_of(option("llama-3-8b", "h200"), asked(slo=f"tpot_ms<={limit}")).most_per_s for limit in (8, 15, 40)
    ]
    assert rates == sorted(rates)
    assert rates[0] < rates[-1]


def test_the_setting_orders_the_answers() -> None:
    edge = found(
        setting="edge", hardware="phone,laptop,jetson-agx-orin", slo="tpot_ms<=200", quality="", requests_per_s=1.0
    )
    assert edge.best is not None
    times = [a.figures["latency_ms"].value for a in edge.ranked]
    assert times == sorted(times)
    assert {a.replicas for a in edge.ranked} == {60}  # a request a second of users who send one a minute
    house = found(setting="enterprise", hardware="l4,h200")
    machines = [a.machines for a in house.ranked]
    assert machines == sorted(machines)


def test_what_is_preferred_comes_first_though_it_costs_more() -> None:
    plain, soft = found(), found(prefer="tpot_ms<=8")
    assert plain.best is not None
    assert soft.best is not None
    assert soft.best.figures["tpot_ms"].value <= 8
    assert soft.best.usd_per_month >= plain.best.usd_per_month
    wished = found(quality="", prefer="mmlu>=75")
    assert wished.best is not None
    assert wished.best.quality["mmlu"].value >= 75
    kept = [len(a.missed) for a in soft.ranked]
    assert kept == sorted(kept)


def test_bounds_on_money_and_machines_count() -> None:
    dear = judge(option("llama-3-8b", "h200"), asked(slo="usd_per_month<=100"))
    assert isinstance(dear, Ruling)
    assert dear.bound == "usd_per_month"
    assert dear.miss > 10


def test_encoders_are_sized_by_their_answer() -> None:
    result = recommend(
        make_request(
            task="text-classification", requests_per_s=200.0, input_tokens=64, slo="latency_ms<=50", quality="mnli>=80",
            hardware="cpu-vnni-4,t4", percentile=99.0,
        ),
        models=MODELS, devices=DEVICES,
    )  # fmt: skip
    assert result.best is not None
    assert set(result.best.figures) >= {"latency_ms", "usd_per_month"}
    assert "ttft_ms" not in result.best.figures
    assert result.best.figures["latency_ms"].value <= 50


def test_a_seq2seq_and_speculation_are_sized_too() -> None:
    result = recommend(
        make_request(
            task="translation", requests_per_s=5.0, input_tokens=60, output_tokens=60, slo="latency_ms<=3000",
            hardware="t4",
        ),
        models=MODELS, devices=DEVICES,
    )  # fmt: skip
    assert result.best is not None
    plain = judge(option("llama-3.1-70b", "h100", "bf16", 4), asked(quality="", requests_per_s=0.1))
    drafted = replace(option("llama-3.1-70b", "h100", "bf16", 4), draft=MODELS["llama-3.2-1b"])
    faster = judge(drafted, asked(quality="", requests_per_s=0.1))
    assert isinstance(plain, Assessment)
    assert isinstance(faster, Assessment)
    assert faster.figures["tpot_ms"].value < plain.figures["tpot_ms"].value


def test_the_whole_answer_is_json_and_every_figure_says_its_kind() -> None:
    request = asked(api=("gpt-4o-mini",), hardware="h200,l4", models="qwen2.5-1.5b,qwen2.5-3b,llama-3-8b")
    sizing = answer(request, models=MODELS, devices=DEVICES, prices=[PRICES["gpt-4o-mini"]])
    data = json.loads(json.dumps(sizing.to_dict(), allow_nan=False))
    assert data["sentence"].startswith("DEPLOY ")
    figures = [
        f
        for row in data["ranked"]
        for f in (*row["figures"].values(), *row["quality"].values(), *row["memory"].values())
    ]
    assert figures
    assert all(f["kind"] in ("measured", "predicted", "published", "assumed") and f["source"] for f in figures)
    assert any("if tpot_ms were" in c["sentence"] or "requests a second" in c["sentence"] for c in data["sensitivity"])
    assert data["apis"][0]["usd_per_month"] == pytest.approx(
        PRICES["gpt-4o-mini"].request_usd(800, 200) * 20 * 730 * 3600
    )
    assert "cheaper from" in data["apis"][0]["sentence"]
    assert "do not take chat" in data["commands"][0]
    assert all(line["points"] for line in (*data["by_load"], *data["by_context"]))
    assert data["laws"][0]["loss"]["epoch"] > 1.8


def test_relaxing_is_cheaper_or_the_same_and_tightening_dearer() -> None:
    request = asked(hardware="h200,l4")
    for change in answer(request, models=MODELS, devices=DEVICES).changes:
        if change.usd_ratio is None:
            continue
        loose = change.what in (
            "if ttft_ms were 1000",
            "if tpot_ms were 80",
            "if mmlu were 55",
            "at 10 requests a second",
        )
        assert change.usd_ratio <= 1.0 + 1e-9 if loose else change.usd_ratio >= 1.0 - 1e-9, change


def test_nothing_holding_is_an_answer_with_a_remedy() -> None:
    sizing = answer(asked(slo="tpot_ms<=0.01", hardware="t4"), models=MODELS, devices=DEVICES)
    assert sizing.recommendation.best is None
    assert sizing.sentence.startswith("NOTHING HOLDS")
    assert "would help" in sizing.sentence
    assert sizing.commands == ()
    told = answer(asked(slo="tpot_ms<=0.01", hardware="t4", privacy=True), models=MODELS, devices=DEVICES,
                  prices=[PRICES["gpt-4o-mini"]]).to_dict()  # fmt: skip
    assert told["apis"][0]["break_even_requests"] is None
    assert "may not leave" in told["apis"][0]["sentence"]
    json.dumps(told, allow_nan=False)


def test_a_host_that_was_measured_is_believed_before_its_roofline() -> None:
    from hasten.plan.sizing.fit import LayerFit

    slow = LayerFit(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.1, 20)  # a second whatever is asked
    host = replace(DEVICES["cpu-vnni-4"], name="host", fits={"int8": slow})
    request = make_request(task="text-classification", slo="latency_ms<=5000", quality="", requests_per_s=0.1)
    judged = judge(Option(MODELS["bert-base-uncased"], host, "int8", 1), request)
    assert isinstance(judged, Assessment)
    assert judged.figures["latency_ms"].value > 1000
    assert judged.figures["latency_ms"].error == 0.1
    assert judged.figures["latency_ms"].kind == "predicted"
    assert isinstance(judged.capacity_per_s, Figure)


def test_a_device_that_its_user_overloads_is_out() -> None:
    ruling = judge(
        option("llama-3.2-3b", "raspberry-pi-5", "int4"),
        asked(quality="", slo="", output_tokens=2000, setting="edge", edge_requests_per_h=600.0),
    )
    assert isinstance(ruling, Ruling)
    assert ruling.bound == "load"
    assert "its user sends 600" in ruling.reason


def test_a_bound_that_a_model_cannot_have_is_not_passed_over() -> None:
    request = make_request(task="text-classification", models="bert-base-uncased", slo="ttft_ms<=0.0001", hardware="t4")
    found_one = recommend(request, models=MODELS, devices=DEVICES)
    assert found_one.best is None
    assert "gives no tokens" in found_one.ruled_out[0].reason
    wished = make_request(
        task="text-classification", models="bert-base-uncased", prefer="ttft_ms<=0.0001", hardware="t4"
    )
    best = recommend(wished, models=MODELS, devices=DEVICES).best
    assert best is not None
    assert best.missed == ("ttft_ms<=0.0001",)


def test_very_many_servers_and_hardly_any_wait() -> None:
    request = make_request(
        task="text-classification", models="bert-base-uncased", hardware="cpu-vnni-16", precisions="int8",
        requests_per_s=1e5, headroom=0.8,
    )  # fmt: skip
    best = recommend(request, models=MODELS, devices=DEVICES).best
    assert best is not None
    assert best.machines > 1000


def test_the_network_is_not_blamed_on_the_hardware() -> None:
    ruling = judge(option("llama-3.2-1b", "h200"), asked(quality="", slo="ttft_ms<=20"))
    assert isinstance(ruling, Ruling)
    assert "the network alone takes 25 ms" in ruling.reason
    assert "--network-ms" in ruling.remedy


def test_the_mean_load_pays_for_what_stands_there() -> None:
    full, half = (judge(option("llama-3-8b", "h200"), asked(mean_share=share)) for share in (1.0, 0.5))
    assert isinstance(full, Assessment)
    assert isinstance(half, Assessment)
    assert half.usd_per_month == full.usd_per_month
    assert half.figures["usd_per_request"].value == pytest.approx(2 * full.figures["usd_per_request"].value)
    assert half.figures["energy_j"].value > full.figures["energy_j"].value


def test_the_best_score_that_holds_is_told() -> None:
    result = found(hardware="h200,l4")
    assert result.best is not None
    assert result.best_score is not None
    assert result.best_score.quality["mmlu"].value > result.best.quality["mmlu"].value


def test_sixteen_bits_are_called_what_they_are() -> None:
    assert option("llama-3.2-1b", "t4").numbers == "fp16"
    assert option("llama-3.2-1b", "h200").numbers == "bf16"


def test_commands_are_such_as_can_run() -> None:
    request = make_request(
        task="text-classification", hardware="cpu-vnni-16", models="distilbert-base", input_tokens=64,
        slo="latency_ms<=90",
    )  # fmt: skip
    sizing = answer(request, models=MODELS, devices=DEVICES)
    assert sizing.commands[0].startswith("hasten optimize YOUR_")
    assert "p95_ms<=" in sizing.commands[0]
    gpu = answer(replace(request, hardware=("t4",)), models=MODELS, devices=DEVICES)
    assert gpu.commands[0].startswith("#")


def test_the_fewest_servers_are_found_without_trying_every_number() -> None:
    request = make_request(
        task="text-classification", models="bert-base-uncased", hardware="cpu-vnni-16", precisions="int8",
        requests_per_s=2e5, slo="latency_ms<=120",
    )  # fmt: skip
    replica = replica_of(Option(MODELS["bert-base-uncased"], DEVICES["cpu-vnni-16"], "int8", 1), request)
    tried: list[int] = []
    flow = type(replica).flow

    def counted(self: Any, rate: float, servers: int = 1) -> Any:
        tried.append(servers)
        return flow(self, rate, servers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(replica), "flow", counted)
        replica.fewest(2e5, 0.3)
        assert len(tried) <= 24
        tight = replace(request, bounds=tuple(replace(b, value=26.0) for b in request.bounds))
        assert replica_of(replica.option, tight).fewest(2e5, 0.3) is None
