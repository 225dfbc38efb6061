"""The report: one page, no network, everything escaped, small, and honest about what failed."""

import dataclasses
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from published import HOSTILE, config, lift, metrics, report_inputs, scorecard

from pipeline.documents import lift_section, pictures
from pipeline.documents import report as room
from pipeline.documents.report import render_report
from pipeline.grids import tile_grid
from pipeline.records import LiftFigure, Verdict
from pipeline.redaction import public_config, public_url

DIGITS = tuple(str(i) for i in range(10))
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements, texts and addresses of a page; fails where tags don't nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.stack, self.stack

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.stack and self.stack.pop() == tag, f"</{tag}> closes nothing at {self.getpos()}"

    def handle_data(self, data):
        if self.stack and self.stack[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\xa0", " ").split())


def page(**changes) -> Page:
    return Page(render_report(report_inputs(**changes)))


def test_one_file_without_network_or_script():
    html = render_report(report_inputs())
    found = Page(html)
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    for tag, attributes in found.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), (tag, name)
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL).group(1)
    assert "url(" not in style and "@import" not in style and "@font-face" not in style
    assert "default-src 'none'" in html


def test_links_within_the_page_lead_somewhere():
    for found in (page(), page(scorecard=scorecard(DIGITS), nearest_pairs=None, real_grid=(), fake_grid=())):
        ids = {attributes["id"] for _, attributes in found.tags if "id" in attributes}
        links = {attributes["href"][1:] for tag, attributes in found.tags if tag == "a"}
        assert links <= ids and "provenance" in links


def test_hostile_names_stay_text():
    found = page(classes=HOSTILE)
    assert not any(tag == "script" for tag, _ in found.tags)
    text = found.text
    for name in ("<script>alert(1)</script>", "{{ 7*7 }}", "наука 科学 🌱", "a: b"):
        assert name in text
    assert any(attributes.get("alt", "").endswith("<script>alert(1)</script>") for _, attributes in found.tags)


def test_no_secret_is_shown():
    source = {"format": "idx", "url": "s3://key:secret@bucket/x?sig=t0ken", "storage_options": {"k": "hunter1"}}
    html = render_report(report_inputs(config=config(source=source)))
    assert not re.search("hunter|secret|t0ken|storage_options:", html) and "s3://bucket/x" in html


def test_small_at_32_pixels_even_in_colour_and_with_many_classes():
    rng = np.random.default_rng(0)
    names = tuple(f"class {n}" for n in range(300))
    noise = rng.integers(0, 256, (300, 12, 3, 32, 32), np.uint8)
    grids = [(float(k), tile_grid(noise[:10].reshape(-1, 3, 32, 32), 12)) for k in range(6)]
    pictures = {"real_grid": noise, "fake_grid": noise, "progress_grids": grids, "nearest_pairs": grids[0][1]}
    html = render_report(report_inputs(names, **pictures))
    assert len(html.encode()) < 3_000_000
    found = Page(html)
    assert "classes are left out here" in found.text
    rows = [a for tag, a in found.tags if tag == "img" and a["alt"].startswith("Synthetic images of")]
    assert len(rows) >= 20, "the classes in front are always shown"


def test_refused_says_so_and_why():
    reasons = ("lift −0.10 points is below gate.min_lift_pp 0", "coverage 0.41 is below gate.min_coverage 0.5")
    measured = scorecard(DIGITS, lift(DIGITS, -0.1))
    found = page(version=None, plan={}, verdict=Verdict(False, reasons), scorecard=measured)
    assert "Refused: nothing was published, because 2 figures failed." in found.text
    assert all(reason in found.text for reason in reasons) and "No lift" in found.text
    assert any("bad" in a.get("class", "").split() for _, a in found.tags)
    assert "none made" in found.text and "Published" not in found.text


OFF = Verdict(False, ("x",), enforced=False)


@pytest.mark.parametrize("verdict, version, difference, kind, says", [
    (Verdict(True), "v1", 1.3, "good", "Published as version v1: 314 synthetic images in 9 classes."),
    (Verdict(True), "v1", 0.0, "warn", "Published as version v1"),
    (Verdict(True), None, 1.3, "good", "Passed the gate; not published yet: 314 synthetic images in 9 classes planned"),
    (OFF, "v1", 1.3, "warn", "although 1 figure failed, since the gate is switched off"),
    (OFF, None, 1.3, "warn", "Not passed (1 figure failed), but the gate is switched off"),
])
def test_the_verdict_in_one_sentence(verdict, version, difference, kind, says):
    found = page(verdict=verdict, version=version, scorecard=scorecard(DIGITS, lift(DIGITS, difference)))
    assert says in found.text
    assert [a["class"] for _, a in found.tags if a.get("class", "").startswith("banner")] == [f"banner {kind}"]


