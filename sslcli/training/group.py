"""Several processes: joining the group that torchrun's environment describes, and starting a group on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from sslcli.contracts.errors import SslError, UserError
from sslcli.foreign import stdout_of_children

from .interrupt import Interrupt

#: Long enough for callbacks on rank 0 (a kNN evaluation, for example), for which the others wait.
_TIMEOUT = timedelta(minutes=60)


def described() -> bool:
    """Returns whether this process is one of several (torchrun's variables are set)."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Joins the process group for the block; does nothing in a single process, or if it has joined already.

    With `device`, `training.device`, on CUDA, tensors there go through NCCL, those on the CPU through gloo.

    Raises:
        SslError: the group cannot be formed, or another process of it has ended.
    """
    if not described() or dist.is_initialized():
        yield
        return
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:
        if local_rank() >= torch.cuda.device_count():
            raise UserError(
                f"training.device: process {local_rank()} of this machine has no GPU of its own "
                f"(it has {torch.cuda.device_count()}); start fewer processes, or set training.device=cpu"
            )
        torch.cuda.set_device(local_rank())
    # With its device NCCL connects here, where a failure is reported, and never guesses a device from the rank.
    own = torch.device("cuda", local_rank()) if cuda else None
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_TIMEOUT, device_id=own)
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise SslError(f"the process group could not be formed (rank {os.environ.get('RANK')}): {reason}") from error
    try:
        yield
    except RuntimeError as error:
        # gloo raises plain ones. Whatever ended the other process, it says so itself.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise SslError(f"the other processes cannot be reached, perhaps since one of them failed: {reason}") from error
    finally:
        dist.destroy_process_group()


def launch(arguments: Sequence[str], processes: int, device: str) -> int:
    """Starts `ssl ARGUMENTS` as `processes` processes of one group on this machine; returns the first bad exit code.

    Like torchrun on one machine, but only the error line of a failed process is printed, and each process receives a
    signal once, so that a run saves itself like a single process.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.startswith("cuda") and gpus < processes:
        raise UserError(
            f"--devices {processes}: this machine has {gpus} CUDA devices; choose fewer, or set training.device=cpu"
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // processes))
    children = []
    for rank in range(processes):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": threads,
        }  # fmt: skip
        # In sessions of their own, so that a Ctrl-C reaches them only through this process, not from the terminal too.
        # `-P`: the working directory is not on their path, as it is not on this process's.
        command = [sys.executable, "-P", "-m", "sslcli", *arguments]
        stdout = stdout_of_children()
        children.append(subprocess.Popen(command, env=environment, stdout=stdout, start_new_session=True))
    return _wait(children)


def _wait(children: list[subprocess.Popen[bytes]]) -> int:
    """Waits for all processes, passing a signal on to them once; returns the first bad exit code, or 0."""
    passed_on = False
    with Interrupt() as interrupt:
        while not any(codes := [child.poll() for child in children]) and None in codes:
            if interrupt.number is not None and not passed_on:
                passed_on = True
                for child in children:
                    child.send_signal(interrupt.number)
            time.sleep(0.1)
        code = next(filter(None, codes), 0)
        _end(children)
    return code if code >= 0 else 128 - code


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    """Ends the processes that would wait for a failed one; those that are ending by themselves get time to finish."""
    for child in children:
        for seconds, stop in ((20, child.terminate), (5, child.kill)):
            try:
                child.wait(seconds)
                break
            except subprocess.TimeoutExpired:
                stop()
