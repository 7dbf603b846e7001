"""Branches as views: selection, joining, who holds their slots, and branches on disk."""

from __future__ import annotations

import dataclasses
import gc
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax

import psynth_jax as ps
from psynth_jax.branch import Branch, Segment
from psynth_jax.branches import Branches, first_position, read_tokens
from psynth_jax.errors import CheckpointError, InputError, MemoryLimitError, ModelMismatchError, UserError
from psynth_jax.kv.pool import Pool
from psynth_jax.kv.transfer import StoredSlots, read_slots, write_slots
from psynth_jax.ops.cached_heads import CachedHeads

L, K, H, PAGE = 2, 3, 6, 8


def empty_pool(dtype: Any = jnp.float32) -> Pool:
    return Pool(lambda slots: CachedHeads.allocate((L, 1, K, slots, H), dtype, packed=False), 128, PAGE)


def written(pool: Pool, row: int, first: int, length: int, position: int = 0) -> Segment:
    """Random slots behind `first` others, as a worker leaves them."""
    rng = np.random.default_rng(row)
    arrays = {name: rng.standard_normal((L, K, first + length, H)).astype(np.float32) for name in ("k", "v")}
    return Segment(write_slots(pool, StoredSlots(arrays)).part(first, length), position)


def branch(pool: Pool, row: int, first: int, length: int, name: str = "") -> Branch:
    segment = written(pool, row, first, length)
    return Branch(tuple(range(row, row + length)), name or f"row {row}", first + 1, length, (segment,), "length")


@pytest.fixture
def pool() -> Pool:
    return empty_pool()


@pytest.fixture
def three(pool: Pool) -> Branches:
    made = [branch(pool, 0, 2, 5), branch(pool, 2, 0, 9), branch(pool, 3, 4, 1)]
    return Branches([made], "a model", batched=False)


@pytest.fixture
def batch(three: Branches, pool: Pool) -> Branches:
    return Branches.batch([three, Branches([[branch(pool, 1, 3, 4)]], "a model", batched=False)])


def texts(branches: Branches) -> list[Any]:
    return branches.texts


class TestSelection:
    def test_of_one_question(self, three: Branches) -> None:
        assert (three.count, len(three), three.batched) == (3, 3, False)
        assert three.lengths == [5, 9, 1]
        assert three.token_ids[2] == [3]
        assert three.finish_reasons == ["length"] * 3
        assert texts(three[1]) == ["row 2"]
        assert texts(three[-1]) == ["row 3"]
        assert texts(three[np.int64(0)]) == ["row 0"]
        assert texts(three[[2, 0]]) == ["row 3", "row 0"]
        assert texts(three[np.array([2, 1])]) == ["row 3", "row 2"]
        assert texts(three[1:]) == ["row 2", "row 3"]
        assert three[[1, 1]].count == 2

    def test_of_a_batch(self, batch: Branches) -> None:
        assert (batch.count, len(batch), batch.batched) == ([3, 1], 2, True)
        assert batch.lengths == [[5, 9, 1], [4]]
        assert texts(batch[1]) == ["row 1"] and not batch[1].batched
        assert [texts(question) for question in batch] == [["row 0", "row 2", "row 3"], ["row 1"]]

    def test_is_a_view(self, three: Branches, pool: Pool) -> None:
        chosen = three[[2, 0]]
        assert all(segment.held.pool is pool for b in chosen.questions[0] for segment in b.segments)
        assert chosen.questions[0][0].segments is three.questions[0][2].segments
        assert chosen.fingerprint == "a model"

    @pytest.mark.parametrize("index", [3, -4, [0, 3]])
    def test_outside_of_the_branches_is_refused(self, three: Branches, index: Any) -> None:
        with pytest.raises(InputError, match="there are 3"):
            three[index]

    @pytest.mark.parametrize("index", [[0, 1], slice(0, 1)])
    def test_of_a_batch_takes_one_question(self, batch: Branches, index: Any) -> None:
        with pytest.raises(InputError, match="one question's number"):
            batch[index]

    def test_questions_and_batch_have_to_agree(self, three: Branches) -> None:
        with pytest.raises(InputError, match="0 questions"):
            Branches([], "a model", batched=True)
        with pytest.raises(InputError, match="2 questions"):
            Branches([three.questions[0], three.questions[0]], "a model", batched=False)


