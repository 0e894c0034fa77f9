"""The option `strength` of every preset with a color jitter."""

from __future__ import annotations

from typing import Any

import pytest

from sslcli.config.document import Document
from sslcli.config.problems import Problems
from sslcli.config.views_section import resolve_views
from sslcli.plugins import find, load

FACTORS = ("brightness", "contrast", "saturation", "hue")


def jitters(preset: str, **options: Any) -> list[dict[str, float] | None]:
    """Each view's color jitter at 224 px; None for a view without one."""
    problems = Problems(Document({}))
    views = resolve_views({"preset": preset, **options}, {}, 224, problems)
    assert not problems.lines
    return [next((o.options for o in view.operations if o.name == "jitter"), None) for view in views]


PRESETS = [
    plugin.name for plugin in find("augmentations")
    if plugin.package == "sslcli" and hasattr(load("augmentations", plugin.name), "views") and any(jitters(plugin.name))
]  # fmt: skip


def test_the_presets_with_a_jitter_are_these() -> None:
    expected = {"byol", "cifar_asym", "cifar_weak", "dino", "lejepa", "moco_v1", "moco_v2", "simclr", "supcon", "swav"}
    assert set(PRESETS) == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_strength_multiplies_the_jitter_of_every_view_but_not_its_probability(preset: str) -> None:
    plain, half, none = jitters(preset), jitters(preset, strength=0.5), jitters(preset, strength=0)
    assert len(plain) == len(half) == len(none)
    for each in zip(plain, half, none, strict=True):
        before, after, off = each
        assert before is not None and after is not None and off is not None  # noqa: PT018
        assert [after[name] for name in FACTORS] == pytest.approx([0.5 * before[name] for name in FACTORS])
        assert [off[name] for name in FACTORS] == [0, 0, 0, 0]
        assert before["p"] == after["p"] == off["p"]
    assert jitters(preset, strength=1.0) == plain


def test_untitled_ais_default_of_a_half_is_moco_v2_itself() -> None:
    """Its jitter is 0.8·s, 0.8·s, 0.8·s, 0.2·s: twice ours, at s = 0.5 by default."""
    for s in (0.25, 0.5, 1.0):
        jitter = jitters("moco_v2", strength=2 * s)[0]
        assert jitter is not None
        assert [jitter[name] for name in FACTORS] == pytest.approx([0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s])


def test_a_jitter_that_is_set_wins_over_the_strength() -> None:
    jitter = jitters("byol", strength=0.5, jitter={"brightness": 0.3})[0]
    assert jitter is not None
    assert [jitter[name] for name in FACTORS] == [0.3, 0.2, 0.1, 0.05]


@pytest.mark.parametrize(("preset", "most"), [("moco_v1", 1.25), ("byol", 5), ("swav", 2.5)])
def test_a_strength_that_turns_the_hue_beyond_half_of_the_wheel_is_refused(preset: str, most: float) -> None:
    jitters(preset, strength=most)
    problems = Problems(Document({}, {("views",): "c.yaml:3"}))
    resolve_views({"preset": preset, "strength": most + 0.01}, {}, 224, problems)
    (line,) = problems.lines
    assert line.startswith("c.yaml:3: views.strength: ")
    assert line.endswith(f"at most {most:g}")


def test_a_negative_strength_is_refused() -> None:
    problems = Problems(Document({}))
    resolve_views({"preset": "moco_v2", "strength": -1}, {}, 224, problems)
    assert "views.strength" in problems.lines[0]
