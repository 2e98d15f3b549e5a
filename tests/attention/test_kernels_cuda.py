"""Kernels of dense attention that are written for GPUs, against the materialised softmax."""

from functools import partial

import pytest
import torch
from helpers.kernel_truth import KINDS, check, example

from unimem.attention.kernels.base import materialised
from unimem.attention.kernels.cpu import CpuFlash
from unimem.attention.kernels.efficient import Efficient
from unimem.attention.kernels.flash import Flash
from unimem.attention.kernels.flash_builds import PACKAGES, PYTORCH, available
from unimem.attention.kernels.flex import Flex, part_gradient

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@needs_cuda
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [Efficient, Flex, *(partial(Flash, b) for b in available())])
def test_kernel_in_half_precision(make, kind):
    check(make(), kind, torch.bfloat16, "cuda", 5e-3)


@needs_cuda
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [Efficient, Flex])
def test_kernel_in_full_precision(make, kind):
    check(make(), kind, torch.float32, "cuda", 2e-3)  # products may be those of TF32


@pytest.mark.parametrize("kind", KINDS)
def test_the_comparison_holds_for_the_kernel_of_the_cpu(kind):
    check(CpuFlash(), kind, torch.float32, "cpu", 2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_flex_forward_on_the_cpu(kind):
    tensors = example(kind)
    for found, truth in zip(Flex().forward(*tensors), materialised(*tensors), strict=True):
        torch.testing.assert_close(found, truth, atol=2e-6, rtol=2e-6)


def test_flex_has_no_backward_on_the_cpu():
    tensors = example("all")
    out, lse = Flex().forward(*tensors)
    with pytest.raises(RuntimeError, match="no backward pass on CPU; choose another kernel"):
        Flex().backward(out, *tensors, out, lse)


def test_gradient_of_a_part():
    generator = torch.Generator().manual_seed(0)
    outs = torch.randn(2, 3, 5, 7, 8, generator=generator, dtype=torch.float64)
    lses = torch.randn(2, 3, 5, 7, generator=generator, dtype=torch.float64) * 3
    grad = torch.randn(3, 5, 7, 8, generator=generator, dtype=torch.float64)
    outs.requires_grad_()
    lses.requires_grad_()
    merge_parts = (lses.softmax(0)[..., None] * outs).sum(0)
    truths = torch.autograd.grad(merge_parts, (outs, lses), grad)
    for part in range(2):
        found = part_gradient(grad, merge_parts, lses.logsumexp(0), outs[part], lses[part])
        for result, truth in zip(found, truths, strict=True):
            torch.testing.assert_close(result, truth[part], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        (Efficient(), "all"),
        (Efficient(), "bias"),
        (Flash(PYTORCH), "all"),
        (Flash(PYTORCH), "band"),
    ],
)
def test_private_operators_take_what_they_are_given(kernel, kind):
    """The meta device binds arguments and infers shapes, and computes nothing."""
    query, key, value, bias, band = example(kind)
    tensors = [t.to("meta", torch.bfloat16) for t in (query, key, value)]
    bias = None if bias is None else bias.to("meta", torch.bfloat16)
    out, lse = kernel.forward(*tensors, bias, band)
    assert (out.shape, out.dtype) == (query.shape, torch.bfloat16)
    assert (lse.shape, lse.dtype) == (query.shape[:3], torch.float32)
    grads = kernel.backward(out, *tensors, bias, band, out, lse)
    assert [t.shape for t in grads] == [t.shape for t in tensors]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (
            "_scaled_dot_product_efficient_attention",
            "query key value attn_bias compute_log_sumexp dropout_p is_causal scale",
        ),
        (
            "_scaled_dot_product_efficient_attention_backward",
            "grad_out_ query key value attn_bias out logsumexp philox_seed philox_offset dropout_p "
            "grad_input_mask is_causal scale",
        ),
        (
            "_flash_attention_forward",
            "query key value cum_seq_q cum_seq_k max_q max_k dropout_p is_causal return_debug_mask "
            "scale window_size_left window_size_right",
        ),
        (
            "_flash_attention_backward",
            "grad_out query key value out logsumexp cum_seq_q cum_seq_k max_q max_k dropout_p "
            "is_causal rng_state unused scale window_size_left window_size_right",
        ),
    ],
)
def test_private_operators_are_those_that_were_read(name, arguments):
    schema = getattr(torch.ops.aten, name).default._schema
    expected = arguments.split()
    assert [argument.name for argument in schema.arguments][: len(expected)] == expected


def test_flash_says_what_it_cannot_take():
    kernel = Flash(PYTORCH)
    with pytest.raises(TypeError, match=r"float16 and bfloat16, not torch\.float32"):
        kernel.forward(*example("all"))
    tensors = [t.bfloat16() for t in example("all", D=12)[:3]]
    with pytest.raises(ValueError, match="multiples of 8 up to 256, but the model's is 12"):
        kernel.forward(*tensors, None, None)


def test_pytorchs_own_build_is_always_there():
    assert available()[-1] == PYTORCH
    assert {build.name for build in available()} <= {build.name for build in (*PACKAGES, PYTORCH)}
