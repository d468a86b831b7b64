"""The table of bad and hostile input: what is done, and what the one line says about it."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from hostile.damage import (
    INDEX,
    NORM,
    SINGLE,
    UP,
    Damage,
    Malicious,
    both,
    compressed_pickle,
    config,
    edit_json,
    entry,
    header,
    huge,
    index,
    link_out,
    old_pickle,
    own_code,
    pickle_of,
    pipe,
    raw_shard,
    remove,
    shards,
    tensors,
    to_pickle,
    write,
)

WHOLE = "not a whole safetensors file"
CONTROL = "evil\x1b[2Jname"


def cut(folder: Path) -> None:
    path = folder / SINGLE
    path.write_bytes(path.read_bytes()[:-1000])


def put_nan(loaded: dict[str, torch.Tensor]) -> None:
    loaded[UP][3, 5] = torch.nan


def shard_of(text: bytes, body: bytes = b"", length: int | None = None) -> Damage:
    """The weights' file with this header and nothing else."""
    return write(SINGLE, raw_shard(text, body, length))


def move(name: str, **changes: int) -> Damage:
    """Shift the bytes of a tensor, keeping their number."""
    return header(
        lambda data: data[name].update(data_offsets=[at + changes["by"] for at in data[name]["data_offsets"]])
    )


