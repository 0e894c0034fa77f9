"""`ssl init`: prints a config with what is usual for a method on the images that there are."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sslcli.contracts.errors import UserError
from sslcli.foreign import show
from sslcli.shell import path_word, shell_word

from . import completion
from .arguments import Overrides, PluginFiles, without_options

if TYPE_CHECKING:
    from sslcli.config.document import Document
    from sslcli.data.summary import Summary

log = logging.getLogger(__name__)

#: Side of the views by the shorter side of a typical image: the first one that it does not exceed.
SIZES = {40: 32, 80: 64, 112: 96, 176: 128}
LARGEST = 224
#: From this many images on, of 128 px or more, the published recipes use a ResNet-50.
MANY = 200_000


def init(
    method: Annotated[
        str,
        typer.Argument(
            help="Method; see `ssl list methods`.", metavar="METHOD", autocompletion=completion.plugins("methods")
        ),
    ],
    overrides: Overrides = None,
    data: Annotated[
        str | None, typer.Option(help="Folder of images, or a dataset; see `ssl list datasets`.", metavar="FOLDER|NAME")
    ] = None,
    plugin: PluginFiles = None,
) -> int:
    """Look at the data, and print a commented config with what is usual for it.

    Options after the method are put into the config.

    Example: ssl init simclr --data ~/photos > photos.yaml
    """
    from sslcli.config.merge import apply_overrides
    from sslcli.config.resolve import resolve
    from sslcli.plugins import load, register_file

    for path in plugin or []:
        register_file(path)
    words = without_options(init, list(overrides or []))
    cls = load("methods", method)
    if data is None:
        raise UserError("--data: missing; give a folder of images, or a dataset (`ssl list datasets`)")

    from sslcli.data.summary import summary_of  # torch is imported from here on

    found = summary_of(data, [word for word in words if word.startswith("data.")])
    if cls.needs_labels and not found.labeled:
        raise UserError(
            f"{method!r} needs labels, and there are none in {data}: give each class its own folder, or choose another "
            "method (`ssl list methods`)"
        )
    log.info(f"found: {found.line()}")
    document, reasons = chosen(method, found, vit="ViT" in cls.needs)
    apply_overrides(document, words)
    resolve(document)  # so that what is printed is valid
    images = path_word(Path(data)) if Path(data).exists() else shell_word(data)
    asked = ["ssl", "init", method, "--data", images, *map(shell_word, words)]
    show(as_text(document, reasons, [f"Written by `{' '.join(asked)}`.", f"Found: {found.line()}."]), end="")
    return 0


def chosen(method: str, found: Summary, *, vit: bool = False) -> tuple[Document, dict[tuple[str, ...], str]]:
    """Returns what is usual for a method on such data, for one that needs a `vit` with one, and by key why it is."""
    from sslcli.config.document import Document, Key

    side, count = found.side, found.count
    size = found.view_size or next((size for limit, size in SIZES.items() if side <= limit), LARGEST)
    many = (count or 0) >= MANY and size >= 128
    small, large = ("vit_small", "vit_base") if vit else ("resnet18", "resnet50")
    backbone: dict[str, Any] = {"name": large if many else small}
    training = {"epochs": 200, "batch_size": 256, "workers": "auto"}
    if count is not None:
        training["epochs"] = 800 if count < 10_000 else 200 if count < MANY else 100
        training["batch_size"] = usual_batch(count)
    reasons = {
        ("method",): f"Views, optimizer and schedule are those of its paper; its options: ssl list methods {method}",
        ("data",): found.reason,
        ("backbone", "name"): f"Usual up to some 100,000 images; {large} for more. All there are: ssl list backbones",
        ("views", "size"): f"Side of the views in pixels. The shorter side of a typical image is {side}"
        + (": more would only enlarge it." if size < LARGEST else "."),
        ("training", "epochs"): "The fewer images, the more epochs: published runs have 200 to 1000 with 50,000 "
        "images, 100 to 300 with a million. Begin with fewer to try it.",
        ("training", "batch_size"): "Less if the memory is too small (--dry-run says whether it is)"
        + ("." if training["batch_size"] == 256 else "; as small as this since there are few images."),
        ("training", "workers"): "Processes that decode images: CPU cores minus one"
        + ("; none are needed while all images fit into memory." if found.one_size and found.view_size else "."),
    }  # fmt: skip
    if found.large:
        reasons["data",] += " The files are much larger than the views: cache: auto decodes each only once, at 256 px."
    sections = {"method": {"name": method}, "data": found.section, "backbone": backbone, "views": {"size": size}}
    sections["training"] = training
    where: dict[Key, str] = {(section, name): "ssl init" for section, values in sections.items() for name in values}
    return Document(sections, {(): "ssl init", **where}), reasons


def usual_batch(count: int) -> int:
    """Returns a power of two: up to 256, with 8 steps in an epoch where this takes no less than 32."""
    wanted = min(256, max(32, count // 8), max(2, count))
    return 1 << (wanted.bit_length() - 1)


def as_text(document: Document, reasons: Mapping[tuple[str, ...], str], title: list[str]) -> str:
    """Returns a config as YAML, with comments: a title, and why each value is chosen, unless it was asked for."""
    from sslcli.config.document import dump_value

    lines = [f"# {each}" for each in title]  # one has a command, which is pasted as a line
    lines += _comment("What is not here has its default: --dry-run prints every value. Train: ssl train FILE.yaml", "")
    for section, values in document.data.items():
        lines += ["", *_comment(reasons.get((section,), ""), "")]
        if not isinstance(values, dict) or not values:
            lines.append(f"{section}: {dump_value(values)}")
        elif set(values) == {"name"} and (section, "name") not in reasons:
            lines.append(f"{section}: {dump_value(values['name'])}")
        else:
            lines.append(f"{section}:")
            for name, value in values.items():
                asked = document.origin((section, name)) == "command line"
                lines += _comment("" if asked else reasons.get((section, name), ""), "  ")
                lines.append(f"  {dump_value(name)}: {dump_value(value)}")
    return "\n".join(lines) + "\n"


def _comment(text: str, indent: str) -> list[str]:
    start = f"{indent}# "
    return textwrap.wrap(
        text, 110, initial_indent=start, subsequent_indent=start, break_long_words=False, break_on_hyphens=False
    )
