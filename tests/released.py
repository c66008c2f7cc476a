"""Where files lie that others have released: in the folder that STEERING_FACTORY_DATA names, or beside the project."""

from __future__ import annotations

import os
from pathlib import Path

RELEASED = Path(os.environ.get("STEERING_FACTORY_DATA") or Path(__file__).parents[2] / "shared/data")
