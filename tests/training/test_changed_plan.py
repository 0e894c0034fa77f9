"""Runs that are resumed with another plan, or with data and a machine that are not what they were."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from conftest import TINY
from process_group import in_group
from run_helpers import method_config, newest

from sslcli import plugins
from sslcli.config.document import Document
from sslcli.config.merge import apply_overrides
from sslcli.config.resolve import RunConfig, resolve
from sslcli.contracts.errors import UserError
from sslcli.data.identity import identify
from sslcli.training.position import Position, length_lines
from sslcli.training.prepare import prepared
from sslcli.training.provenance import changes
from sslcli.training.resume import check, keep_resolved
from sslcli.training.setup import build
from sslcli.training.train import train

PROPERTY = """
import torch
from sslcli.contracts.data import DataInfo, Dataset

class Fixed(Dataset):
    @property
    def info(self):
        return DataInfo("fixed", 3, (16, 16), (MEAN,) * 3, (0.5,) * 3)

    @classmethod
    def labeled(cls, options, part):
        return None

    def __len__(self):
        return 32

    def image(self, index):
        return torch.full((3, 16, 16), index, dtype=torch.uint8)
"""


@pytest.mark.parametrize("after", [0.5, 0.25])
def test_a_dataset_whose_info_is_a_property_is_resumed_with_the_statistics_of_the_run(tiny, tmp_path, after):
    path = tmp_path / "fixed_data.py"
    config = ["data={name: fixed}", "views={preset: simclr, size: 16}", "training.workers=0"]
    try:
        for mean, steps in ((0.5, 2), (after, 3)):
            path.write_text(PROPERTY.replace("MEAN", str(mean)))
            plugins.clear_cache()
            plugins.register_file(path)
            train(tiny(*config, f"training.max_steps={steps}"), tmp_path / "run", resume=steps == 3)
        assert newest(tmp_path / "run").document["card"]["mean"] == [0.5] * 3
        with pytest.raises(UserError, match=r"data\.mean, data\.std: the dataset 'fixed' has its own"):
            train(tiny(*config, "data.mean=[0.1,0.1,0.1]", "data.std=[1,1,1]"), tmp_path / "other")
    finally:
        plugins.clear_cache()


def test_a_dry_run_speaks_of_the_processes_that_will_train(tiny, tmp_path, messages, monkeypatch):
    train(tiny("training.max_steps=2"), tmp_path / "run")
    checkpoint = newest(tmp_path / "run")
    checkpoint.document["world_size"] = 2
    del messages[:]
    prepared(tiny(), checkpoint, tmp_path / "run", compiled=False, processes=2)
    assert [line for line in messages if line.startswith("warning")] == []
    prepared(tiny(), checkpoint, tmp_path / "run", compiled=False, processes=4)
    [warning] = [line for line in messages if line.startswith("warning")]
    assert (
        "resuming a run of 2 process(es) on 4 process(es): the same images in the same order, 2 instead of 4" in warning
    )
    # 8 images in 2 views of 3 x 16 x 16 are 49,152 bytes: half of them fit.
    monkeypatch.setattr("sslcli.training.network.free_memory", lambda device: 25_000)
    monkeypatch.setattr("sslcli.training.network._check_size", lambda *arguments: None)
    prepared(tiny(), None, tmp_path / "new", compiled=False, processes=2)
    with pytest.raises(UserError, match="views of a micro-batch of 8 images"):
        prepared(tiny(), None, tmp_path / "new", compiled=False)


def test_images_that_no_longer_fit_into_memory_have_not_changed(tiny):
    dataset = build(tiny()).dataset
    in_memory, read = identify(dataset, dataset.images()), identify(dataset)
    assert (in_memory["kind"], read["kind"]) == ("pixels", "names")
    assert in_memory["files"] != read["files"]
    now = {"data": read, "plugins": {}, "plugin_files": {}, "versions": {}}
    assert changes({"data": in_memory}, now) == []
    assert len(changes({"data": {**read, "files": "others"}}, now)) == 1
    older = {name: value for name, value in in_memory.items() if name != "kind"}
    assert changes({"data": older}, now) == []


def identified_on_two(rank: int) -> object:
    asked: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sslcli.training.prepare.provenance", lambda *arguments: {"asked": asked.append(rank)})
        session = prepared(method_config("simclr"), None, Path("run"), compiled=False)
    return asked, session.made_with


@pytest.mark.slow
def test_the_main_process_alone_looks_at_the_files(tmp_path):
    assert in_group(2, identified_on_two, tmp_path) == [([0], {"asked": None}), ([], {"asked": None})]


def test_other_batches_say_what_becomes_of_the_learning_rate():
    before = Position(step=6, made=6, seen=24, epochs=3, images=16, batch_size=4, steps_per_epoch=4)
    now = Position(step=3, made=6, seen=24, epochs=3, images=16, batch_size=8, steps_per_epoch=2)
    line = "batches of 8 images instead of 4: lr 0.004 → 0.008 (optimizer.scale_lr)"
    assert line in length_lines(before, now, lr=lambda size: 0.001 * size)
    assert len(length_lines(before, now, lr=lambda size: 0.6)) == 1


def test_the_learning_rate_of_a_resumed_run_is_said(tiny, tmp_path, messages):
    train(tiny("optimizer.scale_lr=batch/256", "training.max_steps=2"), tmp_path / "run")
    checkpoint = newest(tmp_path / "run")
    other = tiny("optimizer.scale_lr=batch/256", "training.batch_size=16")
    prepared(other, checkpoint, tmp_path / "run", compiled=False)
    assert any("lr 0.00156 → 0.00313" in line for line in messages)


def for_epochs(epochs: int, *overrides: str, in_file: bool) -> RunConfig:
    """A run of so many epochs whose warm-up, a default or in its file, would be 10."""
    document = Document(copy.deepcopy(TINY), {(): "run.yaml"})
    document.data["method"], document.data["schedule"] = {"name": "dino"}, None
    if in_file:
        document.data["schedule"] = {"name": "cosine", "warmup_epochs": 10.0}
    apply_overrides(document, [f"training.epochs={epochs}", *overrides])
    return resolve(document)


@pytest.mark.parametrize(("epochs", "in_file"), [(2, True), (8, True), (2, False), (8, False), (20, False)])
def test_a_fitted_warm_up_stays_with_another_number_of_epochs(epochs, in_file):
    before = for_epochs(4, in_file=in_file)
    assert before.schedule.options.warmup_epochs == pytest.approx(0.4)
    now = keep_resolved(for_epochs(epochs, in_file=in_file), before.plain())
    assert now.schedule.options.warmup_epochs == pytest.approx(0.4)
    assert now.training.epochs == epochs
    check(now, before.plain(), "run")


def test_a_warm_up_that_is_set_is_not_exchanged():
    before, longer = (for_epochs(epochs, in_file=True).plain() for epochs in (4, 100))
    with pytest.raises(UserError, match=r"schedule\.warmup_epochs: 0\.4 in the run, 1\.0 now"):
        check(keep_resolved(for_epochs(4, "schedule.warmup_epochs=1.0", in_file=True), before), before, "run")
    with pytest.raises(UserError, match=r"warmup_epochs: 10\.0 in the run, 0\.2 now"):
        check(keep_resolved(for_epochs(2, in_file=True), longer), longer, "run")


def test_a_run_of_a_version_that_did_not_store_its_data_notices_other_images(tiny, tmp_path, messages):
    train(tiny("training.max_steps=2"), tmp_path / "run")
    checkpoint = newest(tmp_path / "run")
    for name in ("position", "data"):
        checkpoint.document.pop(name)
    for count, said in ((32, []), (16, ["the data has changed: about 32 images in the run, 16 now, in another order"])):
        checkpoint.document["config"]["data"]["count"] = count
        del messages[:]
        session = prepared(tiny(f"data.count={count}"), checkpoint, tmp_path / "run", compiled=False)
        lines = [line.removeprefix("warning: ") for line in messages if line.startswith("warning")]
        assert lines[: len(said)] == said
        assert len(lines) == 2 * len(said)  # and what that does to the plan
        assert session.position.epoch == 0.5
