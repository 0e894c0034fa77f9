"""What travels to a lent machine and back, without loss: CIFAR-10's batches, and the run directory of a ladder rung.

Images are WebP mosaics, half their size. Of a float32 weight only the exponent can be compressed: its bytes are
separated, and a checkpoint becomes about .83 of its size. Both are zip files; what is unpacked is checked by a hash.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

#: Images in a mosaic, and the side of one in pixels.
_MOSAIC, _SIDE = 1000, 32
#: Bytes of one piece of a packed run: one fits beside half of the images on the way there, and six into a call without
#: images and on the way back, where files may have 16 MiB, and all together 64.
PIECE = 10_000_000
_CHECKPOINT = re.compile(r"step-(\d+)\.safetensors")


class Damaged(Exception):
    """What was unpacked is not what was packed."""


def pack_images(raw: bytes) -> bytes:
    """Packs a file of CIFAR-10 (`data_batch_1`) whose pickle holds the pixels as one string of bytes.

    Raises:
        ValueError: the file is not of that format.
    """
    content = {str(k, "ascii") if isinstance(k, bytes) else k: v for k, v in _unpickled(raw).items()}
    pixels = np.asarray(content["data"], np.uint8)
    at = raw.find(pixels.tobytes())
    if at < 0:
        raise ValueError("the pixels are not one string of bytes")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        about = {"at": at, "images": len(pixels), "sha256": hashlib.sha256(raw).hexdigest()}
        file.writestr("about.json", json.dumps(about))
        file.writestr("rest", raw[:at] + raw[at + pixels.size :], zipfile.ZIP_LZMA)
        for number, part in enumerate(np.split(pixels, range(_MOSAIC, len(pixels), _MOSAIC))):
            columns = _columns(len(part))
            tiles = part.reshape(-1, columns, 3, _SIDE, _SIDE).transpose(0, 3, 1, 4, 2)  # rows, y, columns, x, channel
            mosaic = np.ascontiguousarray(tiles).reshape(-1, columns * _SIDE, 3)
            picture = io.BytesIO()
            Image.fromarray(mosaic).save(picture, "WEBP", lossless=True, quality=80, method=4, exact=True)
            file.writestr(f"{number:02}.webp", picture.getvalue())
    return packed.getvalue()


def unpack_images(packed: bytes) -> bytes:
    """Returns the very file that was packed; Damaged if it is another one."""
    with zipfile.ZipFile(io.BytesIO(packed)) as file:
        about, rest = json.loads(file.read("about.json")), file.read("rest")
        parts = []
        for name in sorted(each for each in file.namelist() if each.endswith(".webp")):
            mosaic = np.asarray(Image.open(io.BytesIO(file.read(name))).convert("RGB"))
            rows, columns = (side // _SIDE for side in mosaic.shape[:2])
            tiles = mosaic.reshape(rows, _SIDE, columns, _SIDE, 3).transpose(0, 2, 4, 1, 3)
            parts.append(np.ascontiguousarray(tiles).tobytes())
    return _checked(rest[: about["at"]] + b"".join(parts) + rest[about["at"] :], about["sha256"])


def _unpickled(raw: bytes) -> dict[bytes | str, np.ndarray]:
    content: dict[bytes | str, np.ndarray] = pickle.loads(raw, encoding="bytes")  # the user's own data set
    return content


def _columns(count: int) -> int:
    return next(columns for columns in range(min(100, count), 0, -1) if count % columns == 0)


def newest_checkpoint(run: Path) -> tuple[Path, int] | None:
    """Returns the last checkpoint of a run directory and its step."""
    found = [(path, match) for path in run.glob("checkpoints/*") if (match := _CHECKPOINT.fullmatch(path.name))]
    return max(((path, int(match[1])) for path, match in found), key=lambda each: each[1], default=None)


def pack_run(run: Path) -> list[bytes]:
    """Packs what resuming a run needs, its files and the last checkpoint, into pieces of at most `PIECE` bytes."""
    newest = newest_checkpoint(run)
    files = [path for path in sorted(run.rglob("*")) if path.is_file() and path.parent.name != "checkpoints"]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for path in [*files, *([newest[0]] if newest else [])]:
            name, raw = path.relative_to(run).as_posix(), path.read_bytes()
            if path.suffix != ".safetensors":
                file.writestr(name, raw)
                continue
            for plane, data in enumerate(_planes(raw)):
                # Nearly independent bytes: Huffman's code alone is as small as a search for repetitions.
                coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
                coded = coder.compress(data) + coder.flush()
                smaller, kind = (coded, "coded") if len(coded) < len(data) else (data, "plain")
                file.writestr(f"{name}/{plane}.{kind}", smaller, zipfile.ZIP_STORED)
            file.writestr(f"{name}/sha256", hashlib.sha256(raw).hexdigest())
    whole = hashlib.sha256(packed.getvalue()).digest() + packed.getvalue()
    return [whole[start : start + PIECE] for start in range(0, len(whole), PIECE)]


def unpack_run(pieces: Iterable[bytes], run: Path) -> None:
    """Writes the run directory that was packed; raises Damaged if a file differs or a piece is missing."""
    whole = b"".join(pieces)
    if hashlib.sha256(whole[32:]).digest() != whole[:32]:
        raise Damaged(f"{run}: a piece is missing or damaged")
    planes: dict[str, dict[int, bytes]] = {}
    files: dict[str, bytes] = {}
    hashes: dict[str, str] = {}
    with zipfile.ZipFile(io.BytesIO(whole[32:])) as file:
        for entry in file.namelist():
            name, part = entry.rpartition("/")[::2]
            if not name.endswith(".safetensors"):
                files[entry] = file.read(entry)
            elif part == "sha256":
                hashes[name] = file.read(entry).decode()
            else:
                number, kind = part.split(".")
                data = file.read(entry)
                planes.setdefault(name, {})[int(number)] = zlib.decompress(data, -15) if kind == "coded" else data
    for name, found in planes.items():
        files[name] = _checked(_joined([found[number] for number in sorted(found)]), hashes[name])
    for name, data in files.items():
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _planes(raw: bytes) -> list[bytes]:
    """Exponents, then the bytes of sign and mantissa from the highest, then what is left of a word."""
    words = np.frombuffer(raw, "<u4", len(raw) // 4)
    rest = (words >> 8) & 0x800000 | words & 0x7FFFFF
    planes = [words >> 23, rest >> 16, rest >> 8, rest]
    return [*(plane.astype(np.uint8).tobytes() for plane in planes), raw[4 * len(words) :]]


def _joined(planes: list[bytes]) -> bytes:
    exponent, high, middle, low = (np.frombuffer(plane, np.uint8).astype(np.uint32) for plane in planes[:4])
    rest = high << 16 | middle << 8 | low
    return ((rest & 0x800000) << 8 | exponent << 23 | rest & 0x7FFFFF).astype("<u4").tobytes() + planes[4]


def _checked(raw: bytes, sha256: str) -> bytes:
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise Damaged("what was unpacked is not what was packed")
    return raw
