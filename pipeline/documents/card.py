"""The dataset card: README.md of a version, with the YAML header that Hugging Face tools read."""

import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline.config import Config
from pipeline.documents.figures import decimal, figures, lift_sentence, lift_word, rarest_and_most_frequent
from pipeline.filtering import score_columns as filtered_columns
from pipeline.records import Scorecard, Snapshot
from pipeline.redaction import public_url

DATA_FILES = {"parquet": "data/*.parquet", "png": "data/**", "webdataset": "data/*.tar"}
RARE = 20                                            # real training images below which the card warns of a class
_SIZES = (
    (10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"), (10**11, "10B<n<100B"), (10**12, "100B<n<1T"),
)


@dataclass(frozen=True)
class Loading:
    """A way to read the data: a title and Python code that runs as it stands."""

    title: str
    code: str


def dataset_card(
    manifest: Mapping[str, Any], scorecard: Scorecard, snapshot: Snapshot, config: Config, *,
    score_columns: Sequence[str] | None = None, license_id: str = "unknown",
) -> str:
    """README.md of a version.

    Args:
        manifest: the version's manifest (the keys of the contract; `rejects`, `recommended_mix` may be missing).
        scorecard, snapshot, config: of the run that made it.
        score_columns: the filter's scores that each row carries (float32); None: those of the config's filter. They
            must all be named: `load_dataset` refuses a folder whose card leaves a column out.
        license_id: an identifier from Hugging Face's list. The source's licence governs what was made from it, and
            nobody can guess that: "unknown" unless told.

    Returns:
        Markdown with a YAML header; every class name survives it, whatever YAML 1.1 or 1.2 would make of it.
    """
    if score_columns is None:
        score_columns = filtered_columns(config, str(manifest.get("generator", {}).get("model", "")))
    facts = _header(manifest, score_columns, license_id)
    header = yaml.dump(facts, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31 - 1)
    parts = [
        f"---\n{header}---\n", _summary(manifest, snapshot), _verdict(manifest, scorecard),
        _classes(manifest, snapshot), _scores(scorecard, snapshot, config), _limits(scorecard, snapshot),
        _reading(manifest, config), _provenance(manifest, snapshot, config),
    ]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def how_to_load(format_name: str, where: str) -> tuple[Loading, ...]:
    """Code that reads a version.

    Args:
        format_name: parquet | png | webdataset.
        where: URL or path of the version's folder, without credentials.
    """
    local = where.removeprefix("file://")
    if format_name == "png":
        what = f'"imagefolder", data_files={_literal(where + "/data/**")}' if "://" in local else _literal(local)
        return (
            Loading("Hugging Face datasets", "from datasets import load_dataset\n\n"
                    f'synthetic = load_dataset({what}, split="train")\n'
                    'print(synthetic.features, synthetic[0]["image"])'),
            Loading("Plain files", "import json, pathlib\nfrom PIL import Image\n\n"
                    f"data = pathlib.Path({_literal(local + '/data')})\n"
                    'for line in (data / "metadata.jsonl").open(encoding="utf-8"):\n'
                    '    row = json.loads(line)\n    image = Image.open(data / row["file_name"])'),
        )
    if format_name == "webdataset":
        files = _literal(where + "/data/*.tar")
        return (
            Loading("Hugging Face datasets", "from datasets import load_dataset\n\n"
                    f'synthetic = load_dataset("webdataset", data_files={files}, split="train")\n'
                    'print(synthetic[0]["png"], synthetic[0]["cls"])'),
            Loading("webdataset", "import glob\nimport webdataset as wds\n\n"
                    f"shards = sorted(glob.glob({_literal(local + '/data/*.tar')}))\n"
                    'synthetic = wds.WebDataset(shards, shardshuffle=False).decode("pil")\n'
                    'image, label, facts = next(iter(synthetic.to_tuple("png", "cls", "json")))'),
        )
    files = _literal(where + "/data/*.parquet")
    return (
        Loading("Hugging Face datasets", "from datasets import load_dataset\n\n"
                f'synthetic = load_dataset("parquet", data_files={files}, split="train")\n'
                'print(synthetic.features["label"].names, synthetic[0]["image"])'),
        Loading("polars, without any code of the dataset's", "import io\nimport polars\nfrom PIL import Image\n\n"
                f"rows = polars.read_parquet({files})\n"
                'image = Image.open(io.BytesIO(rows["image"][0]["bytes"]))'),
    )


# ---- the header ----


class _Dumper(yaml.SafeDumper):
    """Quotes class names always: `1e3`, `08` or `yes` mean different things to YAML 1.1 and 1.2."""


class _Quoted(str):
    """A string that must stay one for every reader."""


def _in_quotes(dumper: yaml.SafeDumper, value: _Quoted) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(value), style='"')


