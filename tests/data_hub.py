"""A stand-in of the Hugging Face hub with data sets in memory, over HTTP: whole repositories, and files piece by piece
as streams ask for them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

ABSENT = {"X-Error-Code": "EntryNotFound"}


class DataHub(BaseHTTPRequestHandler):
    """``repos`` by name, the files of each by path; those of an older commit under NAME@COMMIT. ``asked`` are the files
    that were read, as often as they were.
    """

    repos: ClassVar[dict[str, dict[str, bytes]]] = {}
    asked: ClassVar[list[str]] = []
    commit: ClassVar[str] = "0" * 40

    def log_message(self, *_):
        pass

    def say(self, content, code=200, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")[1:]  # without "api" or "datasets"
        of_files = self.path.startswith("/datasets")
        name = "/".join(parts[:2] if of_files else parts[1:3])
        if name not in self.repos:
            self.say({"error": "Repository not found"}, 404, **{"X-Error-Code": "RepoNotFound"})
        elif of_files:
            self._file(*self._at(name, parts[3]), "/".join(parts[4:]))
        elif "tree" in parts:
            repo, _ = self._at(name, parts[4])
            self._tree(repo, "/".join(parts[5:]), "recursive=true" in self.path.lower())
        else:
            repo, commit = self._at(name, parts[4] if "revision" in parts else "main")
            self.say({"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in repo]})

    def _at(self, name: str, revision: str) -> tuple[Mapping[str, bytes], str]:
        """A repository's files as of a revision, and its commit."""
        older = self.repos.get(f"{name}@{revision}")
        return (self.repos[name], self.commit) if older is None else (older, revision)

    do_HEAD = do_GET

    def _file(self, repo: Mapping[str, bytes], commit: str, path: str) -> None:
        about = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if (data := repo.get(path)) is None:
            self.say(b"", 404, **about, **ABSENT)
            return
        about["ETag"] = f'"{sha1(data).hexdigest()}"'
        if self.command == "GET":
            self.asked.append(path)
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            stop = min(int(last or len(data)), len(data) - 1)
            about["Content-Range"] = f"bytes {first}-{stop}/{len(data)}"
            self.say(data[int(first) : stop + 1], 206, **about)
        else:
            self.say(data, **about)

    def _tree(self, repo: Mapping[str, bytes], under: str, recursive: bool) -> None:
        at = f"{under}/" if under else ""
        inside = {path: data for path, data in repo.items() if path.startswith(at)}
        near = {path: path if recursive else at + path.removeprefix(at).split("/")[0] for path in inside}
        found = [
            {"type": "file", "path": path, "size": len(data), "oid": sha1(data).hexdigest()}
            for path, data in inside.items()
            if near[path] == path
        ]
        folders = sorted({there for path, there in near.items() if there != path})
        found += [{"type": "directory", "path": path, "oid": "0" * 40} for path in folders]
        self.say(found if inside else {"error": "no such folder"}, 200 if inside else 404, **({} if inside else ABSENT))


@contextmanager
def served(cache) -> Iterator[type[DataHub]]:
    """The stand-in in the hub's place, whose cache is a folder of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), DataHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", endpoint)
        patch.setattr("datasets.config.HF_ENDPOINT", endpoint)
        patch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        # Seconds that a stream sleeps at its end, for threads that its own reading starts.
        patch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
        patch.setattr(DataHub, "repos", {})
        patch.setattr(DataHub, "asked", [])
        patch.setattr(DataHub, "commit", "0" * 40)
        yield DataHub
    server.shutdown()
    server.server_close()
