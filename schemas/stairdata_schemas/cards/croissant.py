"""Croissant metadata (https://docs.mlcommons.org/croissant) of an artifact's layout, from its manifest and schema.

Paths in it are relative to the folder that holds it, which is the artifact's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from stairdata_schemas.aliases import Json
from stairdata_schemas.cards.card import DESCRIPTIONS
from stairdata_schemas.kinds import row_schema
from stairdata_schemas.manifest import FileEntry, Manifest

CROISSANT_NAME = "croissant.json"
CITATION = "STAIR: Improving Safety Alignment with Introspective Reasoning, https://arxiv.org/abs/2502.02384"
_TYPES: Mapping[type[pl.DataType], str] = {
    pl.String: "sc:Text",
    pl.Boolean: "sc:Boolean",
    pl.Int32: "cr:Int32",
    pl.Int64: "cr:Int64",
    pl.Float64: "cr:Float64",
    pl.Datetime: "sc:DateTime",
}
_SHARDS = {
    "@type": "cr:FileSet",
    "@id": "shards",
    "name": "shards",
    "encodingFormat": "application/x-parquet",
    "includes": "data/*.parquet",
}
_CONTEXT: Json = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataBiases": "cr:dataBiases",
    "dataCollection": "cr:dataCollection",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "personalSensitiveInformation": "cr:personalSensitiveInformation",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def croissant(manifest: Manifest, name: str, url: str, license: str | None = None) -> Json:
    """Describe an artifact's files and columns as Croissant 1.1 JSON-LD.

    Args:
        manifest: the artifact's.
        name: the dataset's name.
        url: the dataset's page.
        license: the licence it is published under.
    """
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": name,
        "description": DESCRIPTIONS[manifest.kind],
        "url": url,
        "version": manifest.version,
        "datePublished": manifest.created_at.date().isoformat(),
        "license": license or "unknown",
        "citeAs": CITATION,
        "creator": {"@type": "sc:Organization", "name": name.partition("/")[0]},
        "distribution": [*(_file(entry) for entry in manifest.files), _SHARDS],
        "recordSet": [_record_set(manifest.kind)],
    }


def _file(entry: FileEntry) -> Json:
    return {
        "@type": "cr:FileObject",
        "@id": entry.path,
        "name": entry.path.rpartition("/")[2],
        "contentUrl": entry.path,
        "contentSize": f"{entry.bytes} B",
        "encodingFormat": "application/x-parquet",
        "sha256": entry.sha256,
    }


def _record_set(kind: str) -> Json:
    schema = row_schema(kind)
    columns = {name: (column.dtype, column.description or name) for name, column in schema.columns().items()}
    return {
        "@type": "cr:RecordSet",
        "@id": kind,
        "name": kind,
        "description": DESCRIPTIONS[kind],
        "key": [{"@id": f"{kind}/{name}"} for name in schema.primary_key()],
        "field": [_field(f"{kind}/{name}", dtype, text, [name]) for name, (dtype, text) in columns.items()],
    }


def _field(identity: str, dtype: Any, description: str, path: list[str]) -> Json:
    """Describe a column; a list of structs becomes a repeated field with sub-fields, found by JSON path below it."""
    inner, shape = dtype, list[str]()
    while isinstance(inner, pl.List):
        inner, shape = inner.inner, [*shape, "-1"]
    source: Json = {"fileSet": {"@id": "shards"}, "extract": {"column": path[0]}}
    if path[1:]:
        source["transform"] = [{"jsonPath": name} for name in path[1:]]
    field: Json = {
        "@type": "cr:Field",
        "@id": identity,
        "name": identity,
        "description": description,
        **({"isArray": True, "arrayShape": ",".join(shape)} if shape else {}),
    }
    if isinstance(inner, pl.Struct):
        parts = [_field(f"{identity}/{part.name}", part.dtype, part.name, [*path, part.name]) for part in inner.fields]
        return field | {"subField": parts}
    return field | {"dataType": _TYPES[type(inner)], "source": source}
