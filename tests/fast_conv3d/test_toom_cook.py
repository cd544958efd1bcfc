"""The transforms of Toom-Cook F(4, 5), in exact arithmetic."""

import random
import re
from fractions import Fraction

import pytest

from src.fast_conv3d.toom_cook import (
    HEADER,
    OUTPUTS,
    SIZE,
    TAPS,
    header,
    input_matrix,
    kernel_matrix,
    output_matrix,
)


def times(matrix, vector):
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def transposed(matrix):
    return [list(column) for column in zip(*matrix, strict=True)]


def products(a, b):
    return [x * y for x, y in zip(a, b, strict=True)]


@pytest.fixture(params=range(5))
def rationals(request):
    """Function count -> so many random rationals."""
    draw = random.Random(request.param)

    def rationals(count):
        return [Fraction(draw.randint(-99, 99), draw.randint(1, 99)) for _ in range(count)]

    return rationals


def test_shapes():
    shapes = [(len(m), len(m[0])) for m in (input_matrix(), kernel_matrix(), output_matrix())]
    assert (OUTPUTS, TAPS, SIZE) == (4, 5, 8)
    assert shapes == [(8, 8), (8, 5), (4, 8)]


def test_outputs(rationals):
    inputs, kernel = rationals(SIZE), rationals(TAPS)
    points = products(times(kernel_matrix(), kernel), times(input_matrix(), inputs))
    assert times(output_matrix(), points) == [
        sum(kernel[tap] * inputs[output + tap] for tap in range(TAPS)) for output in range(OUTPUTS)
    ]


def test_kernel_gradient(rationals):
    inputs, d_outputs = rationals(SIZE), rationals(OUTPUTS)
    points = products(times(transposed(output_matrix()), d_outputs), times(input_matrix(), inputs))
    assert times(transposed(kernel_matrix()), points) == [
        sum(d_outputs[output] * inputs[output + tap] for output in range(OUTPUTS))
        for tap in range(TAPS)
    ]


def test_input_gradient(rationals):
    kernel, d_outputs = rationals(TAPS), rationals(OUTPUTS)
    points = products(times(transposed(output_matrix()), d_outputs), times(kernel_matrix(), kernel))
    expected = [Fraction(0)] * SIZE
    for output in range(OUTPUTS):
        for tap in range(TAPS):
            expected[output + tap] += d_outputs[output] * kernel[tap]
    assert times(transposed(input_matrix()), points) == expected


def test_the_committed_header_is_what_the_script_writes():
    assert HEADER.read_text() == header(), "run python -m src.fast_conv3d.toom_cook"


@pytest.mark.parametrize(
    ("function", "matrix"),
    [
        ("transform_input", input_matrix()),
        ("transform_kernel", kernel_matrix()),
        ("transform_output", output_matrix()),
        ("transform_output_gradient", transposed(output_matrix())),
        ("transform_kernel_gradient", transposed(kernel_matrix())),
    ],
)
def test_the_c_code_computes_the_matrices(function, matrix):
    text = header()
    body = re.search(rf"void {function}\(.*?\{{\n(.*?)\n\}}\n", text, re.DOTALL)[1]
    code = re.sub(r"const Vec |f\b(?= \*)|;", "", body)  # becomes Python, line by line
    for column in range(len(matrix[0])):
        names = {"in_": [float(row == column) for row in range(len(matrix[0]))], "out": {}}
        for line in code.splitlines():
            exec(line.strip().replace("in[", "in_["), names)
        found = [names["out"][row] for row in range(len(matrix))]
        assert found == pytest.approx([float(row[column]) for row in matrix], rel=1e-15)
