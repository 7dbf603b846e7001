"""What a conversion leaves on the disk: tokenizer files, modes of the umask, links; and nothing after a signal."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import psynth_jax as ps
from psynth_jax.convert import stream
from psynth_jax.convert.convert import base_of, convert
from psynth_jax.convert.rules import widest
from psynth_jax.errors import AdapterError, InputError
from tests.convert.test_hf import LLAMA, random_tensors, write_model
from tests.tiny import random_lora
from tests.umask import umask

ROOT = Path(__file__).parents[2]
MASKS = [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)]


def assert_modes(directory: Path, mode: int) -> None:
    """Files as the umask says, and folders with the right to enter them besides."""
    wrong = {}
    for path in [directory, *directory.rglob("*")]:
        expected = mode | (mode & 0o444) >> 2 if path.is_dir() else mode
        if path.stat().st_mode & 0o777 != expected:
            wrong[str(path.relative_to(directory))] = oct(path.stat().st_mode & 0o777)
    assert not wrong


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    model = ps.load_model("tiny-random")
    ps.save_adapter(tmp_path / "adapter", ps.Adapter(random_lora(model.config, 5), None), model)
    return tmp_path / "adapter"


class TestModes:
    @pytest.mark.parametrize(("mask", "mode"), MASKS)
    @pytest.mark.parametrize("to", ["hf", "psynth"])
    def test_of_models(self, to: Any, mask: int, mode: int, tmp_path: Path) -> None:
        with umask(mask):
            convert("tiny-random", tmp_path / "out", to)
        assert_modes(tmp_path / "out", mode)

    @pytest.mark.parametrize(("mask", "mode"), MASKS)
    def test_of_adapters_and_merged_models(self, adapter: Path, mask: int, mode: int, tmp_path: Path) -> None:
        with umask(mask):
            convert(adapter, tmp_path / "ours", "psynth")
            convert(adapter, tmp_path / "theirs", "peft")
            convert(adapter, tmp_path / "merged", "hf", merge=True)
        for name in ("ours", "theirs", "merged"):
            assert_modes(tmp_path / name, mode)

    @pytest.mark.parametrize(("mask", "mode"), MASKS)
    def test_of_branches(self, mask: int, mode: int, tmp_path: Path) -> None:
        synth = ps.ParallelSynthesis(ps.load_model("tiny-random"))
        branches = synth.encode([[1, 2, 3], [4, 5]])
        with umask(mask):
            branches.save(tmp_path / "branches")
        assert_modes(tmp_path / "branches", mode)


class TestLinks:
    @pytest.mark.parametrize("there", [True, False], ids=["an empty folder", "nothing yet"])
    @pytest.mark.parametrize("to", ["hf", "psynth"])
    def test_to_another_disk_are_written_through(self, to: Any, there: bool, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        if there:
            (tmp_path / "disk" / "model").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "disk" / "model")
        convert("tiny-random", tmp_path / "link", to)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "disk" / "model" / "config.json").is_file()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]
        assert [path.name for path in (tmp_path / "disk").iterdir()] == ["model"]

    def test_of_adapters_and_branches(self, adapter: Path, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        model = ps.load_model("tiny-random")
        for name in ("adapter", "branches"):
            (tmp_path / f"link-{name}").symlink_to(tmp_path / "disk" / name)
        convert(adapter, tmp_path / "link-adapter", "psynth")
        ps.save_adapter(tmp_path / "link-adapter", ps.load_adapter(adapter, model), model)
        ps.ParallelSynthesis(model).encode([[1, 2]]).save(tmp_path / "link-branches")
        assert all((tmp_path / f"link-{name}").is_symlink() for name in ("adapter", "branches"))
        assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["adapter", "branches"]


TEMPLATES = {"rag": "{{ messages[0].content }} with documents", "tool_use": "{{ messages[0].content }} with tools"}
FILES = {
    "special_tokens_map.json": "{}",
    "added_tokens.json": "{}",
    "vocab.json": "{}",
    "merges.txt": "#version: 0.2\n",
    "tokenizer.model": "not read",
    "chat_template.json": "{}",
    "tokenizer_config.json.txt": "kept",
    "LICENSE": "free",
    "generation_config.json": '{"eos_token_id": 257}',
}


class TestTokenizerFiles:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        convert("tiny-random", tmp_path / "source", "hf")
        (tmp_path / "source" / "additional_chat_templates").mkdir()
        for name, text in TEMPLATES.items():
            (tmp_path / "source" / "additional_chat_templates" / f"{name}.jinja").write_text(text)
        for name, text in FILES.items():
            (tmp_path / "source" / name).write_text(text)
        (tmp_path / "source" / "modeling.py").write_text("code is not carried")
        (tmp_path / "source" / "training_args.bin").write_text("nor is this")
        return tmp_path / "source"

    def test_all_come_along_there_and_back(self, source: Path, tmp_path: Path) -> None:
        """One folder was left behind, and with it went the tokenizer's fingerprint."""
        convert(source, tmp_path / "ours", "psynth")
        convert(tmp_path / "ours", tmp_path / "back", "hf")
        before = {path.relative_to(source): path.read_bytes() for path in source.rglob("*") if path.is_file()}
        for place in (tmp_path / "ours", tmp_path / "back"):
            for path, content in before.items():
                if path.suffix not in (".py", ".bin", ".safetensors"):
                    assert (place / path).read_bytes() == content, path
            assert not list(place.rglob("*.py")) and not list(place.rglob("*.bin"))
        models = [ps.load_model(place) for place in (source, tmp_path / "ours", tmp_path / "back")]
        first, *others = [model.tokenizer for model in models]
        assert first is not None and {*first.backend.chat_template} == {"default", *TEMPLATES}
        for other in others:
            assert other is not None and other.fingerprint == first.fingerprint
            assert other.backend.chat_template == first.backend.chat_template


