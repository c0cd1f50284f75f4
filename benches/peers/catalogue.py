"""Which engines and cases there are. Standard library only, so that `--help` works anywhere."""

from dataclasses import dataclass

REFERENCE = "torch-eager"


@dataclass(frozen=True)
class Engine:
    """One way to run the model.

    `kind` is `float` (a peer lxpod is compared with), `int8` (reported beside them) or `lxpod`.
    `tolerance` bounds the absolute error of a logit against `REFERENCE`; None: the error is reported only.
    """

    name: str
    kind: str
    tolerance: float | None


ENGINES = {
    engine.name: engine
    for engine in (
        Engine("onnxruntime", "float", 1e-3),
        Engine("onnxruntime-int8", "int8", None),
        Engine("openvino", "float", 1e-3),
        Engine("torch-eager", "float", 1e-3),
        Engine("torch-compile", "float", 1e-3),
        Engine("torch-fbgemm-fp16", "float", 0.05),
        Engine("lxpod-mixed", "lxpod", 0.05),
        Engine("lxpod-fp32", "lxpod", 1e-3),
    )
}

# Questions of the GQA test-dev split by number of word pieces, special tokens included; the last entry is 20 or more.
GQA_LENGTHS = {
    6: 146, 7: 511, 8: 1115, 9: 1897, 10: 1670, 11: 1293, 12: 1274, 13: 1236,
    14: 1000, 15: 704, 16: 568, 17: 379, 18: 266, 19: 182, 20: 339,
}  # fmt: skip


def midpoints(histogram, parts):
    """The values at the middle of each of `parts` equal shares of a histogram {value: count}, ascending."""
    ordered = [value for value in sorted(histogram) for _ in range(histogram[value])]
    return tuple(ordered[len(ordered) * (2 * part + 1) // (2 * parts)] for part in range(parts))


@dataclass(frozen=True)
class Case:
    """A batch of questions: real tokens of each, padded to `padded_to`, on `images` distinct images.

    `threads` None stands for the number on the command line. `skipped` engines run only when asked for by name.
    """

    name: str
    lengths: tuple[int, ...]
    padded_to: int = 20
    images: int = 1
    threads: int | None = None
    skipped: frozenset[str] = frozenset({"torch-compile"})

    @property
    def batch(self):
        """Number of questions."""
        return len(self.lengths)


OCTILES = midpoints(GQA_LENGTHS, 8)

CASES = {
    case.name: case
    for case in (
        Case("b1_t20", (20,), skipped=frozenset()),
        Case("b1_pad20", (12,)),
        Case(
            "b1_pad512", (12,), padded_to=512,
            skipped=frozenset({"torch-compile", "torch-fbgemm-fp16", "onnxruntime-int8"}),
        ),
        Case("b8", OCTILES, images=8),
        Case("b8_one_image", OCTILES, images=1),
        Case("b1_t20_one_thread", (20,), threads=1),
    )
}  # fmt: skip


def engines_of(case, asked):
    """Names of the engines to run on `case`: those in `asked`, or by default all that the case does not skip."""
    return list(asked) if asked else [name for name in ENGINES if name not in case.skipped]
