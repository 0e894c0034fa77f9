"""What the exporters of whole networks share: images → features as one module of tensors, traced for any batch size."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from sslcli.contracts.errors import SslError, UserError
from sslcli.contracts.export import BackboneCard, Trained
from sslcli.contracts.options import Options
from sslcli.storage import atomic_path

#: Largest difference to torch that a check lets pass, for features whose largest value is 1 or less.
TOLERANCE = 1e-4
#: More images than this are no batch; without a bound older versions of torch cannot trace.
MOST_IMAGES = 2**31 - 1
#: Batch sizes that a written file is tried with; it was traced with another.
TRIED_WITH = (1, 3)


class NetworkOptions(Options):
    """Options of the exporters that write a whole network."""

    normalize: bool = False
    """Take images in [0, 1] and normalize them inside; false: the images must be normalized already, with the mean and
    std that the file names."""


class Network(nn.Module):
    """Images (N, C, H, W) → features (N, D), with the normalization inside or not."""

    mean: Tensor
    std: Tensor

    def __init__(self, trained: Trained, *, normalize: bool) -> None:
        super().__init__()
        # A copy, because tracing sets flags on modules.
        self.backbone = copy.deepcopy(trained.backbone)
        self.normalize = normalize
        if normalize:
            for name, values in (("mean", trained.card.mean), ("std", trained.card.std)):
                self.register_buffer(name, torch.tensor(values).reshape(1, -1, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        if self.normalize:
            images = (images - self.mean) / self.std
        pooled: Tensor = self.backbone(images).pooled
        return pooled


def sample_images(card: BackboneCard, count: int) -> Tensor:
    """Returns random images (count, C, S, S) in [0, 1], always the same."""
    generator = torch.Generator().manual_seed(count)
    return torch.rand(count, card.channels, card.image_size, card.image_size, generator=generator)


def trace(network: nn.Module, card: BackboneCard) -> ExportedProgram:
    """Traces a network in `eval()` whose argument is called `images`, for any number of images of the card's size.

    Raises:
        UserError: torch cannot follow its code.
    """
    dynamic = {"images": {0: Dim("batch", max=MOST_IMAGES)}}
    reasons = []
    for strict in (False, True):  # what the one way of tracing cannot follow, the other often can
        try:
            with quiet():
                program = torch.export.export(network, (sample_images(card, 2),), dynamic_shapes=dynamic, strict=strict)
        except Exception as error:  # whatever the network's own code raises while it is traced
            reasons.append(one_line(error))
            continue
        for part in program.graph_module.modules():
            if isinstance(part, torch.fx.GraphModule):
                # Questions about types are left in, which torch 2.6 cannot write.
                part.graph.eliminate_dead_code()
                part.recompile()
        return program
    name = card.backbone.get("name")
    raise UserError(f"the backbone {name!r} cannot be exported: torch.export cannot follow its code ({reasons[0]})")


def check_same(path: Path, found: Tensor, wanted: Tensor) -> float:
    """Returns the largest difference; SslError where a written network gives other features than torch's."""
    wanted, found = wanted.float(), found.float()
    if found.shape != wanted.shape:
        raise SslError(f"{path}: not written: it gives {tuple(found.shape)} where torch gives {tuple(wanted.shape)}")
    difference = float((found - wanted).abs().max())
    limit = TOLERANCE * max(1.0, float(wanted.abs().max()))
    if not difference <= limit:  # also where it is not a number
        raise SslError(f"{path}: not written: its features differ from torch's by {difference:.2g} (limit {limit:.2g})")
    return difference


def input_text(card: BackboneCard, *, normalize: bool) -> str:
    """Returns what goes into an exported network, as a comment behind the line that loads it."""
    shape = f"(N, {card.channels}, {card.image_size}, {card.image_size})"
    scale = "in [0, 1]" if normalize else f"normalized: in [0, 1], minus {list(card.mean)}, over {list(card.std)}"
    return f"# images: float32 {shape}, {scale}"


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path that takes `path`'s place at the end; UserError where `path` cannot be written."""
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be written ({reason}); choose another place for it") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps torch's exporters from printing; stdout is for the lines that load the file."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def one_line(error: BaseException) -> str:
    """Returns the type and the first 200 characters of an exception."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200].rstrip(": ")
