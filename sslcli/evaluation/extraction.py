"""Images → features of a backbone in `eval()`, which stays as it was to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.data import Dataset
from sslcli.contracts.errors import UnreadableImage, UserError
from sslcli.contracts.evaluation import FeatureSet
from sslcli.plugins import load

Precision = Literal["fp32", "bf16", "fp16"]
Normalize = Callable[[Tensor], Tensor]

#: Above this share of unreadable images a number would no longer speak of the data set that it names.
UNREADABLE_LIMIT = 0.01
THREADS = 8

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def normalizer(mean: Sequence[float], std: Sequence[float], device: torch.device) -> Normalize:
    """Returns the function uint8 (N, C, H, W) on the device → float32, minus `mean`, over `std` (both for [0, 1])."""
    center = torch.tensor(mean, device=device).reshape(1, -1, 1, 1) * 255
    scale = torch.tensor(std, device=device).reshape(1, -1, 1, 1) * 255
    return lambda images: (images.float() - center) / scale


def load_images(dataset: Dataset, image_size: int, indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Reads images into memory, each brought to `image_size`.

    Args:
        dataset: where they are.
        image_size: side in pixels; other sizes are resized and cropped to the center (the operation `resize`).
        indices: (K,) int64, which ones; all by default.

    Returns:
        uint8 (K', C, image_size, image_size) on the CPU, and the (K',) places in the data set of those that could be
        read.

    Raises:
        UserError: more than 1 % of them cannot be read.
    """
    reader = _Reader(dataset, image_size, torch.arange(len(dataset)) if indices is None else indices)
    blocks = list(reader.blocks(max(1, len(reader.indices))))
    if not blocks:
        raise UserError(f"{dataset.info.name}: there are no images to read")
    return blocks[0]


def extract_features(
    backbone: Backbone,
    images: Tensor | Dataset,
    *,
    image_size: int,
    normalize: Normalize,
    device: torch.device,
    batch_size: int,
    precision: Precision = "fp32",
) -> FeatureSet:
    """Computes the pooled features of all images, in order.

    Args:
        backbone: on `device`; every module's mode is put back.
        images: uint8 (N, C, image_size, image_size) anywhere, or a data set, whose unreadable images are left out
            together with their labels.
        image_size: side in pixels of the images that the backbone is shown.
        normalize: uint8 on the device → what the backbone was trained on.
        device: where to compute.
        batch_size: images at once; the result does not depend on it (but for rounding).
        precision: arithmetic of the network.

    Returns:
        features (N, D) float32 and labels, both on the device.

    Raises:
        UserError: more than 1 % of the images cannot be read.
    """
    if isinstance(images, Tensor):
        total, labels = len(images), None
        blocks: Iterator[tuple[Tensor, Tensor]] = ((part, torch.arange(0)) for part in torch.split(images, batch_size))
    else:
        total, labels = len(images), images.labels
        blocks = _Reader(images, image_size, torch.arange(total)).blocks(batch_size)
    result = torch.empty(total, backbone.spec.feature_dim, device=device)
    kept: list[Tensor] = []
    done = 0
    for pooled, places in _pooled(backbone, blocks, normalize, device, precision):
        result[done : done + len(pooled)] = pooled
        done += len(pooled)
        kept.append(places)
    if labels is not None:
        labels = labels[torch.cat(kept)].to(device)
    return FeatureSet(result[:done], labels)


