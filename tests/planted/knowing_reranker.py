"""A small Qwen2-VL that knows what follows what in the made shop, for listwise re-ranking.

A pretrained language model brings its knowledge with it. This one is taught: shown an item and some
candidates under letters, say the letter of the one whose style follows the item's. It learns the
shop's rule, on items drawn at random, and sees no session.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import numpy as np
import tiny_native
import torch
from torch.nn import functional
from transformers import Qwen2VLForConditionalGeneration

from recbole_tpad.backbones.listwise import ListwiseReader, ListwiseTemplate, letter_tokens
from recbole_tpad.backbones.loading import load_native
from recbole_tpad.backbones.prompts import Prompt, collate
from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.data import Item

CANDIDATES = 5
WIDTH = 64
PROMPT = {"start": "Seen:\n", "item": "{title}", "candidates": "Next:\n", "end": "Answer: "}
BACKBONE = {"dtype": "float32", "lora": {"rank": 2}}
BATCH = 64
MOST_STEPS = 4000
RIGHT = 0.85  # of the answers so far, before one more candidate is shown, and at the end


def write_knowing_reranker(folder: Path, items: list[Item], follows: Mapping[str, str]) -> Path:
    """Write and teach the model.

    Args:
        folder: written.
        items: the shop's; a title begins with its style.
        follows: style → the style that follows it.
    """
    rope = mock.patch.dict(tiny_native.ROPE, mrope_section=[4, 2, 2])
    shape = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "initializer_range": 0.05}
    with rope, mock.patch.dict(tiny_native.LANGUAGE, shape):
        tiny_native.write_native(folder, "qwen2_vl", items)
    backbone = load_native(BackboneSettings(kind="native", model=str(folder), **BACKBONE))  # type: ignore[arg-type]
    reader = ListwiseReader(
        backbone,
        items,
        ListwiseTemplate(**PROMPT),
        max_text_tokens=20,
        images="none",
        device=torch.device("cpu"),
    )
    style = np.array([item.title.split()[0] for item in items])
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    letters = torch.tensor(letter_tokens(backbone.tokenizer, CANDIDATES))
    taught = [p for n, p in model.named_parameters() if "visual" not in n]
    optimiser = torch.optim.AdamW(taught, lr=1e-3, weight_decay=0.01)
    rng = np.random.default_rng(0)

    def lesson(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, count) of the candidates' letters, and which is right."""
        prompts, right = [], rng.integers(count, size=BATCH)
        for place in right:
            seen = int(rng.integers(len(items)))
            fits = style == follows[style[seen]]
            shown = rng.choice(np.flatnonzero(~fits), size=count, replace=False)
            shown[place] = rng.choice(np.flatnonzero(fits))
            ids, _ = reader.prompt([seen], shown.tolist())
            prompts.append(Prompt(ids, [], asks=False))
        batch = collate(prompts)
        states = model.model(
            input_ids=batch.ids, attention_mask=batch.mask, use_cache=False
        ).last_hidden_state
        last = states[torch.arange(BATCH), batch.mask.sum(1) - 1]
        return model.get_output_embeddings()(last)[:, letters[:count]], torch.from_numpy(right)

    count, share = 2, 0.0  # two candidates first: with five from the start nothing is learned
    for step in range(MOST_STEPS):
        optimiser.param_groups[0]["lr"] = 1e-3 * min(1.0, (step + 1) / 100)
        logits, right = lesson(count)
        functional.cross_entropy(logits, right).backward()
        torch.nn.utils.clip_grad_norm_(taught, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        share = 0.95 * share + 0.05 * float((logits.argmax(1) == right).float().mean())
        if share > RIGHT and count == CANDIDATES:
            model.save_pretrained(folder)
            return folder
        if share > RIGHT:
            count, share = count + 1, 0.0
    raise AssertionError(f"not learned: {share:.2f} right of {count} candidates")
