"""torch's compiler as one that may fail: its cache, which others share and a kill damages, and its long messages."""

from __future__ import annotations

import atexit
import errno
import fcntl
import itertools
import logging
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sslcli.contracts.errors import SslError
from sslcli.memory import is_out_of_memory

log = logging.getLogger(__name__)

_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
#: What a broken entry of the cache, or a folder without room or permission, raises; a program that cannot be compiled
#: raises others, and would a second time.
_OF_FILES = (OSError, ImportError, EOFError, SyntaxError)
#: So many files of the cache are looked at, at most.
_MOST_FILES = 20_000
_NO_ROOM = tuple(os.strerror(each) for each in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS))


def prepare_cache() -> None:
    """Makes torch's cache of compiled code usable: the first process of a machine removes what a killed one left
    unfinished there. Each takes a folder of its own if nothing can be written there, or if the default one, whose name
    anybody can guess, is another user's, who could put code in it. One that was set may be shared by a team.

    Raises:
        OSError: a folder of its own cannot be made either.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

    try:
        folder = Path(cache_dir())
        default = folder == Path(default_cache_dir()).absolute()
        if default and folder.stat().st_uid not in (os.getuid(), 0):
            raise PermissionError(errno.EPERM, "is another user's", str(folder))
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**16))
            file.flush()
        # The others don't wait for it: what they find unfinished until then is compiled elsewhere.
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        removed = sum(_remove_unused(path, folder) for path in _damaged(folder)) if first else 0
    except OSError as error:
        where = os.environ.get(_VARIABLE) or tempfile.gettempdir()
        own_cache(f"{where} cannot be used ({error.strerror or error})")
        return
    if removed:
        files = f"{removed} unfinished file{'s' * (removed > 1)}"
        log.warning(f"{files} removed from torch's cache of compiled code, {folder}: compiled again")


def own_cache(reason: str) -> None:
    """Compiles into a folder of this process alone from now on, and says why; OSError if none can be made."""
    folder, process = tempfile.mkdtemp(prefix="sslcli-compiled-"), os.getpid()

    def remove() -> None:
        if os.getpid() == process:  # not in a worker
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    os.environ[_VARIABLE] = folder
    with suppress(Exception):  # what it remembers of the old folder's files; without it, they are compiled elsewhere
        from torch._inductor.utils import clear_caches

        clear_caches()
    torch._dynamo.reset()
    log.warning(f"torch's cache of compiled code: {reason}; using {folder} for this run")


def _damaged(folder: Path) -> Iterator[Path]:
    """Files of the cache that were not written to their end: empty ones, and libraries that are too short; of the
    first `_MOST_FILES`, since one on a network that a team has filled for months would take minutes."""
    every = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    for path in itertools.islice(every, _MOST_FILES):
        with suppress(OSError):
            if path.suffix in (".py", ".cpp", ".h", ".so") and not path.is_symlink():
                size = path.stat().st_size
                if not size or (path.suffix == ".so" and _is_short(path, size)):
                    yield path


def _is_short(library: Path, size: int) -> bool:
    """Whether a library of 64-bit ELF ends before its section headers, which come last; another system's never is."""
    with library.open("rb") as file:
        head = file.read(64)
    if head[:5] != b"\x7fELF\x02":
        return not b"\x7fELF\x02".startswith(head[:5]) and not any(head)  # zeros: a power failure
    if len(head) < 64:
        return True
    (offset,) = struct.unpack_from("<Q", head, 40)
    entry, count = struct.unpack_from("<HH", head, 58)
    return bool(offset + entry * count > size)


def _remove_unused(path: Path, folder: Path) -> bool:
    """Removes a file, unless a process that is alive is making it."""
    lock = folder / "locks" / f"{path.name.partition('.')[0]}.lock"
    with suppress(OSError):
        if lock.exists():
            with lock.open("rb+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        else:
            path.unlink()
        return True
    return False


def is_compilers(error: BaseException) -> bool:
    """Returns whether torch's compiler failed, and not what was compiled: then eager code would work."""
    errors = sys.modules.get("torch._dynamo.exc")  # of a module that eager code does without
    return errors is not None and isinstance(error, errors.TorchDynamoException) and not is_out_of_memory(error)


def is_of_files(error: BaseException | None) -> bool:
    """Returns whether a failure of the compiler most likely comes from its cache."""
    while error is not None:
        inner = getattr(error, "inner_exception", None)  # BackendCompilerFailed has what the backend raised
        if isinstance(error, _OF_FILES) or any(text in str(error) for text in _NO_ROOM) or is_of_files(inner):
            return True
        error = error.__cause__
    return False


def in_one_line(error: BaseException) -> str:
    """Returns what the compiler said, without its advice on how to debug it."""
    text = str(error).partition("Set TORCHDYNAMO_VERBOSE")[0]
    return f"the compiler failed ({type(error).__name__}: {' '.join(text.split())[:200]})"


@contextmanager
def failures_reported() -> Iterator[None]:
    """Makes one line of what the compiler raises in the block: in a backward pass, which has no eager counterpart.

    Raises:
        SslError: instead.
    """
    try:
        yield
    except Exception as error:
        if not is_compilers(error):
            raise
        raise SslError(f"{in_one_line(error)}; set training.compile=none") from error


def compile_module(module: nn.Module, failed: Callable[[str], None], mode: str | None) -> None:
    """Compiles a module in place, at its first call. If its cache is at fault, it is compiled again in another one; if
    the compiler fails otherwise, the module is eager from then on.

    Args:
        module: any; its parameters keep their names.
        failed: called with what the compiler said; may raise.
        mode: of `torch.compile`.
    """
    module.compile(dynamic=False, mode=mode)
    compiled: Any = module._compiled_call_impl
    tried: list[bool] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # as a part of another module's code
            return compiled(*args, **kwargs)
        try:
            return compiled(*args, **kwargs)
        except Exception as error:
            if not is_compilers(error):
                raise
            if is_of_files(error) and not tried:
                tried.append(True)
                own_cache(in_one_line(error))
                return call(*args, **kwargs)
            module._compiled_call_impl = None
            failed(in_one_line(error))
        return module(*args, **kwargs)

    module._compiled_call_impl = call
