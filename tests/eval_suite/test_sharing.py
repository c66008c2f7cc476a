"""``push`` and ``pull`` against a stand-in of the hub's interface, over HTTP."""

from __future__ import annotations

import base64
import json
import threading
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import yaml

import factory
from factory import tune
from factory.cli import main
from factory.model.load import fingerprint
from factory.registry import lookup
from factory.steer import Steering, artefact
from factory.steer.where import Where
from plugins.steering.static import Static
from tests.tiny import saved_tiny, tiny_view


class Hub(BaseHTTPRequestHandler):
    """Repositories in memory; what is asked of a hub to make one, to commit to it, and to download from it."""

    repos: ClassVar[dict[str, dict[str, bytes]]] = {}
    tokens: ClassVar[set[str]] = set()

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

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.tokens.add(self.headers["Authorization"] or "")
        rest = self.path.split("/")[2:]
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.repos.setdefault(name, {})
            self.say({"url": f"https://huggingface.co/{name}"})
        elif self.path == "/api/validate-yaml":
            self.say({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.say({"files": files})
        else:  # a commit, a line for each file
            name = "/".join(rest[1:3])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.repos[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.say({"commitUrl": f"https://huggingface.co/{name}/commit/{'0' * 40}", "commitOid": "0" * 40})

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if name not in self.repos:
            self.say({"error": "Repository not found"}, 404, **{"X-Error-Code": "RepoNotFound"})
        elif parts[0] == "api" and "tree" in parts:
            files = self.repos[name].items()
            self.say(
                [
                    {"type": "file", "path": path, "size": len(data), "oid": sha1(data).hexdigest()}
                    for path, data in files
                ]
            )
        elif parts[0] == "api":
            self.say({"id": name, "sha": "0" * 40, "siblings": [{"rfilename": path} for path in self.repos[name]]})
        else:
            data = self.repos[name]["/".join(parts[4:])]
            self.say(data, **{"ETag": f'"{sha1(data).hexdigest()}"', "X-Repo-Commit": "0" * 40})

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for name in ("HF_HUB_CACHE", "HF_TOKEN_PATH"):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", str(tmp_path / name))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    Hub.repos, Hub.tokens = {}, set()
    yield address
    server.shutdown()
    server.server_close()


RECIPE = "name: mine\nmodel: {zoo: tiny}\ndata: scenes\nsteering: [none, static]\nrun: {root: RUNS}\n"


@pytest.fixture
def folder(tmp_path):
    """An artefact in its run, whose results are these."""
    run, view = tmp_path / "runs" / "mine", tiny_view()
    vector = Steering(Static(Static.Params()), {"v": view.unembed.weight[3].float().clone()}, Where(layer=1), 1.5)
    about = {"method": "static", "direction": "vision"}
    place = artefact.save(run / "artefacts" / "static-vision", vector, view, about)
    (run / "resolved.yaml").write_text(RECIPE.replace("RUNS", str(tmp_path / "runs")))
    row = {"benchmark": "scenes", "protocol": "scenes/open", "split": "test", "task": "all", "n": 64, "chosen": True}
    row |= about | {"metrics": {"follow": 0.75}, "ci": {"follow": [0.625, 0.875]}}
    others = [
        row | {"method": "none"},
        row | {"split": "dev"},
        row | {"split": "curve", "n": 16, "metrics": {"follow": 0.222}},
        row | {"label": "control: blank picture", "protocol": "scenes/blank", "metrics": {"text": 0.5}, "ci": {}},
        row | {"direction": "text", "metrics": {"follow": 0.111}},
    ]
    (run / "results.json").write_text(json.dumps({"rows": [row, *others]}))
    return place


def test_an_artefact_goes_to_the_hub_with_its_card_and_comes_back(hub, folder, tmp_path, capsys):
    assert main(["push", str(folder), "me/vector"]) == 0
    assert capsys.readouterr().out.strip() == f"{hub}/me/vector" and Hub.tokens == {"Bearer hf_secret"}
    card = Hub.repos["me/vector"]["README.md"].decode()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "steering-factory" and "activation-steering" in head["tags"]
    assert "| scenes (scenes/open) | test | 64 | follow | 0.750 | 0.625 to 0.875 |" in card
    assert "| control: blank picture (scenes/blank) | test | 64 | text | 0.500 |  |" in card
    assert "0.111" not in card and "0.222" not in card, "toward the other side; on a part of test"
    assert len({line.count("|") for line in card.splitlines() if line.startswith("|")}) == 1, "a cell for each column"
    for said in ("`tiny`", "revision", "strength: 1.5", "layer: 1", "factory.load", "factory.steered", "name: mine"):
        assert said in card
    assert main(["pull", "me/vector", "--to", str(tmp_path / "back")]) == 0
    assert capsys.readouterr().out.strip().endswith("back")
    for name in ("steering.safetensors", "steering_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()
    assert artefact.load(tmp_path / "back", tiny_view()).strength == 1.5
    assert main(["pull", "me/vector"]) == 0 and str(tmp_path / "HF_HUB_CACHE") in capsys.readouterr().out


def test_a_dry_run_shows_the_card_and_uploads_nothing(hub, folder, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(folder), "me/vector", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "steering.safetensors: " in said and "| follow | 0.750 |" in said and Hub.repos == {}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["push", "FOLDER", "no name"], "a repo is named OWNER/NAME"),
        (["push", "FOLDER", "vector"], "a repo is named OWNER/NAME"),
        (["push", ".", "me/vector"], "neither a steering artefact (RUN/artefacts/NAME) nor a trained part"),
        (["pull", "me/gone"], "cannot pull from me/gone: there is no such repo, or it is private"),
        (["pull", "me/other"], "me/other: holds neither a steering artefact nor a trained part"),
    ],
)
def test_what_cannot_be_shared_is_told_in_one_line(hub, folder, tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    Hub.repos["me/other"] = {"README.md": b"hello"}
    assert main([str(folder) if word == "FOLDER" else word for word in words]) == 2
    said = capsys.readouterr().err
    assert told in said.splitlines()[-1] and "Traceback" not in said


def test_without_a_token_or_a_network_one_line_says_so(hub, folder, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(folder), "me/vector"]) == 2
    assert "the hub cannot be reached" in (said := capsys.readouterr().err) and said.count("\n") == 1
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(folder), "me/vector"]) == 2
    assert "no token of the hub is here; log in with `hf auth login`, or set HF_TOKEN" in capsys.readouterr().err


