"""A stream as a plugin file that uses nothing private: it trains, resumes to the bit, and the commands take it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from draws_helpers import recorded_steps
from run_helpers import assert_same_end, done, newest, refused, ssl
from stream_run_helpers import PLUGIN, on_tars
from tiny_data import write_tars

from sslcli import plugins
from sslcli.contracts.errors import UserError
from sslcli.plugins import register_file
from sslcli.testing import check_plugin
from sslcli.training.train import train

CONFIG = """
method: {name: simclr, projector: {output_dim: 8}}
backbone: {name: resnet18, stem: small, width: 4}
data: {name: tar_shards, root: TARS, open_shards: 2, shuffle_buffer: 12}
views: {size: 16}
optimizer: {name: sgd, lr: 0.05}
schedule: {name: cosine, warmup_epochs: 0}
training: {epochs: 1, batch_size: 8, precision: fp32, device: cpu, compile: none, workers: 0}
"""


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register_file(PLUGIN)
    yield
    plugins.clear_cache()


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    write_tars(tmp_path / "tars")
    return tmp_path / "tars"


@pytest.fixture
def config(tmp_path: Path, tars: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.replace("TARS", str(tars)))
    return path


def test_the_file_is_short_and_uses_nothing_private() -> None:
    source = PLUGIN.read_text()
    assert len(source.splitlines()) < 90
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sslcli"):
            assert (node.module or "").startswith("sslcli.contracts")
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_") or node.attr == "__init__"


def test_it_keeps_the_contract(tars: Path) -> None:
    check_plugin("datasets", "tar_shards", {"root": str(tars), "images": 32})
    check_plugin("datasets", "tar_shards", {"root": str(tars), "classes": ["a", "b"]})


@pytest.mark.parametrize("stop", [1, 3, 6])
def test_a_stopped_run_resumes_to_the_bit(stop: int, tiny: Any, tars: Path, tmp_path: Path) -> None:
    more = on_tars(tars)
    train(tiny(*more), tmp_path / "whole")
    train(tiny(*more, f"training.max_steps={stop}"), tmp_path / "parts")
    assert newest(tmp_path / "parts").document["cursor"]["step"] == stop
    train(tiny(*more), tmp_path / "parts", resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    assert newest(tmp_path / "whole").document["cursor"] == newest(tmp_path / "parts").document["cursor"]


def test_it_matters_where_the_stream_goes_on(
    tiny: Any, tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above would fail if a resumed run began with the first shards again."""
    more = on_tars(tars)
    train(tiny(*more), tmp_path / "whole")
    train(tiny(*more, "training.max_steps=3"), tmp_path / "parts")
    from sslcli.data.stream import START, StreamSource

    def from_the_start(self: StreamSource, cursor: dict[str, Any]) -> None:
        self._start = cursor["step"], dict.fromkeys(range(self.layout.lanes), START)

    monkeypatch.setattr(StreamSource, "restore", from_the_start)
    train(tiny(*more), tmp_path / "parts", resume=True)
    with pytest.raises(AssertionError):
        assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_micro_batches_have_the_same_images_in_the_same_order(tiny: Any, tars: Path) -> None:
    one, two = (recorded_steps(tiny(*on_tars(tars, f"training.accumulate={count}")), 9) for count in (1, 2))
    assert [len(step) for step in two] == [2] * 9
    for step, (whole,) in zip(two, one, strict=True):
        assert torch.equal(torch.cat([batch.index for batch in step]), whole.index)
        assert torch.equal(torch.cat([batch.views[0].image for batch in step]), whole.views[0].image)
        assert torch.equal(torch.cat([batch.labels for batch in step]), whole.labels)


def test_another_stream_is_refused_when_a_run_is_resumed(tiny: Any, tars: Path, tmp_path: Path) -> None:
    train(tiny(*on_tars(tars, "training.max_steps=3")), tmp_path / "run")
    (tars / "part-003.tar").rename(tars / "part-004.tar")
    with pytest.raises(UserError, match=r"^data: a stream cannot be resumed with other shards: 4 \(\w+\) in the run"):
        train(tiny(*on_tars(tars)), tmp_path / "run", resume=True)


def test_without_a_length_an_epoch_must_be_given(config: Path) -> None:
    line = refused("train", config, "--plugin", PLUGIN, "--dry-run")
    assert line.startswith("ssl: data.epoch_images: 'tar_shards' does not know how many images it has; set ")
    out, _ = done("train", config, "--plugin", PLUGIN, "--dry-run", "data.epoch_images=1000")
    assert "# images: 1,000\n" in out
    assert "# steps per epoch: 125\n" in out
    assert "# memory: about " in out
    out, _ = done("train", config, "--plugin", PLUGIN, "--dry-run", "data.limit=16")
    assert "# steps: 2\n" in out


def test_commands_say_that_it_can_only_be_trained_on(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    out, err = done("train", config, "--plugin", PLUGIN, "data.epoch_images=32", "data.classes=[a,b]", "--output", run)
    assert "ssl eval" not in out
    assert "kNN monitor: off" in err
    words = "ssl: data: 'tar_shards' is a stream, which can only be trained on; choose other data with data=NAME"
    assert refused("eval", run, "--method", "knn", "--plugin", PLUGIN) == words
    features = ["export", "features", run, "--output", tmp_path / "features.npy", "--plugin", PLUGIN]
    assert refused(*features, "data=tar_shards") == words
    other = ["data={name: shapes, count: 40, size: 16}", "k=[3]"]
    assert "top1" in done("eval", run, "--method", "knn", *other, "--plugin", PLUGIN)[0]


def test_no_data_and_a_missing_shard_are_one_line(config: Path, tmp_path: Path) -> None:
    where = ["data.epoch_images=32", f"data.root={tmp_path / 'none'}"]
    line = refused("train", config, "--plugin", PLUGIN, *where)
    assert line.startswith("ssl: data.root: no .tar files in ")
    broken = tmp_path / "tars" / "part-002.tar"
    broken.write_bytes(broken.read_bytes()[:5000])
    code, out, err = ssl("train", config, "--plugin", PLUGIN, where[0], "--output", tmp_path / "run")
    assert (code, out) == (1, "")
    reason = "cannot be read (ReadError: unexpected end of data); repair or restore it, and resume"
    assert err.splitlines()[-1] == f"ssl: data: shard 'part-002.tar' of 'tar_shards' {reason}"


def test_views_that_change_do_so_in_the_same_step_of_a_resumed_run(tiny: Any, tars: Path, tmp_path: Path) -> None:
    phases = "views={phases: [{until: 1.5, views: {size: 16}}, {views: {size: 24}}]}"  # from the seventh step on
    overrides = on_tars(tars, phases, "training.workers=1", "training.epochs=2")
    train(tiny(*overrides), tmp_path / "whole")
    train(tiny(*overrides, "training.max_steps=5"), tmp_path / "parts")  # the worker has read ahead of the boundary
    train(tiny(*overrides), tmp_path / "parts", resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
