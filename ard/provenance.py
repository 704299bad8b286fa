"""What a result was made by: hashes of the code a notebook reaches, of its parameters and inputs, and library versions.

The runner records it beside the executed notebook; `stamp()` is the last cell of every notebook; `python -m
ard.provenance` is the DVC stage `code`: one small file of code hashes per notebook, for the other stages to depend on.
"""

from __future__ import annotations

import ast
import io
import json
import os
import platform
import shutil
import subprocess
import tokenize
from collections.abc import Collection
from functools import cache
from importlib import metadata
from pathlib import Path

from ard.files import FileError, PathLike, atomic_write_json, read_json, sha256_bytes, sha256_file

# Plumbing that moves results about but cannot change them: editing it makes no stage stale.
PLUMBING = {f"ard/{name}.py" for name in ("__init__", "config", "files", "notebook", "provenance", "run", "stages")}
ROOT = Path(__file__).resolve().parents[1]  # of the repository, whose code is hashed wherever a profile works
CODE = {".py", ".pyc"}
LIBRARIES = ("torch", "torchvision", "transformers", "diffusers", "timm", "numpy", "pillow", "safetensors")


@cache
def meaning(source: str) -> str:
    """Python source without comments, docstrings, blank lines and trailing blanks: what its hash is taken of.

    Text that is not plain Python (magics) stays as it is. Equal under all Python versions, unlike `ast.dump`.

    >>> meaning('x = 1  # one' + chr(10) * 2 + '# two') == 'x = 1'
    True
    """
    try:
        tree = ast.parse(source)
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, tokenize.TokenError):
        return source
    lines = source.splitlines()
    for token in tokens:
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] = lines[token.start[0] - 1][: token.start[1]]
    for node in ast.walk(tree):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if documented and ast.get_docstring(node, clean=False) is not None:
            text = node.body[0]
            if not lines[text.lineno - 1][: text.col_offset].strip():
                lines[text.lineno - 1 : text.end_lineno] = [""] * (text.end_lineno - text.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def notebook_source(path: PathLike) -> str:
    """The `meaning` of a notebook's code cells, one after another. Outputs, counts and text do not matter."""
    notebook = read_json(path)
    cells = [cell for cell in notebook.get("cells", []) if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    return "\n# %%\n".join(meaning(source) for source in sources)


def reached(source: str, root: PathLike = ".", stop: Collection[str] = ()) -> list[str]:
    """Files of package `ard` that `source` imports, directly or through others: sorted posix paths below `root`.

    What a file named in `stop` imports is not followed.
    """
    root, found, waiting = Path(root), set(), [(source, "")]
    while waiting:
        text, package = waiting.pop()
        for module in _imports(text, package):
            parts = module.split(".")
            for length in range(1, len(parts) + 1):
                stem = root.joinpath(*parts[:length])
                file = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
                name = file.relative_to(root).as_posix()
                if name not in found and file.is_file():
                    found.add(name)
                    inside = parts[:length] if stem.is_dir() else parts[: length - 1]
                    if name not in stop:
                        waiting.append((file.read_text(encoding="utf-8"), ".".join(inside)))
    return sorted(found)


@cache
def _imports(source: str, package: str) -> list[str]:
    """Dotted names below `ard` that `source` imports; `from a import b` gives `a.b` too, as b may be a module."""
    try:
        tree = ast.parse("\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))))
    except SyntaxError as error:
        raise FileError(f"cannot read the imports of this code: {error}") from None
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names += [f"{base}.{alias.name}" for alias in node.names]
    return [name for name in names if name.split(".")[0] == "ard"]


def code_of(notebook: PathLike, root: PathLike = ".") -> dict[str, str]:
    """{file: sha256 of its meaning} for a notebook's code cells and the ard modules and packaged data it reaches."""
    source = notebook_source(notebook)
    return {Path(notebook).name: sha256_bytes(source.encode()), **code_reached(source, root)}


def code_reached(source: str, root: PathLike = ".") -> dict[str, str]:
    """{file: sha256 of its meaning} for the ard modules that `source` reaches, but plumbing, and the data beside them."""
    root = Path(root)
    modules = [name for name in reached(source, root) if name not in PLUMBING]
    hashes = {name: sha256_bytes(meaning((root / name).read_text(encoding="utf-8")).encode()) for name in modules}
    packages = [root / name for name in modules if name.endswith("/__init__.py")]
    beside = [path for package in packages for path in package.parent.iterdir()]
    data = [path for path in beside if path.is_file() and path.suffix not in CODE]
    return hashes | {path.relative_to(root).as_posix(): sha256_file(path) for path in data}


def digest(value: object) -> str:
    """sha256 of a JSON value with sorted keys; tuples count as lists."""
    return sha256_bytes(json.dumps(value, sort_keys=True).encode())


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that can change a number."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit(root: PathLike = ".") -> str:
    """The commit of the working tree, with '+' when it holds changes; 'unknown' outside git."""
    try:
        run = [subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
               for args in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run[0] + ("+" if run[1] else "")


def stamp() -> None:
    """Print what made this notebook's results: its last cell. The runner tells it through ARD_PROVENANCE."""
    facts = json.loads(os.environ.get("ARD_PROVENANCE", "{}"))
    for key in ("notebook", "profile", "code_sha256", "params_sha256"):
        print(f"{key:14}{facts.get(key, 'unknown: run by hand, not by python -m ard.run')}")
    print(f"{'versions':14}" + ", ".join(f"{name} {version}" for name, version in versions().items()))


def write_code_files(root: PathLike = ".", target: PathLike = ".code") -> list[Path]:
    """Write `target`/NN_name.json, the `code_of` each notebook, for DVC stages to depend on; old ones are removed."""
    shutil.rmtree(target, ignore_errors=True)
    notebooks = [path for path in sorted(Path(root, "notebooks").rglob("[0-9][0-9]_*.ipynb")) if source_notebook(path)]
    return [atomic_write_json(Path(target) / f"{path.stem}.json", code_of(path, root)) for path in notebooks]


def source_notebook(path: Path) -> bool:
    """Whether a path is a notebook's source, not an executed or a checkpoint copy."""
    return not {"executed", ".ipynb_checkpoints"} & set(path.parts)


if __name__ == "__main__":
    write_code_files()
