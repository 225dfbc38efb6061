"""Training on Ray: whoever is killed or stopped, the result is the same; what can't work is said at once."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import gan.loop
from gan.checkpoint import load_generator
from gan.validation import GROUPS
from pipeline import keys, training
from pipeline.cluster import connected, local_cpus, threads_per_worker
from pipeline.config import Config, parse_config
from pipeline.errors import ConfigError, Interrupted, RunMismatch, TrainingFailed
from pipeline.prepare import load_split, prepare
from pipeline.progress import NullProgress
from pipeline.records import Checkpoint, Snapshot
from pipeline.seeds import derive
from pipeline.store import Store
from pipeline.training import checkpoints
from pipeline.training.board import Board
from tests.pipeline.small import Notes


def config_of(**train: Any) -> Config:
    return parse_config({
        "name": "t", "source": {"format": "digits", "subset": {"per_class": 20}}, "prepare": {"resolution": 8},
        "train": {"model": "dcgan", "budget": {"kimg": 2}, "batch_size": 32, "options": {"width": 8, "metrics_every_s": 0.1}, **train},
        "sample": {"workers": 1},
    })


def prepared(url: str, config: Config) -> tuple[Store, Snapshot]:
    run = Store(url)
    return run, prepare(config, run, NullProgress())


def bare_weights(config: Config, snapshot: Snapshot, run: Store) -> dict[str, torch.Tensor]:
    """EMA weights of the same training without Ray, with as many threads as Ray's worker gets."""
    data = load_split(run, "train")
    spec, recipe, _ = training.choose_preset(config, snapshot.resolution, training.train_counts(snapshot), "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(threads_per_worker(1))
    try:
        state = gan.loop.train(torch.from_numpy(data.images), torch.from_numpy(data.labels), spec, recipe,
                               seed=derive(config.seed, "train"))
    finally:
        torch.set_num_threads(threads)
    return dict(state.ema.state_dict())


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    with connected(config_of()):
        yield


def test_threads_are_a_workers_cpus_or_as_few_as_asked(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(value: str) -> int:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        return threads_per_worker(1)

    assert [asked(v) for v in ("1", "1,2", "999", "", "0", "many")] == [1, 1, *[local_cpus()] * 4]


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux alone has it")
def test_rays_own_processes_give_way(ray_cluster: None) -> None:
    import ray

    @ray.remote(num_cpus=0)
    def policy() -> int:
        return os.sched_getscheduler(0)

    assert ray.get(policy.remote()) == os.SCHED_BATCH and os.sched_getscheduler(0) == os.SCHED_OTHER


def test_processes_that_only_tell_of_a_training_start_without_torch() -> None:
    """The board's and Ray Train's own, which unpickle what lies in the package: two seconds for each."""
    code = "import sys, pipeline.training.board, pipeline.training.worker; print([m for m in ('torch', 'ray') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("at_home", [True, False])
def test_elsewhere_ray_asks_for_machines_and_cleans_up_as_ever(at_home: bool, monkeypatch: pytest.MonkeyPatch, ray_cluster: None) -> None:
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.execution.scaling_policy.factory import create_scaling_policy

    from pipeline.training.trainer import Trainer

    given: dict[str, Any] = {}
    monkeypatch.setattr(TorchTrainer, "_initialize_and_run_controller", lambda self, **named: given.update(named))
    trainer, policy = Trainer(at_home, lambda: None), create_scaling_policy(ScalingConfig(num_workers=3))
    names = {type(callback).__name__ for callback in trainer._create_default_callbacks()}
    assert "BackendSetupCallback" in names and "DatasetsCallback" not in names
    assert ("PlacementGroupCleanerCallback" in names) is not at_home
    trainer._initialize_and_run_controller(scaling_policy=policy, failure_policy="as given")
    assert given["failure_policy"] == "as given" and (given["scaling_policy"] is policy) is not at_home
    if at_home:
        assert given["scaling_policy"].make_decision_for_non_running_worker_group().num_workers == 3


def assert_as_without_ray(made: Checkpoint, config: Config, snapshot: Snapshot, run: Store) -> None:
    """The same weights to the bit, metrics and grids beside them, and kept: another call trains nothing."""
    data = run.get(made.key)
    assert hashlib.sha256(data).hexdigest() == made.sha256
    trained = load_generator(data).net.state_dict()
    for name, weight in bare_weights(config, snapshot, run).items():
        assert torch.equal(weight, trained[name]), name
    assert made.trained_kimg == pytest.approx(config.train.budget.kimg, rel=0.02) and made.images_per_s > 0
    metrics = training.load_metrics(run)
    assert {"loss_d", "loss_g", "grad_norm_d", "grad_norm_g", "images_per_s", "kimg"} <= {name for m in metrics for name in m}
    assert any("diversity_per_class" in m for m in metrics)
    kimgs = [m["kimg"] for m in metrics if "loss_d" in m]
    assert kimgs == sorted(kimgs)                    # what a lost interval said is forgotten
    assert run.list("grids/") and len([i for i in run.list("checkpoints/") if i.key.endswith(".json")]) <= 2
    assert training.train(config, snapshot, run, NullProgress()) == made
    with pytest.raises(RunMismatch, match="other config"):
        training.train(config_of(budget={"kimg": 5}), snapshot, run, NullProgress())


@pytest.mark.slow
def test_ray_changes_nothing(tmp_path: Path, ray_cluster: None) -> None:
    config = config_of()
    run, snapshot = prepared(str(tmp_path), config)
    assert_as_without_ray(training.train(config, snapshot, run, NullProgress()), config, snapshot, run)


@dataclass
class Seen:
    """At the moment of the kill."""

    policies: set[int] = field(default_factory=set)          # scheduling policies of the worker's threads
    processes: set[str] = field(default_factory=set)         # Ray's, by title


@contextmanager
def a_worker_killed(checkpoints: Path) -> Iterator[Seen]:
    """SIGKILL to this process's training worker once it has left a checkpoint."""
    seen = Seen()
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.02):
            if list(checkpoints.glob("*.json")):
                children = psutil.Process().children(recursive=True)
                titles = (" ".join(process.cmdline()).strip().split(".")[0] for process in children)
                seen.processes.update(title for title in titles if title.startswith("ray::"))
                for process in children:
                    if "RayTrainWorker" in " ".join(process.cmdline()):
                        seen.policies.update(os.sched_getscheduler(thread.id) for thread in process.threads())
                        os.kill(process.pid, signal.SIGKILL)
                        return

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield seen
    finally:
        over.set()
        killer.join()


def test_a_killed_worker_costs_an_interval_and_not_a_bit(tmp_path: Path, ray_cluster: None) -> None:
    config = config_of(budget={"kimg": 6}, options={"width": 8, "checkpoint_every_kimg": 0.5, "metrics_every_s": 0.1})
    run, snapshot = prepared(str(tmp_path), config)
    notes = Notes()
    with a_worker_killed(tmp_path / "checkpoints") as seen:
        made = training.train(config, snapshot, run, notes)
    resumed = [note for note in notes.notes if "continuing from the checkpoint" in note]
    assert resumed, notes.notes
    assert_as_without_ray(made, config, snapshot, run)
    if hasattr(os, "SCHED_BATCH"):
        assert seen.policies == {os.SCHED_BATCH, os.SCHED_OTHER}, "all but the training give way"
    needed = {"ray::Board", "ray::TrainController", "ray::RayTrainWorker", "ray::SynchronizationActor"}
    assert {title for title in seen.processes if not title.endswith(("Agent", "IDLE"))} == needed, "others take seconds from the workers"


@pytest.mark.slow
def test_one_of_two_workers_killed_costs_an_interval_and_not_a_bit(tmp_path: Path, ray_cluster: None) -> None:
    config = config_of(workers=2, budget={"kimg": 6}, options={"width": 8, "checkpoint_every_kimg": 0.5})
    made = {}
    for name, killing in (("whole", False), ("killed", True)):
        run, snapshot = prepared(str(tmp_path / name), config)
        notes = Notes()
        with a_worker_killed(tmp_path / name / "checkpoints") if killing else nullcontext():
            made[name] = load_generator(run.get(training.train(config, snapshot, run, notes).key)).net.state_dict()
        if killing:
            assert [note for note in notes.notes if "continuing from the checkpoint" in note], notes.notes
    assert all(torch.equal(weight, made["killed"][name]) for name, weight in made["whole"].items())


def test_a_stop_keeps_a_checkpoint_and_the_next_call_goes_on(tmp_path: Path, ray_cluster: None) -> None:
    config = config_of(budget={"kimg": 8})
    run, snapshot = prepared(str(tmp_path), config)

    class Impatient(NullProgress):
        def update(self, done: float, total: float | None = None, **figures: float | str) -> None:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, Interrupted)):
        training.train(config, snapshot, run, Impatient())
    [*_, last] = sorted(i.key for i in run.list("checkpoints/") if i.key.endswith(".json"))
    assert 0 < run.get_json(last)["kimg"] < 8 and not run.exists(keys.TRAINED)
    assert_as_without_ray(training.train(config, snapshot, run, NullProgress()), config, snapshot, run)


