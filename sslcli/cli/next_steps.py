"""What to do with a finished run: commands that can be pasted into a shell, whatever the directory is called."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from sslcli.shell import path_word, shell_word


def next_steps(
    directory: Path,
    *,
    evaluator: str | None,
    longer: Sequence[str],
    plugins: Sequence[Path] = (),
) -> list[str]:
    """Returns commands that evaluate the backbone of a run, export it, load it in Python, and train it for longer.

    Args:
        directory: of the run.
        evaluator: what its data can be evaluated with; None: with nothing.
        longer: the words with which the run goes on.
        plugins: the files that the run was made with.
    """
    run, file = path_word(directory), Path(f"{directory.absolute().name}.safetensors")
    needed = [word for path in plugins for word in ("--plugin", path_word(path))]
    # The string of a JSON file is one of Python's too, in ASCII.
    program = f"import sslcli; print(sslcli.load_backbone({json.dumps(str(file))}).spec)"
    steps = [["ssl", "eval", run, "--method", evaluator, *needed]] if evaluator is not None else []
    steps.append(["ssl", "export", "backbone", run, "--output", path_word(file), *needed])
    if not plugins:  # the file alone does not have their code
        steps.append(["python", "-c", shell_word(program)])
    steps.append(["ssl", "train", run, *map(shell_word, longer), "--resume", *needed])
    return [" ".join(words) for words in steps]


def devices_again() -> list[str]:
    """Returns the option `--devices` of this process's group, if that has started it."""
    processes = os.environ.get("WORLD_SIZE", "1")
    alone = processes == "1" or "TORCHELASTIC_RUN_ID" in os.environ  # torchrun's words are not known
    return [] if alone else ["--devices", processes]
