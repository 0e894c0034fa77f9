"""`views.phases`: views that change in a run, their round trip, overrides, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sslcli.config.document import Document, dump_yaml
from sslcli.config.resolve import RunConfig, load_config, resolve
from sslcli.config.view_phases import share_of_run
from sslcli.contracts.errors import ConfigError

HEAD = "method: {name: simclr}\nbackbone: {stem: small}\ndata: shapes\ntraining: {epochs: 10}\n"
TWO = """\
views:
  phases:
    - until: 90%
      views: {preset: byol, size: 24}
    - views: {size: 48, blur: 0.25}
"""


def config(folder: Path, text: str, *overrides: str) -> RunConfig:
    (folder / "c.yaml").write_text(HEAD + text)
    return load_config(folder / "c.yaml", list(overrides))


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(folder, text, *overrides)
    return [line.replace(f"{folder}/", "") for line in caught.value.problems]


def sizes(found: RunConfig) -> list[tuple[object, list[int]]]:
    return [(phase.until, [view.size for view in phase.views]) for phase in found.view_phases]


def test_a_section_in_a_phase_is_what_it_is_without_phases(tmp_path: Path) -> None:
    found = config(tmp_path, TWO)
    first = config(tmp_path, "views: {preset: byol, size: 24}")
    assert sizes(found) == [("90%", [24, 24]), (None, [48])]
    assert found.views == found.view_phases[0].views == first.views
    assert found.view_phases[1].views == config(tmp_path, "views: {size: 48, blur: 0.25}").views


def test_a_phase_may_list_views_or_leave_them_to_the_method(tmp_path: Path) -> None:
    listed = "[{size: 20, crop_scale: [0.2, 1]}, {size: 16, flip: 0.5}]"
    found = config(tmp_path, f"views: {{phases: [{{until: 3}}, {{until: 4.5, views: {listed}}}, {{views: null}}]}}")
    assert sizes(found) == [(3, [32]), (4.5, [20, 16]), (None, [32])]


def test_the_resolved_config_shows_all_phases_and_resolves_to_itself(tmp_path: Path) -> None:
    found = config(tmp_path, TWO)
    plain = found.plain()["views"]["phases"]
    assert [list(phase) for phase in plain] == [["until", "views"], ["views"]]
    assert plain[1]["views"][0]["operations"][0]["name"] == "crop"
    assert resolve(Document(found.plain())) == found
    (tmp_path / "resolved.yaml").write_text(dump_yaml(found.plain()))
    assert load_config(tmp_path / "resolved.yaml", []) == found
    assert found.digest() != config(tmp_path, TWO, "views.phases.0.until=80%").digest()


def test_one_phase_is_a_run_without_phases(tmp_path: Path) -> None:
    found = config(tmp_path, "views: {phases: [{views: {size: 24}}]}")
    assert found == config(tmp_path, "views: {size: 24}") == config(tmp_path, "views: {phases: null, size: 24}")
    assert isinstance(found.plain()["views"], list)


def test_overrides_reach_into_phases(tmp_path: Path) -> None:
    assert sizes(config(tmp_path, TWO, "views.phases.1.views.size=64"))[1] == (None, [64])
    assert sizes(config(tmp_path, TWO, "views.phases.0.until=2.5"))[0] == (2.5, [24, 24])
    other = config(tmp_path, TWO, "views.phases.1.views={preset: moco_v2}")  # another preset drops the old one's keys
    assert other.view_phases[1].views == config(tmp_path, "views: {preset: moco_v2}").views
    kept = config(tmp_path, TWO, "views.phases.1.views={flip: 0.25}")
    assert kept.view_phases[1].views == config(tmp_path, "views: {size: 48, blur: 0.25, flip: 0.25}").views


def test_phases_take_the_place_of_what_they_extend(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(HEAD + "views: {preset: byol, solarize: 0.3}\n")
    (tmp_path / "c.yaml").write_text("extends: base.yaml\n" + TWO)
    assert load_config(tmp_path / "c.yaml", []) == config(tmp_path, TWO)
    assert sizes(config(tmp_path, TWO, "views.phases=[{until: 1}, {views: {size: 16}}]")) == [(1, [32]), (None, [16])]


def test_where_a_phase_ends_is_exact() -> None:
    assert round(share_of_run("0.1%", 7) * 1000) == 1
    assert share_of_run(0.3, 1) * 10 == 3
    assert share_of_run(3, 12) * 1200 == 300


def test_everything_wrong_is_told_with_its_line(tmp_path: Path) -> None:
    text = """\
