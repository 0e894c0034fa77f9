"""Packages and files of plugins for tests: written to disk as an installer or a user would, nothing mocked."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sslcli import plugins
from sslcli.plugins import PluginError

Install = Callable[..., None]

CALLBACK = """
from sslcli.contracts.callback import Callback

class Bell(Callback):
    \"\"\"Rings.\"\"\"
"""
#: Entry points of a package whose module `bells` holds that.
BELL = "[sslcli.callbacks]\nbell = bells:Bell\n"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Writes a package's metadata and modules; with `metadata`, that text instead of what is right."""

    def write(
        package: str, entry_points: str, modules: dict[str, str] | None = None, *, version: str = "1.0",
        folder: str = "site", metadata: str | None = None,
    ) -> None:  # fmt: skip
        site = tmp_path / folder
        info = site / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        default = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        (info / "METADATA").write_text(default if metadata is None else metadata)
        (info / "entry_points.txt").write_text(textwrap.dedent(entry_points))
        for name, source in (modules or {}).items():
            (site / f"{name}.py").write_text(source)
        if str(site) not in sys.path:
            monkeypatch.syspath_prepend(str(site))
        plugins.clear_cache()

    before = set(sys.modules)
    yield write
    plugins.clear_cache()
    for name in set(sys.modules) - before:
        origin = getattr(sys.modules[name], "__file__", None)
        if origin is not None and origin.startswith(str(tmp_path)):
            del sys.modules[name]


def message(call: Callable[[], object]) -> str:
    """The one line of the PluginError that a call raises."""
    with pytest.raises(PluginError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)
