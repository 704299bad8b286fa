"""ard.files: atomic writes, stable JSON, bad lines, ledgers that survive a kill, publishing."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ard import files


def test_atomic_write_replaces_and_leaves_no_temporary(tmp_path):
    path = files.atomic_write_bytes(tmp_path / "new" / "a.bin", b"1")
    files.atomic_write_bytes(path, b"22")
    assert path.read_bytes() == b"22" and os.listdir(path.parent) == ["a.bin"]


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = files.atomic_write_text(tmp_path / "a.txt", "old")

    def full(_):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        files.atomic_write_text(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_json_is_stable_sorted_and_ends_with_newline(tmp_path):
    a = files.atomic_write_json(tmp_path / "a.json", {"b": 1, "a": [1.5, None]}).read_bytes()
    b = files.atomic_write_json(tmp_path / "b.json", {"a": [1.5, None], "b": 1}).read_bytes()
    assert a == b and a.endswith(b"\n") and a.index(b'"a"') < a.index(b'"b"')
    with pytest.raises(ValueError):
        files.atomic_write_json(tmp_path / "nan.json", float("nan"))


def test_lists_of_numbers_take_one_line_and_nothing_else_changes(tmp_path):
    value = {"box": [1.5, -2, 3e-07], "rows": [[1, 2], [3]], "words": ["[\n 1\n]", "a"], "mixed": [1, None], "none": [], "deep": [{"a": [4]}]}
    file = files.atomic_write_json(tmp_path / "a.json", value)
    assert files.read_json(file) == value
    lines = [line.strip() for line in file.read_text().splitlines()]
    assert '"box": [1.5, -2, 3e-07],' in lines and "[1, 2]," in lines and '"a": [4]' in lines and "null" in lines


def test_read_json_names_the_file_and_reason(tmp_path):
    with pytest.raises(files.FileError, match="gone.json: no such file"):
        files.read_json(tmp_path / "gone.json")
    (tmp_path / "torn.json").write_text('{"a": ')
    with pytest.raises(files.FileError, match="torn.json: not valid JSON"):
        files.read_json(tmp_path / "torn.json")


@settings(deadline=None)  # files are flushed to disk, which takes as long as others let it
@given(st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3), max_size=5))
def test_jsonl_round_trip(rows):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        assert files.read_jsonl(files.write_jsonl(f"{folder}/a.jsonl", rows)) == (rows, [])


def test_jsonl_lists_bad_lines_and_keeps_good_ones(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n[1]\n\n{"a": \n\xff\n{"a": 2}')
    rows, bad = files.read_jsonl(path)
    assert rows == [{"a": 1}, {"a": 2}]
    assert [message.split(":")[1] for message in bad] == ["2", "4", "5"] and "expected an object" in bad[0]
    with pytest.raises(files.FileError, match="no such file"):
        files.read_jsonl(tmp_path / "gone.jsonl")


def test_hashes_agree(tmp_path):
    path = files.atomic_write_bytes(tmp_path / "d" / "a", b"x")
    assert files.sha256_file(path) == files.sha256_bytes(b"x") == files.sha256_tree(path)
    before = files.sha256_tree(tmp_path / "d")
    path.rename(tmp_path / "d" / "b")
    assert files.sha256_tree(tmp_path / "d") != before and files.sha256_tree(tmp_path / "none") == "missing"


def test_ledger_survives_a_torn_last_line(tmp_path):
    ledger = files.Ledger(tmp_path / "done.jsonl")
    ledger.add("a", seconds=1)
    ledger.add("b")
    with open(ledger.path, "ab") as stream:
        stream.write(b'{"key": "c", "sec')
    again = files.Ledger(ledger.path)
    assert again.keys() == ["a", "b"] and again["a"] == {"seconds": 1} and "c" not in again and len(again) == 2
    again.add("c")
    assert [json.loads(line)["key"] for line in ledger.path.read_text().splitlines()] == ["a", "b", "c"]


def test_what_a_ledger_says_is_read_again_in_its_order(tmp_path):
    """Rows of tables come in the order of answers: a run that was killed must not change it."""
    ledger = files.Ledger(tmp_path / "done.jsonl")
    ledger.add("a", answers={"ARD-": [2], "ARD": [1]}, after=0)
    again = files.Ledger(ledger.path)
    assert list(again["a"]) == list(ledger["a"]) == ["answers", "after"] and list(again["a"]["answers"]) == ["ARD-", "ARD"]


def test_ledger_refuses_a_broken_middle(tmp_path):
    (tmp_path / "done.jsonl").write_text("nonsense\n")
    with pytest.raises(files.FileError, match="done.jsonl:1: not a ledger row"):
        files.Ledger(tmp_path / "done.jsonl")


def test_publish_replaces_file_and_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ARD_WORK", str(tmp_path / "work"))
    for content in ("one", "two"):
        files.atomic_write_text(files.work_dir("images") / f"{content}.txt", content)
        assert files.publish(files.work_dir("images"), tmp_path / "data" / "images").is_dir()
        files.publish(files.atomic_write_text(files.work_dir(".") / "a.txt", content), tmp_path / "data" / "a.txt")
    assert os.listdir(tmp_path / "data" / "images") == ["two.txt"]
    assert (tmp_path / "data" / "a.txt").read_text() == "two" and len(os.listdir(tmp_path / "data")) == 2


def test_arrays_are_made_once_and_a_torn_chunk_is_named(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return {"a": np.arange(3), "names": np.array(["x", "yz"])}

    first, again = (files.kept_arrays(tmp_path / "parts/0.npz", make) for _ in range(2))
    assert len(calls) == 1 and all(np.array_equal(first[k], again[k]) for k in ("a", "names"))
    assert np.array_equal(files.kept_arrays(None, make)["a"], np.arange(3)) and len(calls) == 2
    whole = (tmp_path / "parts/0.npz").read_bytes()
    for torn in (b"torn", whole[:-20]):
        (tmp_path / "parts/0.npz").write_bytes(torn)
        with pytest.raises(files.FileError, match="0.npz.*delete it"):
            files.kept_arrays(tmp_path / "parts/0.npz", make)


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = files.atomic_write_text(tmp_path / "a.txt", "old")

    def killed(source, target):
        assert Path(source).parent == tmp_path and Path(source).read_text() == "new" and Path(target).read_text() == "old"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            files.atomic_write_text(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_what_is_written_others_may_read(tmp_path):
    assert files.atomic_write_text(tmp_path / "a.txt", "x").stat().st_mode & 0o777 == 0o644


def test_the_hash_of_a_folder_knows_where_files_stand_and_not_what_python_leaves_or_the_disk_lists_first(tmp_path, monkeypatch):
    for name in ("one/a", "two/b"):
        files.atomic_write_text(tmp_path / name, "x")
    first = files.sha256_tree(tmp_path)
    files.atomic_write_text(tmp_path / "one/__pycache__/a.pyc", "y")
    assert files.sha256_tree(tmp_path) == first
    listed = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: reversed(sorted(listed(self, pattern))))
    assert files.sha256_tree(tmp_path) == first
    (tmp_path / "one/a").rename(tmp_path / "two/a")
    assert files.sha256_tree(tmp_path) != first


def test_rows_with_numbers_that_are_none_are_refused(tmp_path):
    with pytest.raises(ValueError):
        files.write_jsonl(tmp_path / "a.jsonl", [{"x": float("nan")}])
    ledger = files.Ledger(tmp_path / "done.jsonl")
    with pytest.raises(ValueError):
        ledger.add("a", x=float("inf"))
    assert "a" not in ledger and len(files.Ledger(ledger.path)) == 0
