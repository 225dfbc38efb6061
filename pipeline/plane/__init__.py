"""Points on the plane instead of images: `source.format: gaussians` walks the same stages in small.

There is nothing to read and no class to be lifted: true points are drawn as they are needed, a generator learns them in this
process, and its points are published as Parquet under the same protocol as images.
"""
