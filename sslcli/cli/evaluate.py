"""`ssl eval`: judges a frozen backbone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    target: Annotated[
        Path, typer.Argument(help="Run directory, checkpoint or backbone file.", metavar="RUN_OR_BACKBONE")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Options of the evaluator (k=[20]) or of the data (data.limit=500).", metavar="[KEY=VALUE]..."
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="Which evaluation; see `ssl list evaluators`.")] = "knn",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    seed: Annotated[int, typer.Option(help="For whatever the evaluation draws.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Judge a frozen backbone.

    Example: ssl eval runs/quickstart-1a2b3c4d --method linear
    """
    from ..plugins import choose

    choose("evaluators", method)  # a typo is told before torch is loaded

    from ..evaluation.run import evaluate as run_evaluation
    from ..reporting.console import tell

    result = run_evaluation(target, method, overrides or [], device=device, seed=seed, tell=tell)
    if as_json:
        print(json.dumps({**result.metrics, "method": method, "protocol": result.protocol}))
        return 0
    width = max(len(name) for name in result.metrics)
    for name, value in result.metrics.items():
        print(f"{name:<{width}}  {f'{value:.2%}' if name.startswith('top') else f'{value:.4g}'}")
    return 0
