"""A run gone wrong begins again from what was good, says why, and gives up in the end."""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gan import loop
from gan.checkpoint import TrainState, read_tensors
from gan.errors import TrainingDiverged
from gan.loop import Hooks, train
from gan.networks import NetSpec, build
from gan.networks.projected import Projected
from gan.recipe import Recipe
from gan.recovery import Keeper, draws_seed, rewind, too_late
from gan.watch import Alarm, DiversityWatch

SPEC = NetSpec("dcgan", 8, 1, 2, z_dim=8, width=8)
RECIPE = Recipe(total_kimg=9.6, batch_size=48, lr_g=3e-3, lr_d=3e-3, joint_pass=False, checkpoints=8)
Data = tuple[Tensor, Tensor]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[TrainState], bool]], list[TrainState]]]:
    """Holds G at one image a class whenever the given condition holds: its weights for z stay 0."""
    monkeypatch.setattr(Alarm, "EARLY_KIMG", 1.0)
    monkeypatch.setattr(loop, "LOOK_SHARE", 1e9)     # looks by progress alone, whatever they cost
    states: list[TrainState] = []
    original, advance = loop.new_state, loop._Run._advance

    def plant(when: Callable[[TrainState], bool], average_too: bool = True) -> list[TrainState]:
        def remember(*args: object) -> TrainState:
            states.append(original(*args))           # type: ignore[arg-type]
            return states[-1]

        def collapse(self: object) -> None:
            advance(self)                            # type: ignore[arg-type]
            if when(states[-1]):
                with torch.no_grad():
                    for g in (states[-1].g, states[-1].ema)[: 1 + average_too]:
                        g.first.weight.zero_()       # type: ignore[union-attr, operator]

        monkeypatch.setattr(loop, "new_state", remember)
        monkeypatch.setattr(loop._Run, "_advance", collapse)
        return states

    yield plant


def test_a_planted_collapse_is_undone_from_the_last_good_checkpoint(planted: Callable, squares: Data) -> None:
    planted(lambda state: state.kimg > 5.5 and not state.restarts)
    told: list[tuple[str, float]] = []
    kept: list[tuple[float, list[str], float]] = []
    rates: list[tuple[float, float]] = []
    state = train(*squares, SPEC, RECIPE.replace({"lr_schedule": "constant", "metrics_every_s": 0.0}), seed=0, hooks=Hooks(
        on_restart=lambda reason, kimg: told.append((reason, kimg)),
        on_checkpoint=lambda _, meta: kept.append((meta["kimg"], meta["restarts"], meta["progress"])),
        on_metrics=lambda m: rates.append((m["kimg"], m["lr_g"])) if "lr_g" in m else None))
    [(reason, back)] = told
    assert reason.startswith("collapsed generator") and back == pytest.approx(4.8)       # what was taken at 6.0 had collapsed
    assert state.finished and state.kimg == pytest.approx(9.6) and len(state.restarts) == 1 and reason in state.restarts[0]
    ratios = DiversityWatch(*squares, 2, 0).measure(state.ema)
    assert min(ratios.values()) > 0.15, ratios       # planted: 0
    assert [round(kimg, 1) for kimg, *_ in kept] == [1.2, 2.4, 3.6, 4.8, 6.0, 4.8, 6.0, 7.2, 8.4, 9.6]
    assert [len(restarts) for _, restarts, _ in kept] == [0] * 5 + [1] * 5
    assert rates[0][1] == 3e-3 and rates[-1][1] == 1.5e-3