CHECKPOINTS: dict[str, tuple[Damage, str]] = {
    "no config": (remove("config.json"), "no config.json"),
    "no weights": (remove(SINGLE), "no weights"),
    "truncated shard": (cut, WHOLE),
    "missing tensor": (tensors(lambda t: t.pop(UP)), f"missing tensor {UP}"),
    "misshapen tensor": (tensors(lambda t: t.update({UP: torch.zeros(3, 3)})), "has shape [3, 3]"),
    "unexpected tensor": (
        tensors(lambda t: t.update({UP.replace("weight", "bias"): torch.zeros(80)})),
        "unexpected tensor model.layers.1.mlp.up_proj.bias",
    ),
    "fewer layers than weights": (config(num_hidden_layers=2), "there are only 2 layers"),
    "a tensor under two names": (
        tensors(lambda t: t.update({UP.removeprefix("model."): torch.zeros(80, 48)})),
        f"tensor {UP} is there twice",
    ),
    "an adapter on top": (write("adapter_config.json", "{}"), "expected the two merged"),
    "weights of another name": (config(transformers_weights="other.safetensors"), "names the file of its weights"),
    "NaN": (tensors(put_nan), f"{UP} holds NaN"),
    "integers for weights": (tensors(lambda t: t.update({UP: t[UP].int()})), "has dtype I32"),
    "empty shard": (write(SINGLE, b""), WHOLE),
    "header of no length": (shard_of(b""), "not valid JSON"),
    "header longer than the file": (shard_of(b"{}", length=1 << 40), "a header of 1099511627776 bytes"),
    "header of 2^64 - 1": (shard_of(b"{}", length=(1 << 64) - 1), WHOLE),
    "header of a gigabyte": (both(shard_of(b"{}", length=1 << 30), huge(SINGLE)), "expected at most 16777216"),
    "header of no JSON": (shard_of(b"{'a': 1}"), "not valid JSON"),
    "header of no UTF-8": (shard_of(b'{"\xff": 1}'), "not valid JSON"),
    "header that is a list": (shard_of(b"[]"), "expected an object"),
    "header nested deeply": (shard_of(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "nested too deeply"),
    "a tensor twice in a header": (shard_of(b'{"a": {}, "a": {}}'), "'a' stands twice"),
    "metadata that is no text": (header(lambda h: h.update(__metadata__={"a": 1})), "not a mapping of strings"),
    "an entry that is no object": (header(lambda h: h.update({UP: 3})), "not described by dtype, shape"),
    "an entry without offsets": (header(lambda h: h[UP].pop("data_offsets")), "not described by dtype, shape"),
    "unknown dtype": (entry(dtype="F31"), "has dtype 'F31'"),
    "dtype of no text": (entry(dtype=["F32"]), "has dtype"),
    "negative size": (entry(shape=[-80, -48]), "no list of sizes"),
    "size of no whole number": (entry(shape=[80.0, 48]), "no list of sizes"),
    "size that is true": (entry(shape=[True, 3840]), "no list of sizes"),
    "sizes whose product overflows": (entry(shape=[1 << 33, 1 << 33]), "absurd shape"),
    "sizes beyond 64 bits": (entry(shape=[10**30, 0]), "absurd shape"),
    "too many dimensions": (entry(shape=[1] * 1000), "no list of sizes"),
    "offsets backwards": (header(lambda h: h[UP]["data_offsets"].reverse()), "its shape [80, 48] of F32 takes"),
    "offsets that do not fit the shape": (entry(shape=[80, 47]), "its shape [80, 47] of F32 takes 15040"),
    "negative offsets": (entry(data_offsets=[-15360, 0]), "no two positions"),
    "tensors that overlap": (move(NORM, by=-4), "expected tensors one behind the other"),
    "tensors beyond the file": (move(NORM, by=1 << 40), "bytes before it"),
    "bytes of no tensor": (lambda f: (f / SINGLE).open("ab").write(b"\0" * 64), "64 bytes that belong to no tensor"),
    "a name with control characters": (header(lambda h: h.update({CONTROL: h.pop(UP)})), r"'evil\x1b[2Jname'"),
    "a name of 10000 characters": (header(lambda h: h.update({"a" * 10_000: h.pop(UP)})), "name of 10000 characters"),
    "a name of none": (header(lambda h: h.update({"": h.pop(UP)})), "without a name"),
    "weights that are a folder": (both(remove(SINGLE), lambda f: (f / SINGLE).mkdir()), "no regular file"),
    "weights that are a pipe": (pipe(SINGLE), "is a pipe, a socket or a device"),
    "weights that are a device": (link_out(SINGLE, "/dev/zero"), "a link out of the model folder"),
    "weights out of the folder": (link_out(SINGLE), "a link out of the model folder"),
    "weights that link to themselves": (both(remove(SINGLE), lambda f: (f / SINGLE).symlink_to(SINGLE)), "no weights"),
    "index that is a list": (both(remove(SINGLE), write(INDEX, "[]")), "expected an object"),
    "index without a map": (both(remove(SINGLE), write(INDEX, "{}")), "is not an index of shards"),
    "index of a terabyte": (huge(INDEX), "expected at most"),
    "index that is a pipe": (pipe(INDEX), "is a pipe, a socket or a device"),
    "index nested deeply": (both(remove(SINGLE), write(INDEX, '{"weight_map":' + "[" * 100_000)), "nested too deeply"),
    "index names a missing shard": (index(lambda m: m.update({UP: "c.safetensors"})), "c.safetensors is missing"),
    "index that leads up": (index(lambda m: m.update({UP: "../c.safetensors"})), "'../c.safetensors'"),
    "index with an absolute path": (index(lambda m: m.update({UP: "/etc/c.safetensors"})), "'/etc/c.safetensors'"),
    "index that names no safetensors": (index(lambda m: m.update({UP: "config.json"})), "'config.json'"),
    "index with a number for a shard": (index(lambda m: m.update({UP: 7})), "places model.layers.1.mlp.up_proj"),
    "index with another shard": (
        index(lambda m: m.update({UP: next(s for s in ("a.safetensors", "b.safetensors") if s != m[UP])})),
        f"tensor {UP}: the index places it",
    ),
    "index that knows too little": (index(lambda m: m.pop(UP)), f"has tensor {UP}: the index knows none"),
    "a tensor in two shards": (
        both(shards, lambda f: [tensors(lambda t: t.setdefault(UP, torch.zeros(80, 48)), s)(f) for s in AB]),
        f"has tensor {UP}: the index places it in",
    ),
    "a shard out of the folder": (both(shards, link_out("a.safetensors")), "a link out of the model folder"),
}
AB = ("a.safetensors", "b.safetensors")

CONFIGURATIONS: dict[str, tuple[Damage, str]] = {
    "broken config": (write("config.json", "{"), "config.json is not valid JSON"),
    "config of no object": (write("config.json", "[1]"), "expected an object"),
    "config of a terabyte": (huge("config.json"), "expected at most"),
    "config that is a pipe": (pipe("config.json"), "is a pipe, a socket or a device"),
    "config out of the folder": (link_out("config.json"), "a link out of the model folder"),
    "config nested deeply": (write("config.json", '{"a":' * 100_000), "nested too deeply"),
    "config with a key twice": (write("config.json", '{"model_type": "llama", "model_type": "opt"}'), "stands twice"),
    "config with NaN": (config(rms_norm_eps=float("nan")), "NaN is no number in JSON"),
    "config with a number beyond floats": (write("config.json", '{"rope_theta": 1e999}'), "larger than any float"),
    "config with a number of 5000 digits": (write("config.json", '{"a": ' + "9" * 5000 + "}"), "not valid JSON"),
    "unknown architecture": (config(model_type="gpt2"), "unknown architecture 'gpt2'"),
    "unknown model type": (config(model_type="zzz"), "zzz"),
    "model type with control characters": (config(model_type="\x1b[2J"), "\\x1b[2J"),
    "model type of no text": (config(model_type=["llama"]), "config.json"),
    "a billion layers": (config(num_hidden_layers=10**9), "num_hidden_layers is '1000000000'"),
    "no layers": (config(num_hidden_layers=0), "num_hidden_layers is '0'"),
    "minus one layer": (config(num_hidden_layers=-1), "num_hidden_layers is '-1'"),
    "more layers than weights": (config(num_hidden_layers=4), "missing tensor model.layers.3"),
    "huge hidden size": (config(hidden_size=1 << 62), "hidden_size is"),
    "hidden size of text": (config(hidden_size="48"), "hidden_size is '48'"),
    "hidden size of a float": (config(hidden_size=48.0), "hidden_size is '48.0'"),
    "heads that are true": (config(num_attention_heads=True), "num_attention_heads is 'True'"),
    "heads that do not divide": (config(num_attention_heads=5), "config"),
    "negative epsilon": (config(rms_norm_eps=-1.0), "rms_norm_eps is '-1.0'"),
    "unknown activation": (config(hidden_act="launch"), "no llama model has this configuration"),
    "rotary settings of no object": (config(rope_parameters=3), "config"),
    "code for an unknown family": (
        both(own_code(AutoConfig="own.C", AutoModelForCausalLM="own.C"), config(model_type="own")),
        "code of a model folder is never run",
    ),
    "code for the tokenizer": (
        both(
            remove("tokenizer.json"),
            own_code(AutoTokenizer=["own.C", None]),
            edit_json("tokenizer_config.json", lambda d: d.update(tokenizer_class="C")),
        ),
        "no tokenizer in|needs code of the model folder",
    ),
    "already quantized": (config(quantization_config={"quant_method": "gptq"}), "already quantized"),
    "generation settings of no object": (write("generation_config.json", "7"), "expected an object"),
    "generation settings that contradict": (
        edit_json("generation_config.json", lambda d: d.update(max_new_tokens=-1)),
        "generation_config.json holds no generation settings",
    ),
    "no tokenizer": (remove("tokenizer*"), "no tokenizer"),
    "broken tokenizer": (write("tokenizer.json", "{"), "is not valid JSON"),
    "tokenizer of another kind": (write("tokenizer.json", '{"model": {"type": "Launch"}}'), "no tokenizer"),
    "tokenizer of a terabyte": (huge("tokenizer.json"), "expected at most"),
    "tokenizer that is a pipe": (pipe("tokenizer.json"), "is a pipe, a socket or a device"),
    "tokenizer out of the folder": (link_out("tokenizer.json"), "a link out of the model folder"),
    "tokenizer settings of no object": (write("tokenizer_config.json", "[]"), "expected an object"),
}

PICKLES: dict[str, tuple[Damage, list[str], str]] = {
    "pickle that nobody allowed": (to_pickle, [], "or --allow-pickle"),
    "pickle that runs a program": (
        pickle_of(lambda folder: {"a": Malicious(folder / "owned")}),
        ["--allow-pickle"],
        "it calls posix.system",
    ),
    "bare pickle": (old_pickle, ["--allow-pickle"], "not a whole zip archive"),
    "pickle of torch before 1.6": (
        lambda folder: to_pickle(folder, _use_new_zipfile_serialization=False),
        ["--allow-pickle"],
        "not a whole zip archive",
    ),
    "compressed pickle": (compressed_pickle, ["--allow-pickle"], "is compressed"),
    "truncated pickle": (
        both(to_pickle, lambda f: write("pytorch_model.bin", (f / "pytorch_model.bin").read_bytes()[:9999])(f)),
        ["--allow-pickle"],
        "not a whole zip archive",
    ),
    "pickle of a list": (pickle_of(lambda f: [torch.zeros(1)]), ["--allow-pickle"], "holds a list"),
    "pickle of numbers": (pickle_of(lambda f: {"a": 1}), ["--allow-pickle"], "not a dense tensor"),
    "pickle of a view": (
        pickle_of(lambda f: {"a": torch.zeros(1).expand(1 << 20, 1 << 20)}),
        ["--allow-pickle"],
        "not a dense tensor",
    ),
    "pickle that is a pipe": (
        both(remove(SINGLE), pipe("pytorch_model.bin")),
        ["--allow-pickle"],
        "is a pipe, a socket or a device",
    ),
}

BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
ROW = json.dumps({"text": "words " * 50})

ARGUMENTS: dict[str, tuple[list[str], str]] = {
    "unknown recipe": (["--recipe", "nope"], "unknown recipe 'nope'"),
    "recipe of a long name": (["--recipe", "r" * 5000 + ".yaml"], "unknown recipe"),
    "unknown key": (["--set", "weights.bits=4"], "unknown key 'weights.bits'"),
    "key of nothing": (["--set", "=4"], "expected key=value"),
    "key of many dots": (["--set", "." * 300 + "=4"], "unknown key"),
    "unknown value": (["--set", "weights.method=magic"], "weights.method"),
    "value of 5000 characters": (["--set", "description=" + "x" * 5000], "expected at most 4096"),
    "value of 4100 digits": (["--set", "calibration.seed=" + "9" * 4070], "calibration.seed"),
    "value nested deeply": (["--set", "overrides=" + "[" * 2000], "nested deeper than 50 levels"),
    "value with a tag": (["--set", "description=!!python/object/apply:os.getcwd []"], "not readable as YAML"),
    "value that is no date": (["--set", "description=2001-99-99"], "not readable as YAML"),
    "value NaN": (["--set", "weights.damping=.nan"], "weights.damping"),
    "value infinity": (["--recipe", "dartquant", "--set", "rotations.r1.learning_rate=.inf"], "learning_rate"),
    "weight group": (["--set", "weights.group_size=7"], "group_size 7"),
    "activation group": (["--set", "activations.group_size=7"], "group_size 7"),
    "cache group": (["--set", "kv_cache.group_size=5"], "group_size 5"),
    "group of 10^30": (["--set", f"weights.group_size={10**30}"], "group_size"),
    "absurd steps": (["--recipe", "dartquant", "--set", "rotations.r1.steps=1000000000"], "rotations.r1.steps"),
    "text too short": (["--num-samples", "100000"], "too short"),
    "more samples than numbers": (["--num-samples", str(10**30)], "calibration.num_samples"),
    "no such text": (["--calib", "nowhere.txt"], "nowhere.txt"),
    "text of a long name": (["--calib", "t" * 4000 + ".txt"], "no such text"),
    "text of no kind": (["--calib", "/etc/passwd"], "unknown text '/etc/passwd'"),
    "seqlen too long": (["--seqlen", "65"], "longer than the model's 64 positions"),
    "seqlen of minus one": (["--seqlen", "-1"], "calibration.seqlen"),
    "unknown device": (["--device", "abacus"], "unknown device 'abacus'"),
    "absent device": (["--device", "cuda:0"], "not available"),
    "unknown dtype": (["--dtype", "int4"], "unknown dtype 'int4'"),
    "not an integer": (["--seed", "one"], "--seed"),
    "negative seed": (["--seed", "-1"], "--seed"),
    "seed beyond 64 bits": (["--seed", str(1 << 64)], "calibration.seed"),
    "unknown option": (["--colour", "red"], "--colour"),
    "unknown hub": (["--hub", "git"], "--hub"),
    "revision of a folder": (["--revision", "main"], "expected no revision"),
}

# A file that is written beside the model, and the option that names it.
FILES: dict[str, tuple[str, Damage, str, str]] = {
    "recipe of aliases": ("--recipe", write("r.yaml", BOMB), "r.yaml", "aliases"),
    "recipe of a program": ("--recipe", write("r.yaml", "a: !!python/name:os.system"), "r.yaml", "not readable"),
    "recipe nested deeply": ("--recipe", write("r.yaml", "[" * 10_000), "r.yaml", "nested deeper"),
    "recipe with a key twice": ("--recipe", write("r.yaml", "weights: {}\nweights: {}"), "r.yaml", "stands twice"),
    "recipe of a list": ("--recipe", write("r.yaml", "[1, 2]"), "r.yaml", "expected a mapping"),
    "recipe of a terabyte": ("--recipe", huge("r.yaml"), "r.yaml", "expected at most"),
    "recipe of bytes": ("--recipe", write("r.yaml", b"\xff\xfe\x00"), "r.yaml", "not UTF-8"),
    "recipe that is a pipe": ("--recipe", pipe("r.yaml"), "r.yaml", "no regular file"),
    "recipe that is a folder": ("--recipe", lambda f: (f / "r.yaml").mkdir(), "r.yaml", "no regular file"),
    "recipe with NaN": ("--recipe", write("r.yaml", "smoothing: {alpha: .nan}"), "r.yaml", "smoothing.alpha"),
    "empty text": ("--calib", write("t.txt", ""), "t.txt", "is empty"),
    "text of spaces": ("--calib", write("t.txt", " \n" * 999), "t.txt", "is empty"),
    "text of few words": ("--calib", write("t.txt", "few words"), "t.txt", "too short"),
    "text of bytes": ("--calib", write("t.txt", bytes(range(256)) * 99), "t.txt", "cannot be read"),
    "text that is a pipe": ("--calib", pipe("t.txt"), "t.txt", "no regular file"),
    "text that is a folder": ("--calib", lambda f: (f / "t.txt").mkdir(), "t.txt", "no regular file"),
    "rows of broken JSON": ("--calib", write("t.jsonl", ROW + "\n{"), "t.jsonl", "cannot be read"),
    "rows of no objects": ("--calib", write("t.jsonl", "[1]\n2\n"), "t.jsonl", "cannot be read"),
    "rows nested deeply": ("--calib", write("t.jsonl", "[" * 100_000), "t.jsonl", "cannot be read"),
    "rows without the column": ("--calib", write("t.jsonl", ROW), "t.jsonl:words", "has no 'words'"),
    "parquet that is none": ("--calib", write("t.parquet", b"PAR1" * 9), "t.parquet", "cannot be read"),
    "rotations that are none": (
        "rotations.from",
        write("r.safetensors", b"x" * 99),
        "r.safetensors",
        "has a header|whole",
    ),
    "rotations without metadata": (
        "rotations.from",
        write("r.safetensors", raw_shard(b'{"r1":{"dtype":"F64","shape":[0,0],"data_offsets":[0,0]}}')),
        "r.safetensors",
        "expected square matrices",
    ),
    "rotations without traces": (
        "rotations.from",
        write("r.safetensors", raw_shard(b'{"__metadata__": {"jointquant": "{}"}}')),
        "r.safetensors",
        "no traces",
    ),
    "rotations nested deeply": (
        "rotations.from",
        write("r.safetensors", raw_shard(json.dumps({"__metadata__": {"jointquant": "[" * 100_000}}).encode())),
        "r.safetensors",
        "nested too deeply",
    ),
}
