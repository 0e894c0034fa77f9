"""Brings an image cache on disk up to date: what is missing, or has changed, is decoded and appended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing

import numpy as np
import torch

from sslcli.contracts.data import Dataset

from .build import FAILED, Bound, Numbers, Tell, decode_into
from .file import CacheFolder, DamagedCache, Index, Rows, find
from .pixels import Pixels
from .room import size_text

#: Seconds after which what was decoded is safe from a crash.
COMMIT_EVERY = 30.0


def missing(files: CacheFolder, states: Rows) -> Numbers:
    """Returns the places of the images that the cache lacks in their present state, but for files that are gone."""
    try:
        index = files.read()
    except DamagedCache:
        index = None
    return _missing(index, states)


def _missing(index: Index | None, states: Rows) -> Numbers:
    absent = states["path"] != b""
    if index is not None:
        absent &= find(index.rows, states) < 0
    return np.flatnonzero(absent)


def fill(
    files: CacheFolder,
    dataset: Dataset,
    states: Rows,
    bound: Bound,
    workers: int,
    tell: Tell,
    measure: Callable[[Numbers], Numbers],
    check: Callable[[int], None],
) -> Pixels:
    """Decodes what is missing, and opens the whole. The caller holds the lock.

    Args:
        files: the cache.
        dataset: where the images come from.
        states: of their files, as they are now.
        bound: how large they are kept.
        workers: processes that decode.
        tell: shows a line to the user.
        measure: returns the bytes that the images at some places take.
        check: raises UserError if there is no room for so many bytes.

    Raises:
        SslError: the pixels cannot be written; what was written stays.
        OSError: the index cannot; it is the one before then.
    """
    index = _open(files, states, dataset.info.channels, tell)
    todo = _missing(index, states)
    if len(todo):
        sizes = measure(todo)
        total = int(sizes.sum())
        check(total)
        index = index or _begun(files)
        tell(
            f"data.cache: decoding {len(todo):,} images once, the shorter side at most {bound.side} pixels: "
            f"{size_text(total)} in {files.folder / index.pixels}"
        )
        _append(files, index, dataset, states, todo, sizes, bound, workers, tell)
    index = index or _begun(files)
    files.remove_others(index)
    pixels = _mapped(files, index, states, dataset.info.channels)
    tell(f"data.cache: {pixels.amount()} from {pixels.path} ({size_text(index.length)}){pixels.others()}")
    return pixels


def _open(files: CacheFolder, states: Rows, channels: int, tell: Tell) -> Index | None:
    """The index without the rows of files that have changed; None to begin again."""
    try:
        index = files.read()
    except DamagedCache as error:
        tell(f"data.cache: {error}; the images are decoded again")
        return None
    if index is None:
        return None
    known = find(index.rows, states)
    changed = np.isin(index.rows["path"], states["path"][known < 0])
    if changed.any():
        tell(f"data.cache: {changed.sum():,} of the images have changed since they were decoded")
        index.rows = index.rows[~changed]
        live = int((index.rows["height"].astype(np.int64) * index.rows["width"] * channels).sum())
        if live < index.length / 2:  # the rest would only fill the disk
            return None
    return index


def _begun(files: CacheFolder) -> Index:
    """A new and empty cache in the place of what there was."""
    index = files.begin()
    files.write(index)
    files.remove_others(index)
    return index


def _append(
    files: CacheFolder,
    index: Index,
    dataset: Dataset,
    states: Rows,
    todo: Numbers,
    sizes: Numbers,
    bound: Bound,
    workers: int,
    tell: Tell,
) -> None:
    path = files.folder / index.pixels
    os.truncate(path, index.length)  # a process that was killed may have written more than its index says
    offsets = index.length + sizes.cumsum() - sizes
    parts, done, committed = [index.rows], 0, time.monotonic()

    def commit() -> None:
        index.rows = np.concatenate(parts)
        files.write(index)
        parts[:] = [index.rows]

    try:
        # Closed here, since workers that go on must not outlive the lock.
        with closing(decode_into(path, dataset, todo, offsets, sizes, bound, workers, tell)) as decoded:
            for shapes in decoded:
                stretch = slice(done, done + len(shapes))
                rows = states[todo[stretch]].copy()
                rows["offset"], rows["height"], rows["width"] = offsets[stretch], *shapes.T
                kept = shapes[:, 0] > 0
                # Before the rows: no interruption may leave rows behind the length, whose pixels are written over.
                index.length = max([index.length, *(offsets[stretch] + sizes[stretch])[kept].tolist()])
                parts.append(rows[shapes[:, 0] != FAILED])
                done += len(shapes)
                if time.monotonic() - committed >= COMMIT_EVERY:
                    commit()
                    committed = time.monotonic()
        commit()
    except OSError:  # perhaps of a commit: fsync tells of lost pixels only once, so that another would seem to succeed
        raise
    except BaseException:  # an interruption too: the next process goes on from there
        commit()
        raise


def _mapped(files: CacheFolder, index: Index, states: Rows, channels: int) -> Pixels:
    known = find(index.rows, states)
    places = np.zeros((len(states), 3), dtype=np.int64)
    rows = index.rows[known[known >= 0]]
    places[known >= 0] = np.column_stack([rows["offset"], rows["height"], rows["width"]])
    return Pixels(files.folder / index.pixels, index.length, torch.from_numpy(places), channels)