_Dumper.add_representer(_Quoted, _in_quotes)


def _header(manifest: Mapping[str, Any], score_columns: Sequence[str], license_id: str) -> dict[str, Any]:
    rows = int(manifest["rows"])
    files = [{"split": "train", "path": DATA_FILES[manifest["format"]]}]
    config: dict[str, Any] = {"config_name": "default", "data_files": files}
    if manifest["format"] == "png":                  # an image folder's reader takes the class names from here alone
        config["features"] = _features(manifest, score_columns)
    header: dict[str, Any] = {
        "pretty_name": _Quoted(f"{manifest['dataset']} (synthetic)"),
        "license": license_id,
        "task_categories": ["image-classification"],
        "annotations_creators": ["machine-generated"],
        "size_categories": [size_category(rows)],
        "tags": ["synthetic", "ganmill", "gan", "image"],
        "configs": [config],
    }
    if manifest["format"] != "webdataset":           # its columns are file endings, the reader finds them itself
        size = int(manifest["bytes"])
        header["dataset_info"] = {
            "features": _features(manifest, score_columns),
            "splits": [{"name": "train", "num_bytes": size, "num_examples": rows}],
            "download_size": size, "dataset_size": size,
        }
    return header


def _features(manifest: Mapping[str, Any], score_columns: Sequence[str]) -> list[dict[str, Any]]:
    """The columns in the order of the files."""
    names = {_Quoted(i): _Quoted(name) for i, name in enumerate(manifest["classes"])}
    plain: dict[str, str] = {"uid": "string", "seed": "int64"}
    plain.update(dict.fromkeys(map(_Quoted, score_columns), "float32"))
    plain["synthetic"] = "bool"
    return [
        {"name": "image", "dtype": "image"}, {"name": "label", "dtype": {"class_label": {"names": names}}},
        *({"name": name, "dtype": dtype} for name, dtype in plain.items()),
    ]


def size_category(rows: int) -> str:
    """Hugging Face's size class of a dataset with so many rows."""
    return next((name for limit, name in _SIZES if rows < limit), "n>1T")


# ---- the text ----


def _summary(manifest: Mapping[str, Any], snapshot: Snapshot) -> str:
    generator = manifest.get("generator", {})
    channels = "grey" if snapshot.channels == 1 else "RGB"
    size, real = snapshot.resolution, snapshot.rows.get("train", 0)
    return (
        f"# {_md(manifest['dataset'])}: synthetic images\n\n"
        f"**Every image here is synthetic.** {manifest['rows']:,} images of {size} × {size} pixels ({channels}) "
        f"in {len(manifest['classes']):,} classes, made by a generative adversarial network "
        f"(`{generator.get('model', '?')}`) that was trained on {real:,} labelled real images. "
        "They are meant to be mixed into that real training set, not to stand for it, and never to test on.\n"
    )


