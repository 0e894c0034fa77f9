"""The `views:` section: presets, short keys for all views or one, lists of views, and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sslcli.config.document import Document
from sslcli.config.merge import read_config
from sslcli.config.resolve import RunConfig, load_config, resolve
from sslcli.contracts.errors import ConfigError
from sslcli.plugins import load

HEAD = "method: simclr\ndata: shapes\n"


def config(tmp_path: Path, views: str = "", *overrides: str) -> RunConfig:
    (tmp_path / "c.yaml").write_text(HEAD + views)
    return load_config(tmp_path / "c.yaml", ["backbone.stem=small", *overrides])  # which takes small views


def plain_views(tmp_path: Path, views: str = "", *overrides: str) -> list[dict[str, Any]]:
    views_: list[dict[str, Any]] = config(tmp_path, views, *overrides).plain()["views"]
    return views_


def operations(view: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: {k: v for k, v in each.items() if k != "name"} for each in view["operations"]}


def problems(tmp_path: Path, views: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, views, *overrides)
    return [line.replace(f"{tmp_path}/", "") for line in caught.value.problems]


def test_without_a_section_the_views_are_the_methods(tmp_path: Path) -> None:
    (view,) = plain_views(tmp_path)
    assert (view["count"], view["size"]) == (2, 32)
    assert list(operations(view)) == ["crop", "flip", "jitter", "grayscale"]
    assert operations(view)["crop"]["scale"] == [0.08, 1.0]
    assert plain_views(tmp_path, "views: {preset: simclr}") == [view]


def test_the_size_is_the_datas_unless_it_is_set_and_a_preset_depends_on_it(tmp_path: Path) -> None:
    assert plain_views(tmp_path, "", "data.size=48")[0]["size"] == 48
    assert plain_views(tmp_path, "views: {size: 24}")[0]["size"] == 24
    assert plain_views(tmp_path, "views: {size: null}")[0]["size"] == 32
    large = operations(plain_views(tmp_path, "views: {size: 96}")[0])
    assert (large["blur"]["p"], large["jitter"]["brightness"]) == (0.5, 0.8)


def test_options_of_a_preset_are_given_beside_it(tmp_path: Path) -> None:
    assert operations(plain_views(tmp_path, "views: {strength: 0.25}")[0])["jitter"]["hue"] == pytest.approx(0.05)
    assert operations(plain_views(tmp_path, "views: {size: 96, blur: 0.3}")[0])["blur"] == {
        "p": 0.3, "sigma": [0.1, 2.0], "kernel": 0.1, "padding": "reflect",  # the preset's own kernel stays
    }  # fmt: skip


def test_a_short_key_changes_every_view(tmp_path: Path) -> None:
    first, second = plain_views(tmp_path, "views: {preset: byol, solarize: 0.4, crop_scale: [0.3, 0.9]}")
    assert operations(first)["solarize"]["p"] == operations(second)["solarize"]["p"] == 0.4
    assert operations(first)["crop"]["scale"] == operations(second)["crop"]["scale"] == [0.3, 0.9]
    assert operations(first)["crop"]["interpolation"] == "bicubic"


@pytest.mark.parametrize(
    ("value", "changes"),
    [
        ("0.1", {"p": 0.1}),
        ("{hue: 0.5}", {"hue": 0.5}),
        ("[0.1, 0.2, 0.3, 0.4]", {"brightness": 0.1, "contrast": 0.2, "saturation": 0.3, "hue": 0.4}),
    ],
)
def test_the_value_of_a_short_key_is_merged_with_the_presets(
    tmp_path: Path, value: str, changes: dict[str, float]
) -> None:
    default = operations(plain_views(tmp_path)[0])["jitter"]
    assert operations(plain_views(tmp_path, f"views: {{jitter: {value}}}")[0])["jitter"] == {**default, **changes}


@pytest.mark.parametrize("off", ["0", "0.0", "false"])
def test_zero_disables_an_operation(tmp_path: Path, off: str) -> None:
    assert "jitter" not in operations(plain_views(tmp_path, f"views: {{jitter: {off}}}")[0])
    assert "blur" not in operations(plain_views(tmp_path, f"views: {{preset: byol, blur: {off}}}")[0])


def test_null_resets_a_short_key_to_the_presets(tmp_path: Path) -> None:
    default = plain_views(tmp_path)
    changed = "views: {jitter: 0.1, crop_scale: [0.5, 1]}"
    assert plain_views(tmp_path, changed) != default
    assert plain_views(tmp_path, changed, "views.jitter=null", "views.crop_scale=null") == default


@pytest.mark.parametrize(
    ("views", "order"),
    [
        ("{blur: {p: 0.5}, solarize: 0.2}", ["crop", "flip", "jitter", "grayscale", "blur", "solarize"]),
        ("[{count: 2, order: [blur, jitter], flip: 1, jitter: 1, blur: 1}]", ["crop", "blur", "jitter", "flip"]),
        ("[{count: 2, operations: [crop, blur, jitter, blur]}]", ["crop", "blur", "jitter", "blur"]),
        ("{0: {operations: [resize, {name: flip, p: 1.0}]}}", ["resize", "flip"]),
    ],
)
def test_operations_are_in_the_default_order_or_as_listed(tmp_path: Path, views: str, order: list[str]) -> None:
    view = plain_views(tmp_path, f"views: {views}")[0]
    assert [each["name"] for each in view["operations"]] == order


def test_one_view_can_differ(tmp_path: Path) -> None:
    first, second = plain_views(tmp_path, "", "views.0.blur=0.5", "views.1.size=16", "views.1.jitter.hue=0")
    assert (first["count"], second["count"]) == (1, 1)
    assert operations(first)["blur"]["p"] == 0.5
    assert "blur" not in operations(second)
    assert (first["size"], second["size"]) == (32, 16)
    assert operations(second)["jitter"]["hue"] == 0
    assert operations(second)["jitter"]["p"] == operations(first)["jitter"]["p"] == 0.8


def test_a_list_of_views_is_complete_and_no_preset_adds_to_it(tmp_path: Path) -> None:
    first, second = plain_views(
        tmp_path,
        "views:\n- {count: 1, size: 24, operations: [{name: crop, scale: [0.2, 1]}, flip]}\n- {flip: 0.5}\n",
    )
    assert (first["count"], first["size"], second["size"]) == (1, 24, 32)
    assert operations(first)["crop"]["scale"] == [0.2, 1.0]
    assert list(operations(first)) == list(operations(second)) == ["crop", "flip"]


@pytest.mark.parametrize("listed", ["[]", "[flip]", "[flip, crop]", "[crop, resize]"])
def test_a_view_needs_one_geometric_operation_as_its_first(tmp_path: Path, listed: str) -> None:
    assert problems(tmp_path, f"views: [{{operations: {listed}}}]") == [
        "c.yaml:3: views.0: a view needs exactly one geometric operation (such as crop or resize), as its first"
    ]


@pytest.mark.parametrize(
    ("views", "problem"),
    [
        ("[{operations: [crop, blurr]}]", "views.0.operations.1: unknown view operation or preset 'blurr'; did "),
        ("[{operations: [crop, simclr]}]", "views.0.operations.1: 'simclr' is a preset, not an operation"),
        ("[{operations: [crop, 3]}]", "views.0.operations.1: should be the name of an operation, or a "),
        ("[{operations: crop}]", "views.0.operations: should be a list"),
        ("[{operations: [crop], blur: 0.1}]", "views.0.blur: cannot be combined with a list of operations: "),
        ("[{operations: [{name: crop, scal: 1}]}]", "views.0.operations.0.scal: unknown option of 'crop'; did "),
        ("[{blurr: 0.1}]", "views.0.blurr: unknown option of a view; did you mean blur?"),
        ("[{count: 0}]", "views.0.count: should be greater than or equal to 1, not 0"),
        ("[3]", "views.0: should be a mapping that describes a view, not 3"),
        ("[]", "views: should have one view or more"),
        ("7", "views: should be a preset, a mapping or a list of views, not 7"),
        ("{preset: simclrr}", "views.preset: unknown view operation or preset 'simclrr'; did you mean simclr?"),
        ("{2: {blur: 0.1}}", "views.2: out of range: 2 views, numbered from 0"),
        ("[{order: jitter}]", "views.0.order: should be a list of some of flip, autoaugment, "),
        ("[{order: [crop]}]", "views.0.order: should be a list of some of flip, autoaugment, "),
        ("[{order: [[flip]]}]", "views.0.order: should be a list of some of flip, autoaugment, "),
        ("[{count: 1}]", "views: 'simclr' needs at least 2 views of an image, not 1"),
        ("{preset: crop}", "views.preset: 'crop' is a single operation, not a preset of views"),
        ("{preset: [simclr]}", "views: should name a preset, or be a list of views"),
        ("{blurr: 1}", "views.blurr: unknown option of 'views'; did you mean blur?"),
        ("{strengt: 1}", "views.strengt: unknown option of 'views'; did you mean strength?"),
        ("{strength: high}", "views.strength: should be a valid number, not 'high'"),
        ("{size: 0}", "views.size: should be a side in pixels, 1 or more, not 0"),
        ("{size: large}", "views.size: should be a side in pixels, 1 or more, not 'large'"),
        ("{blur: often}", "views.blur: should be a valid number, not 'often'"),
        ("{flip: often}", "views.flip: should be a probability (0: off) or a mapping of options, not 'often'"),
        ("{flip: true}", "views.flip: should be a probability (0: off) or a mapping of options, not true"),
        ("{flip: 2}", "views.flip.p: should be less than or equal to 1, not 2.0"),
        ("{jitter: [1, 2]}", "views.jitter: should be a probability (0: off) or a mapping of options, not [1, 2]"),
        ("{crop_scale: 3}", "views.crop_scale: should be a list, not 3"),
        ("{solarize: {p: 0.1, treshold: 0.5}}", "views.solarize.treshold: unknown option of 'solarize'; did you mean "),
        ("{blur: {kernel: narrow}}", "views.blur.kernel: should be 'wide' or a valid number, not 'narrow'"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_reported_in_one_line(tmp_path: Path, views: str, problem: str) -> None:
    (line,) = problems(tmp_path, f"views: {views}\n")
    assert line.startswith(f"c.yaml:3: {problem}")


def test_problems_in_several_views_are_reported_at_once(tmp_path: Path) -> None:
    found = problems(tmp_path, "views:\n- {blurr: 1}\n- {count: x}\n- {operations: [flip]}\n")
    assert [line.partition(": ")[0] for line in found] == ["c.yaml:4", "c.yaml:5", "c.yaml:6"]


def test_resolved_views_are_read_back_the_same(tmp_path: Path) -> None:
    first = config(tmp_path, "views: {preset: byol, size: 24}", "views.0.blur=0.3", "views.1.solarize.threshold=0.2")
    again = resolve(Document(first.plain()))
    assert again.views == first.views
    assert again.plain() == first.plain()


def test_another_number_of_views_than_the_method_needs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sum(view["count"] for view in plain_views(tmp_path, "views: [{count: 2}, {count: 3, size: 16}]")) == 5
    monkeypatch.setattr(load("methods", "simclr"), "view_count", 2)
    config(tmp_path, "views: [{flip: 0.5}, {flip: 0}]")
    assert problems(tmp_path, "views: [{count: 3}]") == ["c.yaml:3: views: 'simclr' needs 2 views of an image, not 3"]


def test_a_problem_is_reported_for_the_file_with_the_view(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(HEAD + "views:\n  preset: simclr\n  flip: 2\n")
    (tmp_path / "c.yaml").write_text("extends: base.yaml\n")
    with pytest.raises(ConfigError, match=r"base\.yaml:5: views\.flip"):
        resolve(read_config(tmp_path / "c.yaml", ["views.jitter=0.2"]))
    with pytest.raises(ConfigError, match=r"^command line: views\.flip"):
        resolve(read_config(tmp_path / "c.yaml", ["views.flip=3"]))
