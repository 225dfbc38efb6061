"""The training loop: budget, schedules, workers, metrics, checkpoints, and the watch that catches a run gone wrong.

One process drives one device. With several workers each calls `train` with its rank after `torch.distributed` was
initialised; gradients and the shared clock travel in one collective operation for each player.
"""

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gan import checkpoint, ema, recorded, recovery, traced, validation
from gan.checkpoint import TrainState
from gan.errors import BadData, BadRecipe, TrainingDiverged
from gan.graphs import set_rate
from gan.networks import NetSpec, build
from gan.networks.norm import share_statistics
from gan.networks.projected import Projected
from gan.recipe import Recipe
from gan.sampler import Sampler, check_data, data_digest
from gan.sampling import generate
from gan.step import Moment, Players, Update
from gan.watch import COLLAPSED, Alarm, DiversityWatch
from gan.workers import Workers

__all__ = ["Hooks", "Recipe", "train"]

LOOKS = 40                   # times that diversity is measured in a run, more often in long ones
LOOK_EVERY_S = 60.0
LOOK_SHARE = 0.01            # of the run's time at most
GRID_COLUMNS = 12
GRID_CLASSES = 20


@dataclass(frozen=True)
class Hooks:
    """What the loop tells its caller; plain callables, all optional.

    `on_metrics`, `on_checkpoint` and `on_grid` are called on rank 0 alone. `on_milestone` is called on every rank, at
    the same step, right after each checkpoint was due: a place for collective operations. `should_stop` is asked on
    every rank before each step and must be cheap; one rank's yes stops all after a last checkpoint. `on_restart` gets
    the reason and the kimg that the run goes back to; the checkpoint there is handed out anew right after.
    """

    on_metrics: Callable[[dict[str, Any]], None] | None = None
    on_checkpoint: Callable[[bytes, dict[str, Any]], None] | None = None
    on_grid: Callable[[float, Tensor], None] | None = None
    on_milestone: Callable[[float], None] | None = None
    on_restart: Callable[[str, float], None] | None = None
    should_stop: Callable[[], bool] | None = None


def train(images: Tensor, labels: Tensor, spec: NetSpec, recipe: Recipe, *, seed: int, hooks: Hooks | None = None,
          resume: bytes | None = None, held_out: tuple[Tensor, Tensor] | None = None,
          rank: int = 0, world: int = 1, device: str | torch.device = "cpu", record: bool = True) -> TrainState:
    """Trains G and D until the budget is spent or `hooks.should_stop` says so.

    On a CPU with one thread count, a kimg budget, the same data, spec, recipe and seed give the same bits, resumed or
    not; N workers see the same images as one.

    Args:
        images: uint8 (N, C, H, W), all of them, on every worker.
        labels: int64 (N,) in 0 … spec.classes - 1; classes without images are never drawn.
        resume: bytes of a checkpoint of this very run.
        held_out: images and labels like the training's, by which checkpoints get a `validation` score in their JSON, lower
            being better (see `gan.validation`); they change nothing else.
        record: replay steps as CUDA graphs, or as traces on CPUs, where that can be and pays (see `gan.recorded`, `gan.traced`).

    Returns:
        The state at the end; `finished` tells whether the budget was spent.

    Raises:
        BadData, BadRecipe, UnknownFamily, UnsupportedSpec: before any work.
        BadCheckpoint, CheckpointMismatch: `resume` can't be continued.
        TrainingDiverged: losses not finite, generator collapsed, or a player dead, more than `recipe.restarts` times;
            carries the last good checkpoint.
    """
    _check_inputs(images, labels, spec, recipe, world)
    device = torch.device(device)
    state = new_state(images, labels, spec, recipe, seed, device)
    workers = Workers(world, rank, device)
    if resume is not None:
        checkpoint.restore(state, resume)
    else:
        began = time.perf_counter()
        _teach(state, images.to(device), labels.to(device), workers)
        state.elapsed_s = time.perf_counter() - began          # part of a budget in seconds
    for network in (state.g, state.d):
        network.train()
        share_statistics(network, workers if world > 1 else None)
    watch = DiversityWatch(images, labels, spec.classes, seed) if rank == 0 else None
    run = _Run(state, images.to(device), labels.to(device), hooks or Hooks(), watch, workers, rank, record)
    run.keeper.newest = resume
    if held_out is not None and rank == 0 and len(held_out[0]):
        run.score_by(*held_out)
    with denormals_flushed():
        run.drive()
    for network in (state.g, state.d):
        share_statistics(network, None)
    return state


