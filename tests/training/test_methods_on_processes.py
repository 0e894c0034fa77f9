"""Every method on several processes: equal weights everywhere after each step, and those of one process."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from process_group import in_group
from run_helpers import method_config
from small_options import method_cases

from sslcli import distributed
from sslcli.runs.directory import RunDirectory
from sslcli.training.context import Context
from sslcli.training.loop import Loop
from sslcli.training.setup import build

STEPS = 3
#: Everything is in float64, but for the views, whose rounding depends on how many are made at once.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-7}
#: Beside the plain runs: micro-batches, and what methods do without synchronized statistics (equal everywhere, but
#: not what one process computes).
OTHERS = {
    "simclr accumulated": ["training.accumulate=2"],
    "moco_v2 accumulated": ["training.accumulate=2"],
    "moco_v2 shuffled": ["training.sync_batch_norm=false"],
    "densecl shuffled": ["training.sync_batch_norm=false"],
    "simsiam local": ["training.sync_batch_norm=false"],
}
OF_SEVERAL_ONLY = ("moco_v2 shuffled", "densecl shuffled", "simsiam local")
CASES = [*method_cases(), *OTHERS]

Found = tuple[list[str], dict[str, torch.Tensor]]


def trained(case: str) -> Found:
    """Digests of all parameters, buffers and moments after each step, and at the end parameters and buffers."""
    overrides = OTHERS.get(case, [])
    session = build(method_config(case.split()[0] if case in OTHERS else case, *overrides, "data.count=64",
                                  "training.batch_size=16"))  # fmt: skip
    session.method.double()
    for moments in session.optimizer.state.values():
        moments.update({name: value.double() for name, value in moments.items() if torch.is_tensor(value)})
    apply = session.views.apply
    session.views.apply = lambda *a, **k: [view.double() for view in apply(*a, **k)]  # type: ignore[method-assign]
    loop, digests = Loop(session, Context(session, RunDirectory(Path())), 0), []
    for _ in range(STEPS):
        loop.step()
        digest = hashlib.sha256()
        kept = [value for state in session.optimizer.state.values() for value in state.values()]
        for tensor in [*session.method.state_dict().values(), *filter(torch.is_tensor, kept)]:
            digest.update(tensor.detach().contiguous().numpy().tobytes())
        digests.append(digest.hexdigest())
    state = session.method.state_dict()
    return digests, {name: tensor.clone() for name, tensor in state.items()} if distributed.rank() == 0 else {}


def compare(world: int, cases: list[str], folder: Path) -> None:
    main, *others = in_group(world, lambda rank: {case: trained(case) for case in cases}, folder)
    for case in cases:
        digests, state = main[case]
        assert len(set(digests)) == STEPS
        assert all(other[case][0] == digests for other in others), case
        if case in OF_SEVERAL_ONLY:
            continue
        for name, expected in trained(case)[1].items():
            torch.testing.assert_close(
                state[name], expected, **TOLERANCE, msg=lambda text, of=f"{case}: {name}": f"{of}: {text}"
            )


def test_two_methods_on_two_processes(tmp_path):
    compare(2, ["simclr", "moco_v2 shuffled"], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("world", [2, 4])
def test_every_method_on_two_and_four_processes(world, tmp_path):
    compare(world, CASES, tmp_path)
