"""Compile a workload and say what came of it: memory by kind, kernels, collectives, copies, and the roofline.

A report is what `psynth compile --json` prints; several of them make the table of `psynth compile --matrix`.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from psynth_jax.compiling.compiled_text import CompiledText
from psynth_jax.compiling.estimate import estimate
from psynth_jax.compiling.program import AbstractCall, bytes_on_a_device, inference_call
from psynth_jax.compiling.train_program import training_call
from psynth_jax.compiling.workload import Workload
from psynth_jax.errors import MemoryLimitError

MIB, GIB = 1 << 20, 1 << 30


@dataclasses.dataclass(frozen=True)
class Report:
    """facts: see `report`.  text: of the compiled program, None where there is none."""

    facts: dict[str, Any]
    text: str | None


def report(work: Workload) -> Report:
    """Compile a workload.  Its facts, bytes being those of one device:

    ok: it compiles and fits.  topology, devices, mesh, model, program and the sizes asked for.
    hbm_bytes_per_device: what the chip has.  needed_bytes: arguments, results, temporaries and code, donated ones once.
    argument_bytes, output_bytes, alias_bytes, temp_bytes, code_bytes: what XLA says.
    weight_bytes, pool_bytes: of the arguments; "train" has no pool, its caches are temporaries.
    branch_cache_bytes, own_cache_bytes: of the pool, what branches take, and prompt and answer (workers: what they share).
    layer_cache_bytes: of the branches in one layer.
    pallas_calls: in the text.  collectives: kind -> count and bytes of all runs of one call, and the largest one.
    conditional_collectives: the same of what may not run: it does where a row is not greedy.
    cache_sized_copies: what makes arrays of layer_cache_bytes or more; weight_relayouts: the same, in a weight's shape.
    calls: runs of the step: chunks of a long prompt (the first one is compiled), or of more workers than a step takes.
    flops, device_flops, device_bytes, estimated_seconds: of all calls, see `estimate`.
    compile_seconds.  advice: what to change when it does not fit.

    Raises `UserError` for an unknown model or slice, `ConfigError` for a mesh that does not fit, `InputError` for positions
    past the model's window.  That there is not enough memory is a fact, not an error.
    """
    work.check_window()
    mesh = work.make_mesh()
    program = training_call(work, mesh) if work.program == "train" else inference_call(work, mesh)
    facts: dict[str, Any] = {
        "ok": False,
        **work.model_dump(exclude={"mesh"}),
        "mesh": ",".join(f"{name}={size}" for name, size in mesh.shape.items() if size > 1) or "one device",
        "devices": mesh.devices.size,
        "calls": len(work.calls(mesh)),
        "hbm_bytes_per_device": work.slice.chip.hbm_bytes,
        "weight_bytes": bytes_on_a_device(program.model),
        "pool_bytes": 0 if work.program == "train" else program.cache_bytes,
        "branch_cache_bytes": program.branch_bytes,
        "own_cache_bytes": program.cache_bytes - program.branch_bytes,
        "layer_cache_bytes": program.branch_bytes // program.cache.layers,
    }
    counted = dataclasses.asdict(estimate(work, mesh))
    facts |= {"estimated_seconds": counted.pop("seconds"), **counted}
    try:
        # Without the mesh a kernel asks the default device, a CPU, what it can do.
        with jax.set_mesh(mesh):
            executable = program.programs.get(program.call)
    except MemoryLimitError:
        executable = None
    facts["compile_seconds"] = program.programs.waited
    text = None if executable is None else _text(program, mesh, executable)
    facts |= _memory(program, executable) | _of_text(program, text)
    needed = facts["needed_bytes"]
    facts["ok"] = needed is not None and needed <= facts["hbm_bytes_per_device"]
    facts["advice"] = None if facts["ok"] else _advice(work, facts)
    return Report(facts, text)


def _memory(program: AbstractCall, executable: Any) -> dict[str, int | None]:
    """Return bytes by kind; where XLA found no way to fit the program, only those of the arguments are known."""
    if executable is None:
        known = {"argument_bytes": bytes_on_a_device(program.arguments)}
        return known | dict.fromkeys(("needed_bytes", "output_bytes", "alias_bytes", "temp_bytes", "code_bytes"))
    memory = executable.memory_analysis()
    sizes = {
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
    }
    return {"needed_bytes": sum(sizes.values()) - 2 * sizes["alias_bytes"], **sizes}


def _text(program: AbstractCall, mesh: Mesh, executable: Any) -> str | None:
    """Return the compiled text.  A compiler newer than this jaxlib may use what it cannot read: then it writes its own."""
    try:
        return str(executable.as_text())
    except jax.errors.JaxRuntimeError as error:
        if "async-update" not in str(error):
            raise
    with tempfile.TemporaryDirectory() as directory, jax.set_mesh(mesh):
        dumping = {"xla_dump_to": directory, "xla_dump_hlo_as_text": True}
        program.programs.lower(program.call).compile(compiler_options=dumping)
        written = sorted(Path(directory).glob("*.after_optimizations.txt"))
        return written[-1].read_text(encoding="utf-8") if written else None


def _of_text(program: AbstractCall, text: str | None) -> dict[str, Any]:
    if text is None:
        unknown = "pallas_calls", "collectives", "conditional_collectives", "cache_sized_copies", "weight_relayouts"
        return dict.fromkeys(unknown)
    read, limit = CompiledText(text), program.branch_bytes // program.cache.layers
    weights = {f"[{','.join(map(str, x.sharding.shard_shape(x.shape)))}]" for x in jax.tree.leaves(program.model)}
    large, copies = read.copies(limit), read.copies(limit, apart_from=weights)
    return {
        "pallas_calls": read.pallas_calls,
        "collectives": read.collectives(),
        "conditional_collectives": read.collectives(conditional=True),
        "cache_sized_copies": copies,
        "weight_relayouts": [line for line in large if line not in copies],
    }


def _advice(work: Workload, facts: dict[str, Any]) -> str:
    """Say what to change when a program does not fit."""
    if work.program == "train":
        return "use fewer questions, or a larger fsdp or tensor axis, or a larger slice"
    advice = ["a larger slice"]
    if facts["weight_bytes"] > facts["branch_cache_bytes"]:
        advice.insert(0, "a larger tensor or fsdp axis, which cuts the weights")
    else:
        advice.insert(0, "a larger branch or tensor axis, which cuts the caches")
        advice += ["cache_dtype int8, which halves them"] * (work.cache_dtype != "int8") + ["fewer or shorter branches"]
    return "use " + ", or ".join(advice)


def markdown(facts: Sequence[dict[str, Any]]) -> str:
    """Lay reports out as a Markdown table, a row each."""
    head = (
        "model", "compiled for", "mesh", "program", "fits", "weights", "branch caches", "temporaries", "kernels",
        "collectives", "floor",
    )  # fmt: skip
    rows = [head, ("---",) * len(head)]
    for each in facts:
        rows.append(
            (
                each["model"],
                f"{each['topology']} ({each['devices']})",
                each["mesh"].replace(",", ", "),
                _program(each),
                f"{_size(each.get('needed_bytes'))} of {each['hbm_bytes_per_device'] / GIB:.0f} GiB" if each["ok"] else "no",
                _size(each["weight_bytes"]),
                _size(each["branch_cache_bytes"]),
                _size(each["temp_bytes"]),
                _count(each["pallas_calls"]),
                _collectives(each["collectives"]),
                f"{1e3 * each['estimated_seconds']:.1f} ms",
            )
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _program(facts: dict[str, Any]) -> str:
    read = f"{facts['branches']} x {facts['branch_tokens']:,}"
    if facts["program"] == "train":
        return f"train, {facts['questions']} x {read}, prompt {facts['prompt_tokens']}, target {facts['new_tokens']}"
    if facts["cache_dtype"]:
        read += f" {facts['cache_dtype']}"
    return f"{facts['program']}, {read}" + (f", prompt {facts['prompt_tokens']}" if facts["program"] == "synthesize" else "")


def _collectives(found: dict[str, dict[str, int]] | None) -> str:
    if found is None:
        return "-"
    return ", ".join(f"{each['count']} {kind} {_size(each['bytes'])}" for kind, each in sorted(found.items())) or "none"


def _count(count: int | None) -> str:
    return "-" if count is None else str(count)


def _size(nbytes: int | None) -> str:
    if nbytes is None:
        return "-"
    return f"{nbytes / GIB:.2f} GiB" if nbytes >= GIB / 10 else f"{nbytes / MIB:.1f} MiB"