@contextlib.contextmanager
def denormals_flushed() -> Iterator[None]:
    """Numbers too small for full precision count as 0 meanwhile, in this thread and those that torch starts from it.

    Adam's moments of idle weights decay into such numbers, which CPUs handle a hundred times slower.
    """
    tiny = torch.full((1,), 1e-310, dtype=torch.float64)
    were_flushed = not bool((tiny * 0.5).any())
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(were_flushed)


def new_state(images: Tensor, labels: Tensor, spec: NetSpec, recipe: Recipe, seed: int,
              device: torch.device) -> TrainState:
    """Freshly initialised networks and optimizers on `device`."""
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    g, d = (network.to(device).to(memory_format=layout) for network in build(spec, seed))  # type: ignore[call-overload]
    average = copy.deepcopy(g).requires_grad_(False).eval() if recipe.ema_half_life_kimg > 0 else g
    counts = torch.bincount(labels, minlength=spec.classes)
    return TrainState(spec, recipe, seed, data_digest(images, labels), g, d, average,
                      _optimizer(g, recipe.lr_g, recipe, device), _optimizer(d, recipe.lr_d, recipe, device),
                      rows_per_class=tuple(counts.tolist()))


def _teach(state: TrainState, images: Tensor, labels: Tensor, workers: Workers) -> None:
    """What a discriminator must know before the first step."""
    if isinstance(state.d, Projected):
        state.d.teach(images, labels, state.recipe.feature_steps_here(), state.seed, workers)


def _check_inputs(images: Tensor, labels: Tensor, spec: NetSpec, recipe: Recipe, world: int) -> None:
    check_data(images, labels, spec.classes)
    if images.shape[1:] != (spec.channels, spec.resolution, spec.resolution):
        raise BadData(f"images are {tuple(images.shape[1:])}, the networks are for "
                      f"{(spec.channels, spec.resolution, spec.resolution)}")
    if (recipe.total_kimg is None) == (recipe.total_seconds is None):
        raise BadRecipe("give exactly one of total_kimg, total_seconds")
    if recipe.batch_size % world:
        raise BadRecipe(f"batch_size {recipe.batch_size} can't be shared evenly by {world} workers")
    if world > 1 and not (dist.is_available() and dist.is_initialized() and dist.get_world_size() == world):
        raise BadRecipe(f"{world} workers need torch.distributed to be initialised with that many processes first")


