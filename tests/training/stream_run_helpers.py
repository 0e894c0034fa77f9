"""The plugin file of a stream, and the overrides of a tiny run on the tar files of `tiny_data.write_tars`."""

from __future__ import annotations

from pathlib import Path

PLUGIN = Path(__file__).parents[1] / "contract_plugins" / "tar_shards.py"


def on_tars(folder: Path, *more: str) -> list[str]:
    """Four steps an epoch; the buffer is of one and a half."""
    options = f"name: tar_shards, root: {folder}, classes: [a, b], images: 32, open_shards: 2, shuffle_buffer: 12"
    return [f"data={{{options}}}", "views.size=16", "training.workers=0", *more]
