"""Finding and loading plugins, with real metadata on the path and nothing mocked."""

from __future__ import annotations

import hashlib
import json
import pickle
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sslcli import plugins
from sslcli.cli.main import app
from sslcli.contracts.callback import Callback
from sslcli.plugins import PluginError, choose, find, load, register_file

Install = Callable[..., Path]

CALLBACK = """
from sslcli.contracts.callback import Callback

class Bell(Callback):
    \"\"\"Rings.\"\"\"
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Writes a package's metadata and modules as an installer would."""

    def write(
        package: str,
        entry_points: str,
        modules: dict[str, str] | None = None,
        *,
        version: str = "1.0",
        folder: str = "site",
        metadata: str | None = None,
    ) -> Path:
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
        return site

    before = set(sys.modules)
    yield write
    plugins.clear_cache()
    for name in set(sys.modules) - before:
        origin = getattr(sys.modules[name], "__file__", None)
        if origin is not None and origin.startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def _forget_files() -> None:
    plugins.clear_cache()
    yield
    plugins.clear_cache()


def ssl(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def message(call: Callable[[], object]) -> str:
    with pytest.raises(PluginError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_package_is_found_without_being_imported(install: Install) -> None:
    install("bells", "[sslcli.callbacks]\nbell = bells:Bell\n", {"bells": CALLBACK}, version="2.3")
    (bell,) = [plugin for plugin in find("callbacks") if plugin.package == "bells"]
    assert (bell.name, bell.version, bell.target) == ("bell", "2.3", "bells:Bell")
    assert "bells" not in sys.modules
    assert issubclass(load("callbacks", "bell"), Callback)
    assert "bells" in sys.modules


def test_a_group_can_be_named_in_full(install: Install) -> None:
    assert find("sslcli.methods") == find("methods")
    assert "did you mean methods" in message(lambda: find("methds"))
    assert "available: augmentations, backbones" in message(lambda: find("zzz"))


def test_plugins_are_sorted_whatever_the_order_in_the_metadata(install: Install) -> None:
    install("zoo", "[sslcli.callbacks]\nzebra = zoo:Z\nant = zoo:A\nmole = zoo:M\n")
    names = [plugin.name for plugin in find("callbacks")]
    assert names == sorted(names)
    assert {"zebra", "ant", "mole"} <= set(names)


def test_other_groups_of_a_package_are_left_alone(install: Install) -> None:
    install("mixed", "[console_scripts]\nx = mixed:main\n[sslcli.callbacks]\nbell = mixed:Bell\n")
    assert [p.name for p in find("callbacks") if p.package == "mixed"] == ["bell"]


def test_a_typo_is_answered_with_the_nearest_names() -> None:
    assert message(lambda: load("methods", "simclrr")).startswith("unknown method 'simclrr'; did you mean simclr")


def test_a_name_like_no_other_is_answered_with_the_list() -> None:
    assert "unknown exporter 'qqqq'; available: backbone" in message(lambda: load("exporters", "qqqq"))


def test_a_name_of_two_packages_is_an_error_only_when_it_is_used(install: Install) -> None:
    install("bells", "[sslcli.callbacks]\nbell = bells:Bell\n", {"bells": CALLBACK})
    install("gongs", "[sslcli.callbacks]\nbell = gongs:Bell\ngong = gongs:Bell\n", {"gongs": CALLBACK}, version="7")
    load("callbacks", "gong")
    said = message(lambda: load("callbacks", "bell"))
    assert "bells 1.0 (bells:Bell) and gongs 7 (gongs:Bell)" in said
    assert "write bells:bell or gongs:bell" in said


def test_package_and_name_choose_between_two(install: Install) -> None:
    install("tiny-bells", "[sslcli.callbacks]\nbell = bells:Bell\n", {"bells": CALLBACK})
    install("gongs", "[sslcli.callbacks]\nbell = gongs:Bell\n", {"gongs": CALLBACK})
    assert load("callbacks", "gongs:bell").__module__ == "gongs"
    assert load("callbacks", "tiny-bells:bell").__module__ == "bells"
    assert choose("callbacks", "Tiny_Bells:bell").package == "tiny-bells"
    assert "unknown callback 'other:bell'" in message(lambda: load("callbacks", "other:bell"))


def test_the_same_distribution_found_twice_is_no_clash(install: Install) -> None:
    install("my-bells", "[sslcli.callbacks]\nbell = bells:Bell\n", {"bells": CALLBACK}, folder="wheel")
    install("My_Bells", "[sslcli.callbacks]\nbell = bells:Bell\n", {"bells": CALLBACK}, folder="editable", version="2")
    assert choose("callbacks", "bell").version == "2"  # the one that Python would import
    load("callbacks", "bell")


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
def test_a_broken_plugin_is_named_with_its_package_and_the_reason(
    install: Install, source: str, target: str, reason: str
) -> None:
    install("brittle", f"[sslcli.callbacks]\nbell = {target}\n", {"broken": source}, version="0.1")
    said = message(lambda: load("callbacks", "bell"))
    assert said.startswith(f"callback 'bell' of brittle 0.1 ({target}) cannot be loaded: {reason}")


@pytest.mark.parametrize("source", ["class Bell: pass", "def Bell(): pass", "Bell = 3"])
def test_an_object_of_another_kind_is_refused(install: Install, source: str) -> None:
    install("brittle", "[sslcli.callbacks]\nbell = broken:Bell\n", {"broken": source})
    assert message(lambda: load("callbacks", "bell")).endswith("(broken:Bell) is not a subclass of Callback")


def test_a_broken_plugin_harms_only_who_asks_for_it(install: Install) -> None:
    install("brittle", "[sslcli.callbacks]\nbad = broken:Bell\n", {"broken": "raise OSError('disk')"})
    install("bells", "[sslcli.callbacks]\nbell = bells:Bell\n", {"bells": CALLBACK})
    load("callbacks", "bell")
    assert "bad" in [plugin.name for plugin in find("callbacks")]


@pytest.mark.parametrize(
    ("entry_points", "metadata"),
    [("no section = here\n", None), ("[sslcli.callbacks]\nx = y:Z\n", ""), ("[sslcli.callbacks]\nno equals\n", None)],
)
def test_metadata_that_cannot_be_read_harm_nobody(install: Install, entry_points: str, metadata: str | None) -> None:
    install("ruin", entry_points, metadata=metadata)
    install("bells", "[sslcli.callbacks]\nbell = bells:Bell\n", {"bells": CALLBACK})
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
class Torn(BackboneProvider):
    @classmethod
    def names(cls):
        raise ImportError("its library is too old")
    @classmethod
    def get(cls, name):
        return Net
"""


def test_a_provider_gives_one_of_its_many(install: Install) -> None:
    install("zoos", "[sslcli.backbones]\nzoo = zoos:Zoo\nnet = zoos:Net\ntorn = zoos:Torn\n", {"zoos": PROVIDER})
    assert load("backbones", "zoo/vit_small").__name__ == "Net"
    assert load("backbones", "zoos:zoo/vit_base").__name__ == "Net"
    assert "'zoo' has no 'vit_smal'; did you mean zoo/vit_small" in message(lambda: load("backbones", "zoo/vit_smal"))
    assert "write zoo/NAME, such as zoo/vit_base" in message(lambda: load("backbones", "zoo"))
    assert "'net' is a single backbone; write net without /x" in message(lambda: load("backbones", "net/x"))
    assert "'torn/x' cannot be loaded: ImportError: its library is too old" in message(
        lambda: load("backbones", "torn/x")
    )


# --- ssl list


def test_list_loads_nothing(install: Install, tmp_path: Path) -> None:
    trace = tmp_path / "imported"
    install("loud", "[sslcli.callbacks]\nloud = loud:Bell\n", {"loud": f"open({str(trace)!r}, 'w')\n{CALLBACK}"})
    for arguments in (["list"], ["list", "callbacks"], ["list", "--json"]):
        code, out, _ = ssl(*arguments)
        assert code == 0
        assert "loud:Bell" in out
    assert not trace.exists()
    ssl("list", "callbacks", "--check")
    assert trace.exists()


def test_list_shows_name_package_version_and_target(install: Install) -> None:
    install("bells", "[sslcli.callbacks]\nbell = bells:Bell\n", {"bells": CALLBACK}, version="2.3")
    _, out, err = ssl("list", "callbacks")
    assert ["bell", "bells", "2.3", "bells:Bell"] in [line.split() for line in out.splitlines()]
    assert err == ""


def test_list_as_json_is_a_list_of_objects_for_a_group_and_a_mapping_for_all(install: Install) -> None:
    install("bells", "[sslcli.callbacks]\nbell = bells:Bell\n", version="2.3")
    row = {"name": "bell", "package": "bells", "version": "2.3", "target": "bells:Bell"}
    assert row in json.loads(ssl("list", "callbacks", "--json")[1])
    everything = json.loads(ssl("list", "--json")[1])
    assert row in everything["callbacks"]
    assert list(everything) == list(plugins.GROUPS)


def test_check_shows_each_failure_and_exits_1(install: Install) -> None:
    install(
        "brittle",
        "[sslcli.callbacks]\nbad = broken:Bell\nworse = nowhere:Bell\nbell = bells:Bell\n",
        {"broken": "raise OSError('disk')", "bells": CALLBACK},
    )
    code, out, _ = ssl("list", "callbacks", "--check")
    assert code == 1
    assert "FAILED  callbacks/bad  brittle 1.0" in out
    assert "OSError: disk" in out
    assert "No module named 'nowhere'" in out
    assert "ok      callbacks/bell  brittle 1.0" in out
    rows = json.loads(ssl("list", "callbacks", "--check", "--json")[1])
    assert {row["name"] for row in rows if not row["ok"]} == {"bad", "worse"}
    assert {row["name"]: row["error"] for row in rows}["bell"] is None


def test_check_tells_a_clash_that_nobody_has_run_into_yet(install: Install) -> None:
    install("bells", "[sslcli.callbacks]\nbell = bells:Bell\n", {"bells": CALLBACK})
    install("gongs", "[sslcli.callbacks]\nbell = gongs:Bell\n", {"gongs": CALLBACK})
    code, out, _ = ssl("list", "callbacks", "--check")
    assert code == 0
    assert "callbacks/bell  bells 1.0  (also in gongs)" in out


def test_every_plugin_of_the_project_itself_loads() -> None:
    code, out, _ = ssl("list", "--check")
    ours = [line for line in out.splitlines() if " sslcli " in line]
    assert len(ours) > 20
    assert [line for line in ours if not line.startswith("ok")] == [], out
    assert code == 0


def test_list_with_a_name_shows_its_options_with_defaults_help_and_paper() -> None:
    code, out, _ = ssl("list", "methods", "simclr")
    assert code == 0
    assert "temperature: float = " in out
    assert "projector." in out
    assert "paper:" in out
    described = json.loads(ssl("list", "optimizers", "lars", "--json")[1])
    options = {row["name"]: row for row in described["options"]}
    assert options["lr"]["required"]
    assert options["weight_decay"]["default"] == 0.0
    assert all(row["help"] for row in options.values())


@pytest.mark.parametrize(
    ("group", "name"), [(group, plugin.name) for group in plugins.GROUPS for plugin in find(group)]
)
def test_every_option_of_the_project_says_what_it_is(group: str, name: str) -> None:
    described = json.loads(ssl("list", group, name, "--json")[1])
    assert described["help"]
    for row in described["options"]:
        assert row["help"], row
        assert not any(noise in row["type"] for noise in ("FieldInfo", "Annotated", "typing.", "<class")), row["type"]


def test_list_of_an_unknown_group_or_name_is_one_line() -> None:
    for arguments in (["list", "methdos"], ["list", "methods", "simclrr"], ["list", "methods", "simclr/x"]):
        code, out, err = ssl(*arguments)
        assert (code, out, len(err.splitlines())) == (2, "", 1)


# --- --plugin FILE

METHOD_FILE = """
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
    path.write_text(METHOD_FILE)
    registered = register_file(path)
    assert [(p.group, p.name, p.package) for p in registered.plugins] == [
        ("sslcli.augmentations", "three_crops", "my_parts"),
        ("sslcli.callbacks", "ding", "my_parts"),
    ]
    assert registered.sha256 == hashlib.sha256(METHOD_FILE.encode()).hexdigest()
    assert load("augmentations", "three_crops").views(None, 32) == [{"count": 3}]
    assert "ding" in [plugin.name for plugin in find("callbacks")]


def test_a_class_from_a_file_can_be_pickled_for_a_worker(tmp_path: Path) -> None:
    path = tmp_path / "my_parts.py"
    path.write_text(METHOD_FILE)
    register_file(path)
    cls = load("callbacks", "ding")
    assert pickle.loads(pickle.dumps(cls)) is cls


def test_the_same_file_given_twice_is_no_clash(tmp_path: Path) -> None:
    path = tmp_path / "my_parts.py"
    path.write_text(METHOD_FILE)
    assert register_file(path).plugins == register_file(path).plugins
    load("callbacks", "ding")


def test_a_file_cannot_take_the_name_of_another_plugin_silently(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(CALLBACK.replace("class Bell", "class Progress"))
    register_file(path)
    said = message(lambda: load("callbacks", "progress"))
    assert "write mine:progress or sslcli:progress" in said
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
    ],
)
def test_a_file_that_cannot_be_used_is_told_in_one_line(tmp_path: Path, name: str, source: str, reason: str) -> None:
    path = tmp_path / name
    path.write_text(source)
    said = message(lambda: register_file(path))
    assert said.startswith(f"--plugin {path}: {reason}")
    assert find("callbacks") == [plugin for plugin in find("callbacks") if plugin.package != "mine"]


def test_a_file_that_is_missing_is_told_in_one_line(tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in message(lambda: register_file(tmp_path / "gone.py"))
    assert "cannot be read (Is a directory)" in message(lambda: register_file(tmp_path))


def test_a_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text(CALLBACK)
    assert register_file(Path("~/mine.py")).path == tmp_path / "mine.py"
