"""Gives MLX on Linux a fast float32 matrix product, without which no timing there means anything.

The CPU wheel multiplies through a reference BLAS at about 4 GFLOP/s. A preloaded OpenBLAS brings it to 100 and more:
the system's (Debian: libopenblas0), or the one inside the numpy wheel behind a small shim that gcc compiles on the fly.

    eval "$(python -m benchmarks.blas)"     # for what follows in this shell
"""

from __future__ import annotations

import ctypes.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_MARK = "MLX_LTX2_BENCH_BLAS"
_SHIM = """
#include <stdint.h>
extern void scipy_cblas_sgemm64_(int, int, int, int64_t, int64_t, int64_t, float, const float *, int64_t,
                                 const float *, int64_t, float, float *, int64_t);
void cblas_sgemm(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda,
                 const float *b, int ldb, float beta, float *c, int ldc) {
  scipy_cblas_sgemm64_(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
"""


def blas_name() -> str:
    """What this process multiplies with."""
    return os.environ.get(_MARK, "the wheel's own")


def settings() -> dict[str, str]:
    """Environment variables of a process with a preloaded OpenBLAS and one thread; empty where there is none."""
    found = None if sys.platform == "darwin" else _system() or _shim()
    if found is None:
        return {}
    library, name = found
    return {"LD_PRELOAD": library, _MARK: name, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def with_fast_blas() -> None:
    """Start this program again with `settings`; returns if that is so, or on macOS.

    Raises: SystemExit if there is no OpenBLAS to preload.
    """
    if sys.platform == "darwin" or _MARK in os.environ:
        return
    found = settings()
    if not found:
        sys.exit("no OpenBLAS found: install libopenblas0, or gcc and a numpy wheel")
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **found})


def _system() -> tuple[str, str] | None:
    library = ctypes.util.find_library("openblas")
    return (library, f"system {library}") if library else None


def _shim() -> tuple[str, str] | None:
    import numpy

    libraries = sorted((Path(numpy.__file__).parent.parent / "numpy.libs").glob("libscipy_openblas64_*.so"))
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not libraries or compiler is None:
        return None
    folder = Path(tempfile.mkdtemp(prefix="blas-"))
    source, library = folder / "shim.c", folder / "libshim.so"
    source.write_text(_SHIM)
    link = [str(libraries[0]), f"-Wl,-rpath,{libraries[0].parent}"]
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", str(source), "-o", str(library), *link], check=True)
    return str(library), f"numpy {numpy.__version__}'s OpenBLAS"


if __name__ == "__main__":
    for key, value in settings().items():
        print(f"export {key}={shlex.quote(value)}")
