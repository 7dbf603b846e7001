"""The step against what it must equal: teacher-forced scores, torch's gradients, itself on a mesh and in micro-batches."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.convert.adapter_directory import Adapter
from psynth_jax.data.example import BranchTokens, Example, ExampleList
from psynth_jax.data.with_sink import WithSink
from psynth_jax.mapper import Mapper
from psynth_jax.nn.adapter import Lora
from psynth_jax.sharding import put
from psynth_jax.training.batch import BatchBuilder, place
from psynth_jax.training.config import Batches, Task
from psynth_jax.training.plan import Plan
from psynth_jax.training.step import Parameters, StepOptions, gradients, parameter_shardings_of
from tests.tiny import random_lora, random_mapper, tiny_model
from tests.training.examples import ids, random_examples

pytestmark = pytest.mark.slow

SHAPE = {"layers": 2, "heads": 4, "mlp_width": 32, "width": 24}
OPTIONS = StepOptions(lora_scale=2.0, tasks=1, loss_rows=8)


@pytest.fixture(scope="module")
def model() -> ps.Model:
    return tiny_model(**SHAPE)


@pytest.fixture(scope="module")
def parameters(model: ps.Model) -> Parameters:
    lora = random_lora(model.config, 3)
    return Parameters(Mapper.from_arrays(random_mapper(4)), lora.down, lora.up)


def found(
    model: ps.Model,
    parameters: Parameters,
    examples: list[Example],
    options: StepOptions = OPTIONS,
    reads: str = "branches",
    distillation: float = 0.0,
    accumulate: int = 1,
    examples_at_once: int = 16,
    teacher: Lora | None = None,
) -> tuple[dict[str, Any], Parameters]:
    """Sums over all batches of a pass, and the gradient of the summed loss, on the host."""
    mesh = model.mesh
    source, tasks = [ExampleList("random", examples)], [Task(synthetic=1, distillation=distillation)]
    limits = Batches(tokens=1 << 20, examples=examples_at_once, accumulate=accumulate)
    plan = Plan(source, tasks, limits, reads=reads)
    builder = BatchBuilder(source, tasks, reads=reads, mesh=mesh, micro_batches=accumulate)
    if mesh is not None:
        where = parameter_shardings_of(parameters, model.decoder, mesh)
        parameters = jax.tree.map(lambda x, sharding: put(np.asarray(x), sharding), parameters, where)
    step = jitted(options)
    total: Any = None
    for planned in plan.batches(0):
        batch = place(builder.build(planned)[0], mesh)
        gradient, sums = jax.device_get(step(parameters, model.decoder, batch, teacher=teacher))
        here = sums, jax.tree.map(lambda x, n=sums["tokens"]: x * n, gradient)
        total = here if total is None else jax.tree.map(np.add, total, here)
    return total


@functools.cache
def jitted(options: StepOptions) -> Any:
    return jax.jit(functools.partial(gradients, options=options))


def distance(left: Any, right: Any) -> float:
    """Norm of the difference, relative to the norm of `right`."""
    pairs = list(zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))
    return float(np.sqrt(sum(((a - b) ** 2).sum() for a, b in pairs) / sum((b**2).sum() for _, b in pairs)))


def as_ids(example: Example) -> tuple[list[list[int]], list[list[int]]]:
    return [x.kept.tolist() for x in example.branches], [x.prefix.tolist() for x in example.branches]


class TestLoss:
    def test_is_the_score_of_the_targets(self, model: ps.Model, parameters: Parameters) -> None:
        examples = random_examples(9)
        sums, _ = found(model, parameters, examples, examples_at_once=4)
        synth = ps.ParallelSynthesis(model, adapter=Adapter(parameters.lora(2.0), parameters.mapper))
        expected = 0.0
        for example in examples:
            kept, prefixes = as_ids(example)
            branches = synth.encode(kept, prefixes)
            expected -= float(synth.score(example.prompt.tolist(), example.target.tolist(), branches).sum())
        assert sums["tokens"] == sum(len(example.target) for example in examples)
        assert sums["cross_entropy"] == pytest.approx(expected, rel=1e-5)

    def test_with_a_sink_is_the_score_of_an_adapter_with_that_sink(self, model: ps.Model, parameters: Parameters) -> None:
        plain, sink = random_examples(5), (5, 6, 7)
        sinking = WithSink(ExampleList("random", plain), sink)
        sums, _ = found(model, parameters, [sinking[number] for number in range(5)])
        synth = ps.ParallelSynthesis(model, adapter=Adapter(parameters.lora(2.0), parameters.mapper, sink=sink))
        expected = 0.0
        for example in plain:
            branches = synth.encode(*as_ids(example))
            expected -= float(synth.score(example.prompt.tolist(), example.target.tolist(), branches).sum())
        assert sums["cross_entropy"] == pytest.approx(expected, rel=1e-5)

    def test_of_text_is_the_score_behind_the_pasted_text(self, model: ps.Model, parameters: Parameters) -> None:
        examples = random_examples(5)
        lora = dataclasses.replace(parameters, mapper=None)
        sums, _ = found(model, lora, examples, reads="text")
        synth = ps.ParallelSynthesis(model, adapter=parameters.lora(2.0))
        expected = -sum(float(synth.score(e.pasted.tolist(), e.target.tolist()).sum()) for e in examples)
        assert sums["cross_entropy"] == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("worn", [False, True])
    def test_distillation_is_the_divergence_from_the_teacher_reading_text(
        self, model: ps.Model, parameters: Parameters, worn: bool
    ) -> None:
        """Of a target of one token, whose whole distributions `score` can give, a token at a time."""
        example = dataclasses.replace(random_examples(1)[0], target=ids(7, 1))
        lora = random_lora(model.config, 9) if worn else None
        sums, _ = found(model, parameters, [example], distillation=0.5, teacher=lora)
        synth = ps.ParallelSynthesis(model, adapter=Adapter(parameters.lora(2.0), parameters.mapper))
        kept, prefixes = as_ids(example)
        branches, words = synth.encode(kept, prefixes), range(model.config.vocab_size)
        student = np.array([synth.score(example.prompt.tolist(), [word], branches)[0] for word in words], np.float64)
        wearing = ps.ParallelSynthesis(model, adapter=lora)
        teacher = np.array([wearing.score(example.pasted.tolist(), [word])[0] for word in words], np.float64)
        expected = (np.exp(teacher) * (teacher - student)).sum()
        assert sums["distillation"] == pytest.approx(expected, rel=1e-4)
        assert sums["loss"] == pytest.approx(sums["cross_entropy"] + 0.5 * sums["distillation"], rel=1e-6)


class TestGradients:
    @pytest.mark.parametrize("mesh", ["data=4,fsdp=2", "fsdp=2,branch=2,tensor=2"])
    def test_on_a_mesh(self, model: ps.Model, parameters: Parameters, mesh: str) -> None:
        """Sums are taken in another order; this model's weights are large, and float32 shows it."""
        examples = random_examples(11)
        sums, alone = found(model, parameters, examples, distillation=0.5)
        there, cut = found(model.on(ps.make_mesh(mesh)), parameters, examples, distillation=0.5)
        assert there["loss"] == pytest.approx(sums["loss"], rel=1e-5)
        assert distance(cut, alone) < 5e-6

    def test_in_micro_batches_of_any_size(self, model: ps.Model, parameters: Parameters) -> None:
        examples = random_examples(11)
        _, whole = found(model, parameters, examples)
        _, pieces = found(model, parameters, examples, accumulate=3, examples_at_once=2)
        assert distance(pieces, whole) < 5e-6

    def test_remat_and_chunks_change_nothing(self, model: ps.Model, parameters: Parameters) -> None:
        examples = random_examples(4)
        _, plain = found(model, parameters, examples, dataclasses.replace(OPTIONS, remat=False, loss_rows=10_000))
        _, frugal = found(model, parameters, examples, dataclasses.replace(OPTIONS, loss_rows=1))
        assert distance(frugal, plain) < 1e-6

    @pytest.mark.torch
    @pytest.mark.parametrize("family", ["llama", "qwen3"])
    def test_equal_torch(self, family: str, tmp_path: Any) -> None:
        pytest.importorskip("torch", reason="torch is not installed: it is the oracle")
        from tests.oracle import gradients as oracle
        from tests.oracle import models, synthesis

        torch_model = models.TINY[family]()
        model = ps.load_model(models.save(torch_model, tmp_path), layers="stacked")
        mapper, lora = synthesis.random_mapper(1), synthesis.random_lora(torch_model, 2, rank=4)
        examples = random_examples(3, seed=5)
        losses, expected = 0.0, None
        for example in examples:
            branches = [synthesis.OracleBranch(b.prefix.tolist(), b.kept.tolist()) for b in example.branches]
            loss, of_mapper, of_lora = oracle.loss_gradients(
                torch_model, branches, example.prompt.tolist(), example.target.tolist(), mapper, lora
            )
            losses += loss
            one = of_mapper, of_lora
            expected = one if expected is None else jax.tree.map(np.add, expected, one)
        config = model.config
        down, up = ours(lora.matrices, config)
        sums, found_here = found(
            model,
            Parameters(Mapper.from_arrays(mapper), down, up),
            examples,
            dataclasses.replace(OPTIONS, lora_scale=lora.scale),
        )
        assert expected is not None and found_here.mapper is not None
        assert sums["cross_entropy"] == pytest.approx(losses, rel=1e-5)
        right_mapper = Mapper(**expected[0])
        right_down, right_up = ours(expected[1], config)
        assert distance(found_here.mapper, right_mapper) < 1e-4
        assert distance(found_here.down, right_down) < 1e-4
        assert distance(found_here.up, right_up) < 1e-4


