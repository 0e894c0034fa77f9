"""The page on Python: its blocks are one program that runs, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sslcli.datasets.shapes import draw

HOME = Path(__file__).parent.parent.parent
PAGE = (HOME / "docs" / "python.md").read_text()
#: What makes the page's program small.
SMALLER = {
    "epochs=3": "epochs=1",
    "epochs=10": "epochs=2",
    "batch_size=128": "batch_size=32",
    '"count": 2000': '"count": 64',
}


def write_pictures(folder: Path, split: int, count: int) -> None:
    folder.mkdir(parents=True)
    for index, image in enumerate(draw(0, split, torch.arange(count), 32)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index % 10}-{index:04}.png")


@pytest.mark.slow
def test_the_pages_program_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures" / "train", 0, 128)
    write_pictures(tmp_path / "pictures" / "test", 1, 40)
    program = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
    for written, small in SMALLER.items():
        assert written in program
        program = program.replace(written, small)
    program = program.replace('{"k": [20], "data.limit": 1000}', '{"k": [5], "data.limit": 40}')
    program = program.replace('"data.limit": 500', '"data.limit": 40').replace("k=[20]", "k=[5]")
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(program, "docs/python.md", "exec"), names)
    assert names["run"].step == 2
    assert 0 <= names["again"].metrics["top1"] <= 1
    assert names["best"].lowest < float("inf")
    assert type(names["trained"]) is torch.nn.Sequential
    assert not any(parameter.requires_grad for parameter in names["backbone"].parameters())
    assert names["accuracy"] > 0.1  # chance


def test_the_readmes_lines_run(tmp_path, monkeypatch) -> None:
    (section,) = re.findall(r"^## Python\n(.*?)^## ", (HOME / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    program = "\n".join(re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL))
    tiny = {"backbone.width": 4, "data.count": 160, "training.max_steps": 1, "data.size": 32}
    assert '{"training.epochs": 2}' in program
    program = program.replace('{"training.epochs": 2}', repr(tiny))
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "README.md", "exec"), {"__name__": "readme"})
    assert (tmp_path / "runs" / "notebook" / "backbone.safetensors").is_file()


def test_links_of_the_page_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGE):
        assert (HOME / "docs" / target).exists(), target
