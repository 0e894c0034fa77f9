"""The one console for progress and messages: stderr, shared with the progress bar so that lines stay above it."""

from __future__ import annotations

from rich.console import Console

console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def tell(text: str) -> None:
    """Shows a line to the user."""
    console.print(text)
