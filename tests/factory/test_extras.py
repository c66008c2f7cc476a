"""The line that says how an optional part is installed."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from factory.extras import installed_by, not_installed

ROOT = Path(__file__).parents[2]


def test_what_is_there_lacks_nothing_and_what_is_not_is_named():
    assert not_installed("the page", "play", ["json", "pathlib"]) is None
    why = not_installed("the page", "play", ["json", "no_such_module", "nor_this"])
    assert why is not None and why.startswith("the page needs no_such_module and nor_this, the extra 'play': ")


def test_a_checkout_is_installed_at_its_pins_and_a_wheel_by_its_name(tmp_path):
    """``pip install 'NAME[EXTRA]'`` takes the distribution that is installed, and adds what its extra needs."""
    words = shlex.split(installed_by("play"))
    assert words == [*f"{sys.executable} -m pip install -c {ROOT / 'constraints.txt'} -e".split(), f"{ROOT}[play]"]
    installed = shlex.split(installed_by("play", tmp_path))
    assert installed == [sys.executable, "-m", "pip", "install", "steering-factory[play]"]


def test_nothing_else_says_how_an_extra_is_installed():
    """In a checkout the distribution's bare name would have pip look elsewhere for another's package of that name."""
    sources = [path for room in ("factory", "plugins", "eval_suite") for path in (ROOT / room).rglob("*.py")]
    told = [
        path.name for path in sources if re.search(r"pip install.*steering-factory\[", path.read_text(encoding="utf-8"))
    ]
    assert told == []
