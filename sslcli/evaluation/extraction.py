"""Images → features of a backbone in `eval()`, which is bitwise the same afterward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from sslcli.augmentations.resampling import Interpolation
from sslcli.contracts.data import Dataset
from sslcli.contracts.errors import UnreadableImage, UserError
from sslcli.contracts.evaluation import FeatureSet
from sslcli.contracts.views import Operation
from sslcli.data.decode import most_unreadable
from sslcli.dynamo import is_imported
from sslcli.plugins import load
from sslcli.runs.arithmetic import exact_float32

PrecisionName = Literal["fp32", "bf16", "fp16"]


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


THREADS = 8


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Returns the context in which a network's arithmetic is `bf16` or `fp16`; anything else is float32."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def normalizer(mean: Sequence[float], std: Sequence[float], device: torch.device) -> Callable[[Tensor], Tensor]:
    """Returns the function uint8 (N, C, H, W) on the device → float32, minus `mean`, over `std` (both for [0, 1])."""
    center = torch.tensor(mean, device=device).reshape(1, -1, 1, 1) * 255
    scale = torch.tensor(std, device=device).reshape(1, -1, 1, 1) * 255
    return lambda images: (images.float() - center) / scale


def load_images(dataset: Dataset, image_size: int) -> tuple[Tensor, Tensor]:
    """Reads all images into memory.

    Args:
        dataset: the images.
        image_size: side in pixels; other sizes are resized and cropped to the center (the operation `resize`).

    Returns:
        uint8 (K, C, image_size, image_size) on the CPU, and the (K,) indices of those that could be read.

    Raises:
        UserError: more than 1% of them cannot be read.
    """
    block = next(_read(dataset, image_size, max(1, len(dataset))), None)
    if block is None:
        raise UserError(f"{dataset.info.name}: there are no images to read")
    return block


def extract_features(
    backbone: nn.Module, images: Tensor | Dataset, inputs: InputFormat, batch_size: int = 256
) -> FeatureSet:
    """Computes the pooled features of all images, in order and in float32.

    Args:
        backbone: images → `Features`, on the device; every module's mode is restored.
        images: uint8 (N, C, image_size, image_size) anywhere, or a dataset, whose unreadable images are left out
            together with their labels.
        inputs: the device, the images' size and their normalization.
        batch_size: images at once; the result does not depend on it (but for rounding).

    Returns:
        features (N, D) float32 and labels, both on the device.

    Raises:
        UserError: more than 1% of the images cannot be read.
    """
    labels = None if isinstance(images, Tensor) else images.labels
    result, done = torch.empty(0), 0
    kept: list[Tensor] = []
    for pooled, indices in feature_blocks(backbone, images, inputs, batch_size):
        if not kept:
            result = pooled.new_empty(len(images), pooled.shape[1])
        result[done : done + len(pooled)] = pooled
        done += len(pooled)
        kept.append(indices)
    return FeatureSet(result[:done], None if labels is None else labels[torch.cat(kept)].to(inputs.device))


def feature_blocks(
    backbone: nn.Module,
    images: Tensor | Dataset,
    inputs: InputFormat,
    batch_size: int = 256,
    precision: PrecisionName = "fp32",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Returns block by block what `extract_features` returns as a whole, in the memory of a batch or two, and with the
    network's arithmetic in any precision.

    Returns:
        an iterator over features (n, D) float32 on the device, and the indices (n,) int64 of these images, in order;
        unreadable images are left out.

    Raises:
        UserError: more than 1% of the images cannot be read.
    """
    size = min(batch_size, len(images))
    interpolation: Interpolation = getattr(inputs, "interpolation", "bilinear")  # a run's monitors have no such option
    for block, indices in _read(images, inputs.image_size, batch_size, interpolation):
        # Entered anew for each block, since the caller's code runs between two blocks.
        exact = exact_float32() if precision == "fp32" else nullcontext()
        with torch.no_grad(), exact, _evaluating(backbone), autocast(inputs.device, precision):
            pooled = backbone(inputs.normalize(_sent(block, size, inputs.device))).pooled[: len(block)]
        yield pooled.float(), indices


def _sent(block: Tensor, size: int, device: torch.device) -> Tensor:
    """Returns images on the device: on CUDA `size` of them, the missing ones black, from pinned memory.

    So the host does not wait, and kernels, of which cuDNN may try all for a new shape, see one shape only.
    """
    if device.type != "cuda":
        return block.to(device)
    if len(block) < size or not (block.is_cuda or block.is_pinned()):
        full = torch.zeros((size, *block.shape[1:]), dtype=block.dtype, device=block.device, pin_memory=block.is_cpu)
        full[: len(block)] = block
        block = full
    return block.to(device, non_blocking=True)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """`eval()` within the block; afterward each module has the mode it had, which need not be the same for all.

    A backbone that was compiled for training is eager here: compiling it again, for this mode and batch size, would
    take longer than it saves.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.compiler.set_stance("force_eager") if is_imported() else nullcontext():
            yield
    finally:
        for part, training in modes:
            part.training = training


def _read(
    images: Tensor | Dataset, side: int, size: int, interpolation: Interpolation = "bilinear"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields blocks of uint8 images (n, C, side, side), n > 0, with their indices (n,), in order.

    Images that are not in memory are read in threads (decoders release the interpreter's lock), one block while the
    one before is computed.
    """
    blocks = torch.split(torch.arange(len(images)), size)
    if isinstance(images, Tensor):
        resident: Tensor | None = images
    else:  # asked only for images of the right size: a subset makes a copy
        resident = images.images() if images.info.image_size == (side, side) else None
    if resident is not None:
        yield from zip(torch.split(resident, size), blocks, strict=True)
        return
    assert isinstance(images, Dataset)
    cls = load("augmentations", "resize")
    resize = cls(cls.Options.parse({"interpolation": interpolation}), side)

    def read(index: int) -> Tensor | UnreadableImage:
        try:
            image = images.image(index)
        except UnreadableImage as error:
            return error
        return image if image.shape[-2:] == (side, side) else _resized(resize, image)

    # With more unreadable images a result would no longer represent the dataset.
    limit = getattr(images.options, "max_unreadable", 0.01)
    unreadable: list[UnreadableImage] = []
    with ThreadPoolExecutor(THREADS) as pool:
        submitted = ((block, [pool.submit(read, index) for index in block.tolist()]) for block in blocks)
        current = next(submitted, None)
        try:
            while current is not None:
                following = next(submitted, None)
                found = [future.result() for future in current[1]]
                unreadable += [each for each in found if isinstance(each, UnreadableImage)]
                if len(unreadable) > most_unreadable(limit, len(images)):
                    raise UserError(
                        f"{images.info.name}: more than {100 * limit:g}% of the {len(images):,} images cannot be "
                        f"read, the first one: {unreadable[0]}; repair or remove them, or raise data.max_unreadable"
                    )
                both = zip(current[0], found, strict=True)
                good = [(index, image) for index, image in both if isinstance(image, Tensor)]
                if good:
                    indices, tensors = map(torch.stack, zip(*good, strict=True))
                    del found, good  # not kept while the next ones are computed
                    yield tensors, indices
                    del tensors
                current = following
        finally:
            pool.shutdown(cancel_futures=True)


def _resized(resize: Operation, image: Tensor) -> Tensor:
    no_draws = torch.empty(1, resize.draws, dtype=torch.float64)
    parameters = resize.parameters(no_draws, torch.tensor([image.shape[-2:]]))
    return resize.apply_one(image, {name: value[0] for name, value in parameters.items()})
