"""The estimated peak memory of a step is within 15% of what the allocator hands out in real steps."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from conftest import ConfigMaker
from PIL import Image
from run_helpers import method_config
from small_options import method_cases, quick
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch, Step
from sslcli.methods.simclr import SimCLR
from sslcli.runs.directory import RunDirectory
from sslcli.training.context import Context
from sslcli.training.estimate import Estimate, LiveStorages, estimate
from sslcli.training.loop import Loop
from sslcli.training.memory import held_bytes
from sslcli.training.setup import Session, build

RESNET = ("training.batch_size=64", "backbone.width=16", "data.size=32", "data.count=64", "training.epochs=20")
VIT = (
    "training.batch_size=64", "training.epochs=20", "data.size=32", "data.count=64",
    "backbone={name: vit_tiny, patch_size: 4, depth: 6}",
)  # fmt: skip
CASES = {
    "simclr": ("simclr", *RESNET),
    "contiguous": ("simclr", *RESNET, "training.channels_last=false"),
    "bf16": ("simclr", *RESNET, "training.precision=bf16"),
    "accumulated": ("simclr", *RESNET, "training.accumulate=2"),
    "adamw": ("simclr", *RESNET, "backbone.width=32", "training.batch_size=16", "optimizer={name: adamw, lr: 0.001}"),
    "byol": ("byol", *RESNET),
    "swav": ("swav", *RESNET),
    "multi-crop": (
        "dino", *RESNET, "training.batch_size=32", "views={preset: dino, local_count: 6, size: 32, local_size: 16}",
    ),
    "vit": ("simclr", *VIT),
    "checkpointed vit": ("simclr", *VIT, "backbone.gradient_checkpointing=true"),
}  # fmt: skip


def loop_of(session: Session) -> Loop:
    return Loop(session, Context(session, RunDirectory(Path())), 0)


def measured_peak(session: Session) -> int:
    """What the session holds, and the most that the allocator handed out beyond it in two steps."""
    held, loop = sum(held_bytes(session).values()), loop_of(session)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        loop.step()
        loop.step()
    changes = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return held + most


@pytest.mark.parametrize(
    "case",
    quick(CASES, "simclr"),
)
def test_the_estimate_is_near_the_measured_peak(case: str) -> None:
    session = build(method_config(*CASES[case]), compiled=False)
    found = estimate(session)
    assert not found.problem
    measured = measured_peak(session)
    # 15% is what is promised. These cases were off by 3% at most, bf16 by 8% on a CPU that has no bf16 of its own.
    assert found.peak == pytest.approx(measured, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("case", method_cases())
def test_every_method_can_be_estimated(case: str) -> None:
    found = estimate(build(method_config(case, "training.epochs=20", own_optimizer=True), compiled=False))
    assert not found.problem
    assert found.optimizer_state > 0


def test_images_that_workers_crop_are_estimated_at_the_size_of_their_views(tmp_path: Path) -> None:
    for number in range(8):
        Image.new("RGB", (40 + number, 48)).save(tmp_path / f"{number}.png")
    options = (f"data={{name: images, root: {tmp_path}}}", "views.size=32", "training.workers=0")
    session = build(method_config("simclr", *RESNET, "training.batch_size=8", *options), compiled=False)
    found = estimate(session)
    assert found.images == 0
    assert found.peak == pytest.approx(measured_peak(session), rel=0.15)


def test_neither_the_session_nor_the_generator_is_changed(tiny: ConfigMaker) -> None:
    session = build(tiny(), compiled=False)
    before, generator = copy.deepcopy(session.method.state_dict()), torch.get_rng_state()
    found = estimate(session)
    assert found.optimizer_state > 0
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(before[name], tensor) for name, tensor in session.method.state_dict().items())
    assert type(next(session.method.parameters()).data) is Tensor
    loop_of(session).step()  # views, too, have kept no tensor without values


def test_several_processes_share_the_batch_and_keep_all_gradients(tiny: ConfigMaker) -> None:
    session = build(tiny(), compiled=False)
    half = estimate(build(tiny("training.batch_size=4"), compiled=False)).step
    gradients = sum(p.nbytes for p in session.method.parameters() if p.requires_grad)
    assert estimate(session, processes=2).step == pytest.approx(half + gradients, rel=0.01)


def test_a_method_that_needs_values_is_not_estimated(tiny: ConfigMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = SimCLR.forward

    def reading(self: SimCLR, batch: Batch) -> Step:
        step = forward(self, batch)
        assert step.loss.item() >= 0
        return step

    monkeypatch.setattr(SimCLR, "forward", reading)
    found = estimate(build(tiny(), compiled=False))
    assert found.fits is None
    assert re.match(r"not estimated: a step needs the values of its tensors \(DataDependent", found.line())


def test_a_method_that_fails_is_said_to_fail(tiny: ConfigMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimCLR, "forward", lambda self, batch: 1 / 0)
    line = estimate(build(tiny(), compiled=False)).line()
    assert line.startswith("not estimated: a step without values failed (ZeroDivisionError: division by zero")


def test_a_batch_that_processes_cannot_share_is_refused(tiny: ConfigMaker) -> None:
    with pytest.raises(UserError, match=r"^training.batch_size: 8 .* multiple of 3"):
        estimate(build(tiny(), compiled=False), processes=3)


def test_a_step_fits_if_its_peak_is_free() -> None:
    assert Estimate(images=1, parameters=2, optimizer_state=3, step=4, free=9).fits is False
    assert Estimate(images=1, parameters=2, optimizer_state=3, step=4, free=10).fits is True
    assert Estimate(step=4, free=None).fits is None
    assert "free" not in Estimate(step=4).line()


def test_storages_are_counted_once_and_until_they_are_freed() -> None:
    with LiveStorages() as live:
        a = torch.zeros(1000)
        b = a.view(10, 100)[2:]
        assert live.bytes == live.peak == 4000
        c = a + 1
        assert live.bytes == 8000
        del a
        assert live.bytes == 8000  # b is a part of it
        del b
        assert (live.bytes, live.peak) == (4000, 8000)
        del c
        assert live.bytes == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", ["simclr", "bf16", "byol", "multi-crop", "checkpointed vit"])
def test_on_cuda_the_estimate_is_near_the_allocated_peak(case: str) -> None:
    config = method_config(*CASES[case], "training.device=cuda", "training.batch_size=512", "data.count=512")
    session = build(config, compiled=False)
    found = estimate(session)
    loop = loop_of(session)
    loop.step()  # cuDNN tries its kernels, some with much more memory
    torch.cuda.reset_peak_memory_stats()
    loop.step()
    assert found.peak == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.15)
    assert found.fits
