"""A fast parser for the answers to LIST. botocore's takes 40 ms for 1,000 keys, most of the time to read a long run."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from datetime import datetime
from typing import Any
from xml.etree import ElementTree


def quicken(client: Any) -> None:
    """Make the client's `list_objects_v2` use the fast parser. Its objects have only the fields that the store needs."""
    client.meta.events.register("before-parse.s3.ListObjectsV2", _take_contents)


def _take_contents(
    response_dict: MutableMapping[str, Any], customized_response_dict: MutableMapping[str, Any], **_: object
) -> None:
    if response_dict["status_code"] != 200:
        return
    try:
        root = ElementTree.fromstring(response_dict["body"])
        space = root.tag.removesuffix("ListBucketResult")
        contents = root.findall(f"{space}Contents")
        found = [_object(item, space) for item in contents]
    except (ElementTree.ParseError, KeyError, TypeError, ValueError):
        return  # leave it to botocore, which also says what is wrong
    if found:
        for item in contents:
            root.remove(item)
        response_dict["body"] = ElementTree.tostring(root)
        customized_response_dict["Contents"] = found


def _object(item: ElementTree.Element, space: str) -> Mapping[str, Any]:
    texts = {field.tag: field.text or "" for field in item}
    return {
        "Key": texts[f"{space}Key"],
        "ETag": texts[f"{space}ETag"],
        "LastModified": datetime.fromisoformat(texts[f"{space}LastModified"]),
    }
