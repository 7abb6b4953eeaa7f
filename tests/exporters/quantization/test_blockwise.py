from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ortkit.exporters.quantization.blockwise import (
    COLUMNS,
    GPTQ_COLUMNS,
    BlockFormat,
    BlockMatrix,
    gptq_quantize_blockwise,
    quantize_blockwise,
)
from ortkit.exporters.quantization.gptq import inverse_hessian_cholesky
from ortkit.runtime.errors import InputError
from tests.exporters.graphs import make_model, run

RNG = np.random.default_rng(8)
FORMS = [
    BlockFormat(bits, block, symmetric) for bits in (4, 8) for block in (32, 64, 128) for symmetric in (False, True)
]


def multiplied(rows: np.ndarray, matrix: BlockMatrix, *, accuracy_level: int) -> np.ndarray:
    """What onnxruntime makes of rows and a matrix in blocks; at accuracy level 0 it multiplies in float32."""
    arrays = [matrix.packed_levels, matrix.scales, matrix.packed_zeros]
    constants = [
        ir.val(f"constant{number}", const_value=ir.tensor(array, name=f"constant{number}"))
        for number, array in enumerate(arrays)
        if array is not None
    ]
    given = ir.val("rows", ir.DataType.FLOAT, list(rows.shape))
    sizes = {"K": matrix.inputs, "N": matrix.outputs, "bits": matrix.bits, "block_size": matrix.block_size}
    product = ir.node(
        "MatMulNBits", [given, *constants], {**sizes, "accuracy_level": accuracy_level}, domain="com.microsoft"
    )
    product.outputs[0].dtype = ir.DataType.FLOAT
    return run(make_model([product], [given], product.outputs[0], constants), rows=rows)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("width", [256, 328])
def test_matmulnbits_computes_with_the_dequantized_weights(form: BlockFormat, width: int) -> None:
    """Also where the last block is only begun, and their number is odd."""
    weight = RNG.normal(size=(width, 70)).astype(np.float32) + 0.3
    rows = RNG.normal(size=(5, width)).astype(np.float32)
    matrix = quantize_blockwise(weight, form)
    expected = rows @ matrix.dequantized()
    scale = expected.std()

    exact = np.abs(multiplied(rows, matrix, accuracy_level=0) - expected).max() / scale
    fast = np.abs(multiplied(rows, matrix, accuracy_level=4) - expected).max() / scale

    print(f"largest error in float32 {exact:.1e}, with 8-bit activations {fast:.1e}")
    assert exact < 1e-5
    assert fast < 0.06


@pytest.mark.parametrize("form", FORMS, ids=str)
@settings(max_examples=25)
@given(data=st.data())
def test_a_weight_is_off_by_a_step_at_most(form: BlockFormat, data: st.DataObject) -> None:
    """Half a step inside; at the ends up to one, where 0 has no level of its own or one end has a level less."""
    weight = data.draw(arrays(np.float32, (40, 3), elements=st.floats(-1e3, 1e3, width=32)))

    found = quantize_blockwise(weight, form)

    assert np.isfinite(found.scales).all()
    steps = np.abs(np.repeat(found.scales, form.block_size, axis=1)[:, :40].T)
    assert (np.abs(found.dequantized() - weight) <= steps * 1.001 + 1e-7).all()
    assert (found.dequantized()[weight == 0] == 0).all()


