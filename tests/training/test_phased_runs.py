"""Runs whose views change: a function of the step, exact on resume; what each part is built for; what is refused.

Two processes are in test_processes.py, the batches of workers in test_phased_batches.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import ConfigMaker
from run_helpers import assert_same_end, newest
from torch import Tensor

import sslcli
from sslcli.contracts.errors import UserError
from sslcli.plugins import register_file
from sslcli.runs.directory import RunDirectory
from sslcli.training.context import Context
from sslcli.training.estimate import estimate
from sslcli.training.loop import Loop
from sslcli.training.setup import build, plan
from sslcli.training.speed import headline, measure
from sslcli.training.train import train
from sslcli.training.trial import check_phases

#: Of 12 steps, 4 an epoch: the second phase begins with the seventh.
PLAIN = "jitter: 0, grayscale: 0"
PHASES = f"views={{phases: [{{until: 50%, views: {{{PLAIN}}}}}, {{views: {{size: 24, flip: 0.25, {PLAIN}}}}}]}}"
VIT = ["backbone={name: vit_tiny, patch_size: 8, depth: 1}", "optimizer={name: adamw, lr: 1e-3}"]


def made(config: object, first: int, steps: int) -> list[list[Tensor]]:
    """The views that the method receives in steps."""
    session = build(config)  # type: ignore[arg-type]
    loop, found = Loop(session, Context(session, RunDirectory(Path())), first), []
    forward = session.method.forward

    def recorded(batch):  # type: ignore[no-untyped-def]
        found.append([view.image for view in batch.views])
        return forward(batch)

    session.method.forward = recorded  # type: ignore[method-assign]
    for _ in range(steps):
        loop.step()
    session.source.close()
    return found


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images do not stay in memory: workers crop them."""
    monkeypatch.setattr("sslcli.data.source.free_memory", lambda device: 0)


class TestResuming:
    @pytest.mark.parametrize("stop", [6, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (5, 7))])
    def test_a_run_resumed_around_a_boundary_ends_bitwise_identical(
        self, tiny: ConfigMaker, tmp_path: Path, stop: int
    ) -> None:
        self.resume(tiny, tmp_path, [PHASES], stop)

    @pytest.mark.slow
    def test_also_with_micro_batches(self, tiny: ConfigMaker, tmp_path: Path) -> None:
        self.resume(tiny, tmp_path, [PHASES, "training.accumulate=2", "training.precision=bf16"], 6)

    @pytest.mark.usefixtures("no_memory")
    def test_also_if_workers_crop(self, tiny: ConfigMaker, tmp_path: Path) -> None:
        self.resume(tiny, tmp_path, [PHASES, "training.workers=1"], 5)

    def resume(self, tiny: ConfigMaker, folder: Path, overrides: list[str], stop: int) -> None:
        short = [*overrides, "training.epochs=2", "views.phases.0.until=75%", "checkpoints.every_epochs=null"]
        train(tiny(*short), folder / "whole")
        train(tiny(*short, f"training.max_steps={stop}"), folder / "parts")
        train(tiny(*short), folder / "parts", resume=True)
        assert_same_end(folder / "whole", folder / "parts")

    def test_other_phases_are_another_run(self, tiny: ConfigMaker, tmp_path: Path) -> None:
        train(tiny(PHASES, "training.max_steps=2"), tmp_path / "a")
        for change, what in (
            (PHASES.replace("50", "60"), r"views: \{'phases'"),
            ("views={size: 24}", r"views: \{'phases'"),
            (PHASES.replace("0.25", "0.5"), r"views\.phases\.1\.views\.0\.flip\.p: 0\.25 in the run, 0\.5 now\)"),
        ):
            with pytest.raises(UserError, match=rf"cannot be resumed with another config \({what}"):
                train(tiny(change), tmp_path / "a", resume=True)


