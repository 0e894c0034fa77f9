"""`ssl eval`: evaluates frozen backbones."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sslcli.foreign import results, show
from sslcli.orphans import launched
from sslcli.shell import plain_path
from sslcli.storage import expanded

from . import completion
from .arguments import Device, Devices, PluginFiles, is_override, verbosity


def evaluate(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="What to evaluate, by default the newest run in runs/: run directories, checkpoints, backbone files; "
            "backbones by name (resnet18, torchvision/resnet50), untrained unless backbone.pretrained=true; "
            "weight files from other tools, with "
            "backbone=NAME. Also options: of the evaluator (k=[20]), of the data (data.limit=500), "
            "feature=cls_last4, interpolation=bicubic, and for backbones without a card backbone.…, mean, std, "
            "image_size.",
            metavar="TARGET|KEY=VALUE",
            autocompletion=completion.evaluation,
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="Evaluator, or all: `ssl list evaluators`; the options of one: `ssl list evaluators NAME`.",
            metavar="NAME|all",
            autocompletion=completion.plugins("evaluators", "all"),
        ),
    ] = "knn",
    device: Device = "auto",
    devices: Devices = None,
    seed: Annotated[int, typer.Option(help="Random seed.", min=0)] = 0,
    seeds: Annotated[
        int, typer.Option(help="Number of seeds, starting at --seed; shows mean ± standard deviation.", min=1)
    ] = 1,
    output: Annotated[
        Path | None,
        typer.Option(help="JSON file for the results; those of a run are also written to RUN/eval.", metavar="FILE"),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help='Print one JSON object: the metrics, "method", "protocol" (and "std" with --seeds); for several '
            'results {"results": [{"target", "method", "metrics", "std", "protocol", "file"}, ...]}.',
        ),
    ] = False,
    plugin: PluginFiles = None,
) -> int:
    """Evaluate frozen backbones. Several backbones or evaluators in one call make one table, on the same data.

    Examples: ssl eval runs/first --method linear --seeds 3

    ssl eval runs/first runs/second resnet18 --method all
    """
    from sslcli.plugins import choose, register_file

    for path in plugin or []:
        register_file(path)
    if method != "all":
        choose("evaluators", method)  # so that a typo is reported before torch is imported
    targets, overrides = split_words(words or [])
    if devices is not None and devices > 1:
        from sslcli.training.launch import launch

        given = ["--method", method, "--device", device, "--seed", str(seed), "--seeds", str(seeds)]
        given += ["--output", plain_path(output)] if output is not None else []
        given += ["--json"] * as_json + [word for path in plugin or [] for word in ("--plugin", plain_path(path))]
        return launch(["eval", *given, *verbosity(), "--", *(words or [])], devices, device)

    from rich.console import Console

    from sslcli import distributed
    from sslcli.evaluation import tables
    from sslcli.evaluation.evaluate import evaluate_all
    from sslcli.runs.trained import newest_run
    from sslcli.training.group import joined

    targets = targets or [str(newest_run("evaluate", "ssl eval RUN"))]
    output = expanded(output) if output is not None else None
    with joined(device, shared=started_together()):
        rows = evaluate_all(targets, method, overrides, device=device, seed=seed, seeds=seeds, output=output)
        if distributed.rank() != 0:
            return 0
    single = len(targets) == 1 and method != "all"
    if as_json:
        show(json.dumps(rows[0].plain() if single else tables.as_json(rows)))
    elif single:
        show("\n".join(tables.lines(rows[0].result)))
    elif results().isatty():
        Console(file=results()).print(tables.rich_table(rows))
    else:
        show("\n".join(tables.plain_table(rows)))
    return 0 if output is None or output.exists() else 1


def started_together() -> bool:
    """Returns whether `--devices` or torchrun has started this command, on several processes perhaps.

    `WORLD_SIZE` alone does not say so: a pod or a job may have it in the environment of everything.
    """
    return launched() or "TORCHELASTIC_RUN_ID" in os.environ


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns targets and overrides: a word is an override if it looks like `key.path=…` and no such file exists."""
    targets: list[str] = []
    overrides: list[str] = []
    for word in words:
        (overrides if is_override(word) else targets).append(word)
    return targets, overrides
