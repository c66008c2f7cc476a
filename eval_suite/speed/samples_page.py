"""The sample page of a large run in a browser: how long it takes to write, how large it is, how fast it opens and
filters.

    python -m eval_suite.speed.samples_page [--samples 2000] [--out FOLDER] [--browser chromium]

The run is made up, the writer is the report's own. Pictures are noise whose spectrum falls as that of photographs does,
so that their size as JPEG is about a photograph's. The browser opens the page from its file, without a network.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from eval_suite.conflict import TASKS
from eval_suite.report.samples.gather import collections
from eval_suite.report.samples.write import write
from factory.data.sample import ConflictSample
from factory.report import Finished

PROMPTED = ("none", "instruction", "cot", "few_shot", "unimodal")
STEERED = ("static", "l2s", "amps", "dose")
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
OUTCOMES = ("follow", "compete", "flags", "other", "error")
SIZE = (640, 480)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--v=0"),
)
MARK = "samples-page-measured:"
LONGEST = 120  # seconds
SHOWN = 4000  # letters of the list that are handed back
FILTERS: tuple[dict[str, str], ...] = (
    {"method": "amps", "change": "1"},
    {"method": "", "change": "", "outcome": "E"},
    {"outcome": "", "task": "2"},
    {"task": "", "words": "colour 19"},
    {"words": "", "change": "8"},
    {"change": ""},
)
SCRIPT = """
(async () => {
  const list = document.getElementById("list"), form = document.getElementById("filters");
  const becomes = (what, before) => new Promise((done) => {
    const look = () => list.dataset[what] !== before ? done() : setTimeout(look, 1);
    look();
  });
  await becomes("drawn", undefined);
  document.body.offsetHeight;
  const opened = performance.now(), filters = [];
  for (const wanted of FILTERS) {
    for (const [name, value] of Object.entries(wanted)) form.elements[name].value = value;
    const { shown, drawn } = list.dataset, began = performance.now();
    form.elements.task.dispatchEvent(new Event("input", { bubbles: true }));
    document.body.offsetHeight;
    const counted = performance.now() - began;
    await becomes("shown", shown);
    document.body.offsetHeight;
    const seen = performance.now() - began;
    await becomes("drawn", drawn);
    document.body.offsetHeight;
    filters.push([document.getElementById("count").textContent, counted, seen, performance.now() - began]);
  }
  const shown = list.textContent.slice(0, SHOWN);
  console.log("MARK" + JSON.stringify({ opened, filters, title: document.title, shown }));
})();
"""


@cache
def _noise() -> np.ndarray:
    """Noise whose amplitude falls with the frequency, in three correlated channels, larger than a picture."""
    rng, height, width = np.random.default_rng(0), 1024, 2048
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    fall = 1 / np.maximum(frequency, 1 / width) ** 1.1
    layers = (np.fft.irfft2(fall * np.fft.rfft2(rng.normal(size=(height, width))), (height, width)) for _ in range(3))
    grey, *tints = (layer / layer.std() for layer in layers)
    channels = [grey + 0.3 * tint for tint in (*tints, -tints[0])]
    return np.clip(128 + 50 * np.stack(channels, -1), 0, 255).astype(np.uint8)


def photograph(number: int) -> Image.Image:
    """Picture ``number``: each is another piece of one noise, read from a JPEG as those of a data set are."""
    (width, height), noise = SIZE, _noise()
    top, left = 7 * number % (noise.shape[0] - height), 13 * number % (noise.shape[1] - width)
    kept = io.BytesIO()
    Image.fromarray(noise[top : top + height, left : left + width]).save(kept, "JPEG", quality=90)
    return Image.open(kept)


def made_up(samples: int, folder: Path, picture: Callable[[int], Image.Image] = photograph) -> Finished:
    """A finished run of that many test samples: all methods of the AMPS recipe, both directions, every strength."""
    rng = np.random.default_rng(0)
    told = [_sample(i, picture) for i in range(samples)]
    predictions = [record for sample in told for record in _answers(sample, rng)]
    diagnostics = [
        {**at, "metric": metric, "value": float(rng.random()), "split": "test", "layer": None, "head": None}
        for s in told
        for at in ({"sample": s.id, "prompt": prompt} for prompt in ("base", "vision", "text"))
        for metric in ("C_V", "C_T", "R_V", "R_T")
    ]
    results: dict[str, Any] = {"schema": 1, "run": {"name": "made up", "unsteered": "none"}, "rows": []}
    bench: Any = SimpleNamespace(name="made up")
    return Finished(folder, results, bench, samples=told, predictions=predictions, diagnostics=diagnostics)


def _sample(i: int, picture: Callable[[int], Image.Image]) -> ConflictSample:
    context = f"A long account, number {i}, of what was seen that day, " + "with one thing and another, " * 8
    question = f"What colour {i} is the thing beside the door in the picture?"
    return ConflictSample(f"sample-{i}", TASKS[i % 8], question, context, "red", "blue", partial(picture, i))


def _answers(sample: ConflictSample, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    for direction in ("vision", "text"):
        cells = [(m, None) for m in PROMPTED] + [(m, s) for m in STEERED for s in STRENGTHS]
        for method, strength in cells:
            outcome = OUTCOMES[int(rng.choice(5, p=(0.45, 0.35, 0.02, 0.1, 0.08)))]
            answer = {"follow": "The thing is red.", "compete": "It is blue."}.get(outcome, f"answer {rng.integers(9)}")
            yield {
                "sample": sample.id,
                "split": "test",
                "method": method,
                "direction": direction,
                "strength": strength,
                "chosen": strength in (None, 1.0),
                "variant": "",
                "outcome": outcome,
                "answers": [answer],
            }


def in_browser(page: Path, browser: str) -> dict[str, Any]:
    """Milliseconds until ``page`` shows its first samples, and of each filter its count, and milliseconds until the
    count, the samples that a window shows, and the whole list are there, texts and pictures; then the page's title and
    the text it shows. Raises ``TimeoutError`` where the browser does not say.
    """
    script = SCRIPT.replace("FILTERS", json.dumps(FILTERS)).replace("MARK", MARK).replace("SHOWN", str(SHOWN))
    measured = page.with_name("measured.html")
    measured.write_text(page.read_text(encoding="utf-8").replace("</body>", f"<script>{script}</script></body>"))
    profile = tempfile.mkdtemp()
    command = [browser, *FLAGS, f"--user-data-dir={profile}", "--window-size=1280,900", measured.resolve().as_uri()]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, errors="replace")
    try:
        return _said(process)
    finally:
        process.kill()
        process.wait()
        measured.unlink()
        shutil.rmtree(profile, ignore_errors=True)


def _said(process: subprocess.Popen[str]) -> dict[str, Any]:
    began = time.monotonic()
    for line in process.stderr or ():
        if found := re.search(rf'{MARK}(.*)", source: ', line):
            return json.loads(found.group(1))
        if time.monotonic() - began > LONGEST:
            break
    raise TimeoutError("the browser ended, or took too long, before the page was measured")


def measure(samples: int, out: Path, browser: str | None) -> dict[str, Any]:
    """Write the page of a made-up run below ``out`` and measure it; without a ``browser`` its files alone."""
    run = made_up(samples, out)
    began = time.perf_counter()
    found = collections(run)
    gathered = time.perf_counter()
    page = write(found, out / "report", "made up", [])
    assert page is not None, "a run of samples has a page of them"
    written = time.perf_counter()
    data = [*(page.parent / "samples").iterdir(), page]
    about = {
        "samples": samples,
        "gather_s": gathered - began,
        "write_s": written - gathered,
        "files": len(data),
        "megabytes": sum(path.stat().st_size for path in data) / 1e6,
    }
    seen = in_browser(page, browser) if browser else {}
    return {**about, **{key: seen[key] for key in ("opened", "filters") if key in seen}}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--out", type=Path, help="keep the page in this folder")
    parser.add_argument("--browser", default="chromium")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(args.samples, args.out or Path(scratch), shutil.which(args.browser))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