class TestJoining:
    def test_puts_branches_side_by_side(self, three: Branches) -> None:
        joined = Branches.join(three[2], three[[0, 1]])
        assert texts(joined) == ["row 3", "row 0", "row 2"]
        assert not joined.batched

    def test_of_batches_goes_question_by_question(self, batch: Branches) -> None:
        joined = Branches.join(batch, batch)
        assert joined.count == [6, 2]
        assert joined.texts[1] == ["row 1", "row 1"]

    def test_a_batch_keeps_the_order_of_questions(self, three: Branches) -> None:
        batched = Branches.batch([three[1], three[[0, 2]]])
        assert batched.texts == [["row 2"], ["row 0", "row 3"]]

    def test_different_models_are_refused(self, three: Branches) -> None:
        other = Branches(three.questions, "another model", batched=False)
        with pytest.raises(ModelMismatchError):
            Branches.join(three, other)
        with pytest.raises(ModelMismatchError):
            Branches.batch([three, other])

    def test_another_number_of_questions_is_refused(self, three: Branches, batch: Branches) -> None:
        with pytest.raises(InputError, match="same number of questions"):
            Branches.join(three, batch)

    def test_nothing_is_refused(self) -> None:
        with pytest.raises(InputError, match="no branches"):
            Branches.join()
        with pytest.raises(InputError, match="no branches"):
            Branches.batch([])


class TestSlots:
    def test_selecting_some_frees_the_others(self, pool: Pool) -> None:
        made = [branch(pool, 0, 2, 5), branch(pool, 2, 0, 9), branch(pool, 3, 4, 1)]
        three = Branches([made], "a model", batched=False)
        del made
        assert pool.used_slots == 4 * PAGE
        two = three[[0, 2]]
        del three
        gc.collect()
        assert pool.used_slots == 2 * PAGE
        del two
        gc.collect()
        assert pool.used_slots == 0

    def test_of_a_pool_that_was_lost_are_not_written(self, three: Branches, pool: Pool, tmp_path: Path) -> None:
        pool.lose()
        other = branch(pool, 5, 0, 9)
        with pytest.raises(MemoryLimitError, match="are lost"):
            three.save(tmp_path / "saved")
        with pytest.raises(MemoryLimitError, match="are lost"):
            three.questions[0][1].segments[0].without_first(2)
        assert not (tmp_path / "saved").exists()
        assert three.texts == ["row 0", "row 2", "row 3"]
        Branches([[other]], "a model", batched=False).save(tmp_path / "saved")
        del three
        gc.collect()
        assert pool.used_slots == 2 * PAGE, "what was lost frees nothing of what came after it"

    def test_a_synthesizer_starts_behind_the_longest_branch(self, batch: Branches) -> None:
        assert [first_position(group) for group in batch.questions] == [9, 4]
        assert [read_tokens(group) for group in batch.questions] == [15, 4]
        assert first_position([]) == 0


def same_branch(one: Branch, other: Branch) -> bool:
    """Compare what branches say and the cached slots that they own."""
    fields = ("token_ids", "text", "shift", "span", "finish_reason")
    if any(getattr(one, name) != getattr(other, name) for name in fields) or len(one.segments) != len(other.segments):
        return False
    return all(same_segment(a, b) for a, b in zip(one.segments, other.segments, strict=True))


def slots_of(segment: Segment) -> StoredSlots:
    return segment.held if isinstance(segment.held, StoredSlots) else read_slots(segment.held)


def same_segment(one: Segment, other: Segment) -> bool:
    ours, theirs = slots_of(one).arrays, slots_of(other).arrays
    if (one.length, one.position) != (other.length, other.position) or ours.keys() != theirs.keys():
        return False
    return all(values.dtype == theirs[name].dtype and np.array_equal(values, theirs[name]) for name, values in ours.items())


def same(one: Branches, other: Branches) -> bool:
    if (one.count, one.batched, one.fingerprint) != (other.count, other.batched, other.fingerprint):
        return False
    pairs = zip(one.questions, other.questions, strict=True)
    return all(same_branch(a, b) for left, right in pairs for a, b in zip(left, right, strict=True))


