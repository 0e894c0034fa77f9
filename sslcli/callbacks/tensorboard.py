"""Writes every log line to TensorBoard's event files in the run directory."""

from __future__ import annotations

import io
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sslcli.contracts.callback import Callback, Outcome, RunContext
from sslcli.runs.layout import VIEWS
from sslcli.storage import Appending


def _image(path: Path) -> dict[str, Any]:
    """A picture as an event has it."""
    content = path.read_bytes()
    width, height = struct.unpack(">II", content[16:24])  # a PNG file begins with them
    return {"width": width, "height": height, "colorspace": 3, "encoded_image_string": content}


class TensorBoard(Callback):
    """Writes the log lines for TensorBoard.
    `tensorboard --logdir RUN/tensorboard` shows them."""

    file: Appending | None = None
    start: int = 0

    def on_start(self, context: RunContext) -> None:
        self.start = context.progress.made

    def on_first_step(self, context: RunContext) -> None:
        if context.is_main:
            self._open(context)

    def _open(self, context: RunContext) -> None:
        if self.file is not None:
            return
        now = time.time()
        name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
        # Not torch's writer: its thread ends at the first error of the disk, with a traceback, and half a record.
        self.file = Appending(context.directory / "tensorboard" / name, "training goes on")
        self._write(wall_time=now, file_version="brain.Event:2")
        if not self.start and (picture := context.directory / VIEWS).is_file():
            self._write(wall_time=now, step=0, summary={"value": [{"tag": "views", "image": _image(picture)}]})
        if self.start:  # TensorBoard hides events of a run from the step on at which it was resumed
            self._write(wall_time=now, step=self.start + 1, session_log={"status": "START"})

    def _write(self, **content: Any) -> None:
        # Takes a moment to import: not before the first step.
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        record = io.BytesIO()
        RecordWriter(record).write(Event(**content).SerializeToString())
        assert self.file is not None, "_open makes it"
        self.file.write(record.getvalue())

    def on_log(self, context: RunContext, record: Mapping[str, float | int]) -> None:
        self._open(context)
        values = [
            {"tag": name.encode(errors="backslashreplace"), "simple_value": value}
            for name, value in record.items()
            if name != "step"
        ]
        self._write(wall_time=time.time(), step=int(record["step"]), summary={"value": values})

    def on_end(self, context: RunContext, outcome: Outcome) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None
