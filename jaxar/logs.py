"""Where figures go while training: JSON lines, TensorBoard, a progress line. Process 0 writes, others are silent."""

import json
import math
import pathlib
import sys
import time
from collections.abc import Mapping

import numpy as np
import rich.console
import rich.progress
import tensorboardX


class MetricsWriter:
    """Appends one JSON object per step to `metrics.jsonl` and mirrors it to TensorBoard.

    A line of a step past that of resumption belongs to the interrupted attempt: it is dropped on opening, so that a
    resumed run leaves the file an uninterrupted one would.
    """

    def __init__(self, workdir: pathlib.Path, first_step: int, enabled: bool):
        self._file = self._board = None
        if not enabled:
            return
        path = workdir / "metrics.jsonl"
        kept = [line for line in _complete_lines(path) if json.loads(line)["step"] <= first_step]
        partial = path.with_suffix(".jsonl.tmp")
        partial.write_text("".join(kept))
        partial.replace(path)
        self._file = path.open("a", buffering=1)
        self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """`step` is the number of finished steps."""
        if self._file is None:
            return
        values = {name: float(value) for name, value in metrics.items()}
        # JSON has no NaN: a missing value says the same and every reader accepts it.
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """`image`: uint8 [h w 3]."""
        if self._board is not None:
            self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._board.close()


def _complete_lines(path: pathlib.Path) -> list[str]:
    """Lines that were written to their end: a kill may have cut the last one."""
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


class Progress:
    """A progress bar with ETA on a terminal, a line every `seconds` elsewhere; on stderr."""

    def __init__(self, total: int, start: int, enabled: bool, title: str, seconds: float = 15.0):
        self._total, self._title, self._seconds = total, title, seconds
        self._begun, self._first, self._last = time.monotonic(), start, 0.0
        self._bar = self._task = None
        self._enabled = enabled
        console = rich.console.Console(stderr=True)
        if enabled and console.is_terminal:
            columns = (
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TextColumn("{task.fields[note]}"),
                rich.progress.TimeRemainingColumn(),
            )
            self._bar = rich.progress.Progress(*columns, console=console)
            self._task = self._bar.add_task(title, total=total, completed=start, note="")
            self._bar.start()

    def update(self, step: int, loss: float, images_per_s: float) -> None:
        note = f"loss {loss:.4f} | {images_per_s:,.0f} images/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)
        elif self._enabled and (time.monotonic() - self._last > self._seconds or step == self._total):
            self._last = time.monotonic()
            print(
                f"{self._title} {step}/{self._total} ({step / self._total:.0%}) | {note} | eta {self._eta(step)}",
                file=sys.stderr,
                flush=True,
            )

    def _eta(self, step: int) -> str:
        done = step - self._first
        left = (time.monotonic() - self._begun) / done * (self._total - step) if done else 0
        return f"{int(left) // 3600}:{int(left) // 60 % 60:02}:{int(left) % 60:02}"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
