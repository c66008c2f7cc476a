"""TensorBoard's files of a run: ``tensorboard --logdir runs/NAME``."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pydantic import NonNegativeInt

from eval_suite.report.tracked import SampleTable, curves, samples, scores
from factory import files
from factory.extras import not_installed
from factory.registry import Params, register
from factory.report import Finished, Report
from factory.terminal import Console

if TYPE_CHECKING:
    from transformers import TrainerCallback

FOLDER = "tensorboard"
HUNDREDTHS = 100  # steps are whole numbers, strengths are not


class TensorBoardParams(Params):
    """``samples`` of each benchmark are shown, at most."""

    samples: NonNegativeInt = 50


@register("report", "tensorboard")
class TensorBoard(Report):
    """A run for TensorBoard, in its folder's ``tensorboard/``, and each step of a training as it goes, in that of its
    stage. It needs the extra ``tensorboard``.

    Each method toward each direction is a run of TensorBoard: its scores at the strength it is reported at (HParams),
    and each metric over strengths, with a strength's hundredths as the step (Scalars). The run ``report`` has the
    figures (Images), and the table and some samples with every method's answer (Text). Written again, the folder holds
    the last alone.
    """

    Params = TensorBoardParams
    params: TensorBoardParams

    def unready(self) -> str | None:
        return not_installed("report tensorboard", "tensorboard", ["tensorboard"])

    def write(self, run: Finished) -> Path:
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder / FOLDER
        if folder.is_dir():
            with files.explained(folder, "remove"):
                shutil.rmtree(folder)
        for arm in dict.fromkeys(each.arm for each in scores(run.results)):
            with SummaryWriter(folder / files.file_name(arm)) as writer:
                _arm(writer, run.results, arm)
        with SummaryWriter(folder / "report") as writer:
            self._told(writer, run)
        Console().print(f"tensorboard --logdir {folder}", soft_wrap=True)
        return folder

    def _told(self, writer: Any, run: Finished) -> None:
        table = run.folder / "report" / "table.md"
        if table.is_file():
            writer.add_text("results", table.read_text(encoding="utf-8"))
        for path in sorted((run.folder / "report" / "figures").glob("*.png")):
            picture = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
            writer.add_image(f"figures/{path.stem}", np.asarray(picture), dataformats="HWC")
        for found in samples(run, self.params.samples):
            writer.add_text(f"samples/{found.title}", markdown(found))

    def follow(self, folder: Path, name: str) -> TrainerCallback:
        from torch.utils.tensorboard import SummaryWriter
        from transformers import TrainerCallback

        class Following(TrainerCallback):
            """Writes each step's log; what a stopped training wrote beyond its last checkpoint is overwritten."""

            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                self.writer = SummaryWriter(folder / FOLDER, purge_step=state.global_step + 1)

            def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **_: Any) -> None:
                for key, value in logs.items():
                    if isinstance(value, int | float):
                        self.writer.add_scalar(f"train/{key}", value, state.global_step)

            def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                self.writer.close()

        return Following()


def _arm(writer: Any, results: Mapping[str, Any], arm: str) -> None:
    told = [each for each in scores(results) if each.arm == arm]
    strength = next((s.strength for s in told if s.strength is not None), "")
    about = {"method": told[0].method, "direction": told[0].direction or "", "strength": str(strength)}
    about["chosen on dev too"] = ", ".join(dict.fromkeys(s.variant for s in told if s.variant))
    found = {f"{s.benchmark}/{name}": value for s in told for name, value in s.metrics.items()}
    writer.add_hparams(about, found, run_name=".")
    for curve in curves(results):
        if curve.arm == arm:
            for at, metrics in curve.points:
                for name, value in metrics.items():
                    writer.add_scalar(f"{curve.benchmark} {curve.split}/{name}", value, round(HUNDREDTHS * at))


def markdown(table: SampleTable) -> str:
    """The table as Markdown, whose cells are single lines without markup."""
    return "\n".join(map(_line, (table.columns, ["---"] * len(table.columns), *table.rows)))


def _line(cells: Sequence[str]) -> str:
    shown = [" ".join(cell.split()) for cell in cells]
    for mark, written in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;"), ("`", "&#96;")):
        shown = [cell.replace(mark, written) for cell in shown]
    return f"| {' | '.join(shown)} |"
