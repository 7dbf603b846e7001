"""`psynth compile`: what it prints, what it refuses, what it writes.  Compiled for, not run: no TPU is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from psynth_jax.cli.compile import BEGIN, END
from psynth_jax.presets import PRESETS, Preset
from tests.cli.conftest import Command, Refused
from tests.tiny import tiny_config

KEYS = """ok topology devices program hbm_bytes_per_device argument_bytes temp_bytes flops estimated_seconds pallas_calls
collectives compile_seconds"""

TRAIN, WORKERS = (("--topology", "v5e-8", "--model", "qwen3-8b", "--program", name) for name in ("train", "workers"))


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ((), "--topology and --model are needed"),
            (("--topology", "v5e-8"), "--topology and --model are needed"),
            (("--topology", "v5e-7", "--model", "qwen3-8b"), "must be a power of two"),
            (("--topology", "v5e-8", "--model", "qwen9"), "no model called 'qwen9'"),
            (("--topology", "v5e-8", "--model", "qwen3-8b", "--program", "serve"), "program"),
            (("--topology", "v5e-8", "--model", "qwen3-8b", "--branches", "0"), "branches"),
            (("--topology", "v5e-8", "--model", "qwen3-8b", "--into", "README.md"), "--into takes the table of a --matrix"),
            (("--matrix", "none.yaml"), "cannot read none.yaml"),
            (("--matrix", "none.yaml", "--rank", "8", "--dump", "x"), "leave out --rank, --dump"),
            (("--matrix", "none.yaml", "--model", "qwen3-8b"), "leave out --model"),
            (("--topology", "v5e-8", "--model", "qwen3-8b", "--questions", "2"), "--questions and --program synthesize"),
            ((*TRAIN, "--cache-dtype", "int8"), "--cache-dtype and --program train contradict"),
            ((*WORKERS, "--new-tokens", "2"), "--new-tokens and --program workers contradict"),
            ((*WORKERS, "--rank", "2"), "--rank and --program workers contradict"),
        ],
    )
    def test_wrong_options(self, refused: Refused, options: tuple[str, ...], said: str) -> None:
        assert said in refused("compile", *options)

    @pytest.mark.libtpu
    @pytest.mark.parametrize(
        ("mesh", "said"),
        [("tensor=2", "has 2 devices, but there are 8"), ("tensor=8,model=1", "no axis 'model'")],
    )
    def test_a_mesh_that_does_not_fit(self, refused: Refused, mesh: str, said: str) -> None:
        assert said in refused("compile", "--topology", "v5e-8", "--model", "qwen3-8b", "--mesh", mesh)


@pytest.mark.libtpu
class TestCompiles:
    @pytest.fixture(autouse=True)
    def small_models(self, monkeypatch: pytest.MonkeyPatch) -> None:
        small = tiny_config(
            layers=2, heads=8, kv_heads=4, head_width=128, width=256, mlp_width=512, vocab_size=512, max_positions=8192
        )
        monkeypatch.setitem(PRESETS, "small", Preset(small, "none"))
        monkeypatch.setitem(PRESETS, "huge", Preset(small.model_copy(update={"layers": 2, "vocab_size": 1 << 26}), "none"))

    def test_json_is_one_object(self, psynth: Command, tmp_path: Path) -> None:
        text = tmp_path / "step.txt"
        command = ["compile", "--topology", "v5e-8", "--model", "small", "--mesh", "branch=4,tensor=2", "--branches", "8"]
        found = psynth(*command, "--branch-tokens", 512, "--dump", text, "--json").json
        assert [key for key in KEYS.split() if key not in found] == []
        assert found["ok"] and found["devices"] == 8 and found["pallas_calls"] == 1
        assert found["argument_bytes"] > found["weight_bytes"] + found["branch_cache_bytes"] > 0
        assert "tpu_custom_call" in text.read_text()

    def test_exit_code_1_when_it_does_not_fit(self, psynth: Command, tmp_path: Path) -> None:
        page = tmp_path / "never.txt"
        sizes = ("--branches", 1, "--branch-tokens", 64)
        done = psynth("compile", "--topology", "v5e-1", "--model", "huge", *sizes, "--dump", page)
        assert (done.code, page.exists()) == (1, False)
        assert "does not fit; use a larger tensor or fsdp axis" in " ".join(done.err.split())

    def test_matrix_into_a_file(self, psynth: Command, tmp_path: Path) -> None:
        matrix, page = tmp_path / "matrix.yaml", tmp_path / "page.md"
        matrix.write_text("- {topology: v5e-4, model: small, program: decode, branches: 3, branch_tokens: 100}\n")
        page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
        found = psynth("compile", "--matrix", matrix, "--into", page, "--json").json
        lines = page.read_text().split("\n")
        assert (lines[0], lines[-2], "old" in lines) == ("before", "after", False)
        assert lines[4].startswith("| small | v5e-4 (4) | tensor=4 | decode, 3 x 100 |")
        assert found["reports"][0]["model"] == "small"

    def test_a_page_without_a_place_for_the_table(self, tmp_path: Path, refused: Refused) -> None:
        matrix, page = tmp_path / "matrix.yaml", tmp_path / "page.md"
        matrix.write_text("- {topology: v5e-4, model: small, program: decode}\n")
        page.write_text("nothing\n")
        assert "has no lines" in refused("compile", "--matrix", matrix, "--into", page)
