"""The error for a run whose backbone is from a --plugin file, which only `ssl train` reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from sslcli import plugins
from sslcli.contracts.errors import UserError
from sslcli.runs.trained import load_trained
from sslcli.training.train import train


def test_the_error_for_a_missing_backbone_names_the_copy_of_its_plugin_file(tiny, odd_plugins, tmp_path) -> None:
    run = tmp_path / "run"
    config = tiny("backbone=flat", "training.max_steps=1", "training.epochs=1")
    train(config, run, plugin_files=[plugins.register_file(odd_plugins)])
    (kept,) = (run / "plugins").iterdir()
    assert load_trained(run).card.backbone["name"] == "flat"
    plugins.clear_cache()
    with pytest.raises(UserError) as caught:
        load_trained(run)
    message = str(caught.value)
    assert message.startswith(f"{run}/checkpoints/step-000000001.safetensors: unknown backbone 'flat'")
    assert message.endswith(f"the run was made with a --plugin file, kept as {kept}: install it as a package")
    assert Path(kept).read_bytes() == odd_plugins.read_bytes()
    assert "\n" not in message
