"""MLCommons Croissant 1.1: the version's files, columns and origin as JSON-LD.

https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html. Provenance uses PROV-O, as its section "Provenance
Representation" asks; the mark that the content is synthetic uses schema.org's `digitalSourceType` with IPTC's term.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from pipeline import keys
from pipeline.redaction import public_url

CONFORMS_TO = "http://mlcommons.org/croissant/1.1"
SYNTHETIC_MARK = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
MAX_LISTED_FILES = 2_000                             # beyond that file sets alone; the manifest has every sha256

_CONTEXT: Mapping[str, Any] = {                      # the one of the specification, appendix 1, and PROV-O
    "@language": "en", "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/", "dct": "http://purl.org/dc/terms/", "sc": "https://schema.org/",
    "prov": "http://www.w3.org/ns/prov#", "rai": "http://mlcommons.org/croissant/RAI/",
    "conformsTo": "dct:conformsTo", "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "data": {"@id": "cr:data", "@type": "@json"}, "examples": {"@id": "cr:examples", "@type": "@json"},
    "description": {"@container": "@language"}, "name": {"@container": "@language"},
    **{term: f"cr:{term}" for term in (
        "arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "extract", "field", "fileObject",
        "fileProperty", "fileSet", "format", "includes", "isArray", "isLiveDataset", "jsonPath", "key", "md5",
        "parentField", "path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate", "separator",
        "source", "subField", "transform",
    )},
}
_ENCODING = {
    "parquet": "application/x-parquet", "png": "image/png", "webdataset": "application/x-tar",
    "jsonl": "application/jsonlines", "text": "text/plain",
}


def croissant(
    manifest: Mapping[str, Any], base_url: str | None = None, *, license_url: str | None = None,
) -> dict[str, Any]:
    """JSON-LD of a version.

    Args:
        manifest: the version's manifest with its whole list of shards (before it is split into parts).
        base_url: address of the version's folder, where the files can be fetched over http(s); None: the addresses are
            relative to the folder in which the JSON lies.
        license_url: the licence's address; None: the text says that the source's licence governs.

    Returns:
        A dict to be written as JSON. `mlcroissant` accepts it and, beside the files, yields the records of record set
        `images`: image, label, uid and synthetic.
    """
    points = manifest.get("rows_are") == "points"
    describe = {"parquet": _points if points else _parquet, "png": _png, "webdataset": _webdataset}[manifest["format"]]
    files, records = describe(manifest, base_url)
    governs = "The licence of the source data governs."
    unknown = {"@type": "sc:CreativeWork", "name": "Not stated", "description": governs}
    return {
        "@context": dict(_CONTEXT),
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": manifest["dataset"],
        "description": _POINTS.format(manifest["rows"]) if points else (
            f"{manifest['rows']:,} synthetic images in {len(manifest['classes']):,} classes, made by a generative "
            "adversarial network that was trained on labelled real images; meant to be mixed into those for training."
        ),
        "license": license_url or unknown,
        "url": public_url(base_url) or f"urn:ganmill:{quote(manifest['dataset'])}:{quote(manifest['version'])}",
        "creator": {"@type": "sc:Organization", "name": "ganmill", "description": "Made by software, not by hand."},
        "datePublished": manifest["created"],
        "version": _semantic_version(manifest),
        "keywords": ["synthetic", "points" if points else "image classification", "generative adversarial network", "ganmill"],
        "citeAs": f"{manifest['dataset']}, synthetic {'points' if points else 'images'}, version {manifest['version']}, made with ganmill",
        "digitalSourceType": [{"@id": SYNTHETIC_MARK}, {"@id": "sc:TrainedAlgorithmicMediaDigitalSource"}],
        "isLiveDataset": False,
        **_provenance(manifest),
        **({} if points else _responsibility(manifest)),
        "distribution": files,
        "recordSet": [_classes(manifest), *records],
    }


def _semantic_version(manifest: Mapping[str, Any]) -> str:
    """A version of its own holds other rows: a major one by Croissant's rules. The name of the version is its build."""
    build = "".join(c if c.isascii() and (c.isalnum() or c == "-") else "-" for c in str(manifest["version"]))
    return f"1.0.0+{build}"


# ---- where it comes from ----


