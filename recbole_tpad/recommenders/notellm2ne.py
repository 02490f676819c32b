"""NoteLLM2-NE: NoteLLM-2 encodes the session at every request (our reading of the name)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from recbole_tpad.data import DatasetFolder, Item
from recbole_tpad.errors import InputError
from recbole_tpad.generators.base import RunRecord
from recbole_tpad.generators.notellm2 import NoteLlm2Generator
from recbole_tpad.generators.registry import make_generator
from recbole_tpad.recommenders.item_features import load_item_features
from recbole_tpad.recommenders.untrained import UntrainedRecommender
from recbole_tpad.stages.compression import compressed
from recbole_tpad.store import find_store

_BATCH = 32  # sessions encoded at a time


class NoteLLM2NE(UntrainedRecommender):
    """Scores by the cosine between a session's vector and the items' vectors of NoteLLM-2.

    The paper names NoteLLM2-NE in its table of costs and does not define it. Here (assumption): the
    session's last items become one prompt of the trained encoder, most recent first, with the last
    item's image; its e_m is the session's vector. Nothing is trained in the recommender.

    ``item_embeddings`` is a store of the generator `notellm2`; the encoder that made it is read
    back from the data set folder.
    """

    takes_item_embeddings = True

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        features = load_item_features(config, dataset)
        if features is None:
            raise InputError(
                "NoteLLM2NE needs item_embeddings made by the generator notellm2: it encodes the "
                "session with the model that made them."
            )
        self.session_items = int(config["session_items"])
        if self.session_items < 1:
            raise InputError(f"session_items={self.session_items} must be at least 1.")
        path = Path(config["data_path"])
        folder = DatasetFolder.open(path.parent, path.name)
        self.generator, self.encoder = _restore(config, folder)
        prompts: Any = self.encoder.backbone.prompts
        prompts.max_text_tokens *= self.session_items
        row_of = {item_id: row for row, item_id in enumerate(folder.item_ids)}
        tokens = [str(t) for t in dataset.field2id_token[dataset.iid_field]]
        self._row = [-1] + [row_of[token] for token in tokens[1:]]
        self._items = self.encoder.inputs.items
        table = functional.normalize(torch.from_numpy(features.rows), dim=1)
        self.table: Tensor
        self.register_buffer("table", table, persistent=False)

    def session_vectors(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """Encode sessions, (B, L) and (B,), to (B, dimension)."""
        rows = [
            [self._row[i] for i in session[:length]][-self.session_items :]
            for session, length in zip(item_seq.tolist(), lengths.tolist(), strict=True)
        ]
        parts = [self._encode(rows[s : s + _BATCH]) for s in range(0, len(rows), _BATCH)]
        return torch.cat(parts)

    @torch.no_grad()
    def _encode(self, sessions: list[list[int]]) -> Tensor:
        device = self.generator.device
        backbone = self.encoder.backbone
        inputs = backbone.inputs([self._as_item(rows) for rows in sessions], device)
        inputs.freeze()
        states = backbone.encode(inputs.batch(torch.arange(len(sessions)))).summaries
        last = torch.tensor([rows[-1] for rows in sessions])
        images = self.encoder.images.of(last, device)
        return compressed(states, self.encoder.fusion, *images)["multimodal"]

    def _as_item(self, rows: list[int]) -> Item:
        """A session as one item: its texts, most recent first, and the last item's image."""
        shown = [self._items[row] for row in reversed(rows)]
        texts = {
            name: "; ".join(getattr(item, name) for item in shown if getattr(item, name))
            for name in ("title", "brand", "description")
        }
        session: Item = dataclasses.replace(shown[0], **texts)
        return session

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Return every item's score, (B, n_items); the padding id scores −inf."""
        vectors = self.session_vectors(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        scores = functional.normalize(vectors, dim=1).to(self.table) @ self.table.T
        scores[:, 0] = float("-inf")
        return scores


def _restore(config: Any, folder: DatasetFolder) -> tuple[NoteLlm2Generator, Any]:
    """The generator that made the store, and its trained encoder.

    Raises:
        InputError: another generator, other settings than the store's, or no trained stage.
    """
    name = str(config["item_embeddings"])
    store = find_store(folder.path, name)
    preset = str(config["encoder"] or store.manifest.generator)
    generator = make_generator(preset, dict(config["encoder_settings"] or {}))
    if not isinstance(generator, NoteLlm2Generator):
        raise InputError(
            f"NoteLLM2NE: item embeddings '{name}' are by '{preset}', which is not NoteLLM-2."
        )
    fingerprints = generator.fingerprint(folder)
    known = store.manifest.inputs
    differing = sorted(k for k in fingerprints if known.get(k) != fingerprints[k])
    if differing:
        raise InputError(
            f"NoteLLM2NE: item embeddings '{name}' were made with other settings than "
            f"'{preset}' has now ({', '.join(differing)} differ). Give those they were made with "
            "as encoder and encoder_settings, or embed again."
        )
    if "multimodal" not in store.manifest.modalities or len(store.manifest.modalities) != 1:
        raise InputError(
            f"NoteLLM2NE: item embeddings '{name}' must hold 'multimodal' and nothing else; "
            "embed with --export=[multimodal]."
        )
    generator.device = torch.device(config["device"])
    work = folder.path / "stages"
    restored = generator.restore(folder, work, RunRecord(), fingerprints, train=False)
    restored.backbone.requires_grad_(False)
    return generator, restored
