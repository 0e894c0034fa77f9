"""What holds for every built-in plugin: it keeps its contract, documents its options, and is where its name says.

A plugin is found here by its entry point; nothing is to be added for a new one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_options import method_case, method_cases, quick, small
from tiny_data import WRITERS, tiny_root  # noqa: F401  # a fixture
from typer.testing import CliRunner

from sslcli import testing
from sslcli.cli.main import app
from sslcli.contracts.backbone import BackboneSpec
from sslcli.contracts.data import RootedOptions
from sslcli.plugins import GROUPS, FoundPlugin, find, load, load_found
from sslcli.testing.methods import MethodTrial

PLUGINS = [plugin for group in GROUPS for plugin in find(group) if plugin.package == "sslcli"]
EVERY = pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: f"{plugin.group[7:]}-{plugin.name}")
#: Options of those that cannot do without.
NEEDED: dict[tuple[str, str], dict[str, Any]] = {
    ("datasets", "shapes"): {"count": 40, "size": 16},
    ("exporters", "features"): {"data": {"name": "shapes", "count": 40, "size": 16}},
}
#: The larger ones of a family.
LARGE = [f"{family}{depth}" for family in ("resnet", "ws_resnet") for depth in (34, 50, 101, 152)]
LARGE += ["cifar_resnet56", "vit_small", "vit_base", "torch-export"]
#: What needs a run or an extra is checked in its own tests.
ELSEWHERE = {("exporters", "projector"), ("exporters", "onnx")}


@pytest.mark.parametrize(
    "plugin",
    [pytest.param(plugin, marks=[pytest.mark.slow] * (plugin.name in LARGE)) for plugin in PLUGINS],
    ids=lambda plugin: f"{plugin.group[7:]}-{plugin.name}",
)
def test_it_keeps_its_contract(plugin: FoundPlugin, tiny_root: Path) -> None:  # noqa: F811
    group, name, cls = plugin.group.removeprefix("sslcli."), plugin.name, load_found(plugin)
    options = getattr(cls, "Options", None)
    values = small(options) if options is not None else {}
    if options is not None and issubclass(options, RootedOptions):
        if name not in WRITERS:
            pytest.skip("tests/tiny_data.py writes no data for it: its own test calls check_dataset")
        WRITERS[name](tiny_root)
        values["root"] = str(tiny_root)
    if (group, name) in ELSEWHERE:
        pytest.skip("in its own test")
    testing.check_plugin(group, f"sslcli:{name}", values | NEEDED.get((group, name), {}))


@EVERY
def test_it_is_in_the_folder_of_its_group_and_in_the_file_of_its_name(plugin: FoundPlugin) -> None:
    """`lars_simclr` may be in `lars`, and `cifar10` in `cifar`: the file's name begins the plugin's."""
    package, group, file = plugin.target.partition(":")[0].split(".")[:3]
    assert (package, f"sslcli.{group}") == ("sslcli", plugin.group)
    assert plugin.name.replace("-", "_").startswith(file)


@EVERY
def test_its_help_and_options_are_documented(plugin: FoundPlugin) -> None:
    done = CliRunner().invoke(app, ["list", plugin.group, plugin.name, "--json"], catch_exceptions=False)
    described = json.loads(done.stdout)
    assert described["help"]
    for row in described["options"]:
        assert row["help"], row
        assert not any(noise in row["type"] for noise in ("FieldInfo", "Annotated", "typing.", "<class")), row["type"]


@pytest.mark.parametrize("name", quick([name for name in method_cases() if " " in name], "moco_v3 views_together"))
def test_a_method_keeps_its_contract_with_each_switch(name: str) -> None:
    method, options = method_case(name)
    testing.check_plugin("methods", f"sslcli:{method}", options)


@pytest.mark.parametrize("name", [plugin.name for plugin in PLUGINS if plugin.group == "sslcli.methods"])
def test_a_method_names_its_paper_and_the_papers_settings(name: str) -> None:
    cls = load("methods", name)
    assert cls.paper.startswith("https://")
    assert {"optimizer", "schedule"} <= set(cls.defaults(cls.Options.parse(small(cls.Options)), BackboneSpec(512)))


@pytest.mark.slow
@pytest.mark.parametrize("name", method_cases())
def test_a_methods_forward_is_one_graph_for_all_steps(name: str) -> None:
    from torch._dynamo.testing import CompileCounter  # takes seconds

    method, options = method_case(name)
    trial, graphs = MethodTrial(load("methods", method), options), CompileCounter()
    built = trial.build()
    built.compile(fullgraph=True, dynamic=False, backend=graphs)
    trial.train(built, trial.optimizer(built), 0, 3)
    assert graphs.frame_count == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", method_cases())
def test_a_method_keeps_its_contract_on_a_device(name: str) -> None:
    method, options = method_case(name)
    testing.check_plugin("methods", f"sslcli:{method}", options, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", [plugin.name for plugin in PLUGINS if plugin.group == "sslcli.optimizers"])
def test_an_optimizer_keeps_its_contract_on_a_device(name: str) -> None:
    testing.check_plugin("optimizers", f"sslcli:{name}", device="cuda")


def test_there_are_plugins_in_every_group() -> None:
    assert {plugin.group for plugin in PLUGINS} == {group.entry_points for group in GROUPS.values()}
