"""Running out of memory is one line, wherever it happens, and says what to try."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from conftest import ConfigMaker
from run_helpers import contents, done, refused

from sslcli.contracts.errors import SslError
from sslcli.memory import OutOfMemory, is_out_of_memory, out_of_memory, readable
from sslcli.training.speed import measure
from sslcli.training.train import together, train

ERRORS = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has …"),
    "the CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
    "pinned memory": RuntimeError("CUDA error: out of memory"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "NumPy": MemoryError("Unable to allocate 8.00 GiB for an array"),
}
#: Where an allocation fails, and what the line says of it.
PLACES = {
    "sslcli.training.setup.build_groups": "while the run was built",
    "sslcli.data.source.ResidentSource.prepare": "before the first step",
    "sslcli.training.compilation.views_of_zeros": "while the run was built",
    "sslcli.training.train.Loop.__init__": "in the first step",
    "sslcli.training.train.Loop.step": "in the first step",
    "sslcli.callbacks.knn.KNNMonitor.on_epoch": "after step 4",
    "sslcli.training.train.files.snapshot": "after step 4",
    "sslcli.training.saving.save_backbone": "after step 8",
}


def failing(error: BaseException) -> Any:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    return fail


@pytest.mark.parametrize("where", ERRORS)
def test_every_allocators_error_is_one_line(where: str) -> None:
    with pytest.raises(OutOfMemory) as caught, out_of_memory("in step 7", "try less"):
        raise ERRORS[where]
    size = " (2.50 GiB more were asked for)" if where == "CUDA" else ""
    assert str(caught.value) == f"out of memory in step 7{size}: try less"
    assert caught.value.exit_code == 1


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), out_of_memory("", ""):
        raise RuntimeError("shapes differ")
    assert not is_out_of_memory(ValueError("out of memory"))


def test_what_the_failed_call_held_is_freed() -> None:
    import weakref

    held: list[weakref.ref[torch.Tensor]] = []

    def allocate() -> None:
        tensor = torch.ones(3)
        held.append(weakref.ref(tensor))
        raise MemoryError

    with pytest.raises(OutOfMemory), out_of_memory("", ""):
        allocate()
    assert held[0]() is None


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0.0 MiB"), (3 << 19, "1.5 MiB"), (5 << 29, "2.5 GiB"), (1 << 40, "1.0 TiB")]
)
def test_sizes_are_readable(count: int, text: str) -> None:
    assert readable(count) == text


# --- training


@pytest.mark.parametrize("place", PLACES)
def test_a_run_ends_with_one_line(tiny: ConfigMaker, tmp_path: Path, monkeypatch: Any, place: str) -> None:
    overrides = ["training.epochs=2", "callbacks.knn={every_epochs: 1}"]
    compiled = ["training.compile=views"] if "compilation" in place else []
    with monkeypatch.context() as patch:
        patch.setattr(place, failing(torch.OutOfMemoryError("CUDA out of memory")))
        with pytest.raises(OutOfMemory) as caught:
            train(tiny(*overrides, *compiled), tmp_path / "run")
    line = str(caught.value)
    assert line.startswith(f"out of memory {PLACES[place]}: try a smaller ")
    assert "\n" not in line
    # The next start is not in its way: it resumes, or starts anew where nothing was logged.
    again = tiny(*overrides, "training.max_steps=1")
    assert train(again, tmp_path / "run", resume=True).step >= 1


def test_no_memory_for_a_process_is_an_error_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    other = OutOfMemory("out of memory before the first step: try less")
    monkeypatch.setattr("sslcli.distributed.gather_objects", lambda own: [own, other])
    monkeypatch.setattr("sslcli.distributed.is_distributed", lambda: True)
    with pytest.raises(OutOfMemory, match="before the first step") as caught:
        together(lambda: None)
    assert caught.value.shared

    asked: list[SslError] = []
    monkeypatch.setattr("sslcli.distributed.gather_objects", lambda own: asked.append(own) or [own])
    with pytest.raises(OutOfMemory):
        together(failing(MemoryError()))
    assert isinstance(asked[0], OutOfMemory)


def test_the_advice_names_options_that_the_config_has(tiny: ConfigMaker, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("sslcli.training.train.Loop.step", failing(MemoryError()))
    vit = ["backbone={name: vit_tiny, patch_size: 8}", "training.accumulate=2"]
    lines = []
    for number, overrides in enumerate(([], vit, [*vit, "backbone.gradient_checkpointing=true"])):
        with pytest.raises(OutOfMemory) as caught:
            train(tiny(*overrides), tmp_path / str(number))
        lines.append(str(caught.value).removeprefix("out of memory in the first step: "))
    batch = "try a smaller training.batch_size, or the same with training.accumulate="
    assert lines == [
        f"{batch}2; smaller views help too",
        f"{batch}4; backbone.gradient_checkpointing=true and smaller views help too",
        f"{batch}4; smaller views help too",
    ]


@pytest.mark.parametrize(
    ("place", "said"),
    [("training.setup.build_groups", "while the run was built"), ("training.speed.Loop.step", "in a step")],
)
def test_bench_ends_with_one_line(tiny: ConfigMaker, monkeypatch: pytest.MonkeyPatch, place: str, said: str) -> None:
    monkeypatch.setattr(f"sslcli.{place}", failing(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(OutOfMemory, match=f"out of memory {said}: try a smaller "):
        measure(tiny(), steps=1, rounds=1)


# --- the other commands


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory") / "run"
    done("train", "examples/configs/quickstart.yaml", *QUICK, "--output", folder)
    return folder


QUICK = ["training.epochs=1", "training.max_steps=1", "training.device=cpu", "training.batch_size=16", "data.count=32",
         "training.workers=0", "training.compile=none"]  # fmt: skip


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("sslcli.evaluation.evaluate.FrozenSubject", "in the evaluation: try fewer images (data.limit)"),
        ("sslcli.evaluation.evaluate.load_trained", "in the evaluation: try fewer images (data.limit)"),
        ("sslcli.evaluators.knn.KNN.evaluate", "evaluating 'knn': try fewer images (data.limit)"),
    ],
)
def test_an_evaluation_ends_with_one_line(run: Path, monkeypatch: Any, place: str, said: str) -> None:
    before = contents(run)
    monkeypatch.setattr(place, failing(torch.OutOfMemoryError("CUDA out of memory")))
    assert refused("eval", run, "--device", "cpu", "--quiet", code=1).startswith(f"ssl: out of memory {said}")
    assert contents(run) == before


@pytest.mark.parametrize(
    ("exporter", "place", "advice"),
    [
        ("backbone", "sslcli.runs.files.snapshot", "end other programs"),
        ("backbone", "sslcli.evaluation.export.load_trained", "end other programs"),
        ("features", "sslcli.exporters.features.FrozenSubject", "try a smaller batch_size"),
    ],
)
def test_an_export_ends_with_one_line(run: Path, monkeypatch: Any, exporter: str, place: str, advice: str) -> None:
    before = contents(run)
    monkeypatch.setattr(place, failing(torch.OutOfMemoryError("CUDA out of memory")))
    line = refused("export", exporter, run, "--device", "cpu", "--output", run / "new.safetensors", "--quiet", code=1)
    assert line == f"ssl: out of memory exporting '{exporter}': {advice}"
    assert contents(run) == before


def test_a_network_beyond_all_memory_is_one_line(tmp_path: Path) -> None:
    huge = ["method.projector.hidden_dim=1000000000", "method.projector.output_dim=1000000000"]
    words = ["train", "examples/configs/quickstart.yaml", *QUICK, *huge, "--output", tmp_path / "run"]
    assert re.search(
        r"^ssl: backbone, method: [\d,]+ parameters take [\d,.]+ TiB in training, .* is free on cpu: set ",
        refused(*words),
    )
    assert not (tmp_path / "run").exists()


def test_memory_that_nothing_else_looks_after_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslcli.config.resolve.load_config", failing(MemoryError()))
    assert refused("train", "examples/configs/quickstart.yaml", code=1).startswith("ssl: out of memory: end other")
