"""Files on disk: atomic writes, JSON and JSONL, hashes, and what makes a stage resumable: work folder, ledger, publish.

Every other module writes through here, so that nothing half-written ever stands under a final name (DESIGN 9).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, Callable, Iterable
from zipfile import BadZipFile

import numpy as np

PathLike = str | os.PathLike
NUMBERS = re.compile(r"\[\n\s+([-+.,\deE\s]+?)\n\s*\]")  # a list of numbers in indented JSON, one a line


class FileError(ValueError):
    """A file that cannot be used: the message names the file, what is wrong with it, and what to do."""


def atomic_write_bytes(path: PathLike, data: bytes) -> Path:
    """Write `data` to a temporary name beside `path`, flush it to the disk, then rename it. Parents are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def atomic_write_text(path: PathLike, text: str) -> Path:
    """Write `text` as UTF-8 with the line ends as they are. See `atomic_write_bytes`."""
    return atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: PathLike, obj: Any) -> Path:
    """Write `obj` as stable JSON: sorted keys, two-space indent, a newline at the end; NaN and infinity are refused.

    A list of numbers stands on one line: boxes and run lengths would take a line for each number.
    """
    text = json.dumps(obj, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return atomic_write_text(path, NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n")


def read_json(path: PathLike) -> Any:
    """Read a JSON file. Raises FileError when it is missing or broken."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileError(f"{path}: no such file; the stage that writes it must run first (dvc repro)") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: not valid JSON ({error}); restore it or run its stage again") from None


def read_jsonl(path: PathLike) -> tuple[list[dict], list[str]]:
    """Read a JSONL file of objects: good rows, and `file:line: reason` for each bad one. Blank lines are skipped."""
    path = Path(path)
    if not path.is_file():
        raise FileError(f"{path}: no such file; the stage that writes it must run first (dvc repro)")
    rows, bad = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            bad.append(f"{path}:{number}: not valid JSON ({error})")
            continue
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad.append(f"{path}:{number}: expected an object, found {type(row).__name__}")
    return rows, bad


def write_jsonl(path: PathLike, rows: Iterable[dict]) -> Path:
    """Write one object a line with sorted keys and no blanks between them, atomically."""
    lines = [json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n" for row in rows]
    return atomic_write_text(path, "".join(lines))


def sha256_bytes(data: bytes) -> str:
    """Hexadecimal sha256 of `data`.

    >>> sha256_bytes(b"")[:8]
    'e3b0c442'
    """
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: PathLike) -> str:
    """Hexadecimal sha256 of a file's content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_tree(path: PathLike) -> str:
    """Hexadecimal sha256 of a file, or of a folder's sorted (relative name, content hash) pairs; or 'missing'."""
    path = Path(path)
    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        return "missing"
    files = sorted(p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return sha256_bytes("".join(f"{p.relative_to(path).as_posix()} {sha256_file(p)}\n" for p in files).encode())


def kept_arrays(path: PathLike | None, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of an npz file, made and written first when it is not there; with path None they are only made.

    For long work in chunks: a killed run finds the finished ones. The name must tell all that the arrays depend on.
    """
    if path is None:
        return make()
    if not Path(path).is_file():
        buffer = io.BytesIO()
        np.savez(buffer, **make())
        atomic_write_bytes(path, buffer.getvalue())
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise FileError(f"{path}: not a chunk of arrays ({error}); delete it and run again") from None


class Ledger:
    """Append-only JSONL of finished item keys. Add a key only after its data is safe; opening drops a torn last line.

    >>> ledger = Ledger(Path(tempfile.mkdtemp()) / "done.jsonl")
    >>> ledger.add("item 1", seconds=3); "item 1" in ledger, ledger["item 1"]
    (True, {'seconds': 3})
    """

    def __init__(self, path: PathLike):
        self.path = Path(path)
        self._done: dict[str, dict] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = self.path.read_bytes() if self.path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            atomic_write_bytes(self.path, whole)
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                self._done[row.pop("key")] = row
            except (json.JSONDecodeError, KeyError, AttributeError, UnicodeDecodeError):
                raise FileError(f"{self.path}:{number}: not a ledger row; delete the file to start over") from None

    def add(self, key: str, **facts: Any) -> None:
        """Record that item `key` is finished, with small JSON facts about it, which keep their order; safe on the disk when this
        returns."""
        line = json.dumps({"key": key, **facts}, allow_nan=False) + "\n"
        with open(self.path, "ab") as stream:
            stream.write(line.encode("utf-8"))
            stream.flush()
            os.fsync(stream.fileno())
        self._done[key] = facts

    def __contains__(self, key: str) -> bool:
        return key in self._done

    def __getitem__(self, key: str) -> dict:
        return self._done[key]

    def __len__(self) -> int:
        return len(self._done)

    def keys(self) -> list[str]:
        """Finished keys in the order in which they were added."""
        return list(self._done)


def work_dir(name: str) -> Path:
    """Folder for unfinished work called `name`: survives a kill; dropped when code, parameters or inputs change.

    A stage writes items and its Ledger here and `publish`es the finished folder. Run by hand it is `.run/hand/name`.
    """
    path = Path(os.environ.get("ARD_WORK", ".run/hand")) / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def publish(source: PathLike, target: PathLike) -> Path:
    """Move a finished file or folder to its final name, in place of what stood there."""
    source, target = Path(source), Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.is_dir():
        os.replace(source, target)
        return target
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    os.replace(target, old / "old")
    os.replace(source, target)
    shutil.rmtree(old)
    return target
