"""Images → features of a backbone in `eval()`, which is bitwise the same afterward."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from sslcli.augmentations.resampling import Interpolation
from sslcli.contracts.data import Dataset
from sslcli.contracts.errors import UnreadableImage
from sslcli.contracts.evaluation import FeatureSet
from sslcli.contracts.views import Operation
from sslcli.distributed import is_distributed, rank, world_size
from sslcli.dynamo import is_imported
from sslcli.plugins import load
from sslcli.runs.arithmetic import exact_float32

from .sharing import Unreadable, in_order

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


THREADS, BATCH = 8, 256

Block = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ReadBlocks:
    """What `read_blocks` yielded of `count` images, kept in memory."""

    blocks: list[Block]
    count: int

    def __len__(self) -> int:
        return self.count


Images = Tensor | Dataset | ReadBlocks


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Returns the context in which a network's arithmetic is `bf16` or `fp16`; anything else is float32."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def normalizer(mean: Sequence[float], std: Sequence[float], device: torch.device) -> Callable[[Tensor], Tensor]:
    """Returns the function uint8 (N, C, H, W) on the device → float32, minus `mean`, over `std` (both for [0, 1])."""
    center = torch.tensor(mean, device=device).reshape(1, -1, 1, 1) * 255
    scale = torch.tensor(std, device=device).reshape(1, -1, 1, 1) * 255
    return lambda images: (images.float() - center) / scale


def extract_features(
    backbone: nn.Module, images: Images, inputs: InputFormat, batch_size: int = BATCH, *, shared: bool = False
) -> FeatureSet:
    """Computes the pooled features of all images, in order and in float32.

    Args:
        backbone: images → `Features`, on the device; every module's mode is restored.
        images: uint8 (N, C, image_size, image_size) anywhere, a dataset, whose unreadable images are left out
            together with their labels, or blocks that have been read.
        inputs: the device, the images' size and their normalization.
        batch_size: images at once; the result does not depend on it (but for rounding).
        shared: every process calls this at the same time and computes its share of the blocks; the main one gets the
            features, bitwise those of one process on the same hardware, the others none.

    Returns:
        features (N, D) float32 and labels, both on the device.

    Raises:
        UserError: more than 1% of the images cannot be read.
    """
    labels = images.labels if isinstance(images, Dataset) else None
    result, done = torch.empty(0), 0
    kept = [torch.empty(0, dtype=torch.int64)]
    with closing(feature_blocks(backbone, images, inputs, batch_size, shared=shared)) as blocks:
        for pooled, indices in blocks:
            if not done:
                result = pooled.new_empty(len(images), pooled.shape[1])
            result[done : done + len(pooled)] = pooled
            done += len(pooled)
            kept.append(indices)
    return FeatureSet(result[:done], None if labels is None else labels[torch.cat(kept)].to(inputs.device))


def feature_blocks(
    backbone: nn.Module,
    images: Images,
    inputs: InputFormat,
    batch_size: int = BATCH,
    precision: PrecisionName = "fp32",
    *,
    shared: bool = False,
) -> Generator[tuple[Tensor, Tensor]]:
    """Returns block by block what `extract_features` returns as a whole, in the memory of a batch or two, and with the
    network's arithmetic in any precision.

    Args:
        backbone, images, inputs, batch_size, shared: as for `extract_features`; with `shared`, end it with `close()`.
        precision: of the network.

    Returns:
        an iterator over features (n, D) float32 on the device, and the indices (n,) int64 of these images, in order;
        unreadable images are left out. On processes that share, all blocks on the main one and none on the others.

    Raises:
        UserError: more than 1% of the images cannot be read.
    """
    shared = shared and is_distributed()
    unreadable = Unreadable(images, shared=shared) if isinstance(images, Dataset) else None
    if isinstance(images, ReadBlocks):
        read: Iterator[Block] = iter(images.blocks)
    else:
        interpolation: Interpolation = getattr(inputs, "interpolation", "bilinear")  # a run's monitors have none
        read = read_blocks(images, inputs.image_size, batch_size, interpolation, unreadable, shared=shared)
    computed = _computed(backbone, read, inputs, min(batch_size, len(images)), precision)
    if shared:
        count = -(-len(images) // batch_size)
        return in_order(computed, count, inputs.device, unreadable)
    return (block for block in computed if len(block[1]))


def _computed(
    backbone: nn.Module, read: Iterator[Block], inputs: InputFormat, size: int, precision: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields features and indices of each block; of one without images, the images' pixels in place of features."""
    for block, indices in read:
        if not len(indices):
            yield block, indices
            continue
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


def read_blocks(
    images: Tensor | Dataset,
    side: int,
    size: int = BATCH,
    interpolation: Interpolation = "bilinear",
    unreadable: Unreadable | None = None,
    *,
    shared: bool = False,
) -> Iterator[Block]:
    """Yields blocks of uint8 images (n, C, side, side) with their indices (n,), in order; n is 0 where none of a block
    can be read. With `shared`, every world-size'th block, from that of this process's rank on.

    Images that are not in memory are read in threads (decoders release the interpreter's lock), one block while the
    one before is computed.
    """
    mine = slice(rank(), None, world_size()) if shared else slice(None)
    blocks = torch.split(torch.arange(len(images)), size)[mine] if len(images) else ()
    if isinstance(images, Tensor):
        resident: Tensor | None = images
    else:  # asked only for images of the right size: a subset makes a copy
        resident = images.images() if images.info.image_size == (side, side) else None
    if resident is not None:
        yield from ((resident[block[0] : block[-1] + 1], block) for block in blocks)
        return
    assert isinstance(images, Dataset)
    counted = unreadable or Unreadable(images, shared=shared)
    cls = load("augmentations", "resize")
    resize = cls(cls.Options.parse({"interpolation": interpolation}), side)

    def read(index: int) -> Tensor | UnreadableImage:
        try:
            image = images.image(index)
        except UnreadableImage as error:
            return error
        return image if image.shape[-2:] == (side, side) else _resized(resize, image)

    nothing = torch.empty(0, images.info.channels, side, side, dtype=torch.uint8)
    with ThreadPoolExecutor(THREADS) as pool:
        submitted = ((block, [pool.submit(read, index) for index in block.tolist()]) for block in blocks)
        current = next(submitted, None)
        try:
            while current is not None:
                following = next(submitted, None)
                found = [future.result() for future in current[1]]
                both = zip(current[0].tolist(), found, strict=True)
                counted.add((index, each) for index, each in both if isinstance(each, UnreadableImage))
                good = [isinstance(each, Tensor) for each in found]
                tensors = [each for each in found if isinstance(each, Tensor)]
                block, indices = torch.stack(tensors) if tensors else nothing, current[0][torch.tensor(good)]
                del found, tensors  # not kept while the next ones are computed
                yield block, indices
                del block
                current = following
        finally:
            pool.shutdown(cancel_futures=True)


def _resized(resize: Operation, image: Tensor) -> Tensor:
    no_draws = torch.empty(1, resize.draws, dtype=torch.float64)
    parameters = resize.parameters(no_draws, torch.tensor([image.shape[-2:]]))
    return resize.apply_one(image, {name: value[0] for name, value in parameters.items()})
