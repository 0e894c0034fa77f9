"""A third party's package: built, installed, used, uninstalled, connected by entry points alone."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import textwrap
import tomllib
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow  # packages are built and installed

EXAMPLE = Path(__file__).parent.parent / "plugins" / "sslcli-example"
PLUGINS = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"]
#: A user's session, in one process because importing torch takes seconds. Prints one JSON object.
SESSION = """
import json, sys
import pytest, torch
import sslcli

torch.set_num_threads(1)
example, root, folder = sys.argv[1:]
config = f"{example}/example.yaml"
tiny = {
    "data.root": root, "backbone.dim": 8, "backbone.depth": 1, "method.projector.output_dim": 8,
    "training.epochs": 1, "training.batch_size": 8, "training.log_every": 1, "training.device": "cpu",
    "callbacks.tensorboard": None, "callbacks.progress": None, "callbacks.knn": None,
}
stopped = sslcli.train(config, {**tiny, "training.max_steps": 2}, output=f"{folder}/run")
resumed = sslcli.train(config, tiny, output=f"{folder}/run", resume=True)
whole = sslcli.train(config, tiny, output=f"{folder}/whole")
states = [sslcli.load_backbone(f"{folder}/{name}/backbone.safetensors").state_dict() for name in ("run", "whole")]
metrics = sslcli.evaluate(resumed, "nearest_mean").metrics
sslcli.export(resumed, "npz", f"{folder}/weights.npz")
exported = sslcli.export(resumed, "backbone", f"{folder}/convmixer.safetensors")
names = {}
exec(exported.how_to_load, names)
print(json.dumps({
    "steps": [stopped.step, resumed.step, whole.step],
    "equal": all(torch.equal(states[0][name], states[1][name]) for name in states[0]),
    "top1": metrics["top1"], "best": json.load(open(f"{folder}/run/best.json"))["metric"],
    "features": list(names["model"](torch.zeros(2, 3, 32, 32)).pooled.shape),
    "own_tests": int(pytest.main(["-q", "-p", "no:cacheprovider", "-c", f"{example}/pyproject.toml",
                                  f"{example}/tests"])),
}))
"""


def run(*command: str | Path, path: Path | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a program; `path` is what is on Python's path beside the environment's own packages."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment = {**clean, "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [str(word) for word in command], env=environment, cwd=cwd, capture_output=True, text=True, check=False
    )


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("sslcli_example") is not None:
        pytest.skip("sslcli-example is installed here, so that it cannot be missing")
    folder = tmp_path_factory.mktemp("wheel")
    offline = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet")
    succeeded(run(sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", folder, EXAMPLE))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package and nothing else in it."""
    folder = tmp_path_factory.mktemp("site") / "packages"
    options = ("--no-index", "--no-deps", "--quiet", "--target", folder)
    succeeded(run(sys.executable, "-m", "pip", "install", *options, wheel))
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("arrays"), np.random.default_rng(0)
    for split in ("train", "test"):
        (folder / split).mkdir()
        np.save(folder / split / "images.npy", draw.integers(0, 256, (32, 16, 16, 3), dtype=np.uint8))
        np.save(folder / split / "labels.npy", np.arange(32) % 4)
    return folder


@pytest.fixture(scope="module")
def session(site: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A run that was made with the package, and what the session printed."""
    folder = tmp_path_factory.mktemp("session")
    said = succeeded(run(sys.executable, "-c", SESSION, EXAMPLE, root, folder, path=site, cwd=folder))
    return folder / "run", {**json.loads(said.splitlines()[-1]), "said": said}


def test_what_a_package_registers_is_listed_with_its_version(site: Path) -> None:
    listed = json.loads(succeeded(run(sys.executable, "-m", "sslcli", "list", "--json", path=site)))
    for group, members in PLUGINS.items():
        theirs = [row for row in listed[group.removeprefix("sslcli.")] if row["package"] == "sslcli-example"]
        rows = [{"name": n, "package": "sslcli-example", "version": "0.1.0", "target": t} for n, t in members.items()]
        assert [{key: row[key] for key in rows[0]} for row in theirs] == rows
        assert [row["name"] for row in theirs if not row["summary"] or row["default"]] == []


def test_a_run_with_its_plugins_trains_resumes_evaluates_and_exports(session) -> None:
    _, saw = session
    assert saw["steps"] == [2, 4, 4]
    assert saw["equal"]
    assert 0 <= saw["top1"] <= 1
    assert saw["best"] == "loss"
    assert saw["features"] == [2, 8]


def test_the_packages_own_tests_pass_where_it_is_installed(session) -> None:
    _, saw = session
    assert saw["own_tests"] == 0, saw["said"]


def test_once_uninstalled_one_line_says_which_package_is_missing(session) -> None:
    directory, _ = session
    done = run(sys.executable, "-m", "sslcli", "eval", directory)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"ssl: {directory}/checkpoints/step-000000004.safetensors: unknown backbone 'convmixer'")
    assert line.endswith("; the run was made with sslcli-example 0.1.0: install it")


@pytest.mark.slow
def test_in_an_environment_of_its_own_it_comes_and_goes(wheel: Path, root: Path, tmp_path: Path) -> None:
    succeeded(run(sys.executable, "-m", "venv", "--system-site-packages", tmp_path / "venv"))
    python = tmp_path / "venv" / "bin" / "python"
    own = succeeded(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")).strip()
    # The environment that the tests run in may be a virtual one itself, which `--system-site-packages` passes over.
    parent = sysconfig.get_path("purelib")
    Path(own, "parent.pth").write_text(f"import site; site.addsitedir({parent!r})\n")
    succeeded(run(python, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet", wheel))
    assert json.loads(succeeded(run(python, "-m", "sslcli", "list", "backbones", "convmixer", "--json")))["options"]
    config = tmp_path / "config.yaml"
    config.write_text(
        textwrap.dedent(f"""
        extends: {EXAMPLE / "example.yaml"}
        data: {{root: {root}}}
        backbone: {{dim: 8, depth: 1}}
        training: {{epochs: 1, batch_size: 8, max_steps: 2, device: cpu}}
        callbacks: {{tensorboard: null, knn: null, online_probe: null}}
        """)
    )
    train = (python, "-m", "sslcli", "train", config, "--output", tmp_path / "run")
    succeeded(run(*train))
    succeeded(run(*train, "training.max_steps=4", "--resume"))
    evaluated = succeeded(run(python, "-m", "sslcli", "eval", tmp_path / "run", "--json"))
    assert 0 <= json.loads(evaluated)["top1"] <= 1
    succeeded(run(python, "-m", "pip", "uninstall", "--yes", "--quiet", "sslcli-example"))
    listed = json.loads(succeeded(run(python, "-m", "sslcli", "list", "--json")))
    assert not [row for rows in listed.values() for row in rows if row["package"] == "sslcli-example"]
    assert run(python, "-m", "sslcli", "eval", tmp_path / "run").returncode == 2
    missing = run(python, "-m", "sslcli", "train", config, "--output", tmp_path / "other")
    assert missing.returncode == 2
    assert "unknown method 'align_uniform'" in missing.stderr
    assert not (tmp_path / "other").exists()
