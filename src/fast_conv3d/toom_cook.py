"""Derives the 1-D transforms of Toom-Cook (Winograd) F(4, 5) and writes them as C++.

    python -m src.fast_conv3d.toom_cook    # writes native/toom_cook.h

F(4, 5) computes 4 neighbouring outputs of a 5-tap correlation from 8 inputs with 8 multiplications
instead of 20: `y = A^T ((G g) * (B^T d))`. A product of polynomials is determined by its values at
8 points, here `POINTS` and infinity: the matrices evaluate polynomials at the points and
interpolate them. All arithmetic is in exact fractions; only the printed coefficients are rounded.

Source: Lavin and Gray 2015, https://arxiv.org/abs/1509.09308; Barabasz et al. 2018,
https://arxiv.org/abs/1803.10986 (modified Toom-Cook).
"""

from fractions import Fraction
from math import prod
from pathlib import Path

OUTPUTS, TAPS = 4, 5
SIZE = OUTPUTS + TAPS - 1
HALF = Fraction(1, 2)
# Small numbers, in pairs +-p: the two rows of a pair have the same even terms and opposite odd
# terms, which are computed once. The point at infinity comes last.
POINTS = (Fraction(0), Fraction(1), Fraction(-1), Fraction(2), Fraction(-2), HALF, -HALF)
HEADER = Path(__file__).parent / "native" / "toom_cook.h"

Matrix = list[list[Fraction]]


def _product_of(roots: list[Fraction] | tuple[Fraction, ...]) -> list[Fraction]:
    """The coefficients of the polynomial with these roots, lowest degree first."""
    polynomial = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *polynomial]
        polynomial = [
            a - root * b for a, b in zip(shifted, [*polynomial, Fraction(0)], strict=True)
        ]
    return polynomial


def _powers(count: int) -> Matrix:
    """One row of `count` powers for each point; the row of infinity is 0, .., 0, 1."""
    finite = [[point**power for power in range(count)] for point in POINTS]
    return [*finite, [Fraction(int(power == count - 1)) for power in range(count)]]


def _transposed(matrix: Matrix) -> Matrix:
    return [list(column) for column in zip(*matrix, strict=True)]


def input_matrix() -> Matrix:
    """B^T, 8 x 8: row j is the polynomial whose roots are all points but j."""
    others = [[q for q in POINTS if q != point] for point in POINTS]
    return [[*_product_of(roots), Fraction(0)] for roots in others] + [_product_of(POINTS)]


def kernel_matrix() -> Matrix:
    """G, 8 x 5: evaluates the kernel at each point, and divides by the polynomial of B^T there."""
    rows = _powers(TAPS)
    for row, point in zip(rows, POINTS, strict=False):
        scale = prod(point - other for other in POINTS if other != point)
        row[:] = [value / scale for value in row]
    return rows


def output_matrix() -> Matrix:
    """A^T, 4 x 8: interpolates the outputs."""
    return _transposed(_powers(OUTPUTS))


def _term(coefficient: Fraction, name: str) -> str:
    size = abs(coefficient)
    if size == 1:
        return name
    # Powers of two and short decimals are exact in float; the compiler rounds the others.
    return f"{float(size)!r}f * {name}"


def _sum(row, names) -> str:
    """The dot product of row and names as C++; positive terms first, to avoid a leading sign."""
    terms = sorted(
        ((c, n) for c, n in zip(row, names, strict=True) if c), key=lambda term: term[0] < 0
    )
    text = "" if terms[0][0] > 0 else "-"
    for number, (coefficient, name) in enumerate(terms):
        sign = (" + " if coefficient > 0 else " - ") if number else ""
        text += sign + _term(coefficient, name)
    return text


def _evaluation_code(matrix: Matrix) -> list[str]:
    """C++ for out = matrix @ in, where each row of the matrix belongs to a point."""
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


def _interpolation_code(matrix: Matrix) -> list[str]:
    """C++ for out = matrix @ in, where each column of the matrix belongs to a point."""
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
    (
        "transform_input",
        "B^T: the values of 8 inputs at the points.",
        input_matrix,
        _evaluation_code,
    ),
    ("transform_kernel", "G: the values of 5 taps at the points.", kernel_matrix, _evaluation_code),
    (
        "transform_output",
        "A^T: 4 outputs from the products at the 8 points.",
        output_matrix,
        _interpolation_code,
    ),
    (
        "transform_output_gradient",
        "A: the gradient of the 8 products from that of the 4 outputs.",
        lambda: _transposed(output_matrix()),
        _evaluation_code,
    ),
    (
        "transform_kernel_gradient",
        "G^T: the gradient of the 5 taps from that at the 8 points.",
        lambda: _transposed(kernel_matrix()),
        _interpolation_code,
    ),
)


def header() -> str:
    """Returns the text of native/toom_cook.h."""
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
        f"constexpr int kOutputs = {OUTPUTS};  // outputs of a tile along an axis\n"
        f"constexpr int kTaps = {TAPS};\n"
        f"constexpr int kPoints = {SIZE};\n"
    )
    return (
        "// Generated by src/fast_conv3d/toom_cook.py; do not edit.\n"
        f"// 1-D transforms of Toom-Cook F({OUTPUTS}, {TAPS}) at the points {points}, infinity.\n"
        '#pragma once\n\n#include "vector.h"\n\n'
        "// clang-format off\n"
        "namespace fast_conv3d {\n\n"
        + "\n".join((constants, *functions))
        + "\n}  // namespace fast_conv3d\n// clang-format on\n"
    )


if __name__ == "__main__":
    HEADER.write_text(header())
