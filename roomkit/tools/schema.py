"""``roomkit schema``: the documents of what goes over the wire."""

from __future__ import annotations

import argparse
from pathlib import Path

from roomkit.tools.console import CommandFailed, save, write

_FORMATS = ("asyncapi", "openapi", "jsonschema")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument(
        "--format",
        choices=_FORMATS,
        default="asyncapi",
        help="asyncapi: the WebSocket, AsyncAPI 3.0; openapi: the HTTP API, OpenAPI 3.1; jsonschema: every type, "
        "JSON Schema 2020-12 [default: asyncapi]",
    )
    parser.add_argument("--output", metavar="PATH", help="write to a file instead of standard output")
    parser.add_argument("--directory", metavar="DIR", help="write all of them below a directory")


def run(arguments: argparse.Namespace) -> int:
    """Print one, or write all."""
    from roomkit import schema  # takes a moment to import, and other commands do not need it

    if arguments.directory is None:
        return write(schema.to_text(schema.FORMATS[arguments.format]()), arguments.output)
    directory = Path(arguments.directory)
    documents = {"asyncapi.json": schema.asyncapi(), "openapi.json": schema.openapi()}
    documents |= {f"schemas/{name}.json": document for name, document in schema.json_schemas().items()}
    for name, document in documents.items():
        path = directory / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CommandFailed(f"cannot make {path.parent}: {error.strerror}") from None
        save(str(path), schema.to_text(document).encode())
    return 0
