"""Tables that a spreadsheet may open: CSV whose cells are never run, and Parquet with types."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from wsi_pipeline.core.csv_io import format_csv
from wsi_pipeline.store.files import write_file


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV table, whole or not at all; empty cells for None, and no cell that a spreadsheet would run."""
    write_file(path, format_csv(header, rows).encode(errors="surrogateescape"))


def write_parquet(path: Path, types: Mapping[str, type], rows: Sequence[Mapping[str, Any]]) -> None:
    """A Parquet table, whole or not at all; a column per name in `types` (str, int or float), null for None."""
    known = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    columns = {
        name: pa.array([_cast(row[name], kind) for row in rows], type=known[kind])
        for name, kind in types.items()
    }
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.Table.from_pydict(columns), sink)
    write_file(path, sink.getvalue().to_pybytes())


def _cast(value: Any, kind: type) -> Any:
    if value is None:
        return None
    # Names of files need not be text; Parquet's strings must be.
    return (
        str(value).encode(errors="surrogateescape").decode(errors="replace")
        if kind is str
        else kind(value)
    )