def test_class_table_counts_and_bars():
    inputs = report_inputs()
    found = room._made(inputs)
    assert found["0"].real == 50 and found["0"].synthetic == 0 and found["0"].total == 50
    assert all(row.real_width + row.synthetic_width == pytest.approx(100, abs=0.1) for row in found.values())
    assert "186 314 500" in Page(render_report(inputs)).text


def test_pictures_are_the_images_pixel_for_pixel():
    inputs = report_inputs()
    strip = pictures.strip(inputs.real_grid[3], 8)
    pixels = np.array(Image.open(io.BytesIO(strip.png)))
    np.testing.assert_array_equal(pixels[1:33, 34:66, 0], inputs.real_grid[3][1, 0])
    assert strip.width == 100 and pictures.strip(inputs.real_grid[3][:4], 8).width == pytest.approx(50, abs=0.5)
    assert pictures.strip((), 8) is None


def test_a_class_without_images_has_an_empty_row():
    inputs = report_inputs()
    real = [*inputs.real_grid]
    real[2] = np.zeros((0, 1, 32, 32), np.uint8)
    real[4] = inputs.real_grid[4][:3]
    assert Page(render_report(dataclasses.replace(inputs, real_grid=real))).text.count("no real image") == 1


def test_large_images_are_shrunk_by_means():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 256, 256), np.uint8)
    small = pictures.shrunk(images)
    assert small.shape == (2, 3, 64, 64)
    assert abs(small.astype(float) - images.reshape(2, 3, 64, 4, 64, 4).mean((3, 5))).max() <= 0.5
    assert pictures.shrunk(images[:, :, :32, :32]).shape[-1] == 32


def test_progress_is_thinned_from_first_to_last():
    pictures = room._progress([(float(k), tile_grid(np.full((4, 1, 8, 8), k, np.uint8), 2)) for k in range(50)])
    assert len(pictures) == room.PROGRESS_GRIDS and (pictures[0].caption, pictures[-1].caption) == ("0 kimg", "49 kimg")
    noise = np.random.default_rng(0).integers(0, 256, (500, 3, 32, 32), np.uint8)
    huge = room._progress([(float(k), tile_grid(noise, 10)) for k in range(3)])
    assert len(huge) == 2 and sum(len(p.uri) for p in huge) < 1.4 * room.MAX_PROGRESS_BYTES
    assert room._progress([]) == ()


def test_curves_tolerate_whatever_is_missing():
    rows = [
        {}, {"kimg": "x"}, {"kimg": 1.0}, {"kimg": 2.0, "loss_g": math.nan, "loss_d": 1.0},
        {"kimg": 3.0, "loss_g": math.inf},
        {"kimg": 4.0, "loss_d": None, "diversity": 0.9, "diversity_per_class": {"3": 0.5, "99": 1.0, "4": None}},
    ]
    found = page(metrics=rows)
    assert "Losses" in found.text and "Speed" not in found.text and "lowest at the end: 3" in found.text
    assert "No metrics were recorded." in page(metrics=[]).text


def test_lines_that_tell_other_things_are_no_gaps():
    rows = [{"kimg": float(k), **({"diversity_per_class": {"0": 1.0}} if k % 2 else {"loss_g": 1.0, "loss_d": 2.0})}
            for k in range(20)]
    losses = next(c for c in room._curves(report_inputs(metrics=rows)) if c.title == "Losses")
    assert str(losses.svg).count("<polyline") == 2
    rows[10]["loss_g"] = math.nan
    losses = next(c for c in room._curves(report_inputs(metrics=rows)) if c.title == "Losses")
    assert str(losses.svg).count("<polyline") == 3, "a value that is no number is a gap"


def test_curves_show_all_four_with_axes():
    text = page(metrics=metrics(DIGITS)).text
    titles = ("Losses", "Gradient norms", "Speed", "Diversity of each class")
    assert all(title in text for title in (*titles, "thousand images seen (kimg)", "as varied as real"))


def test_nothing_optional_is_needed():
    found = page(
        metrics=(), real_grid=(), fake_grid=(), progress_grids=(), nearest_pairs=None, timings={}, software={},
        rejects={}, version=None, plan={}, scorecard=scorecard(DIGITS),
    )
    assert "Lift was not measured" in found.text and "Nearest neighbours" not in found.text


