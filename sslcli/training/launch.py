"""`ssl train --devices` and `--max-restarts`: starts the processes of a run on this machine, passes signals on, says
which of them died of what, and starts them again from the last checkpoint."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from sslcli import orphans
from sslcli.contracts.errors import SslError, UserError
from sslcli.data.watch import cause
from sslcli.foreign import stdout_of_children

from .group import LOST
from .interrupt import Interrupt

log = logging.getLogger(__name__)

#: Seconds that the others have to end by themselves when one process has failed, and then on SIGTERM.
_PATIENCE = (10.0, 5.0)

Child = subprocess.Popen[bytes]


def launch(
    arguments: Sequence[str],
    processes: int,
    device: str,
    *,
    restarts: int = 0,
    step: Callable[[], int | None] = lambda: None,
) -> int:
    """Runs `ssl ARGUMENTS` as `processes` processes of one group on this machine; returns the exit code.

    Like torchrun on one machine, but a failure is one line, and each process receives a signal once, so that a run
    saves itself like a single process. When this process ends, by whatever, they save and end too.

    Args:
        arguments: of `ssl`.
        processes: how many; 1 is a process without a group.
        device: `training.device`.
        restarts: how often to go on from the last checkpoint after a process died or hung; not after an error that one
            has explained, which the next start would meet again.
        step: returns the step of the last checkpoint, None if there is none.

    Raises:
        UserError: there are fewer GPUs than processes.
        SslError: a process died, and said nothing about it.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if processes > 1 and device.startswith("cuda") and gpus < processes:
        raise UserError(
            f"--devices {processes}: this machine has {gpus} CUDA devices; choose fewer, or set training.device=cpu"
        )
    words = list(arguments)
    for count in range(restarts + 1):
        with _started(words, processes) as children:
            code, problem = _wait(children)
        if (problem is None and code != orphans.AGAIN) or count == restarts:
            break
        done = step()
        where = "from the start" if done is None else f"from step {done}"
        log.warning(f"restart {count + 1} of {restarts}, {where}: {problem or 'a process failed, as said above'}")
        words += ["--resume"] * ("--resume" not in words)
    if problem is not None:
        raise SslError(problem)
    return SslError.exit_code if code == orphans.AGAIN else code


@contextmanager
def _started(arguments: Sequence[str], processes: int) -> Iterator[list[Child]]:
    environment = dict(os.environ)
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings are about what is reported here
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment |= {
            "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    read, held = os.pipe()
    environment[orphans.PIPE] = str(read)
    children = []
    try:
        for rank in range(processes):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
            # In sessions of their own, so that a Ctrl-C reaches them only through this process, not from the terminal.
            children.append(
                subprocess.Popen(
                    # `-P`: the working directory is not on their path, as it is not on this process's.
                    [sys.executable, "-P", "-m", "sslcli", *arguments],
                    stdout=stdout_of_children(),
                    env=environment | own,
                    start_new_session=True,
                    pass_fds=[read],
                )
            )
        yield children
    finally:
        os.close(read)
        os.close(held)


def _wait(children: list[Child]) -> tuple[int, str | None]:
    """Waits for all processes, passing a signal on to them once; returns the exit code of the run, and if nobody has
    said it, what became of a process.

    A process that ends with the signal that was passed on to it has not failed: others may still be saving.
    """
    passed_on: tuple[int, ...] = ()
    with Interrupt() as interrupt:
        while None in (codes := [child.poll() for child in children]) and not {*codes} - {None, 0, *passed_on}:
            if interrupt.number is not None and not passed_on:
                passed_on = (128 + interrupt.number, -interrupt.number)
                for child in children:
                    child.send_signal(interrupt.number)
            time.sleep(0.1)
        _wait_until_all_end(children, _PATIENCE[0])
        codes = [child.poll() for child in children]  # what they did by themselves
        _end(children)
    if interrupt.number is not None and any(code is not None and code < 0 for code in codes):
        return 128 + interrupt.number, None  # by a second signal, or before it could save
    return _outcome(codes, [child.pid for child in children])


def _outcome(codes: Sequence[int | None], pids: Sequence[int]) -> tuple[int, str | None]:
    """What the exit codes of all processes mean (None: it had to be ended): that of the run, and what to say of it."""
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            return SslError.exit_code, _died(rank, pids, code)
    said = [code for code in codes if code not in (None, 0, LOST)]
    if said:
        return orphans.AGAIN if orphans.AGAIN in said else said[0] or 0, None
    if not any(code != 0 for code in codes):
        return 0, None
    if 0 in codes:
        return SslError.exit_code, _died(codes.index(0), pids, 0)
    return SslError.exit_code, "the processes lost each other, though none of them died; resume the run with --resume"


def _died(rank: int, pids: Sequence[int], code: int) -> str:
    which = f"rank {rank}" if len(pids) > 1 else "the training process"
    what, remedy = cause(code)
    return f"{which} died (pid {pids[rank]}, {what})" + (f": {remedy}" if remedy else "")


def _wait_until_all_end(children: list[Child], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        time.sleep(0.02)


def _end(children: list[Child]) -> None:
    """Ends the processes that would wait for a failed one."""
    for number, seconds in ((signal.SIGTERM, _PATIENCE[1]), (signal.SIGKILL, 5.0)):
        for child in children:
            child.send_signal(number)
        _wait_until_all_end(children, seconds if any(child.poll() is None for child in children) else 0)
