"""What an option costs to run: money, energy and carbon of all its machines, at the mean load.

Takes an option, the request and the flow of one replica; gives figures that are keyed by the names of bounds.
"""

from __future__ import annotations

from hasten.plan.sizing import economics
from hasten.plan.sizing.batching import Flow
from hasten.plan.sizing.figures import Figure, predicted
from hasten.plan.sizing.options import Option
from hasten.plan.sizing.spec import SizingRequest


def usd_per_month(option: Option, replicas: int) -> float:
    """Of all devices, whatever they do."""
    return replicas * option.devices * option.device.usd_per_h.value * economics.HOURS_A_MONTH


def costs_of(option: Option, request: SizingRequest, *, replicas: int, own: float, flow: Flow) -> dict[str, Figure]:
    """Money, energy and carbon of all machines, at the mean load. A user's own device is paid for, and idles, whatever
    is asked of it: it costs its price and the energy of its work."""
    device, rate, month = option.device, request.requests_per_s * request.mean_share, usd_per_month(option, replicas)
    month_s = economics.HOURS_A_MONTH * 3600
    edge = device.kind == "edge"
    tokens = request.input_tokens + (0.0 if option.shape.kind == "encoder" else request.output_tokens)
    pue = 1.0 if edge else request.pue
    joules = pue * economics.energy_j(
        device.watts.value * option.devices, busy_s=flow.load / own, load=flow.load * request.mean_share,
        idle_share=0.0 if edge else request.idle_share,
    )  # fmt: skip
    carbon_kg = economics.carbon_g(joules, g_per_kwh=request.carbon_g_kwh) * rate * month_s / 1000
    priced, powered = device.usd_per_h.source, device.watts.source
    return {
        "machines": predicted(replicas * option.devices, "replicas x devices, with headroom"),
        "usd_per_month": predicted(month, f"730 hours; {priced}"),
        "usd_per_request": predicted(month / (rate * month_s), priced),
        "usd_per_mtok": predicted(
            economics.usd_per_million(month / economics.HOURS_A_MONTH, rate * tokens), f"tokens in and out; {priced}"
        ),
        "energy_j": predicted(joules, f"of the device alone, with PUE {pue:g}; {powered}"),
        "co2_kg_per_month": predicted(carbon_kg, f"{request.carbon_g_kwh:g} g/kWh, PUE {pue:g}"),
    }