def test_lift_section_shows_seeds_interval_and_every_classifier():
    text = page().text
    assert "Difference by seed" in text and "Recall by class" in text and "+0.94 … +1.66" in text
    assert "Every classifier that was trained (15)" in text and "seed 4" in text


def test_arms_are_compared_with_the_baseline_of_their_own_seed():
    figure = lift(DIGITS, 1.3)
    arms = dict(lift_section._arms(figure))
    assert set(arms) == {"synthetic, 0.5 per real", "synthetic, 1 per real"}, "the baseline itself is not an arm"
    assert arms["synthetic, 1 per real"] == pytest.approx([s - b for s, b in zip(figure.synthetic, figure.baseline)])


def of_all_arms() -> LiftFigure:
    """A figure of the whole laboratory: two filters, two ratios, controls."""
    rng = np.random.default_rng(0)
    ways = [("A2", 0.0, "none", 1.0, 0.0), ("A3", 0.0, "none", 1.0, 0.0), ("N2", 0.5, "none", 1.0, 0.0), ("O1", 0.5, "none", 1.0, 0.0)]
    ways += [("G3", ratio, kept, 1.0, 0.25) for kept in ("none", "p0.5d0.95") for ratio in (0.5, 1.0)]
    ways += [("G3", 0.5, "p0.5d0.95", 0.5, 0.25), ("G3", 0.5, "none", 1.0, 0.0)]
    rows = tuple({"arm": arm, "ratio": ratio, "filter": kept, "even": arm == "G3", "distinct": 20.0, "weight": weight,
                  "real_only_tail": tail, "seed": seed, "val": 90.0, "test": 91.0 + (arm == "G3") * ratio * 2 + float(rng.normal(0, 0.3))}
                 for arm, ratio, kept, weight, tail in ways for seed in range(5))
    figure = lift(DIGITS, 1.3)
    return dataclasses.replace(figure, rows=rows, arms=("A2", "G3"), baseline=tuple(r["test"] for r in rows[:5]),
                               preferred_filter={"min_confidence": 0.5, "max_centroid_distance": 0.95})


def sieved(kept: int = 40) -> lift_section.Sieved:
    """What a filter did with 64 images of one class."""
    images = np.random.default_rng(0).integers(0, 256, (64, 1, 32, 32), np.uint8)
    return lift_section.Sieved("9", 64, images[:kept], images[kept:], {"confidence": 60 - kept, "copy": 4} if kept < 64 else {})


def test_every_mix_has_an_interval_of_its_own_and_lift_is_drawn_against_the_ratio() -> None:
    figure = of_all_arms()
    names = [name for name, _ in lift_section._arms(figure)]
    assert {"G3, 0.5 per real, even", "G3, 0.5 per real, even, t0.25", "G3, 0.5 per real, even, p0.5d0.95, t0.25",
            "G3, 0.5 per real, even, p0.5d0.95, w0.5, t0.25"} < set(names)
    assert all(len(values) == 5 for _, values in lift_section._arms(figure))
    drawn = lift_section._by_ratio(figure)
    assert [(name, [ratio for ratio, _ in places]) for name, places in drawn] == [
        ("G3, even, p0.5d0.95, t0.25", [0.5, 1.0]), ("G3, even, t0.25", [0.5, 1.0])]     # and not what was tried at one ratio
    found = page(scorecard=scorecard(DIGITS, figure))
    assert "Lift against the mixing ratio" in found.text and "in 2 ways without synthetic images and 6 with them" in found.text
    assert "(ratios 0.5, 1, drawn from up to 20 times as many)" in found.text
    assert "A2 and G3" in found.text
    assert " G3 0.5 none yes " in found.text and " A2 0 none no " in found.text and "True" not in found.text
    assert "sample.filter: {min_confidence: 0.5, max_centroid_distance: 0.95}" in found.text     # published without any


def test_an_arm_that_equals_the_baseline_is_drawn_too() -> None:
    figure = of_all_arms()
    same = tuple({**row, "arm": "G3×1", "ratio": 0.5, "real_only_tail": 0.25} for row in figure.rows if row["arm"] == "A2")
    names = [name for name, _ in lift_section._arms(dataclasses.replace(figure, rows=(*figure.rows, *same)))]
    assert "G3×1, 0.5 per real, t0.25" in names and not any(name.startswith("A2") for name in names)


