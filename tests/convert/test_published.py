"""The published layout and PEFT's, made by torch and PEFT: the same numbers as theirs, and back again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: it is the oracle")
peft = pytest.importorskip("peft", reason="peft is not installed: it makes the adapters")

import safetensors.numpy  # noqa: E402

import psynth_jax as ps  # noqa: E402
from psynth_jax.convert.convert import convert  # noqa: E402
from psynth_jax.errors import AdapterError, ModelMismatchError, UserError  # noqa: E402
from tests.oracle import models, synthesis  # noqa: E402
from tests.oracle.synthesis import OracleBranch  # noqa: E402
from tests.slow import exhaustive_but  # noqa: E402

# PEFT asks transformers in a way that the newest one calls old
pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True:UserWarning"),  # it is looked at here
]

CUT = 83  # of 97 tokens
RANK, ALPHA = 16, 32
BRANCHES = [OracleBranch([5, 8], [3, 1, 4, 1, 5, 9, 2]), OracleBranch([7], [2, 7, 1]), OracleBranch([], list(range(20)))]
PROMPT, TARGET = [11, 12, 13], [14, 0, 2, 82, 9]


def base_model(family: str = "qwen3") -> Any:
    return models.TINY[family]()


def with_lora(model: Any, seed: int = 3, **changed: Any) -> Any:
    """Wrap a model by PEFT and give its factors values, as training would."""
    settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"], **changed}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "lora_" in name:
                value.normal_(std=0.1)
    return wrapped


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save(base_model(), tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the published code saves: vocabulary resized, so that PEFT stores embedding and head along."""
    directory = tmp_path_factory.mktemp("release")
    model = base_model()
    model.resize_token_embeddings(CUT)
    with_lora(model).save_pretrained(directory / "judger_lora", save_embedding_layers=True)
    mapper = synthesis.random_mapper(4)
    names = zip(("net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"), mapper.values(), strict=True)
    torch.save({name: torch.from_numpy(array.T.copy()) for name, array in names}, directory / "cache_mapper.pt")
    (directory / "cache_mapper_config.json").write_text(json.dumps({"hidden_dim": 32, "metadata_features": "both"}))
    return directory


def theirs(adapter: Path) -> np.ndarray:
    """Score the target with torch and PEFT: the base cut to the vocabulary writes the branches, the adapter reads them."""
    model = base_model()
    model.resize_token_embeddings(CUT)
    cache, offset = synthesis.context(model, BRANCHES, "exact", synthesis.random_mapper(4))
    wrapped = peft.PeftModel.from_pretrained(model, adapter / "judger_lora").eval()
    logits = synthesis.read(wrapped.base_model.model, [*PROMPT, *TARGET], cache, offset)
    logp = torch.log_softmax(logits.double(), dim=-1)[len(PROMPT) - 1 : -1]
    return logp.gather(1, torch.tensor(TARGET)[:, None])[:, 0].numpy()


def ours(base: Path, adapter: Path) -> np.ndarray:
    synth = ps.ParallelSynthesis(ps.load_model(base), adapter=adapter)
    branches = synth.encode([list(b.generated_ids) for b in BRANCHES], prefixes=[list(b.prompt_ids) for b in BRANCHES])
    return synth.score(PROMPT, TARGET, branches=branches)


def test_directly_converted_and_back(base: Path, release: Path, tmp_path: Path) -> None:
    expected = theirs(release)
    np.testing.assert_allclose(ours(base, release), expected, atol=1e-4)
    convert(release, tmp_path / "ours", "psynth", base=base)
    np.testing.assert_allclose(ours(base, tmp_path / "ours"), expected, atol=1e-4)
    assert json.loads((tmp_path / "ours" / "psynth_adapter.json").read_text())["vocab_size"] == CUT
    convert(tmp_path / "ours", tmp_path / "back", "peft", base=base)
    np.testing.assert_allclose(theirs(tmp_path / "back"), expected, atol=1e-6)
    np.testing.assert_allclose(ours(base, tmp_path / "back"), expected, atol=1e-4)
    places = (release / "judger_lora", tmp_path / "back" / "judger_lora")
    before, after = (safetensors.numpy.load_file(place / "adapter_model.safetensors") for place in places)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    for name, value in torch.load(release / "cache_mapper.pt").items():
        assert torch.equal(torch.load(tmp_path / "back" / "cache_mapper.pt", weights_only=True)[name], value)


