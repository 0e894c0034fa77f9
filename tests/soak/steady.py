"""A long run whose memory, open files, threads and time of a step must stay what they were."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from . import forks, ledger
from .tiny_runs import Case

#: The last quarter may have more than the second (the first has what caches and allocators take once) by this much:
#: MiB, open files, threads; of processor time for a step, this fraction.
BOUNDS = {"memory": 8.0, "files": 0.0, "threads": 0.0, "step": 0.1}


def main(path: Path, *, steps: int, method: str) -> int:
    """Runs a method for so many steps with monitors and checkpoints; returns the number of problems."""
    with forks.scratch() as folder:
        config = yaml.safe_load(Case(method, 1, False).write(folder / "long").read_text(encoding="utf-8"))
        config["training"] |= {"epochs": -(-steps // 4), "log_every": 20}
        config["checkpoints"] = {"every_steps": 100}
        config["callbacks"]["knn"]["every_epochs"] = 50
        (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        command = [sys.executable, "-m", "sslcli", "train", "config.yaml", "--output", "run", "--quiet"]
        began = time.monotonic()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (folder / "messages").open("w") as messages:
            run = subprocess.Popen(command, cwd=folder, env=environment, stdout=messages, stderr=messages)
            samples = []
            while run.poll() is None:
                if sample := _sample(run.pid, folder / "run" / "metrics.jsonl"):
                    samples.append(sample)
                time.sleep(0.5)
        seconds = time.monotonic() - began
        figures, problems = judged(samples, steps)
        if run.returncode:
            problems.append(("lost", f"exit code {run.returncode}: {(folder / 'messages').read_text()[-300:]}"))
    ledger.append(
        path, "long", method=method, steps=steps, seconds=round(seconds, 1), samples=len(samples), **figures,
        problems=problems,
    )  # fmt: skip
    print(f"long: {figures}", *problems, sep="\n", flush=True)
    return len(problems)


def _sample(pid: int, log: Path) -> dict[str, float] | None:
    """What the process has now, its processor time in seconds, and its last logged step; None before the first."""
    try:
        last = _last_step(log)
        process = Path(f"/proc/{pid}")
        status = (process / "stat").read_text().rpartition(")")[2].split()
        pages = int((process / "statm").read_text().split()[1])
        files = len(os.listdir(process / "fd"))
    except (OSError, ValueError):
        return None
    cpu = (int(status[11]) + int(status[12])) / os.sysconf("SC_CLK_TCK")
    memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return {"step": last, "cpu": cpu, "memory": memory, "files": files, "threads": int(status[17])}


def _last_step(log: Path) -> int:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        return max(int(json.loads(line)["step"]) for line in file.read().splitlines()[1:-1])


def _step_time(samples: list[dict[str, float]]) -> float:
    """The processor time of a step, in seconds: the fastest tenth of stretches of 100 steps, since other programs on
    the machine make them slower, and none makes them faster."""
    times, begin = [], samples[0]
    for sample in samples:
        if sample["step"] >= begin["step"] + 100:
            times.append((sample["cpu"] - begin["cpu"]) / (sample["step"] - begin["step"]))
            begin = sample
    return statistics.quantiles(times, n=10)[0] if len(times) > 1 else max(times, default=0.0)


def judged(samples: list[dict[str, float]], steps: int) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Returns the medians of the second and the last quarter of the steps, and what has grown too much between them."""
    quarters = [
        [sample for sample in samples if begin * steps / 4 <= sample["step"] < (begin + 1) * steps / 4]
        for begin in (1, 3)
    ]
    if min(map(len, quarters)) < 10:
        return {}, [("late", f"only {[len(each) for each in quarters]} samples in the second and last quarters")]
    found: dict[str, list[float]] = {
        name: [statistics.median(sample[name] for sample in quarter) for quarter in quarters]
        for name in ("memory", "files", "threads")
    }
    found["step"] = [_step_time(quarter) for quarter in quarters]
    grown = {name: last - second for name, (second, last) in found.items()}
    grown["step"] /= found["step"][0] or 1
    problems = [
        ("left", f"{name} grew from {found[name][0]:.4g} to {found[name][1]:.4g}")
        for name, bound in BOUNDS.items()
        if grown[name] > bound
    ]
    units = {"memory": "memory_mib", "files": "open_files", "threads": "threads", "step": "cpu_seconds_of_a_step"}
    return {units[name]: [round(value, 5) for value in values] for name, values in found.items()}, problems
