"""The run directory: one folder a run, one folder a stage, resumable after a kill at any moment.

    runs/NAME/
      run.json         which recipe owns the folder
      recipe.yaml      the recipe as given            resolved.yaml   with defaults and overrides
      environment.json versions, machine, commit      events.jsonl    what happened when
      STAGE/inputs.json     what the stage was computed from, and its digest
      STAGE/chunks/         KEY.{safetensors,jsonl,json}, each beside KEY.sha256 (`sha256sum -c` reads those)
      STAGE/summary.json    written last: its being there means that the stage is done

A stage whose inputs changed starts afresh; a finished one is skipped; an unfinished one goes on with its next chunk.

Several ranks may share a run: the first holds the lock, starts and finishes the stages; all compute chunks, and read
each other's. They call the same methods in the same order.
"""

import errno
import fcntl
import os
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import yaml

from factory import files
from factory.errors import UserError
from factory.launch.world import World
from factory.run import chunks, owner
from factory.run.chunks import Value
from factory.run.environment import environment
from factory.stopwatch import chunk
from factory.terminal import warn

SEEN_WITHIN = 30.0  # seconds until a shared file system has to show on one host what another has written

SCHEMA = 2  # of inputs.json; those of 1 do not hold the code of plugins
OLDER = (
    "this run was made by an older version, which did not record the code of its methods: its stages are computed anew,"
    " once"
)

SUM = "sha256"  # of what else a summary holds
# Held open until `close` or the end of the process: closing any handle of a file drops the process's lock on it.
_locks: dict[Path, int] = {}


_watcher: ContextVar[Callable[["Stage", str], None] | None] = ContextVar("watcher", default=None)


@contextmanager
def watched_stores(watcher: Callable[["Stage", str], None]) -> Iterator[None]:
    """Within the block ``watcher(stage, key)`` is called before each computed chunk is stored, on the rank that stores
    it; what it raises ends the run there.
    """
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


