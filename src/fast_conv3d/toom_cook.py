"""Derives the 1-D transforms of Toom-Cook (Winograd) F(4, 5) and writes them as C++.

    python -m src.fast_conv3d.toom_cook    # rewrites native/toom_cook.h

F(4, 5) gives 4 neighbouring outputs of a 5-tap correlation from 8 inputs with 8 multiplications
instead of 20: `y = A^T ((G g) * (B^T d))`. A product of polynomials is known by its values at
enough points, here `POINTS` and infinity; the matrices evaluate and interpolate. Everything is
exact until the coefficients are printed.

Source: Lavin and Gray 2015, https://arxiv.org/abs/1509.09308; Barabasz et al. 2018,
https://arxiv.org/abs/1803.10986 (modified Toom-Cook).
"""

from fractions import Fraction
from math import prod
from pathlib import Path

OUTPUTS, TAPS = 4, 5
SIZE = OUTPUTS + TAPS - 1
HALF = Fraction(1, 2)
# Small numbers and pairs +-p: rows of such a pair share their even and their odd terms. The point
# at infinity comes last.
POINTS = (Fraction(0), Fraction(1), Fraction(-1), Fraction(2), Fraction(-2), HALF, -HALF)
HEADER = Path(__file__).parent / "native" / "toom_cook.h"

Matrix = list[list[Fraction]]


def _product_of(roots):
    """Coefficients, lowest degree first, of the polynomial with these roots."""
    polynomial = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *polynomial]
        polynomial = [a - root * b for a, b in zip(shifted, [*polynomial, 0], strict=True)]
    return polynomial


def _powers(count: int) -> Matrix:
    """One row of `count` powers per point; of infinity only the highest remains."""
    finite = [[point**power for power in range(count)] for point in POINTS]
    return [*finite, [Fraction(int(power == count - 1)) for power in range(count)]]


def _transposed(matrix: Matrix) -> Matrix:
    return [list(column) for column in zip(*matrix, strict=True)]


def input_matrix() -> Matrix:
    """B^T, 8 x 8: row j holds the polynomial that vanishes at all points but j."""
    others = [[q for q in POINTS if q != point] for point in POINTS]
    return [[*_product_of(roots), Fraction(0)] for roots in others] + [_product_of(POINTS)]


def kernel_matrix() -> Matrix:
    """G, 8 x 5: the kernel's values at the points, divided by B^T's polynomials there."""
    rows = _powers(TAPS)
    for row, point in zip(rows, POINTS, strict=False):
        scale = prod(point - other for other in POINTS if other != point)
        row[:] = [value / scale for value in row]
    return rows


def output_matrix() -> Matrix:
    """A^T, 4 x 8."""
    return _transposed(_powers(OUTPUTS))


def _term(coefficient: Fraction, name: str) -> str:
    size = abs(coefficient)
    if size == 1:
        return name
    # A power of two times a short decimal is exact in float; others are rounded by the compiler.
    return f"{float(size)!r}f * {name}"


def _sum(row, names) -> str:
    """`row . names` as C++; positive terms come first, so that no expression begins with a sign."""
    terms = sorted(
        ((c, n) for c, n in zip(row, names, strict=True) if c), key=lambda term: term[0] < 0
    )
    text = "" if terms[0][0] > 0 else "-"
    for number, (coefficient, name) in enumerate(terms):
        sign = (" + " if coefficient > 0 else " - ") if number else ""
        text += sign + _term(coefficient, name)
    return text


def _evaluating(matrix: Matrix) -> list[str]:
    """C++ of out = matrix in, for rows that belong to the points."""
    names = [f"in[{column}]" for column in range(len(matrix[0]))]
    lines = [f"out[0] = {_sum(matrix[0], names)};"]
    for plus in range(1, SIZE - 1, 2):
        pair = zip(matrix[plus], matrix[plus + 1], strict=True)
        halves = [((a + b) / 2, (a - b) / 2) for a, b in pair]
        even, odd = (_sum(half, names) for half in zip(*halves, strict=True))
        lines += [
            f"const Vec even{plus} = {even};",
            f"const Vec odd{plus} = {odd};",
            f"out[{plus}] = even{plus} + odd{plus};",
            f"out[{plus + 1}] = even{plus} - odd{plus};",
        ]
    return [*lines, f"out[{SIZE - 1}] = {_sum(matrix[-1], names)};"]


def _interpolating(matrix: Matrix) -> list[str]:
    """C++ of out = matrix in, for columns that belong to the points."""
    lines = []
    for plus in range(1, SIZE - 1, 2):
        lines += [
            f"const Vec sum{plus} = in[{plus}] + in[{plus + 1}];",
            f"const Vec difference{plus} = in[{plus}] - in[{plus + 1}];",
        ]
    for number, row in enumerate(matrix):
        terms = [(row[0], "in[0]"), (row[-1], f"in[{SIZE - 1}]")]
        for plus in range(1, SIZE - 1, 2):
            a, b = row[plus], row[plus + 1]
            terms += [((a + b) / 2, f"sum{plus}"), ((a - b) / 2, f"difference{plus}")]
        lines.append(f"out[{number}] = {_sum(*zip(*terms, strict=True))};")
    return lines


TRANSFORMS = (
    ("transform_input", "B^T: 8 inputs to their values at the points.", input_matrix, _evaluating),
    ("transform_kernel", "G: 5 taps to their values at the points.", kernel_matrix, _evaluating),
    (
        "transform_output",
        "A^T: 8 products at the points to 4 outputs.",
        output_matrix,
        _interpolating,
    ),
    (
        "transform_output_gradient",
        "A: the gradient of 4 outputs to that of the 8 products.",
        lambda: _transposed(output_matrix()),
        _evaluating,
    ),
    (
        "transform_kernel_gradient",
        "G^T: the gradient at 8 points to that of the 5 taps.",
        lambda: _transposed(kernel_matrix()),
        _interpolating,
    ),
)


def header() -> str:
    """The text of native/toom_cook.h."""
    functions = []
    for name, comment, matrix_of, lines_of in TRANSFORMS:
        matrix = matrix_of()
        body = "".join(f"  {line}\n" for line in lines_of(matrix))
        functions.append(
            f"// {comment}\n"
            f"FC3D_INLINE void {name}(const Vec (&in)[{len(matrix[0])}], "
            f"Vec (&out)[{len(matrix)}]) {{\n{body}}}\n"
        )
    points = ", ".join(str(point) for point in POINTS)
    constants = (
        f"constexpr int kOutputs = {OUTPUTS};  // of a tile, along one axis\n"
        f"constexpr int kTaps = {TAPS};\n"
        f"constexpr int kPoints = {SIZE};\n"
    )
    return (
        "// Written by src/fast_conv3d/toom_cook.py: change that, not this.\n"
        f"// 1-D transforms of Toom-Cook F({OUTPUTS}, {TAPS}) at the points {points}, infinity.\n"
        '#pragma once\n\n#include "vector.h"\n\n'
        "// clang-format off\n"
        "namespace fast_conv3d {\n\n"
        + "\n".join((constants, *functions))
        + "\n}  // namespace fast_conv3d\n// clang-format on\n"
    )


if __name__ == "__main__":
    HEADER.write_text(header())
