"""The documents that lie beside a version: report.html, the dataset card (README.md), croissant.json. Facts in, text out."""
