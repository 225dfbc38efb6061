"""Work recorded once as a CUDA graph, and replayed.

A step of a small network is some hundred kernels of a few microseconds, which Python can't launch as fast as a GPU runs
them. A graph launches them all at once. It computes what the step computes kernel by kernel, from the same random numbers.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

WARM_UP = 3                  # steps before the recording: libraries choose kernels, optimizers make their state


class Replay:
    """A function of no arguments that works on tensors in place: called a few times, then recorded, then replayed.

    Args:
        step: reads and writes tensors that stay where they are; its result's storage is written again by the next call.
        generator: of its random numbers.
        renew: called where recording fails, which leaves the generator unusable; puts another one in its place.
    """

    def __init__(self, step: Callable[[], Tensor], device: torch.device, generator: torch.Generator, renew: Callable[[], None]) -> None:
        self.step, self.device, self.generator, self.renew = step, device, generator, renew
        self.stream = torch.cuda.Stream(device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.calls, self.failed = 0, False
        self.result = torch.empty(0)

    def __call__(self) -> Tensor:
        """One step."""
        if self.graph is None and not self.failed and self.calls >= WARM_UP:
            self._record()
        if self.graph is not None:
            self.graph.replay()
            return self.result
        self.calls += 1
        with aside(self.stream):
            return self.step()

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        try:
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.result = self.step()
        except RuntimeError as e:
            self.failed = True
            self.renew()
            warnings.warn(f"the step can't be recorded as a CUDA graph, it runs kernel by kernel: {e}", stacklevel=2)
            return
        self.graph = graph


@contextlib.contextmanager
def aside(stream: torch.cuda.Stream) -> Iterator[None]:
    """Work on the stream that a recording is made on, in order with all other work."""
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        torch.cuda.current_stream(stream.device).wait_stream(stream)


def rates_as_tensors(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Makes the optimizer's rates tensors, to be set with `set_rate`, and its step fit for a recording.

    On CPUs they are float64, as a plain number is, so that a step gives the same bits.
    """
    dtype = torch.float64 if device.type == "cpu" else torch.float32
    for group in optimizer.param_groups:
        group["lr"] = torch.as_tensor(group["lr"], dtype=dtype).to(device)
        group["capturable"] = True


def set_rate(group: dict[str, Any], rate: float) -> None:
    """The learning rate of one of an optimizer's groups, be it a number or a tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
