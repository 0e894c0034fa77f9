"""Options whose default has changed: a run keeps what it was started with, and a config with the new is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from run_helpers import method_config, newest

from sslcli.config.resolve import RunConfig
from sslcli.contracts.errors import UserError
from sslcli.runs.projector import load_projector
from sslcli.runs.trained import load_trained
from sslcli.training import resume
from sslcli.training.train import train

FIRST = Path(__file__).parent / "first_contract"


def stored(config: RunConfig, *unknown: str) -> dict[str, Any]:
    """The config as a version without these options of the method stored it."""
    plain = config.plain()
    for path in unknown:
        *sections, name = path.split(".")
        values = plain["method"]
        for section in sections:
            values = values[section]
        del values[name]
    return plain


def test_a_run_older_than_an_option_keeps_what_it_meant() -> None:
    old = stored(method_config("byol"), "momentum_step", "projector.last_bias", "predictor.last_bias")
    kept = resume.keep_resolved(method_config("byol"), old)
    assert resume.check(kept, old, "run") == []
    options = kept.method.options
    assert (options.momentum_step, options.projector.last_bias, options.predictor.last_bias) == ("next", True, True)
    assert options.projector.hidden_dim == 16  # what the config sets stays


def test_a_run_keeps_a_default_that_has_changed_since() -> None:
    old = stored(method_config("supcon", "method.projector.norm=batch"), "projector.last_bias")
    kept = resume.keep_resolved(method_config("supcon"), old)
    assert resume.check(kept, old, "run") == []
    assert (kept.method.options.projector.norm, kept.method.options.projector.last_bias) == ("batch", False)


def test_a_new_run_and_its_resumption_have_the_new_defaults(tmp_path: Path) -> None:
    train(method_config("byol", "training.max_steps=1"), tmp_path / "run")
    train(method_config("byol", "training.max_steps=2"), tmp_path / "run", resume=True)
    method = newest(tmp_path / "run").document["config"]["method"]
    assert (method["momentum_step"], method["projector"]["last_bias"]) == ("this", False)


@pytest.mark.parametrize(
    ("name", "unknown", "asked", "line"),
    [
        ("dino", ("momentum_step",), ("method.momentum_step=this",), "method.momentum_step: 'next' in the run"),
        (
            "byol", ("projector.last_bias",), ("method.projector.last_bias=false",),
            "method.projector.last_bias: True in the run, False now",
        ),
        ("moco", ("reduction",), ("method.reduction=sum",), "method.reduction: 'mean' in the run, 'sum' now"),
    ],
)  # fmt: skip
def test_a_config_that_asks_for_the_new_is_refused(
    name: str, unknown: tuple[str, ...], asked: tuple[str, ...], line: str
) -> None:
    old, config = stored(method_config(name), *unknown), method_config(name, *asked)
    with pytest.raises(UserError, match=line) as refusal:
        resume.check(resume.keep_resolved(config, old), old, "run")
    assert "\n" not in str(refusal.value)


def test_a_preset_of_the_workbench_that_has_changed_names_the_options() -> None:
    """What a preset sets counts as set: the options that it set then must be written out."""
    then = ("method.loss_factor=4.0", "method.projector.last_bias=true", "method.predictor.last_bias=true")
    old = stored(method_config("moco", "method.preset=byol", *then), "reduction", "momentum_step")
    with pytest.raises(
        UserError, match=r"loss_factor: 4\.0 in the run, 2\.0 now.*projector\.last_bias: True in the run"
    ):
        resume.check(resume.keep_resolved(method_config("moco", "method.preset=byol"), old), old, "run")
    kept = resume.keep_resolved(method_config("moco", "method.preset=byol", *then), old)
    assert resume.check(kept, old, "run") == []
    assert (kept.method.options.reduction, kept.method.options.momentum_step) == ("mean", "next")


def test_the_projector_of_an_older_run_is_built_as_it_was() -> None:
    projector = load_projector(load_trained(FIRST / "supcon.safetensors"))
    assert [type(part).__name__ for part in projector] == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert projector[3].bias is None
