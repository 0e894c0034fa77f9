"""Kept results (`benchmarks/results/gpu-*.json`): reading them, and what each says in one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .rungs import RUNGS
from .stages import AGAIN

Records = list[dict[str, Any]]
Kept = Mapping[str, Any]

#: Names of records that say how a stage went, not what it found.
_NOT_A_RESULT = ("end", "packed", "unpacked", "brought back", "stopped")


def load(results: Path, stage: str) -> Kept | None:
    """Returns what was kept of a stage or rung, or None."""
    path = results / f"gpu-{stage}.json"
    if not path.exists():
        return None
    kept: Kept = json.loads(path.read_text(encoding="utf-8"))
    return kept


def named(records: Iterable[dict[str, Any]], name: str, key: str) -> Any:
    """Returns the last value of a key in the records of a name, or None."""
    return next((r[key] for r in reversed(list(records)) if r["name"] == name and key in r), None)


def found(records: Records) -> Records:
    """Returns the records that are results: not how a process ended."""
    return [r for r in records if r["name"] not in _NOT_A_RESULT and "status" not in r]


def failed(records: Records) -> list[str]:
    """Returns what did not end well, with its status; a rung that was told to end saves, and ends with 143."""
    bad = [f"{r['name']} ({r['status']})" for r in records if r.get("status", 0) not in (0, 143)]
    bad += [f"{r['name']} ({r['error'][:80]})" for r in records if "error" in r]
    return bad


def rate(bench: Mapping[str, Any], kind: str = "end_to_end") -> float:
    """Returns the median images per second of a report of `ssl bench`."""
    return float(bench["images_per_second"][kind]["median"])


def benches(records: Records) -> dict[str, dict[str, Any]]:
    """Returns the reports of `ssl bench` by variant."""
    return {r["name"]: r["bench"] for r in records if "bench" in r}


def fastest(records: Records) -> tuple[str, dict[str, Any]] | None:
    """Returns the variant at 32 px that trains the most images per second, and its report."""
    small = {name: bench for name, bench in benches(records).items() if "224" not in name and name != AGAIN}
    return max(small.items(), key=lambda item: rate(item[1]), default=None)


def arrived(kept: Kept | None) -> bool:
    """Returns whether a rung was trained to its end and judged in all that it is judged by."""
    if kept is None:
        return False
    return all(named(kept["records"], figure, "top1") is not None for figure in RUNGS[kept["stage"]].published)


def training_seconds(records: Records) -> float:
    """Returns the seconds of all pieces of a rung."""
    return float(sum(r["seconds"] for r in records if r["name"] == "piece"))


def _env(records: Records) -> str:
    values = next((r for r in records if r["name"] == "machine" and "bf16_tflops" in r), None)
    if values is None:
        return ""
    return (
        f"{values['bf16_tflops']:.0f} TFLOP/s bf16, {values['copy_tb_s']:.1f} TB/s, "
        f"{values['host_us_per_launch']:.1f} µs a launch"
    )


def _tests(records: Records) -> str:
    outcomes = [r["test"] for r in records if "test" in r]
    counts = [f"{outcomes.count(kind)} {kind}" for kind in ("passed", "failed", "skipped") if kind in outcomes]
    bad = [r["name"] for r in records if r.get("test") == "failed"]
    return ", ".join(counts) + (f": {', '.join(bad)}" if bad else "")


def _bench(records: Records) -> str:
    best = fastest(records)
    return f"{len(benches(records))} variants, fastest {best[0]}: {rate(best[1]):,.0f} images/s" if best else ""


def _learn(records: Records) -> str:
    metrics = {r["name"]: r["metrics"]["top1"] for r in records if "metrics" in r}
    return ", ".join(f"{name} {100 * top1:.1f}" for name, top1 in metrics.items())


def _methods(records: Records) -> str:
    waits = [r["name"].split()[0] for r in records if r.get("waits")]
    ended = sum("loss" in r for r in records)
    return f"{ended} trained and resumed" + (f"; wait in a step: {', '.join(waits)}" if waits else "")


def _exact(records: Records) -> str:
    cases = [r for r in records if "differ" in r]
    bad = [r["name"] for r in cases if any(r["differ"].values())]
    return f"{len(cases) - len(bad)} of {len(cases)} bitwise" + (f", not {', '.join(bad)}" if bad else "")


def _profile(records: Records) -> str:
    cases = [f"{r['name']}: {r['launches']:.0f} launches, {r['ms']:.1f} ms" for r in records if "launches" in r]
    return "; ".join(cases)


def _costs(records: Records) -> str:
    rates = {r["name"]: rate(r) for r in records if "images_per_second" in r}
    if not rates:
        return ""
    slow = min(rates, key=lambda name: rates[name])
    return f"{len(rates)} methods, {rates[slow]:,.0f} ({slow}) to {max(rates.values()):,.0f} images/s"


def _photos(records: Records) -> str:
    return "; ".join(f"{rate(bench):,.0f} images/s" for bench in benches(records).values())


_SUMMARIES: Mapping[str, Callable[[Records], str]] = MappingProxyType(
    {
        "env": _env, "tests": _tests, "bench": _bench, "learn": _learn, "methods": _methods, "exact": _exact,
        "profile": _profile, "costs": _costs, "photos": _photos,
    }
)  # fmt: skip


def summary(stage: str, records: Records) -> str:
    """Returns what a stage or rung found, and what failed, in a line."""
    if stage in _SUMMARIES:
        text = _SUMMARIES[stage](found(records))
    else:
        pieces = [r for r in records if r["name"] == "piece"]
        parts = [f"steps {r['from']:,} to {r['to']:,} in {r['seconds']:.0f} s" for r in pieces[-1:]]
        published = RUNGS[stage].published
        figures = {name: named(records, name, "top1") for name in published}
        parts += [f"{k} {100 * v:.1f} (published {published[k]})" for k, v in figures.items() if v is not None]
        text = ", ".join(parts)
    bad = failed(records)
    return "; ".join([*([text] if text else []), *([f"failed: {', '.join(bad)}"] if bad else [])])
