"""`ssl` and `ssl train`: output, exit codes, and that a failed start leaves no files behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_helpers import CONFIG, folder, left_behind, run, trained  # noqa: F401  # fixtures
from run_helpers import contents, done, refused, ssl

import sslcli
from sslcli.config.resolve import load_config

# ruff: noqa: F811

START_UP = """
import io, json, sys
from contextlib import redirect_stdout
from sslcli.cli.main import main
found = {}
for arguments in (["--help"], ["--version"], ["train", "--help"], ["bench", "--help"], ["list"], ["list", "--json"],
                  ["list", "training"], ["list", "data"], ["list", "views"], ["runs", "--json"]):
    sys.argv = ["ssl", *arguments]
    with redirect_stdout(io.StringIO()) as out:
        try:
            main()
        except SystemExit as stop:
            assert not stop.code, arguments
    assert out.getvalue(), arguments
    heavy = [name for name in ("torch", "torchvision", "numpy", "tensorboard", "safetensors") if name in sys.modules]
    found[" ".join(arguments)] = heavy
print(json.dumps(found))
"""


def test_help_and_list_import_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", START_UP], capture_output=True, text=True, check=True)
    assert all(heavy == [] for heavy in json.loads(done.stdout).values()), done.stdout


def test_the_help_has_all_commands() -> None:
    out, err = done("--help")
    assert err == ""
    assert all(f" {command} " in out for command in ("train", "eval", "export", "bench", "runs", "list"))
    assert ssl("--version") == (0, f"ssl {sslcli.__version__}\n", "")


@pytest.mark.parametrize(
    "words",
    ["frobnicate", "train", "train c.yaml --frobnicate", "eval x --seed -1", "bench c.yaml --steps 0",
     "bench c.yaml --rounds 0"],
)  # fmt: skip
def test_wrong_usage_exits_with_2(words: str) -> None:
    code, out, _ = ssl(*words.split())
    assert (code, out) == (2, "")


def test_a_run_has_the_documented_files_and_its_last_lines_work_when_pasted(trained, folder: Path) -> None:
    run, out, err = trained
    assert f"run directory: {run}" in err
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "backbone.safetensors", "environment.json"} <= names
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"step", "epoch", "loss", "lr", "images_per_second", "data_wait"} <= set(line)
    assert load_config(run / "config.yaml", []).training.batch_size == 16
    evaluate, export, program, longer = out.splitlines()
    assert evaluate == f"ssl eval {run} --method linear"
    assert longer == f"ssl train {run} training.epochs=2 --resume"
    done(*export.split()[1:])
    exec(program.removeprefix("python -c ").strip("'"), {})
    assert (folder / "run.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.yaml"], "gone.yaml: no such file"),
        (["."], ".: is a directory"),
        (["c.yaml", "training.epochs='3'"], "command line: training.epochs: should be a valid integer, not '3'"),
        (["c.yaml", "method=simclrr"], "command line: method.name: unknown method 'simclrr'; did you mean simclr"),
        (["c.yaml", "nonsense"], "command line: 'nonsense': should look like key.path=value"),
        (["c.yaml", "data={name: cifar10, root: nowhere}"], "data.root: no CIFAR-10 in nowhere"),
        (["c.yaml", "training.batch_size=49"], "training.batch_size: 49 is more than the 48 images of shapes"),
        (["c.yaml", "training.batch_size=49", "--dry-run"], "training.batch_size: 49 is more than the 48 images"),
        (["c.yaml", "training.accumulate=3"], "training.batch_size: 16 cannot be divided evenly"),
        (["c.yaml", "backbone.stem=standard"], "c.yaml:1: backbone: resnet18 with the standard stem takes views of"),
        (["c.yaml", "views.size=4"], "c.yaml:1: backbone: resnet18 with the small stem takes views of at least 8"),
        (["c.yaml", "output=c.yaml"], "c.yaml: is a file; --output must be a directory"),
        (["c.yaml", "--output", "c.yaml/below"], "c.yaml/below: cannot be created"),
        (["c.yaml", "--plugin", "gone.py"], "--plugin gone.py: cannot be read"),
        pytest.param(
            ["c.yaml", "training.device=cuda"], "training.device: cuda: there is no CUDA device that torch can use",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing_behind(folder: Path, arguments: list[str], message: str) -> None:
    assert refused("train", *arguments).startswith(f"ssl: {message}")
    assert left_behind(folder) == set()


def test_every_mistake_in_a_config_has_its_own_line(folder: Path) -> None:
    text = CONFIG.replace("lr: 0.05", "lr: fast").replace("  epochs: 1", "  epoch: 1")
    (folder / "c.yaml").write_text(text)
    first, second = refused("train", "c.yaml", lines=2).splitlines()
    number = text.splitlines().index("  lr: fast") + 1
    assert first == f"ssl: c.yaml:{number}: optimizer.lr: should be a valid number, not 'fast'"
    number = text.splitlines().index("  epoch: 1") + 1
    assert second == f"ssl: c.yaml:{number}: training.epoch: unknown option of 'training'; did you mean epochs?"


def test_a_file_that_is_not_yaml_is_one_line(folder: Path) -> None:
    (folder / "c.yaml").write_text("method: [simclr\n")
    assert refused("train", "c.yaml").startswith("ssl: c.yaml:2: not valid YAML: ")
    (folder / "c.yaml").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    assert "is not a text file in UTF-8" in refused("train", "c.yaml")


def test_neither_a_run_nor_other_files_are_overwritten(run: Path, folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.txt").write_text("keep")
    before = contents(folder)
    assert "is not empty and contains no run" in refused("train", "c.yaml", "--output", "mine")
    assert "already contains a run; resume it with --resume" in refused("train", "c.yaml", "--output", run)
    assert "run: is a run; resume it with `ssl train run --resume`" in refused("train", run)
    err = refused("train", "c.yaml", "method.temperature=0.3", "--output", run, "--resume")
    assert "method.temperature: 0.5 in the run, 0.3 now" in err
    assert contents(folder) == before


def test_a_finished_run_can_be_made_longer_from_its_directory(run: Path) -> None:
    out, err = done("train", run, "training.epochs=2", "training.log_every=1", "--resume")
    assert "from step 3 of 6" in err
    assert out.startswith("ssl eval ")
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps[-4:] == [3, 4, 5, 6]


def test_a_dry_run_writes_nothing_and_prints_a_valid_config_and_what_a_step_takes(folder: Path) -> None:
    out, err = done("train", "c.yaml", "training.epochs=7", "training.channels_last=false", "--dry-run")
    assert err == ""
    assert re.fullmatch(
        r"# memory: about [\d.]+ MiB at the peak of a step \(images .* MiB, parameters .* MiB, "
        r"optimizer state .* MiB, gradients, views and activations .* MiB\); fits: [\d.]+ GiB free",
        out.splitlines()[-1],
    )
    assert left_behind(folder) == set()
    plan = dict(line.removeprefix("# ").split(": ", 1) for line in out.partition("# plan\n")[2].splitlines())
    assert (plan["steps"], plan["views"], plan["images"]) == ("21", "2", "48")
    (folder / "again.yaml").write_text(out)
    first, again = (
        load_config(folder / "c.yaml", ["training.epochs=7", "training.channels_last=false"]),
        load_config(folder / "again.yaml", []),
    )
    assert again.plain() == first.plain()
    assert str(again.output) == f"runs/c-{first.digest()}"
    again_out = done("train", "again.yaml", "--dry-run")[0]
    assert without_memory(again_out) == without_memory(out)


def without_memory(out: str) -> str:
    """The output of a dry run but for its last line, which says how much memory is free at the moment."""
    lines = out.splitlines()
    assert lines[-1].startswith("# memory: about ")
    return "\n".join(lines[:-1])


def test_a_dry_run_says_that_a_step_does_not_fit_and_allocates_none_of_it(folder: Path) -> None:
    # Views of 3 GiB, and activations of more than most machines have.
    words = ("data.count=2000", "training.batch_size=2000", "views.size=256", "backbone.width=64")
    out, err = done("train", "c.yaml", *words, "--dry-run")
    assert re.search(
        r"about [\d.,]+ [GT]iB at the peak of a step .*; does not fit: [\d.]+ GiB free", out.splitlines()[-1]
    )
    assert err.count("\n") == 1
    assert "a step is not likely to fit into the memory of cpu: try a smaller training.batch_size" in err
    assert left_behind(folder) == set()


@pytest.mark.slow
def test_a_dry_run_for_several_processes_estimates_the_share_of_one(folder: Path) -> None:
    (one, _), (two, _) = (done("train", "c.yaml", "--dry-run", *words) for words in ((), ("--devices", "2")))
    assert "# memory of each process: about" in two
    step = [float(re.search(r"activations ([\d.]+) MiB", out)[1]) for out in (one, two)]
    assert 0.4 < step[1] / step[0] < 0.8


def test_a_plugin_file_is_kept_in_the_run(folder: Path) -> None:
    source = "from sslcli.augmentations.flip import Flip\nclass Mirror(Flip):\n    pass\n"
    (folder / "mine.py").write_text(source)
    views = "views=[{count: 2, operations: [crop, mirror]}]"
    assert "unknown view operation or preset 'mirror'" in refused("train", "c.yaml", views)
    done("train", "c.yaml", views, "training.max_steps=1", "--plugin", "mine.py", "--output", "run")
    (kept,) = (folder / "run" / "plugins").iterdir()
    assert kept.read_text() == source
