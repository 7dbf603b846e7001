"""`psynth info` and `psynth bench`: their JSON objects, and their tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import psynth_jax as ps
from psynth_jax.config import DecoderConfig
from psynth_jax.presets import PRESETS, Preset
from tests.cli.conftest import Command
from tests.tiny import tiny_config

TTFT = ("--branches", 2, "--branch-tokens", 6, "--prompt-tokens", 4, "--repeats", 1)
TRAIN = ("--examples", 3, "--branches", 2, "--branch-tokens", 12, "--prompt-tokens", 6, "--target-tokens", 5, "--repeats", 1)
DECODE = ("--rows", 2, "--new-tokens", 3, "--prompt-tokens", 4, "--prefill-tokens", 9, "--repeats", 1)
DECODING = {"token_s", "token_twice_s", "twice_over_once"}
FLOORS = {"floor_s", "ratio_to_floor", "text_floor_s", "next_token_s", "next_token_floor_s"}
FLOORS |= {"copy_bytes_per_s", "matmul_flops_per_s"}
TORCH_TTFT = {"torch_prefill_s", "text_over_torch", "torch_text_s", "torch_published_s"}
SAME = {"bench", "model", "weights", "dtype", "device", "jax", "prompt_tokens", "repeats"}


def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psynth_jax.bench.rates.COPY_BYTES", 1 << 12)
    monkeypatch.setattr("psynth_jax.bench.rates.MATMUL", 16)
    monkeypatch.setattr("psynth_jax.bench.train.READ_SECONDS", 0.1)


class TestInfo:
    def test_json(self, psynth: Command) -> None:
        found = psynth("info", "--json").json
        assert {"psynth_jax", "python", "jax", "jaxlib", "flax", "device", "devices", "cache"} < set(found)
        assert found["presets"] == sorted(PRESETS)
        assert "model" not in found

    def test_programs(self, psynth: Command) -> None:
        found = psynth("info", "--programs", "--json").json["programs"]
        default = [program for program in found if program["compiled"] == "default"]
        assert len(default) == 10
        assert default[0] == {"program": "step", "rows": 1, "tokens": 1, "branches": 9, "runs": 25, "compiled": "default"}
        assert {program["program"] for program in found} == {"step", "score"}
        assert "first use" in psynth("info", "--programs").err

    def test_model(self, psynth: Command, model_directory: Path) -> None:
        found = psynth("info", "--model", model_directory, "--json").json["model"]
        assert found["name"] == str(model_directory)
        assert (found["family"], found["layers"], found["stop_ids"]) == ("llama", 2, [257])
        assert set(DecoderConfig.model_fields) < set(found)

    def test_source(self, psynth: Command, model_directory: Path) -> None:
        found = psynth("info", model_directory, "--json").json
        model = ps.load_model(model_directory)
        counts = sum(value.size for value in model.decoder.parameters().values())
        assert (found["family"], found["layers"], found["parameters"]) == ("llama", 2, counts)
        assert (found["fingerprint"], found["adapter"]) == (model.fingerprint, None)
        assert found["adapters"] == ["smollm2-135m"]
        assert "contradict" in psynth("info", model_directory, "--model", model_directory).err

    def test_source_is_not_put_on_a_device(
        self, psynth: Command, model_directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("psynth_jax.nn.decoder.Decoder.__init__", lambda *_: pytest.fail("a decoder was made"))
        done = psynth("info", model_directory)
        assert done.code == 0
        for word in ("fingerprint", "parameters", "adapters", "smollm2-135m", "llama", "none"):
            assert word in done.err

    def test_table(self, psynth: Command, model_directory: Path) -> None:
        done = psynth("info", "--model", model_directory)
        assert (done.code, done.out) == (0, "")
        assert "smollm2-135m" in done.err and "llama" in done.err


class TestBench:
    @pytest.mark.slow
    def test_ttft(self, psynth: Command, model_directory: Path) -> None:
        found = psynth("bench", "ttft", "--model", model_directory, *TTFT, "--json").json
        measured = {"branches", "branch_tokens", "ttft_text_s", "ttft_branches_s", "ratio", *DECODING, *FLOORS}
        assert set(found) == SAME | measured
        assert found["ratio_to_floor"] == pytest.approx(found["ttft_branches_s"] / found["floor_s"])
        assert found["next_token_s"] == found["token_s"]
        assert found["next_token_floor_s"] > 0 < found["text_floor_s"]
        assert (found["model"], found["weights"], found["dtype"]) == (str(model_directory), "real", "float32")
        assert (found["branches"], found["branch_tokens"], found["prompt_tokens"], found["repeats"]) == (2, 6, 4, 1)
        assert found["ratio"] == pytest.approx(found["ttft_text_s"] / found["ttft_branches_s"])
        assert found["ttft_branches_s"] > 0
        assert found["twice_over_once"] == pytest.approx(found["token_twice_s"] / found["token_s"]) and found["token_s"] > 0

    @pytest.mark.slow
    def test_weights_that_were_drawn_are_not_real(self, psynth: Command) -> None:
        assert psynth("bench", "ttft", "--model", "tiny-random", *TTFT, "--json").json["weights"] == "random"

    @pytest.mark.slow
    def test_over_a_mesh(self, psynth: Command, model_directory: Path) -> None:
        found = psynth("bench", "decode", "--model", model_directory, *DECODE, "--mesh", "branch=8", "--json").json
        assert found["mesh"] == "branch=8"
        assert found["tokens_per_s"] > 0

    @pytest.mark.slow
    def test_decode(self, psynth: Command, model_directory: Path) -> None:
        found = psynth("bench", "decode", "--model", model_directory, *DECODE, "--json").json
        seconds = {"prefill_s", "decode_s", "workers_batch_s", "workers_serial_s"}
        assert set(found) == SAME | seconds | {"rows", "new_tokens", "prefill_tokens", "tokens_per_s", "batch_over_serial"}
        assert all(found[name] > 0 for name in seconds)
        assert found["tokens_per_s"] == pytest.approx(2 * 2 / found["decode_s"])
        assert found["batch_over_serial"] == pytest.approx(found["workers_batch_s"] / found["workers_serial_s"])

    @pytest.mark.slow
    @pytest.mark.usefixtures("programs_stay")
    def test_requests(self, psynth: Command, model_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in (("TOKENS", 3), ("BRANCH_TOKENS", 6), ("REPEATS", 1)):
            monkeypatch.setattr(f"psynth_jax.bench.requests.{name}", value)
        found = psynth("bench", "requests", "--model", model_directory, "--clients", 3, "--json").json
        seconds = {"ttft_p50_s", "ttft_p99_s", "inter_token_p50_s", "inter_token_p99_s", "ttft_branches_s", "ttft_text_s"}
        counts = {"programs_before", "compilations", "requests", "prefix_hit_tokens", "pool_tokens", "used_tokens_after"}
        rates = {"tokens_per_s_1", "tokens_per_s_n", "ratio"}
        assert set(found) == SAME - {"prompt_tokens", "repeats"} | seconds | counts | rates | {"clients"}
        assert all(found[name] > 0 for name in seconds | rates)
        assert found["compilations"] == found["used_tokens_after"] == 0
        assert (found["programs_before"], found["clients"], found["requests"]) == (10, 3, 6)
        assert found["ratio"] == pytest.approx(found["tokens_per_s_n"] / found["tokens_per_s_1"])

    @pytest.mark.parametrize("cache_dtype", ["float32", "int8"])
    def test_kernel(self, psynth: Command, monkeypatch: pytest.MonkeyPatch, cache_dtype: str) -> None:
        _quick(monkeypatch)
        shape = ("--model", "smollm2-135m", "--tokens", 3, "--branches", 2, "--branch-tokens", 70, "--repeats", 1)
        found = psynth("bench", "kernel", *shape, "--cache-dtype", cache_dtype, "--json").json
        assert found["case"] == "smollm2-135m-t3-2x70"
        itemsize = {"float32": 4, "int8": 1}[cache_dtype]
        assert found["cache_bytes"] == 2 * 2 * 70 * 3 * 64 * itemsize
        assert found["flops"] == 4 * 3 * (140 + 2) * 9 * 64
        assert found["bytes_per_s"] == pytest.approx(found["cache_bytes"] / found["seconds"])
        assert found["times_floor"] == pytest.approx(found["seconds"] / found["floor_s"])
        low, high = {"float32": (0, 1e-5), "int8": (1e-5, 0.1)}[cache_dtype]
        assert low <= found["largest_error"] < high

    @pytest.mark.slow
    def test_train(self, psynth: Command, model_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _quick(monkeypatch)
        found = psynth("bench", "train", "--model", model_directory, *TRAIN, "--json").json
        sizes = {"examples": 3, "branches": 2, "branch_tokens": 12, "prompt_tokens": 6, "target_tokens": 5}
        assert sizes.items() < found.items()
        assert 0 < found["tokens"] <= found["padded_tokens"] + 3, "what is read, and not fed, is a target's last token"
        assert found["tokens_per_s"] == pytest.approx(found["tokens"] / found["step_s"])
        assert found["of_matmul_rate"] == pytest.approx(found["flops"] / found["step_s"] / found["matmul_flops_per_s"])
        assert found["read_over_trained"] == pytest.approx(found["examples_read_per_s"] * found["step_s"] / 3)
        assert found["mfu"] is None, "nobody says what a CPU could do"

    def test_train_with_sizes_that_do_not_fit(self, psynth: Command, model_directory: Path) -> None:
        done = psynth("bench", "train", "--model", model_directory, *TRAIN, "--examples", 5)
        assert done.code == 2 and "5 examples are not the size of a batch: take 1, 2, 3, 4, 6, 8" in done.err
        done = psynth("bench", "train", "--model", model_directory, *TRAIN, "--branch-tokens", 600)
        assert done.code == 2 and "more positions than" in done.err

    @pytest.mark.slow
    @pytest.mark.torch
    @pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
    def test_train_against_torch(self, psynth: Command, model_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both loops must compute what ours does: their first loss is the same."""
        _quick(monkeypatch)
        found = psynth("bench", "train", "--model", model_directory, *TRAIN, "--against", "torch", "--json").json
        assert found["torch_loss"] == pytest.approx(found["loss"], rel=1e-5)
        assert found["torch_published_loss"] == pytest.approx(found["loss"], rel=1e-2), "its second step is another model's"
        for name in ("torch", "torch_published"):
            assert found[f"times_{name}"] == pytest.approx(found[f"{name}_s"] / found["step_s"])

    @pytest.mark.slow
    @pytest.mark.parametrize("random", [False, True])
    def test_error(self, psynth: Command, model_directory: Path, random: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(PRESETS, "miniature", Preset(tiny_config(), "nobody/nothing"))
        model = ("miniature", "--random") if random else (model_directory,)
        sizes = ("--workers", 2, "--worker-tokens", 5, "--answer-tokens", 3)
        found = psynth("bench", "error", "--model", *model, *sizes, "--json").json
        assert (found["cached_tokens"], found["answer_tokens"]) == (10, 3)
        variants = {(each["dtype"], each["cache_dtype"]): each for each in found["variants"]}
        assert set(variants) == {("float32", "int8"), ("bfloat16", "bfloat16"), ("bfloat16", "int8")}
        assert all(0 < each["mean_error"] <= each["largest_error"] < 0.5 for each in variants.values())

    @pytest.mark.slow
    def test_random_weights_of_a_preset(self, psynth: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(PRESETS, "miniature", Preset(tiny_config(), "nobody/nothing"))
        found = psynth("bench", "ttft", "--model", "miniature", "--random", "--dtype", "bfloat16", *TTFT, "--json").json
        assert (found["model"], found["weights"], found["dtype"]) == ("miniature", "random", "bfloat16")

    @pytest.mark.slow
    @pytest.mark.torch
    def test_random_weights_against_torch(self, psynth: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        """torch's weights are random too, of the same shape."""
        _quick(monkeypatch)
        monkeypatch.setitem(PRESETS, "miniature", Preset(tiny_config(width=24), "nobody/nothing"))
        found = psynth("bench", "ttft", "--model", "miniature", "--random", *TTFT, "--against", "torch", "--json").json
        assert set(found) > FLOORS | TORCH_TTFT | DECODING
        assert found["torch_text_s"] == found["torch_prefill_s"] > 0 < found["torch_published_s"]

    @pytest.mark.slow
    @pytest.mark.torch
    def test_torch_with_a_gpu_is_measured_apart(
        self, psynth: Command, model_directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The other process finds no GPU here, and measures all the same."""
        _quick(monkeypatch)
        monkeypatch.setattr("psynth_jax.bench.against_torch.torch_device", lambda: "cuda")
        monkeypatch.setattr("psynth_jax.bench.torch_process.routes", lambda *_: pytest.fail("measured in this process"))
        done = psynth("bench", "ttft", "--model", model_directory, *TTFT, "--against", "torch", "--json")
        assert set(json.loads(done.out)) > TORCH_TTFT

    @pytest.mark.slow
    def test_table(self, psynth: Command, model_directory: Path) -> None:
        done = psynth("bench", "ttft", "--model", model_directory, *TTFT)
        assert (done.code, done.out) == (0, "")
        assert "ratio" in done.err

    @pytest.mark.slow
    @pytest.mark.torch
    def test_against_torch(self, psynth: Command, model_directory: Path) -> None:
        found = psynth("bench", "decode", "--model", model_directory, *DECODE, "--against", "torch", "--json").json
        for name in ("prefill", "decode"):
            assert found[f"{name}_over_torch"] == pytest.approx(found[f"{name}_s"] / found[f"torch_{name}_s"])
        found = psynth("bench", "ttft", "--model", model_directory, *TTFT, "--against", "torch", "--json").json
        assert found["text_over_torch"] == pytest.approx(found["ttft_text_s"] / found["torch_prefill_s"])
        assert set(found) > TORCH_TTFT | FLOORS
