"""Examples on disk: what is written comes back, and what is damaged, foreign or cut off is refused by name."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import resource
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from psynth_jax.data import shards
from psynth_jax.data.example import BranchTokens, Example, lengths_of
from psynth_jax.data.shards import Shard, ShardWriter, Vocabulary, from_bytes, open_shards, to_bytes
from psynth_jax.data.synthetic import KINDS
from psynth_jax.errors import DataError, InputError

WORDS = Vocabulary("f00d", 97, 5, "tiny")
FILES = ("examples.array_record", "lengths.npy", "task.json")


def tokens(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, count]).integers(0, 97, count).astype(np.int32)


def example(seed: int, name: str = "né-1") -> Example:
    sizes = [[(3, 4), (0, 9)], [(0, 1)], [(5, 2), (1, 1), (0, 7)]][seed % 3]
    branches = tuple(BranchTokens(tokens(prefix, seed), tokens(kept, seed + 1)) for prefix, kept in sizes)
    return Example(name, "qa", tokens(6, seed), tokens(11, seed), tokens(2, seed), branches)


def plain(value: Example) -> tuple[object, ...]:
    branches = [(branch.prefix.tolist(), branch.kept.tolist()) for branch in value.branches]
    return value.id, value.task, value.prompt.tolist(), value.pasted.tolist(), value.target.tolist(), branches


EXAMPLES = [example(seed, f"né-{seed}") for seed in range(30)]


def write(directory: Path, examples: list[Example] = EXAMPLES, task: str = "qa", words: Vocabulary = WORDS) -> Path:
    with ShardWriter(directory, task, words) as writer:
        for each in examples:
            writer.add(each)
        writer.source["name"] = "test"
        writer.dropped["too odd"] = 3
    return directory / task


def write_and_fail(directory: Path, error: BaseException) -> None:
    with ShardWriter(directory, "qa", WORDS) as writer:
        writer.add(EXAMPLES[0])
        raise error


class TestBytes:
    @pytest.mark.parametrize("seed", range(3))
    def test_come_back(self, seed: int) -> None:
        stored = to_bytes(example(seed))
        found = from_bytes(stored, "qa")
        assert plain(found) == plain(example(seed))
        assert found.prompt.dtype == np.int32 and not found.prompt.flags.writeable

    def test_are_four_a_token_and_little_more(self) -> None:
        each = example(0)
        header = 4 * (5 + 2 * 2)
        assert len(to_bytes(each)) == header + 4 * (6 + 11 + 2 + 3 + 4 + 9) + len("né-1".encode())

    @pytest.mark.parametrize("cut", [0, 3, 16, 30, 60, -1, -4])
    def test_cut_off(self, cut: int) -> None:
        with pytest.raises(DataError):
            from_bytes(to_bytes(example(0))[:cut], "qa")

    @pytest.mark.parametrize("place", range(9))
    @pytest.mark.parametrize("value", [-1, 1_000_000])
    def test_wrong_lengths(self, place: int, value: int) -> None:
        stored = np.frombuffer(to_bytes(example(0, "four")), np.int32).copy()
        stored[place] = value
        with pytest.raises(DataError):
            from_bytes(stored.tobytes(), "qa")


def test_longest_kept_need_not_be_the_longest_prefilled() -> None:
    two = (BranchTokens(tokens(7), tokens(1)), BranchTokens(tokens(0), tokens(5)))
    found = lengths_of(Example("a", "qa", tokens(1), tokens(1), tokens(2), two))
    assert (found.branches, found.prefilled, found.kept, found.all_prefilled) == (2, 8, 5, 13)


class TestShard:
    def test_everything_comes_back(self, tmp_path: Path) -> None:
        shard = Shard(write(tmp_path), "f00d")
        assert len(shard) == 30 and shard.task == "qa"
        assert [plain(shard[index]) for index in range(30)] == [plain(each) for each in EXAMPLES]
        assert plain(shard[17]) == plain(EXAMPLES[17]) and plain(shard[-1]) == plain(EXAMPLES[-1])
        assert plain(shard[np.int64(3)]) == plain(EXAMPLES[3])
        for index in (30, -31):
            with pytest.raises(IndexError):
                shard[index]

    def test_lengths(self, tmp_path: Path) -> None:
        shard = Shard(write(tmp_path))
        assert shard.lengths.tolist() == [list(lengths_of(each)) for each in EXAMPLES]
        assert shard.lengths.dtype == np.int32 and not shard.lengths.flags.writeable

    def test_info(self, tmp_path: Path) -> None:
        info = Shard(write(tmp_path)).info
        expected = {"format": 1, "task": "qa", "count": 30, "tokenizer": "f00d", "vocabulary": 97, "end_id": 5}
        assert expected.items() < info.items()
        assert (info["model"], info["source"], info["dropped"]) == ("tiny", {"name": "test"}, {"too odd": 3})

    def test_files(self, tmp_path: Path) -> None:
        first, second = write(tmp_path / "a"), write(tmp_path / "b")
        assert sorted(file.name for file in first.iterdir()) == sorted(FILES)
        assert [path.name for path in (tmp_path / "a").iterdir()] == ["qa"]
        assert all((first / name).read_bytes() == (second / name).read_bytes() for name in FILES)

    def test_is_opened_again_by_another_process(self, tmp_path: Path) -> None:
        shard = Shard(write(tmp_path), "f00d")
        assert shard[0].id == "né-0"  # the file is open here
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.map(shard.__getitem__, [4])[0].id == "né-4"

    def test_replaces_what_was_there(self, tmp_path: Path) -> None:
        write(tmp_path)
        assert len(Shard(write(tmp_path, EXAMPLES[:2]))) == 2


class TestRefused:
    def test_other_tokenizer(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="prepared with the tokenizer of tiny, which is another"):
            Shard(write(tmp_path), "beef")

    def test_other_wording(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        directory = write(tmp_path)
        monkeypatch.setattr("psynth_jax.prompts.SYNTHESIS_TEXT", "Answer: {question}")
        with pytest.raises(DataError, match="other words around the questions"):
            Shard(directory)

    def test_other_format(self, tmp_path: Path) -> None:
        directory = write(tmp_path)
        edit(directory, lambda info: info.update(format=2))
        with pytest.raises(DataError, match="has format 2, this version reads 1"):
            Shard(directory)

    @pytest.mark.parametrize("text", ["", "[1]", "{}", '{"format": 1}', "{", "\xff"])
    def test_damaged_description(self, tmp_path: Path, text: str) -> None:
        directory = write(tmp_path)
        (directory / "task.json").write_text(text, encoding="latin-1")
        with pytest.raises(DataError, match=r"prepare it again"):
            Shard(directory)

    @pytest.mark.parametrize("name", FILES)
    def test_missing_file(self, tmp_path: Path, name: str) -> None:
        directory = write(tmp_path)
        (directory / name).unlink()
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            Shard(directory)

    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 0.99])
    def test_cut_off_file(self, tmp_path: Path, name: str, part: float) -> None:
        directory = write(tmp_path)
        whole = (directory / name).read_bytes()
        (directory / name).write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            Shard(directory)

    def test_files_of_different_runs(self, tmp_path: Path) -> None:
        directory, other = write(tmp_path / "a"), write(tmp_path / "b", EXAMPLES[:9])
        (directory / "examples.array_record").write_bytes((other / "examples.array_record").read_bytes())
        with pytest.raises(DataError, match="there are 9 examples and 30 rows of lengths, not 30 of each"):
            Shard(directory)

    def test_lengths_of_another_shape(self, tmp_path: Path) -> None:
        directory = write(tmp_path)
        np.save(directory / "lengths.npy", np.zeros((30, 4), np.int32))
        edit(directory, lambda info: info.pop("lengths_sha256"))
        with pytest.raises(DataError, match=r"it is int32 \[30, 4\], not int32 \[E, 7\]"):
            Shard(directory)

    def test_flipped_bit_in_an_example(self, tmp_path: Path) -> None:
        large = dataclasses.replace(EXAMPLES[0], pasted=tokens(20_000))
        directory = write(tmp_path, [EXAMPLES[0], large, EXAMPLES[2]])
        file = directory / "examples.array_record"
        content = bytearray(file.read_bytes())
        content[10_000] ^= 1  # in the middle of the large one
        file.write_bytes(content)
        shard = Shard(directory)
        assert shard[0].id == shard[2].id.replace("2", "0") == "né-0"
        with pytest.raises(DataError, match=r"examples\.array_record is missing or damaged \(example 1: "):
            shard[1]

    @pytest.mark.parametrize(
        ("key", "value", "said"),
        [
            ("task", 3, "its task is 3"),
            ("task", " ", "its task is empty"),
            ("count", "30", "its count is '30'"),
            ("count", True, "its count is True"),
            ("count", -1, "its count is -1"),
            ("count", 0, "it has no examples"),
            ("end_id", 5.5, r"its end_id is 5\.5"),
            ("vocabulary", 10**30, "its vocabulary is 10+"),
            ("model", ["m"], r"its model is \['m'\]"),
            ("model", "a\ud800", "text that is not Unicode"),
            ("source", None, "its source is None"),
            ("dropped", {"a": "b"}, "its dropped has a value that is no count"),
            ("lengths_sha256", "x", r"lengths\.npy is missing or damaged \(it is not the file that task\.json is of"),
        ],
    )
    def test_wrong_types_in_the_description(self, tmp_path: Path, key: str, value: object, said: str) -> None:
        directory = write(tmp_path)
        edit(directory, lambda info: info.update({key: value}))
        with pytest.raises(DataError, match=f"damaged .*{said}|{said}") as raised:
            Shard(directory)
        str(raised.value).encode()

    @pytest.mark.parametrize("depth", [101, 600, 3000, 200_000])
    def test_a_description_without_end(self, tmp_path: Path, depth: int) -> None:
        directory = write(tmp_path)
        edit(directory, lambda info: info.update(source={"a": "DEEP"}))
        path = directory / "task.json"
        path.write_text(path.read_text().replace('"DEEP"', "[" * depth + "]" * depth))
        with pytest.raises(DataError, match=r"task\.json is missing or damaged \(.*(deep|recursion)"):
            open_shards(directory)

    def test_lengths_of_other_examples(self, tmp_path: Path) -> None:
        directory, other = write(tmp_path / "a"), write(tmp_path / "b", EXAMPLES[::-1])
        (directory / "lengths.npy").write_bytes((other / "lengths.npy").read_bytes())
        with pytest.raises(DataError, match=r"lengths\.npy is missing or damaged \(it is not the file"):
            Shard(directory)
        edit(directory, lambda info: info.pop("lengths_sha256"))  # as older directories are
        with pytest.raises(DataError, match=r"lengths\.npy is missing or damaged \(example 0 has other lengths\)"):
            Shard(directory)[0]

    @pytest.mark.parametrize("name", FILES)
    def test_fifo_is_refused_and_not_waited_for(self, tmp_path: Path, name: str) -> None:
        directory = write(tmp_path)
        (directory / name).unlink()
        os.mkfifo(directory / name)
        with pytest.raises(DataError, match=rf"{name}.*is not a regular file"):
            open_shards(directory)

    def test_no_directory(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"is no directory of examples: it has no task\.json"):
            Shard(tmp_path / "none")


def edit(directory: Path, change: Callable[[dict[str, object]], None]) -> None:
    info = json.loads((directory / "task.json").read_text())
    change(info)
    (directory / "task.json").write_text(json.dumps(info))


class TestWrittenWholeOrNotAtAll:
    def test_error_in_between(self, tmp_path: Path) -> None:
        into = tmp_path / "data"
        with pytest.raises(OSError, match="of the source"):
            write_and_fail(into, OSError("of the source"))
        assert not into.exists()

    def test_error_keeps_what_was_there(self, tmp_path: Path) -> None:
        directory = write(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            write_and_fail(tmp_path, KeyboardInterrupt())
        assert len(Shard(directory)) == 30
        assert list(tmp_path.iterdir()) == [directory]

    def test_no_example(self, tmp_path: Path) -> None:
        into = tmp_path / "data"
        with pytest.raises(DataError, match="there are no examples"), ShardWriter(into, "qa", WORDS):
            pass
        assert not into.exists()

    @pytest.mark.parametrize("file", ["_EXAMPLES", "_LENGTHS", "_TASK"])
    def test_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
        full = Path("/dev/full")
        if not full.exists():
            pytest.skip("there is no /dev/full, the disk that is always full")
        monkeypatch.setattr(shards, file, str(full))  # an absolute path replaces what it is joined to
        into = tmp_path / "data"
        with pytest.raises(DataError, match=r"cannot write .*qa: the disk is full; nothing was written"):
            write(into)
        assert not into.exists()

    def test_file_that_cannot_grow(self, tmp_path: Path) -> None:
        into = tmp_path / "data"
        with pytest.raises(DataError, match=r"cannot write .*qa: .*File too large"), file_size_limit(40_000):
            write(into, EXAMPLES * 700)
        assert not into.exists()

    def test_directory_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "data").write_text("mine")
        with pytest.raises(DataError, match="cannot write"):
            write(tmp_path / "data")
        assert (tmp_path / "data").read_text() == "mine"

    def test_directory_of_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "qa").mkdir()
        (tmp_path / "qa" / "thesis.txt").write_text("mine")
        with pytest.raises(InputError, match=r"is not a directory of examples: it has thesis\.txt"):
            write(tmp_path)
        assert (tmp_path / "qa" / "thesis.txt").read_text() == "mine"

    @pytest.mark.parametrize("task", ["", ".", "..", "../qa", "a/b"])
    def test_task_that_is_no_name(self, tmp_path: Path, task: str) -> None:
        with pytest.raises(DataError, match="cannot be the name of a task"):
            ShardWriter(tmp_path, task, WORDS)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let no file of this process grow past `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestOpenShards:
    def test_one_or_several(self, tmp_path: Path) -> None:
        for task in ("b", "a"):
            write(tmp_path, EXAMPLES[:3], task)
        assert [shard.task for shard in open_shards(tmp_path)] == ["a", "b"]
        assert [shard.task for shard in open_shards(tmp_path / "b", "f00d")] == ["b"]
        with pytest.raises(DataError, match="another than this model's"):
            open_shards(tmp_path, "beef")

    def test_none(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="there are no examples in"):
            open_shards(tmp_path)


def test_several_fingerprints_may_be_right(tmp_path: Path) -> None:
    """Another version of this library may have noted the same tokenizer by another one."""
    directory = write(tmp_path)
    assert len(open_shards(directory, ("beef", WORDS.tokenizer))[0]) == len(EXAMPLES)
    with pytest.raises(DataError, match="another than this model's"):
        open_shards(directory, ("beef", "cafe"))


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_is_what_the_umask_says(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        directory = write(tmp_path / "data")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {mode}


def test_a_link_to_another_disk_stays_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk" / "data")
    write(tmp_path / "data")
    assert (tmp_path / "data").is_symlink() and (tmp_path / "disk" / "data" / "qa" / "task.json").is_file()
    (tmp_path / "data" / "other").symlink_to(tmp_path / "disk" / "other")
    write(tmp_path / "data", task="other")
    assert (tmp_path / "disk" / "data" / "other").is_symlink()
    assert len(Shard(tmp_path / "disk" / "other")) == len(EXAMPLES)


def test_directories_of_the_first_version(tmp_path: Path) -> None:
    """They have no hash of their lengths, and are read all the same."""
    with tarfile.open(Path(__file__).parents[1] / "fixtures" / "written_by_0.1.0.tar.gz") as archive:
        archive.extractall(tmp_path, [each for each in archive if each.name.startswith("prepared/")], filter="data")
    shards_of_all = open_shards(tmp_path / "prepared")
    assert [shard.task for shard in shards_of_all] == sorted(f"synthetic_{kind}" for kind in KINDS)
    for shard in shards_of_all:
        assert "lengths_sha256" not in shard.info
        assert lengths_of(shard[0]) == tuple(shard.lengths[0])
