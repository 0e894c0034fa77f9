"""What the loop does to every method, and what a run leaves behind."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch

from sslcli.config.document import read_file
from sslcli.config.resolve import RunConfig, resolve
from sslcli.contracts.errors import SslError, UserError
from sslcli.runs.backbone_file import load_backbone_file
from sslcli.runs.checkpoint import list_checkpoints, read_checkpoint
from sslcli.runs.directory import RunDirectory, read_metrics
from sslcli.training.loop import clip_each
from sslcli.training.setup import build
from sslcli.training.train import train


def run(config: RunConfig, output: Path) -> list[str]:
    said: list[str] = []
    train(config, output, tell=said.append)
    return said


def final_tensors(directory: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(list_checkpoints(directory / "checkpoints")[0]).tensors


def test_a_run_leaves_its_config_log_checkpoints_and_backbone(tiny, tmp_path):
    config = tiny("callbacks.tensorboard={}")
    run(config, tmp_path / "a")
    directory = RunDirectory(tmp_path / "a")
    again = resolve(read_file(directory.config))
    assert again.plain() == config.plain()
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
    weight = final_tensors(tmp_path / "a")["method.backbone.network.conv1.weight"]
    assert torch.equal(trained.backbone.state_dict()["network.conv1.weight"], weight)
    assert stat.S_IMODE(directory.backbone.stat().st_mode) & 0o044 == 0o044


def test_no_file_of_a_run_is_a_pickle(tiny, tmp_path):
    run(tiny("training.epochs=1"), tmp_path / "a")
    for path in (tmp_path / "a").rglob("*"):
        if path.is_file():
            assert not path.read_bytes().startswith((b"\x80", b"PK")), path


def test_the_first_step_of_a_warm_up_has_a_learning_rate_of_zero(tiny, tmp_path):
    run(tiny("training.log_every=1"), tmp_path / "a")
    rates = [line["lr"] for line in read_metrics(tmp_path / "a" / "metrics.jsonl")]
    assert rates[:5] == pytest.approx([0.0, 0.0125, 0.025, 0.0375, 0.05])
    assert rates[-1] < 0.01


def test_micro_batches_add_up_to_the_whole_batch(tiny, tmp_path, odd_plugins):
    """Same images, same views, same mean: with a method that does not couple samples only rounding differs."""
    for name, accumulate in (("one", 1), ("four", 4)):
        run(tiny("method=mean_method", "backbone=flat", f"training.accumulate={accumulate}"), tmp_path / name)
    one, four = final_tensors(tmp_path / "one"), final_tensors(tmp_path / "four")
    assert set(one) == set(four)
    for name, tensor in one.items():
        torch.testing.assert_close(four[name], tensor, rtol=1e-4, atol=1e-6)
    begun = build(tiny("method=mean_method", "backbone=flat")).method.state_dict()
    assert not torch.equal(begun["backbone.convolution.weight"], one["method.backbone.convolution.weight"])


def test_values_that_follow_the_step_arrive_in_the_batch(tiny, tmp_path, odd_plugins):
    run(tiny("method=mean_method", "training.log_every=1", "training.epochs=1"), tmp_path / "a")
    lines = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert [line["temperature"] for line in lines] == [0.5, 1.5, 2.5, 3.5]


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_what_was_good(tiny, tmp_path, odd_plugins):
    with pytest.raises(SslError, match=r"not finite in step 7 \(lr .*try a smaller optimizer\.lr") as error:
        run(tiny("method={name: nan_method, bad_step: 7}", "training.log_every=100"), tmp_path / "a")
    assert error.value.exit_code == 1
    newest = read_checkpoint(list_checkpoints(tmp_path / "a" / "checkpoints")[0])
    assert newest.step == 4
    assert all(tensor.isfinite().all() for tensor in newest.tensors.values())
    assert not (tmp_path / "a" / "backbone.safetensors").exists()


def test_a_collapse_is_told_while_it_happens(tiny, tmp_path, odd_plugins):
    said = run(tiny("method=collapsed_method", "training.log_every=1"), tmp_path / "a")
    warnings = [line for line in said if "collapsing" in line]
    assert len(warnings) == 1
    assert "at step 2" in warnings[0]


def test_a_healthy_run_is_not_called_a_collapse(tiny, tmp_path):
    assert [line for line in run(tiny("training.log_every=1"), tmp_path / "a") if "collaps" in line] == []


def test_memory_under_two_names_is_refused(tiny, tmp_path, odd_plugins):
    with pytest.raises(SslError, match=r"'tied_method' cannot be saved: .*one and .*two share memory"):
        run(tiny("method=tied_method", "training.epochs=1"), tmp_path / "a")


def test_a_method_that_needs_labels_has_them(tiny, tmp_path, odd_plugins):
    assert build(tiny("method=label_method")).dataset.labels is not None


def test_clipping_each_parameter_bounds_each_norm(tiny):
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))]
    gradients = [torch.tensor([3.0, 4.0, 0.0]), torch.full((2, 2), 0.1)]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    clip_each(parameters, 1.0)
    torch.testing.assert_close(parameters[0].grad, gradients[0] / 5)
    torch.testing.assert_close(parameters[1].grad, gradients[1])


def test_clipping_changes_the_run(tiny, tmp_path):
    run(tiny("training.epochs=1"), tmp_path / "free")
    run(tiny("training.epochs=1", "training.clip={norm: 0.001}"), tmp_path / "clipped")
    name = "method.backbone.network.conv1.weight"
    begun = build(tiny()).method.state_dict()[name.removeprefix("method.")]
    moved = {run: (final_tensors(tmp_path / run)[name] - begun).norm() for run in ("free", "clipped")}
    assert moved["clipped"] < 0.1 * moved["free"]


def test_a_cuda_device_that_is_not_there_is_named(tiny):
    with pytest.raises(UserError, match=r"training\.device: cuda:63: there (is no CUDA|are \d+ CUDA)"):
        build(tiny("training.device=cuda:63"))


@pytest.mark.parametrize("size", [4, 12, 17])
def test_an_image_size_that_the_backbone_cannot_take_is_reported(tiny, odd_plugins, size):
    """The backbone itself checks nothing: its spec is enough."""
    config = tiny("backbone={name: picky}", f"views.size={size}")
    with pytest.raises(UserError) as caught:
        build(config)
    assert str(caught.value) == (
        f"views.size: 'picky' cannot take images of {size} px; it takes 16 or more, in multiples of 8"
    )
    build(tiny("backbone={name: picky}", "views.size=24"))


def test_a_batch_larger_than_the_data_is_told_with_both_numbers(tiny):
    with pytest.raises(UserError, match=r"64 .*32"):
        build(tiny("training.batch_size=64"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_deterministic_run_on_cuda_resumes_to_the_bit(tiny, tmp_path, precision):
    overrides = ["training.device=cuda", "training.deterministic=true", f"training.precision={precision}"]
    run(tiny(*overrides), tmp_path / "whole")
    run(tiny(*overrides, "training.max_steps=3"), tmp_path / "parts")
    train(tiny(*overrides), tmp_path / "parts", resume=True, tell=print)
    whole, parts = final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "parts")
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_cuda_does_not_wait_for_the_device(tiny, tmp_path):
    from sslcli.training.context import Context
    from sslcli.training.loop import Loop

    session = build(tiny("training.device=cuda", "training.precision=bf16"))
    loop = Loop(session, Context(session, RunDirectory(tmp_path), print), 0)
    loop.step()  # what is made once (cuDNN's plans, optimizer state) may wait
    loop.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loop.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
