"""What a run says of itself: a block of a few lines before the first step, and what came of it at the end."""

from __future__ import annotations

import logging

import torch

from sslcli import distributed
from sslcli.contracts.data import StreamDataset
from sslcli.contracts.errors import SslError
from sslcli.contracts.export import Trained
from sslcli.data.paths import skipped_files
from sslcli.data.subset import Subset, fixed_choice
from sslcli.evaluation.subject import FrozenSubject
from sslcli.evaluators.quality import Quality, QualityOptions
from sslcli.logs import duration, only_warnings
from sslcli.memory import out_of_memory, readable
from sslcli.runs.arithmetic import exact_float32
from sslcli.runs.directory import RunDirectory
from sslcli.runs.metrics import read_metrics

from .context import Context
from .quick_estimate import quick_estimate
from .setup import Session, shown_views

log = logging.getLogger(__name__)

#: Images to measure the quality of features on at the end: at least, and at most.
SAMPLE = (64, 1000)


def show_start(session: Session) -> None:
    """Shows what will be trained, on what, and how much of it there is."""
    for name, text in start_lines(session).items():
        log.info(f"{name}: {text}")


def start_lines(session: Session) -> dict[str, str]:
    """Returns the block: `data`, `model`, `device`, `steps`."""
    return {"data": _data(session), "model": _model(session), "device": _device(session), "steps": _steps(session)}


def _data(session: Session) -> str:
    dataset, options = session.dataset, session.config.data.options
    info = dataset.info
    stream = " an epoch, as a stream" if isinstance(dataset, StreamDataset) else ""
    size = f" of {info.image_size[1]} × {info.image_size[0]} px" if info.image_size else ""
    parts = [f"{info.name}, {session.images:,} images{stream}{size}"]
    parts[0] += f", {len(info.classes):,} classes" if info.classes else ", without labels" * (not session.has_labels)
    parts += [f"data.limit={options.limit}"] if getattr(options, "limit", None) is not None else []
    parts += ["all in memory"] if session.resident else []
    parts[1:1] = [skipped_files(dataset.skipped)] if dataset.skipped else []
    return "; ".join(parts)


def _model(session: Session) -> str:
    config, encoder = session.config, session.method.encoder()
    backbone = sum(p.numel() for p in encoder.parameters())
    trained = sum(p.numel() for p in session.method.parameters() if p.requires_grad)
    return (
        f"{config.method.name}; backbone {config.backbone.name}, {_count(backbone)} parameters "
        f"({_count(trained)} are trained, with the method's heads)"
    )


def _device(session: Session) -> str:
    training, device, threads = session.config.training, session.device, torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{threads} thread{'s' * (threads > 1)}"
    processes = f"{distributed.world_size()} processes, this one on " if distributed.is_distributed() else ""
    what = {"none": "nothing", "views": "the views", "all": "views and backbone"}[training.compile]
    return f"{processes}{device} ({name}), {training.precision}, {what} compiled"


def _steps(session: Session) -> str:
    info, last = session.info, session.last_step + session.shift
    total = info.total_steps + session.shift
    ends = f"{last:,} of {total:,}" if last < total else f"{last:,}"
    epochs = f"{info.epochs} epoch{'s' * (info.epochs > 1)} of {info.steps_per_epoch:,}"
    return f"{ends} ({epochs}), {info.batch_size} images each; views: {shown_views(session.views)}"


def show_memory(session: Session) -> None:
    """Shows what a step takes of the memory, roughly: after the first step, which need not wait for what the estimate
    imports. Not on several processes, whose collectives need the values of tensors."""
    if not log.isEnabledFor(logging.INFO) or distributed.is_distributed():
        return
    found = quick_estimate(session)
    if found.problem:
        log.debug(f"memory: not estimated: {found.problem}")
        return
    free = f", {readable(found.free)} free" if found.free is not None else ""
    log.info(f"memory: about {readable(found.peak)} at the peak of a step{free}")


def _count(number: int) -> str:
    return f"{number / 1e6:,.1f} M" if number >= 100_000 else f"{number:,}"


def measure_quality(context: Context, images: int) -> None:
    """Shows the label-free measures of `ssl eval --method quality`, on a sample of the training images.

    Only where no images with labels could tell more, and on no more images than take about 1% of what training took.

    Args:
        context: of a run that is done.
        images: that this session trained on, each epoch's counted.
    """
    session = context.session
    if isinstance(session.dataset, StreamDataset) or context.labeled("eval") is not None:
        return
    total = len(session.dataset)
    chosen = fixed_choice(total, min(total, SAMPLE[1], max(SAMPLE[0], images // 50)))
    sample = Subset(session.dataset, chosen)
    trained = Trained(session.method.encoder(), session.card(context.progress), None)
    try:
        with out_of_memory("measuring quality", "the run is saved"), exact_float32(), only_warnings():
            subject = FrozenSubject(trained, sample, sample, session.device, seed=context.seed)
            metrics = Quality(QualityOptions()).evaluate(subject).metrics
    except SslError as error:  # unreadable images, features that are not finite: no reason for a run to fail
        log.warning(f"quality: not measured: {error}")
        return
    log.info(
        f"quality, without labels (of {len(chosen):,} training images): the features use about "
        f"{metrics['rank_me']:.0f} of {trained.card.feature_dim:,} dimensions (rank_me); two views of an image are "
        f"{metrics['alignment']:.2f} apart (alignment; 0: alike); all images: {metrics['uniformity']:.2f} (uniformity; "
        "0: alike, -4: spread evenly)"
    )


def show_end(directory: RunDirectory, steps: int, seconds: float, rate: float) -> None:
    """Shows how long a finished session took, how fast it was, and the last loss and kNN accuracy of the run.

    Args:
        directory: whose `metrics.jsonl` has the values.
        steps: that this session made.
        seconds: they took, with everything around them.
        rate: images per second, without monitors and saving.
    """
    records = read_metrics(directory.metrics)
    parts = [f"done in {duration(seconds)}: {steps:,} step{'s' * (steps != 1)}, {rate:,.0f} images/s"]
    losses = [record["loss"] for record in records if "loss" in record]
    parts += [f"loss {losses[-1]:.4f}"] if losses else []
    # What was measured before training says nothing of it.
    knn = [(record["knn_top1"], record["epoch"]) for record in records if "knn_top1" in record and record["step"]]
    if knn:
        best, epoch = max(knn)
        after = f"{round(epoch, 2):g} epoch{'' if epoch == 1 else 's'}"
        parts.append(f"kNN top-1 {knn[-1][0]:.1%} (best {best:.1%}, after {after})")
    log.info("; ".join(parts))
