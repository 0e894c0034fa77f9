"""The base of exporters of whole networks: images → features as one module of tensors, traced for any batch size."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from sslcli.contracts.errors import SslError, UserError
from sslcli.contracts.export import BackboneCard, Exported, Exporter, Trained
from sslcli.contracts.options import Options
from sslcli.evaluation.classifier import describe_classifier
from sslcli.runs.backbone_file import describe
from sslcli.storage import atomic_path, expanded, writing

log = logging.getLogger(__name__)

#: Largest difference from torch's features that is accepted, where their largest value is 1 or less.
TOLERANCE = 1e-4
#: Upper bound of the batch size, without which older versions of torch cannot trace.
MOST_IMAGES = 2**31 - 1
#: Batch sizes that a written file is checked with; it was traced with another.
TRIED_WITH = (1, 3)


class NetworkOptions(Options):
    """Options of the exporters that write a whole network."""

    normalize: bool = False
    """Accept images in [0, 1] and normalize them; false: the images must be normalized already, with the mean and
    std that the file names."""


class Network(nn.Module):
    """Images (N, C, H, W) → features (N, D), or a classifier's scores (N, K); with the normalization inside or not.

    Attributes:
        classes: K names; empty without a classifier.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, trained: Trained, *, normalize: bool) -> None:
        super().__init__()
        # A copy, because tracing sets flags on modules; on the CPU, where the file is checked.
        self.backbone = copy.deepcopy(trained.backbone).cpu()
        self.classifier: nn.Linear | None = None
        self.classes: tuple[str, ...] = ()
        if trained.classifier is not None:
            weight, bias = trained.classifier.weight, trained.classifier.bias
            self.classifier = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])  # type: ignore[no-untyped-call]
            self.classifier.load_state_dict({"weight": weight, "bias": bias})
            self.classes = trained.classifier.classes
        self.normalize = normalize
        if normalize:
            for name, values in (("mean", trained.card.mean), ("std", trained.card.std)):
                self.register_buffer(name, torch.tensor(values).reshape(1, -1, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        if self.normalize:
            images = (images - self.mean) / self.std
        pooled: Tensor = self.backbone(images).pooled
        return pooled if self.classifier is None else self.classifier(pooled)


def output_of(trained: Trained) -> str:
    """Returns what a network's output is called."""
    return "features" if trained.classifier is None else "scores"


class NetworkExporter(Exporter):
    """Writes images → features for any batch size, atomically, and only if loading it gives the same features.

    A subclass writes and loads its kind of file.
    """

    Options = NetworkOptions
    options: NetworkOptions

    def export(self, trained: Trained, path: Path) -> Exported:
        """Writes `path`.

        Raises:
            UserError: the network cannot be expressed, a package is missing, or the file cannot be written.
            SslError: the written network gives other features.
        """
        path = expanded(path)
        network = self.network(trained)
        about = describe(trained.card, trained.plugin) | {"normalize": str(self.options.normalize).lower()}
        if trained.classifier is not None:
            about |= describe_classifier(trained.classifier)
        with whole_file(path) as temporary:
            loaded = self.write(network, trained, about, path, temporary)
            if loaded is not None:
                difference = check_network(path, loaded, network, trained.card)
                log.info(f"{path.name}: checked, its {output_of(trained)} differ from torch's by {difference:.1g}")
        card = trained.card
        shape = f"(N, {card.channels}, {card.image_size}, {card.image_size})"
        scale = f"normalized: in [0, 1], minus {list(card.mean)}, over {list(card.std)}"
        takes = f"# images: float32 {shape}, {'in [0, 1]' if self.options.normalize else scale}"
        lines = [*self.loading_lines(path), takes, f"# {self.output_text(network, card)}"]
        return Exported(path, "\n".join(lines))

    def network(self, trained: Trained) -> nn.Module:
        """Returns what is exported, in `eval()`; its argument is called `images`."""
        return Network(trained, normalize=self.options.normalize)

    @abstractmethod
    def write(
        self, network: nn.Module, trained: Trained, about: dict[str, str], path: Path, temporary: Path
    ) -> Callable[[Tensor], Any] | None:
        """Writes a network to `temporary`, with `about` inside, which will be renamed to `path`.

        Returns:
            what the file loads as, images → features, or a tuple as the network's; None where nothing can load it.
        """

    @abstractmethod
    def loading_lines(self, path: Path) -> list[str]:
        """Returns the Python lines that define `model`."""

    def output_text(self, network: nn.Module, card: BackboneCard) -> str:
        """Returns what a call of `model` gives."""
        return f"features = model(images): float32 (N, {card.feature_dim})"


def check_network(path: Path, loaded: Callable[[Tensor], Any], network: nn.Module, card: BackboneCard) -> float:
    """Returns the largest difference from torch on a few images; SslError where it is too large."""
    largest = 0.0
    for count in TRIED_WITH:
        images = sample_images(card, count)
        with torch.no_grad():
            found, expected = loaded(images), network(images)
        pairs = zip(found, expected, strict=True) if isinstance(expected, tuple) else [(found, expected)]
        for ours, theirs in pairs:
            if ours.shape != theirs.shape:
                shapes = f"{tuple(ours.shape)} where torch gives {tuple(theirs.shape)}"
                raise SslError(f"{path}: not written: it gives {shapes}")
            difference = float((ours.float() - theirs.float()).abs().max())
            limit = TOLERANCE * max(1.0, float(theirs.abs().max()))
            if not difference <= limit:  # also if it is NaN
                raise SslError(
                    f"{path}: not written: its features differ from torch's by {difference:.2g} (limit {limit:.2g})"
                )
            largest = max(largest, difference)
    return largest


def sample_images(card: BackboneCard, count: int) -> Tensor:
    """Returns random images (count, C, S, S) in [0, 1], always the same."""
    generator = torch.Generator().manual_seed(count)
    return torch.rand(count, card.channels, card.image_size, card.image_size, generator=generator)


def trace(network: nn.Module, card: BackboneCard) -> ExportedProgram:
    """Traces a network in `eval()` whose argument is called `images`, for any number of images of the card's size.

    Raises:
        UserError: torch cannot trace its code.
    """
    dynamic = {"images": {0: Dim("batch", max=MOST_IMAGES)}}
    reasons = []
    for strict in (False, True):  # where one way of tracing fails, the other often works
        try:
            with quiet():
                program = torch.export.export(network, (sample_images(card, 2),), dynamic_shapes=dynamic, strict=strict)
        except Exception as error:  # whatever the network's own code raises while it is traced
            reasons.append(one_line(error))
            continue
        for part in program.graph_module.modules():
            if isinstance(part, torch.fx.GraphModule):
                # Unused checks of types remain otherwise, which torch 2.6 cannot write.
                part.graph.eliminate_dead_code()
                part.recompile()
        return program
    name = card.backbone.get("name")
    raise UserError(f"the backbone {name!r} cannot be exported: torch.export cannot trace it ({reasons[0]})")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path that replaces `path` at the end; UserError where `path` cannot be written."""
    with writing(path, "; choose another path"), atomic_path(path) as temporary:
        yield temporary


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences torch's exporters; stdout is for the lines that load the file."""
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
