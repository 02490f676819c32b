"""DIMO: disentangling co-occurrence and modality effects in session recommendation (SIGIR 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional

from recbole_tpad.errors import InputError, nearest
from recbole_tpad.recommenders.adapters import FeatureAdapter, make_adapter
from recbole_tpad.recommenders.catalogue_loss import catalogue_cross_entropy
from recbole_tpad.recommenders.dimo_losses import ProxyLoss, criterion_loss
from recbole_tpad.recommenders.dimo_tables import (
    connected_tables,
    propagated_tables,
    read_tables,
)
from recbole_tpad.recommenders.fused_tables import initial_rows
from recbole_tpad.recommenders.item_features import (
    EvaluationCache,
    ItemFeatures,
    Settings,
    load_item_features,
)
from recbole_tpad.recommenders.item_graph import (
    cooccurrence_counts,
    never_together,
    partner_table,
    top_partners,
)
from recbole_tpad.recommenders.propagation import Propagation, SparseMatrix
from recbole_tpad.recommenders.row_smoothing import make_row_smoothing
from recbole_tpad.recommenders.session_attention import SessionAttention
from recbole_tpad.recommenders.sessions import training_item_counts, training_sessions
from recbole_tpad.recommenders.similar_items import SimilarItems
from recbole_tpad.recommenders.table_groups import TableGroup

VARIANTS = ("corrected", "official")
REDUCTIONS = ("sum", "mean")
UNSEEN_EDGES = ("similar", "own")


class Losses(NamedTuple):
    """The parts of DIMO's training loss, reduced but not weighted; each a scalar."""

    recommendation: Tensor
    cooccurrence: Tensor
    proxy: Tensor
    criterion: Tensor


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an item is recommended.

    Attributes:
        reason: ``bought together``: the ID view carries the score and `context_item` shares
            training sessions with the item. ``connected``: the ID view carries it, but nothing in
            the session ever shared one; `context_item` is the nearest by propagated ID rows.
            ``similar``: the modality view carries it, or training never saw the item, which has no
            ID row of its own; `context_item` is the nearest by modality.
            ``repeated``: instead of these two where the item itself is in the session, to which
            it is of course nearest; `context_item` is the item.
        context_item: RecBole id of the context item the reason refers to.
        shared_sessions: how often training sessions hold both (position pairs).
        id_share, modality_share: the two summands of the item's logit.
    """

    reason: str
    context_item: int
    shared_sessions: int
    id_share: float
    modality_share: float


class DIMO(SequentialRecommender):  # type: ignore[misc]
    """DIMO with item embeddings of any generator as its modality view.

    ``variant: corrected`` is the paper's model. ``variant: official`` repeats three defects of the
    public code for comparison: the modality table is a free, randomly initialised one (features
    are never used), the proxy loss gets its vectors in another order, and the criterion loss looks
    one item below the target (item 1: the padding row). Without ``item_embeddings`` the corrected
    model runs on its ID view alone: recommendation and co-occurrence losses, no proxies, no
    criterion.

    The paper drops items that training never saw; here they stay as candidates (``corrected``).
    Such an item is no negative of the recommendation loss and has no ID row. With item embeddings
    it co-occurs, in evaluation, as the items do that are similar to it (``unseen_edges: similar``,
    an assumption). ``own`` makes it its own neighbour; its modality row is then as long as the
    others' but, with several layers, farther from their mean, since theirs are averages.

    Training-only artefacts (graph, partners, strangers) come from the training sessions, each
    counted once however many prefix rows it has.
    """

    input_type = InputType.POINTWISE
    takes_item_embeddings = True
    unseen_rows_alike = True  # see `attach_score_adjustments`

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.variant = _choice(config, "variant", VARIANTS)
        self.reduction = _choice(config, "auxiliary_reduction", REDUCTIONS)
        self.auxiliary_weight = float(config["auxiliary_weight"])
        self.n_layers = int(config["n_layers"])
        size, n_partners = int(config["embedding_size"]), int(config["n_partners"])
        self._build_graph(config, dataset, n_partners)

        self.item_embedding = nn.Embedding(self.n_items, size, padding_idx=0)
        self.adapter: FeatureAdapter | None = None
        self.modality_embedding: nn.Embedding | None = None
        self.store_sha256: str | None = None
        features = load_item_features(config, dataset)
        if self.variant == "official":
            if features is not None:
                raise InputError(
                    "DIMO with variant 'official' ignores item_embeddings (that is its defect). "
                    "Use variant 'corrected', or leave item_embeddings out."
                )
            self.modality_embedding = nn.Embedding(self.n_items, size, padding_idx=0)
        self.table_dropout = float(config["table_dropout_prob"])
        if not 0 <= self.table_dropout < 1:
            raise InputError(f"table_dropout_prob={self.table_dropout} must be in [0, 1).")
        heads, dropout = int(config["n_heads"]), float(config["attn_dropout_prob"])
        self.id_attention = SessionAttention(size, heads, dropout)
        if features is not None:
            self._build_modality_view(Settings(config), features, size)
        counts = training_item_counts(dataset)
        self.smoothing = make_row_smoothing(Settings(config), features, counts, unseen=False)
        self.similar: SimilarItems | None = None
        unseen = np.flatnonzero(~self.trained.numpy())[1:]
        edges = _choice(config, "unseen_edges", UNSEEN_EDGES)
        if features is not None and len(unseen) and edges == "similar":
            self.similar = SimilarItems(Settings(config), features, unseen)
        self.two_views = self.adapter is not None or self.modality_embedding is not None
        if self.two_views:
            self.modality_attention = SessionAttention(size, heads, dropout)
            self.proxy_loss = ProxyLoss(size, official=self.variant == "official")
        self._initialise(size)
        self._cache = EvaluationCache()
        given = config["propagate_every"]
        every = 1 if given is None else int(given)
        if every < 1:
            raise InputError(f"propagate_every={every} must be at least 1 (a step, in batches).")
        self._group = TableGroup(every)

    def _build_graph(self, config: Any, dataset: Any, n_partners: int) -> None:
        _, sessions = training_sessions(dataset)
        counts = cooccurrence_counts(sessions, self.n_items)
        if not counts.nnz:
            raise InputError(
                "DIMO has no co-occurrence graph: no training session holds two different items. "
                "Use a data set with longer sessions, or another model."
            )
        partners = top_partners(counts, n_partners)
        rng = np.random.default_rng(int(config["seed"]))
        strangers = never_together(counts, int(config["n_strangers"]), rng)
        self.counts = counts
        trained = training_item_counts(dataset) > 0
        if self.variant == "official":
            trained[1:] = True
        unseen = ~trained
        unseen[0] = False
        own = sparse.diags_array(unseen.astype(np.float64), format="csr")
        self.propagation = Propagation((counts + own).tocsr())
        self.trained: Tensor
        self.register_buffer("trained", torch.from_numpy(trained), persistent=False)
        # Added to the logits in training: the padding id and unseen items are no negatives.
        excluded = torch.zeros(self.n_items).masked_fill(~torch.from_numpy(trained), float("-inf"))
        excluded[0] = float("-inf")
        self.excluded: Tensor
        self.register_buffer("excluded", excluded, persistent=False)
        self.partners = SparseMatrix(partners)
        self.strangers = SparseMatrix(strangers)
        table = torch.from_numpy(partner_table(partners, n_partners))
        self.partner_table: Tensor
        self.register_buffer("partner_table", table, persistent=False)

    def _build_modality_view(self, config: Any, features: ItemFeatures, size: int) -> None:
        fusion, rms = str(config["item_embeddings_fusion"]), (3 * size) ** -0.5
        if fusion == "init":
            if config["adapter"] is not None:
                raise InputError("item_embeddings_fusion 'init' has no adapter; leave it out.")
            rows = initial_rows(features, size, rms)
            self.modality_embedding = nn.Embedding.from_pretrained(rows, False, padding_idx=0)
            self.store_sha256 = features.sha256
            return
        if fusion != "add":
            raise InputError(
                f"DIMO adds its ID and modality views itself, item_embeddings_fusion '{fusion}' "
                "would be ignored. Known for DIMO: add, init."
            )
        self.adapter = make_adapter(config, features, size)
        if config["adapter"] not in (None, "mlp"):
            self.adapter.rescale(rms)

    def _initialise(self, size: int) -> None:
        # U(−1/√d, 1/√d) for every weight, the usual choice of session models (assumption).
        bound = size**-0.5
        from_features = ["adapter."] + (["modality_embedding."] if self.store_sha256 else [])
        for name, parameter in self.named_parameters():
            if not name.startswith(tuple(from_features)):
                nn.init.uniform_(parameter, -bound, bound)
        for embedding in (self.item_embedding, self.modality_embedding):
            if embedding is not None:
                with torch.no_grad():
                    embedding.weight[0].zero_()

    # -- tables ----------------------------------------------------------------------------------

    def modality_table(self) -> Tensor | None:
        """Return M before propagation, shape (n_items, d), or None without a modality view."""
        if self.modality_embedding is not None:
            return self.modality_embedding.weight
        return None if self.adapter is None else self.adapter()

    def tables(self) -> Tensor:
        """Return the propagated tables [E' ‖ M'] (E' alone with one view), (n_items, d or 2d).

        In evaluation they are computed once and kept until a parameter changes.
        """
        parameters: list[Tensor] = list(self.parameters())
        if self.smoothing is not None:
            parameters.append(self.smoothing.strength)
        if not self.training and not torch.is_grad_enabled():
            kept = self._cache.get(parameters)
            if kept is not None:
                return kept  # type: ignore[no-any-return]
        own, modality, layers = self.item_embedding.weight, self.modality_table(), self.n_layers
        if self.similar is None or self.training or modality is None:
            dropout = self.table_dropout if self.training else 0.0
            table = propagated_tables(
                own, modality, self.trained, dropout, self.propagation, layers
            )
        else:
            table = connected_tables(
                own, modality, self.trained, self.propagation, layers, self.similar
            )
        if self.smoothing is not None and not self.training:
            table = self.smoothing(table, views=2)
        if not self.training and not torch.is_grad_enabled():
            self._cache.put(parameters, table)
        return table

    def item_views(self) -> tuple[Tensor, Tensor] | None:
        """Return E' and M', both (n_items, d): an item as ID and as content; None with one view."""
        if not self.two_views:
            return None
        own, modality = self.tables().chunk(2, dim=1)
        return own, modality

    @property
    def resumable(self) -> bool:
        """Whether the weights are all there is: no batch waits for others (`propagate_every`)."""
        return self._group.complete

    def train(self, mode: bool = True) -> DIMO:
        """Switch between training and evaluation; training forgets the kept tables."""
        if mode:
            self._cache.clear()
            self._group.clear()
        super().train(mode)
        return self

    # -- sessions --------------------------------------------------------------------------------

    def session_vectors(
        self, rows: Tensor, item_seq: Tensor, lengths: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return session vectors s and proxies p of each view, every one (B, d).

        Args:
            rows: rows of `item_seq` in the propagated tables, (B, L, d or 2d).
            item_seq: right-padded item ids, (B, L).
            lengths: number of real positions, (B,).
        """
        mask = item_seq != 0
        # The last row and the mean of all rows, in one product for both views.
        picked = rows.new_zeros(len(rows), 2, rows.shape[1])
        picked[:, 0].scatter_(1, (lengths - 1).clamp(min=0).unsqueeze(1), 1.0)
        torch.div(mask, lengths.clamp(min=1).unsqueeze(1), out=picked[:, 1])
        final, mean = (picked @ rows).unbind(dim=1)
        count = 2 if self.two_views else 1
        attentions = [self.id_attention] + ([self.modality_attention] if self.two_views else [])
        views = zip(attentions, rows.chunk(count, dim=2), final.chunk(count, dim=1), strict=True)
        sessions = [attention(view, mask, last) for attention, view, last in views]
        return sessions, list(mean.chunk(count, dim=1))

    def losses(self, interaction: Any) -> Losses:
        """Return the four parts of the training loss for a batch."""
        item_seq, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        target = interaction[self.POS_ITEM_ID]
        shown = target - 1 if self.variant == "official" else target
        reads = read_tables(
            self._group.next_table(self.tables) if self.training else self.tables(),
            torch.cat([item_seq.flatten(), shown]),
            self.item_embedding.embedding_dim,
            self.partners,
            self.strangers,
        )
        context = reads.rows[: item_seq.numel()].view(*item_seq.shape, -1)
        sessions, proxies = self.session_vectors(context, item_seq, lengths)
        recommendation = catalogue_cross_entropy(
            torch.cat(sessions, dim=1), reads.table, self.excluded, target
        )
        together = self._reduce(reads.cooccurrence[self.partners.nonempty])
        zero = recommendation.new_zeros(())
        if not self.two_views:
            return Losses(recommendation, together, zero, zero)
        proxy = self.proxy_loss(sessions[0], sessions[1], proxies[0], proxies[1])
        flag = (self.partner_table[item_seq] == target[:, None, None]).any(dim=2).any(dim=1)
        of_target = reads.rows[item_seq.numel() :].chunk(2, dim=1)
        criterion = criterion_loss(sessions[0], sessions[1], of_target[0], of_target[1], flag)
        return Losses(recommendation, together, self._reduce(proxy), self._reduce(criterion))

    def _reduce(self, losses: Tensor) -> Tensor:
        if self.reduction == "sum" or losses.numel() == 0:
            return losses.sum()
        return losses.mean()

    # -- RecBole's interface ---------------------------------------------------------------------

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Return CE + λ (L_co + L_pro + L_cri), a scalar."""
        parts = self.losses(interaction)
        auxiliary = parts.cooccurrence + parts.proxy + parts.criterion
        return parts.recommendation + self.auxiliary_weight * auxiliary

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Return every item's score, shape (B, n_items); the padding id scores −inf."""
        table = self.tables()
        item_seq, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        sessions, _ = self.session_vectors(table[item_seq], item_seq, lengths)
        scores = torch.cat(sessions, dim=1) @ table.t()
        scores[:, 0] = float("-inf")
        return scores

    def predict(self, interaction: Any) -> Tensor:
        """Return the scores of the batch's own items, shape (B,)."""
        table = self.tables()
        item_seq, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        sessions, _ = self.session_vectors(table[item_seq], item_seq, lengths)
        return (torch.cat(sessions, dim=1) * table[interaction[self.ITEM_ID]]).sum(dim=1)

    @torch.no_grad()
    def explain(self, item_seq: Tensor, lengths: Tensor, items: Tensor) -> list[Explanation]:
        """Say for each session's recommended item which view carries it (needs two views).

        The view with the larger summand of the logit decides. "Bought together" names the context
        item with the most shared training sessions, "similar" the context item nearest by
        modality (assumption). Where the ID view decides without any shared session, saying
        "bought together" would be untrue: the propagated ID rows carry it ("connected"). An item
        that is in the session is nearest to itself, which explains nothing ("repeated").

        Args:
            item_seq: right-padded context, (B, L).
            lengths: real positions, (B,).
            items: recommended items, (B,).

        Raises:
            InputError: the model has no modality view.
        """
        if not self.two_views:
            raise InputError("DIMO explains by comparing two views: give it item_embeddings.")
        table = self.tables()
        sessions, _ = self.session_vectors(table[item_seq], item_seq, lengths)
        views = table.chunk(2, dim=1)
        shares = [(s * t[items]).sum(dim=1) for s, t in zip(sessions, views, strict=True)]
        found = []
        for b, item in enumerate(items.tolist()):
            context = item_seq[b, : int(lengths[b])]
            met = np.asarray(self.counts[item, context.cpu().numpy()].todense()).ravel()
            id_share, modality_share = float(shares[0][b]), float(shares[1][b])
            by_id = id_share > modality_share and bool(self.trained[item])
            if by_id and met.any():
                best, reason = int(met.argmax()), "bought together"
            elif bool((context == item).any()):
                best, reason = int((context == item).int().argmax()), "repeated"
            else:
                view, reason = (views[0], "connected") if by_id else (views[1], "similar")
                near = functional.cosine_similarity(view[context], view[item][None])
                best = int(near.argmax())
            found.append(
                Explanation(reason, int(context[best]), int(met[best]), id_share, modality_share)
            )
        return found


def _choice(config: Any, key: str, known: tuple[str, ...]) -> str:
    value = config[key]
    if value not in known:
        raise InputError(
            f"DIMO: {key}='{value}' is unknown.{nearest(str(value), known)} "
            f"Known: {', '.join(known)}."
        )
    return str(value)
