"""The real Gemma 3 270M out of a GGUF file of K-quants, Q5_0 and Q8_0, against transformers' reading of the same file.

Only run when it is asked for: launch/test.sh -m gemma
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: transformers runs on it")
transformers = pytest.importorskip("transformers", reason="transformers is the oracle")

import psynth_jax as ps  # noqa: E402
from psynth_jax.convert.convert import convert  # noqa: E402
from psynth_jax.convert.gguf import GGUFFile, read_config  # noqa: E402
from psynth_jax.errors import InputError  # noqa: E402
from psynth_jax.presets import preset  # noqa: E402
from tests import gemma  # noqa: E402
from tests.oracle import synthesis  # noqa: E402

pytestmark = [pytest.mark.gemma, pytest.mark.torch]

TOLERANCE = 2e-3
TEXTS = [
    "",
    " ",
    "Hello world",
    "  two  spaces   and four    ",
    "\n\n\n x\n \n\t\ttabs\r\n",
    "naïve café — 日本語 🙂👩‍👩‍👧 Ω≈ç e\u0301",
    "<start_of_turn>user\nHi<end_of_turn>\n<bos>a<eos><pad><unk><mask>[multimodal]",
    "\x00\x01\x7f\ufffd\u200b\ufeff<0x41>",
    "\u2581\u2581 x \u2581",
    "<table><tr><td>x</td></table>",
    "a" * 500,
    " " * 40 + "\n" * 40,
    chr(0xE000) + chr(0x10FFFF) + "𐍈𐌰𝔘",
]


@pytest.fixture(scope="module")
def path() -> Path:
    return gemma.fetch()


@pytest.fixture(scope="module")
def ours(path: Path) -> ps.Model:
    return ps.load_model(path)


@pytest.fixture(scope="module")
def theirs(path: Path) -> Any:
    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def their_tokenizer(path: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.fixture(scope="module")
def ids(ours: ps.Model) -> list[int]:
    assert ours.tokenizer is not None
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    return [2, *ours.tokenizer.encode(readme)[:1000]]


def their_logprobs(model: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        every = torch.log_softmax(model(torch.tensor([ids])).logits[0], dim=-1)
    return every[np.arange(len(ids) - 1), ids[1:]].numpy()


def texts(vocabulary: list[str]) -> list[str]:
    """Return texts of random characters from many scripts, and of random tokens."""
    rng, found = random.Random(1), list(TEXTS)
    for _ in range(500):
        ranges = [(32, 127), (0xA0, 0x500), (0x3000, 0x9FFF), (0x1F300, 0x1F700), (32, 33), (9, 11)]
        found.append("".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(1, 40))))
        found.append("".join(rng.choices(vocabulary, k=rng.randrange(1, 12))).replace("\u2581", " "))
    return found


def test_config_is_the_presets(path: Path) -> None:
    assert read_config(GGUFFile(path)) == preset("gemma-3-270m").config


def test_ids(ours: ps.Model, their_tokenizer: Any) -> None:
    tokenizer = ours.tokenizer
    assert tokenizer is not None
    assert tokenizer.size == 262_144
    assert tokenizer.stop_ids == {1, 106}
    for text in texts(list(their_tokenizer.get_vocab())):
        found = tokenizer.encode(text)
        assert found == their_tokenizer(text, add_special_tokens=False).input_ids, text
        assert tokenizer.backend(text).input_ids == their_tokenizer(text).input_ids, text
        assert tokenizer.decode(found) == their_tokenizer.decode(found, skip_special_tokens=True), text


def test_log_probabilities(ours: ps.Model, theirs: Any, ids: list[int]) -> None:
    found = ps.ParallelSynthesis(ours).score(ids[:1], ids[1:])
    np.testing.assert_allclose(found, their_logprobs(theirs, ids), atol=TOLERANCE, rtol=0)


def test_branches(ours: ps.Model, theirs: Any) -> None:
    tokenizer = ours.tokenizer
    assert tokenizer is not None
    synth = ps.ParallelSynthesis(ours)
    written = [
        "The capital of Quovia is the port of Belmar, founded in 1821.",
        "The treaty of Ancy was signed in the spring of 1774 by four counts.",
    ]
    prompt = tokenizer.encode("Question: What is the capital of Quovia?\nAnswer:")
    target = tokenizer.encode(" Belmar.")
    found = np.asarray(synth.score(prompt, target, branches=synth.encode(written)))
    branches = [synthesis.OracleBranch([], tokenizer.encode(text)) for text in written]
    np.testing.assert_allclose(found, synthesis.branch_logprobs(theirs, branches, prompt, target), atol=TOLERANCE, rtol=0)
    assert found.sum() > np.asarray(synth.score(prompt, target)).sum() + 10, "the branches were not read"


def test_a_branch_beyond_the_window(ours: ps.Model, ids: list[int]) -> None:
    """One branch from position 0 and the prompt behind it is plain text."""
    synth = ps.ParallelSynthesis(ours)
    found = synth.score(ids[600:610], ids[610:620], branches=synth.encode([ids[:600]]))
    np.testing.assert_allclose(found, synth.score(ids[:610], ids[610:620]), atol=1e-3)


def test_a_base_model_has_no_chat(ours: ps.Model) -> None:
    with pytest.raises(InputError, match="has no chat template"):
        ps.ParallelSynthesis(ours).synthesize("What is the capital of France?", max_new_tokens=4)


def test_converted(path: Path, ours: ps.Model, theirs: Any, ids: list[int], tmp_path: Path) -> None:
    convert(path, tmp_path / "hf", "hf")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    assert again.config.model_type == "gemma3_text"
    np.testing.assert_allclose(their_logprobs(again, ids), their_logprobs(theirs, ids), atol=TOLERANCE, rtol=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert ours.tokenizer is not None
    for text in TEXTS:
        assert tokenizer(text).input_ids == [2, *ours.tokenizer.encode(text)]