def feature_blocks(
    backbone: Backbone,
    dataset: Dataset,
    *,
    image_size: int,
    normalize: Normalize,
    device: torch.device,
    batch_size: int,
    precision: Precision = "fp32",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Returns block by block what `extract_features` returns as a whole: the memory of a batch serves any data set.

    Returns:
        an iterator over features (n, D) float32 on the device, and the places (n,) int64 in the data set of these
        images, in order; unreadable images are left out.

    Raises:
        UserError: more than 1 % of the images cannot be read.
    """
    blocks = _Reader(dataset, image_size, torch.arange(len(dataset))).blocks(batch_size)
    return _pooled(backbone, blocks, normalize, device, precision)


def _pooled(
    backbone: Backbone,
    blocks: Iterator[tuple[Tensor, Tensor]],
    normalize: Normalize,
    device: torch.device,
    precision: Precision,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of uint8 images and whatever goes with each → features (n, D) float32 on the device, and the same."""
    dtype = _DTYPES.get(precision)
    for block, beside in blocks:
        # Entered anew for each block, because whoever gets a block does not run within it.
        with torch.no_grad(), _evaluating(backbone), torch.autocast(device.type, dtype, enabled=dtype is not None):
            pooled = backbone(normalize(block.to(device))).pooled
        yield pooled.float(), beside


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """`eval()` for a while; afterward each module has the mode it had, which need not be the same for all.

    A backbone that the run compiled for its training is eager here: compiling it again, for this mode and for batches
    of this size, would take longer than it saves.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for part, training in modes:
            part.training = training


class _Reader:
    """Reads images of a data set in order, in threads (decoders let go of the interpreter's lock)."""

    def __init__(self, dataset: Dataset, image_size: int, indices: Tensor) -> None:
        self.dataset = dataset
        self.indices = indices
        self.image_size = image_size
        self.unreadable: list[UnreadableImage] = []

    def blocks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields uint8 (n, C, S, S), n > 0, with the places (n,) of these images in the data set."""
        resident = self.dataset.images()
        side = self.image_size
        if resident is not None and resident.shape[-2:] == (side, side):
            everything = len(self.indices) == len(resident) and torch.equal(self.indices, torch.arange(len(resident)))
            for places in torch.split(self.indices, size):
                start = int(places[0])
                yield (resident[start : start + len(places)] if everything else resident[places]), places
            return
        resize = _resizer(side)

        def read(place: int) -> Tensor | UnreadableImage:
            try:
                image = self.dataset.image(place)
            except UnreadableImage as error:
                return error
            return image if image.shape[-2:] == (side, side) else resize(image)

        with ThreadPoolExecutor(THREADS) as pool:
            waiting: list[tuple[Tensor, list[Future[Tensor | UnreadableImage]]]] = []
            try:
                for places in torch.split(self.indices, size):  # one block is read while the one before is computed
                    waiting.append((places, [pool.submit(read, place) for place in places.tolist()]))
                    if len(waiting) > 1:
                        yield from self._collect(*waiting.pop(0))
                for places, futures in waiting:
                    yield from self._collect(places, futures)
            finally:
                pool.shutdown(cancel_futures=True)

    def _collect(self, places: Tensor, futures: list[Future[Any]]) -> Iterator[tuple[Tensor, Tensor]]:
        read = [future.result() for future in futures]
        self.unreadable += [image for image in read if isinstance(image, UnreadableImage)]
        if len(self.unreadable) > UNREADABLE_LIMIT * len(self.indices):
            raise UserError(
                f"{self.dataset.info.name}: more than {UNREADABLE_LIMIT:.0%} of the {len(self.indices):,} images "
                f"cannot be read, the first one: {self.unreadable[0]}; mend or remove them"
            )
        good = torch.tensor([isinstance(image, Tensor) for image in read])
        if bool(good.any()):
            yield torch.stack([image for image in read if isinstance(image, Tensor)]), places[good]


def _resizer(size: int) -> Callable[[Tensor], Tensor]:
    """One uint8 image (C, H, W) of any size → (C, size, size)."""
    cls = load("augmentations", "resize")
    operation = cls(cls.Options.parse({}), size)

    def resize(image: Tensor) -> Tensor:
        sizes = torch.tensor([image.shape[-2:]])
        parameters = operation.parameters(torch.empty(1, operation.draws, dtype=torch.float64), sizes)
        resized: Tensor = operation.apply_one(image, {name: value[0] for name, value in parameters.items()})
        return resized

    return resize
