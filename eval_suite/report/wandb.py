"""A run at Weights & Biases."""

from __future__ import annotations

import io
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image
from pydantic import NonNegativeInt

from eval_suite.report.tracked import SampleTable, curves, samples, scores
from factory import files
from factory.errors import UserError
from factory.extras import not_installed
from factory.registry import Params, register
from factory.report import Finished, Report
from factory.terminal import Console

if TYPE_CHECKING:
    from transformers import TrainerCallback

FOLDER = "wandb"
IDENTITY = "wandb.json"  # in the folder that is told of: written again, it is the same run there


class WandbParams(Params):
    """``project`` and ``entity`` (null: your own) say where; ``mode`` null is the environment's, online where that
    says nothing; ``samples`` of each benchmark are kept, at most.
    """

    project: str = "steering-factory"
    entity: str | None = None
    mode: Literal["online", "offline"] | None = None
    samples: NonNegativeInt = 200


@register("report", "wandb")
class WeightsAndBiases(Report):
    """A run for Weights & Biases: scores (the run's summary and a table), each metric over strengths (a table and a
    plot), the figures, and some samples with their pictures and every method's answer; of a training each step as it
    goes. It needs the extra ``wandb``.

    What is to be sent lies in ``wandb/`` of the folder that is told of (a run's, or of a training's stage), and the
    pictures of tables in W&B's own folder of data; written again it is the same run there. ``mode: offline`` sends
    nothing; ``wandb sync`` does so later, on the same machine.
    """

    Params = WandbParams
    params: WandbParams

    def unready(self) -> str | None:
        if (why := not_installed("report wandb", "wandb", ["wandb"])) is not None:
            return why
        import wandb

        mode = self.params.mode or wandb.setup().settings.mode
        if mode == "online" and not wandb.setup().settings.api_key and not wandb.api.api_key:
            return "report wandb has no key to send with: wandb login, or mode: offline"
        return None

    def write(self, run: Finished) -> Path:
        import wandb

        about = run.results.get("run", {})
        with self._run(run.folder, run.folder.absolute().name, {"recipe": run.recipe, "run": about}) as kept:
            found = scores(run.results)
            for each in found:
                kept.summary.update({f"{each.benchmark}/{each.arm}/{k}": v for k, v in each.metrics.items()})
            kept.log({"scores": _scores(wandb, found), **_curves(wandb, run.results)})
            for path in sorted((run.folder / "report" / "figures").glob("*.png")):
                kept.log({f"figures/{path.stem}": wandb.Image(str(path))})
            for table in samples(run, self.params.samples):
                kept.log({f"samples/{files.file_name(table.title)}": _samples(wandb, table)})
            place = kept.dir if kept.offline else kept.url
        Console().print(f"wandb: {place}", soft_wrap=True)
        return run.folder / FOLDER

    def follow(self, folder: Path, name: str) -> TrainerCallback:
        from transformers import TrainerCallback

        opened = self._run

        class Following(TrainerCallback):
            """Sends each step's log."""

            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                self.kept = opened(folder, name, {"training": args.to_sanitized_dict()})

            def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **_: Any) -> None:
                self.kept.log({f"train/{key}": value for key, value in logs.items()}, step=state.global_step)

            def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                self.kept.finish()

        return Following()

    def _run(self, folder: Path, name: str, config: Mapping[str, Any]) -> Any:
        """The run at W&B that a folder is told in, begun or gone on with. Raises ``UserError``."""
        import wandb

        kept = folder / IDENTITY
        if not kept.is_file():
            files.write_json(kept, {"id": secrets.token_hex(4)})
        wanted = self.params
        offline = (wanted.mode or wandb.setup().settings.mode) != "online"
        try:
            return wandb.init(
                project=wanted.project,
                entity=wanted.entity,
                name=name,
                id=str(files.read_json(kept)["id"]),
                resume=None if offline else "allow",  # offline it is sent as one run anyway, and asked for would warn
                mode=wanted.mode,
                dir=str(folder),
                config=dict(config),
                reinit="create_new",
                settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
            )
        except wandb.Error as error:
            raise UserError(f"report wandb: {' '.join(str(error).split())}; or mode: offline") from error


def _scores(wandb: Any, found: Any) -> Any:
    metrics = list(dict.fromkeys(name for each in found for name in each.metrics))
    columns = ["benchmark", "method", "direction", "strength", "chosen on dev too", "n", *metrics]
    rows = [
        [e.benchmark, e.method, e.direction or "", "" if e.strength is None else str(e.strength), e.variant, e.n]
        + [e.metrics.get(name) for name in metrics]
        for e in found
    ]
    return wandb.Table(columns=columns, data=rows)


def _curves(wandb: Any, results: Mapping[str, Any]) -> dict[str, Any]:
    """A table of every metric over strengths, and of each benchmark's first a plot with a line a method."""
    found = curves(results)
    if not found:
        return {}
    columns = ["benchmark", "split", "method", "direction", "strength", "metric", "value"]
    data = [
        [c.benchmark, c.split, c.method, c.direction or "", strength, name, value]
        for c in found
        for strength, metrics in c.points
        for name, value in metrics.items()
    ]
    told: dict[str, Any] = {"curves/all": wandb.Table(columns=columns, data=data)}
    for benchmark, split in dict.fromkeys((c.benchmark, c.split) for c in found):
        own = [c for c in found if (c.benchmark, c.split) == (benchmark, split)]
        first = next(iter(own[0].points[0][1]))
        told[f"curves/{files.file_name(benchmark, split)}"] = wandb.plot.line_series(
            xs=[[strength for strength, _ in c.points] for c in own],
            ys=[[metrics[first] for _, metrics in c.points] for c in own],
            keys=[c.arm for c in own],
            title=f"{benchmark}, {split}: {first}",
            xname="strength",
        )
    return told


def _samples(wandb: Any, table: SampleTable) -> Any:
    rows = []
    for row, pictures in zip(table.rows, table.pictures, strict=True):
        shown = wandb.Image(Image.open(io.BytesIO(pictures[0]))) if pictures else None
        rows.append([shown, *row])
    return wandb.Table(columns=["picture", *table.columns], data=rows)
