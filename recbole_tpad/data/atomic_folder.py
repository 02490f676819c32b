"""A data set of plain RecBole: atomic files without our records, as far as its items go."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from recbole_tpad.data.dataset_folder import DatasetFolder
from recbole_tpad.errors import InputError

_FIELDS = ("item_id", "item_id_list")  # of sessions in RecBole's benchmark files, the second too


class AtomicFolder:
    """Items of ``<data_path>/<name>/`` where that holds RecBole's atomic files only.

    Attributes:
        path: the folder.
        name: the data set's name.
        split_fingerprint: None; RecBole splits such data by its own ``eval_args`` in every run.
    """

    split_fingerprint: str | None = None

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    @cached_property
    def item_ids(self) -> list[str]:
        """Ids that occur in interactions, sorted: items that need a vector.

        Raises:
            InputError: a file without a column ``item_id``, or a short row.
        """
        files = interaction_files(self.path, self.name)
        return sorted(set().union(*(_ids(file) for file in files)))

    @cached_property
    def other_item_ids(self) -> list[str]:
        """Ids that occur in ``<name>.item`` alone, sorted: items that may have a vector."""
        file = self.path / f"{self.name}.item"
        return sorted(_ids(file) - set(self.item_ids)) if file.is_file() else []


def interaction_files(path: Path, name: str) -> list[Path]:
    """Return ``<name>.inter`` and ``<name>.<part>.inter`` where they exist, by name."""
    return sorted(path.glob(f"{name}.inter")) + sorted(path.glob(f"{name}.*.inter"))


def open_items(data_path: str | Path, name: str) -> DatasetFolder | AtomicFolder:
    """Open a data set folder of ours, or of plain RecBole.

    Raises:
        InputError: neither is there.
    """
    path = Path(data_path) / name
    if not (path / "dataset.json").is_file() and interaction_files(path, name):
        return AtomicFolder(path, name)
    return DatasetFolder.open(data_path, name)


def _ids(file: Path) -> set[str]:
    found: set[str] = set()
    with file.open(encoding="utf-8", newline="\n") as rows:
        header = [entry.partition(":")[0] for entry in next(rows, "").rstrip("\r\n").split("\t")]
        places = [header.index(field) for field in _FIELDS if field in header]
        if not places:
            raise InputError(
                f"{file} has no column item_id (its columns: {', '.join(header)}). Name the item "
                "column item_id:token, which is RecBole's ITEM_ID_FIELD."
            )
        for number, row in enumerate(rows, start=2):
            cells = row.rstrip("\r\n").split("\t")
            if len(cells) <= max(places):
                raise InputError(f"{file}, line {number}: {len(cells)} of {len(header)} columns.")
            for place in places:
                found.update(
                    cells[place].split(" ") if header[place] == _FIELDS[1] else [cells[place]]
                )
    return found - {""}
