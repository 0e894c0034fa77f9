"""Shell completion: commands, names, configs, keys and values of overrides, as bash, zsh and fish ask for them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_helpers import BELL, CALLBACK, Install
from typer.testing import CliRunner

from sslcli.cli import catalog, completion
from sslcli.cli.main import app


def bash(*words: str) -> list[str]:
    """What bash gets for the last word; it splits words at `=`, which the caller does too."""
    asked = {"COMP_WORDS": "\n".join(["ssl", *words]), "COMP_CWORD": str(len(words))}
    done = CliRunner().invoke(app, [], prog_name="ssl", env={**asked, "_SSL_COMPLETE": "complete_bash"})
    assert done.exit_code == 0, done.output
    return done.stdout.split()


def test_commands_and_options() -> None:
    assert bash("tr") == ["train"]
    assert "--dry-run" in bash("train", "--d")


def test_names_of_plugins() -> None:
    assert {"knn", "linear", "all"} <= set(bash("eval", "--method", ""))
    assert bash("export", "on") == ["onnx"]
    assert {"methods", "training", "data", "evaluators"} <= set(bash("list", ""))
    assert bash("list", "methods", "sims") == ["simsiam"]
    assert bash("list", "data", "cifar") == ["cifar10", "cifar100"]
    assert "clip.norm" in bash("list", "training", "clip")


def test_keys_of_overrides() -> None:
    assert {"training.epochs=", "training.clip.norm="} <= set(bash("train", "quickstart", "train"))
    everything = bash("train", "quickstart", "")
    assert {"method=", "training.", "callbacks."} <= set(everything)
    assert len(everything) < 30
    assert "callbacks.knn.every_epochs=" in bash("train", "quickstart", "callbacks.knn.")
    assert "seed=" in bash("bench", "quickstart", "see")


def test_a_single_key_is_shown_with_its_default_so_that_the_shell_adds_no_space() -> None:
    assert bash("train", "quickstart", "training.epo") == ["training.epochs=", "training.epochs=200"]


def test_options_are_those_of_the_plugins_that_the_config_and_the_overrides_before_name(tmp_path: Path) -> None:
    assert "method.temperature=" in bash("train", "quickstart", "method.")  # SimCLR's
    assert "method.center_momentum=" in bash("train", "quickstart", "method", "=", "dino", "method.")
    assert "method.center_momentum=" in bash("train", "quickstart", "'method={name: dino}'", "method.")
    assert bash("train", "quickstart", "backbone.wid") == ["backbone.width=", "backbone.width=64"]
    assert "views.local_count=" in bash("train", "quickstart", "views.preset=dino", "views.lo")
    config = tmp_path / "run" / "config.yaml"
    config.parent.mkdir()
    (tmp_path / "base.yaml").write_text("method: swav\noptimizer: {name: lars}\n")
    config.write_text("extends: ../base.yaml\nbackbone: vit_tiny\n")
    for path in (config, config.parent):
        assert "method.prototypes=" in bash("train", str(path), "method.")
        assert "backbone.patch_size=" in bash("train", str(path), "backbone.")
        assert "optimizer.trust_coefficient=" in bash("train", str(path), "optimizer.t")


@pytest.mark.parametrize(
    ("key", "start", "values"),
    [
        ("method", "sims", ["simsiam"]),
        ("method.name", "sims", ["simsiam"]),
        ("training.precision", "f", ["fp32", "fp16"]),
        ("training.drop_last", "", ["true", "false"]),
        ("training.workers", "", ["auto"]),
        ("training.max_steps", "", ["null"]),
        ("views.preset", "moco", ["moco_v1", "moco_v2"]),
        ("callbacks.knn", "", ["null"]),
        ("optimizer.scale_lr", "b", ["batch/256"]),
        ("data.root", "", []),  # the shell's own files follow
        ("nonsense.key", "x", []),
    ],
)
def test_values_of_overrides(key: str, start: str, values: list[str]) -> None:
    assert bash("train", "quickstart", key, "=", *([start] if start else [])) == values
    assert bash("train", "quickstart", f"{key}={start}") == [f"{key}={value}" for value in values]


def test_configs_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bash("train", "quick") == ["quickstart"]
    assert "images/simclr" in bash("train", "images/")
    assert bash("train", "optimizer.n") == ["optimizer.name=", *(f"optimizer.name={name}" for name in OPTIMIZERS)]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "deeper").mkdir(parents=True)
    for name in ("one.yaml", "two.txt"):
        (tmp_path / "own" / name).touch()
    assert bash("train", "ow") == ["own/", "own/deeper/", "own/one.yaml"]
    assert bash("train", "own/o") == ["own/one.yaml"]
    assert bash("train", "nowhere/") == []


OPTIMIZERS = ["adam", "adamw", "larc", "lars", "lars_simclr", "sgd"]


def test_names_that_a_shell_would_obey_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run-1", "run-$(touch x)", "run-;x", "run-\n--help", "run-\x1b[2J", "run-'x", "run-\udcff"):
        Path(name).mkdir()
    assert bash("eval", "run") == ["run-1/"]


def test_targets_and_options_of_evaluations_and_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    assert bash("eval", "") == ["runs/", "runs/first/"]
    assert "resnet18" in bash("eval", "resn")
    assert {"epochs=", "feature=", "data.", "runs/"} <= set(bash("eval", "runs/first", "--method", "linear", ""))
    assert "batch_size=" in bash("eval", "runs/first", "--method", "linear", "b")
    assert bash("eval", "runs/first", "interpolation", "=", "bic") == ["bicubic"]
    assert "data.limit=" in bash("eval", "runs/first", "data.l")
    assert bash("export", "backbone", "runs/first", "format=ti") == ["format=timm"]


def test_other_shells_show_the_help() -> None:
    for shell, more in (("zsh", {}), ("fish", {"_TYPER_COMPLETE_FISH_ACTION": "get-args"})):
        asked = {
            "_TYPER_COMPLETE_ARGS": "ssl train quickstart training.ep",
            "_SSL_COMPLETE": f"complete_{shell}",
            **more,
        }
        out = CliRunner().invoke(app, [], prog_name="ssl", env=asked).stdout
        assert "training.epochs=200" in out
        assert "Number of passes over the data." in out


def test_plugins_of_other_packages(install: Install) -> None:
    broken = "raise OSError('broken')"
    install("bells", f"{BELL}bad = broken:Bell\n", {"bells": CALLBACK, "broken": broken})
    assert bash("list", "callbacks", "be") == ["bell"]
    assert "callbacks.bell=" in bash("train", "quickstart", "callbacks.b")
    assert "bells" not in sys.modules
    options = (
        "from sslcli.contracts.optimizer import OptimizerOptions, OptimizerPlugin\n\n\nclass Slow(OptimizerPlugin):\n"
    )
    options += '    """Descends slowly."""\n\n    class Options(OptimizerOptions):\n        pace: int = 3\n'
    install("snail", "[sslcli.optimizers]\nsnail = snail:Slow\n", {"snail": options})
    assert bash("train", "quickstart", "optimizer=snail", "optimizer.pa") == ["optimizer.pace=", "optimizer.pace=3"]


def test_every_choice_of_the_catalog_can_be_typed_as_it_is() -> None:
    for row in catalog.read()["sections"]["training"]["options"]:
        choices = [each for each in row["choices"] if isinstance(each, str)]
        assert set(choices) <= {value for value, _ in completion._values(row)}


def test_completion_imports_neither_torch_nor_a_plugin() -> None:
    program = "import sys\nfrom sslcli.cli.main import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
    program += "print([name for name in sys.modules if name.partition('.')[0] in ('torch', 'numpy', 'torchvision')])"
    words = ["ssl", "train", "quickstart", "optimizer", "=", "lars", "optimizer."]
    asked = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": "6", "_SSL_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **asked}, capture_output=True, text=True, check=True
    )
    assert "optimizer.trust_coefficient=" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_that_is_installed_works_in_bash(tmp_path: Path) -> None:
    asked = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    asked["PATH"] = f"{Path(sys.executable).parent}:{asked['PATH']}"
    script = subprocess.run(
        ["ssl", "--show-completion", "bash"], env=asked, capture_output=True, text=True, check=True
    ).stdout
    script += (
        "COMP_WORDS=(ssl train quickstart method = sims); COMP_CWORD=5\n_ssl_completion ssl\necho ${COMPREPLY[@]}\n"
    )
    done = subprocess.run(["bash", "-c", script], env=asked, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["simsiam"], json.dumps(done.stderr)
