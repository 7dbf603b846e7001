"""Damaged and made-up files of branches: one line, or the same numbers as before, and nothing in between."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import psynth_jax as ps
from psynth_jax.branch import Branch, Segment
from psynth_jax.branches import Branches
from psynth_jax.errors import CheckpointError, ModelMismatchError, UserError
from tests.tiny import tiny_model, token_ids

MUTATIONS = 200
PROMPT, TARGET = token_ids(1, 7), token_ids(2, 5)
DESCRIPTION, TENSORS = "branches.json", "branches.safetensors"


@pytest.fixture(scope="module")
def synth() -> ps.ParallelSynthesis:
    return ps.ParallelSynthesis(tiny_model(layers=2))


@pytest.fixture(scope="module", params=["float32", "int8"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    synth = ps.ParallelSynthesis(tiny_model(layers=2), cache_dtype=request.param)
    folder = tmp_path_factory.mktemp("written") / "branches"
    synth.encode([token_ids(3, 5), token_ids(4, 8)], prefixes=[token_ids(5, 3), None]).save(folder)
    return folder


@pytest.fixture
def saved(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "saved"))


def without_hashes(folder: Path) -> None:
    """Make the files those of an earlier version."""
    description = json.loads((folder / DESCRIPTION).read_text())
    del description["sha256"]
    (folder / DESCRIPTION).write_text(json.dumps(description))


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    description = json.loads((folder / DESCRIPTION).read_text())
    edit(description)
    (folder / DESCRIPTION).write_text(json.dumps(description))


def change_tensors(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    tensors = safetensors.numpy.load_file(folder / TENSORS)
    edit(tensors)
    safetensors.numpy.save_file(tensors, folder / TENSORS)


def refused(folder: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        Branches.load(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value) and len(str(caught.value)) < 600


class TestNumbers:
    """Files without hashes, as earlier versions wrote them: what a number says is looked at."""

    @pytest.mark.parametrize("value", [-3, 4, 6, 2**31, 2**70, 5.0, True, None, "5", [5]])
    def test_span(self, saved: Path, value: Any) -> None:
        without_hashes(saved)
        change(saved, lambda found: found["questions"][0][0].update(span=value))
        refused(saved, "span")

    @pytest.mark.parametrize("value", [-1, 2**31, 2**70, 1.0, False, None, "far", {}])
    def test_shift(self, saved: Path, value: Any) -> None:
        without_hashes(saved)
        change(saved, lambda found: found["questions"][0][0].update(shift=value))
        refused(saved, "shift")

    @pytest.mark.parametrize("value", [-1, 2**31, 2**64, 1.5, True, "1"])
    def test_token_ids(self, saved: Path, value: Any) -> None:
        without_hashes(saved)
        change(saved, lambda found: found["questions"][0][0]["token_ids"].__setitem__(2, value))
        refused(saved, "token_ids of q0.b0")

    @pytest.mark.parametrize("text", ["Infinity", "-Infinity", "NaN", "1e999", "1" + "0" * 5000])
    def test_that_no_integer_is(self, saved: Path, text: str) -> None:
        without_hashes(saved)
        content = (saved / DESCRIPTION).read_text()
        (saved / DESCRIPTION).write_text(content.replace('"shift": 3', f'"shift": {text}'))
        assert text in (saved / DESCRIPTION).read_text()
        refused(saved, "branches")

    @pytest.mark.parametrize("fields", [{"finish_reason": "tired"}, {"text": 7}, {"text": "\ud800"}, {"more": 1}])
    def test_other_fields(self, saved: Path, fields: dict[str, Any]) -> None:
        without_hashes(saved)
        change(saved, lambda found: found["questions"][0][0].update(fields))
        refused(saved, "q0.b0")

    @pytest.mark.parametrize("fields", [{"batched": 1}, {"batched": None}, {"fingerprint": 5}, {"format": "1"}])
    def test_of_the_whole(self, saved: Path, fields: dict[str, Any]) -> None:
        without_hashes(saved)
        change(saved, lambda found: found.update(fields))
        refused(saved, next(iter(fields)))

    def test_deep_json(self, saved: Path) -> None:
        (saved / DESCRIPTION).write_text("[" * 100_000 + "]" * 100_000)
        refused(saved, "does not hold readable branches")

    def test_a_key_twice(self, saved: Path) -> None:
        content = (saved / DESCRIPTION).read_text()
        (saved / DESCRIPTION).write_text(content.replace('"shift": 3', '"shift": 3, "shift": 3'))
        refused(saved, "a key is given twice")

    @pytest.mark.parametrize("name", [DESCRIPTION, TENSORS])
    def test_a_fifo_is_refused(self, saved: Path, name: str) -> None:
        (saved / name).unlink()
        os.mkfifo(saved / name)
        refused(saved, "not a regular file")


class TestTensors:
    def test_not_finite(self, saved: Path) -> None:
        without_hashes(saved)
        half = "k_scale" if "q0.b0.s0.k_scale" in safetensors.numpy.load_file(saved / TENSORS) else "k"
        for value in (np.nan, np.inf):
            change_tensors(saved, lambda tensors, value=value: tensors[f"q0.b1.s0.{half}"].__setitem__((0, 0, 0, 1), value))
            refused(saved, rf"q0\.b1\.s0\.{half} holds NaN or infinities")

    @pytest.mark.parametrize("dtype", ["float64", "int32", "uint8", "float8_e4m3fn", "bool"])
    def test_dtypes_that_no_cache_has(self, saved: Path, dtype: str) -> None:
        without_hashes(saved)
        kind = getattr(ml_dtypes, dtype) if dtype.startswith("float8") else np.dtype(dtype)
        tensors = {
            name: value.astype(kind) if name[-2:] in (".k", ".v") else value
            for name, value in safetensors.numpy.load_file(saved / TENSORS).items()
        }
        safetensors.numpy.save_file(tensors, saved / TENSORS)
        refused(saved, "which no cache is")

    def test_one_dtype_for_all(self, saved: Path) -> None:
        without_hashes(saved)
        change_tensors(saved, lambda tensors: tensors.update({"q0.b1.s0.v": tensors["q0.b1.s0.v"].astype(np.float16)}))
        refused(saved, r"q0\.b1\.s0\.v is F16")

    def test_scales_and_numbers_belong_together(self, saved: Path) -> None:
        without_hashes(saved)
        tensors = safetensors.numpy.load_file(saved / TENSORS)
        if "q0.b0.s0.k_scale" in tensors:
            change_tensors(saved, lambda tensors: tensors.pop("q0.b0.s0.k_scale"))
            refused(saved, r"missing tensors: q0\.b0\.s0\.k_scale")
            change_tensors(saved, lambda tensors: [tensors.pop(name) for name in [*tensors] if name.endswith("_scale")])
            refused(saved, "I8, which no cache is")
        else:
            change_tensors(saved, lambda tensors: tensors.update({"q0.b0.s0.k_scale": np.ones((2, 2, 1, 5), np.float32)}))
            refused(saved, "missing tensors")

    def test_names_that_no_branch_has(self, saved: Path) -> None:
        without_hashes(saved)
        change_tensors(saved, lambda tensors: tensors.update({"q0.b7.s0.k": tensors["q0.b0.s0.k"]}))
        refused(saved, r"no branch has: 'q0\.b7\.s0\.k'")


class TestHashes:
    @pytest.mark.parametrize("field", ["shift", "text"])
    def test_find_what_numbers_do_not_show(self, saved: Path, field: str) -> None:
        value = {"shift": 4, "text": "something else"}[field]
        change(saved, lambda found: found["questions"][0][0].update({field: value}))
        refused(saved, r"branches\.json was changed")

    def test_find_tensors_that_changed_places(self, saved: Path) -> None:
        def swap(tensors: dict[str, Any]) -> None:
            tensors["q0.b0.s0.k"], tensors["q0.b0.s0.v"] = tensors["q0.b0.s0.v"], tensors["q0.b0.s0.k"]

        change_tensors(saved, swap)
        refused(saved, r"branches\.safetensors was changed")

    @pytest.mark.parametrize("value", [None, 5, {}, {"tensors": "x"}, {"tensors": None, "description": None}])
    def test_of_another_form_are_refused(self, saved: Path, value: Any) -> None:
        change(saved, lambda found: found.update(sha256=value))
        refused(saved, "sha256|SHA-256")

    def test_files_without_them_are_read(self, synth: ps.ParallelSynthesis, saved: Path) -> None:
        before = synth.score(PROMPT, TARGET, branches=Branches.load(saved))
        without_hashes(saved)
        np.testing.assert_array_equal(synth.score(PROMPT, TARGET, branches=Branches.load(saved)), before)


class TestAgainstTheModel:
    """What a file alone cannot show is found at first use, by name."""

    @staticmethod
    def read(synth: ps.ParallelSynthesis, branches: Branches, match: str) -> None:
        for call in (
            lambda: synth.synthesize(PROMPT, branches, max_new_tokens=2),
            lambda: synth.score(PROMPT, TARGET, branches=branches),
            lambda: synth.session(branches),
        ):
            with pytest.raises(ModelMismatchError, match=match) as caught:
                call()
            assert "\n" not in str(caught.value)

    def test_token_ids_beyond_the_vocabulary(self, synth: ps.ParallelSynthesis, saved: Path) -> None:
        without_hashes(saved)
        change(saved, lambda found: found["questions"][0][1]["token_ids"].__setitem__(0, 97))
        self.read(synth, Branches.load(saved), "branch 2 has the token id 97; the vocabulary has 0 to 96")

    def test_positions_beyond_the_window(self, synth: ps.ParallelSynthesis, saved: Path) -> None:
        without_hashes(saved)
        change(saved, lambda found: found["questions"][0][0].update(shift=508))
        self.read(synth, Branches.load(saved), "branch 1 was written up to position 513; the model has 512")

    @pytest.mark.parametrize(
        ("cut", "found"),
        [
            (np.s_[:1], "1 layers of 2 heads of width 10"),
            (np.s_[:, :1], "2 layers of 1 heads of width 10"),
            (np.s_[..., :8], "2 layers of 2 heads of width 8"),
        ],
    )
    def test_layers_heads_and_widths(self, synth: ps.ParallelSynthesis, saved: Path, cut: Any, found: str) -> None:
        without_hashes(saved)

        def smaller(tensors: dict[str, Any]) -> None:
            for name, value in tensors.items():
                keeps_width = name.endswith("_scale") and cut[0] is Ellipsis if isinstance(cut, tuple) else False
                tensors[name] = value if keeps_width else np.ascontiguousarray(value[cut])

        change_tensors(saved, smaller)
        self.read(synth, Branches.load(saved), f"the cache of branch 1 has {found}")

    def test_several_segments_are_all_looked_at(self, synth: ps.ParallelSynthesis) -> None:
        other = ps.ParallelSynthesis(tiny_model(layers=1)).encode([token_ids(1, 3)]).questions[0][0].segments[0]
        mine = synth.encode([token_ids(1, 3)])
        segments = (*mine.questions[0][0].segments, Segment(other.held, 3))
        both = Branch((*token_ids(1, 3), 1, 2, 3), "", 0, 6, segments, "given")
        self.read(synth, Branches([[both]], mine.fingerprint, batched=False), "1 layers")


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    found, pending = [], [value]
    while pending:
        item = pending.pop()
        keys: Any = ()
        if isinstance(item, dict):
            keys = list(item)
        elif isinstance(item, list):
            keys = range(len(item))
        for key in keys:
            found.append((item, key))
            pending.append(item[key])
    return found


VALUES = (None, True, -3, 0, 1, 7, 2**31, 2**63, 10**40, 0.5, 1e300, "", "x", "\ud800", [], [[]], {}, {"a": 1}, float("inf"))


def mutate_json(file: Path, rng: random.Random) -> None:
    description = json.loads(file.read_text())
    container, key = rng.choice(places(description))
    kind = rng.randrange(4)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, list):
        container.insert(rng.randrange(len(container) + 1), container[key])
    elif kind == 2 and isinstance(container[key], int):
        container[key] += rng.choice((-2, -1, 1, 2, 100))
    else:
        container[key] = rng.choice(VALUES)
    file.write_text(json.dumps(description))


def mutate_bytes(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    kind = rng.randrange(4)
    header = 8 + struct.unpack("<Q", content[:8])[0] if file.name == TENSORS else len(content)
    if kind == 0:
        content = content[: rng.randrange(len(content))]
    elif kind == 1:
        content += bytes(rng.randrange(1, 9))
    else:
        for _ in range(rng.randrange(1, 4)):  # most of them in the header: the body's numbers mean little
            content[rng.randrange(header if kind == 2 else len(content))] = rng.randrange(256)
    file.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("kind", ["values", "text", "tensors"])
def test_fuzz(synth: ps.ParallelSynthesis, written: Path, tmp_path: Path, kind: str, hashed: bool) -> None:
    """Nothing but a UserError comes out; with hashes, what is read is what was written."""
    expected = synth.score(PROMPT, TARGET, branches=Branches.load(written))
    mutate = mutate_json if kind == "values" else mutate_bytes
    name = TENSORS if kind == "tensors" else DESCRIPTION
    read = 0
    for seed in range(MUTATIONS):
        folder = Path(shutil.copytree(written, tmp_path / str(seed)))
        if not hashed:
            without_hashes(folder)
        mutate(folder / name, random.Random(f"{kind} {seed}"))
        try:
            branches = Branches.load(folder)
            found = synth.score(PROMPT, TARGET, branches=branches)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000  # noqa: PT017  any of 200 may raise
            continue
        finally:
            shutil.rmtree(folder)
        assert np.isfinite(found).all()
        if hashed:
            np.testing.assert_array_equal(found, expected)
            read += 1
    assert read < MUTATIONS / 4, "mutations that change nothing test nothing"
