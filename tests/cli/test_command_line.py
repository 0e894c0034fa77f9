"""The command line in one process: what it prints where, its exit codes, and that a failed start leaves nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import sslcli
from sslcli import plugins
from sslcli.cli.main import app
from sslcli.config.resolve import load_config

CONFIG = """\
method: {name: simclr, projector: {output_dim: 8}}
backbone: {name: resnet18, stem: small, width: 8}
data: {name: shapes, count: 48, size: 16}
optimizer: {name: sgd, lr: 0.05}
schedule: constant
training: {epochs: 1, batch_size: 16, device: cpu, precision: fp32, compile: none}
callbacks: {knn: null, online_probe: null, tensorboard: null}
"""


def ssl(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def refused(*arguments: object, lines: int = 1, code: int = 2) -> str:
    """Runs a command that must fail in the user's words: the given exit code, nothing on stdout, so many lines."""
    found, out, err = ssl(*arguments)
    assert (found, out) == (code, ""), err
    assert len(err.splitlines()) == lines, err
    assert all(line.startswith("ssl: ") for line in err.splitlines())
    return err.strip()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "c.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    plugins.clear_cache()


def left_behind(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} - {"c.yaml"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A finished run, made once; with what was printed on stdout and stderr."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "c.yaml").write_text(CONFIG)
    code, out, err = ssl("train", folder / "c.yaml", "--output", folder / "run")
    assert code == 0, err
    return folder / "run", out, err


@pytest.fixture
def run(trained: tuple[Path, str, str], folder: Path) -> Path:
    """A copy of the finished run that a test may spoil."""
    return Path(shutil.copytree(trained[0], folder / "run"))


# --- the start


def test_help_and_list_import_nothing_heavy() -> None:
    program = """
import io, json, sys
from contextlib import redirect_stdout
from sslcli.cli.main import main
found = {}
for arguments in (["--help"], ["--version"], ["train", "--help"], ["bench", "--help"], ["list"], ["list", "--json"]):
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
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert all(heavy == [] for heavy in json.loads(done.stdout).values()), done.stdout


def test_the_five_commands_are_in_the_help() -> None:
    code, out, err = ssl("--help")
    assert (code, err) == (0, "")
    assert all(f" {command} " in out for command in ("train", "eval", "export", "bench", "list"))
    assert ssl("--version") == (0, f"ssl {sslcli.__version__}\n", "")


def test_wrong_usage_exits_2() -> None:
    for arguments in (["frobnicate"], ["train"], ["train", "c.yaml", "--frobnicate"], ["eval", "x", "--seed", "-1"]):
        code, out, _ = ssl(*arguments)
        assert (code, out) == (2, "")


# --- train


def test_train_prints_one_line_that_works_on_stdout_and_the_rest_on_stderr(trained: tuple[Path, str, str]) -> None:
    run, out, err = trained
    assert out.count("\n") == 1
    assert out.startswith(f"ssl eval {run} --method linear && ssl export backbone {run} --output run.safetensors && ")
    assert f"run directory: {run}" in err
    assert "Traceback" not in err


def test_the_last_line_of_train_works_when_pasted(trained: tuple[Path, str, str], folder: Path) -> None:
    steps = [step.split() for step in trained[1].strip().split(" && ")]
    assert steps[0][:2] == ["ssl", "eval"]
    code, _, err = ssl(*steps[1][1:])
    assert code == 0, err
    program = trained[1].strip().rpartition("python -c ")[2].strip("'")
    exec(program, {})
    assert (folder / "run.safetensors").is_file()


def test_a_run_holds_what_the_documentation_says(trained: tuple[Path, str, str]) -> None:
    run = trained[0]
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "backbone.safetensors", "environment.json"} <= names
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"step", "epoch", "loss", "lr", "images_per_second", "data_wait"} <= set(line)
    assert load_config(run / "config.yaml", []).training.batch_size == 16


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gone.yaml"], "gone.yaml: no such file"),
        (["."], ".: is a directory, not a YAML file"),
        (["c.yaml", "training.epochs='3'"], "command line: training.epochs: should be a valid integer, not '3'"),
        (["c.yaml", "method=simclrr"], "command line: method.name: unknown method 'simclrr'; did you mean simclr"),
        (["c.yaml", "nonsense"], "command line: 'nonsense': should look like key.path=value"),
        (["c.yaml", "data={name: cifar10, root: nowhere}"], "data.root: no CIFAR-10 in nowhere"),
        (["c.yaml", "training.batch_size=49"], "training.batch_size: 49 is more than the 48 images of shapes"),
        (["c.yaml", "training.accumulate=3"], "training.batch_size: 16 cannot be divided evenly"),
        (["c.yaml", "backbone.stem=standard"], "backbone: resnet18 with the standard stem takes views of at least 32"),
        (["c.yaml", "views.size=4"], "backbone: resnet18 with the small stem takes views of at least 8 pixels, not 4"),
        (["c.yaml", "output=c.yaml"], "c.yaml: is a file; --output wants a directory"),
        (["c.yaml", "--output", "c.yaml/below"], "c.yaml/below: cannot be made"),
        (["c.yaml", "--plugin", "gone.py"], "--plugin gone.py: cannot be read"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(folder: Path, arguments: list[str], said: str) -> None:
    assert refused("train", *arguments).removeprefix("ssl: ").startswith(said)
    assert left_behind(folder) == set()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_one_line(folder: Path, run: Path) -> None:
    before = left_behind(folder)
    assert "cuda" in refused("train", "c.yaml", "training.device=cuda")
    assert "cuda" in refused("eval", run, "--device", "cuda:1")
    assert left_behind(folder) == before


def test_every_mistake_in_a_config_is_a_line_of_its_own(folder: Path) -> None:
    (folder / "c.yaml").write_text(CONFIG.replace("lr: 0.05", "lr: fast").replace("epochs: 1", "epoch: 1"))
    err = refused("train", "c.yaml", lines=2)
    assert err.splitlines()[0] == "ssl: c.yaml:4: optimizer.lr: should be a valid number, not 'fast'"
    assert err.splitlines()[1] == "ssl: c.yaml:6: training.epoch: unknown option of 'training'; did you mean epochs?"


def test_a_file_that_is_not_yaml_is_one_line(folder: Path) -> None:
    (folder / "c.yaml").write_text("method: [simclr\n")
    assert refused("train", "c.yaml").startswith("ssl: c.yaml:2: not valid YAML: ")
    (folder / "c.yaml").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    assert "is not a text file in UTF-8" in refused("train", "c.yaml")


def test_a_directory_with_other_things_in_it_is_left_alone(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.txt").write_text("keep")
    assert "is not empty and holds no run" in refused("train", "c.yaml", "--output", "mine")
    assert left_behind(folder) == {"mine", "mine/notes.txt"}


def test_a_run_is_never_overwritten(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "holds a run already; go on with --resume" in refused("train", "c.yaml", "--output", run)
    assert "is a run; go on with" in refused("train", run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_fixed_field_that_differs_is_refused_on_resume(run: Path) -> None:
    err = refused("train", "c.yaml", "method.temperature=0.3", "--output", run, "--resume")
    assert "method.temperature: 0.5 in the run, 0.3 now" in err


def test_a_finished_run_can_be_made_longer_from_its_directory(run: Path) -> None:
    code, out, err = ssl("train", run, "training.epochs=2", "--resume")
    assert code == 0, err
    assert "from step 3 of 6" in err
    assert out.startswith("ssl eval ")
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert steps[-1] == 6


def test_a_dry_run_writes_nothing_and_prints_a_config_that_is_valid_again(folder: Path) -> None:
    code, out, err = ssl("train", "c.yaml", "training.epochs=7", "--dry-run")
    assert (code, err) == (0, "")
    assert left_behind(folder) == set()
    plan = dict(line.removeprefix("# ").split(": ", 1) for line in out.partition("# plan\n")[2].splitlines())
    assert (plan["steps"], plan["views"], plan["images"]) == ("21", "2", "48")
    (folder / "again.yaml").write_text(out)
    first, again = load_config(folder / "c.yaml", ["training.epochs=7"]), load_config(folder / "again.yaml", [])
    assert again.plain() == first.plain()
    assert str(again.output) == f"runs/c-{first.digest()}"
    assert ssl("train", "again.yaml", "--dry-run")[1] == out


def test_a_dry_run_finds_the_same_mistakes(folder: Path) -> None:
    assert "training.batch_size" in refused("train", "c.yaml", "training.batch_size=49", "--dry-run")


def test_a_plugin_file_is_kept_in_the_run(folder: Path) -> None:
    source = "from sslcli.augmentations.flip import Flip\nclass Mirror(Flip):\n    pass\n"
    (folder / "mine.py").write_text(source)
    views = "views=[{count: 2, operations: [crop, mirror]}]"
    assert "unknown view operation or preset 'mirror'" in refused("train", "c.yaml", views)
    code, _, err = ssl("train", "c.yaml", views, "training.max_steps=1", "--plugin", "mine.py", "--output", "run")
    assert code == 0, err
    (kept,) = (folder / "run" / "plugins").iterdir()
    assert kept.read_text() == source


# --- eval


def test_eval_prints_its_numbers_and_keeps_them_in_the_run(run: Path) -> None:
    code, out, err = ssl("eval", run, "k=[5]", "data.limit=40", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert 0 <= result["top1"] <= 1
    assert (result["method"], result["protocol"]["k"]) == ("knn", 5)
    stored = json.loads((run / "eval" / "knn.json").read_text())
    assert stored["metrics"]["top1"] == result["top1"]
    assert stored["protocol"] == result["protocol"]
    code, out, _ = ssl(
        "eval", run / "backbone.safetensors", "k=[5]", "data={name: shapes, count: 48, size: 16, limit: 40}"
    )
    assert code == 0
    assert out.splitlines()[0].split() == ["top1", f"{result['top1']:.2%}"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gone"], "gone: no such run or file"),
        (["."], ".: is no run directory (it has no config.yaml)"),
        (["c.yaml"], "c.yaml: "),
        (["run", "--method", "knnn"], "unknown evaluator 'knnn'; did you mean knn?"),
        (["run", "kk=3"], "command line: kk: unknown option of 'knn'; did you mean k?"),
        (["run", "k=x"], "command line: k: should be a valid integer, not 'x'"),
        (["run", "data.countt=x"], "command line: data.countt: unknown option of 'shapes'; did you mean count?"),
        (["run", "data=shapess"], "unknown data set 'shapess'; did you mean shapes?"),
        (["run", "k"], "k: no such run or file; "),
        (["run", "=3"], "command line: '=3': should look like key.path=value"),
        (["k=[5]"], "what to judge? Name a run"),
        (["run", "--device", "gpu"], ""),
        (["backbone.safetensors", "data=cifar10", "data.root=nowhere"], "data.root: no CIFAR-10 in nowhere"),
    ],
)
def test_a_wrong_eval_is_one_line(run: Path, arguments: list[str], said: str) -> None:
    shutil.copy(run / "backbone.safetensors", ".")
    assert refused("eval", *arguments).removeprefix("ssl: ").startswith(said)
    assert not (run / "eval").exists()


def test_a_damaged_file_is_named(run: Path) -> None:
    path = run / "backbone.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert str(path) in refused("eval", path)
    path.write_bytes(content[:100])
    assert str(path) in refused("export", "backbone", path, "--output", "x.safetensors")
    path.write_bytes(b"")
    assert str(path) in refused("eval", path)


def test_a_run_without_an_intact_checkpoint_is_told(run: Path) -> None:
    (checkpoint,) = (run / "checkpoints").iterdir()
    checkpoint.write_bytes(b"damaged")
    err = refused_somehow("eval", run)
    assert "none of the 1 checkpoints is intact" in err
    checkpoint.unlink()
    assert "has no checkpoint yet" in refused("eval", run)


def refused_somehow(*arguments: object) -> str:
    code, out, err = ssl(*arguments)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    return err


# --- export


def test_export_writes_a_file_and_prints_how_to_load_it(run: Path, folder: Path) -> None:
    code, out, err = ssl("export", "backbone", run, "--output", "my net.safetensors")
    assert code == 0, err
    space: dict[str, torch.nn.Module] = {}
    exec(out, space)
    assert isinstance(space["model"], torch.nn.Module)
    assert "wrote " in err


def test_export_never_replaces_a_file_unasked(run: Path, folder: Path) -> None:
    (folder / "x.safetensors").write_text("mine")
    assert "exists already" in refused("export", "backbone", run, "--output", "x.safetensors")
    assert (folder / "x.safetensors").read_text() == "mine"
    assert ssl("export", "backbone", run, "--output", "x.safetensors", "--force")[0] == 0
    assert (folder / "x.safetensors").read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["backbone", "run", "--output", "no/such/x.safetensors"], "no/such/x.safetensors: the folder no/such does "),
        (["backbone", "run", "--output", "run"], "run: is a directory; --output wants a file"),
        (["backbone", "run", "--output", "c.yaml/x"], "c.yaml/x: the folder c.yaml does not exist"),
        (["backbon", "run"], "unknown exporter 'backbon'; did you mean backbone?"),
        (["backbone", "gone"], "gone: no such run or file"),
        (["backbone", "."], ".: is no run directory"),
        (["backbone", "run", "dtypee=3", "--output", "x"], "command line: dtypee: unknown option of 'backbone'"),
    ],
)  # fmt: skip
def test_a_wrong_export_is_one_line(run: Path, folder: Path, arguments: list[str], said: str) -> None:
    before = left_behind(folder)
    assert refused("export", *arguments).removeprefix("ssl: ").startswith(said)
    assert left_behind(folder) == before
