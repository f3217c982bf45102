"""int8: onnxruntime's dynamic quantization, weights a channel, activations at run time."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic

from engines.base import EngineError
from engines.onnx.session import one_line


def quantize(source: Path, target: Path) -> None:
    """Write the int8 twin of a graph. Raises EngineError."""
    with tempfile.TemporaryDirectory(prefix="penstock-onnx-") as folder:
        prepared = Path(folder) / source.name
        try:
            # Shapes first, as onnxruntime asks for; its symbolic inference fails on sums of dimensions.
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            with _quiet():
                quantize_dynamic(
                    prepared, target, per_channel=True, reduce_range=not has_vnni(), weight_type=QuantType.QInt8
                )
        except Exception as error:
            raise EngineError(f"{source}: can't be quantized: {one_line(error)}") from error


@contextlib.contextmanager
def quantized(source: Path) -> Iterator[Path]:
    """The int8 twin, for as long as it takes to load it."""
    with tempfile.TemporaryDirectory(prefix="penstock-onnx-") as folder:
        target = Path(folder) / "model_quantized.onnx"
        quantize(source, target)
        yield target


def has_vnni() -> bool:
    """Whether the CPU adds products of bytes in 32 bits. One that does not saturates, unless weights have 7 bits."""
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:  # not Linux
        return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without its advice to do what has been done."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
