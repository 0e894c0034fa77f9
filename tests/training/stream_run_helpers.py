"""Small tar files with random images, and the overrides of a tiny run on them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

PLUGIN = Path(__file__).parents[1] / "contract_plugins" / "tar_shards.py"


def write_tars(folder: Path, sizes: tuple[int, ...] = (9, 7, 8, 8)) -> Path:
    """Writes a tar file for each size, with a `.png` and a `.cls` of as many images."""
    draw = np.random.default_rng(0)
    folder.mkdir()
    for shard, size in enumerate(sizes):
        with tarfile.open(folder / f"part-{shard:03}.tar", "w") as tar:
            for number in range(size):
                file, pixels = io.BytesIO(), draw.integers(0, 256, (20 + number, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(file, "PNG")
                for ending, content in (("png", file.getvalue()), ("cls", str(number % 2).encode())):
                    member = tarfile.TarInfo(f"{shard}-{number}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def on_tars(folder: Path, *more: str) -> list[str]:
    """Four steps an epoch; the buffer is of one and a half."""
    options = f"name: tar_shards, root: {folder}, classes: [a, b], images: 32, open_shards: 2, shuffle_buffer: 12"
    return [f"data={{{options}}}", "views.size=16", "training.workers=0", *more]
