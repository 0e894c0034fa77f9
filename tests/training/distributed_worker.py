"""One process of a group, started by test_distributed.py; alone it computes what the group is compared with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent.parent))

from draws_helpers import drawn
from run_helpers import method_config

from sslcli import distributed
from sslcli.plugins import find
from sslcli.runs.directory import RunDirectory
from sslcli.training import group
from sslcli.training.context import Context
from sslcli.training.loop import Loop
from sslcli.training.setup import build
from sslcli.training.train import train

METHODS = tuple(plugin.name for plugin in find("methods") if plugin.package == "sslcli")


def gradients(method: str, *overrides: str) -> dict[str, torch.Tensor]:
    """The loss and every gradient of a run's second step, in float64."""
    session = build(method_config(method, *overrides))
    session.method.double()
    apply = session.views.apply
    session.views.apply = lambda *a, **k: [view.double() for view in apply(*a, **k)]  # type: ignore[method-assign]
    loop = Loop(session, Context(session, RunDirectory(Path())), 1)
    found: dict[str, torch.Tensor] = {}

    def keep() -> None:
        for name, parameter in session.method.named_parameters():
            if parameter.grad is not None:
                found[f"{method}.{name}"] = parameter.grad.clone()
        session.optimizer.zero_grad()

    loop._update = keep  # type: ignore[method-assign]
    loop.step()
    found[f"{method}.loss"] = distributed.all_reduce_mean(loop.meter.sums["loss"].double())
    for name, buffer in session.method.named_buffers():
        if "running" in name:
            found[f"{method}.{name}"] = buffer.clone()
    return found


def main(output: Path) -> None:
    torch.set_num_threads(1)
    found: dict[str, torch.Tensor] = {}
    with group.joined("cpu"):
        for method in METHODS:
            found |= gradients(method)
        found |= {f"accumulated.{k}": v for k, v in gradients("simsiam", "training.accumulate=2").items()}
        if distributed.rank() == 0:
            save_file({k: v.contiguous() for k, v in found.items()}, output / "gradients.safetensors")
        for accumulate in (1, 2):
            draws = drawn(f"training.accumulate={accumulate}")
            if distributed.rank() == 0:
                save_file(draws, output / f"draws-{accumulate}.safetensors")
        if distributed.is_distributed():
            make_runs(output)


def make_runs(output: Path) -> None:
    """For each method a whole run and one in two parts; in `local` each process has its own batch statistics."""
    said: list[str] = []
    runs = {method: [method] for method in METHODS} | {"local": ["simclr", "training.sync_batch_norm=false"]}
    for name, overrides in runs.items():
        train(method_config(*overrides), output / name / "whole", tell=said.append)
        train(method_config(*overrides, "training.max_steps=3"), output / name / "parts", tell=said.append)
        train(method_config(*overrides), output / name / "parts", resume=True, tell=said.append)
    (output / f"messages-{os.environ['RANK']}.txt").write_text("\n".join(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