class TestOnDisk:
    @pytest.fixture
    def saved(self, three: Branches, tmp_path: Path) -> Path:
        three.save(str(tmp_path / "saved"))
        return tmp_path / "saved"

    @staticmethod
    def rewrite(saved: Path, change: Any) -> None:
        file = saved / "branches.json"
        description = json.loads(file.read_text())
        change(description)
        file.write_text(json.dumps(description))

    def test_come_back_as_they_were(self, three: Branches, saved: Path) -> None:
        assert same(Branches.load(str(saved)), three)
        assert sorted(path.name for path in saved.parent.iterdir()) == ["saved"], "scratch files were left behind"

    def test_a_batch_comes_back(self, batch: Branches, tmp_path: Path) -> None:
        other = Branches([[branch(empty_pool(), 2, 1, 3)], []], "a model", batched=True)
        joined = Branches.join(batch, other)
        joined.save(str(tmp_path / "new" / "saved"))
        assert same(Branches.load(str(tmp_path / "new" / "saved")), joined)

    def test_dtype_text_and_segments_are_kept(self, tmp_path: Path) -> None:
        pool = empty_pool(jnp.bfloat16)
        turns = (written(pool, 1, 0, 3), written(pool, 3, 9, 4, position=9))
        named = dataclasses.replace(branch(pool, 1, 0, 7, "naïve 🙂\n"), segments=turns, span=13)
        Branches([[named]], "a model", batched=False).save(str(tmp_path / "saved"))
        loaded = Branches.load(str(tmp_path / "saved"))
        assert same_branch(loaded.questions[0][0], named)

    def test_int8_stays_int8(self, tmp_path: Path) -> None:
        made = Branches([[branch(empty_pool(jnp.int8), 1, 2, 3)]], "model", batched=False)
        made.save(tmp_path / "int8")
        loaded = Branches.load(tmp_path / "int8")
        assert slots_of(loaded.questions[0][0].segments[0]).arrays.keys() == {"k", "v", "k_scale", "v_scale"}
        assert same(loaded, made)

    def test_int8_beside_others_is_written_as_what_it_stands_for(self, pool: Pool, tmp_path: Path) -> None:
        made = [branch(empty_pool(jnp.int8), 1, 2, 3), branch(pool, 0, 0, 4)]
        Branches([made], "model", batched=False).save(tmp_path / "mixed")
        for loaded, source in zip(Branches.load(tmp_path / "mixed").questions[0], made, strict=True):
            ours, theirs = slots_of(loaded.segments[0]).arrays, slots_of(source.segments[0]).as_float32().arrays
            assert ours.keys() == theirs.keys()
            for name, values in ours.items():
                np.testing.assert_array_equal(values, theirs[name])

    def test_only_the_slots_of_branches_are_written(self, saved: Path) -> None:
        tensors = safetensors.flax.load_file(str(saved / "branches.safetensors"))
        assert {name: value.shape for name, value in tensors.items() if name.endswith(".k")} == {
            "q0.b0.s0.k": (L, K, 5, H),
            "q0.b1.s0.k": (L, K, 9, H),
            "q0.b2.s0.k": (L, K, 1, H),
        }

    def test_a_branch_that_says_nothing_comes_back_too(self, three: Branches, tmp_path: Path) -> None:
        nothing = Branch((), "", 4, 0, (), "stop")
        for name, made in {"some": [*three.questions[0], nothing], "all": [nothing]}.items():
            branches = Branches([made], "a model", batched=False)
            branches.save(str(tmp_path / name))
            assert same(Branches.load(str(tmp_path / name)), branches)

    def test_saving_again_replaces(self, three: Branches, saved: Path) -> None:
        three[1].save(str(saved))
        assert same(Branches.load(str(saved)), three[1])

    def test_a_directory_of_something_else_is_left_alone(self, three: Branches, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("years of work")
        with pytest.raises(InputError, match="not a directory of branches"):
            three.save(str(tmp_path))
        with pytest.raises(InputError, match="not a directory of branches"):
            three.save(str(tmp_path / "thesis.txt"))
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
        assert (tmp_path / "thesis.txt").read_text() == "years of work"

    @pytest.mark.parametrize("before", [True, False])
    def test_a_write_that_fails_leaves_what_was_there(
        self, three: Branches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
    ) -> None:
        target = tmp_path / "saved"
        if before:
            three.save(str(target))

        def no_space(tensors: Any, path: str) -> None:
            Path(path).write_bytes(b"half of it")
            raise OSError("No space left on device")

        monkeypatch.setattr(safetensors.flax, "save_file", no_space)
        with pytest.raises(OSError, match="No space"):
            three[1].save(str(target))
        assert [path.name for path in tmp_path.iterdir()] == (["saved"] if before else [])
        if before:
            assert same(Branches.load(str(target)), three)

    def test_a_rename_that_fails_leaves_what_was_there(
        self, three: Branches, saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rename = Path.rename

        def busy(self: Path, target: Path) -> Path:
            if self.name == "new":
                raise OSError("Device or resource busy")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", busy)
        with pytest.raises(OSError, match="busy"):
            three[1].save(str(saved))
        assert same(Branches.load(str(saved)), three)

    def test_no_such_directory(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no such directory"):
            Branches.load(str(tmp_path / "nowhere"))

    @pytest.mark.parametrize("name", ["branches.json", "branches.safetensors"])
    def test_a_missing_file_is_named(self, saved: Path, name: str) -> None:
        (saved / name).unlink()
        with pytest.raises(CheckpointError, match=name):
            Branches.load(str(saved))

    @pytest.mark.parametrize("name", ["branches.json", "branches.safetensors"])
    @pytest.mark.parametrize("kept", [0, 5, 0.5, 0.95])
    def test_a_truncated_file_is_refused(self, saved: Path, name: str, kept: float) -> None:
        content = (saved / name).read_bytes()
        (saved / name).write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
        self.assert_refused(saved)

    @pytest.mark.parametrize(
        "content", [b"", b"[]", b"null", b'"text"', b"{}", b"\xff\xfe", b'{"format": 1}', b'{"format": 1, "questions": 3}']
    )
    def test_a_description_of_something_else_is_refused(self, saved: Path, content: bytes) -> None:
        (saved / "branches.json").write_bytes(content)
        self.assert_refused(saved)

    def test_another_format_is_named(self, saved: Path) -> None:
        self.rewrite(saved, lambda description: description.update(format=7))
        with pytest.raises(CheckpointError, match=r"format 7.*reads format 1"):
            Branches.load(str(saved))

    @pytest.mark.parametrize(
        "change",
        [
            lambda questions: questions[0].pop(),
            lambda questions: questions[0].append(questions[0][0]),
            lambda questions: questions[0][0].update(segments=[4]),
            lambda questions: questions[0][0].update(segments=[5, 1]),
            lambda questions: questions[0][0].update(segments=5),
            lambda questions: questions[0][0].update(shift="far"),
            lambda questions: questions[0][0].update(token_ids=[1, 2]),
            lambda questions: questions[0][0].pop("span"),
            lambda questions: questions.append("a question"),
            lambda questions: questions.clear(),
        ],
    )
    def test_a_description_that_does_not_fit_the_tensors_is_refused(self, saved: Path, change: Any) -> None:
        self.rewrite(saved, lambda description: change(description["questions"]))
        self.assert_refused(saved)

    @pytest.mark.parametrize(
        "change",
        [
            lambda tensors: tensors.pop("q0.b1.s0.v"),
            lambda tensors: tensors.pop("q0.b1.s0.k"),
            lambda tensors: tensors.update({"q0.b1.s0.v": tensors["q0.b1.s0.v"][:, :, :-1]}),
            lambda tensors: tensors.update({"q0.b1.s0.k": tensors["q0.b1.s0.k"][0]}),
            lambda tensors: tensors.update({"surplus": tensors["q0.b1.s0.k"]}),
            lambda tensors: tensors.clear(),
        ],
    )
    def test_tensors_that_do_not_fit_the_description_are_refused(self, saved: Path, change: Any) -> None:
        file = str(saved / "branches.safetensors")
        tensors = safetensors.flax.load_file(file)
        change(tensors)
        safetensors.flax.save_file(tensors, file)
        self.assert_refused(saved)

    @staticmethod
    def assert_refused(saved: Path) -> None:
        with pytest.raises(UserError) as caught:
            ps.Branches.load(str(saved))
        assert isinstance(caught.value, CheckpointError)
        assert "\n" not in str(caught.value) and str(saved) in str(caught.value)