class TestMixedDtypes:
    def test_the_widest_of_several(self) -> None:
        half, brain, single = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
        assert widest([half, half]) == half and widest([brain]) == brain
        assert widest([half, brain]) == widest([half, single]) == widest([brain, single]) == single

    def test_a_model_whose_layers_differ(self, tmp_path: Path) -> None:
        """NumPy has no dtype for bfloat16 and float16 together."""
        kinds = (np.float32, ml_dtypes.bfloat16, np.float16)
        tensors = {}
        for number, (name, values) in enumerate(random_tensors(LLAMA).items()):
            tensors[name] = values.astype(kinds[number % 3])
        (tmp_path / "source").mkdir()
        write_model(tmp_path / "source", LLAMA, tensors)
        convert(tmp_path / "source", tmp_path / "ours", "psynth")
        convert(tmp_path / "ours", tmp_path / "back", "hf")
        found = safetensors.numpy.load_file(tmp_path / "back" / "model.safetensors")
        assert all(found[name].dtype == x.dtype and found[name].tobytes() == x.tobytes() for name, x in tensors.items())
        whole = [parameter.read() for parameter in stream_of(tmp_path / "source").parameters if parameter.name == "layers.q"]
        assert whole[0].dtype == np.float32


def stream_of(directory: Path) -> stream.ModelStream:
    from psynth_jax.convert.load import open_model

    return open_model(directory, None)


