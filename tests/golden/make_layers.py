"""Writes layers.npz: each kind of layer of the network, forward and backward, in NumPy's float64.

    python tests/golden/make_layers.py

Convolutions are sums over the kernel's offsets, their gradients the adjoints of these sums; the
others are their textbook formulas. src/acceptance/layers.py compares a device with it.
"""

from pathlib import Path

import numpy as np

BATCH, CHANNELS, SIDES = 2, 3, (4, 4, 6)
EPSILON = 1e-5  # of the norms


def convolution(x, w, stride, pad):
    """y, and the function g -> (dx, dw); x is (N, C, X, Y, Z), w is (O, C, K, K, K)."""
    kernel = w.shape[2]
    padded = np.pad(x, [(0, 0), (0, 0)] + [(pad, pad)] * 3)
    sides = [(side - kernel) // stride + 1 for side in padded.shape[2:]]

    def window(array, offset):
        places = zip(offset, sides, strict=True)
        return array[(..., *(slice(o, o + stride * (n - 1) + 1, stride) for o, n in places))]

    offsets = list(np.ndindex(kernel, kernel, kernel))
    y = sum(np.einsum("oc,ncxyz->noxyz", w[(..., *o)], window(padded, o)) for o in offsets)

    def backward(g):
        dx, dw = np.zeros_like(padded), np.zeros_like(w)
        for o in offsets:
            window(dx, o)[...] += np.einsum("oc,noxyz->ncxyz", w[(..., *o)], g)
            dw[(..., *o)] = np.einsum("noxyz,ncxyz->oc", g, window(padded, o))
        inner = (slice(pad, side - pad or None) for side in padded.shape[2:])
        return dx[(..., *inner)], dw

    return y, backward


def transposed(x, w):
    """The adjoint of a 2x2x2 convolution of stride 2; w is (C, O, 2, 2, 2)."""
    shape = (x.shape[0], w.shape[1], *(2 * side for side in x.shape[2:]))
    _, adjoint = convolution(np.zeros(shape), w, 2, 0)
    y, _ = adjoint(x)

    def backward(g):
        dx, at_g = convolution(g, w, 2, 0)
        return dx, at_g(x)[1]

    return y, backward


def norm(x, gamma, beta, axes):
    """Zero mean and unit variance over `axes`, then a factor and an offset for each channel."""
    column = (slice(None), *[None] * 3)
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    scale = 1 / np.sqrt(variance + EPSILON)
    z = (x - mean) * scale

    def backward(g):
        dz = g * gamma[column]
        inner = dz.mean(axes, keepdims=True) + z * (dz * z).mean(axes, keepdims=True)
        return scale * (dz - inner), (g * z).sum((0, 2, 3, 4)), g.sum((0, 2, 3, 4))

    return z * gamma[column] + beta[column], backward


def elu(x):
    return np.where(x > 0, x, np.expm1(x)), lambda g: (g * np.where(x > 0, 1, np.exp(x)),)


def prelu(x, slope):
    column = (slice(None), *[None] * 3)
    y = np.where(x > 0, x, slope[column] * x)

    def backward(g):
        dslope = np.where(x > 0, 0, g * x).sum((0, 2, 3, 4))
        return g * np.where(x > 0, 1, slope[column]), dslope

    return y, backward


def softmax(x):
    y = np.exp(x - x.max(1, keepdims=True))
    y /= y.sum(1, keepdims=True)
    return y, lambda g: (y * (g - (g * y).sum(1, keepdims=True)),)


def main():
    random = np.random.default_rng(1)

    def draw(*shape, scale=1.0):
        return (scale * random.standard_normal(shape)).astype(np.float32).astype(np.float64)

    factors = [1 + draw(CHANNELS, scale=0.2), draw(CHANNELS, scale=0.3)]
    layers = {
        "convolution 5x5x5": (
            lambda x, w: convolution(x, w, 1, 2),
            [draw(4, 3, 5, 5, 5, scale=0.1)],
        ),
        "convolution 2x2x2, stride 2": (
            lambda x, w: convolution(x, w, 2, 0),
            [draw(4, 3, 2, 2, 2, scale=0.2)],
        ),
        "convolution 1x1x1": (lambda x, w: convolution(x, w, 1, 0), [draw(4, 3, 1, 1, 1)]),
        "transposed convolution 2x2x2": (transposed, [draw(3, 4, 2, 2, 2, scale=0.5)]),
        "batch norm": (lambda x, a, b: norm(x, a, b, (0, 2, 3, 4)), factors),
        "instance norm": (lambda x, a, b: norm(x, a, b, (2, 3, 4)), factors),
        "ELU": (elu, []),
        "PReLU": (prelu, [0.25 + draw(CHANNELS, scale=0.1)]),
        "softmax": (softmax, []),
    }
    arrays = {"names": np.array(list(layers))}
    for number, (forward, parameters) in enumerate(layers.values()):
        x = draw(BATCH, CHANNELS, *SIDES)
        y, backward = forward(x, *parameters)
        upstream = draw(*y.shape)
        kept = {"x": x, "upstream": upstream, "y": y}
        kept |= {f"parameter{i}": parameter for i, parameter in enumerate(parameters)}
        kept |= {f"gradient{i}": gradient for i, gradient in enumerate(backward(upstream))}
        arrays |= {f"{number} {key}": np.float32(value) for key, value in kept.items()}
    golden = Path(__file__).resolve().parents[2] / "src" / "acceptance" / "golden"
    np.savez_compressed(golden / "layers.npz", **arrays)


if __name__ == "__main__":
    main()
