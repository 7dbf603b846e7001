"""What the user does wrong: exit code 2, one line on stderr that says it, nothing on stdout, no traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import psynth_jax as ps
from tests.cli.conftest import Command, ModelCopy, Refused
from tests.tiny import random_mapper

BRANCH = ("--branch", "a note")


class TestMesh:
    """The tests have eight devices; the model has six heads."""

    @pytest.mark.parametrize("command", [("run", "Why?", *BRANCH), ("bench", "ttft"), ("bench", "decode")])
    @pytest.mark.parametrize(
        ("mesh", "said"),
        [
            ("branch=2,heads=4", "no axis 'heads'"),
            ("branch=2,tensor=2", "has 4 devices, but there are 8"),
            ("branch", "written like branch=2,tensor=2"),
            ("branch=2,tensor=4", "tensor=4 does not divide the heads N = 6"),
        ],
    )
    def test_does_not_fit(
        self, refused: Refused, model_directory: Path, command: tuple[str, ...], mesh: str, said: str
    ) -> None:
        assert said in refused(*command, "--model", model_directory, "--mesh", mesh)


class TestModel:
    @pytest.mark.parametrize("command", [("run", "Why?"), ("info",), ("bench", "ttft"), ("bench", "decode")])
    def test_none_such(self, refused: Refused, command: tuple[str, ...]) -> None:
        assert "there is no model './absent'" in refused(*command, "--model", "./absent")

    def test_unknown_family(self, refused: Refused, model_copy: ModelCopy) -> None:
        model_copy.configure(model_type="gpt_neox")
        assert "gpt_neox" in refused("run", "Why?", "--model", model_copy.path)

    def test_sliding_window(self, refused: Refused, model_copy: ModelCopy) -> None:
        model_copy.configure(model_type="qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=0)
        assert "sliding" in refused("run", "Why?", "--model", model_copy.path)

    def test_tensors(self, refused: Refused, model_copy: ModelCopy) -> None:
        """All that is wrong, in one line."""

        def damage(tensors: dict[str, np.ndarray]) -> None:
            del tensors["model.layers.1.mlp.up_proj.weight"]
            tensors["model.layers.0.extra.weight"] = np.zeros((2, 3), np.float32)
            tensors["model.norm.weight"] = np.zeros(7, np.float32)

        model_copy.edit_tensors(damage)
        said = refused("run", "Why?", "--model", model_copy.path)
        for what in ("missing model.layers.1.mlp.up_proj.weight", "extra model.layers.0.extra.weight", "[7]", "[24]"):
            assert what in said

    @pytest.mark.parametrize("keep", [0, 5, 100, -1])
    def test_truncated_safetensors(self, refused: Refused, model_copy: ModelCopy, keep: int) -> None:
        model_copy.weights.write_bytes(model_copy.weights.read_bytes()[:keep])
        assert "model.safetensors" in refused("run", "Why?", "--model", model_copy.path)

    @pytest.mark.parametrize("keep", [0, 3, 30, -1])
    def test_truncated_gguf(self, refused: Refused, tmp_path: Path, keep: int) -> None:
        file = tmp_path / "model.gguf"
        writer = gguf.GGUFWriter(file, "llama")
        writer.add_tensor("token_embd.weight", np.zeros((64, 32), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        file.write_bytes(file.read_bytes()[:keep])
        assert "model.gguf" in refused("run", "Why?", "--model", file)

    def test_without_a_config(self, refused: Refused, tmp_path: Path) -> None:
        assert "config.json" in refused("run", "Why?", "--model", tmp_path)

    def test_without_a_tokenizer(self, refused: Refused, model_copy: ModelCopy) -> None:
        for file in model_copy.path.glob("tokenizer*"):
            file.unlink()
        (model_copy.path / "chat_template.jinja").unlink()
        assert "has no tokenizer" in refused("run", "Why?", "--model", model_copy.path)

    def test_odd_name(self, refused: Refused) -> None:
        assert "[/red]" in refused("run", "Why?", "--model", "./[/red]")


class TestTexts:
    @pytest.mark.parametrize("question", ["", "  \n"])
    def test_empty_question(self, refused: Refused, question: str) -> None:
        assert refused("run", question) == "error: the question is empty"

    def test_empty_branch(self, refused: Refused) -> None:
        assert refused("run", "Why?", *BRANCH, "--branch", " ") == "error: branch 2 is empty"

    def test_empty_branch_file(self, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "empty.txt").touch()
        assert refused("run", "Why?", "--branch", f"@{tmp_path / 'empty.txt'}") == "error: branch 1 is empty"

    @pytest.mark.parametrize("arguments", [("Why?", "--branch", "@FILE"), ("@FILE",), ("Why?", "--roles", "FILE")])
    def test_no_such_file(self, refused: Refused, tmp_path: Path, arguments: tuple[str, ...]) -> None:
        file = str(tmp_path / "absent.txt")
        said = refused("run", *(argument.replace("FILE", file) for argument in arguments))
        assert file in said and "No such file" in said

    def test_directory_and_binary(self, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
        assert "Is a directory" in refused("run", "Why?", "--branch", f"@{tmp_path}")
        assert "not a UTF-8 text file" in refused("run", "Why?", "--branch", f"@{tmp_path / 'picture.png'}")

    @pytest.mark.parametrize("content", ["", "a: [", "- {name: poet}\n", "- {name: poet, text: Rhyme., more: 1}\n", "3"])
    def test_roles(self, refused: Refused, tmp_path: Path, content: str) -> None:
        (tmp_path / "roles.yaml").write_text(content)
        assert "roles.yaml" in refused("run", "Why?", "--roles", tmp_path / "roles.yaml")

    @pytest.mark.parametrize(
        "arguments",
        [
            ("word " * 120, *BRANCH),
            ("word " * 120, "--workers", 1),
            ("Why?", "--branch", "word " * 120),
            ("Why?", *BRANCH, "--max-new-tokens", 500),
            ("Why?", "--workers", 1, "--worker-tokens", 500),
        ],
    )
    def test_beyond_the_window(self, refused: Refused, model_directory: Path, arguments: tuple[object, ...]) -> None:
        said = refused("run", *arguments, "--model", model_directory)
        assert "does not fit the context window of 512 positions" in said


class TestAdapter:
    @pytest.fixture
    def adapter(self, model_directory: Path, tmp_path: Path) -> Path:
        model = ps.load_model(model_directory)
        synth = ps.ParallelSynthesis(model)
        synth.set_mapper(random_mapper(1))
        ps.save_adapter(str(tmp_path / "adapter"), synth.adapter, model)
        return tmp_path / "adapter"

    def change(self, adapter: Path, **changed: Any) -> None:
        file = adapter / "psynth_adapter.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))

    def test_none_such(self, refused: Refused, model_directory: Path, tmp_path: Path) -> None:
        said = refused("run", "Why?", "--model", model_directory, "--adapter", tmp_path / "absent")
        assert f"no such directory: {tmp_path / 'absent'}" in said

    def test_no_adapter(self, refused: Refused, model_directory: Path, tmp_path: Path) -> None:
        said = refused("run", "Why?", "--model", model_directory, "--adapter", tmp_path)
        assert "is not an adapter: it has no psynth_adapter.json" in said

    def test_unknown_version(self, refused: Refused, model_directory: Path, adapter: Path) -> None:
        self.change(adapter, format=99)
        said = refused("run", "Why?", "--model", model_directory, "--adapter", adapter)
        assert "adapter format 99, this version reads format 1" in said

    def test_of_another_model(self, refused: Refused, model_copy: ModelCopy, adapter: Path) -> None:
        model_copy.configure(rope_theta=77.0)
        said = refused("run", "Why?", "--model", model_copy.path, "--adapter", adapter)
        assert "was made for the base model" in said


class TestOptions:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--workers", 0), "--workers is 0; it must be at least 1"),
            (("--workers", "many"), "'--workers'"),
            (("--worker-tokens", 0), "--worker-tokens is 0; it must be at least 1"),
            (("--max-new-tokens", 0), "max_new_tokens is 0; it must be a whole number of at least 1"),
            (("--temperature", -1), "temperature is -1.0; it must be 0 (greedy) or more"),
            (("--temperature", "nan"), "temperature is nan"),
            (("--top-p", 2), "top_p is 2.0; it must be above 0 and at most 1"),
            (("--top-k", -3), "top_k is -3"),
            (("--dtype", "int4"), "dtype 'int4' is not supported; use one of float32, bfloat16, float16"),
            (("--positions", "nonsense"), "--positions is 'nonsense'; it must be exact or reference_live"),
            (("--cache-dtype", "int4"), "--cache-dtype is 'int4'; it must be one of float32, bfloat16, float16, int8"),
            (("--wrokers", 3), "--wrokers"),
            (("and", "more"), "unexpected extra argument"),
            ((*BRANCH, "--workers", 5), "--branch and --workers contradict each other"),
            ((*BRANCH, "--workers", 3), "--branch and --workers contradict each other"),  # the default, but asked for
            ((*BRANCH, "--worker-tokens", 5), "--branch and --worker-tokens contradict each other"),
            ((*BRANCH, "--roles", "r.yaml"), "r.yaml"),
            ((*BRANCH, "--positions", "reference_live"), "--branch and --positions contradict each other"),
            (("--top-p", 0.5), "--top-p has no effect at --temperature 0"),
            (("--top-k", 5), "--top-k has no effect at --temperature 0"),
            (("--branch", "-", "--roles", "-"), "only one of"),
        ],
    )
    def test_run(self, refused: Refused, model_directory: Path, arguments: tuple[object, ...], said: str) -> None:
        assert said in refused("run", "Why?", "--model", model_directory, *arguments)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--adapter", "./absent-adapter"), "no such directory: ./absent-adapter"),
            (("--adapter", "."), "is not an adapter"),
            (("--roles", "absent.yaml"), "absent.yaml"),
            (("--mesh", "branch"), "a mesh is written like"),
            (("--mesh", "heads=2"), "no axis 'heads'"),
            (("--dtype", "int4"), "dtype 'int4' is not supported"),
            (("--cache-dtype", "int4"), "--cache-dtype"),
            (("--positions", "nonsense"), "--positions"),
        ],
    )
    def test_is_said_before_a_model_is_looked_for(self, refused: Refused, arguments: tuple[object, ...], said: str) -> None:
        assert said in refused("run", "Why?", "--model", "./absent", *arguments)

    @pytest.mark.parametrize("argument", ["model", "adapter", "mesh", "dtype", "cache-dtype", "roles", "branch"])
    def test_bytes_that_are_not_utf8(self, refused: Refused, model_directory: Path, argument: str) -> None:
        """A shell passes any bytes on, which Python keeps as lone surrogates."""
        model = [] if argument == "model" else ["--model", model_directory]
        said = refused("run", "Why?", *model, f"--{argument}", "caf\udce9")
        assert said.isascii() and len(said) < 300  # what cannot be printed is escaped

    def test_a_question_that_is_not_utf8(self, refused: Refused) -> None:
        assert refused("run", "caf\udce9?") == "error: the question is not UTF-8 text"

    @pytest.mark.parametrize("to", ["hf", "psynth"])
    def test_a_target_that_is_not_utf8(self, refused: Refused, tmp_path: Path, to: str) -> None:
        assert "target is not UTF-8" in refused("convert", "tiny-random", f"{tmp_path}/caf\udce9", "--to", to)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("run",), "; see psynth run --help"),
            (("rnu", "Why?"), "No such command 'rnu'"),
            (("bench",), "Missing command"),
            (("bench", "speed"), "No such command 'speed'"),
            (("run", "Why?", "--seed"), "--seed"),
        ],
    )
    def test_command_line(self, refused: Refused, arguments: tuple[str, ...], said: str) -> None:
        assert said in refused(*arguments)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("ttft", "--branches", 0), "must be at least 1"),
            (("ttft", "--branch-tokens", 200), "does not fit the context window of 512 positions"),
            (("decode", "--rows", 0), "must be at least 1"),
            (("decode", "--new-tokens", 1), "new tokens at least 2"),
            (("decode", "--prefill-tokens", 513), "the timed prefill does not fit the context window of 512 positions"),
            (("decode", "--prefill-tokens", 5, "--prompt-tokens", 500), "does not fit the context window"),
            (("decode", "--against", "jax"), "--against is 'jax'; it must be torch"),
            (("train", "--against", "torch", "--random"), "leave out --random"),
            (("ttft", "--dtype", "int4"), "dtype 'int4' is not supported"),
            (("ttft", "--random"), "there is no model called"),
            (("ttft", "--repeats", 0), "--repeats is 0"),
            (("train", "--implementation", "fast"), "--implementation is 'fast'"),
            (("error", "--workers", 0), "--workers is 0"),
            (("decode", "--mesh", "branch"), "a mesh is written like"),
        ],
    )
    def test_bench(self, refused: Refused, model_directory: Path, arguments: tuple[object, ...], said: str) -> None:
        assert said in refused("bench", *arguments, "--model", model_directory)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--model", "gpt-2"), "no attention shape 'gpt-2': choose from smollm2-135m"),
            (("--tokens", 0), "must be at least 1"),
            (("--dtype", "int4"), "dtype 'int4' is not supported"),
            (("--cache-dtype", "int4"), "--cache-dtype is 'int4'"),
            (("--implementation", "fast"), "implementation is 'fast'; it must be one of auto, xla"),
            (("--implementation", "pallas_tpu"), "implementation pallas_tpu needs a TPU; the default device here is cpu"),
        ],
    )
    def test_bench_kernel(self, refused: Refused, arguments: tuple[object, ...], said: str) -> None:
        assert said in refused("bench", "kernel", *arguments)

    def test_bench_random_with_a_wrong_dtype(self, refused: Refused) -> None:
        assert "dtype 'int4' is not supported" in refused("bench", "decode", "--random", "--dtype", "int4")


def test_no_arguments_is_a_call_for_help(psynth: Command) -> None:
    done = psynth()
    assert (done.code, done.err) == (0, "")
    assert all(word in done.out for word in ("run", "info", "bench"))