class TestBases:
    def test_one_of_another_machine(self, adapter: Path, tmp_path: Path) -> None:
        description = json.loads((adapter / "psynth_adapter.json").read_text())
        (adapter / "psynth_adapter.json").write_text(json.dumps(description | {"base_name": "/home/ann/models/tiny"}))
        with pytest.raises(InputError, match=r"the model '/home/ann/models/tiny', which cannot be .* --base"):
            convert(adapter, tmp_path / "out", "peft")
        assert convert(adapter, tmp_path / "out", "peft", base="tiny-random").base == "tiny-random"

    def test_none_and_one_that_is_an_adapter(self, adapter: Path, tmp_path: Path) -> None:
        convert(adapter, tmp_path / "peft", "peft")
        config = tmp_path / "peft" / "judger_lora" / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": None}))
        with pytest.raises(InputError, match=r"give the model as base \(--base MODEL\)"):
            convert(tmp_path / "peft", tmp_path / "out", "psynth")
        with pytest.raises(InputError, match="adapter is an adapter"):
            base_of(tmp_path / "peft", adapter)

    def test_a_folder_of_checkpoints(self, adapter: Path, tmp_path: Path) -> None:
        convert(adapter, tmp_path / "peft", "peft")
        (tmp_path / "run").mkdir()
        (tmp_path / "peft" / "judger_lora").rename(tmp_path / "run" / "checkpoint-7")
        with pytest.raises(AdapterError, match=r"such as .*checkpoint-7"):
            convert(tmp_path / "run", tmp_path / "out", "psynth")

    def test_the_folder_of_a_run(self, tmp_path: Path) -> None:
        """Its config.json is not a model's; a model may have a folder of that name."""
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        (tmp_path / "run" / "config.json").write_text('{"workdir": "run"}')
        with pytest.raises(AdapterError, match="psynth export"):
            convert(tmp_path / "run", tmp_path / "out", "psynth")
        convert("tiny-random", tmp_path / "model", "hf")
        (tmp_path / "model" / "checkpoints").mkdir()
        assert convert(tmp_path / "model", tmp_path / "out", "psynth").kind == "model"


def test_a_merged_weight_that_overflows(tmp_path: Path) -> None:
    convert("tiny-random", tmp_path / "base", "hf", dtype="float16")
    model = ps.load_model(tmp_path / "base", "float16")
    lora = random_lora(model.config, 5)
    lora.up["q"] = lora.up["q"] * 1e6
    ps.save_adapter(tmp_path / "adapter", ps.Adapter(lora, None), model)
    with pytest.raises(AdapterError, match=r"layers\.q with the adapter, layer 0 has numbers up to .*float16"):
        convert(tmp_path / "adapter", tmp_path / "merged", "hf", merge=True)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("to", ["hf", "psynth"])
def test_says_how_far_it_is(to: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "psynth_jax.progress"):
        convert("tiny-random", tmp_path / "out", to)
    said = [record.getMessage() for record in caplog.records if record.name == "psynth_jax.progress"]
    assert len(said) > 10 and said[-1] == "converting tiny-random: 0.00 of 0.00 GB"


@pytest.mark.slow
@pytest.mark.parametrize("to", ["hf", "psynth"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_leaves_nothing(number: signal.Signals, to: str, tmp_path: Path) -> None:
    """In the middle of writing, with a writer's threads at work."""
    raw = {**LLAMA, "num_hidden_layers": 24, "hidden_size": 512, "intermediate_size": 1024}
    (tmp_path / "source").mkdir()
    write_model(tmp_path / "source", raw, {name: np.zeros_like(x) for name, x in random_tensors(raw).items()})
    (tmp_path / "out").mkdir()
    code = "import signal, sys; signal.signal(signal.SIGHUP, lambda *_: sys.exit(129)); "
    code += "from psynth_jax.convert import stream; stream.GROUP_BYTES = 4 << 20; from psynth_jax.cli import main; main()"
    command = [sys.executable, "-c", code, "convert", str(tmp_path / "source"), str(tmp_path / "out" / "made"), "--to", to]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if any(_is_file(path) for path in (tmp_path / "out").rglob("*")):
                process.send_signal(number)
                break
        assert process.wait(120) in (130, 143, 129)
    assert list((tmp_path / "out").iterdir()) == []


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # it has been moved or removed meanwhile
        return False
