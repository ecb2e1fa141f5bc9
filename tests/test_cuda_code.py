"""The check of what nvcc made of the kernels for GPUs: it finds what would change bits."""

import pytest

import cuda_code

ALLOWED = """
    mul.rn.f32 %f3, %f1, %f2;
@%p1 fma.rn.f64 %fd3, %fd1, %fd2, %fd4;
    { cvt.rn.bf16x2.f32 %r1, %f1, %f2;}
    cvt.rn.f32.s64 %f1, %rd1;
    { cvt.f32.f16 %f1, %rs1;}
    cvt.f64.f32 %fd1, %f1;
    neg.f32 %f1, %f2;
    setp.lt.f32 %p1, %f1, %f2;
    add.s64 %rd1, %rd2, %rd3;
    mad.lo.s32 %r1, %r2, %r3, %r4;
    ld.global.cs.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1];
"""
FORBIDDEN = [
    "fma.rn.ftz.f32 %f1, %f2, %f3, %f4;",
    "div.approx.f32 %f1, %f2, %f3;",
    "div.full.f32 %f1, %f2, %f3;",
    "sqrt.approx.ftz.f32 %f1, %f2;",
    "rsqrt.approx.f32 %f1, %f2;",
    "add.rz.f32 %f1, %f2, %f3;",
    "mul.f32 %f1, %f2, %f3;",
    "cvt.rz.f16.f32 %rs1, %f1;",
    "cvt.f32.f64 %f1, %fd1;",
    "atom.global.add.f32 %f1, [%rd1], %f2;",
    "red.global.add.f32 [%rd1], %f1;",
    "@%p1 red.async.relaxed.cluster.global.add.u32 [%rd1], %r1;",
]
USAGE = """
Fatbin elf code:
================
arch = sm_90
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function void f<float>(int):
  REG:40 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:532 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function g(int):
  REG:255 STACK:16 SHARED:0 LOCAL:8 CONSTANT[0]:532 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_operations_rounded_to_nearest_and_exact_ones_are_allowed():
    assert cuda_code.forbidden(ALLOWED) == []
    assert cuda_code.operations(ALLOWED).total() == 6


@pytest.mark.parametrize("line", FORBIDDEN)
def test_what_would_change_bits_is_found(line):
    assert len(cuda_code.forbidden(ALLOWED + line)) >= 1


def test_registers_and_spills_are_read_for_each_kernel():
    assert list(cuda_code.kernels(USAGE)) == [
        cuda_code.Kernel("void f<float>(int)", "sm_90", 40, 0),
        cuda_code.Kernel("g(int)", "sm_90", 255, 24),
    ]