@pytest.mark.slow
def test_the_vocabulary_is_cut_for_workers_and_synthesizer(base: Path, release: Path) -> None:
    model = ps.load_model(base)
    synth = ps.ParallelSynthesis(model, adapter=release)
    branches = synth.work([[1, 2, 3]] * 4, max_new_tokens=40, temperature=100.0)
    answers = [synth.synthesize([5], branches, max_new_tokens=40, temperature=100.0, seed=seed) for seed in range(4)]
    written = [token for ids in [*branches.token_ids, *(a.token_ids for a in answers)] for token in ids]
    assert len(written) > 200 and max(written) < CUT and max(written) > CUT - 12
    assert synth.model.fingerprint == model.fingerprint


def test_a_mapper_alone_keeps_the_cut(base: Path, release: Path, tmp_path: Path) -> None:
    model = ps.load_model(base)
    ps.save_adapter(tmp_path / "ours", ps.Adapter(None, ps.load_adapter(release, model).mapper, CUT), model)
    convert(tmp_path / "ours", tmp_path / "back", "peft", base=base)
    assert ps.load_adapter(tmp_path / "back", model).vocabulary == CUT


def test_a_sink_is_noted(base: Path, release: Path, tmp_path: Path) -> None:
    model = ps.load_model(base)
    published = ps.load_adapter(release, model)
    assert published.sink == () and published.template is None
    ps.save_adapter(
        tmp_path / "ours", dataclasses.replace(published, sink=(5, 6), template={"enable_thinking": False}), model
    )
    convert(tmp_path / "ours", tmp_path / "back", "peft", base=base)
    assert ps.load_adapter(tmp_path / "back", model).sink == (5, 6)
    assert ps.load_adapter(tmp_path / "back", model).template == {"enable_thinking": False}
    assert "a sink of 2 tokens" in (tmp_path / "back" / "README.md").read_text()
    merged = convert(tmp_path / "ours", tmp_path / "merged", "hf", base=base, merge=True)
    assert merged.dropped == ("the cache mapper", "the sink")


@pytest.mark.parametrize("where", ["", "latest", "step_checkpoints/latest"])
def test_found_where_a_run_saves_it(base: Path, release: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "run" / where).parent.mkdir(parents=True, exist_ok=True)
    if where:
        (tmp_path / "run" / where).symlink_to(release)
    else:
        (tmp_path / "run").symlink_to(release)
    model = ps.load_model(base)
    assert ps.load_adapter(tmp_path / "run", model).vocabulary == CUT


@pytest.mark.parametrize(("kind", "kept"), [("length", [0, 2]), ("num_agents", [1, 2]), ("none", [2])])
def test_mappers_that_were_told_less(base: Path, release: Path, tmp_path: Path, kind: str, kept: list[int]) -> None:
    state = torch.load(release / "cache_mapper.pt")
    torch.save(state | {"net.0.weight": state["net.0.weight"][:, kept]}, tmp_path / "cache_mapper.pt")
    (tmp_path / "cache_mapper_config.json").write_text(json.dumps({"metadata_features": kind}))
    mapper = ps.load_adapter(tmp_path, ps.load_model(base)).mapper
    whole = state["net.0.weight"].numpy().T
    assert mapper is not None
    assert np.array_equal(mapper.hidden_kernel, [row if i in kept else np.zeros(32) for i, row in enumerate(whole)])


