"""An adapter directory: what is written comes back, and what cannot be used is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

import psynth_jax as ps
from psynth_jax.convert.adapter_directory import Adapter, save_adapter
from psynth_jax.convert.adapters import load_adapter
from psynth_jax.errors import AdapterError, InputError, ModelMismatchError
from psynth_jax.mapper import Mapper
from tests.tiny import random_lora, random_mapper, tiny_config, tiny_decoder, tiny_model, token_ids
from tests.trees import tree_differences

FILES = ("adapter.safetensors", "mapper.safetensors", "psynth_adapter.json")


@pytest.fixture(scope="module")
def model() -> ps.Model:
    return tiny_model()


@pytest.fixture
def adapter() -> Adapter:
    return Adapter(random_lora(tiny_config(), 1), Mapper.from_arrays(random_mapper(1)), sink=(3, 1, 4))


@pytest.fixture
def saved(model: ps.Model, adapter: Adapter, tmp_path: Path) -> Path:
    save_adapter(str(tmp_path / "adapter"), adapter, model, {"steps": 12, "loss": 0.5})
    return tmp_path / "adapter"


def same(one: Adapter, other: Adapter) -> bool:
    trees = [(adapter.lora, adapter.mapper) for adapter in (one, other)]
    alike = jax.tree.structure(trees[0]) == jax.tree.structure(trees[1]) and tree_differences(*trees) == []
    return alike and one.sink == other.sink


def assert_refused(saved: Path, model: ps.Model, match: str, kind: type[Exception] = AdapterError) -> None:
    with pytest.raises(kind, match=match) as caught:
        load_adapter(str(saved), model)
    assert "\n" not in str(caught.value)


class TestRoundTrip:
    def test_of_everything(self, model: ps.Model, adapter: Adapter, saved: Path) -> None:
        assert sorted(path.name for path in saved.iterdir()) == sorted(FILES)
        assert [path.name for path in saved.parent.iterdir()] == ["adapter"], "scratch files were left behind"
        assert same(load_adapter(str(saved), model), adapter)

    @pytest.mark.parametrize("targets", [("q",), ("o", "v"), ("k", "down")])
    def test_of_some_targets(self, model: ps.Model, tmp_path: Path, targets: tuple[str, ...]) -> None:
        adapter = Adapter(random_lora(tiny_config(), 1, rank=3, targets=targets), None)
        save_adapter(str(tmp_path / "adapter"), adapter, model)
        loaded = load_adapter(str(tmp_path / "adapter"), model)
        assert same(loaded, adapter) and loaded.lora.rank == 3

    def test_on_the_mlp_it_is_not_for_experts(self, tmp_path: Path) -> None:
        model = tiny_model(family="qwen3_moe", qk_norm=True, experts=4, experts_per_token=2)
        save_adapter(tmp_path / "adapter", Adapter(random_lora(tiny_config(), 1), None), model)
        with pytest.raises(AdapterError, match=r"no LoRA may be on down, gate, up of tiny"):
            load_adapter(tmp_path / "adapter", model)

    def test_of_a_mapper_alone_and_of_nothing(self, model: ps.Model, tmp_path: Path) -> None:
        for name, adapter in {
            "mapper": Adapter(None, Mapper.from_arrays(random_mapper(2))),
            "nothing": Adapter(None, None),
        }.items():
            save_adapter(str(tmp_path / name), adapter, model)
            assert same(load_adapter(str(tmp_path / name), model), adapter)

    def test_describes_itself(self, model: ps.Model, saved: Path) -> None:
        description = json.loads((saved / "psynth_adapter.json").read_text())
        assert description == {
            "format": 1,
            "base_fingerprint": model.fingerprint,
            "base_name": "tiny",
            "vocab_size": 97,
            "rank": 4,
            "alpha": 8.0,
            "targets": ["down", "gate", "k", "o", "q", "up", "v"],
            "mapper_hidden": 32,
            "mapper_features": ["log1p_span", "log1p_branches", "relative_layer"],
            "sink": [3, 1, 4],
            "template": None,
            "training": {"steps": 12, "loss": 0.5},
        }

    def test_gives_the_same_results(self, model: ps.Model, adapter: Adapter, saved: Path) -> None:
        live = ps.ParallelSynthesis(model, adapter)
        branches = live.encode([token_ids(1, 5), token_ids(2, 7)])
        prompt, target = token_ids(3, 5), token_ids(4, 3)
        expected = live.score(prompt, target, branches=branches)
        loaded = ps.ParallelSynthesis(model, adapter=str(saved))
        np.testing.assert_array_equal(loaded.score(prompt, target, branches=branches), expected)
        base = ps.ParallelSynthesis(model)
        assert np.abs(base.score(prompt, target, branches=branches) - expected).max() > 1e-2

    @pytest.mark.parametrize("template", [None, {}, {"enable_thinking": False, "depth": [1, "é"]}])
    def test_keeps_template_variables(self, model: ps.Model, tmp_path: Path, template: Any) -> None:
        save_adapter(tmp_path / "adapter", Adapter(None, None, template=template), model)
        assert load_adapter(tmp_path / "adapter", model).template == template

    def test_one_of_an_earlier_version_has_no_template_variables(self, model: ps.Model, saved: Path) -> None:
        description = json.loads((saved / "psynth_adapter.json").read_text())
        del description["template"]
        (saved / "psynth_adapter.json").write_text(json.dumps(description))
        assert load_adapter(saved, model).template == {}

    @pytest.mark.parametrize("template", [7, "x", [1], {"messages": 1}, {"a b": 1}])
    def test_template_variables_that_are_none_are_refused(self, model: ps.Model, saved: Path, template: Any) -> None:
        description = json.loads((saved / "psynth_adapter.json").read_text())
        (saved / "psynth_adapter.json").write_text(json.dumps(description | {"template": template}))
        with pytest.raises(AdapterError, match="template of"):
            load_adapter(saved, model)

    def test_digest_covers_template_variables(self) -> None:
        plain, empty, some = (Adapter(None, None, template=value) for value in (None, {}, {"a": 1}))
        assert plain.digest == empty.digest != some.digest

    def test_one_without_a_word_of_a_sink_has_none(self, model: ps.Model, saved: Path) -> None:
        description = json.loads((saved / "psynth_adapter.json").read_text())
        del description["sink"]
        (saved / "psynth_adapter.json").write_text(json.dumps(description))
        assert load_adapter(str(saved), model).sink == ()

    @pytest.mark.parametrize("sink", ["3 1 4", [97], [-1], [True], [1.0], None])
    def test_what_is_no_sink_is_refused(self, model: ps.Model, saved: Path, sink: object) -> None:
        description = json.loads((saved / "psynth_adapter.json").read_text())
        (saved / "psynth_adapter.json").write_text(json.dumps(description | {"sink": sink}))
        assert_refused(saved, model, "sink must be a list of token ids of tiny")


class TestWriting:
    def test_replaces_an_adapter(self, model: ps.Model, saved: Path) -> None:
        other = Adapter(None, Mapper.from_arrays(random_mapper(2)))
        save_adapter(str(saved), other, model)
        assert sorted(path.name for path in saved.iterdir()) == sorted(FILES[1:])
        assert same(load_adapter(str(saved), model), other)

    def test_leaves_other_directories_alone(self, model: ps.Model, adapter: Adapter, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("years of work")
        for target in (tmp_path, tmp_path / "thesis.txt"):
            with pytest.raises(InputError, match="not an adapter directory"):
                save_adapter(str(target), adapter, model)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    def test_takes_an_empty_directory_and_no_notes_next_to_an_adapter(
        self, model: ps.Model, adapter: Adapter, tmp_path: Path
    ) -> None:
        save_adapter(tmp_path, adapter, model)
        (tmp_path / "NOTES.md").write_text("do not lose me")
        with pytest.raises(InputError, match=r"it has NOTES\.md"):
            save_adapter(tmp_path, adapter, model)
        assert (tmp_path / "NOTES.md").read_text() == "do not lose me"

    @pytest.mark.parametrize("broken", ["write", "rename"])
    @pytest.mark.parametrize("before", [True, False])
    def test_that_fails_leaves_what_was_there(
        self,
        model: ps.Model,
        adapter: Adapter,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        broken: str,
        before: bool,
    ) -> None:
        target, rename = tmp_path / "adapter", Path.rename
        if before:
            save_adapter(str(target), adapter, model)

        def no_space(tensors: Any, path: Path, **_: Any) -> None:
            Path(path).write_bytes(b"half of it")
            raise OSError("No space left on device")

        def busy(self: Path, to: Path) -> Path:
            if self.name == "new":
                raise OSError("Device or resource busy")
            return rename(self, to)

        with monkeypatch.context() as patch:
            if broken == "write":
                patch.setattr(safetensors.numpy, "save_file", no_space)
            else:
                patch.setattr(Path, "rename", busy)
            with pytest.raises(OSError, match=r"No space|busy"):
                save_adapter(str(target), Adapter(None, adapter.mapper), model)
        assert [path.name for path in tmp_path.iterdir()] == (["adapter"] if before else [])
        if before:
            assert same(load_adapter(str(target), model), adapter)


class TestReading:
    @staticmethod
    def describe(saved: Path, **changed: Any) -> None:
        file = saved / "psynth_adapter.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))

    @staticmethod
    def change_tensors(saved: Path, name: str, change: Any) -> None:
        tensors = safetensors.numpy.load_file(saved / name)
        change(tensors)
        safetensors.numpy.save_file(tensors, saved / name)

    def test_no_such_directory(self, model: ps.Model, tmp_path: Path) -> None:
        assert_refused(tmp_path / "nowhere", model, "no such directory", InputError)

    def test_a_directory_of_something_else(self, model: ps.Model, tmp_path: Path) -> None:
        assert_refused(tmp_path, model, r"is not an adapter: it has no psynth_adapter\.json")

    def test_an_unknown_format_version(self, model: ps.Model, saved: Path) -> None:
        self.describe(saved, format=2)
        assert_refused(saved, model, "adapter format 2, this version reads format 1")

    def test_another_model(self, saved: Path) -> None:
        other = ps.Model(tiny_decoder(tiny_config(), seed=1), None, frozenset(), "another")
        assert_refused(saved, other, "base model tiny, not for another", ModelMismatchError)
        with pytest.raises(ModelMismatchError):
            ps.ParallelSynthesis(other, adapter=str(saved))

    @pytest.mark.parametrize("name", FILES)
    def test_a_missing_file(self, model: ps.Model, saved: Path, name: str) -> None:
        (saved / name).unlink()
        assert_refused(saved, model, name)

    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("kept", [0, 0.4, 0.95])
    def test_a_truncated_file(self, model: ps.Model, saved: Path, name: str, kept: float) -> None:
        content = (saved / name).read_bytes()
        (saved / name).write_bytes(content[: int(kept * len(content))])
        assert_refused(saved, model, "not a readable adapter")

    @pytest.mark.parametrize("content", [b"[]", b"null", b"{}", b'"text"', b"\xff"])
    def test_a_description_of_something_else(self, model: ps.Model, saved: Path, content: bytes) -> None:
        (saved / "psynth_adapter.json").write_bytes(content)
        assert_refused(saved, model, "not a readable adapter")

    @pytest.mark.parametrize(
        "changed",
        [
            {"rank": 5},
            {"rank": 0},
            {"rank": "four"},
            {"alpha": None},
            {"targets": ["q", "router"]},
            {"targets": ["q"]},
            {"mapper_features": ["log1p_span"]},
            {"mapper_hidden": 16},
        ],
        ids=str,
    )
    def test_a_description_that_does_not_fit(self, model: ps.Model, saved: Path, changed: dict[str, Any]) -> None:
        self.describe(saved, **changed)
        assert_refused(saved, model, "readable adapter|do not fit the model|the mapper")

    def test_all_problems_of_the_factors_are_listed(self, model: ps.Model, saved: Path) -> None:
        def change(tensors: dict[str, np.ndarray]) -> None:
            del tensors["lora.q.up"]
            tensors["lora.k.down"] = tensors["lora.k.down"][:, 1:].copy()
            tensors["lora.x.down"] = np.zeros(3, np.float32)

        self.change_tensors(saved, "adapter.safetensors", change)
        assert_refused(saved, model, r"missing lora\.q\.up")
        assert_refused(saved, model, r"extra lora\.x\.down")
        assert_refused(saved, model, r"lora\.k\.down has shape \[3, 21, 4\], expected \[3, 22, 4\]")

    def test_all_problems_of_the_mapper_are_listed(self, model: ps.Model, saved: Path) -> None:
        def change(tensors: dict[str, np.ndarray]) -> None:
            del tensors["out_bias"]
            tensors["hidden_kernel"] = tensors["hidden_kernel"][:, :31].copy()

        self.change_tensors(saved, "mapper.safetensors", change)
        assert_refused(saved, model, r"missing out_bias; hidden_kernel has shape \[3, 31\], expected \[3, 32\]")
