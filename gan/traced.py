"""A training step on CPUs as a flat list of torch's kernels, traced once and then called without autograd.

A step of small networks is some six hundred kernels. Modules, autograd's graph, autocast's look-ups and the optimizers' bookkeeping find
the same ones in the same order each time, and take a sixth of a step on two quick cores. So `torch.fx` writes down what one step calls,
gradients and updates included; from then on Python calls just that. The same kernels in the same order give the same bits.
"""

import threading
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from gan.graphs import rates_as_tensors
from gan.recipe import Recipe
from gan.step import Moment, Update, gradient_norm
from gan.workers import ADDED

WARM_UP = 3                  # steps of a kind before it is traced: optimizers make their state
LEAST_STEPS, LEAST_S = 1000, 20.0                    # a shorter run doesn't pay for the second that tracing takes
ALIASES = (torch.ops.aten.detach.default,)           # give back what they are given, where there is no autograd
VIEWS = (torch.ops.aten.t.default, torch.ops.aten.view.default, torch.ops.aten.permute.default, torch.ops.aten.unsqueeze.default,
         torch.ops.aten.slice.Tensor, torch.ops.aten.select.int)
_ONE_AT_A_TIME = threading.Lock()                    # torch.fx traces for the whole process

Kind = tuple[bool, bool]                             # a turn of G, too; penalties, too


def why_not(recipe: Recipe, device: torch.device, world: int) -> str | None:
    """Why steps of this recipe can't be traced, or why it doesn't pay; None where they should be."""
    if device.type != "cpu":
        return "a trace spares a CPU's time"
    if recipe.optimizer != "adam" or recipe.beta2_start is not None:
        return "rates other than Adam's first are no tensors"
    if world > 1 and recipe.objective == "reconstruction":
        return "workers gather codes within a step"
    steps = float("inf") if recipe.total_kimg is None else recipe.total_kimg * 1000 / recipe.batch_size
    return "the run is short" if steps < LEAST_STEPS or (recipe.total_seconds or LEAST_S) < LEAST_S else None


class Traced:
    """An `Update` whose steps are traced, a trace for each kind of step. Makes the optimizers' rates tensors.

    A step that also measures gradient norms, or in which labels don't count in full yet, runs as it is written, as does every step where
    tracing fails, which is told.
    """

    def __init__(self, update: Update) -> None:
        self.update, self.device = update, update.device
        self.control = torch.zeros(3)
        self.gamma, self.augment_p = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for optimizer in (update.players.opt_g, update.players.opt_d):
            rates_as_tensors(optimizer, self.device)
        self.calls: dict[Kind, int] = {}
        self.traces: dict[Kind, Trace] = {}
        self.failed = False

    def __call__(self, now: Moment, control: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """As `Update.__call__`."""
        kind = self._kind(now)
        calls = self.calls[kind] = self.calls.get(kind, 0) + 1
        trace = self.traces.get(kind)
        # Workers measure each by its own clock, but trace the same step: where it fails, it fails for all, at the same of their sums.
        if self.failed or calls <= WARM_UP or now.label_strength < 1 or (now.measure and trace is not None):
            return self.update(now, control)
        self.gamma.fill_(now.gamma_scale)
        self.augment_p.fill_(now.augment_p)
        self.control.copy_(control)
        self.update.begin(now)
        return self._trace(kind, now) if trace is None else trace()

    def _kind(self, now: Moment) -> Kind:
        recipe = self.update.recipe
        return (now.index + 1) % recipe.d_steps == 0, now.index % recipe.penalty_every == 0

    def _trace(self, kind: Kind, now: Moment) -> tuple[dict[str, Tensor], Tensor]:
        """One step, written down as it runs; where that fails, the step as it is written, from where it began."""
        moment = Moment(now.index, self.gamma, self.augment_p if self.update.recipe.augment_p > 0 else 0.0)
        state = list(self._state())
        before = [tensor.detach().clone() for tensor in state]
        try:
            with _ONE_AT_A_TIME, self.update.workers.adding_by_kernel():
                trace = Trace(lambda: self.update.turn(moment, self.control), state)
            trace.call_directly(ADDED, self.update.workers.add_up)
        except Exception as e:                       # noqa: BLE001  whatever a future torch refuses, or this one of a future step
            with torch.no_grad():
                for tensor, value in zip(state, before):
                    tensor.copy_(value)
            self.failed = True
            warnings.warn(f"the step can't be traced, it runs as it is written: {e}", stacklevel=2)
            return self.update(now, self.control.clone())
        self.traces[kind] = trace
        readings, averaged = trace.first
        players = self.update.players
        if now.measure:                              # gradients are still there; no trace reads them, nor frees them
            readings = readings | {"grad_norm_d": gradient_norm(players.d)} | ({"grad_norm_g": gradient_norm(players.g)} if kind[0] else {})
        for optimizer in (players.opt_g, players.opt_d):
            optimizer.zero_grad(set_to_none=True)
        return readings, averaged

    def _state(self) -> Iterator[Tensor]:
        """All that a step changes or is told, each tensor once."""
        players, seen = self.update.players, set()
        optimizers = (players.opt_g, players.opt_d)
        kept = [value for optimizer in optimizers for of_one in optimizer.state.values() for value in of_one.values()]
        rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
        networks = [tensor for net in (players.g, players.d) for tensor in (*net.parameters(), *net.buffers())]
        for tensor in (*networks, *kept, *rates, self.control, self.gamma, self.augment_p):
            if isinstance(tensor, Tensor) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


class Trace:
    """The kernels of one step, called in their order.

    Args:
        turn: the step, → readings by name and averaged control; it is run once, and `first` is what it gave.
        state: tensors that stay where they are from step to step.
    """

    def __init__(self, turn: Callable[[], tuple[dict[str, Tensor], Tensor]], state: list[Tensor]) -> None:
        given: list[tuple[dict[str, Tensor], Tensor]] = []

        def figures(*_: Tensor) -> list[Tensor]:
            readings, control = turn()
            given.append((readings, control))
            return [*readings.values(), control]

        self.module: fx.GraphModule = make_fx(figures, tracing_mode="real")(*state)
        (self.first,) = given
        self.names, self.state = list(self.first[0]), state
        _strip(self.module.graph)
        self.module.recompile()

    def call_directly(self, kernel: object, function: Callable[[Tensor], None]) -> None:
        """Puts a Python function in a kernel's place."""
        for node in self.module.graph.nodes:
            if node.target is kernel:
                node.target = function
        self.module.recompile()

    def __call__(self) -> tuple[dict[str, Tensor], Tensor]:
        """One more step."""
        with torch.inference_mode():
            *readings, control = self.module.forward(*self.state)
        return dict(zip(self.names, readings)), control


def _strip(graph: fx.Graph) -> None:
    """Takes away what does nothing without autograd: aliases, profiler marks, views and constants that nothing uses."""
    for node in reversed(graph.nodes):
        if node.target in ALIASES:
            node.replace_all_uses_with(node.args[0])
        idle = node.op == "get_attr" or node.target in (*ALIASES, *VIEWS) or "record_function" in str(node.target)
        if idle and not node.users:
            graph.erase_node(node)
