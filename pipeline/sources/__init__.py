"""Labelled images in, from any fsspec URL: one file a format, each opened through `open_source`."""

from pipeline.config import SourceConfig
from pipeline.errors import ConfigError
from pipeline.sources.source import ArraySource, Census, RawItem, Source

__all__ = ["ArraySource", "Census", "RawItem", "Source", "open_source"]


def open_source(config: SourceConfig, seed: int) -> Source:
    """Opens the source that the config names; lists its files, reads no image.

    Args:
        seed: the run's; only sources that are drawn rather than read depend on it.

    Raises:
        SourceError: there is nothing at the URL, it can't be reached, or what lies there is not of that format.
        ConfigError: no such format.
    """
    if config.format == "digits":
        from pipeline.sources.digits import DigitsSource
        return DigitsSource()
    if config.format == "idx":
        from pipeline.sources.idx import open_idx
        return open_idx(config)
    if config.format == "imagefolder":
        from pipeline.sources.imagefolder import open_imagefolder
        return open_imagefolder(config)
    if config.format == "parquet":
        from pipeline.sources.parquet import open_parquet
        return open_parquet(config)
    if config.format == "webdataset":
        from pipeline.sources.webdataset import open_webdataset
        return open_webdataset(config)
    raise ConfigError(f"source.format: {config.format} holds no images; give digits, imagefolder, parquet, idx or webdataset")