@pytest.mark.slow
def test_two_workers_go_back_together(squares: Data, tmp_path: Path) -> None:
    script, root = Path(__file__).with_name("collapsing_workers.py"), Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    workers = [subprocess.Popen([sys.executable, str(script), str(rank), "2", str(tmp_path)], env=env) for rank in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    [(reason, back)] = first["told"]
    assert reason.startswith("collapsed generator") and back == pytest.approx(4.8) and second["told"] == []   # rank 0 tells
    assert first["restarts"] == second["restarts"] == 1 and first["kimg"] == second["kimg"] == pytest.approx(9.6)
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name
    assert float(first["weights"]["first.weight"].abs().max()) > 0               # held at 0 before


def test_a_collapse_is_noticed_before_a_long_average_shows_it(planted: Callable, squares: Data) -> None:
    planted(lambda state: state.kimg > 5.5 and not state.restarts, average_too=False)
    looks: list[float] = []
    told: list[tuple[str, float]] = []
    train(*squares, SPEC, RECIPE.replace({"ema_half_life_kimg": 100.0, "ema_ramp": 1.0}), seed=0, hooks=Hooks(
        on_restart=lambda reason, kimg: told.append((reason, kimg)),
        on_metrics=lambda m: looks.append(m["diversity"]) if "diversity" in m and not told else None))
    assert min(looks[-3:]) > 0.1                     # the average's, which was reported
    [(reason, back)] = told
    assert reason.startswith("collapsed generator") and back == pytest.approx(4.8)


def test_a_collapse_that_comes_again_stops_the_run_with_the_reason(planted: Callable, squares: Data) -> None:
    planted(lambda state: state.kimg > 3.0)
    told: list[float] = []
    with pytest.raises(TrainingDiverged, match=r"collapsed generator.*restarted 2 times") as caught:
        train(*squares, SPEC, RECIPE, seed=0, hooks=Hooks(on_restart=lambda _, kimg: told.append(kimg)))
    assert told == [2.4, 2.4]
    good = caught.value.last_good
    assert good is not None and read_tensors(good)[1]["kimg"] == 2.4
    with pytest.raises(TrainingDiverged, match="collapsed generator"):
        train(*squares, SPEC, RECIPE.replace({"restarts": 0}), seed=0, hooks=Hooks(on_restart=lambda *a: pytest.fail("restarted")))


def test_a_collapse_from_the_start_begins_with_other_networks(planted: Callable, squares: Data) -> None:
    states = planted(lambda state: not state.restarts)
    told: list[float] = []
    recipe = RECIPE.replace({"total_kimg": 4.8})
    state = train(*squares, SPEC, recipe, seed=0, hooks=Hooks(on_restart=lambda _, kimg: told.append(kimg)))
    assert told == [0.0] and state.finished and state is states[-1]
    assert DiversityWatch(*squares, 2, 0).measure(state.ema)[0] > 0.05


@pytest.mark.slow
def test_other_networks_learn_the_classes_anew(planted: Callable, squares: Data) -> None:
    planted(lambda state: not state.restarts)
    spec = replace(SPEC, options=(("features", 8),))
    recipe = RECIPE.replace({"total_kimg": 4.8})
    state = train(*squares, spec, recipe, seed=0)
    taught = build(spec, 0)[1]
    assert isinstance(taught, Projected) and isinstance(state.d, Projected) and len(state.restarts) == 1
    taught.teach(*squares, steps=recipe.feature_steps_here(), seed=0)
    for name, weight in taught.body.named_parameters():
        assert torch.equal(weight, state.d.body.get_parameter(name)), name


@pytest.mark.parametrize("step", [50, 100])          # in the middle, and the very last
def test_a_weight_that_is_no_number_is_left_behind(step: int, squares: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    def poison(self: loop._Run) -> None:
        advance(self)
        if self.state.step == step and not self.state.restarts:
            with torch.no_grad():
                next(iter(self.state.d.parameters())).fill_(math.nan)

    advance = loop._Run._advance
    monkeypatch.setattr(loop._Run, "_advance", poison)
    state = train(*squares, SPEC, RECIPE.replace({"total_kimg": 4.8, "metrics_every_s": 0.0}), seed=0)
    assert state.finished and len(state.restarts) == 1 and ("nan" in state.restarts[0] or "finite" in state.restarts[0])
    assert all(torch.isfinite(p).all() for p in state.d.parameters())


def test_a_restarted_run_resumes_bit_for_bit(planted: Callable, squares: Data) -> None:
    planted(lambda state: state.kimg > 5.5 and not state.restarts)
    kept: list[bytes] = []
    hooks = Hooks(on_checkpoint=lambda data, _: kept.append(data))
    whole = train(*squares, SPEC, RECIPE, seed=0, hooks=hooks)
    again = train(*squares, SPEC, RECIPE, seed=0, resume=kept[-3])
    assert read_tensors(kept[-3])[1]["restarts"] and again.restarts == whole.restarts and again.step == whole.step
    for name, tensor in whole.g.state_dict().items():
        assert torch.equal(again.g.state_dict()[name], tensor), name


def test_rewinding_changes_the_draws_and_forgets_nothing(squares: Data) -> None:
    kept: list[bytes] = []
    state = train(*squares, SPEC, RECIPE.replace({"total_kimg": 0.96}), seed=7,
                  hooks=Hooks(on_checkpoint=lambda data, _: kept.append(data)))
    rewind(state, kept[2], "one")
    assert state.restarts == ("one",) and state.kimg == pytest.approx(0.36, abs=0.04) and not state.finished
    rewind(state, kept[2], "two")
    assert state.restarts == ("one", "two")
    seeds = []
    for reasons in ((), ("one",), ("one", "two")):
        state.restarts = reasons
        seeds.append(draws_seed(state))
    assert seeds[0] == 7 and len(set(seeds)) == 3
    before = state.g.state_dict()["first.weight"].clone()
    rewind(state, None, "three")
    assert state.step == 0 and not state.opt_g.state and not torch.equal(state.g.state_dict()["first.weight"], before)


def test_the_keeper_trusts_what_a_healthy_look_came_after() -> None:
    keeper = Keeper()
    assert keeper.best_known is None
    keeper.newest = b"1"
    assert keeper.good is None and keeper.best_known == b"1"
    keeper.healthy()
    keeper.newest = b"2"
    assert keeper.good == keeper.best_known == b"1"


def test_no_time_is_too_little_for_a_restart_only_where_time_counts() -> None:
    assert too_late(0.95, True) and not too_late(0.5, True) and not too_late(0.99, False)