def ours(matrices: Any, config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Bring (A `[L, in, A]`, B `[L, A, out]`) into the shapes of `Lora`."""
    shapes = jax.eval_shape(
        lambda: Lora.initialise(config, next(iter(matrices.values()))[0].shape[-1], 1.0, jax.random.key(0), tuple(matrices))
    )
    down = {target: jnp.asarray(a.reshape(shapes.down[target].shape)) for target, (a, _) in matrices.items()}
    up = {target: jnp.asarray(b.reshape(shapes.up[target].shape)) for target, (_, b) in matrices.items()}
    return down, up


def test_what_the_arrays_hold_beyond_the_examples_changes_nothing(model: ps.Model, parameters: Parameters) -> None:
    """Other lengths in the same batch, and so other padding, leave an example's part of the sums as it is."""
    examples = random_examples(3)
    each = [found(model, parameters, [example])[0]["cross_entropy"] for example in examples]
    together, _ = found(model, parameters, examples)
    assert together["cross_entropy"] == pytest.approx(sum(each), rel=1e-5)


def test_an_absent_prefix_is_an_empty_one(model: ps.Model, parameters: Parameters) -> None:
    example = random_examples(1)[0]
    bare = dataclasses.replace(example, branches=tuple(BranchTokens(ids(0, 0), b.kept) for b in example.branches))
    with_prefix, without = (found(model, parameters, [e])[0]["cross_entropy"] for e in (example, bare))
    assert with_prefix != pytest.approx(without, rel=1e-6), "a prefix is read when the branch is encoded"
