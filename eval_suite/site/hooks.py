"""MkDocs' hook: the generated pages join the written ones, in memory, and each gets its place in the contents."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from mkdocs.structure.files import File, Files

from eval_suite.site import pages
from factory.registry import KINDS


def on_config(config: Any) -> Any:
    """Fill the contents' sections of generated pages."""
    plugins = [
        {pages.title(kind): [{each.name: f"reference/{kind}/{each.name}.md"} for each in group]}
        for kind, group in groupby(pages.in_tree(), key=lambda entry: entry.kind)
    ]
    adding = [{kind.replace("_", " "): f"adding/{kind}.md"} for kind in KINDS]
    for section in config.nav:
        for name, more in (("Reference", plugins), ("Adding", adding)):
            if name in section:
                section[name] = [*section[name], *more]
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """Add the generated pages."""
    for path, content in (pages.build() | pages.run_notebooks()).items():
        files.append(File.generated(config, path, content=content))
    return files