def test_who_decided_is_said() -> None:
    by_val = page(scorecard=scorecard(DIGITS, of_all_arms())).text
    by_test = page(scorecard=scorecard(DIGITS, dataclasses.replace(of_all_arms(), test_advised=True))).text
    assert "By the validation split 0.5 synthetic images per real one were best." in by_val
    assert "test had a say in what is recommended: 0.5 synthetic images per real one were best." in by_test
    assert "By the validation split" not in by_test


def test_what_has_no_colour_of_its_own_is_named_together() -> None:
    assert lift_section._legend(["a", "b"]) == (("s1", "a"), ("s2", "b"))
    assert lift_section._legend(["a", "b", "c", "d"]) == (("s1", "a"), ("s2", "b"), ("faint", "others: c; d"))


def test_the_filters_work_is_shown() -> None:
    found = page(scorecard=scorecard(DIGITS, of_all_arms()), sieved=[sieved(), dataclasses.replace(sieved(64), name="1")])
    assert "What the filter keeps and throws away" in found.text
    assert "40 of 64 kept" in found.text and "confidence 20, copy 4" in found.text and "none thrown away" in found.text
    assert "min confidence 0.5, max centroid distance 0.95" in found.text
    assert "What the filter keeps" not in page().text
    asked = config(sample={"filter": {"min_confidence": 0.9, "min_discriminator": 0.0}})
    assert lift_section.sieve_of(asked, of_all_arms()) == {"min_confidence": 0.9}     # what is published goes first
    assert "not picked by hand, as they are before the filter." in page(config=asked).text
    assert "not picked by hand." in page(config=config(sample={"filter": {"min_confidence": 0.0}})).text


def test_one_seed_has_no_interval_and_none_has_no_figure():
    single = lift(DIGITS, 1.3, seeds=1)
    single = dataclasses.replace(single, interval_pp=(-100.0, 100.0))
    text = page(scorecard=scorecard(DIGITS, single)).text
    assert "one seed: no interval" in text and "100.00" not in text
    why = "Lift can't be judged, because class '3' has no test image."
    none = dataclasses.replace(
        single, seeds=(), baseline=(), synthetic=(), lift_pp=0.0, interval_pp=(0.0, 0.0), rows=(), recall_baseline={},
        recall_synthetic={}, sentence=why,
    )
    text = page(scorecard=scorecard(DIGITS, none)).text
    assert why in text and "could not be judged" in text and "+0.00" not in text and "Difference by seed" not in text


def test_scores_stand_with_their_n_and_floor():
    text = page().text
    assert "real against real 4.01" in text and "3.1 times as far" in text
    assert "Measured against 270 real test images." in text
    assert "FD-domain is not FID" in text
    real = {"precision": 0.94, "coverage": float("nan"), "recall": 0.9}
    text = page(scorecard=scorecard(DIGITS, real=real, matched={"recall": 0.87}, kernel_distance=1.5, authentic=0.9)).text
    assert "Recall 0.71 real images 0.90, as many samples 0.87" in text
    assert "Precision 0.83 real images 0.94" in text and "Coverage 0.81 at best 1" in text
    assert "Kernel distance × 1000 1.50" in text and "Authentic 0.90" in text
    assert "class '8' has 5 test images" in text


def test_the_same_inputs_give_the_same_page():
    assert render_report(report_inputs()) == render_report(report_inputs())


@pytest.mark.parametrize("url, shown", [
    ("s3://key:sec/ret@bucket/x", "s3://bucket/x"), ("s3://key:secret@bucket/x", "s3://bucket/x"),
    ("s3://bucket/a@b/c", "s3://bucket/a@b/c"), ("http://host:9000/a@b", "http://host:9000/a@b"),
    ("http://[::1]:9000/a@b", "http://[::1]:9000/a@b"), ("https://token@host/x", "https://host/x"),
    ("https://h/p?token=1#f", "https://h/p"), ("./out#1", "./out#1"), (None, None), ("memory://x", "memory://x"),
    ("simplecache::s3://a:b@c/d", "simplecache::s3://c/d"),
])
def test_public_addresses(url, shown):
    assert public_url(url) == shown


def test_public_config_has_no_options_and_keeps_the_rest():
    shown = public_config(config())
    assert "storage_options" not in shown["source"] and "storage_options" not in shown["publish"]
    assert shown["seed"] == 7 and shown["publish"]["url"] == "s3://bucket/sets"
