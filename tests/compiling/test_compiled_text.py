"""What is read from a compiled text: here from one that is short enough to count by hand."""

from __future__ import annotations

from psynth_jax.compiling.compiled_text import CompiledText

TEXT = """\
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p: bf16[64,128]) -> bf16[64,128] {
  %p = bf16[64,128]{1,0} parameter(0)
  ROOT %inner_copy = bf16[64,128]{1,0} copy(%p)
}

%condition (c: (s32[], bf16[64,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(40), backend_config={"flag_configs":[]}
  %c = (s32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (d: (s32[], bf16[64,128])) -> (s32[], bf16[64,128]) {
  %d = (s32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[64,128]{1,0} get-tuple-element(%d), index=1
  %kernel = bf16[64,128]{1,0} custom-call(%x), custom_call_target="tpu_custom_call"
  %reduced = bf16[64,128]{1,0} all-reduce(%kernel), channel_id=1, to_apply=%add
  %started = (f32[1,8], f32[4,8]) all-gather-start(%y), channel_id=2
  %done = f32[4,8] all-gather-done(%started)
  ROOT %t = (s32[], bf16[64,128]) tuple(%j, %reduced)
}

%asynchronous (e: f32[16]) -> f32[16] {
  %e = f32[16] parameter(0)
  ROOT %moved = f32[16] collective-permute(%e), channel_id=3
}

%no (f: f32[4]) -> f32[4] {
  ROOT %f = f32[4] parameter(0)
}

%yes (g: f32[4]) -> f32[4] {
  %g = f32[4] parameter(0)
  ROOT %seldom = f32[4] all-reduce(%g), channel_id=4, to_apply=%add
}

%written (h: bf16[64,128], i: s32[1], u: bf16[1,128]) -> bf16[64,128] {
  %h = bf16[64,128]{1,0} parameter(0)
  ROOT %put = bf16[64,128]{1,0} scatter(%h, %i, %u), to_apply=%add
}

%wrapped (h: bf16[64,128], i: s32[1], u: bf16[1,128]) -> bf16[64,128] {
  %h = bf16[64,128]{1,0} parameter(0)
  ROOT %inside = bf16[64,128]{1,0} fusion(%h, %i, %u), kind=kCustom, calls=%written
}

ENTRY %main (w: bf16[64,128]) -> bf16[64,128] {
  %w = bf16[64,128]{1,0} parameter(0)
  %copy = s8[64,128]{1,0} copy(%w)
  %fusion = bf16[64,128]{1,0} fusion(%w), kind=kLoop, calls=%fused
  %start = ((f32[16]), f32[16], u32[]) async-start(%z), calls=%asynchronous
  %prefetch = (bf16[64,128]{1,0:T(8,128)(2,1)S(1)}, bf16[64,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%w)
  %moved_away = (bf16[64,128]{1,0:T(8,128)(2,1)}, bf16[64,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%w)
  %two = (bf16[32,128]{1,0}, bf16[32,128]{1,0}) fusion(%w), kind=kLoop, calls=%fused
  %choice = f32[4] conditional(%p, %q, %q), branch_computations={%no, %yes}
  %scatter_fusion = bf16[64,128]{1,0} fusion(%w, %i, %u), kind=kCustom, calls=%wrapped, SHARED
  %elementwise = bf16[64,128]{1,0} fusion(%w), kind=kLoop, calls=%fused, SHARES
  %loop = (s32[], bf16[64,128]) while(%t0), condition=%condition, body=%body
  ROOT %out = bf16[64,128]{1,0} get-tuple-element(%loop), index=1
}
"""
SHARING = 'backend_config={"aliasing_operands":{"lists":[{"indices":["0","%d"]}]}}'
TEXT = TEXT.replace("SHARED", SHARING % 3).replace("SHARES", SHARING % 1)


def test_collectives_are_counted_through_loops_and_asynchronous_calls() -> None:
    assert CompiledText(TEXT).collectives() == {
        "all-reduce": {"count": 40, "bytes": 40 * 64 * 128 * 2, "largest": 64 * 128 * 2},
        "all-gather": {"count": 40, "bytes": 40 * 4 * 8 * 4, "largest": 4 * 8 * 4},
        "collective-permute": {"count": 1, "bytes": 64, "largest": 64},
    }


def test_collectives_that_may_not_run_are_counted_apart() -> None:
    assert CompiledText(TEXT).collectives(conditional=True) == {"all-reduce": {"count": 1, "bytes": 16, "largest": 16}}


def test_kernels() -> None:
    assert CompiledText(TEXT).pallas_calls == 1


def test_copies_are_those_that_leave_a_fusion() -> None:
    text = CompiledText(TEXT)
    assert [line.split()[0] for line in text.copies(64 * 128)] == [
        "%copy", "%fusion", "%moved_away", "%two", "%elementwise",
    ]  # fmt: skip
    assert [line.split()[0] for line in text.copies(64 * 128 * 2)] == ["%fusion", "%moved_away", "%elementwise"]
    assert [line.split()[0] for line in text.copies(64 * 128, apart_from=["[64,128]"])] == ["%two"]


def test_a_scatter_is_a_copy_unless_it_is_written_in_place() -> None:
    """Where it shares no memory with its first operand, or with another one, it is listed."""
    for shared in ('backend_config={"aliasing_operands":{"lists":[]}}', SHARING % 2):
        text = CompiledText(TEXT.replace(SHARING % 3, shared))
        assert "%scatter_fusion" in [line.split()[0] for line in text.copies(64 * 128)]


def test_a_loop_of_unknown_length_counts_once() -> None:
    unknown = TEXT.replace("constant(40)", "parameter(1)")
    assert CompiledText(unknown).collectives()["all-reduce"]["count"] == 1


def test_a_known_trip_count_is_taken() -> None:
    known = TEXT.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    assert CompiledText(known).collectives()["all-reduce"]["count"] == 7
