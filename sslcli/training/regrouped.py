"""A run that is resumed on another number of processes: what stays, and what is different from then on."""

from __future__ import annotations

from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from sslcli.config.schema import TrainingOptions
from sslcli.contracts.method import Method
from sslcli.modules.drop_path import drop_path_rates
from sslcli.modules.norms import BatchRenorm1d


def other_processes(before: int, now: int, method: Method, training: TrainingOptions) -> str:
    """Returns what it means that a run of `before` processes is resumed on `now`: the images of each step stay what
    they were, and in their order."""
    shares = [training.batch_size // (training.accumulate * number) for number in (now, before)]
    batch = "micro-batch" if training.accumulate > 1 else "batch"
    kinds = (BatchRenorm1d,) if training.sync_batch_norm else (BatchRenorm1d, _BatchNorm)
    reasons = ["sums are rounded differently"]
    if any(isinstance(module, kinds) for module in method.modules()):
        why = "" if training.sync_batch_norm else " (training.sync_batch_norm=false)"
        reasons.append(f"batch norm sees a process's {shares[0]} images instead of {shares[1]}{why}")
    drops = any(isinstance(module, _DropoutNd) and module.p > 0 for module in method.modules())
    if drops or max(drop_path_rates(method), default=0) > 0:
        reasons.append("dropout draws other numbers")
    return (
        f"resuming a run of {before} process(es) on {now} process(es): the same images in the same order, {shares[0]} "
        f"instead of {shares[1]} of each {batch} on a process; results will not be bitwise identical, since "
        f"{' and '.join(reasons)}"
    )
