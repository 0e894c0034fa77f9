"""The errors that users see: one clear line each, and an exit code."""

from __future__ import annotations


class SslError(Exception):
    """Ends the program with a message and no traceback; exit code 1 (failure)."""

    exit_code: int = 1
    shared: bool = False
    """Whether all processes of a group have this error, so that one of them shows it; set where that is known."""
    alone: bool = False
    """Whether it ends one process of a group that has been formed, and is not shared."""
    passing: bool = False
    """Whether the same command may succeed when it is given again: a process died or hung."""

    @property
    def lines(self) -> list[str]:
        """What a user sees; a line break in one of them is part of a name."""
        return [str(self)]


class UserError(SslError):
    """Invalid usage or input; exit code 2. The message says where the problem is and what to do."""

    exit_code = 2


class ConfigError(UserError):
    """Every problem of a configuration at once, one line each (`file:line: key: problem`)."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(problems)
        self.problems = problems

    @property
    def lines(self) -> list[str]:
        return self.problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


class PluginError(UserError):
    """A name that is not found, is claimed twice, or whose package or file cannot be loaded."""


class UnreadableImage(Exception):
    """One image cannot be decoded. It does not end a run by itself: the source uses another image instead.

    Args:
        path: the image's file or name, as the log should show it.
        reason: what the decoder said, in one line.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both, so that it can be unpickled in the main process
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"
