"""The picture of a step's images and views: what the method gets, what it says of it, and that it ends no run."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ConfigMaker
from PIL import Image
from run_helpers import assert_same_end, contents
from stream_run_helpers import PLUGIN, on_tars
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from tiny_data import write_folders, write_tars

from sslcli import plugins
from sslcli.augmentations.crop import Crop
from sslcli.config.resolve import RunConfig
from sslcli.contracts.batch import Batch, DrawKeys, View
from sslcli.contracts.errors import PluginError, SslError, UserError
from sslcli.contracts.method import Method
from sslcli.contracts.views import Operation
from sslcli.methods.simclr import SimCLR
from sslcli.plugins import register_file
from sslcli.runs.directory import RunDirectory
from sslcli.training import preview
from sslcli.training.context import Context
from sslcli.training.loop import Loop
from sslcli.training.preview import CELL, MOST_VIEWS, Column, columns_of, drawn
from sslcli.training.setup import Session, build
from sslcli.training.train import train


def received(config: RunConfig, step: int) -> list[torch.Tensor]:
    """The pixels of the views that the method gets in a step."""
    session = build(config)
    forward, found = session.method.forward, []

    def recorded(batch):  # type: ignore[no-untyped-def]
        found.extend(view.image for view in batch.views)
        return forward(batch)

    session.method.forward = recorded  # type: ignore[method-assign]
    Loop(session, Context(session, RunDirectory(Path())), step).step()
    session.source.close()
    info = session.info.data
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (info.mean, info.std))
    return [((view * std + mean).clamp(0, 1) * 255).round().to(torch.uint8) for view in found]


def assert_as_received(session: Session, views: list[torch.Tensor], step: int = 0) -> list[Column]:
    original, *columns = columns_of(session, 3, step)
    assert len(original.images) == 3
    assert len(columns) == len(views)
    for column, view in zip(columns, views, strict=True):
        # Rounding to whole levels may go either way where fewer samples are computed at once.
        assert (torch.stack(column.images).int() - view[:3].int()).abs().max() <= 1
        assert len(column.notes) == 3
    return [original, *columns]


@pytest.mark.parametrize("step", [0, 5])
def test_the_views_are_those_of_the_step_from_images_on_the_device(tiny: ConfigMaker, step: int) -> None:
    config = tiny()
    session = build(config)
    original, first, _ = assert_as_received(session, received(config, step), step)
    index = next(session.source.batches(step))[0].index.tolist()[:3]
    assert torch.equal(torch.stack(original.images), session.source.images[index])  # type: ignore[attr-defined]
    assert original.notes == [f"shapes[{number}], 16 x 16" for number in index]
    assert first.title == "view 1, 16 px"


def test_the_views_are_those_of_the_step_from_workers(tiny: ConfigMaker, tmp_path: Path) -> None:
    write_folders(tmp_path)
    config = tiny(
        f"data={{name: folder, root: {tmp_path}}}", "views.size=16", "training.batch_size=4", "training.workers=0"
    )
    original, *_ = assert_as_received(build(config), received(config, 1), 1)
    assert {image.shape[-1] for image in original.images} == {24}


def test_the_views_are_those_of_a_streams_first_step(tiny: ConfigMaker, tmp_path: Path) -> None:
    write_tars(tmp_path / "tars")
    register_file(PLUGIN)
    try:
        config = tiny(*on_tars(tmp_path / "tars"))
        session = build(config)
        original, *_ = assert_as_received(session, received(config, 0))
        assert len(columns_of(session, 100)[0].images) == 8  # of both lanes
        assert len({*original.notes}) == 3
        with pytest.raises(UserError, match="--step: 1: a stream is read from its beginning"):
            columns_of(session, 3, 1)
        train(config, tmp_path / "without")
        train(tiny(*on_tars(tmp_path / "tars"), "training.preview=3"), tmp_path / "with")
        assert_same_end(tmp_path / "without", tmp_path / "with")
    finally:
        plugins.clear_cache()


def test_a_later_phase_has_its_own_views(tiny: ConfigMaker) -> None:
    config = tiny("views={phases: [{until: 50%, views: {size: 16}}, {views: {size: 24, flip: 0.25}}]}")
    session = build(config)
    assert columns_of(session, 1, 5)[1].title == "view 1, 16 px"
    assert_as_received(session, received(config, 6), 6)
    assert columns_of(session, 1, 6)[1].title == "view 1, 24 px"
    with pytest.raises(UserError, match="--step: 12: the run has 12 steps, and the first is 0"):
        columns_of(session, 1, 12)


def test_the_notes_say_what_was_done(tiny: ConfigMaker) -> None:
    whole = "{size: 16, operations: [{name: resize, ratio: 1}, {name: flip, p: 0.5}, {name: grayscale, p: 0.5}]}"
    session = build(tiny(f"views=[{whole}, {whole}]"))
    original, *columns = columns_of(session, 8)
    said = set()
    for column in columns:
        for before, after, note in zip(original.images, column.images, column.notes, strict=True):
            expected = before.flip(-1) if "flip" in note else before
            gray = bool((after[0] == after[1]).all() and (after[1] == after[2]).all())
            assert gray == ("grayscale" in note)
            assert gray or torch.equal(expected, after)
            said.add(note)
    assert said == {"resize", "resize · flip", "resize · grayscale", "resize · flip · grayscale"}


def test_the_parameters_of_every_operation_are_named(tiny: ConfigMaker) -> None:
    view = "{size: 16, crop_scale: [0.5, 0.5], crop_ratio: [1, 1], jitter: {p: 1, brightness: 0, hue: 0}, "
    view += "blur: {p: 1, sigma: [2, 2]}, randaugment: {p: 1, layers: 1}, solarize: 1, "
    view += "random_erasing: {p: 1, scale: [0.25, 0.25], ratio: [1, 1]}}"
    notes = [note.split(" · ") for note in columns_of(build(tiny(f"views=[{view}, {view}]")), 2)[1].notes]
    for note in notes:
        found = {part.partition(" ")[0]: part.partition(" ")[2] for part in note}
        assert found["crop"].startswith("11 x 11 at ")
        assert found["random_erasing"].startswith("8 x 8 at ")
        assert found["blur"] == "2"
        assert found["solarize"] == ""
        assert [word for word in found["jitter"].split() if word.isalpha()] == ["c", "s"]
        assert len(found["randaugment"].split()) == 2


def test_patches_that_are_hidden_are_drawn_as_the_method_hides_them(
    tiny: ConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen(method: Method, batch: Batch) -> dict[str, tuple[int, torch.Tensor]]:
        return {
            "visible": (1, batch.uniform(16) < 0.25),
            "block": (0, (batch.shared_uniform(16) < 0.5).expand(len(batch.index), -1)),
        }

    monkeypatch.setattr(SimCLR, "visible_patches", seen)
    session = build(tiny())
    columns = columns_of(session, 3, 5)
    assert [column.title for column in columns[1:]] == [
        "view 1, 16 px",
        "view 1: block",
        "view 2, 16 px",
        "view 2: visible",
    ]
    batch = next(session.source.batches(5))[0]
    keys = DrawKeys(session.config.seed, 5, batch.epoch, batch.positions)
    expected = seen(session.method, Batch([View(torch.zeros(8))], None, batch.index, {}, keys))
    for view, part, patches in ((1, 2, expected["block"][1][:3]), (3, 4, expected["visible"][1][:3])):
        for before, after, there, note in zip(
            columns[view].images, columns[part].images, patches, columns[part].notes, strict=True
        ):
            kept = there.view(4, 4).repeat_interleave(4, 0).repeat_interleave(4, 1)
            assert torch.equal(after[:, kept], before[:, kept])
            assert (after[:, ~kept] >= 225).all()
            assert note == f"{there.float().mean():.0%} of the patches"


def test_one_channel_two_and_five_are_drawn(tiny: ConfigMaker) -> None:
    for channels in (1, 2, 5):
        image = torch.full((channels, 8, 4), 200, dtype=torch.uint8)
        picture = drawn([Column("original", [image], ["a\nb"]), Column("view 1, 8 px", [image[:, :4]], [""])])
        assert picture.getpixel((14, 30)) == (200, 200, 200)


def test_views_keep_their_proportions_and_some_of_many_are_shown() -> None:
    def column(size: int) -> Column:
        return Column("view", [torch.zeros(3, size, size, dtype=torch.uint8)], ["x" * 200])

    wide = drawn([column(32), *[column(32)] * (MOST_VIEWS + 5)])
    assert wide.width < (MOST_VIEWS + 2) * (CELL + 20)
    picture = drawn([column(32), column(44), column(11)]).convert("L")
    black = [sum(picture.getpixel((x, 40)) == 0 for x in range(start, start + CELL)) for start in (196, 382)]
    assert black == [CELL, CELL // 4]


#: What drawing may fail with, and the words for it.
FAILURES = [(OSError(28, "No space left on device"), "No space left on device"), (KeyError("x"), "KeyError: 'x'")]


def test_what_a_plugin_says_of_itself_wrongly_is_one_line(tiny: ConfigMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    session = build(tiny())
    for index, patches in ((0, torch.ones(3, 8)), (7, torch.ones(3, 16)), (0, torch.ones(2, 16)), (0, torch.ones(16))):
        monkeypatch.setattr(SimCLR, "visible_patches", lambda *_, found=(index, patches): {"all": found})
        with pytest.raises(PluginError, match="method 'simclr': visible_patches: ValueError"):
            columns_of(session, 3)
    monkeypatch.undo()
    monkeypatch.setattr(Crop, "note", lambda *_: 1 / 0)
    with pytest.raises(PluginError, match="says of itself: ZeroDivisionError"):
        columns_of(session, 3)


def test_an_operation_that_chooses_in_its_own_way_has_a_note() -> None:
    parameters = {"chosen": torch.tensor([True, False]), "weight": torch.tensor(0.25), "box": torch.zeros(4)}
    assert Operation.note(Operation, parameters) == "0.25"  # type: ignore[arg-type]
    assert Operation.note(Operation, {"chosen": torch.tensor(False)}) is None  # type: ignore[arg-type]


def test_images_that_cannot_be_read_count_for_no_run_and_are_told(
    tiny: ConfigMaker, tmp_path: Path, messages: list[str]
) -> None:
    write_folders(tmp_path)
    for path in (tmp_path / "train" / "cat").iterdir():
        path.write_bytes(b"no image")
    options = f"{{name: folder, root: {tmp_path}, max_unreadable: 0.001}}"
    session = build(tiny(f"data={options}", "views.size=16", "training.batch_size=8", "training.workers=0"))
    columns = columns_of(session, 8, tell=True)
    assert len(columns[0].images) == 8
    assert all("dog/" in note for note in columns[0].notes)
    assert sum("unreadable image replaced: " in message for message in messages) >= 4
    with pytest.raises(SslError, match="cannot be read, more than data"):
        next(session.source.batches(0))


def test_large_images_are_made_small_as_they_are_read(tiny: ConfigMaker, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (1200, 300), "red").save(tmp_path / name / "0.png")
    session = build(tiny(f"data={{name: folder, root: {tmp_path}}}", "views.size=16", "training.batch_size=2"))
    original = columns_of(session, 2)[0]
    assert [tuple(image.shape) for image in original.images] == [(3, CELL // 4, CELL)] * 2
    assert all(note.endswith(", 1200 x 300") for note in original.notes)


class TestRuns:
    def test_a_run_keeps_the_picture_of_its_first_step(self, tiny: ConfigMaker, tmp_path: Path) -> None:
        on = ["training.preview=2", "callbacks.tensorboard={}", "callbacks.progress=null"]
        train(tiny(*on, "training.max_steps=4"), tmp_path / "run")
        picture = tmp_path / "run" / "views.png"
        expected = io.BytesIO()
        drawn(columns_of(build(tiny(*on)), 2)).save(expected, "PNG")
        assert Image.open(picture).tobytes() == Image.open(expected).tobytes()
        events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"images": 0}).Reload()
        (event,) = events.Images("views")
        assert (event.step, event.encoded_image_string) == (0, picture.read_bytes())
        assert (event.width, event.height) == Image.open(picture).size
        picture.write_bytes(b"mine")
        train(tiny(*on), tmp_path / "run", resume=True)
        assert picture.read_bytes() == b"mine"

    def test_the_picture_changes_nothing_else(self, tiny: ConfigMaker, tmp_path: Path) -> None:
        train(tiny(), tmp_path / "without")
        train(tiny("training.preview=8"), tmp_path / "with")
        assert_same_end(tmp_path / "without", tmp_path / "with")
        assert {path.name for path in contents(tmp_path / "with")} - {
            path.name for path in contents(tmp_path / "without")
        } == {"views.png"}

    def test_a_picture_that_cannot_be_written_ends_no_run(
        self, tiny: ConfigMaker, tmp_path: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(error: Exception) -> Callable[..., None]:
            def fail(*_: object) -> None:
                raise error

            return fail

        for number, (error, said) in enumerate(FAILURES):
            monkeypatch.setattr(preview, "write", failing(error))
            train(tiny("training.preview=2", "training.epochs=1"), tmp_path / str(number))
            assert (tmp_path / str(number) / "backbone.safetensors").exists()
            assert any(f"views.png: cannot be written ({said}); training goes on" in each for each in messages)
