"""Modules that are almost RMSNorm, each in one way, written as a model's file would write them."""

from lookalikes import arithmetic, behaviour, divisor, rare, scale


def _classes(*modules):
    return tuple(
        value
        for module in modules
        for value in vars(module).values()
        if getattr(value, "__module__", None) == module.__name__
    )


# Right in float32; in 16 bits they round more often than any form.
IN_16_BITS = (
    arithmetic.AllIn16BitsNorm,
    arithmetic.RootIn16BitsNorm,
    arithmetic.OffsetIn16BitsNorm,
)
LOOKALIKES = tuple(
    norm for norm in _classes(divisor, arithmetic, scale, behaviour) if norm not in IN_16_BITS
)
# Running a few rows can't tell them from RMSNorm; only reading them can.
READER_ONLY = _classes(rare)
