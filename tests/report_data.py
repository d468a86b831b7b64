"""Made-up results of a comparison and an analysis."""

from __future__ import annotations

from typing import Any

NASTY = '<script>alert("x")</script> & {{ 1 }}'
SITES = ("attn_in", "o_in", "mlp_in", "down_in", "k_cache", "v_cache")


def spread(value: float) -> dict[str, Any]:
    return {"max_over_rms": value, "largest": 2 * value, "kurtosis": value, "histogram": [0.0, 0.5, 0.4, 0.1]}


def spreads() -> list[dict[str, Any]]:
    layers = [(layer, site) for layer in range(3) for site in SITES]
    return [{"layer": layer, "site": s, "before": spread(5.0 + layer), "after": spread(2.5)} for layer, s in layers]


def generation(text: str, new_tokens: int = 1, ended: bool = False, loops: bool = False) -> dict[str, Any]:
    return {"text": text, "new_tokens": new_tokens, "ended": ended, "loops": loops}


def detail(learned: bool) -> dict[str, Any]:
    trace = {"losses": [3.0, 2.0, 1.5], "angles": [0.1, 0.05, 0.0]}
    errors = [
        {"layer": i, "hidden": 0.01 * (i + 1), "weights": {"q": 0.01, "o": 0.02}, "activations": {"q": 0.0, "o": 0.0}}
        for i in range(3)
    ]
    traces = {"r1": trace, "r2.0": trace, "r2.1": trace} if learned else {}
    parts = {"divergence": {"nothing": 0.5, "inputs of mlp_in": 0.3}, "remedies": {}} if learned else {"refused": NASTY}
    shown = {"generations": [generation("Say it: one two  four\n\nfive", 5, loops=True)], "parts": parts}
    return {"traces": traces, "spreads": spreads(), "errors": errors, "transforms": {"r1": "learned"}} | shown


def comparison(names: tuple[str, ...] = ("quarot", NASTY), texts: tuple[str, ...] = ("a/b.txt",)) -> dict[str, Any]:
    def row(name: str, value: float) -> dict[str, Any]:
        keys = [key + end for key in ("perplexity", "divergence") for end in ("", "_min", "_max")]
        by_text = {key: dict.fromkeys(texts, value) for key in (*keys, "delta", "same_top")}
        return {
            "recipe": name,
            **by_text,
            "bits": 4.1,
            "size_bytes": 1e6,
            "seconds": 2.0,
            "peak_rss_bytes": 5e8,
            "seeds": [0, 1],
            "calib_seqlen": 16,
        }

    return {
        "about": {
            "base_model": f"model {NASTY}",
            "layers": 3,
            "device": "cpu",
            "dtype": "float32",
            "tokens": 1000,
            "seqlen": 32,
            "versions": {"jointquant": "0"},
            "recipes": {name: {"description": NASTY} for name in names},
            "prompts": ["Say it:"],
            "max_new_tokens": 48,
        },
        "reference": {
            "perplexity": dict.fromkeys(texts, 7.5),
            "bits": 16.0,
            "size_bytes": 4e6,
            "generations": [generation("Say it: one two three <b>four</b>", 4, ended=True)],
        },
        "rows": [row(name, 9.0 + index) for index, name in enumerate(names)],
        "runs": [],
        "details": {name: detail(index > 0) for index, name in enumerate(names)},
    }


def statistics() -> dict[str, Any]:
    values = {"max_over_rms": 5.0, "largest": 9.0, "kurtosis": 4.0}
    about = {"base_model": NASTY, "recipe": NASTY, "layers": 3, "versions": {"jointquant": "0"}}
    sites = [{"site": site, "before": values, "after": values} for site in SITES]
    return {"about": about, "sites": sites, "spreads": spreads(), "traces": detail(True)["traces"]}
