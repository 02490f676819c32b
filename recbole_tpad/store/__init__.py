"""The item-embedding store: the one format between generators and recommenders."""

from recbole_tpad.store.item_embeddings import ItemEmbeddings, open_store, write_store
from recbole_tpad.store.manifest import Manifest

__all__ = ["ItemEmbeddings", "Manifest", "open_store", "write_store"]
