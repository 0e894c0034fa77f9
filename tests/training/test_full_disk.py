"""A disk that fills while a run is trained: at its start, in its middle, at its end."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from conftest import ConfigMaker
from run_helpers import assert_same_end, contents, full_disk
from tensorboard.compat.proto.event_pb2 import Event

from sslcli.contracts.errors import SslError, UserError
from sslcli.plugins import PluginFile
from sslcli.runs.directory import RunDirectory
from sslcli.runs.metrics import read_metrics
from sslcli.training import saving
from sslcli.training.context import Context
from sslcli.training.train import train

#: 12 steps; checkpoints after 4, 8 and 12.
OPTIONS = ("callbacks.tensorboard={}", "training.log_every=1", "checkpoints.keep=9")


@pytest.fixture
def fills(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ExitStack]]:
    """Returns a function: the disk is full from the end of a step on, to that of another, or until the stack is closed
    that is returned."""
    stack, real = ExitStack(), Context.step

    def at(first: int, last: int | None = None) -> ExitStack:
        def step(context: Context) -> None:
            real(context)
            if context.progress.step == first:
                stack.enter_context(full_disk())
            if context.progress.step == last:
                stack.close()

        monkeypatch.setattr(Context, "step", step)
        return stack

    yield at
    stack.close()


def values(run: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in read_metrics(run / "metrics.jsonl")]


def scalars(run: Path) -> list[int]:
    """The steps of the losses in TensorBoard's file: records of a length, its checksum, content and checksum."""
    (file,), at, steps = (run / "tensorboard").iterdir(), 0, []
    content = file.read_bytes()
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = Event.FromString(content[at + 12 : at + 12 + length])
        steps += [event.step for value in event.summary.value if value.tag == "loss"]
        at += 12 + length + 4
    assert at == len(content)
    return steps


def test_a_run_goes_on_and_nothing_is_missing_once_there_is_room(
    tiny: ConfigMaker, tmp_path: Path, fills: Any, messages: list[str]
) -> None:
    train(tiny(*OPTIONS), tmp_path / "a")
    messages.clear()
    fills(3, 9)
    train(tiny(*OPTIONS), tmp_path / "b")
    assert_same_end(tmp_path / "a", tmp_path / "b")
    assert values(tmp_path / "a") == values(tmp_path / "b")
    assert scalars(tmp_path / "b") == list(range(1, 13))
    warnings = [re.sub(r"/events\.\S*:", "/events:", line) for line in messages if "cannot be written" in line]
    run, why = tmp_path / "b", "cannot be written (File too large); make room there; training goes on"
    assert sorted(warnings) == sorted([
        f"warning: {run / 'metrics.jsonl'}: {why}, and what is missing is added later",
        f"warning: {run / 'tensorboard' / 'events'}: {why}, and what is missing is added later",
        f"warning: {run / 'checkpoints' / 'step-000000004.safetensors'}: {why}, nothing is saved yet",
        f"warning: {run / 'checkpoints' / 'step-000000008.safetensors'}: {why}, nothing is saved yet",
    ])  # fmt: skip
    assert not list(run.rglob("*.tmp"))


def test_only_the_last_checkpoint_ends_the_run_and_it_resumes_to_the_same_weights(
    tiny: ConfigMaker, tmp_path: Path, fills: Any
) -> None:
    train(tiny(*OPTIONS), tmp_path / "a")
    full = fills(7)
    last = tmp_path / "b" / "checkpoints" / "step-000000012.safetensors"
    with pytest.raises(SslError) as raised:
        train(tiny(*OPTIONS), tmp_path / "b")
    assert raised.value.exit_code == 1
    assert str(raised.value).startswith(f"{last}: cannot be written (File too large); make room there; step 4 is saved")
    full.close()
    fills(99)
    done = train(tiny(*OPTIONS), tmp_path / "b", resume=True)
    assert done.step == 12
    assert_same_end(tmp_path / "a", tmp_path / "b")
    assert values(tmp_path / "a") == values(tmp_path / "b")


def test_a_start_that_finds_no_room_is_one_line_and_the_same_command_starts_later(
    tiny: ConfigMaker, tmp_path: Path
) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("# mine")
    run, files = tmp_path / "run", [PluginFile(plugin, "0" * 64, ())]
    why = r"cannot be written \(File too large\); make room there"
    with full_disk(), pytest.raises(UserError, match=rf"{run}: {why} or choose another --output$"):
        train(tiny(), run)
    with full_disk(3000), pytest.raises(UserError, match=rf"{run}: {why} or choose another --output$"):  # environment
        train(tiny(), run, command=["x" * 3000])
    for name, site in (("plugins/mine-00000000.py", "keep_plugin"), ("metrics.jsonl", "open_log")):
        real = getattr(RunDirectory, site)

        def without_room(*given: Any, real: Any = real, **named: Any) -> None:
            with full_disk(), pytest.MonkeyPatch.context() as patch:
                patch.setattr("sslcli.runs.directory.write_text", refuse)  # an empty log needs no room
                real(*given, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RunDirectory, site, without_room)
            with pytest.raises(UserError, match=rf"{run}/{name}: cannot be written"):
                train(tiny(), run, plugin_files=files)
    assert not list(run.rglob("*.tmp"))
    assert train(tiny("training.max_steps=4"), run, plugin_files=files).step == 4
    before = contents(run)
    with full_disk(), pytest.raises(UserError, match=rf"{run}: {why}$"):
        train(tiny(), run, resume=True)
    assert contents(run) == before
    assert train(tiny(), run, resume=True).step == 12


def test_a_backbone_that_cannot_be_written_is_written_when_the_run_is_resumed(
    tiny: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real = tmp_path / "run", saving.save_backbone

    def without_room(*given: Any, **named: Any) -> None:
        with full_disk():
            real(*given, **named)

    monkeypatch.setattr(saving, "save_backbone", without_room)
    with pytest.raises(SslError, match=r"backbone.safetensors: cannot be .* is done and saved: --resume") as raised:
        train(tiny("training.epochs=1"), run)
    assert raised.value.exit_code == 1
    monkeypatch.undo()
    train(tiny("training.epochs=1"), run, resume=True)
    assert (run / "backbone.safetensors").is_file()


def refuse(*_: object) -> None:
    raise OSError(5, "Input/output error")
