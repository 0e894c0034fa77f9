"""Random kills of random commands, until each is done; then everything must be as if nothing had happened.

A command is a training run (of any method, with one or two processes), or an export or an evaluation of a finished one.
It is killed up to four times: at a random time, or at one of its calls that change a file, perhaps in the middle of a
write.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import forks, ledger, outcome
from .tiny_runs import IMAGES, Case, methods, write_images

#: SIGKILL most of the time: the others end a run in order, after the step.
SIGNALS = (signal.SIGKILL,) * 7 + (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MOST = 4
#: Other commands than training, and the share of trials that are of training.
OTHERS = {
    "export backbone": ["export", "backbone", "run", "--output", "result"],
    "export features": ["export", "features", "run", "--output", "result.npy"],
    "eval": ["eval", "run", "--method", "knn"],
}
TRAINING = 0.85


@dataclass
class Undisturbed:
    """A run that nobody disturbed: its folder, how long it took, and how many of its calls change what in it."""

    folder: Path
    seconds: float
    calls: dict[str, int]


@dataclass
class Trial:
    """What was done to a command, and what came of it: kinds of problems (`ledger.PROBLEMS`) with a sentence each."""

    starts: int = 0
    kills: list[dict[str, Any]] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    sessions: list[int] = field(default_factory=list)


class Killer:
    """Draws and runs trials in a folder; keeps undisturbed runs, with which every trial of a case is compared."""

    def __init__(self, folder: Path, only: Sequence[str] = (), processes: Sequence[int] = (1, 2)) -> None:
        self.folder = folder
        self.methods = list(only) or methods()
        self.processes = processes
        self.known: dict[tuple[Case, str], Undisturbed] = {}
        write_images(folder / IMAGES)

    def trial(self, seed: int) -> dict[str, Any]:
        """Runs the trial of a seed and returns its line for the ledger; keeps the folder if there was a problem."""
        draw = random.Random(seed)
        # Every method in turn; two processes cost three times as much.
        method, two = self.methods[seed % len(self.methods)], draw.random() < 0.35
        case = Case(method, self.processes[-1 if two else 0], draw.random() < 0.4)
        command = "train" if draw.random() < TRAINING else draw.choice(sorted(OTHERS))
        undisturbed = self.undisturbed(case, command)
        began, folder = time.monotonic(), self.folder / f"trial-{seed}"
        if command == "train":
            case.write(folder)
        else:
            shutil.copytree(self.undisturbed(case, "train").folder, folder)
        done = self._disturb(case, command, folder, undisturbed, draw)
        if not done.problems:
            done.problems += self._problems(command, folder, undisturbed)
        if left := forks.left_behind(done.sessions):
            done.problems.append(("left", f"{len(left)} processes"))
        if not done.problems:
            shutil.rmtree(folder)
        return {
            "seed": seed, "command": command, "method": case.method, "processes": case.processes, "files": case.files,
            "starts": done.starts, "seconds": round(time.monotonic() - began, 2), "kills": done.kills,
            "problems": done.problems,
        }  # fmt: skip

    def undisturbed(self, case: Case, command: str) -> Undisturbed:
        """Returns the undisturbed run of a case, or another command on it; runs it the first time."""
        if (case, command) not in self.known:
            name = f"{case.method}-{case.processes}{'-files' * case.files}-{command.replace(' ', '-')}"
            folder = self.folder / name
            if command == "train":
                case.write(folder)
            else:
                shutil.copytree(self.undisturbed(case, "train").folder, folder)
            processes = case.processes if command == "train" else 1
            ended = forks.ssl(_words(command), folder, processes=processes, count=True)
            if ended.code:
                raise SystemExit(f"ssl soak: {' '.join(_words(command))} of {name} failed: {' '.join(ended.messages)}")
            calls: dict[str, int] = defaultdict(int)
            for call in ended.calls:
                calls[part_of(call)] += 1
            self.known[case, command] = Undisturbed(folder, ended.seconds, dict(calls))
        return self.known[case, command]

    def _disturb(self, case: Case, command: str, folder: Path, undisturbed: Undisturbed, draw: random.Random) -> Trial:
        """Starts the command again and again, killed or not, until it is done."""
        done = Trial()
        processes = case.processes if command == "train" else 1
        wanted = draw.randint(1, MOST)
        again: list[str] = []
        while True:
            kill = _draw_kill(draw, undisturbed, processes) if len(done.kills) < wanted else None
            ended = forks.ssl(_words(command) + again, folder, kill, processes=processes)
            done.starts += 1
            done.sessions += ended.sessions
            problem = _judged(ended, kill)
            if problem is not None:
                # What a start says is what is done; an export may have been killed after one of its files had its name.
                said = re.search(r"already (?:contains a run|exists);.* (--resume|--force)", "".join(ended.messages))
                if again or said is None:
                    done.problems.append((problem[0], f"{problem[1]} after {done.kills}"))
                    return done
            elif kill is not None and _struck(ended, kill):
                moment = part_of(ended.calls[0]) if ended.calls else "any time"
                detail = {"call": ended.calls[0]} if ended.calls else {"seconds": round(kill.delay or 0, 3)}
                name = signal.Signals(kill.number).name
                done.kills.append(
                    {"signal": name, "moment": moment, "ranks": kill.ranks, "codes": ended.codes} | detail
                )
            if ended.code == 0:
                return done
            if problem is not None and said is not None:
                again = [said[1]]
            elif command == "train" and draw.random() < 0.7:  # else as before: it goes on, or says what to do
                again = ["--resume"]

    def _problems(self, command: str, folder: Path, undisturbed: Undisturbed) -> list[tuple[str, str]]:
        if command == "train":
            found = outcome.differences(undisturbed.folder / "run", folder / "run")
            starts = json.loads((folder / "run" / "environment.json").read_text(encoding="utf-8"))["starts"]
            if starts[-1]["end"]["state"] != "done":
                found.append(f"environment.json: {starts[-1]['end']}")
        elif command == "eval":
            made = [_metrics(path / "run" / "eval" / "knn.json") for path in (folder, undisturbed.folder)]
            found = [f"eval/knn.json: {made[0]}"] * (made[0] != made[1])
        else:
            made = [_content(path) for path in (folder, undisturbed.folder)]
            found = ["the exported file"] * (made[0] != made[1])
        left = outcome.left_files(folder)
        return [("different", "; ".join(found))] * bool(found) + [("left", ", ".join(left))] * bool(left)


def _words(command: str) -> list[str]:
    return OTHERS.get(command) or ["train", "config.yaml", "--output", "run"]


def _draw_kill(draw: random.Random, undisturbed: Undisturbed, processes: int) -> forks.Kill:
    number = draw.choice(SIGNALS)
    ranks = draw.choice([(0,), (1,), (0, 1)]) if processes > 1 else (0,)
    if draw.random() < 0.4 or 0 not in ranks:  # the others write nothing
        return forks.Kill(number, delay=draw.uniform(0, undisturbed.seconds), ranks=ranks)
    part = draw.choice(sorted(undisturbed.calls))
    call = draw.randint(1, undisturbed.calls[part])
    return forks.Kill(number, part=part, call=call, torn=draw.randrange(256), ranks=(0,))


def part_of(call: str) -> str:
    """Returns what a reported call changes, as a part of its path: `/run/.config.yaml.x8s0.tmp` is of `config`."""
    path = call.partition(" ")[2]
    name = path.removeprefix("run/").partition("/")[0]
    stem = re.match(r"\.?(\w*)", name)
    assert stem is not None
    return "tmp" if name.startswith(".tmp") else stem[1]


def _struck(ended: forks.Ended, kill: forks.Kill) -> bool:
    """Whether the signal came before the end."""
    return bool(ended.calls) or (kill.delay is not None and ended.code != 0)


def _judged(ended: forks.Ended, kill: forks.Kill | None) -> tuple[str, str] | None:
    """What is wrong with the way in which a start ended: it must do so by our signal, with exit code 0, or, as another
    rank of a killed one, with a line."""
    text = " ".join(" ".join(ended.messages).split())
    if ended.timed_out:
        return "late", f"had to be killed, exit codes {ended.codes}: {text[-300:]}"
    if "Traceback" in text:
        return "traceback", text[-600:]
    struck = kill is not None and _struck(ended, kill)
    for code in filter(None, ended.codes):
        # Where only one rank got the signal, either may be the first to end.
        alone = kill is not None and len(kill.ranks) < len(ended.codes)
        if not (struck and kill is not None and (alone or code in (-kill.number, 128 + kill.number))):
            return "lost", f"exit code {code}: {text[-300:]}"
    return None


def _metrics(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))["metrics"] if path.is_file() else None


def _content(folder: Path) -> dict[str, bytes]:
    """What an export wrote, one file or several."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("result*")) if path.is_file()}