@pytest.mark.slow
def test_memory_stores_reach_the_workers_and_get_everything_back(ray_cluster: None) -> None:
    config = config_of(budget={"kimg": 1})
    run, snapshot = prepared(f"memory://train-{os.getpid()}", config)
    made = training.train(config, snapshot, run, NullProgress())
    assert load_generator(run.get(made.key)).spec.classes == 10
    assert run.list("grids/") and training.load_metrics(run)


@pytest.mark.slow
def test_divergence_is_told_and_not_tried_again(tmp_path: Path, ray_cluster: None) -> None:
    config = config_of(budget={"kimg": 50}, options={"width": 8, "lr_g": 1e30, "lr_d": 1e30})
    run, snapshot = prepared(str(tmp_path), config)
    with pytest.raises(TrainingFailed, match=r"training of dcgan stopped: .*(nan|finite|collapse)"):
        training.train(config, snapshot, run, NullProgress())
    assert not run.exists(keys.TRAINED)


def kept_in(run: Store, scores: dict[float, float | None], scatter: dict[float, float] | None = None) -> None:
    """Checkpoints as a worker leaves them, each followed by what `prune` takes away; `scatter` of a score without a third of the images."""
    for kimg, score in scores.items():
        key = keys.checkpoint(kimg)
        run.put(key, b"weights")
        told: dict[str, Any] = {} if score is None else {"validation": score}
        if score is not None and scatter is not None:
            told["validation_without"] = [score + 1 - scatter[kimg], score + 1, score + 1 + scatter[kimg]]
        run.put_json(key.removesuffix(".safetensors") + ".json", {"kimg": kimg, "key": key, "restarts": [], **told})
        checkpoints.prune(run)


