"""What is asked to be compiled: checked, and counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from psynth_jax.compiling.estimate import estimate
from psynth_jax.compiling.workload import default_axes, read_matrix, workload
from psynth_jax.errors import ConfigError, InputError, UserError
from psynth_jax.presets import preset
from psynth_jax.sharding import make_mesh

ASKED: dict[str, Any] = {"topology": "v5e-8", "model": "qwen3-8b", "program": "decode"}


class TestWorkload:
    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"branches": 0}, "branches"),
            ({"chips": 8}, "chips"),
            ({"program": "serve"}, "program"),
            ({"questions": 0}, "questions"),
            ({"dtype": "int8"}, "dtype"),
            ({"cache_dtype": "int4"}, "cache_dtype"),
            ({"rank": -1}, "rank"),
        ],
    )
    def test_what_is_wrong_is_named(self, change: dict[str, Any], named: str) -> None:
        with pytest.raises(ConfigError, match=named):
            workload(ASKED | change)

    def test_unknown_names(self) -> None:
        with pytest.raises(UserError, match="no model called 'gpt-5'"):
            _ = workload(ASKED | {"model": "gpt-5"}).config
        with pytest.raises(UserError, match="'v9-8' is no accelerator type"):
            _ = workload(ASKED | {"topology": "v9-8"}).slice

    def test_more_positions_than_the_model_has(self) -> None:
        with pytest.raises(InputError, match="40,960 positions, and this takes 41,344"):
            workload(ASKED | {"branch_tokens": 40_960}).check_window()

    @pytest.mark.parametrize(
        ("model", "devices", "axes"),
        [
            ("qwen3-14b", 16, {"branch": 2, "tensor": 8}),
            ("qwen3-8b", 8, {"branch": 1, "tensor": 8}),
            ("smollm2-135m", 8, {"branch": 8, "tensor": 1}),
            ("qwen2.5-7b", 16, {"branch": 4, "tensor": 4}),
        ],
    )
    def test_heads_are_cut_as_far_as_they_go(self, model: str, devices: int, axes: dict[str, int]) -> None:
        assert default_axes(preset(model).config, devices) == axes

    @pytest.mark.parametrize(
        ("program", "prompt_tokens", "calls"),
        [
            ("synthesize", 256, [(1, 512)]),
            ("synthesize", 1100, [(1, 512), (1, 512), (1, 64), (1, 64)]),
            ("synthesize", 2400, [(1, 2048), (1, 512)]),
            ("decode", 1100, [(1, 1)]),
            ("workers", 1100, [(16, 1)]),
        ],
    )
    def test_calls_follow_the_buckets(self, program: str, prompt_tokens: int, calls: list[tuple[int, int]]) -> None:
        work = workload(ASKED | {"program": program, "prompt_tokens": prompt_tokens})
        assert work.calls(make_mesh("branch=4,tensor=2")) == calls

    def test_parts_of_data_have_rows_of_their_own(self) -> None:
        mesh = make_mesh("data=2,tensor=4")
        for program, calls in [("synthesize", [(2, 512)]), ("decode", [(2, 1)])]:
            assert workload(ASKED | {"program": program}).calls(mesh) == calls

    @pytest.mark.parametrize(
        ("mesh", "workers", "calls"),
        [
            ("branch=2,tensor=4", 16, [(16, 1)]),  # 8 rows a block
            ("branch=2,tensor=4", 150, [(128, 1), (32, 1)]),  # 64 rows a block, then 11 of 16
            ("data=2,branch=2,tensor=2", 16, [(16, 1), (16, 1)]),  # 4 rows a block; half of the blocks are another part's
        ],
    )
    def test_many_workers_take_several_calls(self, mesh: str, workers: int, calls: list[tuple[int, int]]) -> None:
        work = workload(ASKED | {"program": "workers", "branches": workers})
        assert work.calls(make_mesh(mesh)) == calls


class TestMatrix:
    def test_the_one_of_the_readme(self) -> None:
        found = read_matrix(Path(__file__).parents[2] / "configs" / "compile_matrix.yaml")
        assert ("qwen3-14b", "v5e-16", "synthesize") in {(w.model, w.topology, w.program) for w in found}
        for each in found:
            each.check_window()

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("topology: v5e-8", "must be a list of workloads"),
            ("[]", "must be a list of workloads"),
            ("- {topology: v5e-8", "is not valid YAML"),
            ("- {topology: v5e-8, model: qwen3-8b, program: decode}\n- {topology: v5e-8, model: m}", "entry 2: .*program"),
        ],
    )
    def test_what_is_no_matrix(self, tmp_path: Path, content: str, said: str) -> None:
        path = tmp_path / "matrix.yaml"
        path.write_text(content)
        with pytest.raises(ConfigError, match=said):
            read_matrix(path)

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot read"):
            read_matrix(tmp_path / "none.yaml")


class TestEstimate:
    """Qwen3-8B by hand: 36 layers, D 4096, N 32, K 8, H 128, F 12288, V 151936."""

    LAYER = 4096 * (2 * 32 + 2 * 8) * 128 + 3 * 4096 * 12_288
    WEIGHTS = 36 * LAYER + 151_936 * 4096  # that a token meets: the embedding is looked up
    SLOT = 2 * 36 * 8 * 128 * 2

    def test_decoding_reads_weights_and_caches(self) -> None:
        work = workload(ASKED | {"rank": 0, "branches": 8, "branch_tokens": 1000, "prompt_tokens": 200, "new_tokens": 56})
        found = estimate(work, make_mesh("branch=4,tensor=2"))
        seen = 8 * 1000 + 256
        assert found.flops == 2 * self.WEIGHTS + 4 * 36 * 32 * 128 * seen
        assert found.device_flops == 2 * self.WEIGHTS // 2 + 4 * 36 * 32 * 128 * seen // 8
        norms = 2 * (36 * (2 * 4096 + 2 * 128) + 4096)
        assert found.device_bytes == self.WEIGHTS + norms + (2000 + 256) * self.SLOT // 2
        assert found.seconds == found.device_bytes / 819e9

    def test_a_prompt_is_bound_by_arithmetic(self) -> None:
        work = workload(
            ASKED | {"program": "synthesize", "rank": 0, "branches": 8, "branch_tokens": 1000, "prompt_tokens": 512}
        )
        found = estimate(work, make_mesh("branch=4,tensor=2"))
        dense = 2 * (512 * 36 * self.LAYER + 151_936 * 4096)
        assert found.flops == dense + int(4 * 36 * 32 * 128 * 512 * (8000 + 256.5))
        assert found.seconds == found.device_flops / 197e12

    def test_twice_the_cached_tokens_are_at_most_twice_the_time(self) -> None:
        seconds = [
            estimate(workload(ASKED | {"branch_tokens": tokens}), make_mesh("branch=8")).seconds for tokens in (4096, 8192)
        ]
        assert seconds[0] < seconds[1] <= 2 * seconds[0]

    def test_int8_caches_halve_what_is_read(self) -> None:
        read = {
            dtype: estimate(workload(ASKED | {"branches": 64, "cache_dtype": dtype}), make_mesh("branch=8")).device_bytes
            for dtype in ("bfloat16", "int8")
        }
        weights = 2 * self.WEIGHTS
        assert 0.5 < (read["int8"] - weights) / (read["bfloat16"] - weights) < 0.53

    def test_workers_are_cut_over_their_rows(self) -> None:
        work = workload(ASKED | {"program": "workers", "rank": 0, "branches": 8, "branch_tokens": 1000})
        found = estimate(work, make_mesh("branch=4,tensor=2"))
        assert found.device_flops == pytest.approx(found.flops / 8, rel=1e-6)