class TestPeftAlone:
    def merged(self, wrapped: Any) -> np.ndarray:
        with torch.no_grad():
            return torch.log_softmax(wrapped(torch.tensor([PROMPT + TARGET])).logits[0], dim=-1).numpy()

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "changed",
        [
            {},
            {"use_rslora": True, "lora_alpha": 7},
            {"target_modules": ["o_proj"], "r": 3},
            {"target_modules": r".*self_attn\.(q|v)_proj"},
            {"target_modules": "all-linear"},
            {"target_modules": ["up_proj", "down_proj"], "r": 3},
            {"layers_to_transform": [0, 2]},
            {"layers_to_transform": []},
            {"layers_to_transform": 1, "layers_pattern": "layers"},
            {"target_modules": r"model\.layers\.[12]\.(self_attn\.k|mlp\.up)_proj"},
            {"target_modules": ["model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj", "v_proj"]},
            {"target_modules": ["model.layers.0.self_attn.q_proj", "v_proj"], "layers_to_transform": [2]},
            {"exclude_modules": ["layers.1.self_attn.q_proj", "k_proj"]},
            {"exclude_modules": r".*layers\.0\..*"},
            {"rank_pattern": {"q_proj": 4, "^model.layers.1.self_attn.v_proj": 24}},
            {"alpha_pattern": {r"layers\.\d+\.self_attn\.(k|v)_proj": 5, "o_proj": 3}},
            {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"0.self_attn.q_proj": 9}, "use_rslora": True},
            {"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 5}, "alpha_pattern": {"q_proj": 11}},
            {"fan_in_fan_out": True},
            {"init_lora_weights": "orthogonal"},
        ],
        ids=lambda changed: ",".join(map(str, changed)) or "plain",
    )
    @pytest.mark.parametrize("family", exhaustive_but(["llama", "qwen2"], full=["llama"]))
    def test_kinds_of_lora(self, family: str, changed: dict[str, Any], tmp_path: Path) -> None:
        directory = models.save(base_model(family), tmp_path / "base")
        wrapped = with_lora(base_model(family), **changed).eval()
        wrapped.save_pretrained(tmp_path / "lora")
        expected = self.merged(wrapped)
        synth = ps.ParallelSynthesis(ps.load_model(directory), adapter=tmp_path / "lora")
        found = synth.score(PROMPT, TARGET)
        at = np.arange(len(PROMPT) - 1, len(PROMPT) + len(TARGET) - 1)
        np.testing.assert_allclose(found, expected[at, TARGET], atol=1e-4)
        convert(tmp_path / "lora", tmp_path / "back", "peft", base=directory)
        again = peft.PeftModel.from_pretrained(base_model(family), tmp_path / "back" / "judger_lora").eval()
        np.testing.assert_allclose(self.merged(again), expected, atol=1e-5)

    def test_on_a_mixture_of_experts(self, tmp_path: Path) -> None:
        """All that is linear is attention and router; a LoRA on experts, or on the router, is refused by name."""
        directory = models.save(base_model("qwen3_moe"), tmp_path / "base")
        model, attention = ps.load_model(directory), ["q_proj", "k_proj", "v_proj", "o_proj"]
        wrapped = with_lora(base_model("qwen3_moe"), target_modules=attention).eval()
        wrapped.save_pretrained(tmp_path / "lora")
        found = ps.ParallelSynthesis(model, adapter=tmp_path / "lora").score(PROMPT, TARGET)
        at = np.arange(len(PROMPT) - 1, len(PROMPT) + len(TARGET) - 1)
        np.testing.assert_allclose(found, self.merged(wrapped)[at, TARGET], atol=1e-4)
        file = tmp_path / "lora" / "adapter_model.safetensors"
        factor = np.zeros((RANK, 22), np.float32)
        expert = "base_model.model.model.layers.0.mlp.experts.0.gate_proj.lora_A.weight"
        safetensors.numpy.save_file(safetensors.numpy.load_file(file) | {expert: factor}, file)
        with pytest.raises(AdapterError, match=r"target_modules gate_proj \(q_proj, k_proj, v_proj, o_proj are supported"):
            ps.load_adapter(tmp_path / "lora", model)

    @pytest.mark.parametrize(
        ("changed", "match"),
        [
            ({"use_dora": True}, "use_dora True"),
            ({"bias": "all"}, "bias 'all'"),
            ({"target_modules": ["q_proj", "lm_head"]}, r"target_modules lm_head \(q_proj, .*, down_proj are supported"),
            ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
            ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa', which changes the base"),
        ],
    )
    def test_what_is_not_supported(self, base: Path, tmp_path: Path, changed: dict[str, Any], match: str) -> None:
        with_lora(base_model(), **changed).save_pretrained(tmp_path / "lora", save_embedding_layers=False)
        with pytest.raises(AdapterError, match=match):
            ps.load_adapter(tmp_path / "lora", ps.load_model(base))

    @pytest.mark.parametrize("alpha", [0, -4, float("nan"), "16", None, 10**400])
    def test_a_scale_that_is_none(self, base: Path, tmp_path: Path, alpha: Any) -> None:
        with_lora(base_model()).save_pretrained(tmp_path / "lora")
        config = tmp_path / "lora" / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": alpha}))
        with pytest.raises(UserError, match="lora_alpha"):
            ps.load_adapter(tmp_path / "lora", ps.load_model(base))

    def test_numbers_that_are_no_floats(self, base: Path, tmp_path: Path) -> None:
        with_lora(base_model()).save_pretrained(tmp_path / "lora")
        weights = tmp_path / "lora" / "adapter_model.safetensors"
        tensors = {name: x.astype(np.int64) for name, x in safetensors.numpy.load_file(weights).items()}
        safetensors.numpy.save_file(tensors, weights)
        with pytest.raises(AdapterError, match="has dtype I64"):
            ps.load_adapter(tmp_path / "lora", ps.load_model(base))

    def edit(self, directory: Path, change: Any) -> None:
        """Change the tensors of an adapter."""
        weights = directory / "adapter_model.safetensors"
        tensors = safetensors.numpy.load_file(weights)
        change(tensors)
        safetensors.numpy.save_file(tensors, weights)

    def configure(self, directory: Path, **changed: Any) -> None:
        config = directory / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | changed))

    def test_layers_of_other_dtypes(self, base: Path, tmp_path: Path) -> None:
        """A stack took the dtype of its first layer: 6.5e-3 off."""
        wrapped = with_lora(base_model()).eval()
        wrapped.save_pretrained(tmp_path / "lora")
        names = list(safetensors.numpy.load_file(tmp_path / "lora" / "adapter_model.safetensors"))
        narrow = [name for name in names if ".0." in name]

        def change(tensors: dict[str, np.ndarray]) -> None:
            for name in narrow:
                kind = np.float16 if "lora_A" in name else ml_dtypes.bfloat16
                tensors[name] = tensors[name].astype(kind)

        self.edit(tmp_path / "lora", change)
        with torch.no_grad():
            for name, value in wrapped.named_parameters():
                if "lora_" in name and ".0.self" in name:
                    value.copy_(value.to(torch.float16 if "lora_A" in name else torch.bfloat16).float())
        expected = self.merged(wrapped)
        found = ps.ParallelSynthesis(ps.load_model(base), adapter=tmp_path / "lora").score(PROMPT, TARGET)
        at = np.arange(len(PROMPT) - 1, len(PROMPT) + len(TARGET) - 1)
        np.testing.assert_allclose(found, expected[at, TARGET], atol=1e-4)

    @pytest.mark.parametrize("half", ["A", "B"])
    def test_a_factor_without_its_other_half(self, base: Path, tmp_path: Path, half: str) -> None:
        with_lora(base_model()).save_pretrained(tmp_path / "lora")
        name = f"base_model.model.model.layers.1.self_attn.k_proj.lora_{half}.weight"
        self.edit(tmp_path / "lora", lambda tensors: tensors.pop(name))
        with pytest.raises(AdapterError, match=f"missing {name}"):
            ps.load_adapter(tmp_path / "lora", ps.load_model(base))

    def test_layers_that_have_no_factors_add_nothing(self, base: Path, tmp_path: Path) -> None:
        with_lora(base_model()).save_pretrained(tmp_path / "lora")

        def change(tensors: dict[str, np.ndarray]) -> None:
            for name in [name for name in tensors if ".1.self_attn.q_proj" in name]:
                del tensors[name]

        self.edit(tmp_path / "lora", change)
        lora = ps.load_adapter(tmp_path / "lora", ps.load_model(base)).lora
        assert lora is not None
        assert not np.asarray(lora.down["q"][1]).any() and not np.asarray(lora.up["q"][1]).any()
        assert np.asarray(lora.down["q"][0]).any() and np.asarray(lora.down["k"][1]).any()

    @pytest.mark.parametrize(
        "changed",
        [
            {"target_modules": ["q_proj", "k_proj", "v_proj"]},
            {"layers_to_transform": [0, 1]},
            {"exclude_modules": ["layers.2.self_attn.o_proj"]},
        ],
        ids=lambda changed: next(iter(changed)),
    )
    def test_factors_that_the_config_leaves_out(self, base: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
        """PEFT would read the file, and ignore them."""
        with_lora(base_model()).save_pretrained(tmp_path / "lora")
        self.configure(tmp_path / "lora", **changed)
        with pytest.raises(AdapterError, match=r"model\.layers\.2\.self_attn\.o_proj has factors, though adapter_config"):
            ps.load_adapter(tmp_path / "lora", ps.load_model(base))

    @pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("half", ["A", "B"])
    def test_numbers_that_are_not_finite(self, base: Path, tmp_path: Path, number: float, half: str) -> None:
        with_lora(base_model()).save_pretrained(tmp_path / "lora")
        name = f"base_model.model.model.layers.1.self_attn.k_proj.lora_{half}.weight"

        def change(tensors: dict[str, np.ndarray]) -> None:
            tensors[name][2, 1] = number

        self.edit(tmp_path / "lora", change)
        for use in (lambda: ps.load_adapter(tmp_path / "lora", ps.load_model(base)), lambda: self.refused_convert(tmp_path)):
            with pytest.raises(
                AdapterError, match=rf"adapter_model\.safetensors: {name} is damaged: 1 number is not finite"
            ):
                use()
        assert not (tmp_path / "out").exists()

    def refused_convert(self, tmp_path: Path) -> None:
        directory = models.save(base_model(), tmp_path / "base")
        convert(tmp_path / "lora", tmp_path / "out", "psynth", base=directory)

    @pytest.mark.parametrize(
        ("key", "pattern"),
        [
            ("rank_pattern", {"(a+)+": 4}),
            ("alpha_pattern", {"(": 4}),
            ("rank_pattern", {"q_proj": 0}),
            ("rank_pattern", {"q_proj": 10**30}),
            ("alpha_pattern", {"q_proj": float("nan")}),
            ("alpha_pattern", ["q_proj"]),
            ("rank_pattern", {"x" * 2000: 4}),
            ("rank_pattern", {"(a|a)(a|a)(a|a)(a|a)(a|a)": 4}),
            ("alpha_pattern", {".*.*.*.*.*x": 4}),
        ],
    )
    def test_patterns_that_are_none(self, base: Path, tmp_path: Path, key: str, pattern: Any) -> None:
        with_lora(base_model()).save_pretrained(tmp_path / "lora")
        self.configure(tmp_path / "lora", **{key: pattern})
        with pytest.raises(ps.UserError, match=key) as caught:
            ps.load_adapter(tmp_path / "lora", ps.load_model(base))
        assert len(str(caught.value)) < 500

    def test_an_embedding_of_its_own(self, base: Path, tmp_path: Path) -> None:
        model = base_model()
        with torch.no_grad():
            model.model.embed_tokens.weight[41, 2] += 0.25
        with_lora(model).save_pretrained(tmp_path / "lora", save_embedding_layers=True)
        with pytest.raises(ModelMismatchError, match=r"another embedding than .* has: row 41 differs by up to 0\.25"):
            ps.load_adapter(tmp_path / "lora", ps.load_model(base))

    def test_tensors_that_do_not_fit(self, base: Path, tmp_path: Path) -> None:
        with_lora(base_model()).save_pretrained(tmp_path / "lora")
        weights = tmp_path / "lora" / "adapter_model.safetensors"
        tensors = safetensors.numpy.load_file(weights)
        first, second, *_ = tensors
        tensors[first + "x"] = tensors.pop(first)
        tensors[second] = tensors[second][:, :-1].copy()
        safetensors.numpy.save_file(tensors, weights)
        with pytest.raises(AdapterError, match=rf"missing {first}; extra {first}x .*; {second} has shape") as caught:
            ps.load_adapter(tmp_path / "lora", ps.load_model(base))
        assert "\n" not in str(caught.value)
