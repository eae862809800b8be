"""Eight float32 numbers as one value inside compiled code: one instruction works on all of them.

A loop over categories that numba compiles works on one number at a time wherever it cannot prove
that what is read and what is written are different memory. Here the width is said, not hoped for.
Every operation rounds once, so the bits are the same on every processor with these instructions.
"""

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

WIDTH = 8

_VECTOR = ir.VectorType(ir.FloatType(), WIDTH)
_BITS = ir.VectorType(ir.IntType(32), WIDTH)


class _Lanes(types.Type):
    """The type of such a value, for numba."""


@register_model(_Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _VECTOR)


_LANES = _Lanes(name=f"float32 x {WIDTH}")


def _address(context, builder, signature, args):
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    return builder.bitcast(builder.gep(data, [args[1]]), _VECTOR.as_pointer())


@intrinsic
def load(typing, array, start):
    """The numbers from flat index `start` on of a contiguous float32 array."""

    def make(context, builder, signature, args):
        return builder.load(_address(context, builder, signature, args), align=4)

    return _LANES(array, types.intp), make


@intrinsic
def store(typing, array, start, lanes):
    """Write the numbers to flat index `start` and on of a contiguous float32 array."""

    def make(context, builder, signature, args):
        builder.store(args[2], _address(context, builder, signature, args), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), make


@intrinsic
def spread(typing, number):
    """One float32 in all lanes."""

    def make(context, builder, signature, args):
        anything = ir.Constant(_VECTOR, ir.Undefined)
        first = builder.insert_element(anything, args[0], ir.IntType(32)(0))
        return builder.shuffle_vector(first, anything, ir.Constant(_BITS, [0] * WIDTH))

    return _LANES(types.float32), make


@intrinsic
def times_plus(typing, a, b, c):
    """a * b + c, rounded once."""

    def make(context, builder, signature, args):
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        name = f"llvm.fma.v{WIDTH}f32"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)

    return _LANES(_LANES, _LANES, _LANES), make


@intrinsic
def plus(typing, a, b):
    def make(context, builder, signature, args):
        return builder.fadd(*args)

    return _LANES(_LANES, _LANES), make


@intrinsic
def minus(typing, a, b):
    def make(context, builder, signature, args):
        return builder.fsub(*args)

    return _LANES(_LANES, _LANES), make


@intrinsic
def times(typing, a, b):
    def make(context, builder, signature, args):
        return builder.fmul(*args)

    return _LANES(_LANES, _LANES), make


def _larger(builder, a, b):
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@intrinsic
def larger(typing, a, b):
    """The larger of the two, lane by lane."""

    def make(context, builder, signature, args):
        return _larger(builder, *args)

    return _LANES(_LANES, _LANES), make


def _folded(builder, lanes, join):
    """One number of all lanes: the upper half joined to the lower, until one is left."""
    half = WIDTH // 2
    while half:
        anything = ir.Constant(lanes.type, ir.Undefined)
        places = ir.VectorType(ir.IntType(32), half)
        lower, upper = (
            builder.shuffle_vector(lanes, anything, ir.Constant(places, list(range(i, i + half))))
            for i in (0, half)
        )
        lanes, half = join(lower, upper), half // 2
    return builder.extract_element(lanes, ir.IntType(32)(0))


@intrinsic
def total(typing, lanes):
    """The sum of the lanes, a float32."""

    def make(context, builder, signature, args):
        return _folded(builder, args[0], builder.fadd)

    return types.float32(_LANES), make


@intrinsic
def largest(typing, lanes):
    """The largest of the lanes, a float32."""

    def make(context, builder, signature, args):
        return _folded(builder, args[0], lambda a, b: _larger(builder, a, b))

    return types.float32(_LANES), make


@intrinsic
def _to_the_power(typing, mantissa, shifted):
    """mantissa * 2**n, where n stands in the low bits of `shifted`."""

    def make(context, builder, signature, args):
        mantissa, shifted = (builder.bitcast(a, _BITS) for a in args)
        exponent = builder.shl(shifted, ir.Constant(_BITS, [23] * WIDTH))
        return builder.bitcast(builder.add(mantissa, exponent), _VECTOR)

    return _LANES(_LANES, _LANES), make


_PER_BIT = np.float32(1 / np.log(2))
_LOWEST = np.float32(-60)  # 2**-60 is nothing beside 1, and its products are still normal numbers
_ROUNDER = np.float32(3 << 22)  # added to a small number, it leaves the nearest integer in the bits
_TERMS = [np.float32(np.log(2) ** k / np.prod(np.arange(1.0, k + 1))) for k in range(7)]
_T0, _T1, _T2, _T3, _T4, _T5, _T6 = _TERMS


@numba.njit(nogil=True)
def exponential(lanes):
    """e**x for x <= 0, to 2e-7 of it; below 2**-60 it is 2**-60.

    The Taylor series of 2**f for the fraction f in -1/2..1/2 of x / ln 2, the rest as exponent.
    """
    x = larger(times(lanes, spread(_PER_BIT)), spread(_LOWEST))
    shifted = plus(x, spread(_ROUNDER))
    f = minus(x, minus(shifted, spread(_ROUNDER)))
    y = times_plus(f, spread(_T6), spread(_T5))
    y = times_plus(f, y, spread(_T4))
    y = times_plus(f, y, spread(_T3))
    y = times_plus(f, y, spread(_T2))
    y = times_plus(f, y, spread(_T1))
    y = times_plus(f, y, spread(_T0))
    return _to_the_power(y, shifted)
