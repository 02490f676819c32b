"""Suites: reading, expanding, refusing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from recbole_tpad.bridge.models import OUR_MODELS, SEVERAL_TABLES, known_models, model_class
from recbole_tpad.errors import InputError
from recbole_tpad.evaluation.suite import WITHOUT_EMBEDDINGS, Suite, expand, read_suite
from recbole_tpad.generators.registry import make_generator
from recbole_tpad.presets import preset_names


@pytest.mark.parametrize("name", preset_names("evaluation"))
def test_presets_are_readable(name: str) -> None:
    suite = read_suite(name)
    assert "DIMO" in suite.models
    runs = expand(suite)
    assert len({(r.row_model, r.item_embeddings, r.seed) for r in runs}) == len(runs)
    assert set(suite.models) <= set(known_models())
    for preset in (suite.generators or {}).values():
        settings = {key: value for key, value in preset.items() if key != "generator"}
        assert make_generator(preset["generator"], settings)


def test_presets_are_those_the_docs_name() -> None:
    suites = {"ablation", "cold-start", "demo", "efficiency", "paper", "sanity", "small", "system"}
    suites |= {"comparison", "efficiency-llm", "efficiency-tiny"}
    assert set(preset_names("evaluation")) == suites


def test_models_without_embeddings_are_those_that_take_none() -> None:
    takes = {m for m in OUR_MODELS if getattr(model_class(m), "takes_item_embeddings", False)}
    assert set(OUR_MODELS) - takes == WITHOUT_EMBEDDINGS


def test_expansion_drops_impossible_pairs_and_merges_configs() -> None:
    suite = read_suite(
        {
            "models": ["SASRec", "Popularity"],
            "item_embeddings": [None, "tiny"],
            "seeds": [4, 7],
            "config": {"epochs": 3, "learning_rate": 0.1},
            "model_config": {"SASRec": {"epochs": 5}},
        }
    )
    runs = expand(suite, {"learning_rate": 0.2})
    assert [(r.model, r.item_embeddings, r.seed) for r in runs] == [
        ("SASRec", None, 4),
        ("SASRec", None, 7),
        ("SASRec", "tiny", 4),
        ("SASRec", "tiny", 7),
        ("Popularity", None, 4),
        ("Popularity", None, 7),
    ]
    assert runs[2].config == {
        "epochs": 5,
        "learning_rate": 0.2,
        "model": "SASRec",
        "seed": 4,
        "item_embeddings": "tiny",
    }
    assert runs[4].config["epochs"] == 3


def test_variants_are_further_rows() -> None:
    suite = read_suite(
        {
            "models": ["SASRec", "DIMO"],
            "item_embeddings": ["none", "a+b"],
            "seeds": [1],
            "config": {"epochs": 3, "learning_rate": 0.1},
            "model_config": {"SASRec": {"epochs": 5}},
            "variants": {
                "shuffled history": {
                    "models": ["SASRec"],
                    "config": {"shuffle_history": True, "epochs": 7},
                },
                "replace": {
                    "item_embeddings": "c",
                    "config": {"item_embeddings_fusion": "replace"},
                },
            },
        }
    )
    assert suite.stores() == ["a", "b", "c"]
    runs = expand(suite, {"learning_rate": 0.2})
    assert [(r.row_model, r.model, r.item_embeddings) for r in runs] == [
        ("SASRec", "SASRec", None),
        ("SASRec", "SASRec", "a+b"),
        ("DIMO", "DIMO", None),
        ("DIMO", "DIMO", "a+b"),
        ("SASRec, shuffled history", "SASRec", None),
        ("SASRec, shuffled history", "SASRec", "a+b"),
        ("SASRec, replace", "SASRec", "c"),
        ("DIMO, replace", "DIMO", "c"),
    ]
    assert runs[4].config["shuffle_history"] is True
    assert (runs[4].config["epochs"], runs[4].config["learning_rate"]) == (7, 0.2)
    assert "shuffle_history" not in runs[0].config


def test_the_reference_may_occur_in_variants_only() -> None:
    variant = {"item_embeddings": ["a", "b"], "config": {"embedding_kernel": True}}
    suite = read_suite({"models": ["SASRec"], "variants": {"kernel": variant}, "reference": "b"})
    assert suite.reference == "b"


def test_models_with_several_tables_are_refused_with_embeddings() -> None:
    docs = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text()
    refused = {
        line.split(" | ")[0].lstrip("| ")
        for line in docs.splitlines()
        if re.search(r"\| no: (items also live|its items live in several)", line)
    }
    assert refused == SEVERAL_TABLES
    suite = read_suite({"models": ["SASRec", "FPMC"], "item_embeddings": ["none", "tiny"]})
    with pytest.raises(InputError, match="FPMC cannot take the item embeddings 'tiny'"):
        expand(suite)
    assert expand(read_suite({"models": ["FPMC"]}))


def test_seeds_may_be_replaced() -> None:
    assert read_suite("demo", 2).seeds == (1, 2)
    assert read_suite("demo", [9]).seeds == (9,)


def test_a_yaml_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("models: SASRec\nitem_embeddings: [none, a]\nseeds: 1\n")
    suite = read_suite(str(file))
    assert (suite.name, suite.models, suite.item_embeddings) == (
        "mine.yaml",
        ("SASRec",),
        (None, "a"),
    )


@pytest.mark.parametrize(
    ("suite", "complaint"),
    [
        ({"model": ["SASRec"]}, "unknown key 'model'. Did you mean 'models'?"),
        ({}, "'models' must be a list"),
        ({"models": []}, "'models' must be a list"),
        ({"models": [3]}, "holds 3"),
        ({"models": ["A", "A"]}, "names 'A' twice"),
        ({"models": ["A"], "item_embeddings": ["none", None]}, "names 'none' twice"),
        ({"models": ["A"], "seeds": 0}, "'seeds'"),
        ({"models": ["A"], "seeds": [1, 1]}, "'seeds'"),
        ({"models": ["A"], "seeds": True}, "'seeds'"),
        ({"models": ["A"], "config": [1]}, "'config' must hold"),
        ({"models": ["A"], "config": {"seed": 1}}, "sets 'seed'"),
        ({"models": ["SASRec"], "model_config": {"SASREC": {}}}, "Did you mean 'SASRec'?"),
        ({"models": ["A"], "model_config": {"A": {"model": "B"}}}, "sets 'model'"),
        ("dmeo", "Did you mean 'demo'?"),
        ({"models": ["A"], "model_config": {"A": {"mask_history": True}}}, "different protocols"),
        ({"models": ["A"], "variants": {"x": {}}}, "'variants.x' has no 'config'"),
        ({"models": ["A"], "variants": {"x": {"confg": {}}}}, "Did you mean 'config'?"),
        (
            {"models": ["SASRec"], "variants": {"x": {"models": "SASREC", "config": {"a": 1}}}},
            "Did you mean 'SASRec'?",
        ),
        ({"models": ["A"], "variants": {"x": {"config": {"topk": [3]}}}}, "different protocols"),
        (
            {"models": ["A"], "item_embeddings": ["none", "full"], "reference": "ful"},
            "must be one of its item_embeddings (full), not 'ful'. Did you mean 'full'?",
        ),
        ({"models": ["A"], "reference": "none"}, "(it has none), not 'none'"),
        ({"models": ["A"], "generators": {"x": {"seed": 3}}}, "must name its 'generator'"),
    ],
)
def test_bad_suites_are_refused_with_a_remedy(suite: Any, complaint: str) -> None:
    with pytest.raises(InputError) as caught:
        read_suite(suite)
    assert complaint in str(caught.value)


def test_nothing_to_run_and_reserved_overrides() -> None:
    only = read_suite({"models": ["Popularity"], "item_embeddings": ["tiny"]})
    with pytest.raises(InputError, match="no possible run"):
        expand(only)
    with pytest.raises(InputError, match="sets 'dataset'"):
        expand(read_suite({"models": ["A"]}), {"dataset": "b"})


def test_a_reranker_is_written_out_and_ranks_every_session() -> None:
    def suite(**settings: object) -> Suite:
        variants = {"re-ranked": {"config": {"rerank": {"preset": "qwen2vl", **settings}}}}
        return read_suite({"models": ["SKNN"], "seeds": 1, "variants": variants})

    plain, again = expand(suite(top_k=5))
    assert "rerank" not in plain.config
    assert again.config["rerank"]["top_k"] == 5
    assert again.config["rerank"]["backbone"]["kind"] == "native"
    with pytest.raises(InputError, match="compared on the same ones"):
        expand(suite(sessions=10))
