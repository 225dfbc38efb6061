"""The lift trial as it counts: every seed draws its own split, trains its own generator and its own classifiers.

    python benchmarks/lift_settings.py digits-tail --seeds 6 --kimg 60
    python benchmarks/lift_settings.py mnist-tail --data FOLDER_OF_IDX_FILES --seeds 6 --minutes 5
    python benchmarks/lift_settings.py mnist-10 --data FOLDER_OF_IDX_FILES --seeds 10 --kimg 100

    python benchmarks/lift_settings.py summary

Everything finished is kept in --folder (data, generator and filter of each seed, every trained classifier); the same
command continues there, so it may be stopped at any time: `timeout 9m python … ; timeout 9m python …`. Prints every arm's
mean, its paired difference from the best arm without synthesis (chosen on val), and the verdict; `summary` prints the
verdicts of all settings in the folder, with p adjusted by Holm's method.

On a GPU `--device cuda --processes 8` shares the seeds out over processes; they compute at the same time where CUDA's MPS daemon
runs (`nvidia-cuda-mps-control -d`), and take turns where it doesn't.
"""

import argparse
import contextlib
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from side_processes import Processes

import gan.loop
from gan import checkpoint
from gan.classical import ClassicalAugment
from gan.classifier import Classifier, embed, load_classifier, save_classifier, train_classifier
from gan.metrics.memorisation import memorisation
from gan.recipe import parse_settings
from pipeline import keys
from pipeline.config import Config, LiftConfig, parse_config
from pipeline.errors import MissingObject
from pipeline.evaluation import FORMAT
from pipeline.filtering import NO_FILTER, Filter, discriminator_of
from pipeline.lift import Bench, Replicate, Rows, Schedule, compare, screen
from pipeline.lift.laboratory import RowBook
from pipeline.lift.pool import SyntheticPool
from pipeline.lift.statistics import holm, sign_flip_p
from pipeline.lift.verdict import published, summary
from pipeline.mint import load_gan
from pipeline.prepare import load_split, prepare
from pipeline.progress import NullProgress
from pipeline.records import LiftFigure
from pipeline.seeds import derive
from pipeline.store import Store
from pipeline.training import choose_preset

SETTINGS: dict[str, dict[str, Any]] = {
    "digits-tail": {"source": {"format": "digits", "subset": {"longtail": {"head": 50, "ratio": 10}}},
                    "prepare": {"resolution": 16, "splits": {"val": 0.15, "test": 0.45}}},       # the scans have 8
    "mnist-tail": {"source": {"format": "idx", "subset": {"longtail": {"head": 4700, "ratio": 100}}}},
    "mnist-10": {"source": {"format": "idx", "subset": {"per_class": 12}}},
    "mnist-50": {"source": {"format": "idx", "subset": {"per_class": 59}}},
    "cifar-50": {"source": {"format": "parquet", "subset": {"per_class": 59}}, "prepare": {"channels": "rgb"},
                 "train": {"augment": {"flip": True, "color": True}}},
    "cifar-500": {"source": {"format": "parquet", "subset": {"per_class": 588}}, "prepare": {"channels": "rgb"},
                  "train": {"augment": {"flip": True, "color": True}}},
    "cifar-tail": {"source": {"format": "parquet", "subset": {"longtail": {"head": 5000, "ratio": 100}}},
                   "prepare": {"channels": "rgb"}, "train": {"augment": {"flip": True, "color": True}}},
}
"""With 15 % for val: 4,000 … 40, 10, 50, 50, 500 and 4,250 … 42 training images a class (digits: 50 … 5 with val)."""


SPARE = 500


def setting(name: str, seed: int, data: str | None, budget: dict[str, float], options: dict[str, Any] | None = None) -> Config:
    """The config of one replicate; `options` are changes of the generator's recipe or network by name."""
    raw = json.loads(json.dumps(SETTINGS[name]))
    if data is not None and raw["source"]["format"] != "digits":
        raw["source"]["url"] = data
    raw["train"] = {**raw.get("train", {}), "budget": budget, "options": options or {}}
    return parse_config({"name": name, "seed": seed, **raw})


def splits(config: Config, run: Store) -> dict[str, Rows]:
    """Prepared images, made where they aren't there yet."""
    prepare(config, run, NullProgress())
    found = {}
    for split in ("train", "val", "test"):
        loaded = load_split(run, split)
        found[split] = Rows(torch.from_numpy(loaded.images), torch.from_numpy(loaded.labels))
    return found


def spare(config: Config, rows: dict[str, Rows], run: Store) -> Rows:
    """Up to `SPARE` real rows a class that the subset leaves out, for the headroom control: none that any split holds."""
    raw = config.model_dump(mode="json")
    raw["source"]["subset"] = {"per_class": SPARE + int(rows["train"].counts(10).max())}
    more = splits(parse_config(raw), run)
    taken = {image.numpy().tobytes() for split in rows.values() for image in split.images}
    every = more["train"].joined(more["val"])
    free = [i for i, image in enumerate(every.images) if image.numpy().tobytes() not in taken]
    return every.take(torch.tensor(free))


