"""The training loop, which is the same for every method, and the files of a run."""

from __future__ import annotations

import stat

import pytest
import torch
from run_helpers import newest

from sslcli.config.document import read_file
from sslcli.config.resolve import resolve
from sslcli.contracts.errors import SslError, UserError
from sslcli.runs.backbone_file import load_backbone_file
from sslcli.runs.checkpoint import list_checkpoints
from sslcli.runs.directory import RunDirectory
from sslcli.runs.metrics import read_metrics
from sslcli.training.context import Context
from sslcli.training.loop import Loop, clip_each
from sslcli.training.setup import build
from sslcli.training.train import train

KERNEL = "method.backbone.network.conv1.weight"
on_cuda = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_a_run_leaves_its_config_log_checkpoints_and_backbone(tiny, tmp_path):
    config = tiny("callbacks.tensorboard={}")
    train(config, tmp_path / "a")
    directory = RunDirectory(tmp_path / "a")
    assert resolve(read_file(directory.config)).plain() == config.plain()
    lines = read_metrics(directory.metrics)
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert {"step", "epoch", "loss", "lr", "images_per_second", "data_wait", "pos_cos"} <= set(lines[-1])
    assert lines[1]["epoch"] == 1.0
    assert list((tmp_path / "a" / "tensorboard").iterdir())
    assert [path.name for path in list_checkpoints(directory.checkpoints)] == [
        "step-000000012.safetensors",
        "step-000000008.safetensors",
    ]
    trained = load_backbone_file(directory.backbone)
    assert (trained.card.step, trained.card.method, trained.card.dataset) == (12, "simclr", "shapes")
    weight = newest(tmp_path / "a").tensors[KERNEL]
    assert torch.equal(trained.backbone.state_dict()["network.conv1.weight"], weight)
    assert stat.S_IMODE(directory.backbone.stat().st_mode) & 0o044 == 0o044
    for path in (tmp_path / "a").rglob("*"):  # no file is a pickle
        assert not path.is_file() or not path.read_bytes().startswith((*(bytes([0x80, n]) for n in range(6)), b"PK")), (
            path
        )


def test_a_warm_up_begins_with_a_learning_rate_of_zero_and_schedules_reach_the_batch(tiny, tmp_path, odd_plugins):
    train(tiny("method=mean_method", "training.log_every=1"), tmp_path / "a")
    lines = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert [line["lr"] for line in lines[:5]] == pytest.approx([0.0, 0.0125, 0.025, 0.0375, 0.05])
    assert lines[-1]["lr"] < 0.01
    assert [line["temperature"] for line in lines[:4]] == [0.5, 1.5, 2.5, 3.5]


def test_micro_batches_add_up_to_the_whole_batch(tiny, tmp_path, odd_plugins):
    """With a method that does not couple samples only rounding differs."""
    for name, accumulate in (("one", 1), ("four", 4)):
        config = tiny("method=mean_method", "backbone=flat", f"training.accumulate={accumulate}")
        train(config, tmp_path / name)
    one, four = newest(tmp_path / "one").tensors, newest(tmp_path / "four").tensors
    torch.testing.assert_close(four, one, rtol=1e-4, atol=1e-6)
    begun = build(tiny("method=mean_method", "backbone=flat")).method.state_dict()
    assert not torch.equal(begun["backbone.convolution.weight"], one["method.backbone.convolution.weight"])


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_earlier_checkpoints(tiny, tmp_path, odd_plugins):
    with pytest.raises(SslError, match=r"not finite in step 7 \(lr .*try a smaller optimizer\.lr") as error:
        train(tiny("method={name: nan_method, bad_step: 7}", "training.log_every=100"), tmp_path / "a")
    assert error.value.exit_code == 1
    checkpoint = newest(tmp_path / "a")
    assert checkpoint.step == 4
    assert all(tensor.isfinite().all() for tensor in checkpoint.tensors.values())
    assert not (tmp_path / "a" / "backbone.safetensors").exists()


@pytest.mark.parametrize(("method", "count"), [("collapsed_method", 1), ("simclr", 0)])
def test_a_collapse_is_reported_once_when_it_happens(tiny, tmp_path, odd_plugins, messages, method, count):
    train(tiny(f"method={method}", "training.log_every=1"), tmp_path / "a")
    assert len([line for line in messages if "collapsing" in line]) == count
    assert len([line for line in messages if "collapsing at step 2" in line]) == count


def test_memory_under_two_names_is_refused(tiny, tmp_path, odd_plugins):
    with pytest.raises(SslError, match=r"'tied_method' cannot be saved: .*one and .*two share memory"):
        train(tiny("method=tied_method", "training.epochs=1"), tmp_path / "a")


def test_clipping_each_parameter_bounds_each_norm():
    parameters = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))]
    gradients = [torch.tensor([3.0, 4.0, 0.0]), torch.full((2, 2), 0.1)]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    clip_each(parameters, 1.0)
    torch.testing.assert_close([p.grad for p in parameters], [gradients[0] / 5, gradients[1]])


def test_clipping_changes_the_run(tiny, tmp_path):
    train(tiny("training.epochs=1"), tmp_path / "free")
    train(tiny("training.epochs=1", "training.clip={norm: 0.001}"), tmp_path / "clipped")
    begun = build(tiny()).method.state_dict()[KERNEL.removeprefix("method.")]
    moved = {name: (newest(tmp_path / name).tensors[KERNEL] - begun).norm() for name in ("free", "clipped")}
    assert moved["clipped"] < 0.1 * moved["free"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.device=cuda:63"], r"training\.device: cuda:63: there (is no CUDA|are \d+ CUDA)"),
        (["training.batch_size=64"], r"64 .*32"),
        # The backbone itself checks nothing: its spec is enough.
        *(
            (["backbone={name: picky}", f"views.size={size}"], f"views.size: 'picky' cannot take images of {size} px; "
             "it takes 16 or more, in multiples of 8")
            for size in (4, 12, 17)
        ),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_together_are_refused(tiny, odd_plugins, overrides, message):
    with pytest.raises(UserError, match=message):
        build(tiny(*overrides))
    build(tiny("backbone={name: picky}", "views.size=24"))


@pytest.mark.parametrize("precision", [pytest.param(name, marks=on_cuda) for name in ("fp32", "bf16", "fp16")])
def test_a_deterministic_run_on_cuda_resumes_bitwise_identical(tiny, tmp_path, precision):
    overrides = ["training.device=cuda", "training.deterministic=true", f"training.precision={precision}"]
    train(tiny(*overrides), tmp_path / "whole")
    train(tiny(*overrides, "training.max_steps=3"), tmp_path / "parts")
    train(tiny(*overrides), tmp_path / "parts", resume=True)
    whole, parts = newest(tmp_path / "whole").tensors, newest(tmp_path / "parts").tensors
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_cuda_does_not_wait_for_the_device(tiny, tmp_path):
    session = build(tiny("training.device=cuda", "training.precision=bf16"))
    loop = Loop(session, Context(session, RunDirectory(tmp_path)), 0)
    loop.step()  # what is created once (cuDNN's plans, optimizer state) may wait
    loop.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loop.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