views:
  size: 3
  phases:
    - until: 50%
      view: {preset: byol}
    - until: 5
      views: {preset: byol, blurr: 0.1}
    - until: 20%
    - views: [{size: 16}]
    - until: 90 steps
    - until: 12
      views: {phases: []}
    - 3
    - until: 90%
      views: {preset: byoll}
"""
    lines = problems(tmp_path, text.replace("views: [{size: 16}]", "views: [{size: 16, flip: 2}]"))
    expected = [
        "c.yaml:6: views.size: cannot be combined with phases: set it in the `views` of each phase",
        "c.yaml:9: views.phases.0.view: unknown option of a phase; did you mean views?",
        "c.yaml:11: views.phases.1.views.blurr: unknown option of 'views'; did you mean blur?",
        "c.yaml:12: views.phases.2.until: 20% is not after 5, the end of the phase before it",
        "c.yaml:13: views.phases.3: missing `until`: a share of the run, such as 90%, or a number of epochs",
        "c.yaml:13: views.phases.3.views.0.flip.p: should be less than or equal to 1, not 2.0",
        "c.yaml:14: views.phases.4.until: should be a share of the run, such as 90%, or a number of epochs above 0, "
        "not '90 steps'",
        "c.yaml:15: views.phases.5.until: 12 is not before the end of the run, which has 10 epochs; write a share",
        "c.yaml:16: views.phases.5.views.phases: unknown option of 'views'; available: ",
        "c.yaml:17: views.phases.6: should be a mapping with `views` and `until`, not 3",
        "c.yaml:18: views.phases.7.until: the last phase lasts until the end of the run: remove it, or add a phase",
        "c.yaml:19: views.phases.7.views.preset: unknown view operation or preset 'byoll'; did you mean byol?",
    ]
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("views: {phases: 90%}", "c.yaml:5: views.phases: should be a list of phases, each with `views` and `until`"),
        ("views: {phases: []}", "c.yaml:5: views.phases: should be a list of phases"),
        ("views: {phase: [{until: 1}, {}]}", "c.yaml:5: views.phase: unknown option of 'views'; did you mean phases?"),
        ("views: {phases: [{until: -1}, {}]}", "c.yaml:5: views.phases.0.until: should be a share of the run"),
        ("views: {phases: [{until: true}, {}]}", "c.yaml:5: views.phases.0.until: should be a valid string or"),
        ("views: {phases: [{until: 1/0%}, {}]}", "c.yaml:5: views.phases.0.until: should be a share of the run"),
    ],
)
def test_other_values_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (line,) = problems(tmp_path, text)
    assert line.startswith(message)


def test_each_phase_has_as_many_views_as_the_method_needs(tmp_path: Path) -> None:
    one = "views: {phases: [{until: 1}, {views: [{size: 16}]}]}"
    (line,) = problems(tmp_path, one)
    assert line == "c.yaml:5: views.phases.1.views: 'simclr' needs at least 2 views of an image, not 1"
    three = "views: {phases: [{until: 1}, {views: [{size: 16, count: 3}]}]}"
    assert [sum(view.count for view in phase.views) for phase in config(tmp_path, three).view_phases] == [2, 3]
    (line,) = problems(tmp_path, "", "method=moco", three.replace("views: ", "views=", 1))
    assert line == "command line: views.phases.1.views: 'moco' needs 2 views of an image, not 3"