def replicate(config: Config, number: int, run: Store, steps: int | None, device: str) -> Replicate:
    """Prepares, trains generator and filter where that isn't done, and lays the data out."""
    rows = splits(config, run)
    channels, classes = int(rows["train"].images.shape[1]), tuple(str(c) for c in range(10))
    augment = ClassicalAugment.allowed(flip=config.train.augment.flip, color=config.train.augment.color)
    schedule = Schedule.for_lift(len(rows["train"]), channels, steps)
    bench = Bench(rows["train"], rows["val"], rows["test"], spare(config, rows, run.child("spare")), classes, augment, schedule, device)
    data = generator(config, bench, run)
    generate = load_gan(data, device)
    model = screen(filter_network(bench, run, derive(config.seed, "filter")), bench, discriminator_of(data))
    return Replicate(number, derive(config.seed, "lift"), bench,
                     lambda labels, latents: torch.from_numpy(generate(labels, latents)), model)


def generator(config: Config, bench: Bench, run: Store) -> bytes:
    """The checkpoint of this replicate's generator."""
    try:
        return run.get("generator.safetensors")
    except MissingObject:
        pass
    counts = bench.train.counts(len(bench.classes)).tolist()
    spec, recipe, reason = choose_preset(config, config.prepare.resolution, counts, bench.device)
    began = time.perf_counter()
    state = gan.loop.train(bench.train.images, bench.train.labels, spec, recipe, seed=derive(config.seed, "train"),
                           device=bench.device)
    data, _ = checkpoint.save(state)
    run.put("generator.safetensors", data)
    print(f"  seed {config.seed}: {reason}; {state.kimg:.0f} kimg in {time.perf_counter() - began:.0f} s", flush=True)
    return data


def filter_network(bench: Bench, run: Store, seed: int, key: str = keys.FILTER) -> Classifier:
    """The filter's model, trained on the train split."""
    try:
        return load_classifier(run.get(key))[0]
    except MissingObject:
        pass
    net = train_classifier(
        bench.train.images.to(bench.device), bench.train.labels.to(bench.device), len(bench.classes), steps=bench.schedule.steps,
        seed=seed, balanced=True, batch_size=bench.schedule.batch_size, augment=bench.augment,
    )
    run.put(key, save_classifier(net))
    return net.cpu()


