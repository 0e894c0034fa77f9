"""What there is in a folder or a dataset, from the headers of a few of its images."""

from __future__ import annotations

import logging
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from sslcli.config import data_section
from sslcli.config.options import overrides_as_data, validate
from sslcli.config.problems import Problems
from sslcli.contracts.data import Dataset, StreamDataset
from sslcli.contracts.errors import UnreadableImage, UserError
from sslcli.plugins import load

from .files import FileDataset
from .paths import image_files, subfolders
from .subset import limited

log = logging.getLogger(__name__)

#: Images whose header is read.
LOOKED_AT = 200
#: Modes of gray images.
GRAY = {"1", "L", "LA", "I", "F", "I;16", "I;16B"}


@dataclass
class Summary:
    """What there is.

    Attributes:
        section: the `data:` section.
        reason: why it is this one.
        count: number of images, if it is known.
        labeled: whether they have labels.
        classes: how many there are, if it is known.
        sizes: (width, height) of the images that were looked at.
        view_size: side of the views that the dataset itself asks for, None for files.
    """

    section: dict[str, Any]
    reason: str
    count: int | None
    labeled: bool
    classes: int
    sizes: list[tuple[int, int]]
    view_size: int | None

    @property
    def side(self) -> int:
        """The median shorter side in pixels."""
        return int(statistics.median([min(size) for size in self.sizes])) if self.sizes else self.view_size or 224

    @property
    def one_size(self) -> bool:
        return len(set(self.sizes)) == 1

    @property
    def large(self) -> bool:
        """Whether decoding takes most of the time."""
        return self.view_size is None and self.side >= 1000

    def line(self) -> str:
        """What there is, in words."""
        what = "images" if self.count is None else f"{self.count:,} image{'s' * (self.count != 1)}"
        labels = f"{self.classes} classes" if self.classes else "with labels" if self.labeled else "no labels"
        if not self.sizes:
            return f"{what}, {labels}, not looked at"
        width, height = (int(statistics.median(sides)) for sides in zip(*self.sizes, strict=True))
        if self.one_size:
            return f"{what} of {width} × {height} px, {labels}"
        shorter = [min(size) for size in self.sizes]
        sides = f"{min(shorter)} to {max(shorter)}" if min(shorter) < max(shorter) else str(min(shorter))
        looked = "" if len(shorter) == self.count else f" in {len(shorter)} of them"
        return f"{what}, typically {width} × {height} px (shorter side {sides}{looked}), {labels}"


def summary_of(data: str, options: Sequence[str]) -> Summary:
    """Looks at a dataset, or at a folder, whose subfolders are its classes if all images are in some.

    Args:
        data: the name of a dataset, or a folder.
        options: of the dataset, as overrides: `data.root=…`.

    Raises:
        UserError: there is neither, the folder has no images, or options are invalid.
    """
    named = [each for each in options if each.startswith(("data.name=", "data="))]
    folder = data_section.is_folder(data)
    start = [*named, f"data.root={data}"] if named and folder else [f"data={data}"]
    document = overrides_as_data([*start, *(each for each in options if not (folder and each in named))])
    problems = Problems(document)
    section = data_section.found(document.data["data"], problems)
    problems.raise_any()
    section = {"name": section} if isinstance(section, str) else {"name": section["name"], **section}
    reason = f"Options: ssl list datasets {section['name']}"
    if folder and not named:
        section, reason = _layout(section)
    cls = load("datasets", section["name"])
    given = {name: value for name, value in section.items() if name != "name"}
    valid = validate(cls.Options, given, repr(section["name"]), document, ("data",))
    own_size = None if issubclass(cls, FileDataset) else int(cls.view_size(valid))
    try:
        dataset = cls.open(valid)
    except UserError as error:
        if own_size is None:
            raise
        log.warning(f"{error}; the config is for {section['name']!r} without a look at it")
        return Summary(section, reason, None, cls.labeled(valid, "train") is not None, 0, [], own_size)
    classes = len(dataset.info.classes or ())
    if isinstance(dataset, StreamDataset):
        return Summary(section, reason, dataset.length, classes > 0, classes, [], own_size)
    dataset = limited(dataset)
    sizes, modes = _headers(dataset)
    if "channels" in cls.Options.model_fields and "channels" not in section and modes and modes <= GRAY:
        section["channels"] = 1
        reason += " The images are gray: channels: 1."
    return Summary(section, reason, len(dataset), dataset.labels is not None, classes, sizes, own_size)


def _layout(section: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The section for a folder: with labels if it has subfolders, and all images are in them."""
    cls = load("datasets", "folder")
    labeled = {**section, "name": "folder"}
    try:
        found = cls.open(cls.Options.parse({"root": section["root"]}))
        root = found.folder
        inside = set(subfolders(root))
        direct = any("/" not in name for name in image_files(root))
        if len(inside) > 1 and not direct:
            with_test = cls.labeled(found.options, "eval") is not None
            tested = (
                "val/ or test/ is for evaluations" if with_test else "evaluations need train/ and val/, each with these"
            )
            return labeled, f"Each subfolder is a class; {tested}. `name: images` reads them without labels."
    except UserError:
        pass  # no such layout
    return section, "All images below the folder, without labels. `name: folder` takes subfolders as classes."


def _headers(dataset: Dataset) -> tuple[list[tuple[int, int]], set[str]]:
    """Sizes (width, height) and modes of some `LOOKED_AT` images, evenly spaced, without those that cannot be read."""
    if dataset.info.image_size is not None:
        height, width = dataset.info.image_size
        return [(width, height)], set()
    sizes: list[tuple[int, int]] = []
    modes: set[str] = set()
    for index in range(0, len(dataset), max(1, len(dataset) // LOOKED_AT)):
        path = dataset.path_of(index)
        try:
            if path is None:
                _, height, width = dataset.image(index).shape
                sizes.append((width, height))
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of very large images: only the header is read
                with Image.open(path) as image:
                    sizes.append(image.size)
                    modes.add(image.mode)
        except (UnreadableImage, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
    return sizes, modes
