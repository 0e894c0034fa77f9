"""A lower bound for the time of a SimCLR step: the operations and memory traffic it needs, and a machine's best rates.

    python benchmarks/floor.py [BENCH.json …] [--output floor] [--write-docs]
    python benchmarks/floor.py --reuse --output floor --write-docs     takes this CPU's rates from the last result

Counts one step of each of `CASES` (see `operations.py`), measures this CPU's two ceilings and adds the H100's from its
data sheet (`ceilings.py`). Measured speeds are the newest matching results of `ssl bench`, of those given and those in
`benchmarks/results/`. `--write-docs` writes the tables to docs/performance.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ceilings import DTYPES, H100, Machine, cpu_name, measure_cpu
from floor_tables import tables
from operations import PHASES, Work, count_step
from page import write_part
from report import RESULTS, circumstances, publish

from sslcli.config.resolve import RunConfig, load_config

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Case:
    """A network whose step is counted; `source_side` as for `count_step`."""

    name: str
    config: str
    overrides: tuple[str, ...]
    source_side: int | None

    def load(self) -> RunConfig:
        return load_config(ROOT / self.config, list(self.overrides))


CIFAR, IMAGENET = "examples/configs/cifar10/simclr.yaml", "examples/configs/imagenet/simclr.yaml"
CASES = (
    Case("ResNet-18, 32 px", CIFAR, (), 32),
    Case("ResNet-18 of width 16, 32 px", CIFAR, ("backbone.width=16",), 32),
    Case("ResNet-50, 224 px", IMAGENET, (), None),
)


def ceilings(work: Work, machine: Machine) -> dict[str, float]:
    """Returns upper bounds of the images per second of any code, and of eager code.

    Returns:
        `operations`: only the matrix products, at the machine's best rate; `bytes`: only the least memory traffic;
        `eager`: the kernels of eager code one after the other, each limited by the slower of its two ceilings.
    """
    rate = {dtype: machine.operations[name] for name, dtype in DTYPES.items()}
    computing = sum(k.operations / rate[k.dtype] for k in work.kernels if k.operations)
    moving = sum(work.least_bytes.values()) / machine.bandwidth
    eager = sum(
        max(k.operations / rate[k.dtype] if k.operations else 0.0, k.bytes / machine.bandwidth) for k in work.kernels
    )
    return {name: work.batch / each for name, each in (("operations", computing), ("bytes", moving), ("eager", eager))}


def describe(work: Work) -> dict[str, dict[str, float]]:
    """The cost of one image by phase: millions of operations, and kilobytes."""
    operations, eager = work.operations(), work.eager_bytes()
    return {
        phase: {
            "megaoperations": round(sum(operations[phase].values()) / work.batch / 1e6, 3),
            "least_kilobytes": round(work.least_bytes[phase] / work.batch / 1e3, 2),
            "eager_kilobytes": round(eager[phase] / work.batch / 1e3, 2),
        }
        for phase in PHASES
    }


def fitting(case: RunConfig, precision: str, machine: Machine, results: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Returns the newest result with the same network, views, precision and machine; empty if there is none."""
    found = [
        result
        for result in results
        if result["config"]["training"]["precision"] == precision
        and _machine_name(result) == machine.name
        and _is_of(result["config"], case)
    ]
    newest = max(found, key=lambda result: result["time"], default={})
    return {key: newest[key] for key in ("file", "time", "images_per_second") if newest}


def _machine_name(result: dict[str, Any]) -> str:
    gpu = result["gpu"]
    return H100.name if gpu and "H100" in gpu else gpu or cpu_name(result["cpu_threads"])


def _is_of(config: dict[str, Any], case: RunConfig) -> bool:
    """Whether a resolved config trains the same network on as many views of the same sizes, whatever else differs."""
    sizes = [(view["size"], view["count"]) for view in config["views"]]
    return (
        config["method"]["name"] == case.method.name
        # An older result lacks the options that came later.
        and config["backbone"].items() <= case.backbone.plain().items()
        and sizes == [(view.size, view.count) for view in case.views]
    )


def read_results(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Reads the JSON files that `ssl bench --output` wrote; skips others."""
    results = []
    for path in paths:
        result = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(result, dict) and {"config", "plan", "images_per_second", "cpu_threads"} <= result.keys():
            speeds = {kind: speed["median"] for kind, speed in result["images_per_second"].items()}
            results.append({**result, "file": path.name, "images_per_second": speeds})
    return results


def count(batch: int, machines: Sequence[Machine], results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Counts every case in every precision; returns a row for each, with each machine's ceilings and measurements."""
    rows = []
    for case in CASES:
        config = case.load()
        for precision in DTYPES:
            work = count_step(config, batch, precision, case.source_side)
            rows.append(
                {
                    "case": case.name,
                    "config": case.config,
                    "overrides": list(case.overrides),
                    "precision": precision,
                    "an_image": describe(work),
                    "ceilings": {m.name: _rounded(ceilings(work, m)) for m in machines},
                    "measured": {m.name: fitting(config, precision, m, results) for m in machines},
                }
            )
    return rows


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 1) for name, value in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path, metavar="BENCH.json", help="more results of `ssl bench`")
    parser.add_argument("--batch", type=int, default=256, help="images in the step that is counted")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--side", type=int, default=4096, help="of the matrices")
    parser.add_argument("--mebibytes", type=int, default=512, help="of each of the triad's arrays")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--reuse", action="store_true", help="do not measure: take the rates of results/floor.json")
    parser.add_argument("--output", help="name of a JSON file in benchmarks/results/")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/performance.md")
    arguments = parser.parse_args()
    if arguments.reuse:
        if not (RESULTS / "floor.json").exists():
            parser.error("--reuse: there is no results/floor.json yet; measure with --output floor first")
        last = json.loads((RESULTS / "floor.json").read_text(encoding="utf-8"))
        described = {key: value for key, value in last.items() if key not in ("batch", "rows")}
    else:
        measured = [
            measure_cpu(threads, arguments.side, arguments.mebibytes, arguments.repeats)
            for threads in arguments.threads
        ]
        described = {
            **circumstances(),
            "machines": {m.name: dataclasses.asdict(m) for m in (*(m for m, _ in measured), H100)},
            "extremes": {m.name: extremes for m, extremes in measured},
        }
    machines = [Machine(**values) for values in described["machines"].values()]
    results = [
        result
        for result in read_results([*sorted(RESULTS.glob("*.json")), *arguments.results])
        if result["config"]["training"]["batch_size"] == arguments.batch
    ]
    report = {**described, "batch": arguments.batch, "rows": count(arguments.batch, machines, results)}
    publish(report, arguments.output)
    print(tables(report))
    if arguments.write_docs:
        write_part("floor", tables(report))


if __name__ == "__main__":
    main()