def _verdict(manifest: Mapping[str, Any], scorecard: Scorecard) -> str:
    verdict = manifest.get("verdict", {})
    lines = ["## Verdict", "", lift_sentence(scorecard.lift)]
    ratio = (manifest.get("recommended_mix") or {}).get("ratio")
    if ratio is not None and lift_word(scorecard.lift) != "not judged":
        lines.append(f"Recommended mix: **{ratio:g} synthetic images per real one**." if ratio else
                     "Recommended mix: **none** (no ratio above 0 was better on the validation split).")
        lines += _mix(manifest["recommended_mix"])
    if verdict.get("passed"):
        lines.append("The gate's thresholds were all met.")
    else:
        lines += ["**Published although the gate said no**, because it was switched off:", ""]
        lines += [f"- {_md(reason)}" for reason in verdict.get("reasons", ())]
    return "\n".join(lines) + "\n"


def _mix(mix: Mapping[str, Any]) -> list[str]:
    """How the recommended mix was trained, in words; the shares of the classes stand in their table."""
    said = []
    if mix.get("synthetic_share") is not None:
        said.append(f"each class has as many synthetic images, which get {100 * mix['synthetic_share']:.3g} % of its draws")
    if mix.get("synthetic_weight", 1) != 1:
        said.append(f"a synthetic image is drawn {mix['synthetic_weight']:g} times as often as a real one of its class")
    if mix.get("distinct", 1) > 1:
        said.append(f"they were drawn from up to {mix['distinct']:g} times as many different ones")
    if mix.get("real_only_share"):
        said.append(f"the last {100 * mix['real_only_share']:g} % of the steps see real images alone")
    if mix.get("logit_adjustment"):
        rows = "rows" if mix.get("synthetic_share") is None else "real rows"
        said.append(f"the loss is logit-adjusted (τ = {mix['logit_adjustment']:g}, prior by {rows})")
    if mix.get("augmentation"):
        said.append(_augmentation(mix["augmentation"]))
    if mix.get("filter"):
        said.append("the synthetic images passed " + ", ".join(f"{_md(key)} {value:g}" for key, value in mix["filter"].items()))
    return [f"In the trial {'; '.join(said)}."] if said else []


def _augmentation(strengths: Mapping[str, Any]) -> str:
    said = [f"{name} up to {factor * strengths[key]:.3g} {unit}" for key, name, factor, unit in (
        ("shift", "shift", 100, "% of the side"), ("rotate_deg", "rotation", 1, "°"), ("scale", "scaling", 100, "%"),
        ("shear_deg", "shear", 1, "°"), ("brightness", "brightness", 50, "%"), ("contrast", "contrast", 100, "%"),
        ("saturation", "saturation", 100, "%")) if strengths.get(key)]
    return f"every image is distorted anew each time ({', '.join([*said, *['left-right flip'] * bool(strengths.get('flip'))])})"


def _classes(manifest: Mapping[str, Any], snapshot: Snapshot) -> str:
    real, made = snapshot.rows_per_class.get("train", {}), manifest["rows_per_class"]
    names = tuple(manifest["classes"])
    numbers = {name: i for i, name in enumerate(names)}
    shown, folded = rarest_and_most_frequent(real, names)

    weights = (manifest.get("recommended_mix") or {}).get("class_weights") or {}

    def table(chosen: Sequence[str]) -> list[str]:
        lines = ["| label | class | real (train) | synthetic | together |", "|---:|---|---:|---:|---:|"]
        if weights:
            lines = [lines[0] + " share of the draws |", lines[1] + "---:|"]
        for name in chosen:
            r, m = real.get(name, 0), made.get(name, 0)
            share = f" {100 * weights.get(name, 0):.2f} % |" if weights else ""
            lines.append(f"| {numbers[name]} | {_md(name)} | {r:,} | {m:,} | {r + m:,} |{share}")
        return lines

    lines = ["## Classes", "", *table(shown)]
    if folded:
        lines += ["", f"<details><summary>{len(folded):,} more classes</summary>", "", *table(folded), "", "</details>"]
    return "\n".join(lines) + "\n"


