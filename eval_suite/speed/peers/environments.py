"""An environment of its own for each tool: this interpreter's libraries below, the tool's own on top of them.

A tool is installed without its dependencies, and what it lacks is named: so that all run on the same torch and
transformers, also where a tool asks for older ones, and nothing is changed in this environment. repeng does not load
with NumPy 2.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from factory.errors import UserError

PACKAGES: dict[str, tuple[str, ...]] = {
    "steering-vectors": ("steering-vectors==0.12.2", "scikit-learn"),
    "repeng": ("repeng==0.4.0", "numpy==1.26.4", "scikit-learn"),
    "nnsight": ("nnsight==0.8.1", "zstandard", "websocket-client", "cloudpickle", "greenlet"),
}
NEEDED = {"scikit-learn": ("scipy", "joblib", "threadpoolctl", "narwhals")}


def environment_of(tool: str, root: Path) -> Path:
    """The interpreter of ``tool``'s environment below ``root``, made where it is not there yet.

    Raises ``UserError`` where the package index does not hand the tool out.
    """
    folder = root / tool
    python, done = folder / "bin" / "python", folder / "installed.txt"
    wanted = "\n".join(PACKAGES[tool])
    if done.exists() and done.read_text(encoding="utf-8") == wanted:
        return python
    run([sys.executable, "-m", "venv", "--without-pip", "--clear", str(folder)], tool)
    own = next((folder / "lib").glob("python*")) / "site-packages"
    own.joinpath("below.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    run([*install, *_lacking(python, PACKAGES[tool])], tool)
    done.write_text(wanted, encoding="utf-8")
    return python


def _lacking(python: Path, packages: Sequence[str]) -> list[str]:
    """Those of ``packages``, and of what they need, that the libraries below do not hold."""
    every = [each for package in packages for each in (package, *NEEDED.get(package, ()))]
    ask = "import sys; from importlib.metadata import distributions as d; print(*{x.name.lower() for x in d()})"
    there = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.split()
    return [package for package in every if "==" in package or package not in there]


def run(command: Sequence[str], tool: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise UserError(f"{tool}: its environment cannot be made: {last}")
