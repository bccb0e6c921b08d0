"""What this machine offers, and what is missing.

Takes nothing, gives findings as plain data and draws them. Probes never raise: an
absent runtime is a finding with the command that brings it.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hasten.measure.host import available_memory_bytes, describe_host, usable_cores

if TYPE_CHECKING:
    from rich.console import Console

_GOOD_FOR = {
    "avx512_vnni": "fast int8",
    "avx_vnni": "fast int8",
    "amx_int8": "very fast int8",
    "avx512_bf16": "fast bf16",
    "amx_bf16": "very fast bf16",
}


def examine() -> dict[str, Any]:
    """Host, free memory and disk, and for every runtime: version, or why not and how to get it."""
    from hasten.runtimes import RUNTIMES, get_runtime

    cores = usable_cores()
    return {
        "host": asdict(describe_host(cores=cores, threads=len(cores))),
        "memory_available_bytes": available_memory_bytes(),
        "disk_free_bytes": shutil.disk_usage(".").free,
        "runtimes": {name: asdict(get_runtime(name).probe()) for name in RUNTIMES},
    }


def show(findings: dict[str, Any], *, console: Console) -> None:
    """Draw the findings as two small tables."""
    from rich.table import Table

    host = findings["host"]
    table = Table(title="this host", show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("CPU", host["cpu"])
    table.add_row("cores", f"{len(host['cores_used'])} usable of {host['cores']}")
    table.add_row("memory", f"{_gib(findings['memory_available_bytes'])} available of {_gib(host['memory_bytes'])}")
    table.add_row("disk", f"{_gib(findings['disk_free_bytes'])} free here")
    table.add_row("instructions", ", ".join(host["instructions"]))
    good = [f"{name}: {what}" for name, what in _GOOD_FOR.items() if name in host["instructions"]]
    table.add_row("good for", "; ".join(good) or "fp32; int8 kernels will gain less here")
    table.add_row("GPUs", ", ".join(host["gpus"]) or "none found")
    table.add_row("system", f"{host['os']}, Python {host['python']}")
    console.print(table)

    runtimes = Table(title="runtimes", title_justify="left")
    for column in ("runtime", "version", "state"):
        runtimes.add_column(column, overflow="fold")
    for name, probe in findings["runtimes"].items():
        state = "available" if probe["available"] else f"{probe['reason']}; {probe['remedy']}"
        facts = "; ".join(f"{k}: {v}" for k, v in probe["facts"].items())
        runtimes.add_row(name, probe["version"] or "-", state + (f" ({facts})" if facts else ""))
    console.print(runtimes)


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
