"""Images → features of a backbone in `eval()`, which is bitwise the same afterward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.data import Dataset
from sslcli.contracts.errors import UnreadableImage, UserError
from sslcli.contracts.evaluation import FeatureSet
from sslcli.plugins import load

PrecisionName = Literal["fp32", "bf16", "fp16"]
Normalize = Callable[[Tensor], Tensor]


class InputFormat(Protocol):
    """How images become a backbone's input: a `Subject` and a `RunContext` have all of it.

    Attributes:
        device: where to compute.
        image_size: side in pixels of the images that the backbone is given.
        normalize: uint8 (N, C, H, W) on the device → what the backbone was trained on.
    """

    device: torch.device
    image_size: int

    def normalize(self, images: Tensor) -> Tensor: ...


#: Above this share of unreadable images a number would not be of the data set that it names.
UNREADABLE_LIMIT = 0.01
THREADS = 8

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def normalizer(mean: Sequence[float], std: Sequence[float], device: torch.device) -> Normalize:
    """Returns the function uint8 (N, C, H, W) on the device → float32, minus `mean`, over `std` (both for [0, 1])."""
    center = torch.tensor(mean, device=device).reshape(1, -1, 1, 1) * 255
    scale = torch.tensor(std, device=device).reshape(1, -1, 1, 1) * 255
    return lambda images: (images.float() - center) / scale


def load_images(dataset: Dataset, image_size: int, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Reads images into memory, each brought to `image_size`.

    Args:
        dataset: the images.
        image_size: side in pixels; other sizes are resized and cropped to the center (the operation `resize`).
        indices: (K,) int64, which ones.

    Returns:
        uint8 (K', C, image_size, image_size) on the CPU, and the (K',) indices of those that could be read.

    Raises:
        UserError: more than 1% of them cannot be read.
    """
    blocks = list(_read(dataset, image_size, indices, max(1, len(indices))))
    if not blocks:
        raise UserError(f"{dataset.info.name}: there are no images to read")
    return blocks[0]


def extract_features(
    backbone: Backbone,
    images: Tensor | Dataset,
    inputs: InputFormat,
    batch_size: int = 256,
    precision: PrecisionName = "fp32",
) -> FeatureSet:
    """Computes the pooled features of all images, in order.

    Args:
        backbone: on the device; every module's mode is restored.
        images: uint8 (N, C, image_size, image_size) anywhere, or a data set, whose unreadable images are left out
            together with their labels.
        inputs: the device, the images' size and their normalization.
        batch_size: images at once; the result does not depend on it (but for rounding).
        precision: arithmetic of the network.

    Returns:
        features (N, D) float32 and labels, both on the device.

    Raises:
        UserError: more than 1% of the images cannot be read.
    """
    labels = None if isinstance(images, Tensor) else images.labels
    result = torch.empty(len(images), backbone.spec.feature_dim, device=inputs.device)
    kept: list[Tensor] = []
    done = 0
    for pooled, indices in feature_blocks(backbone, images, inputs, batch_size, precision):
        result[done : done + len(pooled)] = pooled
        done += len(pooled)
        kept.append(indices)
    return FeatureSet(result[:done], None if labels is None else labels[torch.cat(kept)].to(inputs.device))


def feature_blocks(
    backbone: Backbone,
    images: Tensor | Dataset,
    inputs: InputFormat,
    batch_size: int = 256,
    precision: PrecisionName = "fp32",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Returns block by block what `extract_features` returns as a whole, in the memory of a batch or two.

    Returns:
        an iterator over features (n, D) float32 on the device, and the indices (n,) int64 of these images, in order;
        unreadable images are left out.

    Raises:
        UserError: more than 1% of the images cannot be read.
    """
    dtype, everything = DTYPES.get(precision), torch.arange(len(images))
    blocks: Iterator[tuple[Tensor, Tensor]]
    if isinstance(images, Tensor):
        blocks = zip(torch.split(images, batch_size), torch.split(everything, batch_size), strict=True)
    else:
        blocks = _read(images, inputs.image_size, everything, batch_size)
    for block, indices in blocks:
        # Entered anew for each block, since the caller's code runs between two blocks.
        with (
            torch.no_grad(),
            _evaluating(backbone),
            torch.autocast(inputs.device.type, dtype, enabled=dtype is not None),
        ):
            pooled = backbone(inputs.normalize(block.to(inputs.device))).pooled
        yield pooled.float(), indices


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """`eval()` within the block; afterward each module has the mode it had, which need not be the same for all.

    A backbone that was compiled for training is eager here: compiling it again, for this mode and batch size, would
    take longer than it saves.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for part, training in modes:
            part.training = training


def _read(dataset: Dataset, side: int, indices: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields blocks of uint8 images (n, C, side, side), n > 0, with their indices (n,), in order.

    Images that are not in memory are read in threads (decoders release the interpreter's lock), one block while the
    one before is computed.
    """
    resident = dataset.images()
    if resident is not None and resident.shape[-2:] == (side, side):
        everything = torch.equal(indices, torch.arange(len(resident)))
        for block in torch.split(indices, size):
            start = int(block[0])
            yield (resident[start : start + len(block)] if everything else resident[block]), block
        return
    resize = _resizer(side)
    unreadable: list[UnreadableImage] = []

    def read(index: int) -> Tensor | UnreadableImage:
        try:
            image = dataset.image(index)
        except UnreadableImage as error:
            return error
        return image if image.shape[-2:] == (side, side) else resize(image)

    def collect(block: Tensor, futures: list[Future[Tensor | UnreadableImage]]) -> Iterator[tuple[Tensor, Tensor]]:
        found = [future.result() for future in futures]
        unreadable.extend(each for each in found if isinstance(each, UnreadableImage))
        if len(unreadable) > UNREADABLE_LIMIT * len(indices):
            raise UserError(
                f"{dataset.info.name}: more than {UNREADABLE_LIMIT:.0%} of the {len(indices):,} images cannot be read, "
                f"the first one: {unreadable[0]}; repair or remove them"
            )
        good = torch.tensor([isinstance(each, Tensor) for each in found])
        if bool(good.any()):
            yield torch.stack([each for each in found if isinstance(each, Tensor)]), block[good]

    with ThreadPoolExecutor(THREADS) as pool:
        waiting: list[tuple[Tensor, list[Future[Tensor | UnreadableImage]]]] = []
        try:
            for block in torch.split(indices, size):
                waiting.append((block, [pool.submit(read, index) for index in block.tolist()]))
                if len(waiting) > 1:
                    yield from collect(*waiting.pop(0))
            for block, futures in waiting:
                yield from collect(block, futures)
        finally:
            pool.shutdown(cancel_futures=True)


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
