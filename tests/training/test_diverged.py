"""A run that diverges ends with a line that names step, tensor and the last good checkpoint, and saves nothing bad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ConfigMaker
from run_helpers import newest
from safetensors.torch import load_file

from sslcli.callbacks.online_probe import OnlineProbe
from sslcli.contracts.method import Progress
from sslcli.methods.simclr import SimCLR
from sslcli.runs.checkpoint import checkpoint_path, list_checkpoints
from sslcli.runs.finite import first_non_finite
from sslcli.training.checks import RunFailed
from sslcli.training.train import train


def breaks(monkeypatch: pytest.MonkeyPatch, step: int, what: str) -> None:
    """From a step on, something is not finite after it, while its loss was."""

    def after_step(self: SimCLR, carries: Any, progress: Progress) -> None:
        if progress.step >= step:
            named = {**dict(self.named_parameters()), **dict(self.named_buffers())}
            with torch.no_grad():
                named[what].view(-1)[-1] = float("nan")

    monkeypatch.setattr(SimCLR, "after_step", after_step)


@pytest.mark.parametrize("what", ["backbone.network.conv1.weight", "backbone.network.bn1.running_var"])
def test_a_step_that_breaks_the_weights_is_not_saved(
    tiny: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    breaks(monkeypatch, 3, what)
    good = checkpoint_path(tmp_path / "run/checkpoints", 2)
    message = rf"^after step 3 method\.{what} is not finite \(lr .*, fp32\); the last good checkpoint is {good}: try"
    with pytest.raises(RunFailed, match=message) as raised:
        train(tiny("checkpoints.every_steps=1"), tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 1
    assert list_checkpoints(tmp_path / "run/checkpoints")[0] == good
    assert all(first_non_finite(load_file(path)) is None for path in list_checkpoints(good.parent))
    monkeypatch.undo()
    train(tiny("checkpoints.every_steps=1"), tmp_path / "run", resume=True)
    assert newest(tmp_path / "run").step == 12


def test_the_last_step_too_is_checked_before_the_backbone_is_written(
    tiny: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch, 3, "backbone.network.conv1.weight")
    with pytest.raises(RunFailed, match=r"after step 3 .*; nothing was saved before: try"):
        train(tiny("training.max_steps=3"), tmp_path / "run")
    assert not (tmp_path / "run/backbone.safetensors").exists()
    assert list_checkpoints(tmp_path / "run/checkpoints") == []


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(
    tiny: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch, 5, "backbone.network.conv1.weight")
    expected = f"the loss was not finite in step 6 .*; the last good checkpoint is .*{checkpoint_path(Path(), 4)}"
    with pytest.raises(RunFailed, match=expected):
        train(tiny("training.log_every=1"), tmp_path / "run")


def test_optimizer_and_callbacks_count_and_a_callback_can_be_turned_off(
    tiny: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def infinite(self: OnlineProbe) -> dict[str, Any]:
        return {"weight": torch.tensor([1.0, float("inf")])}

    monkeypatch.setattr(OnlineProbe, "state_dict", infinite)
    with pytest.raises(RunFailed, match=r"callback\.online_probe\.weight is not .*\(callbacks\.online_probe=null\)"):
        train(tiny("callbacks.online_probe={}"), tmp_path / "run")
    step = torch.optim.SGD.step

    def overflowing(self: torch.optim.SGD, *args: Any, **kwargs: Any) -> Any:
        result = step(self, *args, **kwargs)
        next(iter(self.state.values()))["momentum_buffer"].view(-1)[0] = float("inf")
        return result

    monkeypatch.setattr(torch.optim.SGD, "step", overflowing)
    with pytest.raises(RunFailed, match=r"after step 1 optimizer\.\S+\.momentum_buffer is not finite"):
        train(tiny("training.max_steps=1"), tmp_path / "other")
