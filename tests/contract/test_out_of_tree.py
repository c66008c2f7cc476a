"""The contract suite runs over the plugins of an installed package too, passes a sound one, and catches unsound
ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]

SOUND = '''
from torch import Tensor

from factory.registry import register
from factory.steer import Context, States, Steerer


@register("steering", "oot_sound")
class Sound(Steerer):
    """The difference of the medians."""

    def fit(self, states: States) -> dict[str, Tensor]:
        return {"v": states.toward.median(0).values - states.away.median(0).values}

    def delta(self, h: Tensor, state: dict[str, Tensor], ctx: Context) -> Tensor:
        return state["v"].expand_as(h)
'''
UNSOUND = '''
import torch

from factory.diagnose import Diagnostic
from factory.registry import register
from factory.steer import PromptMethod, Steerer


@register("steering", "oot_moody")
class Moody(Steerer):
    """Draws from the global generator, and its vectors depend on what else is in the batch."""

    def fit(self, states):
        return {"v": torch.randn(states.base.shape[1])}

    def delta(self, h, state, ctx):
        return state["v"] * h.mean(0, keepdim=True).expand_as(h) * h.shape[0]


@register("steering", "oot_eraser")
class Eraser(PromptMethod):
    """Loses the question."""

    def rewrite(self, prompt, direction, examples):
        return type(prompt)(prompt.segments[:2])


@register("diagnostic", "oot_litter")
class Litter(Diagnostic):
    """Leaves a mark on the view, and repeats a row."""

    def on_prefix(self, view, prefix, query, keys, hidden=None):
        view.litter = True
        return [{"sample": key, "metric": "m", "layer": None, "head": None, "value": 0.5} for key in [*keys, keys[0]]]
'''


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, bool]:
    """Whether each contract test passed on plugins found through an entry point, by test id."""
    site = tmp_path_factory.mktemp("site")
    (site / "oot_sound.py").write_text(SOUND)
    (site / "oot_unsound.py").write_text(UNSOUND)
    info = site / "oot-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: oot\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        textwrap.dedent("""\
        [steering_factory.plugins]
        sound = oot_sound
        unsound = oot_unsound
    """)
    )
    tests = [
        "alone",
        "fits",
        "zero",
        "recomputing",
        "row_by_row",
        "ask_the_question",
        "tidy",
        "left_behind",
        "artefact",
    ]
    report, env = site / "report.xml", {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
            "tests/contract/test_steering.py",
            "tests/contract/test_diagnostics.py",
            "-k",
            f"oot_ and ({' or '.join(tests)})",
        ],
        check=False,
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    return {
        case.get("name"): case.find("failure") is None and case.find("error") is None
        for case in ElementTree.parse(report).iter("testcase")
    }


@pytest.mark.slow
def test_a_sound_method_from_another_package_passes(outcomes):
    mine = {name: passed for name, passed in outcomes.items() if "oot_sound" in name}
    assert len(mine) > 10 and all(mine.values()), [name for name, passed in mine.items() if not passed]


@pytest.mark.slow
@pytest.mark.parametrize(
    "test",
    [
        "test_the_same_seed_fits_the_same_bytes[oot_moody-vision]",
        "test_delta_is_pure_and_row_by_row[oot_moody]",
        "test_a_row_is_the_same_alone_and_in_a_batch[oot_moody-layer1-left]",
        "test_prompt_methods_still_ask_the_question[oot_eraser-vision]",
        "test_rows_are_tidy[oot_litter]",
        "test_nothing_is_left_behind[oot_litter-False]",
    ],
)
def test_the_contract_catches_an_unsound_plugin(outcomes, test):
    assert not outcomes[test]
