"""Finding and loading plugins, with real metadata on the path."""

from __future__ import annotations

import hashlib
import pickle
import sys
from pathlib import Path

import pytest
from plugin_helpers import BELL, CALLBACK, Install, message

from sslcli import plugins
from sslcli.contracts.callback import Callback
from sslcli.plugins import choose, find, load, register_file

pytestmark = pytest.mark.usefixtures("install")


def test_a_package_is_found_without_being_imported(install: Install) -> None:
    install("bells", "[console_scripts]\nx = bells:main\n" + BELL, {"bells": CALLBACK}, version="2.3")
    (bell,) = [plugin for plugin in find("callbacks") if plugin.package == "bells"]
    assert (bell.name, bell.version, bell.target) == ("bell", "2.3", "bells:Bell")
    assert "bells" not in sys.modules
    assert issubclass(load("callbacks", "bell"), Callback)
    assert "bells" in sys.modules


def test_a_group_can_be_named_in_full() -> None:
    assert find("sslcli.methods") == find("methods")
    assert "did you mean methods" in message(lambda: find("methds"))
    assert "available: augmentations, backbones" in message(lambda: find("zzz"))


def test_plugins_are_sorted_whatever_the_order_in_the_metadata(install: Install) -> None:
    install("zoo", "[sslcli.callbacks]\nzebra = zoo:Z\nant = zoo:A\nmole = zoo:M\n")
    names = [plugin.name for plugin in find("callbacks")]
    assert names == sorted(names)
    assert {"zebra", "ant", "mole"} <= set(names)


def test_an_unknown_name_is_answered_with_the_closest_ones_or_with_all() -> None:
    assert message(lambda: load("methods", "simclrr")).startswith("unknown method 'simclrr'; did you mean simclr")
    assert "unknown exporter 'qqqq'; available: backbone" in message(lambda: load("exporters", "qqqq"))


def test_suggestions_name_nothing_twice() -> None:
    assert plugins.suggest("blurr", ["blur", "flip", "blur"]) == "; did you mean blur?"
    assert plugins.suggest("zzz", ["blur", "flip", "blur"], otherwise=True) == "; available: blur, flip"


def test_a_name_of_two_packages_is_an_error_only_when_it_is_used(install: Install) -> None:
    install("tiny-bells", BELL, {"bells": CALLBACK})
    install("gongs", "[sslcli.callbacks]\nbell = gongs:Bell\ngong = gongs:Bell\n", {"gongs": CALLBACK}, version="7")
    load("callbacks", "gong")
    said = message(lambda: load("callbacks", "bell"))
    assert "is registered by gongs 7 (gongs:Bell) and tiny-bells 1.0 (bells:Bell)" in said
    assert "write gongs:bell or tiny-bells:bell" in said
    assert load("callbacks", "gongs:bell").__module__ == "gongs"
    assert load("callbacks", "tiny-bells:bell").__module__ == "bells"
    assert choose("callbacks", "Tiny_Bells:bell").package == "tiny-bells"
    assert "unknown callback 'other:bell'" in message(lambda: load("callbacks", "other:bell"))


