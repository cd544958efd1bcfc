"""A training step: forward, backward, optimizer; with loss scale and gradient accumulation."""

import mindspore as ms
from easydict import EasyDict
from mindspore import nn, ops
from mindspore.boost.grad_accumulation import gradient_accumulation_op, gradient_clear_op

from .. import checkpoint
from ..devices.device import apply_precision, uses_mixed_precision
from ..fast_conv3d.loss import FusedLoss
from ..fast_conv3d.network import FastVNet
from ..loss import LOSSES
from ..utils.errors import UsageError

not_finite = ops.MultitypeFuncGraph("not_finite")
unscale = ops.MultitypeFuncGraph("unscale")


@not_finite.register("Tensor")
def _not_finite(gradient):
    return 1.0 - ops.isfinite(gradient).all().astype(ms.float32)


@unscale.register("Tensor", "Tensor")
def _unscale(scale, gradient):
    return gradient / ops.cast(scale, ops.dtype(gradient))


class LossCell(nn.Cell):
    """The network and its loss on one batch."""

    def __init__(self, network: nn.Cell, loss: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.loss = loss

    def construct(self, image, mask, dropout_mask=None):
        if self.loss.takes_logits:
            return self.loss(self.network.logits(image, dropout_mask), mask)
        return self.loss(self.network(image, dropout_mask), mask)


class AccumulatingStep(nn.TrainOneStepCell):
    """Gradient accumulation: every `batches` calls the optimizer updates the weights once.

    It gets the mean gradient of these batches, averaged over all devices.
    """

    def __init__(self, network: nn.Cell, optimizer: nn.Optimizer, batches: int) -> None:
        super().__init__(network, optimizer)
        self.mean_gradients = self.weights.clone(checkpoint.ACCUMULATED, init="zeros")
        self.calls = ms.Parameter(ms.Tensor(0, ms.int32), f"{checkpoint.ACCUMULATED}.calls")
        self.batches = batches
        self.each = ops.HyperMap()
        # One forward pass: a second one would update batch norm's moving statistics again.
        self.loss_and_gradients = ops.value_and_grad(network, None, self.weights)

    def construct(self, *inputs):
        loss, gradients = self.loss_and_gradients(*inputs)
        add = ops.partial(gradient_accumulation_op, self.batches)
        loss = ops.depend(loss, self.each(add, self.mean_gradients, gradients))
        self.calls += 1
        if self.calls == self.batches:
            gradients = self.grad_reducer(self.mean_gradients)
            loss = ops.depend(loss, self.optimizer(gradients))
            loss = ops.depend(loss, self.each(gradient_clear_op, self.mean_gradients))
            self.calls = 0
        return loss


class LossScaledStep(nn.TrainOneStepWithLossScaleCell):
    """A training step with a dynamic loss scale; the update is skipped if a gradient overflows.

    On GPU and CPU overflows are detected in the gradients averaged over the devices: a value that
    is not finite on one device is not finite in the mean, so that all devices skip the same updates
    without further communication. An Ascend 910 saturates instead of overflowing: there MindSpore
    reads the overflow register of each device and exchanges the results.
    """

    def __init__(self, network: nn.Cell, optimizer: nn.Optimizer, scale: nn.Cell) -> None:
        super().__init__(network, optimizer, scale)
        self.reads_registers = ms.get_context("device_target") == "Ascend"
        # On GPUs MindSpore 2.10 also fails to compile a second AllReduce in one graph.
        if not self.reads_registers:
            self.is_distributed = False

    def get_overflow_status(self, status, compute_output):
        """Returns whether `compute_output`, the averaged gradients, overflowed on any device."""
        if self.reads_registers:
            return super().get_overflow_status(status, compute_output)
        return self._get_distributed_overflow_status_on_infnan_mode(not_finite, compute_output)

    def scaled_gradients(self, *inputs):
        """Returns the loss of a batch, and this device's gradients divided by the loss scale."""
        loss = self.network(*inputs)
        sensitivity = ops.ones_like(loss) * ops.cast(self.scale_sense, ops.dtype(loss))
        gradients = self.grad(self.network, self.weights)(*inputs, sensitivity)
        return loss, self.hyper_map(ops.partial(unscale, self.scale_sense), gradients)

    def finish(self, loss, gradients):
        """Averages the gradients over the devices and updates the weights without an overflow."""
        gradients = self.grad_reducer(gradients)
        status = ms.Tensor([0] * 8, ms.int32)
        overflow = self.process_loss_scale(self.get_overflow_status(status, gradients))
        if not overflow:
            loss = ops.depend(loss, self.optimizer(gradients))
        return loss, overflow

    def construct(self, *inputs):
        loss, gradients = self.scaled_gradients(*inputs)
        loss, overflow = self.finish(loss, gradients)
        return loss, overflow, self.scale_sense


class AccumulatingLossScaledStep(LossScaledStep):
    """Gradient accumulation as `AccumulatingStep`; one overflow skips the update of all batches."""

    def __init__(
        self, network: nn.Cell, optimizer: nn.Optimizer, scale: nn.Cell, batches: int
    ) -> None:
        super().__init__(network, optimizer, scale)
        self.mean_gradients = self.weights.clone(checkpoint.ACCUMULATED, init="zeros")
        self.calls = ms.Parameter(ms.Tensor(0, ms.int32), f"{checkpoint.ACCUMULATED}.calls")
        self.batches = batches

    def construct(self, *inputs):
        loss, gradients = self.scaled_gradients(*inputs)
        add = ops.partial(gradient_accumulation_op, self.batches)
        loss = ops.depend(loss, self.hyper_map(add, self.mean_gradients, gradients))
        overflow = ms.Tensor(False)
        self.calls += 1
        if self.calls == self.batches:
            loss, overflow = self.finish(loss, self.mean_gradients)
            loss = ops.depend(loss, self.hyper_map(gradient_clear_op, self.mean_gradients))
            self.calls = 0
        return loss, overflow, self.scale_sense


def create_training_cell(
    network: nn.Cell, optimizer: nn.Optimizer, config: EasyDict, device_target: str
) -> nn.Cell:
    """Returns a training step, with a loss scale in mixed precision.

    Args:
        network: to train; in mixed precision it is changed to compute in float16.
        optimizer: of its parameters.
        config: `loss`, `accumulate_steps`, `precision`, `loss_scale`.
        device_target: "Ascend", "GPU" or "CPU".

    Raises:
        UsageError: mixed precision on a CPU, whose convolutions have no float16 gradient.
    """
    loss = LOSSES[config.loss]()
    if isinstance(network, FastVNet):
        loss = FusedLoss(loss.takes_logits)
    loss_cell = LossCell(network, loss)
    batches = config.accumulate_steps
    if not uses_mixed_precision(config, device_target):
        if batches > 1:
            return AccumulatingStep(loss_cell, optimizer, batches).set_train()
        return nn.TrainOneStepCell(loss_cell, optimizer).set_train()
    if device_target == "CPU":
        raise UsageError("precision=mixed trains on Ascend and GPU only; on CPU take float32")
    apply_precision(network, config, device_target)
    scale = nn.DynamicLossScaleUpdateCell(config.loss_scale, scale_factor=2, scale_window=1000)
    if batches > 1:
        cell = AccumulatingLossScaledStep(loss_cell, optimizer, scale, batches)
    else:
        cell = LossScaledStep(loss_cell, optimizer, scale)
    return cell.set_train()