def same_in_a_new_process(killer: Killer, case: Case) -> list[tuple[str, str]]:
    """Compares a run in a fork with the same run of a new interpreter, with another seed for hashes."""
    folder = killer.folder / "new-process"
    case.write(folder)
    command = [sys.executable, "-m", "sslcli", *_words("train")]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if ended.returncode:
        return [("lost", ended.stderr[-300:])]
    return [
        ("different", each)
        for each in outcome.differences(killer.undisturbed(case, "train").folder / "run", folder / "run")
    ]


def main(path: Path, *, count: int, minutes: float, seed: int, only: Sequence[str], processes: Sequence[int]) -> int:
    """Runs trials until so many kills are done or so much time has passed; returns how many had problems."""
    ends = time.monotonic() + 60 * minutes
    kills = bad = 0
    kept = path.parent / "failures"
    forks.prepare()
    with forks.scratch() as folder:
        killer = Killer(folder, only, processes)
        began = time.monotonic()
        problems = same_in_a_new_process(killer, Case(killer.methods[0], 1, False))
        ledger.append(path, "fork", seconds=round(time.monotonic() - began, 1), problems=problems)
        while kills < count and time.monotonic() < ends:
            line = killer.trial(seed)
            ledger.append(path, "kills", **line)
            kills += len(line["kills"])
            state = "; ".join(f"{kind}: {what}" for kind, what in line["problems"]) or "as if nothing had happened"
            print(
                f"{kills:5d} kills, seed {seed}: {line['command']} {line['method']} × {line['processes']}: {state}",
                flush=True,
            )
            if line["problems"]:
                bad += 1
                for found in folder.glob(f"trial-{seed}*"):
                    kept.mkdir(exist_ok=True)
                    shutil.move(found, kept / found.name)
            seed += 1
    return bad + bool(problems)
