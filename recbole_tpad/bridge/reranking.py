"""Listwise re-ranking of a base model's top K: a stage after ranking, not an item embedding."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from recbole_tpad.backbones.checkpoints import resolve
from recbole_tpad.backbones.listwise import ListwiseReader, ListwiseTemplate, letter_tokens
from recbole_tpad.backbones.loading import load_native, load_tokenizer
from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.bridge.batches import list_field, shuffled, trimmed
from recbole_tpad.bridge.ranking import Ranking, metrics_at, target_ranks
from recbole_tpad.bridge.scoring import evaluation_batches, request_milliseconds, scores_of
from recbole_tpad.data import DatasetFolder, Item
from recbole_tpad.errors import InputError, nearest
from recbole_tpad.presets import preset_values
from recbole_tpad.progress import progress
from recbole_tpad.settings import at_least, from_mapping

IMAGES = ("none", "candidates", "all")
_BASE_REQUESTS = 50  # timed alone, to tell the base model's share of a request
# Item rows of the session so far and of the candidates, best first → one logit a candidate.
Scorer = Callable[[Sequence[int], Sequence[int]], torch.Tensor]


@dataclass(frozen=True, slots=True)
class RerankSettings:
    """The key ``rerank`` of a run, and ``properties/rerank/*.yaml``.

    Attributes:
        backbone: of kind 'native'.
        top_k: candidates a request.
        history: most recent items of the session in the prompt.
        images: which items of the prompt come with their images: none, candidates, all.
        sessions: test sessions that are ranked at all, evenly spread; 0: all of them.
        prompt: see `ListwiseTemplate`.
    """

    backbone: BackboneSettings
    top_k: int = 20
    history: int = 10
    images: str = "all"
    sessions: int = 0
    prompt: ListwiseTemplate = field(default_factory=ListwiseTemplate)

    def __post_init__(self) -> None:
        at_least("rerank", 2, top_k=self.top_k)
        at_least("rerank", 1, history=self.history)
        at_least("rerank", 0, sessions=self.sessions)
        if self.images not in IMAGES:
            raise InputError(
                f"rerank: unknown images '{self.images}'.{nearest(self.images, IMAGES)} "
                f"Known: {', '.join(IMAGES)}."
            )
        if self.backbone.kind != "native":
            raise InputError(
                f"rerank: the backbone is of kind '{self.backbone.kind}'; re-ranking reads the "
                "logits of a model of kind 'native'."
            )


@dataclass(frozen=True, slots=True)
class Reranked:
    """A re-ranked evaluation part.

    Attributes:
        ranking: of the re-ranked rows.
        base_ranks: their targets' ranks before.
        recall_ceiling: share of rows whose target is among the candidates: no re-ranker reaches
            more.
        latency_ms: median time to re-rank one request; the first does not count.
    """

    ranking: Ranking
    base_ranks: npt.NDArray[np.int64]
    recall_ceiling: float
    latency_ms: float

    def summary(
        self, settings: RerankSettings, base_ms: float | None, one_time: float, topk: Sequence[int]
    ) -> dict[str, Any]:
        """What a row of results says of it."""
        return {
            "top_k": settings.top_k,
            "images": settings.images,
            "sessions": len(self.base_ranks),
            "recall_ceiling": self.recall_ceiling,
            "base_metrics": metrics_at(self.base_ranks, topk),
            "base_latency_ms": base_ms,
            "rerank_latency_ms": self.latency_ms,
            "one_time_seconds": one_time,
        }


def rerank_settings(config: Any) -> RerankSettings:
    """Read the key ``rerank``: a preset's name, a YAML file, or a mapping of settings with
    the key ``preset``.

    Raises:
        InputError: an unknown preset or key, or a value of the wrong type.
    """
    value = config["rerank"]
    if not isinstance(value, str | Mapping):
        raise InputError(f"rerank is a preset, a YAML file or a mapping, not {value!r}.")
    values = preset_values("rerank", value)
    return from_mapping(RerankSettings, values, "rerank")


def check_rerank(config: Any, dataset: Any) -> RerankSettings:
    """Refuse a re-ranking that cannot be done, before anything is trained.

    Args:
        config: with the key ``rerank``.
        dataset: RecBole's, for the number of items.

    Raises:
        InputError: see `rerank_settings`; a top K beyond the catalogue or the letters; a data set
            without item content; images where there are none; a tokenizer without the letters.
    """
    settings = rerank_settings(config)
    candidates = dataset.item_num - 1
    if settings.top_k > candidates:
        raise InputError(
            f"rerank: top_k is {settings.top_k} and the catalogue has {candidates} items. "
            "Lower top_k."
        )
    if not config.data_set_is_ours:
        raise InputError(
            "rerank needs the items' texts and images: a data set folder made by 'recbole-tpad "
            "convert', not plain atomic files."
        )
    items = _items(config)
    if settings.images != "none" and not any(i.image and i.image.is_file() for i in items):
        raise InputError(
            f"rerank: images is '{settings.images}', and no item of the data set has an image. "
            "Set images to none."
        )
    if not any(i.title for i in items):
        raise InputError("rerank: no item of the data set has a title; there is nothing to read.")
    own = settings.backbone
    letter_tokens(load_tokenizer(resolve(own.model, own.model_revision)), settings.top_k)
    return settings


def load_reranker(
    settings: RerankSettings, config: Any, dataset: Any
) -> tuple[ListwiseReader, dict[int, int], float]:
    """Load the re-ranker and read every image it may show.

    Returns:
        The scorer, RecBole's item id → item row, and the seconds this took.
    """
    started = time.perf_counter()
    items = _items(config)
    rows = {item.item_id: row for row, item in enumerate(items)}
    tokens = dataset.field2id_token[dataset.iid_field]
    row_of = {k: rows[str(token)] for k, token in enumerate(tokens) if k > 0}
    backbone = load_native(settings.backbone).to(config["device"]).eval()
    reader = ListwiseReader(
        backbone,
        items,
        settings.prompt,
        max_text_tokens=settings.backbone.max_text_tokens,
        images=settings.images,
        device=torch.device(config["device"]),
    )
    if settings.images != "none":
        reader.images.compute_all()
    return reader, row_of, time.perf_counter() - started


@torch.no_grad()
def rerank_part(
    model: Any,
    config: Any,
    eval_data: Any,
    scorer: Scorer,
    row_of: Mapping[int, int],
    settings: RerankSettings,
) -> Reranked:
    """Re-order each row's best K items by the scorer's logits.

    Equal logits keep the base model's order; a target outside the candidates keeps its rank.

    Args:
        model: the trained base model.
        config: as for `rank_part`.
        eval_data: RecBole's full-ranking loader.
        scorer: logits of the candidates.
        row_of: RecBole's item id → item row of the scorer.
        settings: top K, history, sessions.
    """
    model.eval()
    device = config["device"]
    dataset = eval_data._dataset
    total = len(dataset.inter_feat)
    order = np.arange(total)
    if 0 < settings.sessions < total:
        order = np.unique(np.linspace(0, total - 1, settings.sessions).astype(np.int64))
    base = np.zeros(len(order), dtype=np.int64)
    ranks = np.zeros(len(order), dtype=np.int64)
    times: list[float] = []
    shuffle = torch.Generator().manual_seed(int(config["seed"]))
    place = 0
    bar = progress(
        total=len(order), desc="Re-ranking", wanted=bool(config["show_progress"]), delay=0
    )
    for rows in evaluation_batches(config, order, dataset.item_num):
        interaction = trimmed(config, eval_data.collate_fn(rows)[0].to(device))
        if config["shuffle_history"]:
            interaction = shuffled(config, interaction, shuffle)
        scores = scores_of(model, config, interaction, dataset.item_num)
        seen = interaction[list_field(config)]
        targets = interaction[config["ITEM_ID_FIELD"]]
        found, _ = target_ranks(scores, targets, seen if config["mask_history"] else None)
        best = torch.sort(scores, dim=1, descending=True, stable=True)
        top = best.indices[:, : settings.top_k].cpu()
        real = torch.isfinite(best.values[:, : settings.top_k]).cpu()
        lengths = interaction[config["ITEM_LIST_LENGTH_FIELD"]].tolist()
        for k, target in enumerate(targets.tolist()):
            context = seen[k, : lengths[k]].tolist()[-settings.history :]
            candidates = top[k][real[k]].tolist()
            started = time.perf_counter()
            logits = scorer([row_of[i] for i in context], [row_of[i] for i in candidates])
            times.append(time.perf_counter() - started)
            ranks[place], base[place] = _new_rank(candidates, logits, target, int(found[k]))
            place += 1
            bar.update()
    bar.close()
    inside = [int(rank) <= settings.top_k for rank in base]
    return Reranked(
        Ranking(
            ranks,
            dataset.inter_feat[dataset.iid_field].numpy()[order],
            dataset.inter_feat[dataset.uid_field].numpy()[order],
        ),
        base,
        float(np.mean(inside)) if inside else 0.0,
        1000 * statistics.median(times[1:] or times or [0.0]),
    )


def _new_rank(
    candidates: list[int], logits: torch.Tensor, target: int, base: int
) -> tuple[int, int]:
    """The target's rank after and before."""
    if len(logits) != len(candidates):
        raise InputError(f"The re-ranker gave {len(logits)} logits for {len(candidates)} items.")
    if not bool(torch.isfinite(logits).all()):
        raise InputError("The re-ranker's logits are NaN or infinite; take another dtype.")
    if target not in candidates:
        return base, base
    order = torch.argsort(logits, descending=True, stable=True).tolist()
    return order.index(candidates.index(target)) + 1, base


def rerank_run(
    settings: RerankSettings, model: Any, config: Any, loaders: Any, topk: Sequence[int]
) -> tuple[Ranking, float, dict[str, Any]]:
    """Load the re-ranker, re-rank the test part, and time requests.

    Returns:
        The ranking, milliseconds a request (base model and re-ranker), and the row's account.
    """
    reader, row_of, one_time = load_reranker(settings, config, loaders.train._dataset)
    done = rerank_part(model, config, loaders.test, reader, row_of, settings)
    base_ms = request_milliseconds(model, config, config["device"], loaders.test, _BASE_REQUESTS)
    account = done.summary(settings, base_ms, one_time, topk)
    account["backbone"] = Path(settings.backbone.model).name
    return done.ranking, done.latency_ms + (base_ms or 0.0), account


def _items(config: Any) -> list[Item]:
    folder = Path(config["data_path"])
    items = DatasetFolder.open(folder.parent, folder.name).items
    return [
        dataclasses.replace(i, image=None) if i.image and not i.image.is_file() else i
        for i in items
    ]
