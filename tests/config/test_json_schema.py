"""The JSON Schema of a config: it accepts what trains, and refuses what an editor should mark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from plugin_helpers import BELL, CALLBACK, Install
from run_helpers import done

from sslcli.config.document import parse, read_file

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"


@pytest.fixture(scope="module")
def schema() -> Any:
    return json.loads((CONFIGS / "config.schema.json").read_text(encoding="utf-8"))


def problems(schema: Any, text: str) -> list[str]:
    sections = {"method": "method: simclr", "data": "data: shapes"}
    asked = text.partition(":")[0]
    whole = "\n".join([*(line for name, line in sections.items() if name != asked), text])
    return [error.json_path for error in Draft202012Validator(schema).iter_errors(parse(whole, "test").data)]


def test_the_schema_is_one_of_draft_2020_12(schema: Any) -> None:
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"].endswith("2020-12/schema")
    assert "anyOf" in schema  # method and data are required


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_example_config_is_valid_and_names_the_schema_in_its_first_line(path: Path, schema: Any) -> None:
    errors = Draft202012Validator(schema).iter_errors(read_file(path).data)
    assert [(error.json_path, error.message) for error in errors] == []
    first, second = path.read_text(encoding="utf-8").splitlines()[:2]
    start, _, named = first.partition("$schema=")
    assert start == "# yaml-language-server: "
    assert (path.parent / named).resolve() == CONFIGS / "config.schema.json"
    assert second.startswith("# ")  # what the file is


@pytest.mark.parametrize(
    "text",
    [
        "callbacks: {knn: null}", "callbacks: {knn: {every_epochs: 3}, early_stopping: {}}", "training: null",
        "training: {epochs: null, workers: auto, clip: {norm: 3}}", "training: {workers: 3}",
        "optimizer: {lr: 1}", "optimizer: {name: sgd, lr: 0.1}", "optimizer: lars", "schedule: constant",
        "backbone: {width: 3}", "backbone: torchvision/vit_b_16", "backbone: {name: torchvision/resnet18, width: 3}",
        "backbone: sslcli:resnet18", "method: {name: vicreg}", "data: {name: images, root: ~/photos}",
        "views: {preset: simclr, 0: {blur: 1.0}, flip: {p: 0.3}}", "views: {jitter: [0.1, 0.1, 0.1, 0.1], blur: 0}",
        "views: {phases: [{until: 90%, views: {preset: dino, size: 224}}, {views: [{count: 2}]}]}", "views: null",
        "views: [{operations: [crop, {name: flip, p: 0.3}], size: 32}]", "views: {preset: dino, local_count: 4}",
        "extends: other.yaml", "data: ~/photos", "data: ./photos", "data: {root: photos}",
    ],
)  # fmt: skip
def test_what_the_resolver_accepts_is_valid(text: str, schema: Any) -> None:
    assert problems(schema, text) == []


@pytest.mark.parametrize(
    "text",
    [
        "metod: simclr", "method: simclrr", "method: {name: byol, temperature: 1}", "method: 3",
        "data: {name: cifar10, rot: .}", "data: cifar11",
        "training: {epoch: 3}", "training: {epochs: a}", "training: {epochs: 0}",
        "training: {precision: fp8}", "training: {clip: {norm: 0}}", "training: {clip: 3}", "seed: -1",
        "optimizer: {name: sgd, lrr: 3}", "optimizer: {lrr: 3}", "optimizer: {lr: a}", "schedule: cosin",
        "callbacks: {knnn: {}}", "callbacks: {knn: 3}", "callbacks: {knn: {evry_epochs: 3}}",
        "backbone: {name: resnet18, width: 0}", "backbone: {name: torchvision/resnet18, widht: 3}",
        "views: {preset: simclr, strenght: 2}", "views: {preset: nope}", "views: {crop_scale: [1]}",
        "views: {flip: 1.5}", "views: {0: {blurr: 3}}", "views: [{count: 2, blurr: 3}]", "views: []",
        "views: [{operations: [cropp]}]", "views: [{operations: [{name: crop, scal: [0.1, 1.0]}]}]",
        "views: {phases: [{until: 90%, viewss: 3}]}", "checkpoints: {keep: 1}",
    ],
)  # fmt: skip
def test_what_the_resolver_refuses_is_invalid(text: str, schema: Any) -> None:
    assert problems(schema, text) != []


def test_a_config_without_data_is_invalid_unless_it_extends_another(schema: Any) -> None:
    validator = Draft202012Validator(schema)
    assert not validator.is_valid({"method": "simclr"})
    assert validator.is_valid({"method": "simclr", "extends": "other.yaml"})


def test_names_have_their_meaning_and_options_their_help_and_default(schema: Any) -> None:
    text = json.dumps(schema, ensure_ascii=False)
    assert "SimCLR: tells the other view of an image" in text
    epochs = schema["properties"]["training"]["anyOf"][0]["properties"]["epochs"]
    assert (epochs["default"], epochs["description"]) == (200, "Number of passes over the data.")


def test_the_schema_of_ssl_list_has_the_plugins_of_other_packages(install: Install) -> None:
    options = '\n    class Options(Options):\n        volume: int = 3\n        """How loud."""\n'
    source = f"from sslcli.contracts.options import Options\n{CALLBACK}{options}"
    install("bells", f"{BELL}bad = nowhere:Bell\n", {"bells": source})
    found = json.loads(done("list", "--schema")[0])
    Draft202012Validator.check_schema(found)
    assert problems(found, "callbacks: {bell: {volume: 4}}") == []
    assert problems(found, "callbacks: {bell: {volum: 4}}") != []
    assert problems(found, "callbacks: {bad: {}}") != []
