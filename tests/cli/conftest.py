"""The command run in this process, and a model directory that it can read: tokens are bytes, and it writes letters."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import signal
import string
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from safetensors.numpy import load_file, save_file

from psynth_jax import cli
from psynth_jax.cli import data_progress
from psynth_jax.convert.hf import config_from_hf
from psynth_jax.convert.rules import axis_sizes, hf_rules
from tests.tiny import BYTES_VOCABULARY, byte_tokenizer

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": BYTES_VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 13,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "eos_token_id": BYTES_VOCABULARY - 1,
}


def _tensors() -> dict[str, np.ndarray]:
    """Draw weights.  The head knows letters and the space only: what is written is text, and never ends by itself."""
    config = config_from_hf(CONFIG)
    rng = np.random.default_rng(3)
    tensors = {
        name: (0.5 * rng.standard_normal(rule.form.their_shape(axis_sizes(config)))).astype(np.float32)
        for rule in hf_rules(config)
        for name in rule.their_names(config).values()
    }
    letters = [byte_tokenizer().encode(letter)[0] for letter in string.ascii_lowercase + " "]
    silent = np.setdiff1d(np.arange(BYTES_VOCABULARY), letters)
    tensors["lm_head.weight"][silent] = 0
    return tensors


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with weights, tokenizer and chat template; tests that change it take `model_copy`."""
    pytest.importorskip("transformers", reason="tokenizers are transformers'")
    directory = tmp_path_factory.mktemp("models") / "tiny"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    save_file(_tensors(), directory / "model.safetensors")
    byte_tokenizer().backend.save_pretrained(directory)
    return directory


@dataclasses.dataclass(frozen=True)
class ModelCopy:
    """A model directory of the test's own, to be damaged."""

    path: Path

    def configure(self, **changed: Any) -> None:
        (self.path / "config.json").write_text(json.dumps(CONFIG | changed))

    def edit_tensors(self, edit: Callable[[dict[str, np.ndarray]], None]) -> None:
        tensors = load_file(self.weights)
        edit(tensors)
        save_file(tensors, self.weights)

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"


@pytest.fixture
def model_copy(model_directory: Path, tmp_path: Path) -> ModelCopy:
    return ModelCopy(shutil.copytree(model_directory, tmp_path / "model"))


PROGRESS = re.compile(r"^.* \.\.\. \d+ s\n", re.MULTILINE)  # what a command says while it works for seconds


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout, of a command that is done and had nothing else to say."""
        assert (self.code, self.err) == (0, "")
        assert self.out.count("\n") == 1
        return json.loads(self.out)


Command = Callable[..., Finished]
Refused = Callable[..., str]


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Give the signals of this process back to pytest afterwards."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    before, hook = {number: signal.getsignal(number) for number in numbers}, sys.unraisablehook
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture
def psynth(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache_folder: Path) -> Command:
    """Run `psynth ARGUMENTS` as its entry point does."""
    monkeypatch.setattr(data_progress, "FIRST", 3600.0)  # how busy the machine is must not show

    def run(*arguments: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["psynth", *map(str, arguments)])
        capsys.readouterr()
        with handlers_kept(), pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Finished(ended.value.code, captured.out, PROGRESS.sub("", captured.err))

    return run


@pytest.fixture(scope="session")
def compiled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cache_folder(compiled_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Let commands in processes of their own keep their compiled programs in a folder of the tests."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("PSYNTH_CACHE", str(compiled_folder))
    compilation_cache.reset_cache()
    yield compiled_folder
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def refused(psynth: Command) -> Refused:
    """Run a command that must be refused; return what it says."""

    def run(*arguments: object) -> str:
        done = psynth(*arguments)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("error: ")
        assert done.err.count("\n") == 1
        return done.err.strip()

    return run
