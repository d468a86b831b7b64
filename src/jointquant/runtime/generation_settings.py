"""generation_config.json as typed, bounded values: what it may say, what ``generate`` takes of it, what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers import GenerationConfig, PreTrainedModel

from jointquant.errors import InputError
from jointquant.models.configuration import blamed
from jointquant.recipe.faults import describe
from jointquant.trust.folder import GENERATION_NAME
from jointquant.trust.strict_json import read_object

Count = Annotated[int, Field(ge=0, le=1 << 30)]
Few = Annotated[int, Field(ge=0, le=64)]
TokenId = Annotated[int, Field(ge=-1, le=1 << 24)]  # some published pad_token_id are -1
TokenIds = Annotated[list[TokenId], Field(max_length=1 << 16)]
Number = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Part = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Words = Annotated[str, Field(max_length=1 << 12)]


class GenerationSettings(BaseModel):
    """The keys that transformers knows and that a folder may set; others mean nothing to it."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | TokenIds | None = None
    pad_token_id: TokenId | None = None
    decoder_start_token_id: TokenId | TokenIds | None = None
    forced_bos_token_id: TokenId | None = None
    forced_eos_token_id: TokenId | TokenIds | None = None
    suppress_tokens: TokenIds | None = None
    begin_suppress_tokens: TokenIds | None = None
    bad_words_ids: list[TokenIds] | None = None
    force_words_ids: list[TokenIds | list[TokenIds]] | None = None
    sequence_bias: list[Any] | dict[Any, Any] | None = None
    constraints: list[Any] | None = None
    stop_strings: Words | list[Words] | None = None
    do_sample: bool | None = None
    temperature: Annotated[Number, Field(ge=0)] | None = None
    top_k: Count | None = None
    top_p: Part | None = None
    top_h: Part | None = None
    min_p: Part | None = None
    typical_p: Annotated[Part, Field(gt=0)] | None = None
    epsilon_cutoff: Part | None = None
    eta_cutoff: Part | None = None
    repetition_penalty: Positive | None = None
    encoder_repetition_penalty: Positive | None = None
    no_repeat_ngram_size: Count | None = None
    encoder_no_repeat_ngram_size: Count | None = None
    length_penalty: Number | None = None
    exponential_decay_length_penalty: list[Any] | None = None
    diversity_penalty: Number | None = None
    penalty_alpha: Number | None = None
    guidance_scale: Number | None = None
    num_beams: Few | None = None
    num_beam_groups: Few | None = None
    num_return_sequences: Few | None = None
    early_stopping: bool | Literal["never"] | None = None
    max_length: Count | None = None
    min_length: Count | None = None
    max_new_tokens: Annotated[Count, Field(ge=1)] | None = None
    min_new_tokens: Count | None = None
    max_time: Positive | None = None
    prefill_chunk_size: Count | None = None
    prompt_lookup_num_tokens: Count | None = None
    num_assistant_tokens: Count | None = None
    use_cache: bool | None = None
    cache_implementation: Words | None = None
    cache_config: dict[str, Any] | None = None
    dola_layers: Words | Annotated[list[Count], Field(max_length=1 << 12)] | None = None
    watermarking_config: dict[str, Any] | None = None
    compile_config: dict[str, Any] | None = None
    token_healing: bool | None = None
    low_memory: bool | None = None
    remove_invalid_values: bool | None = None
    renormalize_logits: bool | None = None


ALWAYS = ("bos_token_id", "eos_token_id", "repetition_penalty", "no_repeat_ngram_size")
"""What ``generate`` takes of a model's settings."""

SAMPLING = ("top_k", "top_p", "min_p", "typical_p")
"""What it takes besides, where it draws tokens at random."""

GIVEN = ("pad_token_id", "do_sample", "temperature", "max_length", "max_new_tokens", "use_cache")
"""What its caller decides, whatever the settings say."""


def generation_settings_of(model: str | Path | PreTrainedModel) -> dict[str, Any] | None:
    """The generation settings of a model folder as they stand there, or of a model in memory; None: it has none.

    Settings that contradict each other, but that transformers loads, are carried over as they are (Llama 2 was
    published with a temperature and without sampling).

    Raises:
        InputError: a value of the wrong type or beyond what any model needs; names the key.
    """
    if isinstance(model, PreTrainedModel):
        own = getattr(model, "generation_config", None)
        return None if own is None else checked(json.loads(own.to_json_string(use_diff=True)), "the model in memory")
    path = Path(model) / GENERATION_NAME
    return checked(read_object(path), str(path)) if path.is_file() else None


def checked(data: dict[str, Any], what: str) -> dict[str, Any]:
    """``data`` itself. Raises InputError, naming ``what`` and the key, when it is no generation settings."""
    blame = f"{what} holds no generation settings"
    try:
        GenerationSettings.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{blame}: {describe(error)}") from None
    with blamed(blame):
        GenerationConfig.from_dict(dict(data))
    return data


def settings_to_generate(own: GenerationConfig, temperature: float) -> tuple[GenerationConfig, tuple[str, ...]]:
    """What ``generate`` runs with.

    Args:
        own: the model's settings.
        temperature: 0 takes the likeliest token.

    Returns:
        The settings, and the keys of ``own`` that would change the text and have no part in them.

    Raises:
        InputError: the model's settings are none.
    """
    data = checked(json.loads(own.to_json_string(use_diff=True)), "the model's configuration")
    keys = (*ALWAYS, *(SAMPLING if temperature > 0 else ()))
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    taken = {key: data[key] for key in keys if data.get(key) is not None}
    known = (*ALWAYS, *SAMPLING, *GIVEN)
    left = [key for key in GenerationSettings.model_fields if key not in known and data.get(key) not in (None, False)]
    return GenerationConfig(**taken, **sampling), tuple(left)
