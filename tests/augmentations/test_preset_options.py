"""What every preset takes: `count`, `strength` and `size`, wherever a config can name one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sslcli.config.document import Document
from sslcli.config.merge import apply_overrides
from sslcli.config.problems import Problems
from sslcli.config.resolve import RunConfig, load_config, resolve
from sslcli.config.views_section import resolve_views
from sslcli.contracts.options import Options
from sslcli.contracts.views import Preset, ViewSpec
from sslcli.plugins import find, load, registered

PRESETS = [
    plugin.name for plugin in find("augmentations")
    if plugin.package == "sslcli" and hasattr(load("augmentations", plugin.name), "views")
]  # fmt: skip
TWO_KINDS, LOCAL = {"byol", "cifar_asym", "dino"}, {"swav": 6, "dino": 8, "lejepa": 6}


def views(section: Any, recipe: Any = None, size: int = 224) -> tuple[ViewSpec, ...]:
    problems = Problems(Document({}))
    found = resolve_views(section, recipe or {}, size, problems)
    assert not problems.lines
    return found


def each(specs: tuple[ViewSpec, ...]) -> list[Any]:
    """The operations of each single view."""
    return [view.operations for view in specs for _ in range(view.count)]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_count_is_the_number_of_views_and_kinds_take_turns(preset: str, count: int) -> None:
    plain, changed = views({"preset": preset}), views({"preset": preset, "count": count, "size": 96})
    whole = [view for view in changed if view.size == 96]
    assert sum(view.count for view in whole) == count
    assert sum(view.count for view in changed) == count + LOCAL.get(preset, 0)
    assert changed[: len(whole)] == tuple(whole)
    kinds = 2 if preset in TWO_KINDS else 1
    at_96 = each(views({"preset": preset, "size": 96}))
    assert each(tuple(whole)) == [at_96[index % kinds] for index in range(count)]
    assert [view.size for view in plain if view.size != 224] == [96] * (preset in LOCAL)


@pytest.mark.parametrize("preset", PRESETS)
def test_they_are_listed_with_its_options(preset: str) -> None:
    assert {"count", "strength", "size"} <= set(load("augmentations", preset).Options.model_fields)


def test_equal_views_are_one_entry_and_the_published_count_changes_nothing() -> None:
    assert [view.count for view in views({"preset": "simclr", "count": 6})] == [6]
    for preset in PRESETS:
        published = views({"preset": preset})
        whole = sum(view.count for view in published if view.size == 224)
        assert each(views({"preset": preset, "count": whole})) == each(published)


def test_single_views_can_be_changed_after_they_are_counted() -> None:
    found = views({"preset": "byol", "count": 4, "3": {"solarize": 0}})
    assert ["solarize" in {op.name for op in view.operations} for view in found] == [False, True, False, False]


@pytest.mark.parametrize("recipe", [{"preset": "byol"}, [{"blur": 1.0}, {"solarize": 0.2, "jitter": 0.8}]])
def test_a_methods_own_views_take_them_too(recipe: Any) -> None:
    found = views({"count": 3, "strength": 0.5, "size": 64}, recipe)
    own = views({"size": 64}, recipe)
    names = [[op.name for op in operations] for operations in each(found)]
    assert names == [[op.name for op in each(own)[index % 2]] for index in range(3)]
    jitters = [[op for op in view.operations if op.name == "jitter"] for view in (own[1], found[1])]
    assert jitters[1][0].options["hue"] == jitters[0][0].options["hue"] / 2


def test_a_strength_reaches_the_jitter_in_a_list_of_operations() -> None:
    listed = [{"operations": ["crop", {"name": "jitter", "hue": 0.2}]}, {"jitter": [0.4, 0.4, 0.4, 0.1]}]
    found = views({"strength": 2.0}, listed)
    assert [view.operations[1].options["hue"] for view in found] == [0.4, 0.2]


def test_a_strength_without_a_jitter_says_that_it_changes_nothing(messages: list[str]) -> None:
    assert views({"preset": "probe_train", "strength": 0.5}) == views({"preset": "probe_train"})
    assert messages == ["warning: views.strength: changes nothing, since none of these views has a color jitter"]


class Foreign(Preset):
    """A preset of a plugin that knows nothing of `count`, and has a `strength` of its own."""

    class Options(Options):
        strength: str = "weak"

    @classmethod
    def views(cls, options: Any, size: int) -> list[dict[str, Any]]:
        return [{"jitter": {"hue": 0.1 if options.strength == "weak" else 0.3}}]


def test_a_plugins_own_option_of_that_name_is_the_plugins() -> None:
    with registered({("augmentations", "foreign"): Foreign}):
        (found,) = views({"preset": "python:foreign", "count": 3, "strength": "strong"})
    assert (found.count, found.operations[1].options["hue"]) == (3, 0.3)


def config(tmp_path: Path, text: str, *overrides: str, method: str = "simclr") -> RunConfig:
    (tmp_path / "c.yaml").write_text(f"method: {method}\ndata: shapes\n{text}\n")
    return load_config(tmp_path / "c.yaml", list(overrides))


def test_a_preset_can_be_named_alone_and_then_changed(tmp_path: Path) -> None:
    wanted = config(tmp_path, "views: {preset: byol, count: 4, strength: 0.5, size: 48}").views
    changes = ["views.count=4", "views.strength=0.5", "views.size=48"]
    assert config(tmp_path, "views: byol", *changes).views == wanted
    assert config(tmp_path, "", "views=byol", *changes).views == wanted
    document = Document({"method": {"name": "simclr"}, "data": {"name": "shapes"}, "views": "byol"})
    assert resolve(document).views == config(tmp_path, "views: byol").views
    apply_overrides(document, ["views={preset: byol}"])
    assert resolve(document).views == config(tmp_path, "views: byol").views


def test_phases_take_them(tmp_path: Path) -> None:
    phase = "{preset: moco_v2, count: 3, strength: 0.5, size: 48}"
    found = config(tmp_path, f"views: {{phases: [{{until: 50%, views: {phase}}}, {{views: byol}}]}}")
    assert found.view_phases[0].views == config(tmp_path, f"views: {phase}").views
    assert found.view_phases[1].views == config(tmp_path, "views: byol").views


def test_a_method_that_takes_two_views_refuses_more(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"c.yaml:3: views: 'moco' needs 2 views of an image, not 4"):
        config(tmp_path, "views: {count: 4}", method="moco")


@pytest.mark.parametrize(("key", "value"), [("count", 0), ("count", 1.5), ("strength", -1), ("size", 0)])
def test_other_values_are_refused_with_their_line(tmp_path: Path, key: str, value: float) -> None:
    with pytest.raises(Exception, match=rf"c\.yaml:3: views\.{key}: should be|must be"):
        config(tmp_path, f"views: {{preset: dino, {key}: {value}}}")
