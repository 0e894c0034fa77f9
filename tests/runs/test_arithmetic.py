"""torch's process-wide settings: what a run, a benchmark or an evaluation sets, and that callers get theirs back."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import ConfigMaker
from run_helpers import done

from sslcli.cli.main import main
from sslcli.contracts.errors import SslError, UserError
from sslcli.evaluation.evaluate import evaluate_all
from sslcli.evaluation.export import export
from sslcli.runs.arithmetic import exact_float32, settings_restored, use_deterministic_kernels
from sslcli.runs.device import resolve_device, resolve_precision
from sslcli.training import group
from sslcli.training import launch as launching
from sslcli.training import train as training
from sslcli.training.setup import device_resolved
from sslcli.training.speed import measure

CUDA = torch.device("cuda")


def tf32() -> tuple[bool, bool]:
    """Whether products and convolutions may use it."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):
        return matmul.fp32_precision == "tf32", cudnn.conv.fp32_precision == "tf32"
    return matmul.allow_tf32, cudnn.allow_tf32


def settings() -> dict[str, Any]:
    return {
        "tf32": tf32(), "matmul": torch.get_float32_matmul_precision(), "benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
    }  # fmt: skip


@pytest.fixture(params=["torch's own", "unusual"])
def before(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The caller's settings; the fixture in conftest.py puts torch's own back."""
    if request.param == "unusual":
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False
        torch.use_deterministic_algorithms(True, warn_only=True)
    return settings()


@pytest.mark.parametrize(
    ("before", "deterministic"),
    [
        ("torch's own", "true"), ("unusual", "false"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("torch's own", "false"), ("unusual", "true"))),
    ],
    indirect=["before"],
)  # fmt: skip
def test_a_run_a_benchmark_and_an_evaluation_leave_the_settings_as_they_were(
    tiny: ConfigMaker, tmp_path: Any, before: dict[str, Any], deterministic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    config = tiny(f"training.deterministic={deterministic}", "training.epochs=1")
    training.train(config, tmp_path / "run")
    assert settings() == before
    measure(config, steps=1, rounds=1)
    assert settings() == before
    evaluate_all([tmp_path / "run"], "knn", [])
    assert settings() == before
    export("backbone", tmp_path / "run", tmp_path / "file.safetensors", [])
    assert settings() == before
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if deterministic == "true" else None)


def test_a_run_that_fails_restores_them_too(tiny: ConfigMaker, tmp_path: Any, before: dict[str, Any]) -> None:
    config = tiny("training.deterministic=true", "optimizer.lr=1e30", "training.log_every=1")
    with pytest.raises(SslError, match="not finite"):
        training.train(config, tmp_path / "run")
    assert settings() == before


NEWER = pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9 has only the older settings"
)


@pytest.fixture
def newer() -> Iterator[dict[str, Any]]:
    """The owners of a `fp32_precision`; those of the three general ones are set back, the others by conftest.py."""
    backends: Any = torch.backends
    yield {
        "all": backends, "cudnn": backends.cudnn, "mkldnn": backends.mkldnn, "matmul": backends.cuda.matmul,
        "conv": backends.cudnn.conv, "rnn": backends.cudnn.rnn, "mkldnn.matmul": backends.mkldnn.matmul,
    }  # fmt: skip
    for general in (backends, backends.cudnn, backends.mkldnn):
        general.fp32_precision = "none"


@NEWER
@pytest.mark.parametrize("name", ["all", "cudnn", "matmul", "conv"])
def test_newer_settings_do_not_count_in_exact_float32_and_are_restored(
    name: str, before: dict[str, Any], newer: dict[str, Any]
) -> None:
    newer[name].fp32_precision = "tf32"  # from here on torch may refuse to read the older one
    precisions = {key: owner.fp32_precision for key, owner in newer.items()}
    with exact_float32():
        assert tf32() == (False, False)
    assert {key: owner.fp32_precision for key, owner in newer.items()} == precisions


@NEWER
def test_what_followed_a_more_general_setting_follows_it_still(newer: dict[str, Any]) -> None:
    newer["matmul"].fp32_precision = "none"
    newer["all"].fp32_precision = "tf32"
    with exact_float32():
        assert tf32() == (False, False)
    assert tf32() == (True, True)
    newer["all"].fp32_precision = "ieee"
    assert newer["matmul"].fp32_precision == "ieee"


@NEWER
def test_other_devices_keep_their_own(newer: dict[str, Any]) -> None:
    newer["mkldnn.matmul"].fp32_precision = "bf16"
    with exact_float32():
        pass
    assert newer["mkldnn.matmul"].fp32_precision == "bf16"


@pytest.mark.parametrize(
    ("precision", "allowed"), [("fp32", False), ("tf32", True), ("bf16", False), ("fp16", False), ("auto", False)]
)
def test_only_tf32_uses_tf32_on_cuda(
    tiny: ConfigMaker, monkeypatch: pytest.MonkeyPatch, before: dict[str, Any], precision: str, allowed: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with settings_restored():
        config, device = device_resolved(tiny("training.device=cuda", f"training.precision={precision}"))
        assert tf32() == (allowed, allowed)
        assert (device.type, config.training.precision) == ("cuda", "bf16" if precision == "auto" else precision)
        with exact_float32():
            assert tf32() == (False, False)
        assert tf32() == (allowed, allowed)
    assert settings() == before


@pytest.mark.parametrize(("device", "generation"), [("cpu", 0), ("cuda", 7)])
def test_tf32_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch, device: str, generation: int) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (generation, 5))
    with pytest.raises(UserError, match=r"training\.precision: tf32: needs a GPU of NVIDIA's Ampere .*set it to fp32"):
        resolve_precision("tf32", torch.device(device))


def test_an_evaluation_says_which_arithmetic_it_used(tiny: ConfigMaker, tmp_path: Any) -> None:
    training.train(tiny("training.epochs=1"), tmp_path / "run")
    out, err = done("eval", tmp_path / "run", "--json")
    assert '"precision": "fp32"' in out
    assert "(train), fp32 on cpu" in err


def test_the_program_prepares_deterministic_products_for_itself_and_its_children(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(sys, "argv", ["ssl", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    started: list[dict[str, str]] = []
    monkeypatch.setattr(launching.subprocess, "Popen", lambda command, env, **options: started.append(env))
    monkeypatch.setattr(launching, "_wait", lambda children: (0, None))
    launching.launch(["train"], 2, "cpu")
    assert [each["CUBLAS_WORKSPACE_CONFIG"] for each in started] == [":4096:8"] * 2
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # the user's own stays
    use_deterministic_kernels(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A machine that pretends to have two GPUs; returns what is made the current device."""
    current: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


def test_a_device_with_an_index_becomes_the_current_one(two_gpus: list[Any]) -> None:
    assert resolve_device("cuda") == CUDA
    assert two_gpus == []
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert two_gpus == [torch.device("cuda", 1)]


def test_nccl_is_given_its_device_after_that_is_the_current_one(
    two_gpus: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    formed: list[SimpleNamespace] = []

    def form(backend: str, **options: Any) -> None:
        formed.append(SimpleNamespace(backend=backend, current=list(two_gpus), **options))

    monkeypatch.setattr(dist, "init_process_group", form)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(group, "_own_store", lambda: None)
    monkeypatch.setattr(group, "_leave_together", lambda store, key: None)
    for device, own, backend in (("auto", torch.device("cuda", 1), "cpu:gloo,cuda:nccl"), ("cpu", None, "gloo")):
        two_gpus.clear()
        with group.joined(device, None):
            assert (formed[-1].backend, formed[-1].device_id) == (backend, own)
        assert formed[-1].current == ([1] if own else [])