def _provenance(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """From which images, by which generator, with which settings and software."""
    source, generator = manifest.get("source", {}), manifest.get("generator", {})
    address = public_url(source.get("url"))
    real = {
        "@type": "prov:Entity", "@id": f"urn:ganmill:source:{source.get('fingerprint', 'unknown')}",
        "prov:label": f"{'drawn points' if manifest.get('rows_are') == 'points' else 'labelled real images'} "
                      f"({source.get('format', 'unknown')})",
        "identifier": source.get("fingerprint", ""), **({"prov:atLocation": address} if address else {}),
    }
    maker = {
        "@type": "prov:Entity", "@id": f"urn:ganmill:generator:{generator.get('digest', 'unknown')}",
        "prov:label": f"generator ({generator.get('model', '?')}, {generator.get('trained_kimg', 0)} thousand images)",
        "identifier": generator.get("digest", ""), "prov:wasDerivedFrom": {"@id": real["@id"]},
    }
    rejects = ", ".join(f"{reason}: {count}" for reason, count in (manifest.get("rejects") or {}).items())
    settings = {
        "config_digest": generator.get("config_digest", ""), "seed": manifest.get("seed"),
        "run_id": manifest.get("run_id", ""), "rejects": rejects or "none",
    }
    activity = {
        "@type": "prov:Activity", "prov:label": f"ganmill run {manifest.get('run_id', '')}".strip(),
        "prov:endedAtTime": manifest["created"], "prov:used": [{"@id": real["@id"]}, maker],
        "prov:wasAssociatedWith": [
            {"@type": "prov:SoftwareAgent", "prov:label": name, "softwareVersion": str(version)}
            for name, version in (manifest.get("software") or {}).items()
        ],
        "additionalProperty": [{"@type": "sc:PropertyValue", "name": k, "value": v} for k, v in settings.items()],
    }
    return {"prov:wasDerivedFrom": real, "prov:wasGeneratedBy": activity}


def _responsibility(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The words of the RAI vocabulary that can honestly be filled in."""
    verdict = manifest.get("verdict", {})
    limits = ["Synthetic: not to be used as a test set, nor as evidence of what real images look like."]
    if not verdict.get("passed", True):
        limits.append("Published although it did not pass its gate: " + " ".join(verdict.get("reasons", ())))
    return {
        "rai:dataCollection": "Sampled from a generative adversarial network; no image was recorded.",
        "rai:dataCollectionType": ["Synthetic"],
        "rai:dataAnnotationProtocol": ["Each label is the class that was asked of the generator."],
        "rai:dataBiases": ["Repeats and may sharpen the biases of the real images that the generator was trained on."],
        "rai:dataLimitations": limits,
        "rai:dataUseCases": ["Additional training images for an image classifier, mixed with the real ones."],
    }


# ---- files and records ----

_Described = tuple[list[dict[str, Any]], list[dict[str, Any]]]   # distribution, record sets
_POINTS = "{:,} synthetic points on the plane, made by a generative adversarial network that learned a mixture of Gaussians."
_UID = "Follows from run seed, class and number alone."


def _parquet(manifest: Mapping[str, Any], base_url: str | None) -> _Described:
    files = _file_set("shards", "data/*.parquet", "parquet", "The data files, one row an image.")

    def column(name: str) -> dict[str, Any]:
        return {"fileSet": {"@id": "shards"}, "extract": {"column": name}}

    content = {**column("image"), "transform": {"jsonPath": "bytes"}}   # of Hugging Face's struct of bytes and path
    fields = [
        _field("images/image", "sc:ImageObject", "The image, PNG.", content),
        {**_label("images/label", column("label")), "references": {"field": {"@id": "classes/label"}}},
        _field("images/uid", "sc:Text", _UID, column("uid")),
        _field("images/synthetic", "sc:Boolean", "Always true.", column("synthetic")),
    ]
    return [files, *_listed(manifest, base_url)], [_records("images", "One record a synthetic image.", fields)]


def _points(manifest: Mapping[str, Any], base_url: str | None) -> _Described:
    files = _file_set("shards", "data/*.parquet", "parquet", "The data files, one row a point.")

    def column(name: str, kind: str, description: str) -> dict[str, Any]:
        source = {"fileSet": {"@id": "shards"}, "extract": {"column": name}}
        return _field(f"points/{name}", kind, description, source)

    fields = [
        column("x", "sc:Float", "Across."), column("y", "sc:Float", "Up."), column("uid", "sc:Text", _UID),
        column("synthetic", "sc:Boolean", "Always true."),
    ]
    return [files, *_listed(manifest, base_url)], [_records("points", "One record a synthetic point.", fields)]


def _png(manifest: Mapping[str, Any], base_url: str | None) -> _Described:
    pictures = _file_set("pictures", "data/*/*.png", "png", "One PNG an image, in a folder of its class.")
    text = "One line an image: file_name, label, uid and more."
    listed = manifest.get("metadata")
    table = (_file_object("table", listed, "jsonl", base_url) | {"description": text} if listed else
             _file_set("table", keys.METADATA, "jsonl", text))
    kind = "fileObject" if listed else "fileSet"

    def column(name: str) -> dict[str, Any]:
        return {kind: {"@id": "table"}, "extract": {"column": name}}

    uid = _field("images/uid", "sc:Text", _UID, _from_file("pictures", "filename", "png"))
    fields = [
        _field("images/image", "sc:ImageObject", "The image, PNG.", _from_file("pictures", "content")),
        _label("images/label", column("label")),
        {**uid, "references": column("uid")},        # joins pictures and table
        _field("images/synthetic", "sc:Boolean", "Always true.", column("synthetic")),
    ]
    files = [pictures, table, *_listed(manifest, base_url)]
    return files, [_records("images", "One record a synthetic image.", fields)]


def _webdataset(manifest: Mapping[str, Any], base_url: str | None) -> _Described:
    """Members of tars can't be joined by mlcroissant, so labels are a record set of their own, with the same key."""
    tars = _listed(manifest, base_url) or [_file_set("shards", "data/*.tar", "webdataset", "The tar files.")]
    inside = {"containedIn": [{"@id": tar["@id"]} for tar in tars]}
    pictures = {**_file_set("pictures", "*.png", "png", "The images, inside the tar files."), **inside}
    numbers = {**_file_set("numbers", "*.cls", "text", "The class numbers, inside the tar files."), **inside}
    synthetic = {
        "@type": "cr:Field", "@id": "images/synthetic", "name": "synthetic", "description": "Always true.",
        "dataType": "sc:Boolean", "value": True,
    }
    images = _records("images", "One record a synthetic image.", [
        _field("images/image", "sc:ImageObject", "The image, PNG.", _from_file("pictures", "content")),
        _field("images/uid", "sc:Text", _UID, _from_file("pictures", "filename", "png")), synthetic,
    ])
    labels = _records("labels", "The class of each image, by its uid.", [
        _field("labels/uid", "sc:Text", _UID, _from_file("numbers", "filename", "cls")),
        _label("labels/label", _from_file("numbers", "content")),
    ])
    return [*tars, pictures, numbers], [images, labels]


def _classes(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet", "@id": "classes", "name": "classes", "dataType": "sc:Enumeration",
        "description": "The class names in the source's numbering.", "key": {"@id": "classes/label"},
        "field": [
            {"@type": "cr:Field", "@id": "classes/label", "name": "label", "dataType": "sc:Integer"},
            {"@type": "cr:Field", "@id": "classes/name", "name": "name", "dataType": "sc:Text"},
        ],
        "data": [{"classes/label": i, "classes/name": name} for i, name in enumerate(manifest["classes"])],
    }


def _records(identifier: str, description: str, fields: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet", "@id": identifier, "name": identifier, "description": description,
        "key": {"@id": f"{identifier}/uid"}, "field": fields,
    }


def _field(identifier: str, data_type: str | list[str], description: str, source: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "@type": "cr:Field", "@id": identifier, "name": identifier.rsplit("/", 1)[-1], "description": description,
        "dataType": data_type, "source": dict(source),
    }


def _label(identifier: str, source: Mapping[str, Any]) -> dict[str, Any]:
    description = "Number of the class; its name stands in record set `classes`."
    return _field(identifier, ["sc:Integer", "cr:Label"], description, source)


def _from_file(file_set: str, what: str, ending: str | None = None) -> dict[str, Any]:
    """A property of a file; `ending` is cut off where it is there."""
    source: dict[str, Any] = {"fileSet": {"@id": file_set}, "extract": {"fileProperty": what}}
    return source if ending is None else {**source, "transform": {"regex": rf"^(.*?)(?:\.{ending})?$"}}


def _file_set(identifier: str, glob: str, form: str, description: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet", "@id": identifier, "name": identifier, "description": description,
        "encodingFormat": _ENCODING[form], "includes": glob,
    }


def _listed(manifest: Mapping[str, Any], base_url: str | None) -> list[dict[str, Any]]:
    """Every data file with its sha256, so that a reader can check what it fetched; none where there are too many."""
    files = manifest["shards"]
    if len(files) > MAX_LISTED_FILES:
        return []
    return [_file_object(f"file-{n:05d}", f, manifest["format"], base_url) for n, f in enumerate(files)]


def _file_object(identifier: str, file: Mapping[str, Any], form: str, base_url: str | None) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject", "@id": identifier, "name": file["key"], "contentUrl": _address(file["key"], base_url),
        "contentSize": f"{file['bytes']} B", "encodingFormat": _ENCODING[form], "sha256": file["sha256"],
    }


def _address(key: str, base_url: str | None) -> str:
    return key if base_url is None else f"{base_url.rstrip('/')}/{quote(key)}"
