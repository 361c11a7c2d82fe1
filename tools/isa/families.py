"""What a block of each kernel moves and multiplies in a step, from the shapes of its tiles.

From memory come weights and the keys of decode attention, and what kernels move that do nothing else (norms,
quantisation, rope, merges, combination): of these every activation. The tokens of a product, and the keys of expanded
attention, which all tiles of queries of a head read, meet the caches: whoever wrote them has just left them there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from isa.code_objects import FP8_OPERANDS, PRODUCTS, constants, product_shape
from isa.machines import LANES
from isa.steps import Operand, Step

# The matrix instruction for 16 x 16 of bf16, and the contraction that it takes; for codes of four and of eight bits.
BF16_MATRIX = {"gfx942": ("v_mfma_f32_16x16x16_bf16", 16), "gfx950": ("v_mfma_f32_16x16x32_bf16", 32)}
FP4_MATRIX = ("v_mfma_scale_f32_16x16x128_f8f6f4 cbsz:4 blgp:4", 128)
FP8_MATRIX = {
    "gfx942": ("v_mfma_f32_16x16x32_fp8_fp8", 32),
    "gfx950": ("v_mfma_scale_f32_16x16x128_f8f6f4", 128),
}


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _shapes(
    architecture: str, header: str, types: Sequence[str], fields: Sequence[str]
) -> dict[str, list[int]]:
    """Type -> its fields, as the header has them."""
    values = constants(architecture, header, [f"{type_}::{field}" for type_ in types for field in fields])
    return {type_: values[i * len(fields) :][: len(fields)] for i, type_ in enumerate(types)}


@dataclass(frozen=True)
class _Format:
    """How a product reads weights.

    Attributes:
      k, row_bytes: values along the contraction that a step of a wave takes, and the bytes of a row's codes.
      loads, scales: (width, count) of a wave for a tile of 16 rows.
      codes_a_scale: in memory.
    """

    k: int
    row_bytes: int
    loads: tuple[int, int]
    scales: tuple[int, int] = (0, 0)
    codes_a_scale: int = 1


# Scales of E4M3 and int4 are floats, for each row of a wave's sums: after every step, or every 32 values.
_FORMATS = {
    "e2m1": _Format(128, 64, (16, 1), (1, 1), 32),
    "e4m3": _Format(64, 64, (16, 1), (4, 4), 128 * 128),
    "e4m3fnuz": _Format(64, 64, (16, 1), (4, 4), 128 * 128),
    "int4": _Format(128, 64, (4, 4), (4, 16), 128),
    "bf16": _Format(64, 128, (16, 2)),
}


def _products(architecture: str) -> Iterator[Step]:
    name, matrix_k = BF16_MATRIX[architecture]
    fields = ("kRowTiles", "kTokens", "kRowWaves", "kSplits", "kSharedTokens")
    shapes = _shapes(architecture, "gpu/product.h", [product_shape(shape) for shape in PRODUCTS], fields)
    for shape in PRODUCTS:
        tiles, tokens, row_waves, splits, shared = shapes[product_shape(shape)]
        rows, token_tiles = 16 * tiles * row_waves, _ceil(tokens, 16)
        for format_name, format_ in _FORMATS.items():
            k, (width, count), (scale_width, scale_count) = format_.k, format_.loads, format_.scales
            codes = rows * format_.row_bytes * splits
            # Through shared memory: the threads of a split share its tokens' chunks of 16 bytes evenly.
            token_loads = _ceil(tokens * k // 8, row_waves * LANES) if shared else token_tiles * k // 32
            token_bytes = tokens * k * 2 * splits * (1 if shared else row_waves)
            operands = [
                Operand("codes", width, tiles * count, codes, codes),
                Operand("tokens", 16, token_loads, token_bytes, 0),
            ]
            if scale_count:
                # Of an instruction: a byte a lane, or the floats of four rows.
                scales = row_waves * splits * tiles * scale_count * (LANES if scale_width == 1 else 16)
                memory = rows * k * splits * scale_width / format_.codes_a_scale
                operands.append(Operand("scales", scale_width, tiles * scale_count, scales, memory))
            yield Step(
                f"mla_product_{format_name}_{shape}",
                f"{rows} x {k * splits}, {tokens}",
                tuple(operands),
                (name, tiles * token_tiles * k // matrix_k),
            )


def _linear_fp8(architecture: str) -> Iterator[Step]:
    fields = ("kRowTiles", "kTokenTiles", "kSplits")
    shapes = _shapes(architecture, "linear_fp8/gpu_shape.h", ("Fp8Few", "Fp8Many"), fields)
    for codes in FP8_OPERANDS:
        # gfx950 decodes codes that are not its own, and what they meet.
        decoded = architecture == "gfx950" and codes != "ocp_ocp"
        name, matrix_k = (BF16_MATRIX if decoded else FP8_MATRIX)[architecture]
        for kind, (tiles, token_tiles, splits) in shapes.items():
            # Of a tile: 128 codes of a row in two chunks a lane. A scale is a float, of a lane's four rows, which
            # blocks of 128 rows share in memory, and of its token.
            tile, scales = 16 * 128 * splits, 16 * 4 * splits
            yield Step(
                f"mla_linear_fp8_{codes}_{kind.removeprefix('Fp8').lower()}",
                f"{16 * tiles} x {128 * splits}, {16 * token_tiles}",
                (
                    Operand("codes", 16, 2 * tiles, tiles * tile, tiles * tile),
                    Operand("scales", 4, 4 * tiles, tiles * scales, tiles * scales / 128),
                    Operand("tokens", 16, 2 * token_tiles, token_tiles * tile, 0),
                    Operand("tokens' scales", 4, token_tiles, token_tiles * scales, 0),
                ),
                (name, tiles * token_tiles * 128 // matrix_k),
            )


def _linear_mxfp4(architecture: str) -> Iterator[Step]:
    name, matrix_k = FP4_MATRIX if architecture == "gfx950" else BF16_MATRIX[architecture]
    fields = ("kRowTiles", "kTokenTiles", "kSplits")
    shapes = _shapes(architecture, "linear_mxfp4/gpu_shape.h", ("Mxfp4Few", "Mxfp4Many"), fields)
    for kind, (tiles, token_tiles, splits) in shapes.items():
        # Of a tile: 128 codes of a row are 64 bytes, and have 4 scales.
        codes, scales = 16 * 64 * splits, 16 * 4 * splits
        yield Step(
            f"mla_linear_mxfp4_{kind.removeprefix('Mxfp4').lower()}",
            f"{16 * tiles} x {128 * splits}, {16 * token_tiles}",
            (
                Operand("codes", 16, tiles, tiles * codes, tiles * codes),
                Operand("scales", 1, tiles, tiles * scales, tiles * scales),
                Operand("tokens", 16, token_tiles, token_tiles * codes, 0),
                Operand("tokens' scales", 1, token_tiles, token_tiles * scales, 0),
            ),
            (name, tiles * token_tiles * 128 // matrix_k),
        )


def _linear_shuffled(architecture: str) -> Iterator[Step]:
    name, matrix_k = BF16_MATRIX[architecture]
    header = "linear_shuffled/gpu_shape.h"
    shapes = _shapes(architecture, header, ("Few16", "Few32"), ("kTokens", "kWaves", "kSteps"))
    for kind, (tokens, waves, steps) in shapes.items():
        # Of a wave's tile of 16 rows; the loop around this one reads the tokens, for up to four of them.
        codes, scales = waves * steps * 16 * 64, waves * steps * 16 * 4
        yield Step(
            f"mla_linear_shuffled_{kind.lower()}",
            f"{waves} times 16 x {128 * steps}, {tokens}",
            (
                Operand("codes", 16, steps, codes, codes),
                Operand("scales", 4 * steps, 1, scales, scales),
            ),
            (name, steps * 128 // matrix_k * tokens // 16),
        )


def _dequantisers(architecture: str) -> Iterator[Step]:
    """A thread has some words of eight MXFP4 codes."""
    threads, words = constants(
        architecture, "mxfp4_dequantize/gpu_shape.h", ["kDequantizeThreads", "kDequantizeWords"]
    )
    (shuffled_threads,) = constants(architecture, "linear_shuffled/gpu_shape.h", ["kDecodeThreads"])
    # A block of the latter has 16 chunks of 16 rows, of four words each.
    for kernel, count, of_thread in (
        ("mla_mxfp4_dequantize", threads * words, words),
        ("mla_shuffled_dequantize", 16 * 16 * 4, 16 * 16 * 4 // shuffled_threads),
    ):
        yield Step(
            kernel,
            f"{8 * count} values",
            (
                Operand("codes", 4, of_thread, 4 * count, 4 * count),
                Operand("scales", 1, of_thread, count / 4, count / 4),
                Operand("values", 16, of_thread, 16 * count, 16 * count, store=True),
            ),
        )


def _absorb(architecture: str) -> Iterator[Step]:
    name, matrix_k = BF16_MATRIX[architecture]
    depth, outputs, threads = constants(
        architecture, "absorb_quantized/gpu_shape.h", ["kAcrossDepth", "kAcrossOutputs", "kAcrossThreads"]
    )
    for format_name in ("e2m1", "e4m3", "e4m3fnuz"):
        mxfp4 = format_name == "e2m1"
        codes = outputs * depth // (2 if mxfp4 else 1)
        loads = codes // 16 // threads
        # A byte for a chunk of 32 codes; or a bf16 for all that is decoded at a time.
        scales = (1, loads, codes // 16) if mxfp4 else (2, 1, 2)
        for tokens in (16, 64):
            token_bytes = tokens * depth * 2
            for way in ("across", "along"):
                yield Step(
                    f"mla_absorb_{way}_{format_name}_{tokens}",
                    f"{outputs} x {depth}, {tokens}",
                    (
                        Operand("codes", 16, loads, codes, codes),
                        Operand("scales", *scales, scales[2]),
                        Operand("tokens", 16, _ceil(token_bytes, 16 * threads), token_bytes, 0),
                    ),
                    (name, tokens * outputs * depth // (16 * 16 * matrix_k) * LANES // threads),
                )


def _tile_loads(architecture: str, threads: int, rows: int, row_bytes: int) -> int:
    """Of a wave, 16 bytes a lane, for a tile of rows on its way to shared memory."""
    chunks = row_bytes // 16
    if architecture == "gfx950":
        # Straight there: a wave takes whole rows, 64 chunks an instruction.
        return rows * LANES // threads * _ceil(chunks, LANES)
    return _ceil(rows * chunks, threads)


def _attention(architecture: str) -> Iterator[Step]:
    name, matrix_k = BF16_MATRIX[architecture]
    header = "mla_attention/gpu_shape.h"
    rank, width = constants(architecture, header, ["kRank", "kWidth"])
    fields = ("kRows", "kThreads", "kKeys", "kColumnWaves", "kKeyWaves", "kParts")
    for shape in _shapes(architecture, header, ("Heads16", "Heads32", "Heads64"), fields).values():
        heads, threads, keys, column_waves, key_waves, parts = shape
        # A wave's part of the scores' contraction is whole instructions, and so is its share of the columns.
        scores = _ceil(width // matrix_k, parts) * (keys // 16 // key_waves)
        columns = keys // matrix_k * (rank // 16 // column_waves)
        for ending, size in (("", 2), ("_f8", 1)):
            row = width * size
            yield Step(
                f"mla_attention_{heads}{ending}",
                f"{keys} keys, {heads} heads",
                (
                    Operand(
                        "keys", 16, _tile_loads(architecture, threads, keys, row), keys * row, keys * row
                    ),
                    Operand("pages", 4, 1, keys * 4, 0),
                ),
                (name, scores + columns),
                every_lane=size == 1,  # Lanes that have codes to convert.
            )


def _merges(architecture: str) -> Iterator[Step]:
    """Splits of attention: a thread has a run of columns, several of them share its splits, some reads at once."""
    names = ["kMergeThreads", "kMergeRun", "kMergeGroups", "kRank"]
    threads, run, many, rank = constants(architecture, "mla_attention/gpu_shape.h", names)
    for kind, groups, batch in (("few", 1, 8), ("many", many, 4)):
        columns, reads = threads // groups * run, threads * batch
        # A run of float32 is read as three and one; the output is bf16, by runs or column by column.
        store = 2 * run if groups == 1 else 2
        logarithms, sums = reads * run / rank * 4, columns / rank * 4
        yield Step(
            f"mla_attention_merge_{kind}",
            f"{columns} columns of {batch * groups} splits",
            (
                Operand("columns", 12, batch, reads * 12, reads * 12),
                Operand("columns", 4, batch, reads * 4, reads * 4),
                Operand("logarithms", 4, batch, logarithms, logarithms),
                Operand("output", store, 1, columns * 2, columns * 2, store=True),
                Operand("row's sum", 4, 1, sums, sums, store=True),
            ),
        )


def _expanded(architecture: str) -> Iterator[Step]:
    name, matrix_k = BF16_MATRIX[architecture]
    header = "mla_attention_expanded/gpu_shape.h"
    nope, rope, value = constants(architecture, header, ["kNope", "kRope", "kValue"])
    fields = ("kRowTiles", "kRows", "kThreads", "kKeys")
    for kind, shape in _shapes(architecture, header, ("ExpandedLong", "ExpandedShort"), fields).items():
        tiles, rows, threads, keys = shape
        own, shared = (nope + value) * 2, rope * 2
        yield Step(
            f"mla_expanded_{kind.removeprefix('Expanded').lower()}",
            f"{keys} keys, {rows} queries",
            (
                Operand("keys, values", 16, _tile_loads(architecture, threads, keys, own), keys * own, 0),
                Operand("rope", 16, _tile_loads(architecture, threads, keys, shared), keys * shared, 0),
            ),
            (name, tiles * (keys // 16 * (nope + rope) // matrix_k + keys // matrix_k * value // 16)),
        )


def _rows(architecture: str) -> Iterator[Step]:
    """Norms of rows that are held in registers, and quantisation: bf16 activations and weights."""
    block, run = constants(architecture, "gpu/row_shape.h", ["kRowBlock", "kRunValues"])

    def moved(name: str, runs: int, bytes_a_value: float, width: int, store: bool = False) -> Operand:
        total = block * run * runs * bytes_a_value
        return Operand(name, width, runs, total, total, store)

    def quantized(format_name: str, runs: int) -> tuple[Operand, Operand]:
        # A scale is stored by one lane of its group: a byte for 32 values, a float for 128.
        if format_name == "mxfp4":
            return moved("codes", runs, 1 / 2, run // 2, True), moved("scales", runs, 1 / 32, 1, True)
        return moved("codes", runs, 1, run, True), moved("scales", runs, 4 / 128, 4, True)

    def norm(kernel: str, threads: int, runs: int, *more: Operand) -> Step:
        # Of a run of weights, which meet the caches, the first word is read before the others.
        width = threads * run * runs
        weights = Operand("weights", 4, runs, width / 2, 0), Operand("weights", 12, runs, width * 3 / 2, 0)
        operands = moved("x", runs, 2, 16), *weights, *more
        # A value that is not NaN is rounded to FP8 in code of its own.
        return Step(kernel, f"{block // threads} x {width}", operands, every_lane="fp8" in kernel)

    for kind, threads, runs in (("32", 32, 4), ("64", 64, 4), ("256", 256, 4), ("long", 256, 8)):
        sums = moved("residual", runs, 2, 16), moved("sum", runs, 2, 16, True)
        yield norm(f"mla_rmsnorm_bf16_{kind}", threads, runs, *sums, moved("y", runs, 2, 16, True))
        for format_name in ("mxfp4", "fp8"):
            yield norm(f"mla_rmsnorm_{format_name}_bf16_{kind}", threads, runs, *quantized(format_name, runs))
    # The queries' part; that of the latent rows is the same for rows half as long.
    yield norm("mla_fused_qk_rmsnorm_bf16", 64, 4, moved("y", 4, 2, 16, True))
    for format_name in ("mxfp4", "fp8"):
        operands = moved("x", 1, 2, 16), *quantized(format_name, 1)
        name = f"mla_flatten_{format_name}_bf16"
        yield Step(name, f"{block * run} values", operands, every_lane=format_name == "fp8")


def _rope_latent(architecture: str) -> Iterator[Step]:
    """bf16, and pairs of neighbours; a block has queries or, a wave each, rows of the cache."""
    threads, many_items = constants(
        architecture, "rope_append_latent/gpu_shape.h", ["kThreads", "kManyItems"]
    )
    rows, rank, rope = threads // LANES, 512, 64  # As every published model has them.
    for kernel, items in (("wide", 1), ("many", many_items)):
        size = threads * 16 * items
        queries = (
            Operand("queries", 16, items, size, size),
            Operand("angles", 16, 2, threads * 32, 0),
            Operand("rotated", 16, items, size, size, store=True),
        )
        # With many tokens a row is read again behind its sum, from the caches.
        again = () if items == 1 else (Operand("latent", 16, 1, rows * rank * 2, 0),)
        row = (
            Operand("latent", 16, 1, rows * rank * 2, rows * rank * 2),
            *again,
            Operand("weights", 16, 1, rows * rank * 2, 0),
            Operand("rope", 16, 1, rows * rope * 2, rows * rope * 2),
            Operand("angles", 16, 2, rows * rope * 4, 0),
            Operand("position and slot", 4, 2, rows * 8, 0),
            Operand("row", 16, 2, rows * (rank + rope) * 2, rows * (rank + rope) * 2, store=True),
        )
        yield Step(f"mla_rope_append_all_bf16_{kernel}", f"queries: {threads * items * 8} values", queries)
        yield Step(f"mla_rope_append_bf16_{kernel}", f"queries: {threads * items * 8} values", queries)
        yield Step(f"mla_rope_append_all_bf16_{kernel}", f"{rows} rows of the cache", row)


def _rope_kv(architecture: str) -> Iterator[Step]:
    """bf16 and pairs of neighbours, into caches of bf16 or of f8 with a scale; a wave's items are of one kind."""
    threads, run = constants(architecture, "rope_append_kv/gpu_shape.h", ["kThreads", "kWideColumns"])
    read, angles = threads * run * 2, threads * 32
    for ending, size in (("bf16", 2), ("f8", 1)):
        # Whose cache has a scale reads the position in front of it, by every lane.
        position = (Operand("position", 4, 1, 4, 0),) if size == 1 else ()
        # Into bf16 both move the same.
        for kind, stored in (("queries", 2), ("keys", 1)) if size == 1 else (("queries, keys", 2),):
            yield Step(
                f"mla_rope_kv_bf16_{ending}_wide",
                f"{kind}: {threads * run} values",
                (
                    Operand(kind, 16, 1, read, read),
                    Operand("angles", 16, 2, angles, 0),
                    *position,
                    Operand(
                        "rotated", run * stored, 1, threads * run * stored, threads * run * stored, store=True
                    ),
                ),
            )


def _experts(architecture: str) -> Iterator[Step]:
    (threads,) = constants(architecture, "expert_mlp/gpu_shape.h", ["kCombineThreads"])
    slots = 8  # That a thread reads before it adds them.
    yield Step(
        "mla_expert_combine",
        f"{threads} columns of {slots} slots",
        (
            Operand("sums", 4, slots, threads * slots * 4, threads * slots * 4),
            Operand("y", 2, 1, threads * 2, threads * 2, store=True),
        ),
    )


_FAMILIES = (
    _products, _linear_fp8, _linear_mxfp4, _linear_shuffled, _dequantisers, _absorb, _attention, _merges, _expanded,
    _rows, _rope_latent, _rope_kv, _experts,
)  # fmt: skip


def steps(architecture: str) -> dict[str, list[Step]]:
    """Kernel -> its steps: one, or one of each kind of work that its blocks have."""
    found: dict[str, list[Step]] = {}
    for family in _FAMILIES:
        for step in family(architecture):
            found.setdefault(step.kernel, []).append(step)
    return found