def near_copies(replicate: Replicate, run: Store, wanted: Filter, samples: int = 1000) -> float:
    """Share of generated images that pass the filter, even over the classes, that are nearer to a training image than unseen ones are."""
    net, bench, model = judge_of(replicate, run), replicate.bench, replicate.model
    pool = SyntheticPool(replicate.draw, len(bench.classes), derive(replicate.seed, "copies"), model.keep(wanted) if model else None)
    made = pool.take(np.full(len(bench.classes), samples // len(bench.classes)))
    train, test, generated = (embed(net, images)[0] for images in (bench.train.images, bench.test.images[:2000], made.images))
    return memorisation(train, test, generated).too_near


def judge_of(replicate: Replicate, run: Store) -> Classifier:
    """Another network than the filter's, trained on the train split alike: whose features say what is a copy."""
    return filter_network(replicate.bench, run, derive(replicate.seed, "judge"), "judge.safetensors")


def budget_of(args: argparse.Namespace) -> dict[str, float]:
    """The generators'."""
    return {"minutes": args.minutes} if args.minutes else {"kimg": args.kimg or 100.0}


def made(args: argparse.Namespace, where: str, seed: int) -> Replicate:
    """The replicate of a seed, in whichever process."""
    config = setting(args.setting, args.first_seed + seed, args.data, budget_of(args), parse_settings(args.set))
    return replicate(config, seed, Store(where).child(f"s{seed}"), args.steps, args.device)


class Lines(NullProgress):
    """A line every minute."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def update(self, done: float, total: float | None = None, **facts: Any) -> None:
        """Trials done of all."""
        if time.monotonic() - self._told > 60:
            self._told = time.monotonic()
            print(f"  {done:.0f} of {total or 0:.0f} classifiers", flush=True)


def show(figure: LiftFigure, seconds: float) -> None:
    """The table and the verdict."""
    print(f"\n{'arm':8} {'ratio':>5} {'filter':10} {'mix':16} {'val':>7} {'test':>7}   difference (95 %), p")
    for line in sorted(summary(figure), key=lambda line: (line["arm"], line["filter"], line["ratio"])):
        mix = f"{line['distinct']:g}, {line['weight']:g}, {line['real_only_tail']:g}{', even' * line['even']}"
        difference = "baseline"
        if "difference" in line:                     # one seed has no interval
            interval = f" ({line['low']:+.2f} … {line['high']:+.2f}), {line['p']:.3f}" if len(figure.seeds) > 1 else ""
            difference = f"{line['difference']:+.2f}{interval}"
        print(f"{line['arm']:8} {line['ratio']:5g} {line['filter']:10} {mix:16} {line['val']:7.2f} {line['test']:7.2f}   {difference}")
    if figure.cross_validated:
        print("cross-validated:", ", ".join(f"{name} {value:.2f}" for name, value in figure.cross_validated.items()))
    print(f"\n{figure.sentence}")
    if figure.seeds:
        errors = [100 - sum(values) / len(values) for values in (figure.baseline, figure.synthetic)]
        share = 100 * (1 - errors[1] / errors[0])
        print(f"errors {errors[0]:.2f} % → {errors[1]:.2f} %: {abs(share):.0f} % {'more' if share < 0 else 'fewer'}. "
              f"{len(figure.seeds)} seeds of split, generator and classifier; {seconds:.0f} s in this call.")


def show_all(folder: Path) -> None:
    """A line for each setting that is done."""
    found = {file.parent.name: json.loads(file.read_text()) for file in sorted(folder.glob("*/figure.json"))}
    judged = {name: content for name, content in found.items() if content["seeds"]}
    p = {name: sign_flip_p([b - a for a, b in zip(c["baseline"], c["synthetic"])]) for name, c in judged.items()}
    for name, adjusted in holm(p).items():
        print(f"{name}: Holm-adjusted p {adjusted:.3g}. {found[name]['sentence']} [{found[name]['machine']}]")
    for name in sorted(found.keys() - judged.keys()):
        print(f"{name}: {found[name]['sentence']}")


def judge(args: argparse.Namespace, store: Store, make: Callable[[int], Replicate], processes: Processes | None) -> LiftFigure:
    """Makes what isn't there yet and runs the trials, in this process or in those."""
    began = time.perf_counter()
    if processes:
        processes.prepare()
    replicates = [make(seed) for seed in range(args.seeds)]      # what processes have made is read
    published = Filter(**parse_settings(args.filter))
    for wanted in dict.fromkeys((NO_FILTER, published)):
        copies = [near_copies(r, store.child(f"s{r.number}"), wanted) for r in replicates]
        print(f"near copies among the generated images, filter {wanted.name}: {', '.join(f'{share:.1%}' for share in copies)}")
    print(f"data, generators and filters after {time.perf_counter() - began:.0f} s", flush=True)
    config = LiftConfig(seeds=args.seeds, ratios=args.ratios, distinct=args.distinct, steps=args.steps, arms=args.arms)
    book = RowBook(store, inputs=f"{FORMAT} {args.setting} {budget_of(args)} {args.steps}")
    return compare(config, replicates, Lines(), book, args.workers, even=True, memorised=max(copies), published=published,
                   runner=processes.run if processes else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=[*SETTINGS, "summary"])
    parser.add_argument("--data", help="URL of the source, but for digits")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--first-seed", type=int, default=0, help="others than something was chosen on; names the folder")
    parser.add_argument("--kimg", type=float, help="generator's budget, thousands of images")
    parser.add_argument("--minutes", type=float, help="or in minutes")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 2.0])
    parser.add_argument("--steps", type=int, help="of every classifier; by data size")
    parser.add_argument("--distinct", type=int, default=LiftConfig().distinct, help="synthetic rows to draw from for each that counts")
    parser.add_argument("--arms", choices=["quick", "all"], default="all")
    parser.add_argument("--device", default="cpu", help="cuda: generators and classifiers on a GPU; needs no Ray")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="changes of the generators, which name the folder")
    parser.add_argument("--filter", nargs="+", default=[], metavar="NAME=VALUE", help="sample.filter, as it will be published")
    parser.add_argument("--workers", type=int, help="trials at a time; one a CPU")
    parser.add_argument("--processes", type=int, help="to share the seeds out over, for a GPU")
    parser.add_argument("--folder", type=Path, default=Path("lift-settings"))
    args = parser.parse_args()
    if args.setting == "summary":
        show_all(args.folder)
        return
    print(machine())
    began = time.perf_counter()
    first = [f"from{args.first_seed}"] if args.first_seed else []
    where = str(args.folder / "-".join([args.setting, *(f"{k}{v:g}" for k, v in budget_of(args).items()), *args.set, *first]))
    store, make = Store(where), functools.partial(made, args, where)
    with Processes(make, args.seeds, args.processes) if args.processes else contextlib.nullcontext() as processes:
        figure = judge(args, store, make, processes)
    show(figure, time.perf_counter() - began)
    store.put_json("figure.json", {"machine": machine(), **published(figure)})


if __name__ == "__main__":
    main()
