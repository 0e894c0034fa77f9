"""The tables of docs/performance.md, "On a GPU": the machine; what was predicted, aimed at and measured; the ladder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from page import table

from . import found
from .rungs import RUNGS

#: Images per second of SimCLR, ResNet-18 at 32 px, compiled, batch 1,024, as predicted for an H100.
PREDICTED_RATE = (14_000, 24_000)
_NONE = "—"

_MACHINE = (
    ("bf16 products of 8192×8192 matrices", "bf16_tflops", "{:.0f} TFLOP/s", "989"),
    ("copies within its memory, read and written", "copy_tb_s", "{:.1f} TB/s", "3.35"),
    ("transfers from pinned memory", "h2d_gb_s", "{:.0f} GB/s", ""),
    ("launching a small kernel, on the host", "host_us_per_launch", "{:.1f} µs", ""),
)


def page(results: Path) -> str:
    """Returns the generated part of the page, from the kept results."""
    parts = ["The machine:\n", machine(results)]
    parts += ["What was predicted, what is aimed at, what was measured:\n", speeds(results)]
    parts += ["The accuracy ladder (`benchmarks/ladder`), top-1 in percent after the last epoch:\n", ladder(results)]
    sources = [found.load(results, stage) for stage in ("env", "bench", "profile", "photos", *RUNGS)]
    runs = {
        (kept["date"], kept["device"], kept["versions"]["torch"], str(kept["commit"])[:7]) for kept in sources if kept
    }
    lines = [f"{date[:10]}, {device}, torch {torch}, commit {commit}" for date, device, torch, commit in sorted(runs)]
    return "\n".join([*parts, "Written by `.ci/gpu keep` from results of: " + "; ".join(lines or ["none"]) + "."])


def machine(results: Path) -> str:
    """Returns the table of the machine's own speeds."""
    kept = found.load(results, "env")
    records = kept["records"] if kept else []
    rows = []
    for label, key, form, sheet in _MACHINE:
        value = found.named(records, "machine", key)
        rows.append([label, form.format(value) if value is not None else _NONE, sheet])
    return table(["", "measured", "data sheet"], rows)


def speeds(results: Path) -> str:
    """Returns the table of speeds: SimCLR with a ResNet-18 at 32 px unless it says otherwise."""
    bench, profile = (found.load(results, stage) for stage in ("bench", "profile"))
    reports = found.benches(bench["records"]) if bench else {}
    best = found.fastest(bench["records"]) if bench else None
    profiled = profile["records"] if profile else []

    def of(variant: str, show: Callable[[dict[str, object]], str]) -> str:
        return show(reports[variant]) if variant in reports else _NONE

    def rate(report: dict[str, object]) -> str:
        return f"{found.rate(report):,.0f} images/s"

    def views(report: dict[str, object]) -> str:
        return f"{100 * report['phases']['views']['share']:.1f}%"  # type: ignore[index]

    def ratio(report: dict[str, object]) -> str:
        return f"{report['ratio']['median']:.3f}"  # type: ignore[index]

    def last(name: str, key: str, form: str) -> str:
        value = found.named(profiled, name, key)
        return form.format(value) if value is not None else _NONE

    at_224 = [reports[name] for name in reports if "224" in name]
    quickest = max(at_224, key=found.rate, default=None)
    g1 = found.load(results, "G1")
    seconds = found.training_seconds(g1["records"]) if found.arrived(g1) and g1 else None
    low, high = PREDICTED_RATE
    rows = [
        ["eager, batch 512", "10,000 to 18,000 images/s", "", of("eager 512", rate)],
        ["views and backbone compiled, batch 1,024", f"{low:,} to {high:,} images/s", "", of("all 1024", rate)],
        [
            "the fastest setting" + (f" ({best[0]})" if best else ""), "",
            "20,000 images/s; 35,000 would be excellent", rate(best[1]) if best else _NONE,
        ],
        ["its ratio to the same steps on prepared views", "", "at least .98", ratio(best[1]) if best else _NONE],
        ["its views' share of a step", "", "at most 5%", views(best[1]) if best else _NONE],
        ["views' share at 224 px, ResNet-50", "", "at most 10%", views(quickest) if quickest else _NONE],
        ["the host's time for an eager step, batch 512", "16 ms", "", last("none", "host_ms", "{:.1f} ms")],
        ["launches of an eager step", "851", "at most 600", last("none", "launches", "{:.0f}")],
        [
            "100 epochs of CIFAR-10 (G1), start included", f"{5e6 / high:.0f} to {5e6 / low:.0f} s", "less than 300 s",
            f"{seconds:.0f} s" if seconds else _NONE,
        ],
    ]  # fmt: skip
    return table(["", "predicted", "goal", "measured"], rows)


def ladder(results: Path) -> str:
    """Returns the table of rungs: published and measured figures, and the time of training."""
    rows = []
    low, high = PREDICTED_RATE
    for name, rung in RUNGS.items():
        kept = found.load(results, name)
        records = kept["records"] if kept else []
        spent = f"{found.training_seconds(records):,.0f} s" if found.arrived(kept) else _NONE
        for figure, published in rung.published.items():
            top1 = found.named(records, figure, "top1")
            measured = f"{100 * top1:.1f}" if top1 is not None else _NONE
            predicted = f"{rung.images / high:,.0f} to {rung.images / low:,.0f} s"
            rows.append([name, figure, f"{published} ({rung.source})", measured, predicted, spent])
    return table(["rung", "figure", "published", "measured", "predicted time", "time"], rows)