def test_a_trained_part_has_a_card_too(tmp_path, capsys):
    view, tuner = tiny_view(), lookup("tuner", "lora")(lookup("tuner", "lora").Params())
    tuner.apply(view)
    try:
        tune.save(tmp_path / "tuned", tuner, view, {"data": "scenes"})
    finally:
        tuner.remove(view)
    assert main(["push", str(tmp_path), "me/lora", "--dry-run"]) == 0
    said = capsys.readouterr().out
    for words in ("tuner.safetensors: ", "# lora for Llava", "data: scenes", "tune.load", "Nothing was measured"):
        assert words in said


@pytest.mark.parametrize(("form", "library"), [("model", "transformers"), ("adapter", "peft")])
def test_what_export_has_written_is_pushed_with_its_card_and_loads_where_it_comes_down(
    form, library, hub, tmp_path, capsys
):
    run = tmp_path / "runs" / "short"
    (tmp_path / "tune.yaml").write_text(
        f"name: short\nmodel: {{path: {saved_tiny(tmp_path / 'model')}}}\ntune: {{tuner: {{type: lora, rank: 2}},"
        f" batch_size: 4, data: {{lessons: scenes, take: 4}}}}\nrun: {{root: {tmp_path / 'runs'}}}\n"
    )
    assert main([str(tmp_path / "tune.yaml")]) == 0
    assert main(["export", str(run), str(tmp_path / "out"), form]) == 0
    assert main(["push", str(tmp_path / "out"), "me/tuned"]) == 0
    card = Hub.repos["me/tuned"]["README.md"].decode()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == library and "name: short" in card and "from_pretrained" in card
    assert str(tmp_path / "out") not in card.split("## Recipe")[0], "no path of this machine in how it is loaded"
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert set(Hub.repos["me/tuned"]) == there and any(name.endswith(".safetensors") for name in there)
    assert main(["pull", "me/tuned", "--to", str(tmp_path / "back")]) == 0
    assert {p.name: p.read_bytes() for p in (tmp_path / "back").iterdir() if p.is_file()} == Hub.repos["me/tuned"]
    if form == "model":
        view, back = (factory.load(str(tmp_path / name)) for name in ("out", "back"))
        assert fingerprint(view) == fingerprint(back)
    (tmp_path / "out" / "README.md").unlink()
    capsys.readouterr()
    assert main(["push", str(tmp_path / "out"), "me/tuned"]) == 2
    assert "has no README.md, the card of a shared model" in capsys.readouterr().err
