"""Trains a small classifier on every new version, without being asked: an example of what may wait for `ganmill.dataset.published`.

    prefect work-pool create ganmill --type process      # unless `ganmill deploy` made it
    python examples/train_when_published.py              # puts the deployment and its trigger on the server of PREFECT_API_URL

Whoever's run publishes, this flow is started with the URL and the version from the event.
"""

import io
import json
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.events import DeploymentEventTrigger
from sklearn.linear_model import LogisticRegression


@flow(name="train-classifier")
def train_classifier(url: str, version: str) -> float:
    """Share of the version's images that a classifier trained on half of them gets right."""
    fs, root = fsspec.core.url_to_fs(url)
    manifest = json.loads(fs.cat_file(f"{root}/versions/{version}/manifest.json"))
    images, labels = [], []
    for shard in manifest["shards"]:                 # the manifest's list, never a listing: a reader sees whole versions only
        table = pq.read_table(io.BytesIO(fs.cat_file(f"{root}/versions/{version}/{shard['key']}")))
        images += [np.asarray(Image.open(io.BytesIO(row["bytes"]))).ravel() / 255.0 for row in table["image"].to_pylist()]
        labels += table["label"].to_pylist()
    model = LogisticRegression(max_iter=200).fit(np.stack(images[::2]), labels[::2]) if len(set(labels[::2])) > 1 else None
    score = float(model.score(np.stack(images[1::2]), labels[1::2])) if model is not None else float("nan")
    get_run_logger().info("%s: %d images, score %.3f", version, len(labels), score)
    create_markdown_artifact(f"**{version}**: {len(labels)} images, score {score:.3f}", key="classifier")
    return score


if __name__ == "__main__":
    here = Path(__file__).resolve()
    train_classifier.from_source(str(here.parent), f"{here.name}:train_classifier").deploy(
        name="on-publish", work_pool_name="ganmill", print_next_steps=False,
        triggers=[DeploymentEventTrigger(
            expect={"ganmill.dataset.published"},
            parameters={"url": "{{ event.payload.url }}", "version": "{{ event.payload.version }}"},
        )],
    )
