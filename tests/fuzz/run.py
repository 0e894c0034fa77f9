"""Fuzzes everything that is read from outside: `python tests/fuzz/run.py --minutes 60 [--only TARGET] [--seed N]`.

Prints one JSON line: how many examples of which target, and every finding with its error and its file, which is kept in
`--keep`. Exit code 1 if there is one. An example is a target and a number, from which all changes follow.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import targets as fuzzed

from sslcli.cli.console import report
from sslcli.contracts.errors import SslError
from sslcli.memory import out_of_memory

#: Seconds after which an example hangs.
PATIENCE = 60


class Hang(BaseException):
    """An example does not end."""


@contextmanager
def ends() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def finding(target: fuzzed.Target, folder: Path, number: int | None, content: bytes | None = None) -> str | None:
    """Runs one example: a number, or the content of a file. Returns what is wrong with it."""
    with fuzzed.trial(folder, with_run=target.file.startswith("run/")) as here:
        path = here / target.file
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content)
        else:
            chance = random.Random(number)
            target.change(path, chance.choice(target.seeds), chance)
        before = path.read_bytes()
        (folder / "example").write_bytes(before)
        try:
            with ends(), out_of_memory("", "less"):
                target.read(path)
        except SslError as error:
            if problem := unlike_lines(error):
                return problem
        except (Exception, Hang) as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            return f"{type(error).__name__}: {str(error)[:300]} ({last.filename}:{last.lineno})"
        if target.kept and path.read_bytes() != before:
            return "the file was changed"
    return None


def unlike_lines(error: SslError) -> str | None:
    """Returns what is wrong with what a user is shown of an error: names may have line breaks, lines have none."""
    with contextlib.redirect_stderr(io.StringIO()) as shown:
        report(error)
    lines = shown.getvalue().splitlines()
    if not lines:
        return "no message"
    if len(lines) != len([*filter(None, error.lines)]) or not all(
        line.startswith("ssl: ") and line.isprintable() for line in lines
    ):
        return f"not a line for each problem: {shown.getvalue()}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "sslcli-fuzz")
    arguments = parser.parse_args()
    ran: Counter[str] = Counter()
    findings: list[dict[str, Any]] = []
    seen: set[tuple[str, str]] = set()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        every = fuzzed.make_targets(folder)
        chosen = [arguments.only] if arguments.only else list(every)
        end, number = time.monotonic() + 60 * arguments.minutes, arguments.seed * 10**9
        while time.monotonic() < end:
            number += 1
            for target in chosen:
                ran[target] += 1
                problem = finding(every[target], folder, number)
                if problem is None or (target, problem[-60:]) in seen:
                    continue
                seen.add((target, problem[-60:]))
                arguments.keep.mkdir(parents=True, exist_ok=True)
                kept = arguments.keep / f"{target.replace(' ', '-')}-{number}"
                kept.write_bytes((folder / "example").read_bytes())
                findings.append({"target": target, "number": number, "problem": problem, "file": str(kept)})
    print(json.dumps({"minutes": arguments.minutes, "seed": arguments.seed, "ran": ran, "findings": findings}))
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