def _optimizer(network: nn.Module, lr: float, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    if recipe.optimizer == "rmsprop":
        return torch.optim.RMSprop(network.parameters(), lr, alpha=recipe.beta2)
    fused = device.type in ("cpu", "cuda")
    return torch.optim.Adam(network.parameters(), lr, (recipe.beta1, recipe.beta2), fused=fused)


class _Milestone:
    """Comes due whenever `value` passes a multiple of `every`."""

    def __init__(self, every: float, value: float) -> None:
        self.every, self._passed = every, math.floor(value / every)

    def due(self, value: float) -> bool:
        passed = math.floor(value / self.every + 1e-9)
        is_due, self._passed = passed > self._passed, max(passed, self._passed)
        return is_due


class _Run:
    """One call of `train`: the state of the loop that a checkpoint need not carry."""

    def __init__(self, state: TrainState, images: Tensor, labels: Tensor, hooks: Hooks, watch: DiversityWatch | None,
                 workers: Workers, rank: int, record: bool = True) -> None:
        self.state, self.recipe, self.hooks, self.watch, self.rank = state, state.recipe, hooks, watch, rank
        self.images, self.labels, self.workers = images, labels, workers
        self.average = ema.Average(state.g, state.ema) if state.ema is not state.g else None
        self.record = record
        self.keeper = recovery.Keeper()
        self.validation: validation.Validation | None = None
        self.score_every = validation.stride(state.recipe)
        self.began = time.perf_counter() - state.elapsed_s
        self._begin()

    def _begin(self) -> None:
        """Everything that starts where the state stands: at the beginning, after a resume, after a restart."""
        state, recipe = self.state, self.recipe
        sampler = Sampler(self.images, self.labels, state.spec.classes, recipe.label_prior_tau, recovery.draws_seed(state),
                          recipe.batch_size, self.rank, self.workers.world)
        update = Update(Players(state.g, state.d, state.opt_g, state.opt_d), recipe, sampler, self.workers)
        self.update: Update | recorded.Recorded | traced.Traced = self._replayed(update) if self.record else update
        self.alarm = Alarm(recipe.min_diversity)
        self.trouble: str | None = None
        t = self._progress()
        every_s, every_kimg = self.recipe.checkpoint_every_s, self.recipe.checkpoint_every_kimg
        self.spacing = every_s or every_kimg or 1 / self.recipe.checkpoints
        self.checkpoints = _Milestone(self.spacing, self._spent(t))
        self.grids = _Milestone(1 / self.recipe.grids, t) if self.recipe.grids else None
        self.snapshots = _Milestone((1 - self.recipe.snapshots_from) / self.recipe.snapshots, self._of_snapshots(t))
        self.looks, self.looked, self.look_cost_s = _Milestone(1 / LOOKS, t), state.elapsed_s, 0.0
        self.logged_s, self.logged_step = state.elapsed_s, state.step
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def _replayed(self, update: Update) -> "Update | recorded.Recorded | traced.Traced":
        """The update in the quickest form that gives the same."""
        if recorded.why_not(self.recipe, update.device, self.workers.world) is None:
            return recorded.Recorded(update)
        return traced.Traced(update) if traced.why_not(self.recipe, update.device, self.workers.world) is None else update

    def score_by(self, images: Tensor, labels: Tensor) -> None:
        """Held-out images by which checkpoints are scored, where the run is long enough."""
        if self.score_every is not None:
            self.validation = validation.Validation(images, labels, self.state.spec.classes, self.state.seed)

    def drive(self) -> None:
        """Steps until the end, whatever kind of end that is, beginning again from a good checkpoint where that is allowed."""
        while True:
            self._steps()
            self._settle()
            if self.trouble is None:
                break
            if len(self.state.restarts) >= self.recipe.restarts or recovery.too_late(
                    self._progress(), self.recipe.total_seconds is not None):
                raise TrainingDiverged(self._whole_trouble(), self.state.kimg, self.keeper.best_known)
            self._restart(self.trouble)
        if self.state.step:
            self._grid()
            self._checkpoint(self.state.finished)

    def _restart(self, reason: str) -> None:
        """Back to the last good checkpoint, or to the beginning where there is none."""
        at, elapsed_s = self.state.kimg, self.state.elapsed_s
        collapsed = reason.startswith(COLLAPSED)     # then the newest checkpoint may have collapsed as well
        data = recovery.from_first_worker(self.keeper.good if collapsed else self.keeper.best_known, self.workers.world,
                                          self.update.device)
        recovery.rewind(self.state, data, f"at {at:.1f} kimg: {reason}")
        if data is None:
            _teach(self.state, self.images, self.labels, self.workers)
        self.state.elapsed_s = elapsed_s             # as all workers know it; time that was lost is spent
        self._begin()
        if self.rank == 0 and self.hooks.on_restart is not None:
            self.hooks.on_restart(reason, self.state.kimg)
        self._checkpoint(False)
        if self.keeper.good is not None:             # the same weights, which now tell of the restart
            self.keeper.healthy()

    def _whole_trouble(self) -> str:
        before = "; before that, ".join(reversed(self.state.restarts))
        return f"{self.trouble}" + (f"; it had been restarted {len(self.state.restarts)} times ({before})" if before else "")

    def _steps(self) -> None:
        """Steps until the budget is spent, a stop is asked for or something is wrong."""
        control = torch.zeros(3, device=self.update.device)
        stopped = self.state.finished
        while not stopped:
            t = self._progress()
            if t >= 1:
                self.state.finished = True
                break
            self._schedule(t)
            measure = self._clock() - self.logged_s >= self.recipe.metrics_every_s
            control = self._control(control)
            now = Moment(self.state.step, self.recipe.gamma_scale(t), self.recipe.augment_p_at(t), measure,
                         self.recipe.label_strength_at(t))
            readings, control = self.update(now, control)
            self._advance()
            stopped, troubled = self._agree(control)
            self._note(readings)
            if measure:
                self._log(t)
            if troubled:
                break
            if not stopped and (after := self._progress()) < 1:
                self._milestones(after)

    def _control(self, control: Tensor) -> Tensor:
        """This worker's clock and flags. The workers' mean is what all of them go by, so they never part ways."""
        stop = self.hooks.should_stop is not None and self.hooks.should_stop()
        if self.workers.world == 1:
            self._stop_asked = stop
            return control
        return torch.tensor([self._clock(), float(stop), float(self.trouble is not None)], device=control.device)

    def _agree(self, control: Tensor) -> tuple[bool, bool]:
        """(stop, trouble) as all workers see it; sets the shared clock."""
        if self.workers.world == 1:
            self.state.elapsed_s = self._clock()
            return self._stop_asked, self.trouble is not None
        elapsed, stop, trouble = control.tolist()
        self.state.elapsed_s = elapsed
        if trouble > 0 and self.trouble is None:
            self.trouble = "another worker saw the reason; read rank 0's message"
        return stop > 0, trouble > 0

    def _clock(self) -> float:
        return time.perf_counter() - self.began

    def _progress(self) -> float:
        return self.recipe.progress(self.state.images_seen, self.state.elapsed_s)

    def _spent(self, t: float) -> float:
        """The quantity that checkpoints are spaced by."""
        if self.recipe.checkpoint_every_s is not None:
            return self.state.elapsed_s
        return self.state.kimg if self.recipe.checkpoint_every_kimg is not None else t

    def _schedule(self, t: float) -> None:
        scale = self.recipe.lr_scale(t) * recovery.RATE ** len(self.state.restarts)
        for optimizer, lr in ((self.state.opt_g, self.recipe.lr_g), (self.state.opt_d, self.recipe.lr_d)):
            for group in optimizer.param_groups:
                set_rate(group, lr * scale)
                if "betas" in group:
                    group["betas"] = (self.recipe.beta1, self.recipe.beta2_at(t))

    def _advance(self) -> None:
        recipe, state = self.recipe, self.state
        state.step += 1
        if self.average is not None and state.step % recipe.ema_every == 0:
            batch = recipe.batch_size * recipe.ema_every
            self.average.update(ema.decay(batch, recipe.ema_half_life_kimg * 1000, state.images_seen, recipe.ema_ramp))

    def _note(self, readings: dict[str, Tensor]) -> None:
        """Sums readings on the device; nothing waits for their values here."""
        for name, value in readings.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def _log(self, t: float) -> None:
        """About once a second: the only place that waits for figures."""
        names = list(self.sums)
        values = torch.stack([self.sums[name].float() for name in names]).tolist() if names else []
        means = {name: value / self.counts[name] for name, value in zip(names, values)}
        now, state = self._clock(), self.state
        images = (state.step - self.logged_step) * self.recipe.batch_size
        metrics: dict[str, Any] = {
            "kimg": state.kimg, "progress": self._progress(), "seconds": now, **means,
            "images_per_s": images / max(now - self.logged_s, 1e-9), "lr_g": float(state.opt_g.param_groups[0]["lr"]),
            "lr_d": float(state.opt_d.param_groups[0]["lr"]), "augment_p": self.recipe.augment_p_at(t),
        }
        self.sums, self.counts, self.logged_s, self.logged_step = {}, {}, now, state.step
        self.trouble = self.trouble or self.alarm.hear_metrics(means)
        if self.rank == 0 and self.hooks.on_metrics is not None:
            self.hooks.on_metrics(metrics)

    def _milestones(self, t: float) -> None:
        waited = self._clock() - self.looked
        if (self.looks.due(t) or waited > LOOK_EVERY_S) and waited > self.look_cost_s / LOOK_SHARE:
            self._look(t)
        if self.grids is not None and self.grids.due(t):
            self._grid()
        if self.snapshots.due(self._of_snapshots(t)):    # on every rank, and before a checkpoint, which carries it
            self.state.keep_snapshot()
        if self.checkpoints.due(self._spent(t)):
            self._checkpoint(self._is_scored(t))

    def _of_snapshots(self, t: float) -> float:
        """Progress since the first snapshot's interval began."""
        return max(0.0, t - self.recipe.snapshots_from)

    def _is_scored(self, t: float) -> bool:
        """By the checkpoint's number alone, so that an interruption changes no choice."""
        if self.score_every is None:
            return False
        return math.floor(self._spent(t) / self.spacing + 1e-9) % self.score_every == 0

    def _look(self, t: float) -> None:
        began = self._clock()
        if self.watch is None:
            return
        ratios = self.watch.measure(self.state.ema)
        # A long average still varies when the generator behind it has collapsed, and a checkpoint holds both.
        duller = ratios if self.average is None else min(ratios, self.watch.measure(self.state.g), key=lambda r: sum(r.values()))
        self.looked = self._clock()
        self.look_cost_s = self.looked - began
        self.trouble = self.trouble or self.alarm.hear_diversity(duller, t, self.state.kimg)
        if self.trouble is None and self.alarm.is_varied(duller):
            self.keeper.healthy()
        if ratios and self.hooks.on_metrics is not None:
            self.hooks.on_metrics({
                "kimg": self.state.kimg, "progress": t, "seconds": self._clock(),
                "diversity": sum(ratios.values()) / len(ratios), "diversity_lowest": min(ratios.values()),
                "diversity_per_class": {str(label): ratio for label, ratio in ratios.items()},
            })

    def _grid(self) -> None:
        if self.rank == 0 and self.hooks.on_grid is not None:
            self.hooks.on_grid(self.state.kimg, sample_grid(self.state))

    def _checkpoint(self, scored: bool) -> None:
        """Keeps and hands out a checkpoint, unless a weight is no number any more."""
        if not _finite(self.state.g) or not _finite(self.state.d):
            self.trouble = self.trouble or "a weight is not finite"
            return
        if self.rank == 0:
            data, meta = checkpoint.save(self.state)
            if self.trouble is None:
                self.keeper.newest = data
            if scored and self.validation is not None:
                meta["validation"], meta["validation_without"] = self._score()
            if self.hooks.on_checkpoint is not None:
                self.hooks.on_checkpoint(data, meta)
        if self.hooks.on_milestone is not None:
            self.hooks.on_milestone(self.state.kimg)

    def _score(self) -> tuple[float, list[float]]:
        """Distance to the held-out images, told to whoever listens, and to them without a group each."""
        assert self.validation is not None
        score, without = self.validation.score(self.state.sampler)
        if self.hooks.on_metrics is not None:
            self.hooks.on_metrics({"kimg": self.state.kimg, "progress": self._progress(), "seconds": self._clock(),
                                   "validation": score})
        return score, without

    def _settle(self) -> None:
        """A last look and log; all workers then know whether the run went wrong."""
        if self.trouble is None and self.state.step > self.logged_step:
            self._log(self._progress())
            self._look(self._progress())
        if self.trouble is None and not (_finite(self.state.g) and _finite(self.state.d)):
            self.trouble = "a weight is not finite"
        if self.workers.world > 1:
            flag = torch.tensor([float(self.trouble is not None)], device=self.update.device)
            dist.all_reduce(flag)
            if flag.item() > 0:
                self.trouble = self.trouble or "another worker saw the reason; read rank 0's message"


def sample_grid(state: TrainState, columns: int = GRID_COLUMNS) -> Tensor:
    """`columns` samples of each of the first classes that have images, by fixed seeds: uint8 (rows, C, H, W)."""
    labels = [i for i, n in enumerate(state.rows_per_class) if n][:GRID_CLASSES]
    y = torch.tensor(labels, dtype=torch.int64).repeat_interleave(columns)
    return generate(state.ema, y, torch.arange(len(y)).numpy())


def _finite(network: nn.Module) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in network.parameters())
