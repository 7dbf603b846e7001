"""Branches as views: selection, joining, the arrays that a step takes, and branches on disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax

import psynth_jax as ps
from psynth_jax.branch import Branch, Segment
from psynth_jax.branches import Branches, branch_view, bucket, offsets
from psynth_jax.cache import KVCache
from psynth_jax.errors import CheckpointError, InputError, ModelMismatchError, UserError
from psynth_jax.ops.cached_heads import CachedHeads

L, R, K, S, H = 2, 4, 3, 17, 6


def random_cache(seed: int, dtype: Any = jnp.float32) -> KVCache:
    rng = np.random.default_rng(seed)
    k, v = (jnp.asarray(rng.standard_normal((L, R, K, S, H)), dtype) for _ in range(2))
    return KVCache(CachedHeads(k, v), jnp.full(R, S, jnp.int32))


def branch(cache: KVCache, row: int, first: int, length: int, name: str = "") -> Branch:
    segment = Segment(cache, row, first, length)
    return Branch(tuple(range(row, row + length)), name or f"row {row}", first + 1, length, (segment,), "length")


@pytest.fixture
def cache() -> KVCache:
    return random_cache(0)


@pytest.fixture
def three(cache: KVCache) -> Branches:
    made = [branch(cache, 0, 2, 5), branch(cache, 2, 0, 9), branch(cache, 3, 4, 1)]
    return Branches([made], "a model", batched=False)


@pytest.fixture
def batch(three: Branches, cache: KVCache) -> Branches:
    return Branches.batch([three, Branches([[branch(cache, 1, 3, 4)]], "a model", batched=False)])


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

    def test_is_a_view(self, three: Branches, cache: KVCache) -> None:
        chosen = three[[2, 0]]
        assert all(segment.cache is cache for b in chosen.questions[0] for segment in b.segments)
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


class TestView:
    def test_describes_every_branch_and_pads_the_rest(self, batch: Branches, cache: KVCache) -> None:
        view = branch_view(batch.questions)
        np.testing.assert_array_equal(view.shift, [[3, 1, 5], [4, 0, 0]])
        np.testing.assert_array_equal(view.span, [[5, 9, 1], [4, 0, 0]])
        np.testing.assert_array_equal(view.valid, [[True, True, True], [True, False, False]])
        (part,) = view.parts
        assert part.heads is cache.heads
        np.testing.assert_array_equal(part.segments.row, [[0, 2, 3], [1, 0, 0]])
        np.testing.assert_array_equal(part.segments.first, [[2, 0, 4], [3, 0, 0]])
        np.testing.assert_array_equal(part.segments.length, [[5, 9, 1], [4, 0, 0]])
        np.testing.assert_array_equal(part.segments.branch, [[0, 1, 2], [0, 0, 0]])

    def test_every_cache_is_a_part(self, three: Branches) -> None:
        other = random_cache(1)
        joined = Branches.join(three, Branches([[branch(other, 1, 0, 6)]], "a model", batched=False))
        view = branch_view(joined.questions)
        assert [part.heads is other.heads for part in view.parts] == [False, True]
        np.testing.assert_array_equal(view.parts[1].segments.branch, [[3]])
        np.testing.assert_array_equal(view.parts[1].segments.length, [[6]])

    def test_a_branch_of_several_turns_has_several_segments(self, cache: KVCache) -> None:
        turns = dataclasses.replace(
            branch(cache, 1, 0, 7), segments=(Segment(cache, 1, 0, 3), Segment(cache, 1, 9, 4)), span=13
        )
        view = branch_view([[turns, branch(cache, 2, 1, 2)]])
        np.testing.assert_array_equal(view.parts[0].segments.first, [[0, 9, 1]])
        np.testing.assert_array_equal(view.parts[0].segments.branch, [[0, 0, 1]])
        np.testing.assert_array_equal(view.span, [[13, 2]])

    def test_a_synthesizer_starts_behind_the_longest_branch(self, batch: Branches) -> None:
        np.testing.assert_array_equal(offsets(batch.questions), [9, 4])
        np.testing.assert_array_equal(offsets([[]]), [0])

    def test_few_widths_exist(self) -> None:
        sizes = sorted({bucket(count) for count in range(1, 17)})
        assert sizes == [1, 2, 3, 4, 6, 8, 12, 16]
        assert all(bucket(count) == min(size for size in sizes if size >= count) for count in range(1, 17))


def same_branch(one: Branch, other: Branch) -> bool:
    """Compare what branches say and the cached slots that they own."""
    fields = ("token_ids", "text", "shift", "span", "finish_reason")
    if any(getattr(one, name) != getattr(other, name) for name in fields) or len(one.segments) != len(other.segments):
        return False
    return all(
        a.length == b.length
        and all(
            x.dtype == y.dtype and np.array_equal(x, y)
            for x, y in zip(
                a.cache.slots_of(a.row, a.first, a.length), b.cache.slots_of(b.row, b.first, b.length), strict=True
            )
        )
        for a, b in zip(one.segments, other.segments, strict=True)
    )


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

    def test_a_batch_comes_back_in_one_cache(self, batch: Branches, tmp_path: Path) -> None:
        other = Branches([[branch(random_cache(1), 2, 1, 3)], []], "a model", batched=True)
        joined = Branches.join(batch, other)
        joined.save(str(tmp_path / "new" / "saved"))
        loaded = Branches.load(str(tmp_path / "new" / "saved"))
        assert same(loaded, joined)
        assert len(branch_view(loaded.questions).parts) == 1

    def test_dtype_text_and_segments_are_kept(self, tmp_path: Path) -> None:
        cache = random_cache(2, jnp.bfloat16)
        turns = (Segment(cache, 1, 0, 3), Segment(cache, 3, 9, 4))
        written = dataclasses.replace(branch(cache, 1, 0, 7, "naïve 🙂\n"), segments=turns, span=13)
        Branches([[written]], "a model", batched=False).save(str(tmp_path / "saved"))
        loaded = Branches.load(str(tmp_path / "saved"))
        assert same_branch(loaded.questions[0][0], written)

    def test_int8_stays_int8(self, cache: KVCache, tmp_path: Path) -> None:
        int8 = CachedHeads.allocate((L, R, K, S, H), jnp.int8, packed=False).stored(cache.heads.k, cache.heads.v)
        made = Branches([[branch(KVCache(int8, cache.length), 1, 2, 3)]], "model", batched=False)
        made.save(tmp_path / "int8")
        loaded = Branches.load(tmp_path / "int8").questions[0][0].segments[0]
        before, after = int8.slots_of(1, 2, 3), loaded.cache.heads.slots_of(loaded.row, loaded.first, loaded.length)
        assert before.keys() == after.keys() == {"k", "v", "k_scale", "v_scale"}
        for name, values in before.items():
            assert values.dtype == after[name].dtype
            np.testing.assert_array_equal(values, after[name])

    def test_int8_beside_others_is_written_as_what_it_stands_for(self, cache: KVCache, tmp_path: Path) -> None:
        int8 = CachedHeads.allocate((L, R, K, S, H), jnp.int8, packed=False).stored(cache.heads.k, cache.heads.v)
        low = KVCache(int8, cache.length)
        Branches([[branch(low, 1, 2, 3), branch(cache, 0, 0, 4)]], "model", batched=False).save(tmp_path / "mixed")
        first, second = Branches.load(tmp_path / "mixed").questions[0]
        for loaded, source, row, at, length in ((first, low, 1, 2, 3), (second, cache, 0, 0, 4)):
            (segment,) = loaded.segments
            ours = segment.cache.slots_of(segment.row, segment.first, segment.length)
            for one, other in zip(ours, source.slots_of(row, at, length), strict=True):
                np.testing.assert_array_equal(one, other)

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
