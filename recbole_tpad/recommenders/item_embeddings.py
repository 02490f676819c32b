"""Gives a built-in RecBole model frozen item embeddings, by replacing its item table."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from recbole_tpad.errors import InputError
from recbole_tpad.recommenders.fused_tables import FUSIONS, FusedItemEmbedding, make_fused_table
from recbole_tpad.recommenders.item_features import Settings, load_item_features
from recbole_tpad.recommenders.row_smoothing import make_row_smoothing
from recbole_tpad.recommenders.sessions import training_item_counts

__all__ = ["FUSIONS", "attach_item_embeddings"]

_REMEDY = " Use a model with one item table (SASRec, GRU4Rec, …) or DIMO."
# RecBole's models that were read: one table, whatever else happens to have n_items rows.
_ONE_TABLE = {
    "BERT4Rec", "CORE", "Caser", "FDSA", "FEARec", "FOSSIL", "GCSAN", "GRU4Rec", "GRU4RecF", "HRM",
    "LightSANs", "NARM", "NextItNet", "SASRec", "SASRecF", "SHAN", "SINE", "SRGNN", "STAMP",
}  # fmt: skip
_NOT_ITEMS = ("user", "position")  # tables of these may have as many rows as there are items


def attach_item_embeddings(
    model: Any, config: Any, dataset: Any, table: str | None = None
) -> FusedItemEmbedding | None:
    """Replace a model's item table by a fused one if the configuration names a store.

    The model's ``calculate_loss``, ``predict`` and ``full_sort_predict`` then open one `step`.
    `recbole_tpad.run_recbole` does this for every model. A model of your own that shall also take
    them under RecBole's own runner sets ``takes_item_embeddings = True`` and calls
    ``attach_item_embeddings(self, config, dataset)`` as the last line of its ``__init__``.

    Args:
        model: a RecBole sequential model with one ``nn.Embedding`` for its items, of n_items rows
            or more (mask tokens), used for input and scoring alike.
        config: keys ``item_embeddings``, ``item_embeddings_modalities`` and those of
            `make_fused_table` and `make_row_smoothing`.
        dataset: RecBole's built training data set.
        table: the table's attribute; None: the model's ``item_table`` attribute, else
            ``item_embedding``, else the only embedding table of that many rows.

    Returns:
        The new module, or None where ``item_embeddings`` is null.

    Raises:
        InputError: the model's items live elsewhere too (the message says where), bad key
            values, or the store is refused (see `load_item_features`).
    """
    if config["item_embeddings"] is None:
        return None
    attached = [m for m in model.modules() if isinstance(m, FusedItemEmbedding)]
    if attached:
        return attached[0]
    n_items = int(dataset.item_num)
    path, old = _item_table(model, n_items, table)
    _refuse_other_places(model, old, n_items)
    config = Settings(config)
    features = load_item_features(config, dataset)
    if features is None:
        raise AssertionError("a named store always gives features")
    with torch.no_grad():
        rms = float(old.weight[1:n_items].pow(2).mean().sqrt())
        extra = old.weight[n_items:].detach().cpu()
    if not rms:
        raise InputError(
            f"{type(model).__name__}'s table {path} is all zero, which gives no scale for its "
            "fused table; set item_embeddings_scale."
        )
    fused = make_fused_table(config, features, old.embedding_dim, rms, extra)
    # The other fusions make an unseen item's row of its own content, which adapters carry over
    # better than similar items' rows do.
    from_start = config["item_embeddings_fusion"] == "init"
    counts = training_item_counts(dataset)
    fused.smoothing = make_row_smoothing(config, features, counts, unseen=from_start)
    fused.to(old.weight.device)
    fused.train(model.training)
    for module in list(model.modules()):
        # Under every name it has: GRU4RecCPR keeps its table a second time for its output.
        for name, child in list(module._modules.items()):
            if child is old:
                setattr(module, name, fused)
    for parameter in model._parameters.values():
        # One number an item, such as BERT4Rec's output bias.
        if parameter is not None and parameter.shape == (n_items,):
            _keep_unseen(parameter, fused.id_mask)
    model.__class__ = _stepped(model.__class__)
    return fused


@cache
def _stepped(base: type) -> type:
    """Return a subclass whose three entry points open a `step`.

    A class, not wrapped instance methods: those would belong to the original in a deep copy.
    """

    def opened(name: str) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            fused = next(m for m in self.modules() if isinstance(m, FusedItemEmbedding))
            with fused.step():
                return getattr(base, name)(self, *args, **kwargs)

        call.__name__, call.__doc__ = name, getattr(base, name).__doc__
        return call

    names = ("calculate_loss", "predict", "full_sort_predict")
    return type(
        base.__name__,
        (base,),
        {"__module__": base.__module__, "__doc__": base.__doc__, **{n: opened(n) for n in names}},
    )


def _item_table(model: Any, n_items: int, table: str | None) -> tuple[str, nn.Embedding]:
    name = type(model).__name__
    refusal = f"{name} cannot take item_embeddings: "
    wanted = table or getattr(model, "item_table", None)
    found = {
        path: module
        for path, module in model.named_modules(remove_duplicate=False)
        if _is_item_table(path, module, n_items)
    }
    if wanted is None and len(set(found.values())) == 1:
        wanted = next(iter(found))
    path = wanted or "item_embedding"
    if path in found:
        return path, found[path]
    if not found:
        raise InputError(refusal + "it has no embedding table of its items." + _REMEDY)
    listed = ", ".join(found)
    if wanted is not None:
        raise InputError(
            refusal + f"'{wanted}' is no table of {n_items} items; tables it has: {listed}."
        )
    raise InputError(refusal + f"its items live in several tables, {listed}." + _REMEDY)


def _is_item_table(path: str, module: nn.Module, n_items: int) -> bool:
    if not isinstance(module, nn.Embedding) or any(word in path for word in _NOT_ITEMS):
        return False
    # One or two tokens beside the items (mask, unknown); other tables rarely come this close.
    return n_items <= module.num_embeddings <= n_items + 2


def _refuse_other_places(model: Any, table: nn.Embedding, n_items: int) -> None:
    cls = type(model)
    if cls.__module__.startswith("recbole.model.") and cls.__name__ in _ONE_TABLE:
        return
    others = []
    for path, module in model.named_modules():
        if module is table or any(word in path for word in _NOT_ITEMS):
            continue
        is_table = _is_item_table(path, module, n_items)
        is_output = isinstance(module, nn.Linear) and module.out_features == n_items
        if is_table or (is_output and module.in_features != n_items):
            others.append(path)
    for path, parameter in model.named_parameters():
        holder = model.get_submodule(path.rpartition(".")[0])
        own = not type(holder).__module__.startswith("torch.nn.")
        if own and parameter.dim() > 1 and len(parameter) == n_items and "user" not in path:
            others.append(path)
    if others:
        raise InputError(
            f"{type(model).__name__} cannot take item_embeddings: items also live in "
            f"{', '.join(others)}, which would ignore them." + _REMEDY
        )


def _keep_unseen(bias: nn.Parameter, mask: Tensor) -> None:
    """Let no gradient push down the bias of items that never occur in training."""
    seen = mask.squeeze(1)
    bias.register_hook(lambda gradient: gradient * seen.to(gradient))