def correlated(tokens: int, width: int) -> np.ndarray:
    """Inputs that go together and differ in size, as activations do."""
    mixed = RNG.normal(size=(tokens, width // 8)) @ RNG.normal(size=(width // 8, width))
    sizes = np.exp(RNG.normal(size=width))
    return ((mixed + 0.3 * RNG.normal(size=(tokens, width))) * sizes).astype(np.float32)


@pytest.mark.parametrize("form", [form for form in FORMS if form.bits == 4], ids=str)
def test_each_rounding_is_better_than_the_one_before(form: BlockFormat) -> None:
    """The product's error on inputs that calibration has not seen, with more outputs than are rounded together."""
    width, outputs = 200, GPTQ_COLUMNS + 10
    inputs = correlated(5000, width)
    seen, unseen = inputs[:4000], inputs[4000:]
    weight = RNG.standard_t(5, size=(width, outputs)).astype(np.float32)

    def error(found: BlockMatrix) -> float:
        return float(np.square(unseen @ (found.dequantized() - weight)).mean())

    moments = seen.T @ seen
    nearest = error(quantize_blockwise(weight, form))
    weighted = error(quantize_blockwise(weight, form, importance=np.diag(moments)))
    in_turn = error(gptq_quantize_blockwise(weight, form, inverse_hessian_cholesky(moments)))

    print(f"mean squared error: nearest {nearest:.3g}, by importance {weighted:.3g}, in turn {in_turn:.3g}")
    assert weighted < 0.8 * nearest
    assert in_turn < 0.5 * weighted


def test_the_weights_of_important_inputs_are_closer_than_by_rounding_to_nearest() -> None:
    weight = RNG.normal(size=(64, 50)).astype(np.float32)
    importance = np.where(np.arange(64) % 8 == 0, 100, 1).astype(np.float32)
    form = BlockFormat(4, 32, False)

    def errors(found: BlockMatrix) -> np.ndarray:
        return np.square(found.dequantized() - weight).mean(axis=1)

    plain, weighted = (
        errors(quantize_blockwise(weight, form)),
        errors(quantize_blockwise(weight, form, importance=importance)),
    )

    assert weighted[::8].mean() < 0.5 * plain[::8].mean()
    assert weighted @ importance < plain @ importance


@pytest.mark.parametrize("symmetric", [False, True])
def test_gptq_rounds_uncorrelated_inputs_independently(*, symmetric: bool) -> None:
    weight = RNG.normal(size=(150, 7)).astype(np.float32)
    squares = RNG.uniform(1, 5, 150).astype(np.float32)
    form = BlockFormat(4, 32, symmetric)
    factors = inverse_hessian_cholesky(np.diag(squares))
    damped = (1 / np.diag(factors) ** 2).astype(np.float32)

    found = gptq_quantize_blockwise(weight, form, factors)
    expected = quantize_blockwise(weight, form, importance=damped)

    assert np.array_equal(found.levels, expected.levels)
    assert np.array_equal(found.scales, expected.scales)


def test_outputs_do_not_depend_on_those_beside_them() -> None:
    weight = RNG.normal(size=(64, COLUMNS + 9)).astype(np.float32)
    importance = RNG.uniform(1, 5, 64).astype(np.float32)
    form = BlockFormat(4, 64, False)

    whole = quantize_blockwise(weight, form, importance=importance)
    last = quantize_blockwise(weight[:, -9:], form, importance=importance)

    assert np.array_equal(whole.levels[-9:], last.levels)
    assert np.array_equal(whole.scales[-9:], last.scales)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_weights_of_zero_stay_zero(form: BlockFormat) -> None:
    weight = np.zeros((64, 3), np.float32)
    moments = np.zeros((64, 64), np.float32)

    for found in (
        quantize_blockwise(weight, form),
        quantize_blockwise(weight, form, importance=np.zeros(64, np.float32)),
        gptq_quantize_blockwise(weight, form, inverse_hessian_cholesky(moments)),
    ):
        assert (found.dequantized() == 0).all()


@pytest.mark.parametrize(
    ("bits", "block", "message"),
    [(3, 32, "3-bit weights are not supported"), (4, 48, "blocks of 48 weights are not supported")],
)
def test_a_form_without_a_kernel_is_refused(bits: int, block: int, message: str) -> None:
    with pytest.raises(InputError) as caught:
        BlockFormat(bits, block, symmetric=True)

    assert caught.value.message == message
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("supported: ")


CUDA_FORMS = [BlockFormat(bits, 32, symmetric=True, cuda=True) for bits in (4, 8)]


@pytest.mark.parametrize("form", CUDA_FORMS, ids=str)
def test_blocks_for_cuda_are_padded_with_zeros(form: BlockFormat) -> None:
    weight = RNG.normal(size=(72, 70)).astype(np.float32)

    found = quantize_blockwise(weight, form)

    rows = {4: 128, 8: 96}[form.bits]
    assert (found.inputs, found.outputs, found.scales.dtype, found.zeros) == (96, rows, np.float16, None)
    dequantized = found.dequantized()
    assert not dequantized[72:].any()
    assert not dequantized[:, 70:].any()
    assert np.abs(dequantized[:72, :70] - weight).max() < {4: 0.4, 8: 0.03}[form.bits]
    assert quantize_blockwise(weight[:64, :64], form).levels.shape == (64, 2, 32), "no padding where it fits"


@pytest.mark.parametrize("form", CUDA_FORMS, ids=str)
@pytest.mark.parametrize("size", [1e-9, 3e-7, 1e-4, 1.0, 3e4])
def test_levels_are_the_nearest_for_the_scale_that_is_stored(form: BlockFormat, size: float) -> None:
    """Also where float16 rounds the scale to a tenth of itself, or to 0."""
    weight = (size * RNG.normal(size=(32, 64))).astype(np.float32)
    importance = np.ones(32, np.float32)

    for found in (quantize_blockwise(weight, form), quantize_blockwise(weight, form, importance=importance)):
        scales = found.scales[:, :, np.newaxis].astype(np.float32)
        assert scales.all()
        nearest = np.clip(np.rint(weight.T[:, np.newaxis] / scales) + form.middle, 0, form.top)
        assert np.array_equal(found.levels, nearest)


def test_gptq_knows_the_scales_that_are_stored() -> None:
    """It compensates the errors of the weights that the graph will have."""
    weight = RNG.normal(size=(64, 64)).astype(np.float32)
    rows = (RNG.normal(size=(400, 8)) @ RNG.normal(size=(8, 64)) + 0.1 * RNG.normal(size=(400, 64))).astype(np.float32)
    form = CUDA_FORMS[0]

    gptq = gptq_quantize_blockwise(weight, form, inverse_hessian_cholesky(rows.T @ rows)).dequantized()
    plain = quantize_blockwise(weight, form, importance=np.square(rows).sum(axis=0)).dequantized()

    errors = [float(np.square(rows @ (found - weight)).mean()) for found in (gptq, plain)]
    assert errors[0] < 0.5 * errors[1]
