"""Descriptions and tensors of adapters with values of every wrong kind: one line of `UserError`, never a traceback."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import psynth_jax as ps
from psynth_jax.convert import release
from psynth_jax.convert.adapters import find_adapter, load_adapter, trained_from, training_summary
from psynth_jax.convert.torch_file import read_torch_file, write_torch_file
from psynth_jax.errors import AdapterError, UserError
from psynth_jax.mapper import Mapper
from psynth_jax.nn.adapter import Lora
from tests.tiny import random_lora, random_mapper, tiny_config, tiny_model

WRONG: list[Any] = [
    *(None, True, False, 0, -1, 10**30, -(10**30), 1.5, -2.0, math.nan, math.inf, -math.inf, 1e300),
    *("", "text", "q_proj", "\0", "x" * 5000, [], [[]], {}, {"a": [1]}, [None], [math.nan], ["q", "q"], [1, 2], [-1]),
    *([10**30], {"q_proj": "x"}, {"": 1}, [{"a": {}}], ["seed"]),
]
KEYS = {
    "psynth_adapter.json": (
        *("format", "base_fingerprint", "base_name", "vocab_size", "rank", "alpha", "targets", "mapper_hidden"),
        *("mapper_features", "sink", "training"),
    ),
    "checkpoint_meta.json": ("global_step", "epoch", "metrics", "base_fingerprint", "training", "vocab_size", "sink"),
    "cache_mapper_config.json": ("hidden_dim", "metadata_features"),
    "judger_lora/adapter_config.json": (
        *("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "target_modules"),
        *("exclude_modules", "bias", "fan_in_fan_out", "use_rslora", "use_dora", "modules_to_save", "init_lora_weights"),
        *("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_config", "loftq_config"),
        *("lora_bias", "layer_replication", "target_parameters", "trainable_token_indices", "alora_invocation_tokens"),
        *("use_something_new", "inference_mode", "eva_config"),
    ),
}


@pytest.fixture(scope="module")
def model() -> ps.Model:
    return tiny_model()


@pytest.fixture(scope="module")
def adapters(model: ps.Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same adapter of ours and as it is published, by the files that describe it."""
    directory = tmp_path_factory.mktemp("adapters")
    adapter = ps.Adapter(
        random_lora(tiny_config(), 1, targets=("q", "down")), Mapper.from_arrays(random_mapper(1)), sink=(1,)
    )
    ps.save_adapter(directory / "ours", adapter, model, {"steps": 3})
    (directory / "published").mkdir()
    release.write_release(directory / "published", adapter, model, {"steps": 3})
    places = dict.fromkeys(KEYS, directory / "published")
    return places | {"psynth_adapter.json": directory / "ours"}


def refusal(act: Callable[[], object]) -> str | None:
    """Return what is said where something is refused; None where it is not."""
    try:
        act()
    except UserError as error:
        return str(error)
    return None


def use(directory: Path, model: ps.Model) -> None:
    """Do all that is done with an adapter; what is refused is refused in one line."""
    acts = (lambda: load_adapter(directory, model), lambda: trained_from(directory), lambda: training_summary(directory))
    for said in map(refusal, acts):
        assert said is None or ("\n" not in said and len(said) < 1500), said


