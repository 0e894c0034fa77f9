"""Packaging: one version, complete metadata, and types with which a user's program is checked."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

import sslcli

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
#: Uses the installed package as a script or a plugin does; every name and signature in it is public.
PROGRAM = """
from typing import assert_type

import sslcli
from sslcli.contracts.backbone import Backbone
from sslcli.contracts.evaluation import EvaluationResult
from sslcli.contracts.method import Batch, Method, Step


class TwinDistance(Method):
    view_count = 2

    def forward(self, batch: Batch) -> Step:
        first, second = (self.backbone(view.image).pooled.float() for view in batch.views)
        return Step((first - second).square().mean(), {}, features=first.detach())


run = sslcli.train(method=TwinDistance, data="shapes", epochs=1, output="runs/typed")
assert_type(run, sslcli.Run)
assert_type(run.evaluate("knn", k=[20]), EvaluationResult)
assert_type(sslcli.evaluate(run, "knn"), EvaluationResult)
assert_type(sslcli.load_backbone("backbone.safetensors"), Backbone)
sslcli.evaluate(1)  # an error, which shows that the package's types are read
"""


def test_a_program_that_uses_the_package_is_type_checked(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    # From a folder of its own, so that the package is what is installed: without py.typed mypy would ignore its types.
    # The project's options let it use the cache that checking the project itself has left.
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    clean = {key: value for key, value in os.environ.items() if key != "MYPYPATH"}
    command = [sys.executable, "-m", "mypy", *options, "program.py"]
    done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 1, done.stdout + done.stderr
    number = PROGRAM.splitlines().index("sslcli.evaluate(1)  # an error, which shows that the package's types are read")
    assert errors[0].startswith(f"program.py:{number + 1}: error:")
    assert "[arg-type]" in errors[0]


def test_there_is_one_version() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert importlib.metadata.version("sslcli") == sslcli.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == sslcli.__version__
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == sslcli.__version__


def test_the_metadata_are_complete() -> None:
    found = importlib.metadata.metadata("sslcli")
    assert found["License-Expression"] == yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"] == "MIT"
    assert found.get_all("License-File") == ["LICENSE"]
    for field in ("Author", "Summary", "Keywords", "Requires-Python", "Project-URL", "Classifier", "Description"):
        assert found[field], field
    assert (Path(sslcli.__file__).parent / "py.typed").is_file()


def test_hosted_ci_runs_the_project_s_scripts_on_every_python_of_the_metadata() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    jobs = workflow["jobs"]
    declared = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert jobs["run"]["strategy"]["matrix"]["python"] == declared
    for name, job in jobs.items():
        assert job["steps"][-1]["run"] == f".ci/{name}"
        assert os.access(ROOT / ".ci" / name, os.X_OK)


def test_every_hook_and_form_is_well_formed() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {hook["id"] for hook in hooks} == {"ruff", "ruff-format", "mypy", "import-linter"}
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*_*.yml"):
        content = yaml.safe_load(form.read_text())
        assert {"name", "description", "body"} <= content.keys(), form.name
