"""`ssl eval` and `ssl export features` on several processes write what they write on one."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import yaml
from conftest import TINY
from process_group import in_group
from run_helpers import done, refused, ssl

import sslcli
from sslcli.contracts.errors import UserError
from sslcli.evaluators.knn import KNN

#: Two blocks to train on and to test on, the last ones of 44 images.
DATA = ["data.name=shapes", "data.count=300", "data.size=16"]
SHAPES = {"data.name": "shapes", "data.count": 40, "data.size": 16}


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "c.yaml").write_text(yaml.safe_dump(TINY))
    done("train", folder / "c.yaml", "training.max_steps=1", "--output", folder / "run")
    return folder / "run" / "backbone.safetensors"


def evaluated(backbone: Path, folder: Path, method: str) -> str:
    folder.mkdir(exist_ok=True)
    done("eval", backbone, *DATA, "--method", method, "--output", folder / "result.json")
    return (folder / "result.json").read_text()


@pytest.mark.parametrize(
    ("world", "method"), [(2, "knn"), *(pytest.param(n, "all", marks=pytest.mark.slow) for n in (2, 4))]
)
def test_results_and_details_of_several_processes_are_those_of_one(backbone, tmp_path, world, method, torchrun):
    def member(rank: int) -> tuple[int, str, str]:
        place = tmp_path / "several"
        place.mkdir(exist_ok=True)
        return ssl("eval", backbone, *DATA, "--method", method, "--output", place / "result.json")

    (code, out, err), *others = in_group(world, member, tmp_path / "group")
    assert (code, others) == (0, [(0, "", "")] * (world - 1)), err
    one = evaluated(backbone, tmp_path / "one", method)
    assert (tmp_path / "several" / "result.json").read_text() == one
    assert "details" in one
    assert out


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_exported_features_of_several_processes_are_those_of_one(backbone, tmp_path, suffix, torchrun):
    def member(rank: int) -> str:
        return done("export", "features", backbone, *DATA, "batch_size=64", "--output", tmp_path / f"two{suffix}")[0]

    main, other = in_group(2, member, tmp_path / "group")
    assert "features = " in main
    assert other == ""
    done("export", "features", backbone, *DATA, "batch_size=64", "--output", tmp_path / f"one{suffix}")
    for end in (suffix, ".json") if suffix == ".npy" else (suffix,):
        assert (tmp_path / f"two{end}").read_bytes() == (tmp_path / f"one{end}").read_bytes()


@pytest.mark.slow
def test_an_error_is_reported_once_and_ends_all(backbone, tmp_path, monkeypatch, torchrun):
    class Broken(KNN):
        def evaluate(self, subject):
            subject.features("train")
            raise UserError("it does not work")

    def member(rank: int) -> tuple[int, str, str]:
        monkeypatch.setattr("sslcli.evaluation.selection.load", lambda group, name: Broken)
        return ssl("eval", backbone, *DATA)

    (code, _, err), other = in_group(2, member, tmp_path / "group")
    assert code == 2
    assert err.endswith("ssl: it does not work\n")
    assert other == (2, "", "")

    def wrong(rank: int) -> tuple[int, str, str]:
        return ssl("eval", backbone, *DATA, "kk=3")

    first, other = in_group(2, wrong, tmp_path / "group")
    assert first[0] == other[0] == 2
    assert first[2].count("unknown option") == 1
    assert other[1:] == ("", "")


@pytest.mark.slow
def test_a_program_gets_the_result_on_every_process(backbone, tmp_path):
    def member(rank: int) -> dict[str, float]:
        logging.getLogger("sslcli").setLevel(logging.WARNING)
        return sslcli.evaluate(backbone, "knn", SHAPES, shared=True).metrics

    first, other = in_group(2, member, tmp_path)
    assert first == other
    assert first["top1"] > 0


@pytest.mark.slow
def test_one_process_of_a_group_evaluates_and_exports_on_its_own(backbone, tmp_path):
    def member(rank: int) -> float | None:
        if rank == 0:
            return None
        sslcli.export(backbone, "features", tmp_path / "features.npy", data={"name": "shapes", "count": 20, "size": 16})
        return sslcli.evaluate(backbone, "knn", SHAPES).metrics["top1"]

    assert in_group(2, member, tmp_path, timeout=120)[1] > 0


def test_variables_of_a_group_alone_do_not_start_one(backbone, tmp_path, monkeypatch):
    """A pod may have them everywhere; nobody listens at this port."""
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, **__: pytest.fail("it joins a group"))
    assert "top1" in done("eval", backbone, *(f"{key}={value}" for key, value in SHAPES.items()))[0]
    assert "load_backbone" in done("export", "backbone", backbone, "--output", tmp_path / "a.safetensors")[0]
    assert sslcli.evaluate(backbone, "knn", SHAPES).metrics["top1"] > 0
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert refused("eval", backbone, "kk=3").startswith("ssl: ")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert done("export", "backbone", backbone, "--output", tmp_path / "b.safetensors") == ("", "")
    assert not (tmp_path / "b.safetensors").exists()
    with pytest.raises(UserError, match="shared: 'backbone' is exported by one process"):
        sslcli.export(backbone, shared=True)


def test_other_exports_than_of_features_are_for_one_process(backbone):
    line = refused("export", "backbone", backbone, "--devices", "2", "--force")
    assert line == "ssl: --devices: 'backbone' is exported by one process; leave the option out"


@pytest.mark.slow
def test_devices_starts_the_processes_of_an_evaluation(backbone, tmp_path, capfd):
    out = tmp_path / "result.json"
    code, _, _ = ssl("eval", backbone, *DATA, "--devices", "2", "--device", "cpu", "--json", "--output", out)
    printed = capfd.readouterr()
    assert code == 0, printed.err
    assert json.loads(printed.out)["top1"] == json.loads(out.read_text())["metrics"]["top1"]
    assert out.read_text() == evaluated(backbone, tmp_path / "one", "knn")
