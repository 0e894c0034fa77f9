"""The accuracy ladder: what each rung trains, what was published for it, how it is judged, and its stage.

A rung that does not fit into one call runs as pieces: at the limit `ssl train` is told to end, saves, and its run
directory travels (`packing.py`) to the next machine, where `--resume` goes on with the same bits. It is judged on the
last epoch.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from . import packing
from .runner import Runner, Stopped

ROOT = Path(__file__).parents[2]
#: Pieces of a packed run that one call brings back: of the 64 MiB, and eight files, that are allowed.
PIECES_A_CALL = 6
#: Seconds kept for the evaluations, and for saving and packing.
_EVALUATE, _SAVE = 45.0, 30.0

#: k nearest neighbors that vote alike, as scikit-learn's; a tie goes to the nearer ones.
_KNN10 = ("knn", "k=[10]", "temperature=[1000.0]")
_PROBE = ("linear",)


@dataclass(frozen=True)
class Rung:
    """A rung of the ladder.

    Attributes:
        config: the file, from the root of the repository.
        evaluations: by the name of the figure, an evaluator and its options.
        published: the figures to stand beside, top-1 in percent.
        source: where they are from.
        images: that are trained on, in all epochs.
        megabytes: of the packed run directory, about.
    """

    config: str
    evaluations: Mapping[str, Sequence[str]]
    published: Mapping[str, str]
    source: str
    images: float
    megabytes: int


def _g0(method: str, linear: str, megabytes: int) -> Rung:
    published = {"linear": linear}
    return Rung(f"benchmarks/ladder/g0-{method}.yaml", {"linear": _PROBE}, published, "EMP-SSL", 1.5e6, megabytes)


#: In the order in which they are climbed: G1 first, which fits into a call and whose time is a goal of its own.
RUNGS: Mapping[str, Rung] = MappingProxyType(
    {
        "G1": Rung(
            "benchmarks/ladder/g1.yaml",
            {
                "knn": _KNN10,
                "linear": (
                    "linear", "lr=[0.01]", "standardize=[false]", "optimizer={name: adam, weight_decay: 5e-6}",
                    "epochs=500", "batch_size=1000",
                ),
            },
            {"knn": "83.2 ± .2", "linear": "85.6 ± .2"}, "dkobak", 5e6, 79,
        ),
        "G0-simclr": _g0("simclr", "66.3", 85),
        "G0-vicreg": _g0("vicreg", "78.1", 138),
        "G0-byol": _g0("byol", "68.4", 165),
        "G0-swav": _g0("swav", "76.7", 86),
        "G2": Rung(
            "examples/configs/cifar10/simclr.yaml", {"knn": ("knn", "k=[200]", "temperature=[0.1]")},
            {"knn": "84.8"}, "lightly", 1e7, 77,
        ),
        "G3": Rung("benchmarks/ladder/g3.yaml", {"linear": _PROBE}, {"linear": "90.1"}, "eb_jepa", 1.5e7, 92),
        "G4": Rung("benchmarks/ladder/g4.yaml", {"knn": _KNN10}, {"knn": "90.0"}, "dkobak", 2.5e7, 79),
    }
)  # fmt: skip


def rungs_of(name: str) -> list[str]:
    """Returns the rungs that a name means: G1 itself, or all of G0."""
    return [each for each in RUNGS if each == name or each.startswith(f"{name}-")]


def climb(runner: Runner, name: str, data: Sequence[str], tiny: Sequence[str]) -> None:
    """Trains a rung as far as the time allows, and evaluates it if it arrives; else packs it for another call.

    Args:
        runner: what runs it; its stage is the rung's name.
        name: the rung's.
        data: overrides with the data set.
        tiny: overrides that make a dry run of it.
    """
    rung, run = RUNGS[name], runner.work / "rungs" / name
    if not run.exists() and any(list(part.glob(f"state/{name}.*")) for part in runner.packed):
        runner.note("train", status="the pieces that were brought are not one packed run: not started over")
        return
    arrived, figures = False, dict[str, float | None]()
    try:
        arrived = _train(runner, rung, run, [*data, *tiny])
        if arrived:
            figures = {figure: _evaluate(runner, rung, run, figure) for figure in rung.evaluations}
    finally:
        if not arrived or None in figures.values():
            pieces = packing.pack_run(run) if packing.newest_checkpoint(run) else []
            for number, piece in enumerate(pieces):
                (runner.work / f"{name}.{number:03}").write_bytes(piece)
            if pieces:
                runner.note("packed", pieces=len(pieces), bytes=sum(map(len, pieces)))
                bring_back(runner, name, 0)


def bring_back(runner: Runner, name: str, first: int) -> None:
    """Copies the next pieces of a packed run to where they are brought back from."""
    pieces = sorted(runner.work.glob(f"{name}.[0-9][0-9][0-9]"))[first : first + PIECES_A_CALL]
    for piece in pieces:
        (runner.out / piece.name).write_bytes(piece.read_bytes())
    runner.note("brought back", pieces=[piece.name for piece in pieces])


def _train(runner: Runner, rung: Rung, run: Path, overrides: list[str]) -> bool:
    """Returns whether training has arrived at its end."""
    if (run / "backbone.safetensors").exists():
        return True
    before = packing.newest_checkpoint(run)
    limit = runner.left() - _EVALUATE - _SAVE
    if limit < _SAVE and not runner.tiny:
        runner.note("train", status="no time left")
        return False
    command = runner.ssl("train", str(ROOT / rung.config), *overrides, "--output", str(run), "--resume")
    job, status, stopped = runner.start("train", command), None, None
    try:
        status = job.process.wait(max(limit, 1))
    except subprocess.TimeoutExpired:
        status = job.stop(signal.SIGTERM, _SAVE)  # it ends the step and saves
    except Stopped as error:
        status, stopped = job.stop(signal.SIGTERM, _SAVE), error
    seconds = job.seconds()
    runner.ended(job, status)
    after = packing.newest_checkpoint(run)
    steps = {"from": before[1] if before else 0, "to": after[1] if after else 0}
    runner.note("piece", **steps, seconds=seconds, arrived=status == 0, **_measured(run))
    if stopped is not None:
        raise stopped
    return status == 0


def _measured(run: Path) -> dict[str, Any]:
    """The last values of what the run logged of itself, and the monitor's kNN accuracy by step."""
    found: dict[str, Any] = {}
    knn: list[tuple[int, float]] = []
    path = run / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        record = json.loads(line)
        names = ("loss", "images_per_second", "probe_top1", "probe_eval_top1")
        found |= {name: record[name] for name in names if name in record}
        knn += [(record["step"], record["knn_top1"])] if "knn_top1" in record else []
    return {**found, "knn": knn}


def _evaluate(runner: Runner, rung: Rung, run: Path, figure: str) -> float | None:
    """Notes and returns the top-1 of an evaluation, or None where it did not end."""
    method, *options = rung.evaluations[figure]
    target = runner.work / f"{runner.stage}-{figure}.json"
    target.unlink(missing_ok=True)
    if runner.tiny:
        options = [each for each in options if not each.startswith(("epochs=", "batch_size="))]
        options += ["epochs=2"] if method == "linear" else []
    words = [str(run), "--method", method, *options, "--device", runner.device, "--output", str(target)]
    if not runner.one(f"eval {figure}", runner.ssl("eval", *words), runner.left() - 10):
        return None
    result = json.loads(target.read_text())
    top1 = float(result["metrics"]["top1"])
    runner.note(figure, top1=top1, published=rung.published[figure], protocol=result.get("protocol"))
    return top1