class RunDir:
    """One run's folder, held by one process at a time or by the ranks of one. Use as a context manager, or `close`
    it.
    """

    def __init__(self, path: Path, owner: bool, world: World):
        self.path, self.owner, self.world = path, owner, world
        self.said: set[str] = set()
        self.prefix = ""

    @classmethod
    def open(
        cls,
        root: Path,
        name: str,
        recipe_path: Path,
        recipe_text: str,
        resolved: Mapping[str, Any],
        world: World | None = None,
    ) -> Self:
        """Create or reopen `root/name` for this recipe, locked until `close` or the end of the process.

        Of several ranks the first does so; the others join once it has. Raises `UserError` when the folder cannot be
        written, is in use by another process, belongs to another recipe (neither its path nor its text is the stored
        one), holds something that is not a run, or is not the same folder on every rank's host.
        """
        world = world or World()
        run = cls((Path(root) / owner.plain_name(name, "run name")).resolve(), world.first, world)
        if run.owner:
            run._open(Path(recipe_path), recipe_text, resolved)
        run._check_shared(files.digest(resolved))
        return run

    def _open(self, recipe_path: Path, recipe_text: str, resolved: Mapping[str, Any]) -> None:
        files.make_folder(self.path)
        owner.refuse_stranger(self.path)
        _lock(self.path)
        try:
            identity = owner.identity(self.path, recipe_path, recipe_text)
            owner.refuse_other_recipe(self.path, identity)
            self._clean()
            self._record(identity, recipe_text, resolved)
        except BaseException:
            self.close()
            raise

    def _check_shared(self, recipe: str) -> None:
        """Refuse ranks that were given another recipe, or that do not see what the first has written."""
        here = f"rank {self.world.rank} on {socket.gethostname()}"
        if self.world.agree("recipe", recipe) != recipe:
            raise UserError(
                f"{here} was given another recipe than the first rank. Start the same command on every host."
            )
        opened, deadline = (
            self.world.agree("opened", owner.state(self.path / "run.json")),
            time.monotonic() + SEEN_WITHIN,
        )
        while owner.state(self.path / "run.json") != opened:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{here} does not see the run folder of the first rank at {self.path}. All hosts must share the"
                    " folder: add run.root=FOLDER to the command."
                )
            time.sleep(0.1)
        self.world.meet("the run folder is shared")

    def part(self, name: str) -> Self:
        """The same run for one of several like parts: its stages' names begin with `name`. It is not to be closed."""
        part = copy(self)
        part.prefix = f"{self.prefix}{name}-"
        return part

    def stage(self, name: str, inputs: Mapping[str, Any]) -> "Stage":
        """The stage `name`, computed from `inputs` (JSON-able; put the digests of the stages it reads among them)."""
        name = owner.plain_name(f"{self.prefix}{name}", "stage name")
        stage = Stage(self, name, inputs) if self.owner else None
        self.world.meet(f"stage {name} is there")
        stage = stage or Stage(self, name, inputs)
        self.world.meet(f"stage {name} is known to all")
        return stage

    def event(self, event: str, /, **fields: Any) -> None:
        """Append one line to events.jsonl: UTC time, this process's processor seconds so far, event, JSON-able
        fields.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        files.append_jsonl(
            self.path / "events.jsonl",
            {"time": now, "processor": round(time.process_time(), 3), "event": event, **fields},
        )

    def events(self) -> list[dict[str, Any]]:
        """All events so far, oldest first; a line torn by a kill is left out."""
        return files.read_log(self.path / "events.jsonl")

    def close(self) -> None:
        """Release the lock; no stage can be started afterwards."""
        if self.owner:
            self.owner = False
            os.close(_locks.pop(self.path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _clean(self) -> None:
        files.remove_temporary(self.path)
        for discarded in self.path.glob(owner.DISCARDED + "*"):
            _remove(discarded)

    def _record(self, identity: Mapping[str, Any], recipe_text: str, resolved: Mapping[str, Any]) -> None:
        surroundings = environment()
        files.write_json(self.path / "run.json", {**identity, "opened": uuid4().hex})
        files.write_text(self.path / "recipe.yaml", recipe_text)
        files.write_text(
            self.path / "resolved.yaml", yaml.safe_dump(dict(resolved), sort_keys=False, allow_unicode=True)
        )
        files.write_json(self.path / "environment.json", surroundings)
        self.event("run_opened", pid=os.getpid(), host=socket.gethostname(), environment=surroundings)


class Stage:
    """One stage of a run: `path` (its folder), `digest` (of its inputs), `summary` (once it is `done`), chunks."""

    def __init__(self, run: RunDir, name: str, inputs: Mapping[str, Any]):
        self.run = run
        self.name = name
        self.path = run.path / name
        self.digest = files.digest(inputs)
        stored = owner.state(self.path / "inputs.json")
        if stored is None or stored.get("digest") != self.digest:
            self._start(inputs, stored)
        self._summary = _whole(owner.state(self.path / "summary.json"))

    @property
    def done(self) -> bool:
        """Whether the stage was finished with these very inputs."""
        return self._summary is not None

    @property
    def summary(self) -> dict[str, Any]:
        """What a finished stage has kept."""
        assert self._summary is not None, f"stage {self.name} is not done"
        return self._summary

    def missing(self, keys: Iterable[str | int]) -> list[str | int]:
        """The keys not stored yet, in order. Cheap: contents are verified when `chunk` reads them."""
        return [key for key in keys if not self._seal(key).exists()]

    def chunk(self, key: str | int, compute: Callable[[], Value]) -> Value:
        """The value stored under `key` (1 and "1" are the same key), computed and stored where there is none.

        Values: dict of tensors (safetensors), list of dicts (JSONL) or dict (JSON). The value handed back has always
        been through its file format, so a first run and a resumed one go on from the same: tensors detached, on the
        CPU and in the order of their names, tuples as lists. A damaged file is noted in the events and computed again.
        """
        stored = self._load(key)
        if stored is not None:
            return stored
        with chunk(self.name, str(key)):
            return self._store(key, compute())

    def stored(self) -> list[str]:
        """The names of all chunks that are stored, in order; those of keys that are plain names are the keys."""
        return sorted(seal.stem for seal in (self.path / "chunks").glob("*.sha256"))

    def read(self, key: str | int) -> Any:
        """The value stored under ``key``, and None where there is none or it is damaged."""
        return self._load(key)

    def gather(
        self, work: Mapping[str, Callable[[], Value]], progressed: Callable[[int], None] | None = None
    ) -> list[Value]:
        """The values of all keys of `work`, in order, each as by `chunk`; of several ranks each computes a share.

        `progressed` is called with the number of values computed so far that had not been stored before, by all ranks.
        """
        world, own = self.run.world, {}
        fresh, count = set(self.missing(work)), world.turn(f"computed for {self.name}")
        tell = (lambda: progressed(world.tally(count))) if progressed else None
        world.meet(f"stage {self.name} begins")
        for key in world.share(list(work)):
            own[key] = self.chunk(key, work[key])
            world.tally(count, int(key in fresh and world.stores))
            if tell:
                tell()
        world.meet(f"stage {self.name} is computed", tell)
        return [own[key] if key in own and world.stores else self.chunk(key, compute) for key, compute in work.items()]

    def forget(self, key: str | int) -> None:
        """Let the next start compute `key` again."""
        if self.run.owner:
            self._seal(key).unlink(missing_ok=True)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Mark the stage done and keep `summary` (JSON-able) for later starts."""
        if not self.run.owner:
            self._summary = files.decode_json(files.encode_json(dict(summary)))
            return
        path = self.path / "summary.json"
        kept = files.decode_json(files.encode_json(dict(summary)))
        files.write_json(path, {**kept, SUM: files.digest(kept)})
        self._summary = _whole(files.read_json(path))
        self.run.event("stage_finished", stage=self.name, digest=self.digest)

    def _start(self, inputs: Mapping[str, Any], stored: Mapping[str, Any] | None) -> None:
        if self.run.world.first and not self.run.owner:
            raise RuntimeError(f"stage {self.name}: the run is closed")
        if not self.run.owner:
            rank = f"rank {self.run.world.rank} on {socket.gethostname()}"
            raise UserError(
                f"{rank} would compute stage {self.name} from other inputs than the first rank: compare their models,"
                " data and versions"
            )
        if self.path.exists():
            self._discard("inputs changed" if stored else "no record of its inputs")
            self._say_why(inputs, stored)
        about = {"schema": SCHEMA, "digest": self.digest, "inputs": inputs}
        files.write_json(self.path / "inputs.json", about)
        self.run.event("stage_started", stage=self.name, digest=self.digest)

    def _say_why(self, inputs: Mapping[str, Any], stored: Mapping[str, Any] | None) -> None:
        """One line on why the stage is computed anew; of a run of an older version one for all stages."""
        if stored is None:
            why = f"{self.name}: computed anew: there was no record of what it was computed from"
        elif stored.get("schema") != SCHEMA:
            why = OLDER
        else:
            new, old = files.decode_json(files.encode_json(dict(inputs))), stored.get("inputs")
            old = old if isinstance(old, dict) else {}
            changed = [key for key in dict.fromkeys([*new, *old]) if new.get(key) != old.get(key)]
            why = f"{self.name}: computed anew: other {', '.join(changed)}"
        if why not in self.run.said:
            self.run.said.add(why)
            warn(why)

    def _discard(self, reason: str) -> None:
        # Renamed first: a kill during the slow removal must not leave half a stage that looks whole.
        discarded = self.run.path / f"{owner.DISCARDED}{self.name}"
        with files.explained(self.path, "discard"):
            os.replace(self.path, discarded)
        self.run.event("stage_discarded", stage=self.name, reason=reason)
        _remove(discarded)

    def _seal(self, key: str | int) -> Path:
        return self.path / "chunks" / f"{files.file_name(str(key))}.sha256"

    def _load(self, key: str | int) -> Any:
        seal = self._seal(key)
        if not seal.exists():
            return None
        try:
            return chunks.unseal(seal)
        except (FileNotFoundError, IsADirectoryError, ValueError) as error:
            self.run.event("chunk_damaged", stage=self.name, chunk=str(key), reason=str(error))
            return None

    def _store(self, key: str | int, value: Value) -> Value:
        suffix, data, decode = chunks.encoded(value)
        if not self.run.world.stores:
            return decode(data)
        if (watcher := _watcher.get()) is not None:
            watcher(self, str(key))
        seal = self._seal(key)
        path = seal.with_suffix(suffix)
        files.write_bytes(path, data)
        files.write_text(seal, f"{files.digest_bytes(data)}  {path.name}\n")
        return decode(data)


def _whole(summary: dict[str, Any] | None) -> dict[str, Any] | None:
    """A stage's summary without its checksum; None where it is not what ``Stage.finish`` wrote."""
    told = summary.pop(SUM, None) if summary is not None else None
    return summary if summary is not None and told == files.digest(summary) else None


def _remove(folder: Path) -> None:
    with files.explained(folder, "remove"):
        shutil.rmtree(folder)


def _lock(folder: Path) -> None:
    if folder in _locks:
        raise UserError(f"{folder}: this run is already open in this process. Close it first.")
    with files.explained(folder):
        lock = os.open(folder / owner.LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        if not stat.S_ISREG(os.fstat(lock).st_mode):
            os.close(lock)
            raise UserError(f"{folder / owner.LOCK}: {files.ENDLESS}. Remove it.")
        try:
            # A record lock: forked data loader workers do not inherit it, so one that outlives a kill blocks nobody.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.truncate(lock, 0)
            os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
        except OSError as error:
            holder = os.read(lock, 200).decode() or "another process"
            os.close(lock)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise UserError(
                f"{folder}: in use by {holder}. Wait until it ends, or add name=OTHER to the command."
            ) from error
    _locks[folder] = lock
