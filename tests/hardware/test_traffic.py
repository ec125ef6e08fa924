"""Bytes to and from memory, against counts by hand."""

import jax
import jax.numpy as jnp

from fgvc_jax.hardware import traffic

TEXT = """HloModule step

%fused (p: f32[100]) -> f32[100] {
  %inner = f32[100]{0} add(%p, %p)
}

%body (t: (s32[], f32[10])) -> (s32[], f32[10]) {
  %v = f32[10]{0} get-tuple-element(%t), index=1
  %w = f32[10]{0:T(128)S(1)} negate(%v)
  %canvases = u8[5,8]{1,0} get-tuple-element(%t), index=2
  %one = u8[1,8]{1,0:T(128)S(1)} fusion(%canvases), kind=kLoop, calls=%fused
}

%condition (t: (s32[], f32[10])) -> pred[] {
  %limit = s32[]{:S(6)} constant(3)
}

ENTRY %main (x: f32[100], canvases: u8[1000]) -> f32[100] {
  %x = f32[100]{0:T(128)} parameter(0)
  %canvases = u8[1000]{0} parameter(1)
  %near = (f32[100]{0:T(128)S(1)}, f32[100]{0:T(128)}, u32[]{:S(2)}) copy-start(%x)
  %arrived = f32[100]{0:T(128)S(1)} copy-done(%near)
  %y = f32[100]{0:T(128)} fusion(%arrived, /*index=1*/%x, %x), kind=kLoop, calls=%fused
  %all = u8[8]{0:S(1)} fusion(%canvases), kind=kLoop, calls=%fused
  %loop = (s32[], f32[10]{0}) while(%t), condition=%condition, body=%body
}
"""


def test_text_by_hand():
    """A copy to the chip 400; a fusion that reads x once and writes y 800; one that reads all canvases 1,000;
    the loop reads ten numbers and one canvas of five three times. Operations within a fusion, and what stays
    on the chip, are free.
    """
    assert traffic.read(TEXT) == 400 + 800 + 1000 + 3 * (40 + 8)


def test_a_program_of_this_machine():
    """a @ b reads both and writes the product."""
    a, b = jnp.zeros((64, 32)), jnp.zeros((32, 16))
    text = jax.jit(lambda a, b: a @ b).lower(a, b).compile().as_text()
    assert traffic.read(text) == 4 * (64 * 32 + 32 * 16 + 64 * 16)
