"""What is read from the text of a compiled program, against counts by hand."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fgvc_jax.hardware import collectives, devices

TEXT = """HloModule step

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %permute = (f32[8]{0:T(128)S(1)}, f32[8]{0}, u32[]{:S(2)}, u32[]) collective-permute-start(%x), channel_id=1
  %done = f32[8]{0} collective-permute-done(%permute)
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5), metadata={op_name="x"}
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%never (p: f32[8]) -> f32[8] {
  %lost = f32[1000]{0} all-reduce(%p), channel_id=9, to_apply=%add
}

%begins (p: bf16[10]) -> bf16[40] {
  %all-gather.1 = bf16[40]{0} all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %to.1 = (bf16[10], bf16[40]) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (p: bf16[10]) -> bf16[40] {
  ROOT %all-gather.2 = bf16[40]{0} all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
}

%ends (p: bf16[10]) -> bf16[40] {
  %all-gather.3 = bf16[40]{0} all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %to.3 = bf16[40]{0} custom-call(%all-gather.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.2 (p: f32[4]) -> f32[1] {
  %all = f32[4]{0} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %cut = f32[1]{0} dynamic-slice(%all, %at), dynamic_slice_sizes={1}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %a = (f32[4,2]{1,0}, bf16[3]{0}) all-reduce(%x, %y), replica_groups={{0,1},{2,3}}, to_apply=%add
  %b = bf16[10]{0} all-gather(%x), replica_groups=[1,4]<=[4], dimensions={0}
  %c = (f32[2]{0}, f32[8]{0}) all-gather-start(%x), replica_groups=[1,4]<=[4], dimensions={0}
  %d = f32[6]{0} reduce-scatter(%x), replica_groups=mesh['a'=2,'b'=2] {'b'}, to_apply=%add
  %i = (f32[4]{0}, f32[1]{0}) reduce-scatter-start(%x), replica_groups=[1,4]<=[4], dimensions={0}
  %loop = (s32[], f32[8]{0}) while(%t), condition=%condition, body=%body
  %e = (bf16[10]{0}, bf16[40]{0}) fusion(%x), kind=kCustom, calls=%begins
  %f = bf16[40]{0} fusion(%e), kind=kOutput, calls=%async_collective_fusion.1
  %g = bf16[40]{0} fusion(%f), kind=kCustom, calls=%ends
  %h = f32[1]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.2
  %other = f32[8]{0} fusion(%b), kind=kLoop, calls=%fused
}
"""


def test_text_with_every_way_to_write_a_group():
    found = {c.kind: c for c in collectives.read(TEXT, 4)}
    assert set(found) == {"all-reduce", "all-gather", "reduce-scatter", "collective-permute"}
    # 8 float32 and 3 bfloat16 over pairs: each half is sent once to be added up and once to be told.
    assert found["all-reduce"][1:] == (1, 38, 2 * 38 / 2)
    # The last one begins, goes on and ends in three fusions.
    assert found["all-gather"][1:] == (3, 20 + 32 + 80, (20 + 32 + 80) * 3 / 4)
    assert found["reduce-scatter"][1:] == (3, 48 + 16 + 16, 24 + 12 + 12)  # over two, four and four
    assert found["collective-permute"][1:] == (5, 5 * 32, 5 * 32)  # the loop runs five times


def test_a_loop_whose_length_the_compiler_notes():
    text = TEXT.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    assert {c.kind: c.count for c in collectives.read(text, 4)}["collective-permute"] == 7


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_program_for_tpus_against_a_count_by_hand():
    mesh = jax.make_mesh((4,), ("x",), devices=devices.find("v5e:2x2").devices)

    def local(x):  # float32 [256, 128] on each chip
        total = jax.lax.psum(x, "x")
        ring = [(i, (i + 1) % 4) for i in range(4)]
        moved = jax.lax.fori_loop(0, 3, lambda _, y: jax.lax.ppermute(y * 2, "x", ring), x)
        whole = jax.lax.all_gather(x.astype(jnp.bfloat16), "x")
        return total, moved, whole

    spec = P("x")
    step = jax.shard_map(
        local, mesh=mesh, in_specs=spec, out_specs=(P(), spec, P()), check_vma=False
    )
    x = jax.ShapeDtypeStruct((1024, 128), jnp.float32, sharding=NamedSharding(mesh, spec))
    found = {c.kind: c for c in collectives.read(jax.jit(step).lower(x).compile().as_text(), 4)}
    size = 256 * 128 * 4
    assert found["all-reduce"][1:] == (1, size, 2 * size * 3 / 4)
    assert found["collective-permute"][1:] == (3, 3 * size, 3 * size)
    # The compiler may gather in either dtype.
    assert found["all-gather"].bytes in (4 * size // 2, 4 * size)