def test_the_same_distribution_found_twice_is_not_a_clash(install: Install) -> None:
    install("my-bells", BELL, {"bells": CALLBACK}, folder="wheel")
    install("My_Bells", BELL, {"bells": CALLBACK}, folder="editable", version="2")
    assert choose("callbacks", "bell").version == "2"  # the one that Python would import
    load("callbacks", "bell")
    install("my.bells", "[console_scripts]\nx = bells:main\n", folder="newer", version="3")
    assert "unknown callback 'bell'" in message(lambda: choose("callbacks", "bell"))


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("raise RuntimeError('no license\\nsecond line')", "broken:Bell", "RuntimeError: no license"),
        ("import not_there_at_all", "broken:Bell", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("Bell = 1 +", "broken:Bell", "SyntaxError: invalid syntax"),
        ("import sys; sys.exit(3)", "broken:Bell", "SystemExit: 3"),
        ("assert False", "broken:Bell", "AssertionError"),
        ("", "broken:Bell", "AttributeError: module 'broken' has no attribute 'Bell'"),
        ("", "nowhere:Bell", "ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_a_broken_plugin_is_named_with_its_package_and_the_reason_and_affects_no_other(
    install: Install,
    source: str,
    target: str,
    reason: str,
) -> None:
    install("brittle", f"[sslcli.callbacks]\nbad = {target}\n", {"broken": source}, version="0.1")
    install("bells", BELL, {"bells": CALLBACK})
    said = message(lambda: load("callbacks", "bad"))
    assert said.startswith(f"callback 'bad' of brittle 0.1 ({target}) cannot be loaded: {reason}")
    load("callbacks", "bell")


@pytest.mark.parametrize("source", ["class Bell: pass", "def Bell(): pass", "Bell = 3"])
def test_an_object_of_another_kind_is_rejected(install: Install, source: str) -> None:
    install("brittle", BELL, {"bells": source})
    assert message(lambda: load("callbacks", "bell")).endswith("(bells:Bell) is not a subclass of Callback")


@pytest.mark.parametrize(
    ("entry_points", "metadata"),
    [("no section = here\n", None), ("[sslcli.callbacks]\nx = y:Z\n", ""), ("[sslcli.callbacks]\nno equals\n", None)],
)
def test_unreadable_metadata_affects_no_other_package(
    install: Install,
    entry_points: str,
    metadata: str | None,
) -> None:
    install("ruin", entry_points, metadata=metadata)
    install("bells", BELL, {"bells": CALLBACK})
    load("callbacks", "bell")


PROVIDER = """
from sslcli.contracts.backbone import Backbone, BackboneProvider

class Net(Backbone):
    @classmethod
    def build(cls, options, channels, image_size):
        return cls()
    def forward(self, x, mask=None):
        return None

class Zoo(BackboneProvider):
    @classmethod
    def names(cls):
        return ["vit_small", "vit_base"]
    @classmethod
    def get(cls, name):
        return Net

class Torn(Zoo):
    @classmethod
    def names(cls):
        raise ImportError("its library is too old")
"""


def test_a_provider_gives_one_of_its_many(install: Install) -> None:
    install("zoos", "[sslcli.backbones]\nzoo = zoos:Zoo\nnet = zoos:Net\ntorn = zoos:Torn\n", {"zoos": PROVIDER})
    assert load("backbones", "zoo/vit_small").__name__ == "Net"
    assert load("backbones", "zoos:zoo/vit_base").__name__ == "Net"
    for name, said in {
        "zoo/vit_smal": "'zoo' has no 'vit_smal'; did you mean zoo/vit_small?",
        "zoo": "write zoo/NAME, such as zoo/vit_base",
        "net/x": "'net' is a single backbone; write net without /x",
        "torn/x": "'torn/x' cannot be loaded: ImportError: its library is too old",
    }.items():
        assert said in message(lambda name=name: load("backbones", name))


# --- files that `--plugin` names

FILE = """
from sslcli.contracts.callback import Callback
from sslcli.contracts.options import Options
from sslcli.contracts.views import Preset

class ThreeCrops(Preset):
    Options = Options
    @classmethod
    def views(cls, options, size):
        return [{"count": 3}]

class Bell(Callback):
    plugin_name = "ding"

class Helper:
    pass
"""


def test_a_file_registers_the_plugin_classes_that_it_defines(tmp_path: Path) -> None:
    path = tmp_path / "my_parts.py"
    path.write_text(FILE)
    registered = register_file(path)
    assert [(p.group, p.name, p.package) for p in registered.plugins] == [
        ("sslcli.augmentations", "three_crops", "my_parts"),
        ("sslcli.callbacks", "ding", "my_parts"),
    ]
    assert registered.sha256 == hashlib.sha256(FILE.encode()).hexdigest()
    assert load("augmentations", "three_crops").views(None, 32) == [{"count": 3}]
    cls = load("callbacks", "ding")
    assert pickle.loads(pickle.dumps(cls)) is cls  # as for a worker process
    assert register_file(path).plugins == registered.plugins  # the same file twice is not a clash
    assert load("callbacks", "ding") is cls


def test_a_file_cannot_take_the_name_of_another_plugin_silently(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(CALLBACK.replace("class Bell", "class Progress"))
    register_file(path)
    assert "write mine:progress or sslcli:progress" in message(lambda: load("callbacks", "progress"))
    assert load("callbacks", "mine:progress").__name__ == "Progress"


@pytest.mark.parametrize(
    ("name", "source", "reason"),
    [
        ("mine.py", "def (:", "SyntaxError: invalid syntax"),
        ("mine.py", "1 / 0", "ZeroDivisionError: division by zero"),
        ("mine.py", "raise SystemExit", "SystemExit"),
        ("mine.py", "x = 1", "defines no plugin class"),
        ("mine.py", "from sslcli.contracts.callback import Callback", "defines no plugin class"),
        ("mine.txt", CALLBACK, "is not a Python file (its name must end in .py)"),
        ("mine.py", None, "cannot be read (No such file or directory)"),
        (".", None, "cannot be read (Is a directory)"),
    ],
)
def test_a_file_that_cannot_be_used_is_reported_in_one_line(
    tmp_path: Path, name: str, source: str | None, reason: str
) -> None:
    path = tmp_path / name
    if source is not None:
        path.write_text(source)
    assert message(lambda: register_file(path)).startswith(f"--plugin {path}: {reason}")
    assert "mine" not in [plugin.package for plugin in find("callbacks")]


def test_a_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text(CALLBACK)
    assert register_file(Path("~/mine.py")).path == tmp_path / "mine.py"