@pytest.mark.parametrize("workers", [None, 0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_views_of_each_step_are_those_of_a_run_without_phases(
    tiny: ConfigMaker, request: pytest.FixtureRequest, workers: int | None
) -> None:
    more = [] if workers is None else [f"training.workers={workers}"]
    if workers is not None:
        request.getfixturevalue("no_memory")
    found = made(tiny(PHASES, *more), 0, 12)
    first, second = made(tiny(*more), 0, 6), made(tiny("views={size: 24, flip: 0.25}", *more), 6, 6)
    assert [view.shape[-1] for step in found for view in step] == [16] * 12 + [24] * 12
    for one, other in zip(found, [*first, *second], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_first_phase_is_the_run_without_phases(tiny: ConfigMaker, tmp_path: Path) -> None:
    """The trial of the later phases leaves nothing behind, neither in batch statistics nor in random numbers."""
    train(tiny(PHASES, "training.max_steps=6"), tmp_path / "phases")
    train(tiny("training.max_steps=6"), tmp_path / "none")
    assert_same_end(tmp_path / "phases", tmp_path / "none")


def test_a_phase_begins_with_one_line_in_the_session_that_reaches_it(
    tiny: ConfigMaker, tmp_path: Path, messages: list[str]
) -> None:
    line = "step 7: phase 2 of 2 begins, views: 2 of 24 px"
    train(tiny(PHASES, "training.max_steps=6"), tmp_path / "a")
    assert line not in messages
    train(tiny(PHASES, "training.max_steps=8"), tmp_path / "a", resume=True)
    train(tiny(PHASES), tmp_path / "a", resume=True)
    assert messages.count(line) == 1


def test_the_backbone_is_built_for_the_largest_views_and_says_so(tiny: ConfigMaker, tmp_path: Path) -> None:
    for last, largest in ((8, 16), (24, 24)):
        config = tiny(*VIT, f"views={{phases: [{{until: 1}}, {{views: {{size: {last}}}}}]}}", "training.epochs=2")
        session = build(config)
        assert session.info.view_sizes == (largest, largest)
        assert session.method.backbone.pos_embed.shape[1] == 1 + (largest // 8) ** 2  # type: ignore[union-attr]
    train(config, tmp_path / "a")
    assert newest(tmp_path / "a").document["card"]["image_size"] == 24
    backbone = sslcli.load_backbone(tmp_path / "a" / "backbone.safetensors")
    assert backbone(torch.zeros(1, 3, 24, 24)).pooled.shape == (1, 192)


def test_the_plan_shows_each_phase(tiny: ConfigMaker) -> None:
    assert plan(build(tiny(PHASES), compiled=False))["views"] == "2 of 16 px; from step 7: 2 of 24 px"


@pytest.mark.slow
def test_the_estimate_is_that_of_the_largest_views(tiny: ConfigMaker) -> None:
    session, large = (build(tiny(each), compiled=False) for each in (PHASES, "views={size: 24}"))
    assert estimate(session).peak == estimate(large).peak


def test_a_benchmark_measures_the_first_phase(tiny: ConfigMaker, messages: list[str]) -> None:
    session, _ = measure(tiny(PHASES, "training.epochs=1"), steps=2, rounds=1)
    assert "views: 2 of 16 px;" in headline(session)
    assert "views change in this run: those of its first phase are measured" in messages


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [PHASES, "training.epochs=1", "data.count=8"],
            r"^views\.phases\.0: has none of the run's 1 steps; change its",
        ),
        (
            [*VIT, PHASES.replace("24", "12")],
            r"^views\.phases\.1\.views\.size: 'vit_tiny' cannot take images of 12 px; it takes 8 or more, in multiples",
        ),
        (
            ["method=masked_autoencoder", *VIT, PHASES],
            r"^views\.phases\.0\.views: 'masked_autoencoder' with 'vit_tiny' cannot take views of 1 of 16 px: it is "
            r"built for 1 of 24 px \(RuntimeError: [^\n]*\)$",
        ),
        (
            ["views={phases: [{until: 1}, {views: [{size: 8}, {size: 16, count: 2}]}]}"],
            r"^views\.phases\.1\.views: 'simclr' with 'resnet18' cannot take .* \(UserError: views: simclr needs",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    tiny: ConfigMaker, tmp_path: Path, odd_plugins: Path, overrides: list[str], message: str
) -> None:
    register_file(Path(__file__).parents[1] / "contract_plugins" / "masked_autoencoder.py")
    with pytest.raises(UserError, match=message):
        train(tiny(*overrides), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_plugin_that_fails_at_once_keeps_its_own_error(tiny: ConfigMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    session = build(tiny(PHASES))
    monkeypatch.setattr(session.method, "forward", lambda batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        check_phases(session)
