"""The commands of `.ci/gpu`.

.ci/gpu prepare --cifar FOLDER [--rung G1 [--state FOLDER]]   packs what must be brought, prints the calls
.ci/gpu run --seconds 370 --stages env,tests,bench --out OUT  on the lent machine: stages, rungs (G1), or both
.ci/gpu run --device cpu --tiny --out OUT                     every stage and rung in small, on any machine
.ci/gpu keep FOLDER                                           results into the repository: files, tables, ledger
.ci/gpu next                                                  what to run next
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .runner import Runner, Stopped, stop_on_signals

HERE = Path(__file__).parents[2]


def main(words: list[str] | None = None) -> int:
    """Runs a command; returns its exit status: 2 for what it refuses, 143 or 130 if it was told to end."""
    parser = argparse.ArgumentParser(
        prog=".ci/gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    each = commands.add_parser("prepare", help="pack what must be brought into .gpu/, and print the calls")
    each.add_argument("--cifar", type=Path, help="folder with cifar-10-batches-py; without it drawn images")
    each.add_argument("--rung", help="for one rung of the ladder instead of a day's two parts")
    each.add_argument("--state", type=Path, help="folder with the pieces of an interrupted rung (G2.000, …)")
    each = commands.add_parser("run", help="run stages and rungs of the ladder")
    each.add_argument("--stages", default="", help="names with commas; without any only the images are unpacked")
    each.add_argument("--seconds", type=float, default=600, help="for everything together")
    each.add_argument("--out", type=Path, required=True, help="folder for what is brought back")
    each.add_argument("--work", type=Path, default=Path("/tmp/sslcli-gpu"), help="folder for everything else")
    each.add_argument("--device", default="cuda")
    each.add_argument("--tiny", action="store_true", help="a dry run: everything in small")
    each.add_argument("--bring", metavar="RUNG:N", help="only copy the pieces of a packed run from the Nth on")
    each = commands.add_parser("keep", help="move results into the repository")
    each.add_argument("folder", type=Path, help="what a call brought back: results.jsonl, pieces of a rung")
    each.add_argument("--into", type=Path, metavar="FOLDER", help="change copies in this folder instead; for a dry run")
    commands.add_parser("next", help="print what has not run yet")
    arguments = parser.parse_args(words)
    try:
        return {"prepare": _prepare, "run": _run, "keep": _keep, "next": _next}[arguments.command](arguments)
    except (ValueError, FileNotFoundError) as error:
        print(f".ci/gpu {arguments.command}: {error}", file=sys.stderr)
        return 2


def _prepare(arguments: argparse.Namespace) -> int:
    from .prepare import prepare
    from .rungs import rungs_of

    if arguments.rung is not None and not rungs_of(arguments.rung):
        raise ValueError(f"{arguments.rung!r} is no rung of the ladder")
    if arguments.state is not None and arguments.rung is None:
        raise ValueError("--state needs --rung")
    print(prepare(arguments.cifar, arguments.state, arguments.rung))
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from . import found, lines, rungs, stages

    asked = stages.names(arguments.stages) if arguments.stages else []
    packed = tuple(sorted(path.parent for path in (HERE / ".gpu").glob("*/COMMIT")))
    runner = Runner(
        arguments.out.absolute(), arguments.work.absolute(), arguments.seconds, arguments.device, arguments.tiny, packed
    )
    stop_on_signals()
    try:
        if arguments.bring:
            name, _, first = arguments.bring.partition(":")
            runner.stage = name
            rungs.bring_back(runner, name, int(first))
            return 0
        stages.unpack(runner)
        stages.about(runner)
        for name in asked:
            stages.run(runner, name)
    except Stopped as stopped:
        runner.note("stopped", signal=stopped.number)
        runner.kill()
        return 128 + stopped.number
    bad = found.failed(lines.read(runner.results)) if arguments.tiny else []
    for each in bad:
        print(f"failed: {each}", file=sys.stderr)
    return 1 if bad else 0


def _keep(arguments: argparse.Namespace) -> int:
    from .keep import keep

    for line in keep(arguments.folder, arguments.into):
        print(line)
    return 0


def _next(arguments: argparse.Namespace) -> int:
    from .keep import RESULTS
    from .ledger import coming

    print(coming(RESULTS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