@contextlib.contextmanager
def described(directory: Path, name: str, change: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Change a description for the length of a block."""
    file = directory / name
    before = file.read_text()
    value = json.loads(before)
    change(value)
    file.write_text(json.dumps(value))
    try:
        yield
    finally:
        file.write_text(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", KEYS)
def test_every_key_with_every_wrong_value(name: str, adapters: dict[str, Path], model: ps.Model) -> None:
    for key in KEYS[name]:
        for wrong in WRONG:
            with described(adapters[name], name, lambda value, key=key, wrong=wrong: value.update({key: wrong})):
                use(adapters[name], model)
        with described(adapters[name], name, lambda value, key=key: value.pop(key, None)):
            use(adapters[name], model)
    assert load_adapter(adapters[name], model).lora is not None, "nothing was left changed"


@pytest.mark.parametrize("name", KEYS)
def test_several_at_once(name: str, adapters: dict[str, Path], model: ps.Model) -> None:
    draw = random.Random(7)
    for _ in range(100):
        keys = draw.sample(KEYS[name], min(3, len(KEYS[name])))
        changed = {key: draw.choice(WRONG) for key in keys}
        with described(adapters[name], name, lambda value, changed=changed: value.update(changed)):
            use(adapters[name], model)
    assert load_adapter(adapters[name], model).lora is not None, "nothing was left changed"


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize(
    "content",
    [b"", b"[", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b'{"r": ' + b"9" * 10_000 + b"}"],
    ids=range(8),
)
def test_descriptions_that_are_none(name: str, content: bytes, adapters: dict[str, Path], model: ps.Model) -> None:
    file = adapters[name] / name
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        use(adapters[name], model)
        with pytest.raises(UserError):
            load_adapter(adapters[name], model)
    finally:
        file.write_bytes(before)


@pytest.mark.parametrize("name", [*KEYS, "cache_mapper.pt", "judger_lora/adapter_model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "lost link", "directory"])
def test_files_that_are_none(name: str, kind: str, adapters: dict[str, Path], model: ps.Model, tmp_path: Path) -> None:
    """A pipe is not waited for, and nothing that should be there is taken for absent."""
    source = adapters.get(name, adapters["checkpoint_meta.json"])
    directory = shutil.copytree(source, tmp_path / "adapter")
    (directory / name).unlink()
    if kind == "pipe":
        os.mkfifo(directory / name)
    elif kind == "lost link":
        (directory / name).symlink_to(tmp_path / "nowhere")
    else:
        (directory / name).mkdir()
    with pytest.raises(UserError) as caught:
        load_adapter(directory, model)
    assert "\n" not in str(caught.value)


def of_kind(kind: str, shape: list[int], size: int) -> bytes:
    """Spell a safetensors file with one tensor of a dtype that NumPy need not know."""
    header = json.dumps({"lora.q.down": {"dtype": kind, "shape": shape, "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


@pytest.mark.parametrize(
    "content",
    [
        of_kind("F8_E4M3", [2, 4], 8),
        of_kind("F8_E5M2", [8], 8),
        of_kind("I64", [1], 8),
        of_kind("BOOL", [8], 8),
        of_kind("C64", [1], 8),
        of_kind("F4", [16], 8),
        of_kind("F32", [1 << 62], 8),
        of_kind("F32", [1 << 40, 1 << 40], 8),
        of_kind("F32", [0, 10**9], 0),
        of_kind("NONE", [1], 8),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
        b"",
    ],
    ids=range(12),
)
def test_tensors_of_other_kinds(content: bytes, adapters: dict[str, Path], model: ps.Model, tmp_path: Path) -> None:
    ours = shutil.copytree(adapters["psynth_adapter.json"], tmp_path / "ours")
    theirs = shutil.copytree(adapters["checkpoint_meta.json"], tmp_path / "theirs")
    files = [ours / "adapter.safetensors", ours / "mapper.safetensors", theirs / "judger_lora" / "adapter_model.safetensors"]
    for file in files:
        before = file.read_bytes()
        file.write_bytes(content)
        with pytest.raises(UserError) as caught:
            load_adapter(ours if ours in file.parents else theirs, model)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500
        if content.startswith(b"version"):
            assert "git lfs pull" in str(caught.value)
        file.write_bytes(before)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
class TestNumbersThatAreNotFinite:
    @pytest.mark.parametrize("file", ["adapter.safetensors", "mapper.safetensors"])
    def test_of_ours(self, file: str, number: float, adapters: dict[str, Path], model: ps.Model, tmp_path: Path) -> None:
        directory = shutil.copytree(adapters["psynth_adapter.json"], tmp_path / "adapter")
        tensors = safetensors.numpy.load_file(directory / file)
        for name in tensors:
            changed = tensors[name].copy()
            changed.flat[-1] = number
            safetensors.numpy.save_file(tensors | {name: changed}, directory / file)
            with pytest.raises(AdapterError, match=rf"{file}: {name} is damaged: 1 number is not finite"):
                load_adapter(directory, model)

    def test_of_the_published_mapper(
        self, number: float, adapters: dict[str, Path], model: ps.Model, tmp_path: Path
    ) -> None:
        directory = shutil.copytree(adapters["checkpoint_meta.json"], tmp_path / "adapter")
        tensors = read_torch_file(directory / "cache_mapper.pt")
        for name in tensors:
            changed = tensors[name].copy()
            changed.flat[0] = number
            write_torch_file(directory / "cache_mapper.pt", tensors | {name: changed})
            with pytest.raises(AdapterError, match=rf"cache_mapper\.pt: {name} is damaged: 1 number is .* at \[0"):
                load_adapter(directory, model)

    def test_is_not_saved(self, number: float, model: ps.Model, tmp_path: Path) -> None:
        lora = random_lora(tiny_config(), 1)
        lora.down["q"] = lora.down["q"].at[1, 2, 3].set(number)
        with pytest.raises(AdapterError, match=r"lora\.q\.down is damaged: 1 number is .* at \[1, 2, 3\]"):
            ps.save_adapter(tmp_path / "adapter", ps.Adapter(lora, None), model)
        mapper = Mapper.from_arrays(random_mapper(1))
        spoiled = Mapper(mapper.hidden_kernel, mapper.hidden_bias, mapper.out_kernel, mapper.out_bias.at[0].set(number))
        with pytest.raises(AdapterError, match="out_bias of the mapper"):
            ps.save_adapter(tmp_path / "adapter", ps.Adapter(None, spoiled), model)
        assert list(tmp_path.iterdir()) == []


def test_what_float16_cannot_hold_is_not_saved(model: ps.Model, tmp_path: Path) -> None:
    lora = random_lora(tiny_config(), 1)
    lora.up["o"] = lora.up["o"].at[0, 0, 0].set(1e5)
    with pytest.raises(AdapterError, match=r"lora\.o\.up has numbers up to 1e\+05, which float16 cannot represent"):
        ps.save_adapter(tmp_path / "adapter", ps.Adapter(lora, None), model, dtype="float16")
    ps.save_adapter(tmp_path / "adapter", ps.Adapter(lora, None), model, dtype="bfloat16")


def test_what_float16_cannot_hold_is_not_used_in_it(tmp_path: Path) -> None:
    model = ps.load_model("tiny-random")
    lora = random_lora(model.config, 1)
    lora.up["o"] = lora.up["o"].at[0, 0, 0].set(1e5)
    ps.save_adapter(tmp_path / "adapter", ps.Adapter(lora, None), model)
    halved = ps.Model(model.decoder, model.tokenizer, model.stop_ids, model.name)
    rows = np.zeros((1, 64), np.float16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ps.Model, "rows", lambda *_: rows)
        with pytest.raises(AdapterError, match=r"up of o has numbers up to 1e\+05, which float16 cannot represent"):
            load_adapter(tmp_path / "adapter", halved)
    assert load_adapter(tmp_path / "adapter", model).lora is not None


class TestLorasInMemory:
    def test_numbers_that_are_not_finite(self, model: ps.Model) -> None:
        lora = random_lora(tiny_config(), 1)
        lora.down["v"] = lora.down["v"].at[0, 1, 2].set(np.nan)
        with pytest.raises(AdapterError, match="down of 'v' has numbers that are not finite"):
            ps.ParallelSynthesis(model, adapter=lora)

    @pytest.mark.parametrize(
        ("down", "up"), [([1], {}), ({}, {}), ({"q": 5}, {"q": 5}), ({"q": np.float32(1)}, {}), ({5: np.ones(3)}, {})]
    )
    def test_factors_that_are_none(self, model: ps.Model, down: Any, up: Any) -> None:
        with pytest.raises(AdapterError, match="the adapter does not fit"):
            ps.ParallelSynthesis(model, adapter=Lora(down, up, np.float32(1)))  # type: ignore[arg-type]


class TestFoldersThatAreNoAdapters:
    @pytest.mark.parametrize("inner", [".", "adapter"])
    def test_of_a_trainer(self, inner: str, adapters: dict[str, Path], tmp_path: Path) -> None:
        for step in ("50", "1000", "200"):
            place = tmp_path / f"checkpoint-{step}" / inner
            place.parent.mkdir(exist_ok=True)
            shutil.copytree(adapters["checkpoint_meta.json"] / "judger_lora", place)
        with pytest.raises(AdapterError, match=r"3 checkpoints: name one of them, such as .*checkpoint-1000"):
            find_adapter(tmp_path)

    def test_of_a_model_and_of_the_cache(self, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
        with pytest.raises(AdapterError, match="is a model, not an adapter"):
            find_adapter(tmp_path / "model")
        (tmp_path / "models--a--b" / "snapshots" / "main").mkdir(parents=True)
        with pytest.raises(AdapterError, match="hub's cache"):
            find_adapter(tmp_path / "models--a--b")

    @pytest.mark.parametrize("source", [5, None, b"adapter", ["a"], "~nobody-here/x", "a\0b", "\ud800"])
    def test_what_is_no_name(self, source: Any, model: ps.Model) -> None:
        with pytest.raises(UserError) as caught:
            load_adapter(source, model)
        assert "\n" not in str(caught.value)


class TestMapperArrays:
    @pytest.mark.parametrize(
        "arrays", [None, 5, b"bytes", "text", [1, 2], [random_mapper(1)], Mapper.from_arrays(random_mapper(1)), {}, {1: 2}]
    )
    def test_what_is_no_dict_of_them(self, arrays: Any) -> None:
        with pytest.raises(AdapterError) as caught:
            Mapper.from_arrays(arrays)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "value",
        [None, 5, b"bytes", "text", [[1, 2], [3]], ["a"] * 32, {}, object(), np.zeros(32, complex), np.zeros(32, "U3")],
        ids=lambda value: type(value).__name__,
    )
    @pytest.mark.parametrize("name", ["hidden_kernel", "hidden_bias", "out_bias"])
    def test_what_is_no_array(self, name: str, value: Any) -> None:
        with pytest.raises(AdapterError, match=name):
            Mapper.from_arrays({**random_mapper(1), name: value})

    @pytest.mark.parametrize("number", [np.nan, np.inf, 1e300])
    def test_numbers_that_float32_has_not(self, number: float) -> None:
        arrays = random_mapper(1)
        kernel = arrays["out_kernel"].astype(np.float64)
        kernel[3, 1] = number
        with pytest.raises(AdapterError, match="out_kernel has numbers that are not finite"):
            Mapper.from_arrays({**arrays, "out_kernel": kernel})

    def test_lists_of_numbers_are_arrays(self) -> None:
        arrays = random_mapper(1)
        made = Mapper.from_arrays({name: value.tolist() for name, value in arrays.items()})  # type: ignore[misc]
        assert np.array_equal(made.out_kernel, arrays["out_kernel"])