def test_the_best_checkpoint_is_kept_beside_the_newest_and_chosen(tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    kept_in(run, {10: None, 20: 0.5, 30: None, 40: 0.2, 50: None, 60: 0.3, 70: None, 80: 0.25})
    names = [info.key for info in run.list("checkpoints/")]
    assert sorted(names) == sorted(name for kimg in (40, 70, 80) for name in (
        keys.checkpoint(kimg), keys.checkpoint(kimg).replace(".safetensors", ".json")))
    best, latest = checkpoints.best_and_lowest(run)[0], checkpoints.latest_meta(run)
    assert best is not None and latest is not None and (best["kimg"], latest["kimg"]) == (40, 80)
    assert checkpoints.choice(best, latest, best) == (
        "not the last checkpoint is kept: lowest distance to the val images (0.2000) after 40.0 thousand images, 0.2500 at the end")
    kept_in(run, {90: 0.2})                          # of equals the newest
    best = checkpoints.best_and_lowest(run)[0]
    assert best is not None and best["kimg"] == 90 and not run.exists(keys.checkpoint(40))


@pytest.mark.parametrize(("scatter", "kept", "why"), [
    ({40: 0.0, 60: 0.0, 80: 0.0}, 40, "not the last checkpoint is kept: lowest distance to the val images (0.2000) after 40.0 thousand "
                                      "images, 0.2500 at the end"),
    # Of the difference: 2/√3 · 0.04 after 60 thousand images and after 80, where 0.03 and 0.05 are between.
    ({40: 0.01, 60: 0.05, 80: 0.05}, 60, "not the last checkpoint is kept: the distance of 60.0 thousand images to the val images (0.2300) "
                                         "is within a standard error of the lowest, 0.2000 after 40.0 thousand images"),
    ({40: 0.01, 60: 0.0, 80: 0.06}, 80, "the last checkpoint is kept: the distance to the val images (0.2500) is within a standard error "
                                        "of the lowest, 0.2000 after 40.0 thousand images"),
    ({40: 0.1, 60: 0.1, 80: 0.1}, 40, "not the last"),        # they scatter alike, and so their difference doesn't
])
def test_what_validation_does_not_tell_apart_is_told_by_what_has_seen_more(
    scatter: dict[float, float], kept: float, why: str, tmp_path: Path
) -> None:
    run = Store(str(tmp_path))
    kept_in(run, {20: None, 40: 0.2, 50: None, 60: 0.23, 70: None, 80: 0.25}, scatter=scatter)
    (best, lowest), latest = checkpoints.best_and_lowest(run), checkpoints.latest_meta(run)
    assert best is not None and latest is not None and lowest is not None
    assert (best["kimg"], latest["kimg"], lowest["kimg"]) == (kept, 80, 40)
    assert checkpoints.choice(best, latest, lowest).startswith(why)
    kept_in(run, {90: None, 100: 0.4}, scatter={100: 0.0})    # much worse: the lowest and what counts as equal are still there
    again = checkpoints.best_and_lowest(run)[0]
    assert again is not None and again["kimg"] == kept and run.exists(keys.checkpoint(40)) and run.exists(keys.checkpoint(kept))


def test_without_scores_the_newest_is_taken(tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    assert checkpoints.best_and_lowest(run)[0] is None
    kept_in(run, {1: None, 2: None, 3: None})
    best = checkpoints.best_and_lowest(run)[0]
    assert best is not None and best["kimg"] == 3 and checkpoints.choice(best, best, None) == ""
    assert len(run.list("checkpoints/")) == 4


@pytest.mark.slow
def test_a_run_publishes_its_best_checkpoint_and_tells_why(tmp_path: Path, ray_cluster: None) -> None:
    config = config_of(budget={"kimg": 60}, options={"width": 8, "lr_schedule": "constant", "lr_g": 1e-2, "lr_d": 1e-2})
    run, snapshot = prepared(str(tmp_path), config)
    notes = Notes()
    made = training.train(config, snapshot, run, notes)
    scores = {m["kimg"]: m["validation"] for m in training.load_metrics(run) if "validation" in m}
    lowest = checkpoints.best_and_lowest(run)[1]
    assert lowest is not None and len(scores) == 3 and lowest["validation"] == min(scores.values())
    assert made.validation == scores[made.trained_kimg] and made.trained_kimg >= lowest["kimg"]
    assert len(lowest["validation_without"]) == GROUPS
    assert made.choice in notes.notes and "val images" in made.choice
    assert load_generator(run.get(made.key)).meta["kimg"] == made.trained_kimg


@pytest.mark.parametrize(("train", "words"), [
    ({"options": {"learning_rate": 1}}, r"train\.options\.learning_rate: .* known: conditioning, .*fields of `gan.recipe.Recipe`"),
    ({"options": {"snapshot": 4}}, r"train\.options\.snapshot: family dcgan has no option snapshot; did you mean snapshots or "),
    ({"options": {"feature": 4}}, r"train\.options\.feature: .*did you mean features"),
    ({"options": {"lr_g": "fast"}}, r"^train\.options\.lr_g 'fast': must be a number"),
    ({"options": {"d_norm": "none", "conditioning": "x"}}, r"^train\.options\.conditioning 'x': must be concat"),
    ({"options": {"batch_size": 33}, "workers": 2, "batch_size": None}, "multiple of 2"),
])
def test_an_impossible_recipe_is_refused_by_name(train: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        training.check_model(config_of(**train), [20] * 10)


def test_the_board_keeps_what_was_said_and_that_a_worker_gave_up() -> None:
    board = Board()
    board.push("metrics", {"kimg": 1})
    assert board.drain() == [("metrics", {"kimg": 1})] and board.drain() == []
    assert not board.stopping() and not board.given_up()
    board.stop()
    board.push("failed", "why")
    assert board.stopping() and board.given_up()
