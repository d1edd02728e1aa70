"""The CUDA path on emulated devices. Run under ``python -m tests.gpu_emulation`` (``make test-cuda``)."""
