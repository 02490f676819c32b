"""Read-only views of a data set folder: items, sessions, split."""

from recbole_tpad.data.atomic_folder import AtomicFolder, open_items
from recbole_tpad.data.dataset_folder import DatasetFolder
from recbole_tpad.data.item import Item

__all__ = ["AtomicFolder", "DatasetFolder", "Item", "open_items"]
