"""The item-embedding store: the one format between generators and recommenders."""

from recbole_tpad.store.comparing import compare_stores
from recbole_tpad.store.exchange import (
    export_embeddings,
    find_store,
    import_embeddings,
    store_path,
    verify_embeddings,
)
from recbole_tpad.store.item_embeddings import ItemEmbeddings, open_store
from recbole_tpad.store.manifest import Manifest
from recbole_tpad.store.search import nearest_items
from recbole_tpad.store.writing import write_store

__all__ = [
    "ItemEmbeddings",
    "Manifest",
    "compare_stores",
    "export_embeddings",
    "find_store",
    "import_embeddings",
    "nearest_items",
    "open_store",
    "store_path",
    "verify_embeddings",
    "write_store",
]