def _scores(scorecard: Scorecard, snapshot: Snapshot, config: Config) -> str:
    lines = ["## Scores", "", "| figure | value | read against | gate | N | meaning |", "|---|---:|---|---|---|---|"]
    for f in figures(scorecard, config.gate, snapshot):
        asked = (f.threshold or "–") + {None: "", True: " ✓", False: " ✗"}[f.met]
        lines.append("| " + " | ".join(_md(t) for t in (f.name, f.value, f.reference, asked, f.n, f.meaning)) + " |")
    if scorecard.features != "inception":
        lines += ["", f"FD-{scorecard.features} is not FID: the figure can be compared within this dataset only."]
    return "\n".join(lines) + "\n"


def _limits(scorecard: Scorecard, snapshot: Snapshot) -> str:
    counts = {name: snapshot.rows_per_class.get("train", {}).get(name, 0) for name in snapshot.classes}
    rare = [name for name, count in counts.items() if 0 < count < RARE]
    empty = [name for name, count in counts.items() if not count]
    lines = [
        "## Limits", "",
        "- What the real images lack, these lack too: a generator can't add what it never saw, and repeats biases.",
        f"- About {_share(scorecard.memorised)} of the images lie suspiciously close to a training image; "
        "don't treat the set as anonymous.",
        "- Labels are those asked of the generator; an independent classifier agrees with "
        f"{_share(scorecard.agreement)} of them.",
        "- Each row is marked as synthetic by metadata; the pixels carry no mark, and none should be read into them.",
    ]
    if rare:
        lines.append(f"- Learned from fewer than {RARE} real images: {_listed(rare)}.")
    if empty:
        lines.append(f"- No real image, hence no synthetic one: {_listed(empty)}.")
    return "\n".join([*lines, *(f"- {_md(note)}" for note in scorecard.notes)]) + "\n"


def _reading(manifest: Mapping[str, Any], config: Config) -> str:
    where = f"{public_url(config.dataset_url)}/versions/{manifest['version']}"
    lines = ["## How to load", ""]
    for way in how_to_load(manifest["format"], where):
        lines += [f"{way.title}:", "", "```python", way.code, "```", ""]
    lines.append("`manifest.json` lists every shard with its rows and sha256; `ganmill verify` checks them.")
    return "\n".join(lines) + "\n"


def _provenance(manifest: Mapping[str, Any], snapshot: Snapshot, config: Config) -> str:
    source, generator = manifest.get("source", {}), manifest.get("generator", {})
    rejects, software = manifest.get("rejects") or {}, manifest.get("software") or {}
    facts = {
        "version": manifest["version"], "created": manifest.get("created", ""), "run": manifest.get("run_id", ""),
        "seed": manifest.get("seed", ""),
        "source": f"{source.get('format', '')} {public_url(source.get('url')) or '(built in)'}".strip(),
        "source fingerprint": source.get("fingerprint", ""), "prepared data": snapshot.fingerprint,
        "generator": f"{generator.get('model', '')}, {generator.get('trained_kimg', 0):g} kimg{_truncated(manifest)}",
        "generator digest": generator.get("digest", ""),
        "config digest": generator.get("config_digest", config.digest()),
        "rejected and redrawn": ", ".join(f"{reason}: {count:,}" for reason, count in rejects.items()) or "none",
        "software": ", ".join(f"{name} {version}" for name, version in software.items()),
    }
    return "\n".join([
        "## Provenance", "", "| | |", "|---|---|",
        *(f"| {name} | {_md(str(value))} |" for name, value in facts.items()),
        "", "The same in machine-readable form: `croissant.json` (Croissant 1.1). For people: `report.html`.",
    ]) + "\n"


def _truncated(manifest: Mapping[str, Any]) -> str:
    psi = manifest.get("truncation", 1.0)
    return "" if psi == 1 else f", latents truncated by ψ = {psi:g}"


def _share(value: float) -> str:
    return f"{decimal(100 * value, 1)} %" if math.isfinite(value) else "an unknown share"


def _listed(names: Sequence[str], limit: int = 10) -> str:
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(_md(name) for name in names[:limit]) + more


def _md(text: str) -> str:
    """`text` as plain words in Markdown, in a table cell too: no HTML, no markup, one line."""
    flat = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(flat, quote=False))


def _literal(text: str) -> str:
    """`text` as a Python string in double quotes."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
