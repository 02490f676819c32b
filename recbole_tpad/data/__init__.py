"""Read-only views of a data set folder: items, sessions, split."""

from recbole_tpad.data.dataset_folder import DatasetFolder
from recbole_tpad.data.item import Item

__all__ = ["DatasetFolder", "Item"]
